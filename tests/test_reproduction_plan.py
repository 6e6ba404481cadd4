"""The sweep of the paper's reproduction: what it consists of, how it is shared out, and what the network is drawn from."""

import dataclasses
import json
import shlex
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks.reproduction.architecture import read_architecture, words_of
from benchmarks.reproduction.budgets import BUDGETS
from benchmarks.reproduction.runs import BASELINE, Run, make_plan
from benchmarks.reproduction.sweep import leave_the_group, result_file, run_all, taken, train_one
from mri_ddpm.config import TrainingConfig
from mri_ddpm.diffusion import make_noise_scheduler, terminal_signal
from mri_ddpm.files import write_json
from mri_ddpm.flags import parse_config
from mri_ddpm.models.modeling_attention_unet import AttentionBlock
from mri_ddpm.presets import PRESETS
from mri_ddpm.training.state import build_unet

NAMES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
NUM_SCANS = 2438


BY_BUDGET = [pytest.param(name, marks=[pytest.mark.slow] * (name == "full")) for name in BUDGETS]


@pytest.fixture(scope="module", params=BY_BUDGET)
def plan(request, tmp_path_factory) -> tuple:
    budget = BUDGETS[request.param]
    return budget, make_plan(
        budget, tmp_path_factory.mktemp("plan") / "my runs", "my scans", NAMES, NUM_SCANS
    )


def of(runs: list[Run], part: str, variant: str | None = None) -> list[Run]:
    return [run for run in runs if run.part == part and variant in (None, run.variant)]


def test_every_command_trains_what_the_sweep_trains(plan):
    """Parsed by the front door's own parser; only the sweep itself looks for checkpoints to go on from."""
    for run in plan[1]:
        for i, (command, config) in enumerate(zip(run.command.split(" && "), run.phases, strict=True)):
            front, flags = shlex.split(command)[:3], shlex.split(command)[3:]
            assert front == ["accelerate", "launch", "train_ddpm.py"]
            expected = config if i else dataclasses.replace(config, resume_from_checkpoint=None)
            assert parse_config(flags) == expected


def test_the_grid_is_whole_and_the_scaled_rate_goes_with_the_root_of_the_batch(plan):
    budget, runs = plan
    assert len({run.name for run in runs}) == len(runs)
    grid = of(runs, "ratio")
    plain = [run for run in grid if not run.variant.endswith("-scaled")]
    cells = Counter((run.config.resolution, run.config.train_batch_size) for run in plain)
    assert cells == {
        (size, batch): budget.ratio_seeds for size in budget.sizes for batch in budget.batch_sizes
    }
    assert {run.config.learning_rate for run in plain} == {1e-3}
    scaled = [run for run in grid if run.variant.endswith("-scaled")]
    assert len(scaled) == len(plain) * (len(budget.batch_sizes) - 1) / len(budget.batch_sizes)
    for run in scaled:
        ratio = run.config.train_batch_size / budget.best.batch_size
        assert run.config.learning_rate**2 == pytest.approx(1e-6 * ratio)
    assert {run.config.num_train_epochs for run in grid} == {budget.ratio_epochs}  # equal images seen


def test_the_issue_asks_for_these_sizes_and_batches():
    for name in ("hour", "full"):
        assert BUDGETS[name].sizes == (28, 44, 56, 72)
        assert BUDGETS[name].batch_sizes == (20, 40, 80, 160)
        assert BUDGETS[name].sample_epochs == (0, 120, 585)


def test_the_paper_s_own_settings_have_nothing_of_ours(plan):
    """But for the network of a smaller budget, its two settings are the presets."""
    budget, runs = plan
    for setting in (budget.best, budget.surge, budget.long):
        (run,) = of(runs, "paper", f"{setting.resolution}-{setting.batch_size}")
        expected = {**PRESETS["mridiff-44"], **budget.network}
        for name in ("resolution", "train_batch_size", "num_train_epochs", "output_dir"):
            expected.pop(name)
        assert {name: getattr(run.config, name) for name in expected} == expected
        assert not run.config.surge_guard
    if budget.name == "full":
        assert (budget.best.resolution, budget.best.batch_size, budget.best.epochs) == (44, 80, 8000)
        assert (budget.surge.resolution, budget.surge.batch_size, budget.surge.epochs) == (72, 40, 2600)


def test_blocks_are_compared_at_equal_compute(plan):
    budget, runs = plan
    blocks = [run for run in of(runs, "blocks") if run.config.seed == 0]
    (baseline,) = (run for run in blocks if run.variant == BASELINE)
    assert len(blocks) == 4
    assert all(run.config.attention_types[0] == "linear" for run in blocks if "attention" in run.variant)
    assert all(
        set(run.config.attention_types) == {"none"} for run in blocks if "attention" not in run.variant
    )
    for run in blocks:  # whole epochs: half a one of rounding
        assert run.cost == pytest.approx(baseline.cost, abs=0.51 * run.cost / run.config.num_train_epochs)


