"""A number with its interval: nothing is reported without one."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest, t


@dataclass(frozen=True)
class Estimate:
    """A measured number, its 95 % interval, and the count of images it rests on."""

    value: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict:
        """As it stands in ``metrics.json``."""
        return {"value": self.value, "interval": [self.low, self.high], "n": self.n}


def resampling_counts(n: int, rng: np.random.Generator, resamples: int = 1000) -> np.ndarray:
    """How often a bootstrap that draws n of n images takes each, ``(resamples, n)`` float64, each row summing to n.

    Weights instead of copies: what was computed once an image, or once a pair, serves every resample.
    """
    return rng.multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def percentile_interval(replicates: np.ndarray | Sequence[float]) -> tuple[float, float]:
    """The 95 % interval between percentiles of a bootstrap's replicates (Efron & Tibshirani 1993, chapter 13)."""
    low, high = np.quantile(replicates, [0.025, 0.975])
    return float(low), float(high)


def share(hits: np.ndarray) -> Estimate:
    """Share of true values in ``(N,)``, with Wilson's score interval (1927)."""
    interval = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return Estimate(float(hits.mean()), float(interval.low), float(interval.high), n=len(hits))


def mean(values: np.ndarray | Sequence[float]) -> Estimate:
    """Mean of ``(N,)`` independent values, such as one a seed, with Student's t interval; that of one value has no end."""
    values = np.asarray(values, dtype=np.float64)
    n, value = len(values), float(np.mean(values))
    half = float(t.ppf(0.975, n - 1) * values.std(ddof=1) / n**0.5) if n > 1 else float("inf")
    return Estimate(value, value - half, value + half, n)
