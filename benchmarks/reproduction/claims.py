"""The paper's claims, each asked of the runs and answered yes, no, or not shown, with seeds and 95 % intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
from scipy.stats import spearmanr

from benchmarks.reproduction import figures
from benchmarks.reproduction.measure import FINISHED
from benchmarks.reproduction.runs import BASELINE, PROVOKED_RATES
from benchmarks.reproduction.study import MEASURES, Item, Study, Variant, changes, spelled
from mri_ddpm.evaluation.estimates import Estimate, mean

YES, NO, NOT_SHOWN = "yes", "no", "not shown"
SAME_RATIO = 0.01  # relative; 28/51 would be the paper's 44/80
THRESHOLD = 0.015  # of the loss
LITTLE = 0.1  # of what training has gained until then: a change beyond it is not little
SURGE = 5.0  # times the median of the epochs so far
SURGE_EPOCH = 2040  # the text says 2450 in one place, and 2040 in another

# What is compared, by its name in the report: part and variant
BLOCKS = {
    "ResNet, attention": ("blocks", BASELINE),
    "ResNet": ("blocks", "resnet"),
    "ConvNeXt, attention": ("blocks", "convnext-attention"),
    "ConvNeXt": ("blocks", "convnext"),
}
T_100, T_300, T_1000 = "T = 100", "T = 300", "T = 1000"
TIMESTEPS = {T_100: ("timesteps", "100"), T_300: ("blocks", BASELINE), T_1000: ("timesteps", "1000")}
SCALED = {T_100: ("timesteps", "100-scaled"), T_300: ("timesteps", "300-scaled"), T_1000: TIMESTEPS[T_1000]}
LOSSES = {"Huber": ("blocks", BASELINE), "L2": ("losses", "l2"), "L1": ("losses", "l1")}


def ratio(study: Study) -> Item:
    """Where image size / batch size is not that of the paper's best run, does training not improve?"""
    says = "Image size / batch size has to keep its ratio, or training does not improve (section 7.1)."
    runs, best = study.of("ratio"), study.budget.best
    gains: dict[str, list[float]] = {"over": [], "under": [], "at": []}
    for row in runs:
        relative = row["resolution"] / row["batch_size"] / (best.resolution / best.batch_size)
        where = "over" if relative > 1 + SAME_RATIO else "under" if relative < 1 - SAME_RATIO else "at"
        gains[where].append(learned(row))
    off = [*gains["over"], *gains["under"]]
    answer = NOT_SHOWN
    if all(gain < 0 for gain in off):
        answer = NO
    elif not any(gain < 0 for gain in off) and all(gain < 0 for gain in gains["at"]):
        answer = YES
    fell = [f"{sum(gain < 0 for gain in of)} of {len(of)} runs {where} it" for where, of in gains.items()]
    because = f"Against the ratio of the paper's best run, {best.resolution}/{best.batch_size}: the validation loss fell from the first "
    because += f"epoch to the last in {', '.join(fell)}"
    if finite := [gain for gain in off if np.isfinite(gain)]:
        factor = spelled(powers_of_two(mean(finite)))
        because += f"; over and under it on average to {factor} of itself (n = {len(finite)} runs)"
    rates = {"the paper's learning rate": False, "one that follows the root of the batch": True}
    for rate, scaled in rates.items():
        losses, kids = (batch_slopes(study, scaled, key) for key in ("loss", "kid"))
        if losses:
            because += (
                f". At equal images seen and {rate}, each doubling of the batch changes the last validation loss by {percent(mean(losses))} and "
                f"KID by {spelled(mean(kids))} (n = {len(losses)} sizes and seeds)"
            )
    caption = (
        "Means over seeds. Bold: the best of a size. Framed: size / batch over that of the paper's best run."
    )
    picture = {"ratio.png": (caption, partial(figures.ratio_tables, study))}
    return Item("Claim 1", says, f"{because}.", answer, runs, picture)