def test_timesteps_leave_the_same_signal_where_betas_are_scaled(plan):
    signals = {
        run.variant: terminal_signal(
            make_noise_scheduler(run.config.num_train_timesteps, run.config.beta_start, run.config.beta_end)
        )
        for run in of(plan[1], "timesteps")
    }
    assert set(signals) == {"100", "100-scaled", "300-scaled", "1000"}
    assert signals["100"] == pytest.approx(0.605, abs=0.01)  # exp(-sum(betas) / 2)
    assert max(signals[name] for name in ("100-scaled", "300-scaled", "1000")) < 0.01


def test_a_run_that_another_process_has_is_left_to_it(tmp_path):
    """And one that is over is not trained again; so nothing is left to do here."""
    runs = make_plan(BUDGETS["tiny"], tmp_path / "runs", "my scans", NAMES, NUM_SCANS)[:3]
    begun, also_begun, over = runs
    over.folder.mkdir(parents=True)
    write_json(result_file(over), {"name": over.name})
    with taken(begun) as mine, taken(also_begun) as mine_too:
        assert mine
        assert mine_too
        with taken(begun) as again:
            assert not again
        assert run_all(runs, tmp_path / "runs.jsonl", first=False) == [{"name": over.name}]
    with taken(begun) as mine:
        assert mine
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [over.name]  # no lock is left


@pytest.mark.slow
def test_a_run_whose_loss_is_no_number_leaves_json_for_every_reader(tmp_path):
    budget = dataclasses.replace(BUDGETS["tiny"], phantom_images=80)
    run = of(make_plan(budget, tmp_path / "runs", None, NAMES, 72), "provoked", "unguarded-0.3")[0]
    broken = dataclasses.replace(run.config, learning_rate=1e20)
    run = dataclasses.replace(run, phases=(run.phases[0], broken))
    run.folder.parent.mkdir()
    row = train_one(run, quiet=True)
    assert "the loss is" in row["ended"]
    assert row["last_loss"] is None
    json.dumps(row, allow_nan=False)


def test_a_process_leaves_the_group_it_was_started_in(monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert leave_the_group() == 3
    assert leave_the_group() == 0


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
@pytest.mark.parametrize("resolution", [16, 23])
def test_the_drawn_network_is_the_one_that_runs(block_type, resolution):
    """Shapes, parameters and multiplications against those of a forward pass of the real module on a CPU."""
    config = TrainingConfig(preset="tiny", resolution=resolution, block_type=block_type)
    unet = build_unet(config, NAMES).eval()
    macs, shapes = [], {}

    def count(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        shapes[module] = tuple(output.shape[1:])
        if isinstance(module, nn.Conv2d):
            kernel = module.kernel_size[0] * module.kernel_size[1] * module.in_channels // module.groups
            macs.append(output.numel() * kernel)
        elif isinstance(module, nn.Linear):
            macs.append(output.numel() * module.in_features)
        elif isinstance(module, AttentionBlock):  # its two products, besides its linear layers
            channels, n = inputs[0].shape[1], inputs[0][0, 0].numel()
            macs.append(2 * n * channels * (n if module.kind == "full" else module.head_dim))

    for module in unet.modules():
        if module is not unet:
            module.register_forward_hook(count)
    with torch.no_grad():
        unet(torch.zeros(1, 1, resolution, resolution), 0)
    found = read_architecture(config, NAMES)
    assert round(found.gmac * 1e9) == sum(macs)
    assert found.parameters == sum(p.numel() for p in unet.parameters())
    assert [stage.shape for stage in found.down] == [shapes[level["attention"]] for level in unet.down]
    assert [stage.shape for stage in found.up] == [shapes[level["attention"]] for level in unet.up]
    assert found.middle.shape == shapes[unet.mid_block2]
    assert found.conv_out.shape == (1, resolution, resolution)


def test_layers_are_named_in_their_order():
    config = TrainingConfig(preset="tiny", layers_per_block=2, attention_types=["none", "linear"])
    found = read_architecture(config, NAMES)
    assert [stage.layers for stage in found.down] == ["2 ResNet", "2 ResNet, linear attention"]
    assert found.middle.layers == "ResNet, full attention, ResNet"
    assert found.conv_out.layers == "ResNet, 3×3 convolution"
    assert words_of([nn.Identity()]) == ""
