"""The guard against loss surges: its arithmetic, what it leaves alone, and a real surge with and without it."""

import contextlib
import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import assert_same_to_the_bit, losses, state_of, tiny, train_alone

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json_lines
from mri_ddpm.training.guard import CLIP_AT, MANY_SKIPPED, SKIP_AT, SURGE_AT, WINDOW, Guard

# A healthy run of 150 steps, gone on with at a rate that is a thousand times too high for it.
HEALTHY = {
    "max_train_steps": 150,
    "checkpointing_steps": 50,
    "validation_steps": 150,
    "checkpoints_total_limit": 9,
    "lr_scheduler": "constant",
}
TOO_HIGH = {
    "learning_rate": 1.0,
    "max_train_steps": 250,
    "max_grad_norm": 0.0,
    "resume_from_checkpoint": "latest",
}


def guarded(**settings) -> tuple[torch.nn.Parameter, torch.optim.Adam, Guard]:
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=0.1, fused=True)
    return weight, optimizer, Guard(optimizer, [weight], **settings)


def update(weight, optimizer, guard, norm: float, max_norm: float = math.inf) -> dict[str, bool]:
    """One update by a gradient of this norm, clipped to ``max_norm`` as the loop does it."""
    weight.grad = torch.full((3,), norm / math.sqrt(3), dtype=torch.float64)
    found = torch.nn.utils.clip_grad_norm_([weight], max_norm)
    verdict = guard.judge(found, max_norm)
    optimizer.step()
    return {name: bool(value) for name, value in verdict.items()}


