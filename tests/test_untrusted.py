"""Files and runs that anybody may have made: damaged in many ways they work or are refused in a sentence, and never run code."""

import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny, train_alone
from damage import in_place_of, limits, other_contents, put, random_damage, refused_or_fine
from PIL import Image
from safetensors.torch import load_file, save_file

from mri_ddpm import AttentionUNet2DModel, MRIDDPMPipeline, commands
from mri_ddpm.data import draw_phantoms, load_scans
from mri_ddpm.data.reading.pictures import BadImageError, fit_square, read_scan
from mri_ddpm.errors import InputError
from mri_ddpm.flags import parse_config
from mri_ddpm.hub import export_repository
from mri_ddpm.sampling.folder import SampleFolder

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
PIPELINE_FILES = ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json", WEIGHTS)
PAPERS = ("config.json", "manifest.json", "metrics.jsonl", "environment.json")

CHECKPOINT = "checkpoints/step-000020"
UNREAD = f"{CHECKPOINT}/random_states_0.pkl"
RUN_FILES = (f"{CHECKPOINT}/model.safetensors", f"{CHECKPOINT}/custom_checkpoint_1.pkl", "config.json")
MORE_RUN_FILES = (
    f"{CHECKPOINT}/optimizer.bin", f"{CHECKPOINT}/custom_checkpoint_0.pkl", f"{CHECKPOINT}/custom_checkpoint_2.pkl", UNREAD,
    "manifest.json", "metrics.jsonl",
)  # fmt: skip


@pytest.fixture(autouse=True)
def _limits():
    with limits():
        yield


# Pipelines


@pytest.fixture
def pipeline_dir(unbroken, tmp_path) -> Path:
    return shutil.copytree(unbroken / "pipeline", tmp_path / "a-pipeline")


def open_and_draw(folder: Path) -> None:
    pipeline = MRIDDPMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    label = 0 if pipeline.unet.config.num_class_embeds else None
    images = pipeline(label, num_images=1, num_inference_steps=2, output_type="np").images
    assert np.isfinite(images).all()


@pytest.mark.parametrize("name", PIPELINE_FILES)
def test_damaged_pipelines(pipeline_dir, tmp_path, name):
    content = (pipeline_dir / name).read_bytes()
    for seed, damaged in random_damage(name, content, 30):
        with (
            in_place_of(pipeline_dir / name, damaged),
            refused_or_fine(f"pipeline:{name} {seed}", "a-pipeline", "not finite"),
        ):
            open_and_draw(pipeline_dir)
    for kind, other in other_contents(tmp_path / "ran").items():
        with (
            in_place_of(pipeline_dir / name, other),
            refused_or_fine(f"pipeline:{name} is {kind}", "a-pipeline"),
        ):
            open_and_draw(pipeline_dir)
    assert not (tmp_path / "ran").exists()
    open_and_draw(pipeline_dir)  # as it was


def test_weights_that_are_not_finite_are_not_loaded(pipeline_dir, tmp_path, capsys):
    for number in (float("nan"), float("inf"), float("-inf")):
        tensors = load_file(pipeline_dir / WEIGHTS)
        tensors["mid_attention.to_qkv.weight"][3, 4] = number
        save_file(tensors, pipeline_dir / WEIGHTS)
        words = (
            r"a-pipeline/unet hold numbers that are not finite, the first in mid_attention\.to_qkv\.weight"
        )
        with pytest.raises(ValueError, match=words):
            AttentionUNet2DModel.from_pretrained(pipeline_dir, subfolder="unet")
        for command in (
            ["push", str(pipeline_dir), "me/tiny", "--dry_run", str(tmp_path / "dry")],
            ["push", str(pipeline_dir), "me/tiny"],
            ["sample", str(pipeline_dir), "--output_dir", str(tmp_path / "out")],
            ["evaluate", str(pipeline_dir), "--output_dir", str(tmp_path / "out")],
        ):
            with pytest.raises(SystemExit) as end:
                commands.main(command)
            errors = capsys.readouterr().err
            assert end.value.code == 2
            assert re.search(words, errors), errors
            assert errors.split("error: ")[1].count("\n") == 1
        assert not (tmp_path / "dry").exists()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_images_of_predictions_that_are_not_finite_are_not_returned(pipeline_dir, number):
    """Clipping would make an infinite one black or white, and a picture of it."""
    pipeline = MRIDDPMPipeline.from_pretrained(pipeline_dir)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(number)
    for output_type in ("pil", "np"):
        with pytest.raises(ValueError, match="predictions are not finite numbers; take other weights"):
            pipeline(num_images=2, num_inference_steps=3, output_type=output_type)
    with torch.no_grad():  # what is only far too large is clipped, as in any chain
        pipeline.unet.conv_out.bias.fill_(1e30)
    assert np.isfinite(pipeline(num_inference_steps=3, output_type="np").images).all()


