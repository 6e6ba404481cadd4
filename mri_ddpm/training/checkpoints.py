"""Checkpoints: written whole or not at all, rotated, found again."""

import re
import shutil
from pathlib import Path

from accelerate import Accelerator

from mri_ddpm.errors import InputError
from mri_ddpm.files import replace_folder

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
    """Write ``checkpoints/step-000123/`` under a temporary name, rename it when whole, then drop the oldest."""
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        replace_folder(unfinished, folder)
        for old in list_checkpoints(run_dir)[:-total_limit]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


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
