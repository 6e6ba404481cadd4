"""The paper's claims, each asked of the runs and answered yes, no, or not shown, with seeds and 95 % intervals."""

import itertools
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

from benchmarks.reproduction import paper
from benchmarks.reproduction.budgets import Budget
from benchmarks.reproduction.plan import BASELINE, PROVOKED_RATES, size_and_batch
from benchmarks.reproduction.results import (
    MEASURES,
    Results,
    changes,
    compare,
    percent,
    power_of_two,
    spelled,
    variants_table,
)
from benchmarks.reproduction.sweep import FINISHED
from mri_ddpm.evaluation.estimates import Estimate, mean

YES, NO, NOT_SHOWN = "yes", "no", "not shown"
# What is compared, by its name in the report: part and variant of the runs
BLOCKS = {
    "ResNet, attention": ("blocks", BASELINE),
    "ResNet": ("blocks", "resnet"),
    "ConvNeXt, attention": ("blocks", "convnext-attention"),
    "ConvNeXt": ("blocks", "convnext"),
}
TIMESTEPS = {
    "T = 100": ("timesteps", "100"),
    "T = 300": ("blocks", BASELINE),
    "T = 1000": ("timesteps", "1000"),
}
SCALED_TIMESTEPS = {
    "T = 100": ("timesteps", "100-scaled"),
    "T = 300": ("timesteps", "300-scaled"),
    "T = 1000": ("timesteps", "1000"),
}
LOSSES = {"Huber": ("blocks", BASELINE), "L2": ("losses", "l2"), "L1": ("losses", "l1")}

LITTLE = 0.1  # of what training has gained until then: a change beyond it is not little
SAME_RATIO = 0.01  # relative; 28/51 would be the paper's 44/80
SURGE = 5.0  # times the median of the epochs so far


@dataclass(frozen=True)
class Claim:
    """One claim: what the paper says, the answer, and what it rests on.

    table: rows of the numbers, by column; empty where the text says all.
    """

    number: str
    says: str
    answer: str
    because: str
    table: list[dict] = field(default_factory=list)


def all_claims(results: Results, budget: Budget, kid_of_blurred: float) -> list[Claim]:
    """Every claim, in the order of the report."""
    return [
        ratio_claim(results, budget),
        threshold_claim(results, budget, kid_of_blurred),
        late_epochs_claim(results, budget),
        *blocks_claims(results),
        *timesteps_claims(results),
        *loss_claims(results),
        *surge_claims(results, budget),
    ]


def ratio_claim(results: Results, budget: Budget) -> Claim:
    """Where image size / batch size is not that of the paper's best run, does training not improve?"""
    best = budget.best.resolution / budget.best.batch_size
    gains: dict[str, list[float]] = {"over": [], "under": [], "at": []}
    for row in results.of("ratio"):
        ratio = row["resolution"] / row["batch_size"] / best
        where = "over" if ratio > 1 + SAME_RATIO else "under" if ratio < 1 - SAME_RATIO else "at"
        gains[where].append(learned(row))
    off = [*gains["over"], *gains["under"]]
    answer = NOT_SHOWN
    if all(gain < 0 for gain in off):
        answer = NO
    elif not any(gain < 0 for gain in off) and all(gain < 0 for gain in gains["at"]):
        answer = YES
    fell = [
        f"{sum(gain < 0 for gain in found)} of {len(found)} runs {where} it" for where, found in gains.items()
    ]
    finite = [gain for gain in off if np.isfinite(gain)]
    because = (
        f"Against the ratio of the paper's best run, {budget.best.resolution}/{budget.best.batch_size}: the held-out loss fell from the first "
        f"epoch to the last in {', '.join(fell)}"
    )
    if finite:
        because += f"; over and under it on average to {spelled(power_of_two(mean(finite)))} of itself (n = {len(finite)} runs)"
    for rate, scaled in (
        ("the paper's learning rate", False),
        ("one that follows the root of the batch", True),
    ):
        loss, kid = (batch_slopes(results, budget, scaled, key) for key in ("loss", "kid"))
        if loss:
            because += (
                f". At equal images seen and {rate}, each doubling of the batch changes the last held-out loss by {percent(mean(loss))} and "
                f"KID by {spelled(mean(kid))} (n = {len(loss)} sizes and seeds)"
            )
    return Claim("1", paper.CLAIMS["ratio"], answer, f"{because}.")


