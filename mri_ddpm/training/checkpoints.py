"""Checkpoints: written whole or not at all, rotated, found again, and read as files that anybody may have made."""

import math
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mri_ddpm.errors import InputError
from mri_ddpm.files import hidden, remove_folder, replace_folder, writing_to
from mri_ddpm.hub import read_raw_weights

if TYPE_CHECKING:
    from mri_ddpm.training.loop import TrainingRun

STEP_FOLDER = re.compile(r"step-(\d+)")


class Progress:
    """Optimizer steps taken; saved in every checkpoint. The epoch and the place in it follow from it."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    folders = [path for path in (run_dir / "checkpoints").glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
    return sorted(folders, key=lambda path: int(STEP_FOLDER.fullmatch(path.name)[1]))


def save_checkpoint(accelerator: Accelerator, run_dir: Path, step: int, total_limit: int) -> None:
    """Write ``checkpoints/step-000123/`` under a temporary name, rename it when whole, then drop the oldest.

    Raises:
        InputError: on every process when one cannot write; nothing of it stays, for it may be what fills the disk.
    """
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    unfinished = hidden(folder, "unfinished")
    try:
        with writing_together(accelerator, run_dir):
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
        with writing_together(accelerator, run_dir):
            accelerator.save_state(str(unfinished))
        with writing_together(accelerator, run_dir):
            if accelerator.is_main_process:
                replace_folder(unfinished, folder)
                for old in list_checkpoints(run_dir)[:-total_limit]:
                    remove_folder(old)
    except InputError:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def writing_together(accelerator: Accelerator, run_dir: Path) -> Iterator[None]:
    """Write to the run folder on any process, and wait for all; when one cannot, all of them raise its error.

    If one raised alone, the others would wait for it, and end on an error that says nothing of the disk.
    """
    refusal = None
    last = next((path.name for path in reversed(list_checkpoints(run_dir))), "none yet")
    way_out = f"its last whole checkpoint: {last}; go on from there with --resume_from_checkpoint latest."
    try:
        with writing_to(run_dir, way_out):
            yield
    except InputError as error:
        refusal = str(error)
    refusals = [words for words in gather_object([refusal]) if words]
    if refusals:
        raise InputError(refusals[0])


def tidy(run_dir: Path, step: int) -> None:
    """Clear what a kill left half written or half deleted, and put aside the checkpoints after ``step``.

    Who goes back to an earlier checkpoint takes the later steps anew: ``latest`` and rotation are about the new ones.
    ``step-000200`` stays as ``step-000200.left``, which ``--resume_from_checkpoint`` takes by name.
    """
    for folder in run_dir.glob("checkpoints/.step-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for folder in list_checkpoints(run_dir):
        if int(STEP_FOLDER.fullmatch(folder.name)[1]) > step:
            replace_folder(folder, folder.with_name(f"{folder.name}.left"))


def find_checkpoint(run_dir: Path, resume_from_checkpoint: str) -> Path | None:
    """The folder to resume from; ``None`` when ``"latest"`` finds that the run wrote none yet.

    Raises:
        InputError: when a named checkpoint does not exist.
    """
    whole = list_checkpoints(run_dir)
    if resume_from_checkpoint == "latest":
        return whole[-1] if whole else None
    for folder in (Path(resume_from_checkpoint), run_dir / "checkpoints" / resume_from_checkpoint):
        if folder.is_dir():
            return folder
    there = ", ".join(path.name for path in whole) or "none"
    raise InputError(
        f"--resume_from_checkpoint {resume_from_checkpoint} does not exist; the checkpoints of {run_dir} are: {there}."
    )


def load_checkpoint(run: "TrainingRun", folder: Path) -> None:
    """Bring a prepared run to where ``save_checkpoint`` left it.

    Tensors and the step count come from the checkpoint, and nothing else: rates, decays and the like are the
    configuration's. accelerate's own ``load_state`` would unpickle some of these files freely, which can run anything.

    Raises:
        InputError: when a file is missing or damaged, is of another network, or holds a number that is not finite.
    """

    def unpickle(name: str) -> dict:
        return torch.load(folder / name, map_location="cpu", weights_only=True)

    try:
        weights = read_raw_weights(folder / "model.safetensors")
        weights = take_tensors(weights, run.raw_unet.state_dict())

        parameters = dict(run.raw_unet.named_parameters())
        averaged = dict(zip(parameters, unpickle("custom_checkpoint_1.pkl")["shadow_params"], strict=True))
        averaged = take_tensors(averaged, parameters)

        saved, moments = unpickle("optimizer.bin")["state"], {}  # by number; of fp16 perhaps none yet
        for number, (name, parameter) in enumerate(parameters.items() if saved else ()):
            wanted = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
            moments[number] = take_tensors(saved[number], wanted, f"the optimizer's {name} ")

        step = unpickle("custom_checkpoint_0.pkl")["step"]
        named = STEP_FOLDER.fullmatch(folder.name)
        if type(step) is not int or step < 1 or (named and step != int(named[1])):
            raise ValueError(f"its step is {step!r:.20}")
        # Of fp16; a checkpoint of another precision has none, and the loss scale is looked for anew
        has_scale = run.accelerator.scaler and (folder / "scaler.pt").exists()
        scaler = has_scale and unpickle("scaler.pt")
        if scaler and not all(math.isfinite(value) for value in scaler.values()):
            raise ValueError("its loss scale is not finite")

        run.raw_unet.load_state_dict(weights)
        run.optimizer.load_state_dict({**run.optimizer.state_dict(), "state": moments})
        run.ema.shadow_params = [tensor.to(run.accelerator.device) for tensor in averaged.values()]
        if scaler:
            run.accelerator.scaler.load_state_dict(scaler)
        run.guard.load_state_dict(unpickle("custom_checkpoint_2.pkl"))
    except Exception as error:  # a broken file makes its reader raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the checkpoint {folder} cannot be resumed from: {reason:.200}; name another by --resume_from_checkpoint."
        ) from error

    run.progress.step = run.ema.optimization_step = step
    set_rate(run)


def set_rate(run: "TrainingRun") -> None:
    """The learning rate of the step that comes next: the schedule's, less what surges have cost."""
    scheduler, step = run.lr_scheduler, run.progress.step
    scheduler.base_lrs = [run.config.learning_rate * run.guard.rate_factor] * len(scheduler.base_lrs)
    scheduler.last_epoch, scheduler._step_count = step - 1, step
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it looks for the optimizer's step, which an earlier process took
        scheduler.step()


def take_tensors(found: dict, wanted: dict[str, torch.Tensor], what: str = "") -> dict[str, torch.Tensor]:
    """Copy what was found, unless it is not tensors of the wanted names, types and shapes, or not of finite numbers.

    Raises:
        ValueError: naming the tensor, after ``what`` it is of.
    """
    for name in found.keys() ^ wanted.keys():
        raise ValueError(f"{what}{name} is {'unknown' if name in found else 'missing'}")
    for name, like in wanted.items():
        if (found[name].dtype, found[name].shape) != (like.dtype, like.shape):
            raise ValueError(f"{what}{name} does not fit the network")
        if not found[name].isfinite().all():
            raise ValueError(f"{what}{name} holds numbers that are not finite")
    return {name: found[name].detach().clone() for name in wanted}  # in a file, two could share memory
