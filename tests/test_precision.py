"""``--mixed_precision``: who decides it, what it leaves as it is, and resuming with another one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import assert_same_to_the_bit, losses, state_of, tiny, train_alone

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json
from mri_ddpm.flags import parse_config
from mri_ddpm.runs import RunFolder
from mri_ddpm.training import preparation, train
from mri_ddpm.training.checkpoints import load_checkpoint
from mri_ddpm.training.device import settle_precision
from mri_ddpm.training.state import prepare
from mri_ddpm.training.validation import draw_grid

LAUNCHED = "ACCELERATE_MIXED_PRECISION"  # what accelerate launch says to its processes
CPUINFO = Path("/proc/cpuinfo")


@pytest.fixture(autouse=True)
def on_the_cpu_and_not_launched(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv(LAUNCHED, raising=False)


@pytest.fixture(scope="module")
def in_bf16(tmp_path_factory) -> Path:
    """``tiny``, 20 steps, in bf16, which every CPU can, if not fast."""
    return train_alone(tiny(tmp_path_factory.mktemp("bf16") / "run", mixed_precision="bf16"))


@pytest.mark.skipif(not CPUINFO.exists(), reason="no /proc/cpuinfo")
def test_auto_is_bf16_where_the_processor_has_amx(tmp_path):
    has_amx = " amx_tile" in CPUINFO.read_text()
    config = settle_precision(tiny(tmp_path, mixed_precision="auto"))
    assert config.mixed_precision == ("bf16" if has_amx else "no")


@pytest.mark.parametrize(
    ("flag", "launched", "taken"),
    [("auto", "bf16", "bf16"), ("no", "bf16", "no"), ("bf16", "no", "bf16"), ("bf16", None, "bf16")],
)
def test_a_flag_beats_the_launcher_and_the_launcher_the_processor(
    tmp_path, monkeypatch, flag, launched, taken
):
    if launched:
        monkeypatch.setenv(LAUNCHED, launched)
    assert settle_precision(tiny(tmp_path, mixed_precision=flag)).mixed_precision == taken


def test_no_in_a_launchers_configuration_leaves_it_to_the_processor(tmp_path, monkeypatch):
    """It is what accelerate writes for who was asked nothing."""
    auto = tiny(tmp_path, mixed_precision="auto")
    alone = settle_precision(auto)
    monkeypatch.setenv(LAUNCHED, "no")
    assert settle_precision(auto) == alone


def test_yaml_reads_no_as_false(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("mixed_precision: no\n")
    assert parse_config(["--config", str(file)]).mixed_precision == "no"


@pytest.mark.parametrize(("flag", "launched"), [("fp16", "no"), ("auto", "fp16")])
def test_fp16_on_a_cpu_is_refused(tmp_path, monkeypatch, flag, launched):
    monkeypatch.setenv(LAUNCHED, launched)
    with pytest.raises(InputError, match="mixed_precision fp16.*no or bf16"):
        train_alone(tiny(tmp_path / "run", mixed_precision=flag))
    assert not (tmp_path / "run").exists()


def test_a_run_in_bf16_differs_by_its_rounding_and_says_so(in_bf16, unbroken):
    """bf16 has 8 bits of fraction: losses differ by hundredths at most, and the weights stay in float32."""
    assert losses(in_bf16) != losses(unbroken)
    np.testing.assert_allclose(losses(in_bf16), losses(unbroken), rtol=0.05)
    assert {tensor.dtype for tensor in state_of(in_bf16)["weights"].values()} == {torch.float32}
    assert read_json(in_bf16 / "environment.json")["mixed_precision"] == "bf16"
    assert read_json(in_bf16 / "config.json")["mixed_precision"] == "bf16"
    assert read_json(unbroken / "environment.json")["mixed_precision"] == "no"


def test_samples_of_a_run_in_bf16_are_drawn_in_float32(in_bf16, tmp_path):
    """They are what the pipeline draws, which knows nothing of the training's precision."""
    pipeline = MRIDDPMPipeline.from_pretrained(in_bf16 / "pipeline")
    draw_grid(pipeline.unet, pipeline.scheduler, tiny(tmp_path), tmp_path / "samples.png")
    assert (tmp_path / "samples.png").read_bytes() == (in_bf16 / "samples.png").read_bytes()


def test_auto_goes_on_in_the_precision_of_the_run(in_bf16, tmp_path, capsys):
    """On whatever machine, so that a resumed run ends with the bits of the unbroken one."""
    broken = tmp_path / "run"
    train_alone(tiny(broken, mixed_precision="bf16", max_train_steps=3, lr_scheduler="constant"))
    longer = {"max_train_steps": 6, "lr_scheduler": "constant"}
    capsys.readouterr()
    train_alone(tiny(broken, mixed_precision="auto", resume_from_checkpoint="latest", **longer))
    assert "mixed precision: bf16" in capsys.readouterr().out
    whole = train_alone(tiny(tmp_path / "whole", mixed_precision="bf16", **longer))
    assert_same_to_the_bit(state_of(whole, 6), state_of(broken, 6))


def test_a_run_of_an_earlier_version_goes_on_in_float32(tmp_path):
    """Its config.json knows no precision, its environment.json does."""
    run_dir = train_alone(tiny(tmp_path / "run", max_train_steps=2))
    saved = read_json(run_dir / "config.json")
    del saved["mixed_precision"]
    (run_dir / "config.json").write_text(json.dumps(saved))
    resumed = tiny(run_dir, mixed_precision="auto", resume_from_checkpoint="latest")
    assert settle_precision(resumed).mixed_precision == "no"


def test_resumed_by_hand_in_another_precision(tmp_path):
    """Weights and moments are in float32 whatever it is, so every checkpoint fits; in one process, as in a notebook."""
    for first, then in (("bf16", "no"), ("no", "bf16")):
        run_dir = train_alone(tiny(tmp_path / first, mixed_precision=first, max_train_steps=2))
        train(tiny(run_dir, mixed_precision=then, max_train_steps=4, resume_from_checkpoint="latest"))
        assert read_json(run_dir / "environment.json")["mixed_precision"] == then
        assert len(losses(run_dir)) == 4


def test_fp16_begins_its_loss_scale_anew_in_a_checkpoint_of_another_precision(unbroken, tmp_path):
    """Such a checkpoint has none; fp16 looks for it in its first steps."""
    config = tiny(tmp_path)
    accelerator = Accelerator(cpu=True)
    scans = preparation.load_training_scans(accelerator, config)
    run = prepare(accelerator, config, scans, RunFolder(tmp_path))
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    load_checkpoint(run, unbroken / "checkpoints" / "step-000020")
    assert run.progress.step == 20
    assert run.accelerator.scaler.get_scale() == 1024.0