def learned(row: dict) -> float:
    """By how many powers of two the held-out loss changed from a run's first epoch to its last; NaN of a run that broke."""
    losses = row["validation_loss"]
    return float(np.log2(losses[-1] / losses[0])) if row["ended"] == FINISHED else float("nan")


def batch_slopes(results: Results, budget: Budget, scaled: bool, key: str) -> list[float]:
    """What a doubling of the batch changes, of every size and seed: the last held-out loss by so many powers of two, or KID.

    At the batch of the paper's best run its learning rate and the scaled one are the same, and so is the run.
    """
    slopes = []
    for size, seed in itertools.product(budget.sizes, range(budget.ratio_seeds)):
        rows = [
            row
            for row in results.of("ratio")
            if (row["resolution"], row["seed"], row["ended"]) == (size, seed, FINISHED)
            and (row["variant"].endswith("-scaled") == scaled or row["batch_size"] == budget.best.batch_size)
        ]
        values = [
            np.log2(row["validation_loss"][-1]) if key == "loss" else row["kid"]["value"] for row in rows
        ]
        if len(rows) > 1:
            slopes.append(float(np.polyfit(np.log2([row["batch_size"] for row in rows]), values, 1)[0]))
    return slopes


def threshold_claim(results: Results, budget: Budget, kid_of_blurred: float) -> Claim:
    """Does a loss of 0.015 separate meaningful from meaningless samples?"""
    points = long_points(results, budget)
    meaningful = [point["high"] < kid_of_blurred for point in points]
    above = [good for point, good in zip(points, meaningful, strict=True) if point["loss"] > paper.THRESHOLD]
    below = [good for point, good in zip(points, meaningful, strict=True) if point["loss"] <= paper.THRESHOLD]
    answer = NOT_SHOWN
    if any(above):
        answer = NO
    elif above and below and all(below):
        answer = YES
    rho = spearmanr([point["loss"] for point in points], [point["kid"] for point in points])
    because = (
        f"Samples count as meaningful when their KID is surely under {kid_of_blurred:.2f}, that of held-out scans blurred until "
        f"only the outline of a head is left. Of {len(points)} moments of one run, {len(above)} have a held-out loss over "
        f"{paper.THRESHOLD}, and at {sum(above)} of them samples are meaningful; {len(below)} have one under it, {sum(below)} of "
        f"them with meaningful samples. Loss and KID: Spearman's rho {rho.statistic:.2f} (p = {rho.pvalue:.2g}, n = {len(points)}, "
        "one seed)."
    )
    table = [
        {
            "epoch": point["epoch"],
            "held-out loss": point["loss"],
            "KID": f"{point['kid']:.3g} [{point['low']:.3g}, {point['high']:.3g}]",
            "taken for copies": point["copies"],
        }
        for point in points
    ]
    return Claim("2", paper.CLAIMS["threshold"], answer, because, table)


def long_points(results: Results, budget: Budget) -> list[dict]:
    """Loss, KID and copies of the long run at its evaluated epochs; there is no loss before the first."""
    row = results.only("paper", size_and_batch(budget.long))
    return [
        {
            "epoch": found["epoch"],
            "loss": row["validation_loss"][found["epoch"] - 1],
            "kid": found["kid"],
            "low": found["kid_interval"][0],
            "high": found["kid_interval"][1],
            "copies": found["flagged_share"],
        }
        for found in row["evaluations"]
        if found["epoch"] > 0
    ]


