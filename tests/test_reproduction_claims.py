"""Answers to the paper's claims, on results that are made up so that the answer is known."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy.stats import ttest_1samp

from benchmarks.reproduction.budgets import HOUR
from benchmarks.reproduction.claims import (
    CLAIMS,
    NO,
    NOT_SHOWN,
    YES,
    guard,
    late_epochs,
    ratio,
    surge,
    threshold,
)
from benchmarks.reproduction.items import COLUMNS, TABLE_1, describe, our_recipe
from benchmarks.reproduction.measure import FINISHED, losses_of
from benchmarks.reproduction.runs import OURS, RECIPE
from benchmarks.reproduction.study import Item, Study
from mri_ddpm.config import TrainingConfig
from mri_ddpm.evaluation.estimates import mean
from mri_ddpm.files import read_json_lines

BUDGET = dataclasses.replace(HOUR, ratio_seeds=2)


def claims(study: Study, *numbers: str) -> list[Item]:
    """Those that compare variants, by their numbers."""
    rows = {claim.number: claim for claim in CLAIMS if hasattr(claim, "number")}
    return [rows[number](study) for number in numbers]


def test_the_committed_runs_give_the_committed_answers():
    """Word by word, of the budget ``hour``: the claims of the report that is in the repository."""
    folder = REPOSITORY / "docs" / "results" / "reproduction"
    report = (folder / "report.md").read_text(encoding="utf-8")
    (limit,) = re.findall(r"their KID is surely under ([0-9.]+),", report)
    study = Study(HOUR, read_json_lines(folder / "runs.jsonl"), kid_of_blurred=float(limit))
    for make in CLAIMS:
        item = make(study)
        assert (
            f"\n### {item.title}: {item.answer}\n\n- **Paper:** {item.paper}\n- **Ours:** {item.ours}\n"
            in report
        )


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


def grid(loss_of) -> Study:
    """The sweep with a validation loss of ``loss_of(size, batch, seed)`` in the last epoch, and half of it in KID."""
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
    return Study(BUDGET, rows)


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
    assert ratio(grid(loss_of)).answer == answer


def test_what_a_doubled_batch_changes_is_a_slope_of_logarithms():
    item = ratio(grid(lambda size, batch, seed: 0.001 * size * (batch / 20) ** 0.5))
    assert "by +41.4 % [+41.4, +41.4]" in item.ours


def long_run(points: list[tuple]) -> Study:
    """One run: (epoch, validation loss, KID, share of copies); no loss before the first epoch."""
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
    rows = [row("paper", BUDGET.long.name, validation_loss=losses, evaluations=evaluations, name="long")]
    return Study(BUDGET, rows, kid_of_blurred=3.0)


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
    assert threshold(long_run(points)).answer == answer


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
    assert late_epochs(long_run(points)).answer == answer
    assert late_epochs(long_run(points[:-1])).answer == NOT_SHOWN  # nothing later was seen


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
    attention, convnext = claims(Study(BUDGET, variants("blocks", values)), "4a", "4b")
    assert (attention.answer, convnext.answer) == (YES, NO)
    assert "KID changes by -0.5" in attention.ours
    assert "bits per dimension, validation is missing" in attention.ours
    same = dict.fromkeys(values, 2.0)
    items = claims(Study(BUDGET, variants("blocks", same)), "4a", "4b")
    assert [item.answer for item in items] == [NOT_SHOWN] * 2


def test_likelihood_can_speak_against_kid():
    values = {"resnet": 2.0, "resnet-attention": 1.5, "convnext": 2.0, "convnext-attention": 1.5}
    rows = variants("blocks", values)
    for found, bits in zip(
        rows, variants("blocks", {k: -v for k, v in values.items()}, "bits_per_dimension"), strict=True
    ):
        found["bits_per_dimension"] = bits["bits_per_dimension"]
    assert claims(Study(BUDGET, rows), "4a")[0].answer == NOT_SHOWN


def test_timesteps_are_asked_about_with_betas_as_they_are_and_scaled():
    rows = variants("timesteps", {"100": 3.0, "100-scaled": 1.0, "300-scaled": 1.0, "1000": 1.0})
    rows += variants("blocks", {"resnet-attention": 2.0})
    plain, scaled = claims(Study(BUDGET, rows), "5a", "5b")
    assert (plain.answer, scaled.answer) == (YES, NOT_SHOWN)
    assert [line["variant"] for line in plain.tables[0]] == ["T = 100", "T = 300", "T = 1000"]


def test_huber_is_held_against_each_other_loss():
    rows = variants("losses", {"l2": 2.0, "l1": 1.0}) + variants("blocks", {"resnet-attention": 1.5})
    assert [item.answer for item in claims(Study(BUDGET, rows), "6a", "6b")] == [YES, NO]


def test_a_surge_is_a_surge_and_a_short_healthy_run_shows_nothing():
    healthy = {
        "training_loss": [0.4, 0.1, 0.05, 0.04, 0.04],
        "epochs": 5,
        "last_loss": 0.04,
        "batch_size": 40,
    }
    guarded = row("paper", f"{BUDGET.surge.name}-guarded", **healthy)
    for changes, answer in (
        ({}, NOT_SHOWN),
        ({"training_loss": [0.4, 0.1, 0.05, 0.04, 30.0]}, YES),
        ({"ended": "the loss is nan at step 300"}, YES),
    ):
        plain = row("paper", BUDGET.surge.name, **{**healthy, **changes})
        assert surge(Study(BUDGET, [plain, guarded])).answer == answer


def provoked_rows(unguarded: list[float], guarded: list[float]) -> list[dict]:
    """Runs whose least loss was 0.04."""
    return [
        row("provoked", f"{name}-0.1", seed, least_loss=0.04, last_loss=loss, surges=[70] if name == "guarded" else [])
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
    assert guard(Study(BUDGET, provoked_rows(unguarded, guarded)), "b", 0.1).answer == answer


def test_our_recipe_is_told_as_it_is_trained():
    run = {
        "resolution": 44,
        "batch_size": 80,
        "training_loss": [],
        "validation_loss": [],
        "validation_loss_ema": [],
    }
    rows = [row(part, BUDGET.best.name, name=part, **run) for part in ("ours", "start", "paper")]
    item = our_recipe(Study(BUDGET, rows))
    paper = TrainingConfig(**RECIPE)
    changed = {name: value for name, value in OURS.items() if value != getattr(paper, name)}
    assert changed.keys() >= {"lr_scheduler", "lr_warmup_steps", "start_from_moments"}
    for name, value in OURS.items():
        told = name in changed and name not in ("preset", *BUDGET.network)
        assert (f"{name} {value}" in item.ours) == told


def test_curves_are_means_over_whole_epochs():
    rows = [
        {"step": step, "epoch": (step - 1) // 2, "loss": float(step), "images_per_second": 10.0} for step in range(1, 6)
    ]  # fmt: skip
    rows.insert(2, {"step": 2, "validation_loss": 0.2, "validation_loss_ema": 0.3})
    rows.insert(5, {"step": 4, "validation_loss": 0.1, "validation_loss_ema": 0.2})
    rows.append({"step": 4, "surge_at_step": 5, "learning_rate_factor": 0.5})
    found = losses_of(rows, batch_size=20)
    assert found["training_loss"] == [1.5, 3.5]  # the fifth step's epoch is not over
    assert found["validation_loss"] == [0.2, 0.1]
    assert (found["epochs"], found["images_seen"], found["training_seconds"]) == (2, 100, 10.0)
    assert found["least_loss"] == found["last_loss"] == pytest.approx(3.0)  # of five steps, which are all
    assert found["surges"] == [5]


def test_losses_that_are_no_numbers_are_left_out_of_the_json():
    rows = [
        {"epoch": step, "loss": loss, "images_per_second": 10.0} for step, loss in enumerate((2.0, math.nan))
    ]
    found = losses_of(rows, batch_size=20)
    assert (found["training_loss"], found["least_loss"], found["last_loss"]) == ([2.0], None, None)
    json.dumps(found, allow_nan=False)


def test_table_1_s_columns():
    losses = [4.0, 1.0, 3.0, 2.0]
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
    assert {len(row) for row in TABLE_1.values()} == {len(COLUMNS)}
