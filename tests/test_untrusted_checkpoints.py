"""Runs that anybody may have made, resumed: damaged they are refused in a sentence, and nothing in them runs."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import tiny, train_alone
from damage import limits, other_contents, put, random_damage, refused_or_fine
from safetensors.torch import load_file, save_file

from mri_ddpm.errors import InputError

CHECKPOINT_FILES = (
    "model.safetensors", "optimizer.bin", "custom_checkpoint_0.pkl", "custom_checkpoint_1.pkl", "custom_checkpoint_2.pkl",
    "random_states_0.pkl",
)  # fmt: skip
UNREAD = "random_states_0.pkl"
RUN_FILES = ("config.json", "manifest.json", "metrics.jsonl")


@pytest.fixture(autouse=True)
def _limits():
    with limits():
        yield


@pytest.fixture
def run_dir(unbroken, tmp_path) -> Path:
    return shutil.copytree(unbroken, tmp_path / "a-run")


def resume(run: Path, before: Path) -> None:
    """One step from the last checkpoint on, and the folder as it was."""
    try:
        config = tiny(
            run, resume_from_checkpoint="latest", max_train_steps=21, num_samples=1, num_inference_steps=1
        )
        train_alone(config)
        weights = load_file(run / "checkpoints" / "step-000021" / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())
    finally:
        shutil.rmtree(run)
        shutil.copytree(before, run)


@pytest.mark.parametrize(
    "name", [*(f"checkpoints/step-000020/{name}" for name in CHECKPOINT_FILES), *RUN_FILES]
)
def test_damaged_runs(unbroken, run_dir, tmp_path, name):
    content, others = (run_dir / name).read_bytes(), other_contents(tmp_path / "ran")
    if name.endswith(UNREAD):  # and so each is a whole resumption
        others = {kind: other for kind, other in others.items() if "pickle" in kind}
    cases = [(f"{name} {seed}", damaged) for seed, damaged in random_damage(name, content, len(others) // 2)]
    cases += [(f"{name} is {kind}", other) for kind, other in others.items()]
    for case, damaged in cases:
        put(run_dir / name, damaged)
        with refused_or_fine(f"run:{case}", "a-run", "the loss is", kinds=InputError):
            resume(run_dir, unbroken)
    assert not (tmp_path / "ran").exists()
    resume(run_dir, unbroken)


def edit_pickle(change):
    def edit(path: Path) -> None:
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return edit


def edit_weights(**changes):
    return lambda path: save_file({**load_file(path), **changes}, path)


EDITED = {  # well made, and wrong: the file, what is done to it, words of the refusal
    "NaN weight": ("model.safetensors", edit_weights(**{"conv_in.bias": torch.full((8,), float("nan"))}), "conv_in.bias holds"),
    "more": ("model.safetensors", edit_weights(evil=torch.zeros(1)), "evil is unknown"),
    "other shape": ("model.safetensors", edit_weights(**{"conv_in.bias": torch.zeros(9)}), "conv_in.bias does not fit"),
    "infinite moment": (
        "optimizer.bin", edit_pickle(lambda s: s["state"][0]["exp_avg_sq"].fill_(float("inf"))), "exp_avg_sq holds",
    ),
    "moment of words": ("optimizer.bin", edit_pickle(lambda s: s["state"][0].update(exp_avg="many")), "a-run"),
    "no moments of one": ("optimizer.bin", edit_pickle(lambda s: s["state"].pop(0)), "a-run"),
    "NaN average": (
        "custom_checkpoint_1.pkl", edit_pickle(lambda s: s["shadow_params"][0].fill_(float("nan"))), "finite",
    ),
    "average short": ("custom_checkpoint_1.pkl", edit_pickle(lambda s: s["shadow_params"].pop()), "a-run"),
    "step of words": ("custom_checkpoint_0.pkl", edit_pickle(lambda s: s.update(step="20")), "its step is '20'"),
    "step back": ("custom_checkpoint_0.pkl", edit_pickle(lambda s: s.update(step=-1)), "its step is -1"),
    "guard's rate": ("custom_checkpoint_2.pkl", edit_pickle(lambda s: s.update(rate_factor=1e9)), "the guard's state"),
    "guard's norms": ("custom_checkpoint_2.pkl", edit_pickle(lambda s: s.update(norms=torch.ones(3))), "the guard's state"),
    "another step": ("custom_checkpoint_0.pkl", edit_pickle(lambda s: s.update(step=19)), "its step is 19"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EDITED)
def test_well_made_checkpoints_of_wrong_numbers_are_refused(run_dir, kind):
    name, edit, words = EDITED[kind]
    edit(run_dir / "checkpoints" / "step-000020" / name)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=words) as refusal:
        train_alone(tiny(run_dir, resume_from_checkpoint="latest", max_train_steps=21))
    assert "\n" not in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_checkpoint_gives_tensors_and_the_step_and_the_configuration_the_rest(run_dir):
    """Learning rate and decay cannot be smuggled in, and those of the command line hold."""
    folder = run_dir / "checkpoints" / "step-000020"
    edit_pickle(lambda s: s["param_groups"][0].update(lr=1e9, amsgrad=True))(folder / "optimizer.bin")
    edit_pickle(lambda s: s.update(inv_gamma=0.0, power="x"))(folder / "custom_checkpoint_1.pkl")
    config = tiny(
        run_dir,
        resume_from_checkpoint="latest",
        max_train_steps=21,
        lr_scheduler="constant",
        learning_rate=3e-5,
    )
    train_alone(config)
    state = torch.load(run_dir / "checkpoints" / "step-000021" / "optimizer.bin", weights_only=True)
    assert state["param_groups"][0]["lr"] == 3e-5
    assert state["param_groups"][0]["amsgrad"] is False


def test_no_pickle_in_place_of_a_checkpoint_s_weights_runs(run_dir, tmp_path):
    folder = run_dir / "checkpoints" / "step-000020"
    (folder / "pytorch_model.bin").write_bytes(other_contents(tmp_path / "ran")["a pickle of torch"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="step-000020"):
        train_alone(tiny(run_dir, resume_from_checkpoint="latest"))
    assert not (tmp_path / "ran").exists()