def test_weights_of_other_precision_are_checked_before_a_push(pipeline_dir, tmp_path, capsys):
    tensors = {name: tensor.half() for name, tensor in load_file(pipeline_dir / WEIGHTS).items()}
    tensors["conv_in.bias"][0] = float("inf")
    variant = pipeline_dir / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file(tensors, variant)
    save_file({"evil": torch.zeros(1)}, pipeline_dir / "unet" / "other.safetensors")
    with pytest.raises(InputError, match=r"not finite, the first in conv_in\.bias"):
        export_repository(pipeline_dir, tmp_path / "dry", "me/tiny")
    assert not (tmp_path / "dry").exists()
    tensors["conv_in.bias"][0] = 0.5
    save_file(tensors, variant)
    export_repository(pipeline_dir, tmp_path / "dry", "me/tiny")
    sent = {path.name for path in (tmp_path / "dry" / "unet").glob("*.safetensors")}
    assert sent == {"diffusion_pytorch_model.safetensors", variant.name}


def test_a_network_that_overflows_ends_the_command_in_a_sentence(pipeline_dir, tmp_path, capsys):
    tensors = load_file(pipeline_dir / WEIGHTS)
    tensors["conv_out.weight"].fill_(3e38)
    save_file(tensors, pipeline_dir / WEIGHTS)
    for batch_size in ("auto", "2"):
        with pytest.raises(SystemExit) as end:
            commands.main(["sample", str(pipeline_dir), "--num_images", "2", "--batch_size", batch_size,
                      "--num_inference_steps", "2", "--output_dir", str(tmp_path / batch_size)])  # fmt: skip
        assert end.value.code == 2
        assert "predictions are not finite numbers" in capsys.readouterr().err
        assert not list((tmp_path / batch_size).glob("*.png"))


# A run's papers, which a push reads


def test_damaged_papers(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "a-run")
    for name in PAPERS:
        content = (run / name).read_bytes()
        for seed, damaged in random_damage(name, content, 8):
            with (
                in_place_of(run / name, damaged),
                refused_or_fine(f"papers:{name} {seed}", "a-run", kinds=InputError),
            ):
                export_repository(run, tmp_path / "exported", "me/tiny")
            shutil.rmtree(tmp_path / "exported", ignore_errors=True)


# Checkpoints, which a resumption reads


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
    "name", [*RUN_FILES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_RUN_FILES)]
)
def test_damaged_runs(unbroken, run_dir, tmp_path, name):
    content, others = (run_dir / name).read_bytes(), other_contents(tmp_path / "ran")
    if name == UNREAD:  # and so each is a whole resumption
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
    edit(run_dir / CHECKPOINT / name)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=words) as refusal:
        train_alone(tiny(run_dir, resume_from_checkpoint="latest", max_train_steps=21))
    assert "\n" not in str(refusal.value)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()} == before


