"""Checkpoints: written whole or not at all, and read as files that anybody may have made."""

import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from mri_ddpm.errors import InputError
from mri_ddpm.files import hidden, replace_folder, writing_to
from mri_ddpm.runs import RunFolder, read_raw_weights
from mri_ddpm.runs.folder import step_of
from mri_ddpm.runs.record import RAW_WEIGHTS
from mri_ddpm.training.state import TrainingState


def save_checkpoint(state: TrainingState) -> None:
    """Write ``checkpoints/step-000123/`` under a temporary name, rename it when whole, then drop the oldest.

    Raises:
        InputError: on every process when one cannot write; nothing of it stays, for it may be what fills the disk.
    """
    accelerator, folder = state.accelerator, state.folder.checkpoint(state.progress.step)
    unfinished = hidden(folder, "unfinished")
    try:
        with writing_together(accelerator, state.folder):
            if accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
        with writing_together(accelerator, state.folder):
            accelerator.save_state(str(unfinished))
        with writing_together(accelerator, state.folder):
            if accelerator.is_main_process:
                replace_folder(unfinished, folder)
                state.folder.drop_oldest_checkpoints(kept=state.config.checkpoints_total_limit)
    except InputError:
        if accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


@contextmanager
def writing_together(accelerator: Accelerator, run: RunFolder) -> Iterator[None]:
    """Write to the run folder on any process, and wait for all; when one cannot, all of them raise its error.

    If one raised alone, the others would wait for it, and end on an error that says nothing of the disk.
    """
    refusal = None
    last = next((path.name for path in reversed(run.checkpoints())), "none yet")
    way_out = f"its last whole checkpoint: {last}; resume from there with --resume_from_checkpoint latest."
    try:
        with writing_to(run.path, way_out):
            yield
    except InputError as error:
        refusal = str(error)
    refusals = [words for words in gather_object([refusal]) if words]
    if refusals:
        raise InputError(refusals[0])


def load_checkpoint(state: TrainingState, folder: Path) -> None:
    """Bring a prepared training to where ``save_checkpoint`` left it.

    Tensors and the step count come from the checkpoint, and nothing else: rates, decays and the like are the
    configuration's. accelerate's own ``load_state`` would unpickle some of these files freely, which can run anything.

    Raises:
        InputError: when a file is missing or damaged, is of another network, or holds a number that is not finite.
    """

    def unpickle(name: str) -> dict:
        return torch.load(folder / name, map_location="cpu", weights_only=True)

    try:
        weights = read_raw_weights(folder / RAW_WEIGHTS)
        weights = take_tensors(weights, state.raw_unet.state_dict())

        parameters = dict(state.raw_unet.named_parameters())
        averaged = dict(zip(parameters, unpickle("custom_checkpoint_1.pkl")["shadow_params"], strict=True))
        averaged = take_tensors(averaged, parameters)

        saved, moments = unpickle("optimizer.bin")["state"], {}  # by number; of fp16 perhaps none yet
        trained = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        for number, (name, parameter) in enumerate(trained.items() if saved else ()):
            wanted = {"step": torch.tensor(0.0), "exp_avg": parameter, "exp_avg_sq": parameter}
            moments[number] = take_tensors(saved[number], wanted, f"the optimizer's {name} ")

        step = unpickle("custom_checkpoint_0.pkl")["step"]
        if type(step) is not int or step < 0 or step_of(folder) not in (None, step):
            raise ValueError(f"its step is {step!r:.20}")
        # Of fp16; a checkpoint of another precision has none, and the loss scale is looked for anew
        has_scale = state.accelerator.scaler and (folder / "scaler.pt").exists()
        scaler = has_scale and unpickle("scaler.pt")
        if scaler and not all(math.isfinite(value) for value in scaler.values()):
            raise ValueError("its loss scale is not finite")

        state.raw_unet.load_state_dict(weights)
        state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": moments})
        state.ema.shadow_params = [tensor.to(state.accelerator.device) for tensor in averaged.values()]
        if scaler:
            state.accelerator.scaler.load_state_dict(scaler)
        state.guard.load_state_dict(unpickle("custom_checkpoint_2.pkl"))
    except Exception as error:  # a broken file makes its reader raise nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the checkpoint {folder} cannot be resumed from: {reason:.200}; name another by --resume_from_checkpoint."
        ) from error

    state.progress.step = state.ema.optimization_step = step
    set_rate(state)


def set_rate(state: TrainingState) -> None:
    """The learning rate of the step that comes next: the schedule's, less what surges have cost."""
    scheduler, step = state.lr_scheduler, state.progress.step
    scheduler.base_lrs = [state.config.learning_rate * state.guard.rate_factor] * len(scheduler.base_lrs)
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
