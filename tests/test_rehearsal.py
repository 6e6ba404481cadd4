"""`--keep_old_share`: samples of the base among the scans, so that its classes are not forgotten."""

import shutil

import numpy as np
import pytest
import torch
from conftest import assert_same_to_the_bit, begun, state_of, write_scans
from safetensors.torch import load_file

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import load_phantoms
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json_lines
from mri_ddpm.training.rehearsal import with_rehearsal


def test_samples_of_the_base_are_shown_among_the_scans(base, new_scans, tmp_path, capsys):
    gone = shutil.copytree(base, tmp_path / "base")
    flags = {"train_data_dir": str(new_scans), "keep_old_share": 0.25, "checkpoints_total_limit": 9}
    run = begun(tmp_path / "run", gone, **flags)
    kept = load_file(run / "rehearsal.safetensors")
    assert (
        100 <= len(kept["images"]) < 110
    )  # not a third of the few scans: these are shown several times an epoch
    assert set(kept["class_labels"].tolist()) == {0}  # glioma alone has no new scans
    assert "samples of it are 25% of what is shown" in capsys.readouterr().out
    steps = [row for row in read_json_lines(run / "metrics.jsonl") if "loss" in row]
    assert {row["epoch"] for row in steps} == {0}  # with its samples an epoch has 400 images
    assert kept["images"].float().std() > 10

    shutil.rmtree(gone)
    expected = state_of(run, 4)
    shutil.rmtree(run / "checkpoints" / "step-000004")
    begun(run, gone, resume_from_checkpoint="latest", **flags)
    assert_same_to_the_bit(state_of(run, 4), expected)


def test_images_join_scans_as_they_are():
    scans = load_phantoms(num_images=40, resolution=16).train
    more = np.arange(3 * 256).reshape(3, 16, 16).astype(np.uint8)
    both = scans.with_more(more, np.array([5, 6, 7]))
    batch = both.batch([0, len(scans), len(scans) + 2])
    assert torch.equal(batch["pixel_values"][0], scans.batch([0])["pixel_values"][0])
    torch.testing.assert_close(
        batch["pixel_values"][1:, 0], torch.tensor(more[[0, 2]] / 255, dtype=torch.float32)
    )
    assert batch["class_labels"].tolist() == [scans.class_labels[0], 5, 7]
    twice = scans.with_more(more, np.array([5, 6, 7]), times=2)
    assert len(twice) == 2 * len(scans) + 3
    assert torch.equal(twice.batch([len(scans) + 1])["pixel_values"], scans.batch([1])["pixel_values"])
    assert twice.class_labels[-3:].tolist() == [5, 6, 7]


@pytest.mark.parametrize("share", [0.25, 0.5, 0.8])
@pytest.mark.parametrize("count", [20, 700])
def test_the_share_of_samples_is_what_is_asked_for(share, count):
    train = load_phantoms(num_images=count, resolution=16).train
    an_epoch = share / (1 - share) * len(train)
    number = round(an_epoch * np.ceil(100 / an_epoch))
    samples = {"images": np.zeros((number, 16, 16), np.uint8), "class_labels": np.zeros(number, int)}
    shown = with_rehearsal(
        train, samples, TrainingConfig(keep_old_share=share, pretrained_model_name_or_path="a")
    )
    assert abs(number / len(shown) - share) < 0.005


@pytest.mark.parametrize(
    ("classes", "changes", "words"),
    [
        ({"glioma": 20, "meningioma": 20}, {}, "for classes that have no new scans, and .* has none such"),
        ({"glioma": 20}, {"resolution": 24}, "samples 16 px, and --resolution is 24"),
    ],
)
def test_what_cannot_be_rehearsed_is_refused(base, tmp_path, classes, changes, words):
    scans = write_scans(tmp_path / "scans", **classes)
    with pytest.raises(InputError, match=words):
        begun(tmp_path / "run", base, train_data_dir=str(scans), keep_old_share=0.5, **changes)
    assert not (tmp_path / "run").exists()