def test_a_checkpoint_gives_tensors_and_the_step_and_the_configuration_the_rest(run_dir):
    """Learning rate and decay cannot be smuggled in, and those of the command line hold."""
    folder = run_dir / CHECKPOINT
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
    folder = run_dir / CHECKPOINT
    (folder / "pytorch_model.bin").write_bytes(other_contents(tmp_path / "ran")["a pickle of torch"])
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="step-000020"):
        train_alone(tiny(run_dir, resume_from_checkpoint="latest"))
    assert not (tmp_path / "ran").exists()


# Scans


def encoded_scans() -> dict[str, bytes]:
    head = draw_phantoms(1, 48, seed=2)[0][0]
    eight, sixteen = (
        np.round(head * top).astype(kind) for top, kind in ((255, np.uint8), (65535, np.uint16))
    )
    files = {}
    for name, pixels, options in (
        ("a.png", eight, {}), ("deep.png", sixteen, {}), ("a.jpg", eight, {}), ("a.tif", eight, {}),
        ("deep.tif", sixteen, {"compression": "tiff_lzw"}), ("float.tif", head.astype(np.float32), {}),
        ("deflated.tif", eight, {"compression": "tiff_adobe_deflate"}), ("a.gif", eight, {}), ("a.bmp", eight, {}),
        ("a.webp", np.stack([eight] * 3, -1), {}), ("colour.jpg", np.stack([eight] * 3, -1), {"exif": Image.Exif()}),
    ):  # fmt: skip
        file = io.BytesIO()
        formats = {"jpg": "JPEG", "tif": "TIFF"}
        ending = name.split(".")[1]
        Image.fromarray(pixels).save(file, formats.get(ending, ending.upper()), **options)
        files[name] = file.getvalue()
    return files


SCANS = encoded_scans()


@pytest.mark.parametrize("name", SCANS)
def test_damaged_scans(name):
    for seed, damaged in random_damage(name, SCANS[name], 15):
        with refused_or_fine(f"scan:{name} {seed}", "", kinds=BadImageError):
            scan = fit_square(read_scan(damaged), 16, "pad")
            assert scan.shape == (16, 16)
            assert ((scan >= 0) & (scan <= 1)).all()