def test_a_gradient_is_clipped_at_ten_times_the_median_of_the_last_hundred():
    weight, optimizer, guard = guarded()
    norms = np.random.default_rng(0).uniform(1, 3, WINDOW)
    for norm in norms:
        assert not any(update(weight, optimizer, guard, norm).values())
    median = np.sort(norms)[WINDOW // 2 - 1]  # the lower of the two in the middle
    assert not update(weight, optimizer, guard, 0.999 * CLIP_AT * median)["clipped"]
    median = np.sort([*norms[1:], 0.999 * CLIP_AT * median])[WINDOW // 2 - 1]
    assert update(weight, optimizer, guard, 20 * median) == {"clipped": True, "skipped": False}
    assert weight.grad.norm().item() == pytest.approx(CLIP_AT * median, rel=1e-6)


def test_an_outlier_is_left_out_and_nothing_of_it_stays():
    weight, optimizer, guard = guarded()
    for _ in range(WINDOW):
        update(weight, optimizer, guard, 1.0)
    for norm in (2 * SKIP_AT, math.inf, math.nan):
        before = weight.detach().clone(), {k: v.clone() for k, v in optimizer.state[weight].items()}
        assert update(weight, optimizer, guard, norm) == {"clipped": False, "skipped": True}
        assert_same_to_the_bit((weight.detach(), dict(optimizer.state[weight])), before)
    assert guard.norms.isfinite().all()
    assert guard.norms.max() <= CLIP_AT


@pytest.mark.parametrize(("learning_rate", "factor"), [(0.1, 1 / 16), (1e-3, 1.0)])
def test_what_surges_have_cost_is_of_the_rate_that_surged(learning_rate, factor):
    """A checkpoint of five surges, gone on with at its own rate and at the lower one that the surge's error advises."""
    _, _, guard = guarded()
    guard.rate_factor = 1 / 16
    weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    resumed = Guard(torch.optim.Adam([weight], lr=learning_rate, fused=True), [weight])
    resumed.load_state_dict(guard.state_dict())
    assert resumed.rate_factor == factor


def test_norms_are_compared_before_the_users_own_clipping():
    """--max_grad_norm 1 makes gradients of 2 and of 15 alike; only the second is an outlier, and both are clipped to 1."""
    weight, optimizer, guard = guarded()
    for _ in range(WINDOW):
        update(weight, optimizer, guard, 2.0, max_norm=1.0)
    assert not any(update(weight, optimizer, guard, 15.0, max_norm=1.0).values())
    assert weight.grad.norm().item() == pytest.approx(1, rel=1e-5)
    assert update(weight, optimizer, guard, 300.0, max_norm=1.0)["skipped"]


def test_a_lasting_rise_becomes_usual():
    """A change of the task (another rate, a resumed run with other settings) must not stop the updates for good."""
    weight, optimizer, guard = guarded()
    for _ in range(WINDOW):
        update(weight, optimizer, guard, 1.0)
    verdicts = [update(weight, optimizer, guard, 50.0) for _ in range(2 * WINDOW)]
    assert verdicts[0]["clipped"]
    assert not verdicts[-1]["clipped"]


def test_words_for_trouble():
    _, _, guard = guarded()
    assert guard.trouble([0.03] * 200, [False] * 200) is None
    assert guard.trouble([0.2], [False]) is None  # one bad batch is no surge
    assert "0.03 to" in guard.trouble([0.4] * 5, [False] * 5)
    _, _, guard = guarded()
    assert guard.trouble([0.03] * 50, [False] * 45 + [True] * MANY_SKIPPED).startswith(
        "5 of the last 50 gradients"
    )
    assert guard.trouble([0.03, math.nan], [False] * 2) == "the loss is nan"
    _, _, off = guarded(active=False)
    assert off.trouble([0.03] * 200 + [50.0] * 20, [False] * 220) is None
    assert off.trouble([math.inf], [False]) == "the loss is inf"


def test_a_young_run_is_held_against_what_it_has_reached():
    """One that falls from 0.4 to 0.04 and dies at 0.4 again, at the loss of a network that predicts nothing."""
    _, _, guard = guarded()
    falling = (0.4 * 0.1 ** np.linspace(0, 1, 120)).tolist()
    assert guard.trouble(falling, [False] * 120) is None
    words = guard.trouble([0.42] * 10, [False] * 10)
    assert words == f"the loss rose from {np.median(falling[-50:]):.4g} to 0.42"


@pytest.mark.slow
def test_a_healthy_run_is_the_same_without_the_guard_to_the_bit(tmp_path):
    """130 steps, so that the guard compares for 30 of them."""
    settings = {"max_train_steps": 130, "checkpointing_steps": 130, "validation_steps": 130}
    guarded = train_alone(tiny(tmp_path / "guarded", **settings))
    alone = train_alone(tiny(tmp_path / "alone", surge_guard=False, **settings))
    states = state_of(guarded, 130), state_of(alone, 130)
    for state in states:
        del state["custom_checkpoint_2.pkl"]  # what the guard remembers
    assert_same_to_the_bit(*states)
    assert losses(guarded) == losses(alone)
    assert not any("clipped" in row or "skipped" in row for row in read_json_lines(guarded / "metrics.jsonl"))


@pytest.mark.slow
def test_a_surge_without_the_guard_and_with_it(tmp_path):
    alone = tiny(tmp_path / "alone", surge_guard=False, **HEALTHY)
    usual = np.median(losses(train_alone(alone)))
    shutil.copytree(tmp_path / "alone", tmp_path / "guarded")
    with contextlib.suppress(InputError):  # it may end in NaN
        train_alone(dataclasses.replace(alone, **TOO_HIGH))
    rows = read_json_lines(tmp_path / "alone" / "metrics.jsonl")
    assert np.mean([row["loss"] for row in rows if row["step"] in range(151, 161)]) > SURGE_AT * usual

    config = tiny(tmp_path / "guarded", **{**HEALTHY, **TOO_HIGH})
    guarded = train_alone(config)
    assert len(losses(guarded)) == 250
    assert np.mean(losses(guarded)[-20:]) < SURGE_AT * usual
    rows = read_json_lines(guarded / "metrics.jsonl")
    returns = [row for row in rows if "surge_at_step" in row]
    assert returns[0]["step"] == 150
    assert [row["learning_rate_factor"] for row in returns] == [2.0**-i for i in range(1, len(returns) + 1)]
    MRIDDPMPipeline.from_pretrained(guarded / "pipeline")

    # As if killed after its first return, before the next checkpoint: the surge is met again, and all that follows
    whole = state_of(guarded, 250)
    train_alone(dataclasses.replace(config, resume_from_checkpoint="step-000150"))
    assert_same_to_the_bit(state_of(guarded, 250), whole)
    assert losses(guarded) == [row["loss"] for row in rows if "loss" in row]


def test_weights_that_are_not_finite_are_not_kept(tmp_path, monkeypatch):
    """A fault that shows in neither loss nor gradient: the averaged weights overflow."""
    from mri_ddpm.training import loop

    real, config = loop.take_step, tiny(tmp_path / "run", max_train_steps=20)

    def spoil(state, batches):
        row = real(state, batches)
        if state.progress.step == 14:
            state.ema.shadow_params[0].fill_(math.inf)
        return row

    monkeypatch.setattr(loop, "take_step", spoil)
    with pytest.raises(InputError, match="the weights are no longer finite at step 20"):
        # The same happens at half of the rate, and at half of that, until there is no use
        train_alone(config)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000010"]
    unet = MRIDDPMPipeline.from_pretrained(tmp_path / "run" / "pipeline").unet
    assert all(parameter.isfinite().all() for parameter in unet.parameters())


def test_one_that_begins_with_a_models_weights_needs_no_hundred_steps():
    """The second gradient is held against the first, and the losses from the eleventh on against the first ten."""
    weight, optimizer, guard = guarded(begun=True)
    assert update(weight, optimizer, guard, 1.0) == {"clipped": False, "skipped": False}
    assert update(weight, optimizer, guard, 20.0) == {"clipped": True, "skipped": False}
    assert weight.grad.norm().item() == pytest.approx(CLIP_AT)
    assert update(weight, optimizer, guard, 1000.0)["skipped"]
    assert guard.trouble([0.03] * 10, [False] * 10) is None
    assert guard.trouble([0.3] * 10, [False] * 10) == "the loss rose from 0.03 to 0.3"
    _, _, young = guarded()
    assert young.trouble([0.03] * 10, [False] * 10) is None
    assert young.trouble([0.3] * 10, [False] * 10) is None
