"""A run's ``metrics.jsonl`` by epoch, and the paper's table 1 of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mri_ddpm.files import read_json_lines

SMOOTH_STEPS = 10
QUARTILES = {"min": 0, "25%": 25, "50%": 50, "75%": 75, "max": 100}  # of the paper's table 1, in percent


@dataclass(frozen=True, eq=False)
class Curves:
    """What a run wrote of itself. S: optimizer steps, E: epochs that were finished.

    loss, images_per_second: of each step, ``(S,)``.
    training: mean loss of each epoch's steps, ``(E,)``.
    validation, validation_ema: held-out loss at the end of each epoch, of raw and averaged weights, ``(E,)``; for runs that
        validate once an epoch.
    evaluations: rows of ``--evaluate_epochs``.
    surges: rows of the guard's returns.
    """

    loss: np.ndarray
    images_per_second: np.ndarray
    training: np.ndarray
    validation: np.ndarray
    validation_ema: np.ndarray
    evaluations: list[dict]
    surges: list[dict]

    @classmethod
    def read(cls, run_dir: Path) -> "Curves":
        """Those of a run folder."""
        return cls.of(read_json_lines(run_dir / "metrics.jsonl"))

    @classmethod
    def of(cls, rows: Sequence[dict]) -> "Curves":
        """Those of the rows of ``metrics.jsonl``."""
        steps = [row for row in rows if "loss" in row]
        sizes = Counter(row["epoch"] for row in steps)
        whole = [epoch for epoch in sorted(sizes) if sizes[epoch] == sizes[0]]
        losses = np.array([row["loss"] for row in steps])
        epochs = np.array([row["epoch"] for row in steps])
        held_out = [row for row in rows if "validation_loss" in row][: len(whole)]
        return cls(
            loss=losses,
            images_per_second=np.array([row["images_per_second"] for row in steps]),
            training=np.array([losses[epochs == epoch].mean() for epoch in whole]),
            validation=np.array([row["validation_loss"] for row in held_out]),
            validation_ema=np.array([row["validation_loss_ema"] for row in held_out]),
            evaluations=[row for row in rows if "kid" in row],
            surges=[row for row in rows if "surge_at_step" in row],
        )

    @property
    def smooth(self) -> np.ndarray:
        """Means of the loss over ten steps in a row, of fewer where there are no more."""
        window = min(SMOOTH_STEPS, len(self.loss))
        return np.convolve(self.loss, np.full(window, 1 / window), mode="valid")

    def seconds(self, images_per_step: int) -> float:
        """Of the steps alone, without validating, keeping and drawing."""
        return float((images_per_step / self.images_per_second).sum())


def describe(losses: np.ndarray) -> dict[str, float]:
    """Table 1's columns for the losses of all epochs ``(E,)``: count, mean, standard deviation, quartiles."""
    spread = losses.std(ddof=1) if len(losses) > 1 else 0.0
    quartiles = {name: np.percentile(losses, percent) for name, percent in QUARTILES.items()}
    return {"count": len(losses), "mean": losses.mean(), "std": spread, **quartiles}