def test_postscript_is_not_run(tmp_path, monkeypatch):
    """Pillow would hand it to whatever ``gs`` it finds."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path / 'ran'}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 48 48\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(BadImageError, match="is a drawing"):
        read_scan(drawing)
    assert not (tmp_path / "ran").exists()


def test_damaged_scans_in_folders_and_archives(tmp_path):
    heads = [np.round(head * 255).astype(np.uint8) for head in draw_phantoms(8, 48, seed=3)[0]]
    packed, folder = io.BytesIO(), tmp_path / "some-scans"
    folder.mkdir()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for i, head in enumerate(heads):
            Image.fromarray(head).save(folder / f"{i}.png")
            archive.write(folder / f"{i}.png", f"{i}.png")
    archive = tmp_path / "some-scans.zip"
    for seed, damaged in random_damage("some-scans.zip", packed.getvalue(), 15):
        archive.write_bytes(damaged)
        with refused_or_fine(f"scans:zip {seed}", "some-scans", kinds=InputError):
            scans = load_scans(train_data_dir=str(archive), resolution=16, cache_dir=str(tmp_path / "cache"))
            assert len(scans.train)
    for kind, other in other_contents(tmp_path / "ran").items():
        for name, whole in (("7.png", folder), ("../some-scans.zip", archive)):
            with (
                in_place_of(folder / name, other),
                refused_or_fine(f"scans:{name} is {kind}", "some-scans", kinds=InputError),
            ):
                scans = load_scans(
                    train_data_dir=str(whole), resolution=16, cache_dir=str(tmp_path / "cache")
                )
                assert len(scans.train)
    assert not (tmp_path / "ran").exists()


# Configurations and requests


CONFIG = {"preset": "tiny", "resolution": 44, "block_out_channels": [8, 16], "learning_rate": 1e-3, "random_flip": True,
          "output_dir": "runs/x", "attention_types": ["none", "full"], "fit": "crop", "max_train_steps": None}  # fmt: skip


@pytest.mark.parametrize("name", ["a-config.json", "a-config.yaml"])
def test_damaged_configurations(tmp_path, capsys, name):
    path = tmp_path / name
    content = (json.dumps(CONFIG) if name.endswith("json") else yaml.safe_dump(CONFIG)).encode()
    cases = [(str(seed), damaged) for seed, damaged in random_damage(name, content, 30)]
    cases += other_contents(tmp_path / "ran").items()
    cases += [
        ("code", b"!!python/object/apply:builtins.open [" + str(tmp_path / "ran").encode() + b", w]"),
        (
            "laughs",
            b"a: &a [x,x]\n"
            + b"".join(
                b"b%d: &b%d [*%s,*%s]\n" % (i, i, p, p)
                for i in range(30)
                for p in [b"b%d" % (i - 1) if i else b"a"]
            ),
        ),
        ("itself", b"resolution: &a [*a]"),
        ("flags", b"output_dir: --push_to_hub"),
        ("help", b"no_flip_classes: [a, --help]"),
        ("date", b"seed: 2020-01-01"),
    ]
    path.write_bytes(content)
    for case, damaged in cases:
        with (
            in_place_of(path, damaged),
            refused_or_fine(f"config:{name} {case}", "a-config", "--", kinds=InputError),
        ):
            try:
                config = parse_config(["--config", str(path)])
            except SystemExit as end:  # of the flags' parser, which names the flag
                raise InputError(
                    capsys.readouterr().err.split("error: ")[1] + f"--exit code {end.code}"
                ) from end
            assert config.resolution >= 16
            assert not config.push_to_hub
    assert not (tmp_path / "ran").exists()


def test_damaged_requests(tmp_path):
    """``.sampling.json``, by which a drawing is gone on with."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    request = {"model": "a", "seed": 0, "guidance_scale": 1.0, "class_label": None}
    drawn = SampleFolder(folder, request)
    drawn.batch_size["cpu"] = 4
    drawn.rejected.add(1)
    drawn.save_request()
    (folder / "00000.png").write_bytes(b"")
    file = folder / ".sampling.json"
    cases = [*random_damage(file.name, file.read_bytes(), 40), *other_contents(tmp_path / "ran").items()]
    for case, damaged in cases:
        with in_place_of(file, damaged), refused_or_fine(f"request:{case}", str(folder), kinds=InputError):
            again = SampleFolder(folder, request)
            again.save_request()
    assert not (tmp_path / "ran").exists()


# Code


def test_no_code_in_a_pipeline_s_folder_runs(pipeline_dir, tmp_path):
    spy = f"open({str(tmp_path / 'ran')!r}, 'w')"
    payload = other_contents(tmp_path / "ran")["a pickle of torch"]
    for name in (
        "pipeline_mri_ddpm.py",
        "unet/modeling_attention_unet.py",
        "scheduler/scheduler.py",
        "conftest.py",
        "__init__.py",
    ):
        (pipeline_dir / name).write_text(spy)
    for name in (
        "pytorch_model.bin",
        "unet/pytorch_model.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/model.pt",
    ):
        (pipeline_dir / name).write_bytes(payload)
    open_and_draw(pipeline_dir)
    for name in ("None.py", "scheduler/diffusers.py", "unet/mri_ddpm.models.modeling_attention_unet.py"):
        (pipeline_dir / name).write_text(spy)
        with pytest.raises(ValueError, match=f"{name} is code that a pipeline may not bring"):
            open_and_draw(pipeline_dir)
        (pipeline_dir / name).unlink()
    (pipeline_dir / WEIGHTS).unlink()
    with pytest.raises((ValueError, OSError), match="a-pipeline"):
        open_and_draw(pipeline_dir)
    assert not (tmp_path / "ran").exists()
