"""The run folder: the names of its files, here and nowhere else, and its checkpoints, found and kept in order."""

import itertools
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from mri_ddpm.errors import InputError
from mri_ddpm.files import remove_folder

LATEST = "latest"
STEP_FOLDER = re.compile(r"step-(\d+)")
GRID, LOSS_PLOT = "samples.png", "loss.png"
EMA_GRIDS = "samples/epoch-*-ema.png"


@dataclass(frozen=True)
class RunFolder:
    """Where each file of a run is; a pushed repository keeps those that travel under the same names in ``training/``."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def config(self) -> Path:
        """``TrainingConfig`` as JSON; the first file written, which marks the folder as a run."""
        return self.path / "config.json"

    @property
    def manifest(self) -> Path:
        """Every scan with its hash and its part of the split."""
        return self.path / "manifest.json"

    @property
    def base(self) -> Path:
        """The model that the run began from, where it began from one."""
        return self.path / "base.json"

    @property
    def rehearsal(self) -> Path:
        """Samples of that model that are shown among the scans, with ``--keep_old_share``."""
        return self.path / "rehearsal.safetensors"

    @property
    def environment(self) -> Path:
        """The machine and the versions."""
        return self.path / "environment.json"

    @property
    def metrics(self) -> Path:
        """A JSON object a line: losses of each step, validations, evaluations during the training."""
        return self.path / "metrics.jsonl"

    @property
    def loss_plot(self) -> Path:
        """The losses of ``metrics`` as a picture."""
        return self.path / LOSS_PLOT

    @property
    def sources(self) -> Path:
        """Which file each name in the manifest stands for, where patients are known; it never leaves the machine."""
        return self.path / "sources.csv"

    @property
    def evaluation_plot(self) -> Path:
        """The evaluations of ``metrics`` as a picture."""
        return self.path / "evaluation.png"

    @property
    def grid(self) -> Path:
        """Samples of the finished model."""
        return self.path / GRID

    def epoch_grid(self, epoch: int, weights: str) -> Path:
        """Samples at an epoch's end, of ``raw`` or ``ema`` weights."""
        return self.path / "samples" / f"epoch-{epoch:05d}-{weights}.png"

    @property
    def pipeline(self) -> Path:
        """The pipeline with the EMA weights."""
        return self.path / "pipeline"

    @property
    def best(self) -> Path:
        """The pipeline with the EMA weights of the lowest validation loss, with ``--keep_best``."""
        return self.path / "best"

    @property
    def best_validation(self) -> Path:
        """The row of ``metrics`` that it belongs to."""
        return self.best / "validation.json"

    @property
    def adapter(self) -> Path:
        """Of ``--train_only lora``: what the EMA weights have beyond the model that the run began from."""
        return self.path / "adapter"

    @property
    def has_pipeline(self) -> bool:
        """Whether it was written yet."""
        return (self.pipeline / "model_index.json").is_file()

    @property
    def evaluation(self) -> Path:
        """The folder of ``mri-ddpm evaluate``."""
        return self.path / "evaluation"

    @property
    def evaluation_metrics(self) -> Path:
        """The numbers of ``mri-ddpm evaluate``."""
        return self.evaluation / "metrics.json"

    @property
    def launcher(self) -> Path:
        """Which launcher began the run, for its restarts."""
        return self.path / ".launcher.json"

    @property
    def checkpoint_root(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after so many steps."""
        return self.checkpoint_root / f"step-{step:06d}"

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        folders = [path for path in self.checkpoint_root.glob("step-*") if STEP_FOLDER.fullmatch(path.name)]
        return sorted(folders, key=step_of)

    def find_checkpoint(self, name: str) -> Path | None:
        """The checkpoint to resume from; ``None`` when ``"latest"`` finds that the run wrote none yet.

        Raises:
            InputError: when a named checkpoint does not exist.
        """
        whole = self.checkpoints()
        if name == LATEST:
            return whole[-1] if whole else None
        for folder in (Path(name), self.checkpoint_root / name):
            if folder.is_dir():
                return folder
        there = ", ".join(path.name for path in whole) or "none"
        raise InputError(
            f"--resume_from_checkpoint {name} does not exist; the checkpoints of {self.path} are: {there}."
        )

    def drop_oldest_checkpoints(self, kept: int) -> None:
        """Keep the newest checkpoints alone."""
        for folder in self.checkpoints()[:-kept]:
            remove_folder(folder)

    def tidy_checkpoints(self, step: int) -> None:
        """Clear what a kill left half written or half deleted, and put aside the checkpoints after ``step``.

        Who goes back to an earlier checkpoint takes the later steps anew: ``latest`` and rotation are about the new ones.
        ``step-000200`` stays as ``step-000200.left``, which ``--resume_from_checkpoint`` takes by name; a second one as
        ``step-000200.left-2``.
        """
        for folder in self.checkpoint_root.glob(".step-*"):
            shutil.rmtree(folder, ignore_errors=True)
        for folder in self.checkpoints():
            if step_of(folder) > step:
                names = (f"{folder.name}.left{'' if n == 1 else f'-{n}'}" for n in itertools.count(1))
                folder.rename(next(path for path in map(folder.with_name, names) if not path.exists()))


def run_of(checkpoint: Path) -> RunFolder:
    """The run that a checkpoint lies in."""
    return RunFolder(checkpoint.resolve().parent.parent)


def step_of(checkpoint: Path) -> int | None:
    """The step that a checkpoint's name says; ``None`` of one that was renamed."""
    named = STEP_FOLDER.fullmatch(checkpoint.name)
    return int(named[1]) if named else None