def learned(row: dict) -> float:
    """By how many powers of two the validation loss changed from a run's first epoch to its last; NaN of a run that broke."""
    losses = row["validation_loss"]
    return float(np.log2(losses[-1] / losses[0])) if row["ended"] == FINISHED else float("nan")


def batch_slopes(study: Study, scaled: bool, key: str) -> list[float]:
    """What a doubling of the batch changes, of every size and seed: the last validation loss by so many powers of two, or KID.

    At the batch of the paper's best run its learning rate and the scaled one are the same, and so is the run.
    """
    budget, slopes = study.budget, []
    for size, seed in product(budget.sizes, range(budget.ratio_seeds)):
        rows = [
            row
            for row in study.of("ratio")
            if (row["resolution"], row["seed"], row["ended"]) == (size, seed, FINISHED)
            and (row["variant"].endswith("-scaled") == scaled or row["batch_size"] == budget.best.batch_size)
        ]
        values = [np.log2(row["validation_loss"][-1]) if key == "loss" else row["kid"]["value"] for row in rows]  # fmt: skip
        if len(rows) > 1:
            slopes.append(float(np.polyfit(np.log2([row["batch_size"] for row in rows]), values, 1)[0]))
    return slopes


def powers_of_two(estimate: Estimate) -> Estimate:
    """From a logarithm to the factor."""
    return Estimate(*(float(2**x) for x in (estimate.value, estimate.low, estimate.high)), estimate.n)


def percent(estimate: Estimate) -> str:
    """A slope of logarithms as the change in percent, signed."""
    factor = powers_of_two(estimate)
    value, low, high = (f"{100 * (x - 1):+.1f}" for x in (factor.value, factor.low, factor.high))
    return f"{value} % [{low}, {high}]"


def threshold(study: Study) -> Item:
    """Does a loss of 0.015 separate meaningful from meaningless samples?"""
    says = "A loss of 0.015 parts meaningful from meaningless samples (section 7.1, which says that those under it are the "
    says += "meaningless ones; its sense says over)."
    row, limit = study.paper_run(study.budget.long), study.kid_of_blurred
    points = [  # there is no loss before the first epoch
        {**found, "loss": row["validation_loss"][found["epoch"] - 1]}
        for found in row["evaluations"]
        if found["epoch"] > 0
    ]
    above = [point["kid_interval"][1] < limit for point in points if point["loss"] > THRESHOLD]
    below = [point["kid_interval"][1] < limit for point in points if point["loss"] <= THRESHOLD]
    answer = NOT_SHOWN
    if any(above):
        answer = NO
    elif above and below and all(below):
        answer = YES
    rho = spearmanr([point["loss"] for point in points], [point["kid"] for point in points])
    because = (
        f"Samples count as meaningful when their KID is surely under {limit:.2f}, that of validation scans blurred until "
        f"only the outline of a head is left. Of {len(points)} moments of one run, {len(above)} have a validation loss over "
        f"{THRESHOLD}, and at {sum(above)} of them samples are meaningful; {len(below)} have one under it, {sum(below)} of "
        f"them with meaningful samples. Loss and KID: Spearman's rho {rho.statistic:.2f} (p = {rho.pvalue:.2g}, n = {len(points)}, "
        "one seed)."
    )
    table = [
        {
            "epoch": point["epoch"], "validation loss": point["loss"],
            "KID": Estimate(point["kid"], *point["kid_interval"], study.budget.images), "taken for copies": point["flagged_share"],
        }
        for point in points
    ]  # fmt: skip
    write = partial(figures.loss_against_kid, points, THRESHOLD, limit)
    picture = {"threshold.png": ("One run over its epochs, which stand beside the points.", write)}
    return Item("Claim 2", says, because, answer, [row], picture, [table])


