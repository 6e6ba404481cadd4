"""What came of the runs: looked up, compared seed by seed, and as items of the report."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import nan
from pathlib import Path

from benchmarks.reproduction.budgets import Budget, Setting
from mri_ddpm.data import Scans
from mri_ddpm.evaluation.estimates import Estimate, mean

MEASURES = {  # by which variants are compared: where lower is better
    "kid": "KID",
    "bits_per_dimension": "bits per dimension, validation",
}
MORE_MEASURES = {"detail_ratio": "fine detail, scans = 1", "flagged_share": "taken for copies"}

Variant = tuple[str, str]  # part and variant of runs
Picture = tuple[str, Callable[[Path], object]]  # a caption, and what writes it to a file


@dataclass(frozen=True)
class Item:
    """One thing of the paper, and ours beside it.

    title: what the paper calls it.
    paper: the paper's own figure, number or claim, in words.
    ours: what came out, in words.
    answer: of a claim: yes, no or not shown.
    runs: results that it rests on; commands, seeds, machine and time are theirs.
    pictures: by file name in ``figures/``.
    tables: of rows by column; estimates are spelled with their intervals.
    code: what makes it; the function that gives the item when ``None``.
    """

    title: str
    paper: str
    ours: str
    answer: str | None = None
    runs: list[dict] = field(default_factory=list)
    pictures: dict[str, Picture] = field(default_factory=dict)
    tables: list[list[dict]] = field(default_factory=list)
    code: Callable | None = None


@dataclass(frozen=True)
class Study:
    """A budget, its runs, and what came of them.

    rows: of ``runs.jsonl``.
    folder: of the run folders.
    scans: in the size of the best setting.
    with_scans: whether real scans may be shown.
    kid_of_blurred: that of scans of which only the outlines are left, in the long run's size.
    """

    budget: Budget
    rows: Sequence[dict]
    folder: Path = Path()
    scans: Scans | None = None
    with_scans: bool = True
    kid_of_blurred: float = nan

    def of(self, part: str, variant: str | None = None) -> list[dict]:
        """Results of a part, or of one variant in it, in the order of their seeds."""
        return [row for row in self.rows if row["part"] == part and variant in (None, row["variant"])]

    def paper_run(self, setting: Setting, ending: str = "") -> dict:
        """The result of one of the paper's own settings."""
        (row,) = self.of("paper", setting.name + ending)
        return row

    def values(self, key: str, where: Variant) -> dict[int, float]:
        """A measure by seed, of the runs that have it."""
        found = {row["seed"]: row.get(key) for row in self.of(*where)}
        numbers = {seed: x["value"] if isinstance(x, dict) else x for seed, x in found.items()}
        return {seed: number for seed, number in numbers.items() if number is not None}

    def effect(self, signs: dict[Variant, float]) -> dict[str, Estimate | None]:
        """By measure, the signed sum over variants, its mean over the seeds that all of them have."""
        found = {}
        for key in MEASURES:
            values = {where: self.values(key, where) for where in signs}
            seeds = set.intersection(*map(set, values.values()))
            sums = [sum(sign * values[where][seed] for where, sign in signs.items()) for seed in seeds]
            found[key] = mean(sums) if sums else None
        return found

    def table(self, variants: dict[str, Variant]) -> list[dict]:
        """One row a variant, by its name: every measure, its mean over seeds."""
        rows = []
        for name, where in variants.items():
            losses = [row["validation_loss"][-1] for row in self.of(*where) if row["validation_loss"]]
            row = {"variant": name, "seeds": len(losses), "validation loss": mean(losses) if losses else None}
            for key, title in {**MEASURES, **MORE_MEASURES}.items():
                if values := self.values(key, where):
                    row[title] = mean(list(values.values()))
            rows.append(row)
        return rows

    def picture(self, row: dict, source: str, name: str, caption: str) -> dict[str, Picture]:
        """A picture that a run left, under a name in the report; a run that ended early may not have it."""
        file = self.folder / row["name"] / source
        return {name: (caption, partial(shutil.copy, file))} if file.exists() else {}


def estimate(saved: dict | None) -> Estimate | None:
    """An estimate as it was saved in a result."""
    return saved and Estimate(saved["value"], *saved["interval"], saved["n"])


def spelled(estimate: Estimate) -> str:
    """A number with its interval."""
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def changes(found: dict[str, Estimate | None]) -> str:
    """In words: "KID changes by ...; bits per dimension by ..."."""
    return "; ".join(
        f"{MEASURES[key]} changes by {spelled(estimate)} ({estimate.n} seeds)"
        if estimate
        else f"{MEASURES[key]} is missing"
        for key, estimate in found.items()
    )