def late_epochs_claim(results: Results, budget: Budget) -> Claim:
    """Does little change after epoch 585?"""
    says = paper.CLAIMS["late epochs"]
    row = results.only("paper", size_and_batch(budget.long))
    found = {point["epoch"]: point for point in row["evaluations"]}
    last = max(found)
    if budget.late_epoch not in found or last == budget.late_epoch:
        return Claim("3", says, NOT_SHOWN, f"The run ended at epoch {last}.")
    before, after, untrained = found[budget.late_epoch], found[last], found[min(found)]
    change = difference(before, after, "kid")
    copies = difference(before, after, "flagged_share")
    margin = LITTLE * (untrained["kid"] - before["kid"])
    answer = NOT_SHOWN
    if max(abs(change.low), abs(change.high)) < margin and copies.low <= 0 <= copies.high:
        answer = YES
    elif change.low > margin or change.high < -margin or copies.low > 0:
        answer = NO
    because = (
        f"From epoch {budget.late_epoch} to {last} KID changes by {spelled(change)}, where training gained "
        f"{untrained['kid'] - before['kid']:.2f} until then (little is under a tenth of that, {margin:.2f}), and the share taken for "
        f"copies by {spelled(copies)} (from {before['flagged_share']:.3f}; 0.05 is expected of unseen scans). One seed; the intervals "
        "are over the images drawn."
    )
    return Claim("3", says, answer, because)


def difference(before: dict, after: dict, key: str) -> Estimate:
    """Of two measurements with intervals, taken as independent."""
    value = after[key] - before[key]
    (low, high), (low_before, high_before) = after[f"{key}_interval"], before[f"{key}_interval"]
    down = np.hypot(after[key] - low, high_before - before[key])
    up = np.hypot(high - after[key], before[key] - low_before)
    return Estimate(value, float(value - down), float(value + up), 1)


def blocks_claims(results: Results) -> list[Claim]:
    """At equal compute: is attention worth it, and which blocks are better?"""

    def effect(marked: str) -> dict[str, Estimate | None]:
        """By measure, what it changes to have what the marked variants have: a main effect of the two by two design."""
        found = {}
        for key in MEASURES:
            values = {name: results.values(key, *where) for name, where in BLOCKS.items()}
            seeds = set.intersection(*map(set, values.values()))
            signs = {name: 1 if marked in name else -1 for name in values}
            found[key] = (
                mean([sum(signs[n] * values[n][s] for n in values) / 2 for s in seeds]) if seeds else None
            )
        return found

    attention, convnext = effect("attention"), effect("ConvNeXt")
    table = variants_table(results, BLOCKS)
    return [
        Claim(
            "4a", paper.CLAIMS["attention"], judged(attention), f"With attention {changes(attention)}.", table
        ),
        Claim("4b", paper.CLAIMS["convnext"], judged(convnext), f"With ConvNeXt blocks {changes(convnext)}."),
    ]


def timesteps_claims(results: Results) -> list[Claim]:
    """Do more timesteps give clearer images, with the paper's betas and with betas scaled to T?"""
    claims = []
    for letter, betas, variants in (
        ("a", "as they are", TIMESTEPS),
        ("b", "scaled by 1000/T", SCALED_TIMESTEPS),
    ):
        found = compare(results, variants["T = 100"], variants["T = 1000"])
        says, because = (
            f"{paper.CLAIMS['timesteps']} Betas {betas}.",
            f"From T = 100 to 1000 {changes(found)}.",
        )
        answer = judged(
            found, by_likelihood=False
        )  # which counts the noise of the first step, and so the schedule
        claims.append(Claim(f"5{letter}", says, answer, because, variants_table(results, variants)))
    return claims


