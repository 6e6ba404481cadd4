"""What came of the runs: looked up, compared seed by seed, and spelled with intervals."""

from collections.abc import Sequence
from dataclasses import dataclass

from mri_ddpm.evaluation.estimates import Estimate, mean

MEASURES = {  # by which variants are compared: where lower is better
    "kid": "KID",
    "bits_per_dimension": "bits per dimension, held out",
}
MORE_MEASURES = {"detail_ratio": "fine detail, scans = 1", "flagged_share": "taken for copies"}


@dataclass(frozen=True)
class Results:
    """What came of the runs, by part and variant."""

    rows: Sequence[dict]

    def of(self, part: str, variant: str | None = None) -> list[dict]:
        """Those of a part, or of one variant in it, in the order of their seeds."""
        return [row for row in self.rows if row["part"] == part and variant in (None, row["variant"])]

    def only(self, part: str, variant: str) -> dict:
        """That of a variant with one seed."""
        (row,) = self.of(part, variant)
        return row

    def values(self, key: str, part: str, variant: str) -> dict[int, float]:
        """A measure by seed, of the runs that have it."""
        found = {row["seed"]: row.get(key) for row in self.of(part, variant)}
        numbers = {seed: x["value"] if isinstance(x, dict) else x for seed, x in found.items()}
        return {seed: number for seed, number in numbers.items() if number is not None}


def compare(results: Results, before: tuple[str, str], after: tuple[str, str]) -> dict[str, Estimate | None]:
    """What changes from one variant to another, by measure: the mean of the differences of equal seeds."""
    found = {}
    for key in MEASURES:
        a, b = results.values(key, *before), results.values(key, *after)
        seeds = a.keys() & b.keys()
        found[key] = mean([b[seed] - a[seed] for seed in seeds]) if seeds else None
    return found


def variants_table(results: Results, variants: dict[str, tuple[str, str]]) -> list[dict]:
    """One row a variant, by its name: every measure, its mean over seeds."""
    rows = []
    for name, where in variants.items():
        losses = [row["validation_loss"][-1] for row in results.of(*where) if row["validation_loss"]]
        found = {title: results.values(key, *where) for key, title in {**MEASURES, **MORE_MEASURES}.items()}
        estimates = {title: mean(list(values.values())) for title, values in found.items() if values}
        held_out = mean(losses) if losses else None
        rows.append({"variant": name, "seeds": len(losses), "held-out loss": held_out, **estimates})
    return rows


def changes(found: dict[str, Estimate | None]) -> str:
    """In words: "KID changes by ...; bits per dimension by ..."."""
    parts = [
        f"{MEASURES[key]} changes by {spelled(estimate)} ({estimate.n} seeds)"
        if estimate
        else f"{MEASURES[key]} is missing"
        for key, estimate in found.items()
    ]
    return "; ".join(parts)


def spelled(estimate: Estimate) -> str:
    """A number with its interval."""
    return f"{estimate.value:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"


def power_of_two(estimate: Estimate) -> Estimate:
    """From a logarithm to the factor."""
    return Estimate(*(float(2**x) for x in (estimate.value, estimate.low, estimate.high)), estimate.n)


def percent(estimate: Estimate) -> str:
    """A slope of logarithms as the change in percent, signed."""
    factor = power_of_two(estimate)
    value, low, high = (f"{100 * (x - 1):+.1f}" for x in (factor.value, factor.low, factor.high))
    return f"{value} % [{low}, {high}]"