def late_epochs(study: Study) -> Item:
    """Does little change after epoch 585?"""
    says = "After epoch 585 little changes but the loss (section 7.2)."
    row, late = study.paper_run(study.budget.long), study.budget.late_epoch
    caption = "KID and copies of averaged weights by epoch."
    picture = study.picture(row, "evaluation.png", "epochs.png", caption)
    found = {point["epoch"]: point for point in row["evaluations"]}
    last = max(found)
    if late not in found or last == late:
        return Item("Claim 3", says, f"The run ended at epoch {last}.", NOT_SHOWN, [row], picture)
    before, after = found[late], found[last]
    gained = found[min(found)]["kid"] - before["kid"]
    kid, copies = (difference(before, after, key) for key in ("kid", "flagged_share"))
    margin = LITTLE * gained
    answer = NOT_SHOWN
    if max(abs(kid.low), abs(kid.high)) < margin and copies.low <= 0 <= copies.high:
        answer = YES
    elif kid.low > margin or kid.high < -margin or copies.low > 0:
        answer = NO
    because = (
        f"From epoch {late} to {last} KID changes by {spelled(kid)}, where training gained "
        f"{gained:.2f} until then (little is under a tenth of that, {margin:.2f}), and the share taken for "
        f"copies by {spelled(copies)} (from {before['flagged_share']:.3f}; 0.05 is expected of unseen scans). One seed; the intervals "
        "are over the samples."
    )
    return Item("Claim 3", says, because, answer, [row], picture)


def difference(before: dict, after: dict, key: str) -> Estimate:
    """Of two measurements with intervals, taken as independent."""
    value = after[key] - before[key]
    (low, high), (low_before, high_before) = after[f"{key}_interval"], before[f"{key}_interval"]
    down = np.hypot(after[key] - low, high_before - before[key])
    up = np.hypot(high - after[key], before[key] - low_before)
    return Estimate(value, float(value - down), float(value + up), 1)


@dataclass(frozen=True)
class Comparison:
    """Is a change of the recipe for the better? What changes is a sum over variants, with the factors of ``effect``."""

    number: str
    says: str
    change: str
    effect: dict[str, float]
    variants: dict[str, Variant]
    picture: str = ""
    # Names of the variants in the table; without them there is none
    table: Sequence[str] = ()
    by_likelihood: bool = True

    def __call__(self, study: Study) -> Item:
        """The claim, answered."""
        found = study.effect({self.variants[name]: factor for name, factor in self.effect.items()})
        runs = [row for where in self.variants.values() for row in study.of(*where)]
        pictures = {}
        if self.picture and any(row["ended"] == FINISHED for row in runs if row["seed"] == 0):
            write = partial(figures.variant_samples, study, self.variants)
            pictures[self.picture] = ("Synthetic, the same noise in every column, seed 0.", write)
        tables = [study.table({name: self.variants[name] for name in self.table})] if self.table else []
        answer, because = judged(found, self.by_likelihood), f"{self.change} {changes(found)}."
        return Item(f"Claim {self.number}", self.says, because, answer, runs, pictures, tables)


def judged(found: dict[str, Estimate | None], by_likelihood: bool = True) -> str:
    """Whether a change is for the better: by KID, unless the likelihood surely says the opposite."""
    kid, bits = (found[key] for key in MEASURES)
    if kid is None or kid.low <= 0 <= kid.high:
        return NOT_SHOWN
    better = kid.high < 0
    if by_likelihood and bits and (bits.low > 0 if better else bits.high < 0):
        return NOT_SHOWN
    return YES if better else NO


def surge(study: Study) -> Item:
    """Does the loss surge by itself?"""
    says = "At 72×72 and batch 40 the loss surges after long health (section 7.1, figures 8 and 9)."
    setting = study.budget.surge
    plain, guarded = study.paper_run(setting), study.paper_run(setting, "-guarded")
    epoch = surge_epoch(plain)
    because = f"No surge in {plain['epochs']} epochs; the paper's came after about {SURGE_EPOCH}."
    if epoch is not None:
        because = f"The loss of epoch {epoch} is over {SURGE:g} times the median of the epochs before, or not finite."
    if guarded["training_loss"] == plain["training_loss"]:
        because += (
            " With the guard its losses are the same to the bit: it has nothing to do in a healthy run."
        )
    else:
        end = "a loss that is no number" if guarded["last_loss"] is None else f"{guarded['last_loss']:.3g}"
        because += f" With the guard it went back {len(guarded['surges'])} times, and ended at {end}."
    runs = [row for row in study.of("paper") if row["batch_size"] == setting.batch_size]
    return Item("Claim 7a", says, because, NOT_SHOWN if epoch is None else YES, runs)


