"""Answers to the paper's claims, on results that are made up so that the answer is known."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from benchmarks.reproduction import paper
from benchmarks.reproduction.budgets import BUDGETS
from benchmarks.reproduction.claims import (
    NO,
    NOT_SHOWN,
    YES,
    blocks_claims,
    guard_claim,
    late_epochs_claim,
    loss_claims,
    ratio_claim,
    surge_claims,
    threshold_claim,
    timesteps_claims,
)
from benchmarks.reproduction.curves import Curves, describe
from benchmarks.reproduction.results import Results
from benchmarks.reproduction.sweep import FINISHED
from mri_ddpm.evaluation.estimates import mean

BUDGET = dataclasses.replace(BUDGETS["hour"], ratio_seeds=2)
LONG = f"{BUDGET.long.resolution}-{BUDGET.long.batch_size}"
SURGE = f"{BUDGET.surge.resolution}-{BUDGET.surge.batch_size}"


def row(part: str, variant: str, seed: int = 0, **changes) -> dict:
    return {
        "part": part, "variant": variant, "seed": seed, "ended": FINISHED, "validation_loss": [0.4, 0.1], "surges": [],
        **changes,
    }  # fmt: skip


def kid(value: float) -> dict:
    return {"value": value, "interval": [value - 0.1, value + 0.1], "n": 100}


def test_a_mean_has_student_s_interval():
    values = [0.3, -0.2, 0.9, 0.4]
    found = mean(values)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.value, found.n) == (pytest.approx(np.mean(values)), 4)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean([1.0]).high == np.inf  # one value says nothing of its spread


def grid(loss_of) -> Results:
    """The sweep with a held-out loss of ``loss_of(size, batch, seed)`` in the last epoch, and half of it in KID."""
    rows = []
    for size in BUDGET.sizes:
        for batch in BUDGET.batch_sizes:
            for seed in range(BUDGET.ratio_seeds):
                losses = [0.4, loss_of(size, batch, seed)]
                common = {
                    "resolution": size,
                    "batch_size": batch,
                    "validation_loss": losses,
                    "kid": kid(losses[-1] / 2),
                }
                common["ended"] = FINISHED if losses[-1] < 1 else "the loss is nan"
                rows.append(row("ratio", f"{size}-{batch}", seed, learning_rate=1e-3, **common))
                if batch != BUDGET.best.batch_size:
                    rate = 1e-3 * (batch / 80) ** 0.5
                    rows.append(row("ratio", f"{size}-{batch}-scaled", seed, learning_rate=rate, **common))
    return Results(rows)


@pytest.mark.parametrize(
    ("loss_of", "answer"),
    [
        (lambda size, batch, seed: 0.1 * (1 + 0.01 * seed), NO),
        (lambda size, batch, seed: 0.1 if size / batch == 44 / 80 else 0.5 + 0.01 * seed, YES),
        (lambda size, batch, seed: 0.1 if size / batch < 44 / 80 else 0.5 + 0.01 * seed, NOT_SHOWN),
        (lambda size, batch, seed: 0.1 if seed else 0.5, NOT_SHOWN),
        (lambda size, batch, seed: 0.1 if size / batch == 44 / 80 else float("nan"), YES),
        (lambda size, batch, seed: float("nan"), NOT_SHOWN),
    ],
)
def test_the_ratio_matters_where_nothing_is_learned_off_it(loss_of, answer):
    claim = ratio_claim(grid(loss_of), BUDGET)
    assert claim.answer == answer


def test_what_a_doubled_batch_changes_is_a_slope_of_logarithms():
    claim = ratio_claim(grid(lambda size, batch, seed: 0.001 * size * (batch / 20) ** 0.5), BUDGET)
    assert "by +41.4 % [+41.4, +41.4]" in claim.because


def long_run(points: list[tuple]) -> Results:
    """One run: (epoch, held-out loss, KID, share of copies); no loss before the first epoch."""
    losses = [1.0] * max(point[0] for point in points)
    for epoch, loss, *_ in points:
        losses[epoch - 1] = loss if epoch else losses[epoch - 1]
    evaluations = [
        {
            "epoch": epoch, "kid": value, "kid_interval": [value - 0.1, value + 0.1],
            "flagged_share": share, "flagged_share_interval": [share - 0.01, share + 0.01],
        }
        for epoch, _, value, share in points
    ]  # fmt: skip
    return Results([row("paper", LONG, validation_loss=losses, evaluations=evaluations)])


@pytest.mark.parametrize(
    ("points", "answer"),
    [
        ([(0, 0, 15, 0), (1, 0.03, 5, 0), (2, 0.014, 1, 0)], YES),
        ([(0, 0, 15, 0), (1, 0.03, 1, 0), (2, 0.014, 0.5, 0)], NO),
        ([(0, 0, 15, 0), (1, 0.03, 5, 0), (2, 0.02, 4, 0)], NOT_SHOWN),
        ([(0, 0, 15, 0), (1, 0.03, 5, 0), (2, 0.014, 4, 0)], NOT_SHOWN),
    ],
)
def test_the_threshold_parts_only_what_lies_on_both_of_its_sides(points, answer):
    assert threshold_claim(long_run(points), BUDGET, kid_of_blurred=3.0).answer == answer


@pytest.mark.parametrize(
    ("last", "answer"),
    [
        ((700, 0.02, 2.1, 0.01), YES),
        ((700, 0.02, 4.5, 0.01), NO),
        ((700, 0.02, 2.1, 0.2), NO),  # copies
        ((700, 0.02, 3.3, 0.01), NOT_SHOWN),  # a change about as large as what counts as little
    ],
)
def test_little_changes_late_when_neither_kid_nor_copies_do(last, answer):
    points = [(0, 0, 15, 0), (120, 0.03, 3, 0.01), (585, 0.02, 2.0, 0.01), last]
    assert late_epochs_claim(long_run(points), BUDGET).answer == answer
    assert late_epochs_claim(long_run(points[:-1]), BUDGET).answer == NOT_SHOWN  # nothing later was seen


SEEDS = range(3)


def variants(part: str, by_variant: dict[str, float], key: str = "kid", noise: float = 0.01) -> list[dict]:
    return [
        row(part, variant, seed, **{key: kid(value + noise * ((seed + i) % 3))})
        for i, (variant, value) in enumerate(by_variant.items())
        for seed in SEEDS
    ]


def test_attention_and_blocks_are_told_apart():
    """Attention takes 0.5 off, ConvNeXt adds 1: main effects of a two by two design."""
    values = {"resnet": 2.0, "resnet-attention": 1.5, "convnext": 3.0, "convnext-attention": 2.5}
    attention, convnext = blocks_claims(Results(variants("blocks", values)))
    assert (attention.answer, convnext.answer) == (YES, NO)
    assert "KID changes by -0.5" in attention.because
    assert "bits per dimension, held out is missing" in attention.because
    same = dict.fromkeys(values, 2.0)
    assert [claim.answer for claim in blocks_claims(Results(variants("blocks", same)))] == [NOT_SHOWN] * 2


def test_likelihood_can_speak_against_kid():
    values = {"resnet": 2.0, "resnet-attention": 1.5, "convnext": 2.0, "convnext-attention": 1.5}
    rows = variants("blocks", values)
    for found, bits in zip(
        rows, variants("blocks", {k: -v for k, v in values.items()}, "bits_per_dimension"), strict=True
    ):
        found["bits_per_dimension"] = bits["bits_per_dimension"]
    assert blocks_claims(Results(rows))[0].answer == NOT_SHOWN


def test_timesteps_are_asked_about_with_betas_as_they_are_and_scaled():
    rows = variants("timesteps", {"100": 3.0, "100-scaled": 1.0, "300-scaled": 1.0, "1000": 1.0})
    rows += variants("blocks", {"resnet-attention": 2.0})
    plain, scaled = timesteps_claims(Results(rows))
    assert (plain.answer, scaled.answer) == (YES, NOT_SHOWN)
    assert [line["variant"] for line in plain.table] == ["T = 100", "T = 300", "T = 1000"]


def test_huber_is_held_against_each_other_loss():
    rows = variants("losses", {"l2": 2.0, "l1": 1.0}) + variants("blocks", {"resnet-attention": 1.5})
    assert [claim.answer for claim in loss_claims(Results(rows))] == [YES, NO]


def test_a_surge_is_a_surge_and_a_short_healthy_run_shows_nothing():
    healthy = {"training_loss": [0.4, 0.1, 0.05, 0.04, 0.04], "epochs": 5, "last_loss": 0.04}
    guarded = row("paper", f"{SURGE}-guarded", **healthy)
    provoked = provoked_rows([0.424, 0.424], [0.06, 0.07])
    for changes, answer in (
        ({}, NOT_SHOWN),
        ({"training_loss": [0.4, 0.1, 0.05, 0.04, 30.0]}, YES),
        ({"ended": "the loss is nan at step 300"}, YES),
    ):
        results = Results([row("paper", SURGE, **{**healthy, **changes}), guarded, *provoked])
        assert surge_claims(results, BUDGET)[0].answer == answer


def provoked_rows(unguarded: list[float], guarded: list[float], rate: float = 0.1) -> list[dict]:
    """Runs whose least loss was 0.04."""
    return [
        row("provoked", f"{name}-{each}", seed, least_loss=0.04, last_loss=loss, surges=[70] if name == "guarded" else [])
        for each in (rate, 0.3)
        for name, losses in (("unguarded", unguarded), ("guarded", guarded))
        for seed, loss in enumerate(losses)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("unguarded", "guarded", "answer"),
    [
        ([0.424, 0.424], [0.06, 0.07], YES),
        ([0.424, float("nan")], [0.42, 0.42], NO),
        ([0.424, 0.424], [0.06, 0.42], NOT_SHOWN),
        ([0.424, 0.05], [0.06, 0.07], NOT_SHOWN),  # what is not lost need not be saved
    ],
)
def test_the_guard_is_judged_by_what_is_lost_without_it(unguarded, guarded, answer):
    assert guard_claim(Results(provoked_rows(unguarded, guarded)), 0.1, "b").answer == answer


def test_curves_are_means_over_whole_epochs():
    rows = [
        {"step": step, "epoch": (step - 1) // 2, "loss": float(step), "images_per_second": 10.0} for step in range(1, 6)
    ]  # fmt: skip
    rows.insert(2, {"step": 2, "validation_loss": 0.2, "validation_loss_ema": 0.3})
    rows.insert(5, {"step": 4, "validation_loss": 0.1, "validation_loss_ema": 0.2})
    rows.append({"step": 4, "surge_at_step": 5, "learning_rate_factor": 0.5})
    curves = Curves.of(rows)
    np.testing.assert_allclose(curves.training, [1.5, 3.5])  # the fifth step's epoch is not over
    np.testing.assert_allclose(curves.validation, [0.2, 0.1])
    assert curves.seconds(20) == pytest.approx(10.0)
    assert len(curves.surges) == 1


def test_table_1_s_columns():
    losses = np.array([4.0, 1.0, 3.0, 2.0])
    assert describe(losses) == pytest.approx(
        {
            "count": 4,
            "mean": 2.5,
            "std": (5 / 3) ** 0.5,
            "min": 1,
            "25%": 1.75,
            "50%": 2.5,
            "75%": 3.25,
            "max": 4,
        }
    )
    assert [list(row) for row in paper.TABLE_1.values()] == [list(describe(losses))] * 2
