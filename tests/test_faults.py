"""What a run does when, in the middle of it, it is killed, the disk is full, a folder is read-only or gone.

But for kills, a fault is made at step 13 of 20, between two checkpoints, and mended before the run goes on.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import assert_same_to_the_bit, losses, start, state_of, tiny, train_alone
from killer import DRAWS
from PIL import Image
from safetensors.torch import load_file

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.data import draw_phantoms
from mri_ddpm.errors import InputError
from mri_ddpm.files import write_json
from mri_ddpm.runs import RunFolder
from mri_ddpm.training.restarts import launcher

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TWO = {"ACCELERATE_USE_CPU": "true"}  # processes, of 4 scans each


# Killed


@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_equals_unbroken_to_the_bit(tmp_path, kills):
    """``killer.py`` looks at what each kill leaves; here the end is held against the unbroken run's."""
    run_dir, killer = tmp_path / "killed", Path(__file__).with_name("killer.py")
    command = [sys.executable, killer, run_dir, str(kills), "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    killed = json.loads(done.stdout.splitlines()[-1])
    places, steps = killed["places"], killed["steps"]
    assert sum(places.values()) == kills
    assert sum(places.get(name, 0) for name in ("checkpoint", "rename", "rotation")) >= kills // 10, places
    assert len(places) >= kills // 5, places

    config = tiny(
        tmp_path / "whole", max_train_steps=steps, checkpointing_steps=1000, validation_steps=1000, **DRAWS
    )
    whole = train_alone(config)
    assert_same_to_the_bit(state_of(whole, steps), state_of(run_dir, steps))
    weights = "pipeline/unet/diffusion_pytorch_model.safetensors"
    assert_same_to_the_bit(load_file(whole / weights), load_file(run_dir / weights))
    assert losses(whole) == losses(run_dir)
    assert not list(run_dir.glob("checkpoints/.*")), "leftovers"
    shown = {path.name for path in (run_dir / "samples").iterdir()}
    assert shown >= {"epoch-00000-ema.png", "epoch-00002-ema.png"}


def test_killed_after_its_last_checkpoint_a_run_makes_up_for_what_it_did_not_show(unbroken, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir, ignore=shutil.ignore_patterns("samples*"))
    # Between the two renames that put a new one in place
    (run_dir / "pipeline").rename(run_dir / ".pipeline.old")
    (run_dir / "checkpoints" / ".step-000010.old").mkdir()
    shutil.copytree(unbroken / "pipeline", run_dir / ".pipeline.unfinished")
    train_alone(tiny(run_dir, resume_from_checkpoint="latest", sample_epochs=[0]))
    assert MRIDDPMPipeline.from_pretrained(run_dir / "pipeline").class_names
    assert not list(run_dir.glob(".*")) + list(run_dir.glob("checkpoints/.*"))
    assert (run_dir / "samples.png").exists()

    # One epoch
    config = tiny(tmp_path / "shown", max_train_steps=7, checkpointing_steps=7, sample_epochs=[1])
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
    train_alone(tiny(run_dir, resume_from_checkpoint="step-000015", learning_rate=1e-4, **config))
    names = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    assert names == ["step-000015", "step-000020", "step-000020.left"]
    assert (run_dir / "checkpoints" / "step-000020.left" / "model.safetensors").read_bytes() == before
    second = newest.read_bytes()
    assert second != before

    train_alone(tiny(run_dir, resume_from_checkpoint="step-000015", learning_rate=1e-5, **config))
    for name, weights in (("step-000020.left", before), ("step-000020.left-2", second)):
        assert (run_dir / "checkpoints" / name / "model.safetensors").read_bytes() == weights


# Disks and folders


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 16 MB; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "none", disk], capture_output=True
    ).returncode:
        pytest.skip("may not mount")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)


def check_fault(unbroken: Path, run_dir: Path, at_step, fault, mend, words: str) -> None:
    """The fault ends the run with one sentence and leaves nothing half; once it is mended, the run ends on its bits."""
    forget = at_step(13, fault)
    with pytest.raises(InputError) as refusal:
        train_alone(tiny(run_dir))
    mend()
    forget()
    for part in (str(run_dir), words, "step-000010", "--resume_from_checkpoint latest"):
        assert part in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step-000010"]
    train_alone(tiny(run_dir, resume_from_checkpoint="latest"))
    assert_same_to_the_bit(state_of(unbroken), state_of(run_dir))
    assert losses(unbroken) == losses(run_dir)


