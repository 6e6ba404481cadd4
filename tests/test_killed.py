"""A run killed at fifty moments, whatever it was at, ends on the bits of the run that nobody touched."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from conftest import assert_same_to_the_bit, losses, state_of, tiny, train_alone
from killer import DRAWS
from safetensors.torch import load_file

from mri_ddpm import MRIDDPMPipeline


def test_killed_at_fifty_moments_and_resumed_equals_unbroken_to_the_bit(tmp_path):
    """``killer.py`` looks at what each kill leaves; here the end is held against the unbroken run's."""
    run_dir, killer = tmp_path / "killed", Path(__file__).with_name("killer.py")
    command = [sys.executable, killer, run_dir, "50", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout.splitlines()[-1])
    places, steps = killed["places"], killed["steps"]
    assert sum(places.values()) == 50
    assert places["checkpoint"] + places["rename"] + places.get("rotation", 0) >= 5, places
    assert len(places) >= 6, places

    config = tiny(
        tmp_path / "whole", max_train_steps=steps, checkpointing_steps=1000, validation_steps=1000, **DRAWS
    )
    whole = train_alone(config)
    assert_same_to_the_bit(state_of(whole, steps), state_of(run_dir, steps))
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert_same_to_the_bit(load_file(whole / weights), load_file(run_dir / weights))
    assert losses(whole) == losses(run_dir)
    assert not list(run_dir.glob("checkpoints/.*")), "leftovers"
    assert {path.name for path in (run_dir / "samples").iterdir()} >= {
        "epoch-00000-ema.png",
        "epoch-00002-ema.png",
    }


def test_killed_after_its_last_checkpoint_a_run_makes_up_for_what_it_did_not_show(unbroken, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir, ignore=shutil.ignore_patterns("samples*"))
    (run_dir / "pipeline").rename(
        run_dir / ".pipeline.old"
    )  # between the two renames that put a new one in place
    (run_dir / "checkpoints" / ".step-000010.old").mkdir()
    shutil.copytree(unbroken / "pipeline", run_dir / ".pipeline.unfinished")
    train_alone(tiny(run_dir, resume_from_checkpoint="latest", sample_epochs=[0]))
    assert MRIDDPMPipeline.from_pretrained(run_dir / "pipeline").class_names
    assert not list(run_dir.glob(".*")) + list(run_dir.glob("checkpoints/.*"))
    assert (run_dir / "samples.png").exists()

    config = tiny(
        tmp_path / "shown", max_train_steps=7, checkpointing_steps=7, sample_epochs=[1]
    )  # one epoch
    shown = train_alone(config) / "samples"
    before = {path.name: path.read_bytes() for path in shown.iterdir()}
    assert len(before) == 2
    shutil.rmtree(shown)
    train_alone(tiny(shown.parent, max_train_steps=7, sample_epochs=[1], resume_from_checkpoint="latest"))
    assert {path.name: path.read_bytes() for path in shown.iterdir()} == before


def test_who_goes_back_takes_the_later_steps_anew_and_keeps_the_old_ones(tmp_path):
    """Else the checkpoints of the way not taken would be ``latest``, and the new ones the first to be dropped."""
    config = {"checkpointing_steps": 5, "checkpoints_total_limit": 2}
    run_dir = train_alone(tiny(tmp_path / "run", **config))
    newest = run_dir / "checkpoints" / "step-000020" / "model.safetensors"
    before = newest.read_bytes()
    train_alone(tiny(run_dir, resume_from_checkpoint="step-000015", random_flip=True, **config))
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["step-000015", "step-000020", "step-000020.left"]
    assert (run_dir / "checkpoints" / "step-000020.left" / "model.safetensors").read_bytes() == before
    assert newest.read_bytes() != before