def loss_claims(results: Results) -> list[Claim]:
    """Is Huber better than L2, and than L1?"""
    claims = []
    for letter, other in (("a", "L2"), ("b", "L1")):
        found = compare(results, LOSSES[other], LOSSES["Huber"])
        says, because = f"{paper.CLAIMS['loss']} Against {other}.", f"From {other} to Huber {changes(found)}."
        table = variants_table(results, {name: LOSSES[name] for name in ("Huber", other)})
        claims.append(Claim(f"6{letter}", says, judged(found), because, table))
    return claims


def surge_claims(results: Results, budget: Budget) -> list[Claim]:
    """Does the loss surge by itself, and does the guard save a run that is made to surge?"""
    plain = results.only("paper", size_and_batch(budget.surge))
    surged = surge_epoch(plain)
    because = f"No surge in {plain['epochs']} epochs; the paper's came after about {paper.SURGE_EPOCH}."
    if surged is not None:
        because = f"The loss of epoch {surged} is over {SURGE:g} times the median of the epochs before, or not finite."
    guarded = results.only("paper", f"{size_and_batch(budget.surge)}-guarded")
    if guarded["training_loss"] == plain["training_loss"]:
        because += (
            " With the guard its losses are the same to the bit: it has nothing to do in a healthy run."
        )
    else:
        end = "a loss that is no number" if guarded["last_loss"] is None else f"{guarded['last_loss']:.3g}"
        because += f" With the guard it went back {len(guarded['surges'])} times, and ended at {end}."
    own = Claim("7a", paper.CLAIMS["surge"], NOT_SHOWN if surged is None else YES, because)

    return [
        own,
        *(guard_claim(results, rate, letter) for rate, letter in zip(PROVOKED_RATES, "bc", strict=True)),
    ]


def guard_claim(results: Results, rate: float, letter: str) -> Claim:
    """Does the guard keep runs that are lost without it, when the learning rate jumps up?"""
    rows = {name: results.of("provoked", f"{name}-{rate}") for name in ("unguarded", "guarded")}
    lost = [is_lost(row) for row in rows["unguarded"]]
    kept = [not is_lost(row) for row in rows["guarded"]]
    answer = NOT_SHOWN
    if all(lost) and len(lost) > 1:
        answer = YES if all(kept) else NO if not any(kept) else NOT_SHOWN
    because = (
        f"{sum(lost)} of {len(lost)} runs without the guard are lost (the loss is not finite at the end, or over {SURGE:g} times its "
        f"least), and {sum(kept)} of {len(kept)} with it are kept."
    )
    table = [
        {
            "run": name,
            "seed": row["seed"],
            "least loss": row["least_loss"],
            "loss at the end": row["last_loss"],
            "returns to a checkpoint": len(row["surges"]),
            "end": row["ended"].split(";")[0],
        }
        for name, found in rows.items()
        for row in found
    ]
    says = f"{paper.CLAIMS['guard']} To {rate:g}."
    return Claim(f"7{letter}", says, answer, because, table)


def surge_epoch(row: dict) -> int | None:
    """The first epoch whose loss is far over all before it, or the last when the run ended on one that is not finite."""
    losses = row["training_loss"]
    for epoch in range(3, len(losses)):
        if not losses[epoch] <= SURGE * np.median(losses[:epoch]):
            return epoch
    return None if row["ended"] == FINISHED else len(losses)


def is_lost(row: dict) -> bool:
    """Whether a run ended on a loss that is not finite, or far over its least."""
    return row["ended"] != FINISHED or not row["last_loss"] <= SURGE * row["least_loss"]


def judged(found: dict[str, Estimate | None], by_likelihood: bool = True) -> str:
    """Whether a change is for the better: by KID, unless the likelihood surely says the opposite."""
    kid, bits = (found[key] for key in MEASURES)
    if kid is None or kid.low <= 0 <= kid.high:
        return NOT_SHOWN
    better = kid.high < 0
    if by_likelihood and bits and (bits.low > 0 if better else bits.high < 0):
        return NOT_SHOWN
    return YES if better else NO
