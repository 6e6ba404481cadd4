"""What a training may not do to a run folder: overwrite another run, or resume this one with what does not fit."""

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mri_ddpm.config import TrainingConfig
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json, read_json_lines
from mri_ddpm.runs.folder import RunFolder

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

ARCHITECTURE = (  # a checkpoint fits no other values of these, or would become another model
    "resolution", "block_out_channels", "layers_per_block", "block_type", "attention_types", "attention_head_dim",
    "norm_num_groups", "class_conditional", "channels", "condition_on", "num_train_timesteps", "beta_start", "beta_end", "prediction_type",
    "rescale_betas_zero_snr", "start_from_moments", "optimizer", "pretrained_model_name_or_path", "train_only", "rank", "keep_old_share", "random_flip",
    "no_flip_classes",
)  # fmt: skip
OLDER = {  # of runs from before these flags
    "start_from_moments": False, "channels": [], "condition_on": [], "pretrained_model_name_or_path": None, "train_only": None,
}  # fmt: skip
WORKERS_END_S = 15  # torch's data workers look every 5 s whether their training is alive


def check_run_folder(run: RunFolder, config: TrainingConfig) -> None:
    """Refuse to overwrite another run, or to resume where there is none.

    Raises:
        InputError: naming the folder.
    """
    run_dir = run.path
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"--output_dir {run_dir} is a file; name a folder.")
    data = config.train_data_dir and Path(config.train_data_dir).resolve()
    if data and run_dir.resolve().is_relative_to(data):
        raise InputError(
            f"--output_dir {run_dir} lies in --train_data_dir {config.train_data_dir}, and its pictures would be taken for scans; "
            "name a folder elsewhere."
        )
    there = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK):
        raise InputError(f"--output_dir {run_dir} cannot be written; name a folder that can.")
    if not config.resume_from_checkpoint:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise InputError(
                f"--output_dir {run_dir} is not empty; name another folder, or resume with "
                "--resume_from_checkpoint latest."
            )
        return
    if not run.config.exists():
        if run_dir.exists() and any(not path.name.startswith(".") for path in run_dir.iterdir()):
            raise InputError(
                f"--output_dir {run_dir} holds other files and no run to resume; name the run's folder."
            )
        return
    check_metrics(run.metrics)


def check_same_model(run: RunFolder, config: TrainingConfig) -> None:
    """Refuse to resume a run with another network, schedule or prediction, or with optimizer states of another kind.

    Raises:
        InputError: naming the folder, and the flag that differs with both its values.
    """
    if not run.config.exists():
        return
    kept = read_json(run.config)
    if kept.get("random_flip") and "no_flip_classes" not in kept:
        raise InputError(
            f"{run} was trained with --random_flip when networks were not told which scans are mirrored, and cannot go on so; "
            "begin anew in another --output_dir."
        )
    before, now = {**OLDER, **kept}, dataclasses.asdict(config)
    for name in ARCHITECTURE:
        if name in before and before[name] != now[name]:
            raise InputError(
                f"{run} was trained with {flag(name, before[name])}, and this is {flag(name, now[name])}; resume with "
                "the first, or name another --output_dir."
            )


@contextmanager
def alone(run: RunFolder) -> Iterator[Callable[[], None]]:
    """For one training at a time in a run folder: gives a function that claims the folder until the block ends.

    A process that dies lets go of it, however it dies; its data workers some seconds later. On Windows, and on file systems
    without locks, nothing is claimed.

    Raises:
        InputError: by that function, when another process has claimed the folder.
    """
    with ExitStack() as held:

        def claim() -> None:
            if fcntl is None:
                return
            # The folder itself: a file for it would be left over, and would keep a disk from becoming read-only
            folder = os.open(run.path, os.O_RDONLY)
            held.callback(os.close, folder)
            end = time.monotonic() + WORKERS_END_S
            while not _locked(folder):
                if time.monotonic() >= end:
                    raise InputError(
                        f"another training is writing to {run}; wait until it ends, or name another --output_dir."
                    )
                time.sleep(0.1)

        yield claim


def _locked(folder: int) -> bool:
    """Lock an open folder, as far as its file system can; whether no other process has."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def flag(name: str, value) -> str:
    """A setting as it is given on the command line."""
    if isinstance(value, bool):
        return f"--{'' if value else 'no_'}{name}"
    return f"no --{name}" if value in ([], None) else f"--{name} {value}"


def check_metrics(path: Path) -> None:
    """Refuse a curve that could not be resumed; what a number is, nobody can check."""
    for row in read_json_lines(path):
        numbers = [n for value in row.values() for n in (value if isinstance(value, list) else [value])]
        if type(row.get("step")) is not int or any(isinstance(n, (str, list, dict)) for n in numbers):
            raise InputError(f"{path} has a row that is not of a step and numbers; mend it or move it away.")


def check_same_data(run: RunFolder, manifest: dict) -> None:
    """Refuse to resume on other scans, or on another split of them."""
    if run.manifest.exists() and read_json(run.manifest).get("content_sha256") != manifest["content_sha256"]:
        raise InputError(
            f"the scans of {manifest['source']}, or their split, are not those that {run} was trained on; "
            "resume with the same ones, or name another --output_dir."
        )


def batch_change(run: RunFolder, config: TrainingConfig, num_processes: int) -> str | None:
    """Say that a resumed run takes more or fewer scans a step than before, for its epochs become others by it."""
    papers = run.config, run.environment
    if not all(paper.exists() for paper in papers):
        return None
    before = {"gradient_accumulation_steps": 1, **read_json(papers[0]), **read_json(papers[1])}
    now = {**dataclasses.asdict(config), "num_processes": num_processes}
    names = ("train_batch_size", "gradient_accumulation_steps", "num_processes")
    changed = [
        f"{name} {before[name]}, now {now[name]}"
        for name in names
        if before.get(name, now[name]) != now[name]
    ]
    if not changed:
        return None
    return (
        f"warning: the run was begun with {', '.join(changed)}: epochs have another number of steps, and the one that is "
        "resumed is counted by the new number."
    )
