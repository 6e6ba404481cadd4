"""The ``mri-ddpm`` command, run as a user runs it."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import mri_ddpm
from mri_ddpm import MRIDDPMPipeline, commands
from mri_ddpm.data import draw_phantoms
from mri_ddpm.diffusion import make_noise_scheduler

NAMES = ("glioma_tumor", "no_tumor")


@pytest.fixture
def pipeline_folder(make_unet, tmp_path):
    unet = make_unet(num_class_embeds=2, class_names=NAMES)
    MRIDDPMPipeline(unet, make_noise_scheduler()).save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def sample(pipeline_folder, output_dir, *flags) -> dict[str, np.ndarray]:
    commands.main(
        [
            "sample",
            str(pipeline_folder),
            "--output_dir",
            str(output_dir),
            "--num_inference_steps",
            "4",
            *flags,
        ]
    )
    return {path.name: np.asarray(Image.open(path)) for path in sorted(output_dir.glob("*.png"))}


def test_sample_writes_one_class_or_all_in_turn(pipeline_folder, tmp_path):
    one = sample(pipeline_folder, tmp_path / "one", "--class_label", "no_tumor", "--num_images", "3")
    assert list(one) == [f"no_tumor-{i:05d}.png" for i in range(3)]
    assert {image.shape for image in one.values()} == {(16, 16)}
    every = sample(pipeline_folder, tmp_path / "every", "--num_images", "3")
    assert list(every) == ["glioma_tumor-00000.png", "glioma_tumor-00002.png", "no_tumor-00001.png"]


def test_an_image_depends_on_its_seed_and_not_on_its_batch(pipeline_folder, tmp_path):
    flags = ("--class_label", "no_tumor")
    whole = sample(pipeline_folder, tmp_path / "a", *flags, "--num_images", "5", "--seed", "7")
    parts = sample(
        pipeline_folder, tmp_path / "b", *flags, "--num_images", "5", "--seed", "7", "--batch_size", "2"
    )
    later = sample(pipeline_folder, tmp_path / "c", *flags, "--num_images", "1", "--seed", "9")
    for name in whole:  # a level's difference is what another batch size may change in the last bit
        assert np.abs(whole[name].astype(int) - parts[name]).max() <= 1
    assert np.abs(whole["no_tumor-00002.png"].astype(int) - later["no_tumor-00000.png"]).max() <= 1
    assert np.abs(whole["no_tumor-00000.png"].astype(int) - whole["no_tumor-00001.png"]).max() > 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--class_label", "sarcoma"], ["'sarcoma'", "glioma_tumor, no_tumor"]),
        (["--num_inference_steps", "301"], ["num_inference_steps is 301", "300"]),
        (["--num_images", "0"], ["--num_images is 0"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--device", "abacus"], ["abacus"]),
    ],
)
def test_sample_refuses_with_one_sentence(pipeline_folder, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as end:
        sample(pipeline_folder, tmp_path / "out", *flags)
    message = capsys.readouterr().err.split("error: ")[1]
    assert end.value.code == 2
    for word in words:
        assert word in message
    assert not (tmp_path / "out").exists()


def test_sample_overwrites_nothing_and_needs_a_pipeline(pipeline_folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for pipeline, output_dir, word in (
        (pipeline_folder, tmp_path / "out", "is not an empty folder"),
        (tmp_path / "nowhere", tmp_path / "new", "nowhere"),
        (tmp_path / "out", tmp_path / "new", "no pipeline could be loaded"),
    ):
        with pytest.raises(SystemExit) as end:
            sample(pipeline, output_dir)
        assert end.value.code == 2
        assert word in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
    assert not (tmp_path / "new").exists()


@pytest.fixture
def scans_folder(tmp_path):
    images, labels = draw_phantoms(16, 32, seed=0)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "scans" / f"class_{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(path)
    return tmp_path / "scans"


def test_data_prints_the_account_and_writes_the_manifest(scans_folder, tmp_path, capsys):
    file = tmp_path / "manifest.json"
    commands.main(["data", str(scans_folder), "--output", str(file)])
    printed = capsys.readouterr().out
    manifest = json.loads(file.read_text())
    assert len(manifest["files"]) == 16
    assert all(f"class_{label}" in printed for label in range(4))

    commands.main(["data", str(scans_folder), "--output", str(file)])  # a newer account takes its place
    capsys.readouterr()
    file.write_text("{}")
    with pytest.raises(SystemExit) as end:  # what is no manifest is not overwritten
        commands.main(["data", str(scans_folder), "--output", str(file)])
    assert end.value.code == 2
    assert "manifest.json exists, and is no manifest" in capsys.readouterr().err


def test_data_writes_into_a_folder_that_is_not_there_yet(scans_folder, tmp_path, capsys):
    commands.main(["data", str(scans_folder), "--output", str(tmp_path / "new/there/manifest.json")])
    assert json.loads((tmp_path / "new/there/manifest.json").read_text())["files"]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit):
        commands.main(["data", str(scans_folder), "--output", str(tmp_path / "file/manifest.json")])
    captured = capsys.readouterr()
    assert "--output" in captured.err
    assert "cannot be written" in captured.err


def test_help_waits_for_nothing_heavy():
    code = "import sys; from mri_ddpm.commands import main; main(['--help'])"
    heavy = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    ended = subprocess.run([sys.executable, "-c", heavy + code], capture_output=True, text=True, check=True)
    assert ended.stdout.endswith("False\n")
    assert all(
        f"    {name} " in ended.stdout or f"    {name}\n" in ended.stdout for name in commands.COMMANDS
    )


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"mri-ddpm {mri_ddpm.__version__}\n"


def test_a_bad_name_is_refused_without_the_hub_too(pipeline_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["push", str(pipeline_folder), "bad name!", "--dry_run", str(tmp_path / "dry")])
    assert end.value.code == 2
    assert "'bad name!' is no name for a repository" in capsys.readouterr().err
    assert not (tmp_path / "dry").exists()