# Of metrics.jsonl, of weights, of Adam's state
@pytest.mark.parametrize(
    "largest", [2_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (100_000, 300_000))]
)
def test_a_file_too_large(unbroken, tmp_path, at_step, largest):
    """The system's own limit, which any user may set, fails each writer the way a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))

    check_fault(
        unbroken,
        tmp_path / "run",
        at_step,
        lambda: limit(largest),
        lambda: limit(limits[0]),
        "File too large",
    )


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 300_000])
def test_a_full_disk(unbroken, small_disk, at_step, room):
    filler = small_disk / "filler"

    def fill():
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(bytes(free - room))

    check_fault(unbroken, small_disk / "run", at_step, fill, filler.unlink, "No space left on device")


@pytest.mark.slow
def test_a_disk_that_becomes_read_only(unbroken, small_disk, at_step):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", small_disk], check=True)

    check_fault(
        unbroken,
        small_disk / "run",
        at_step,
        lambda: remount("ro"),
        lambda: remount("rw"),
        "Read-only file system",
    )


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_becomes_read_only(unbroken, tmp_path, at_step):
    folder = tmp_path / "run" / "checkpoints"
    check_fault(
        unbroken,
        tmp_path / "run",
        at_step,
        lambda: folder.chmod(0o500),
        lambda: folder.chmod(0o700),
        "denied",
    )


def test_a_file_where_the_checkpoints_were(unbroken, tmp_path, at_step):
    folder, aside = tmp_path / "run" / "checkpoints", tmp_path / "aside"

    def take_away():
        folder.rename(aside)
        folder.write_text("mine")

    forget = at_step(13, take_away)
    with pytest.raises(
        InputError, match=r"checkpoints.*its last whole checkpoint: none.*resume_from_checkpoint latest"
    ):
        train_alone(tiny(tmp_path / "run"))
    forget()
    assert folder.read_text() == "mine"
    folder.unlink()
    aside.rename(folder)
    train_alone(tiny(tmp_path / "run", resume_from_checkpoint="latest"))
    assert_same_to_the_bit(state_of(unbroken), state_of(tmp_path / "run"))


@pytest.mark.slow
def test_checkpoints_taken_away_are_not_missed(unbroken, tmp_path, at_step):
    at_step(13, lambda: shutil.rmtree(tmp_path / "run" / "checkpoints"))
    train_alone(tiny(tmp_path / "run"))
    assert_same_to_the_bit(state_of(unbroken), state_of(tmp_path / "run"))


@pytest.mark.slow
def test_scans_and_cache_that_vanish_are_not_missed(tmp_path, at_step):
    """They were read at the start: what is mapped from the cache's file stays there while the run lasts."""
    images, labels = draw_phantoms(64, 32, seed=0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "scans" / f"class_{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(path)
    scans = {"train_data_dir": str(tmp_path / "scans"), "cache_dir": str(tmp_path / "cache")}
    whole = train_alone(tiny(tmp_path / "whole", **scans))

    def vanish():
        for folder in scans.values():
            shutil.rmtree(folder)

    at_step(8, vanish)
    assert losses(train_alone(tiny(tmp_path / "run", **scans))) == losses(whole)


# Processes


def wait_for(run_dir: Path, process: subprocess.Popen, step: int = 10) -> None:
    while not (run_dir / "checkpoints" / f"step-{step:06d}").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)


@pytest.mark.slow
def test_a_fault_ends_the_front_door_with_exit_code_2(tmp_path):
    process = start("--output_dir", tmp_path / "run", "--max_train_steps", 100_000, launcher=())
    wait_for(tmp_path / "run", process)
    psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "Traceback" not in errors
    *_, bar, last = errors.strip().split("\n")
    assert last.startswith(f"error: {tmp_path / 'run'} cannot be written: File too large")
    assert last.endswith("--resume_from_checkpoint latest.")


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_its_launcher_starts_them_again(unbroken, tmp_path):
    """The same command line, which does not say --resume_from_checkpoint, goes on from the latest checkpoint."""
    run_dir = tmp_path / "run"
    flags = ("--output_dir", run_dir, "--train_batch_size", 4, "--checkpointing_steps", 5)
    process = start(*flags, launcher=(*TORCHRUN, "--max_restarts", "1"), **TWO)
    wait_for(run_dir, process, 5)
    ranks = {child.environ()["RANK"]: child for child in psutil.Process(process.pid).children()}
    ranks["1"].kill()
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "resuming from step" in output
    assert "failed (exitcode: -9) local_rank: 1" in errors
    np.testing.assert_allclose(losses(run_dir), losses(unbroken), rtol=1e-4)


@pytest.mark.slow
def test_a_launcher_resumes_no_run_but_its_own(unbroken, tmp_path):
    """Its first start refuses a folder that is not empty, and so does its second."""
    run_dir = tmp_path / "run"
    shutil.copytree(unbroken, run_dir)
    write_json(RunFolder(run_dir).launcher, {**launcher(), "started": 0.0})  # as of a launcher of the past
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    process = start(
        "--output_dir", run_dir, "--train_batch_size", 4, launcher=(*TORCHRUN, "--max_restarts", "1"), **TWO
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert errors.count("is not empty") >= 2
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before