def surge_epoch(row: dict) -> int | None:
    """The first epoch whose loss is far over all before it, or the last when the run ended on one that is not finite."""
    losses = row["training_loss"]
    for epoch in range(3, len(losses)):
        if not losses[epoch] <= SURGE * np.median(losses[:epoch]):
            return epoch
    return None if row["ended"] == FINISHED else len(losses)


def guard(study: Study, letter: str, rate: float, picture: str = "") -> Item:
    """Does the guard keep runs that are lost without it, when the learning rate jumps up?"""
    says = "(Ours, not the paper's.) The guard keeps a run that is lost without it, when the learning rate of a healthy run jumps up."
    rows = {name: study.of("provoked", f"{name}-{rate}") for name in ("unguarded", "guarded")}
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
            "run": name, "seed": row["seed"], "least loss": row["least_loss"], "loss at the end": row["last_loss"],
            "returns to a checkpoint": len(row["surges"]), "end": row["ended"].split(";")[0],
        }
        for name, found in rows.items()
        for row in found
    ]  # fmt: skip
    caption = "The rate jumps after half of the epochs. Steps that the guard went back over are not shown."
    pictures = {picture: (caption, partial(figures.provoked_losses, study))} if picture else {}
    runs = study.of("provoked")
    return Item(f"Claim 7{letter}", f"{says} To {rate:g}.", because, answer, runs, pictures, [table])


def is_lost(row: dict) -> bool:
    """Whether a run ended on a loss that is not finite, or far over its least."""
    return row["ended"] != FINISHED or not row["last_loss"] <= SURGE * row["least_loss"]


def have(marked: str) -> dict[str, float]:
    """To have what the marked blocks have: a main effect of the two by two design."""
    return {name: 0.5 if marked in name else -0.5 for name in BLOCKS}


ATTENTION = "Attention makes the U-Net better (section 5.2 adds it for the features that matter most). At equal compute."
CONVNEXT = "ConvNeXt blocks are better than ResNet blocks (section 5.2 names both and compares neither). At equal compute."
MORE_STEPS, TO_1000 = "More timesteps give clearer images (section 5.3). Betas", {T_1000: 1, T_100: -1}
HUBER = "Huber is the loss to take (sections 5.1 and 6). Against"
CLAIMS = (
    ratio,
    threshold,
    late_epochs,
    Comparison("4a", ATTENTION, "With attention", have("attention"), BLOCKS, "blocks.png", BLOCKS),
    Comparison("4b", CONVNEXT, "With ConvNeXt blocks", have("ConvNeXt"), BLOCKS),
    # Not by likelihood, which counts the noise of the first step, and so the schedule
    Comparison("5a", f"{MORE_STEPS} as they are.", "From T = 100 to 1000", TO_1000, TIMESTEPS, "timesteps.png", TIMESTEPS, False),
    Comparison("5b", f"{MORE_STEPS} scaled by 1000/T.", "From T = 100 to 1000", TO_1000, SCALED, "timesteps-scaled.png", SCALED, False),
    Comparison("6a", f"{HUBER} L2.", "From L2 to Huber", {"Huber": 1, "L2": -1}, LOSSES, "losses.png", ("Huber", "L2")),
    Comparison("6b", f"{HUBER} L1.", "From L1 to Huber", {"Huber": 1, "L1": -1}, LOSSES, table=("Huber", "L1")),
    surge,
    partial(guard, letter="b", rate=PROVOKED_RATES[0], picture="provoked.png"),
    partial(guard, letter="c", rate=PROVOKED_RATES[1]),
)  # fmt: skip
