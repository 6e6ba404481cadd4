"""What a repository holds: exported from a real run, opened in fresh processes, and refused when tampered with."""

import dataclasses
import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.utils import logging
from diffusers.utils.dynamic_modules_utils import check_imports
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from mri_ddpm import AttentionUNet2DModel, MRIDDPMInpaintPipeline, MRIDDPMPipeline, commands
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json_lines, write_json_lines
from mri_ddpm.hub import export_repository
from mri_ddpm.hub.card import training_facts
from mri_ddpm.runs.record import read_record

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FILES = {
    "README.md", "model_index.json", "pipeline_mri_ddpm.py", "scheduler/scheduler_config.json", "unet/config.json",
    "unet/modeling_attention_unet.py", WEIGHTS, "training/config.json", "training/environment.json",
    "training/loss.png", "training/manifest.json", "training/metrics.jsonl", "training/samples.png",
}  # fmt: skip
DRAW = """
import sys, numpy as np, torch
{imports}
pipeline = {load}
assert type(pipeline).__name__ == "MRIDDPMPipeline"
images = pipeline("no_tumor", num_images=2, num_inference_steps=3, guidance_scale=1.5,
    generator=[torch.Generator().manual_seed(s) for s in (0, 1)], output_type="np").images
np.save(sys.argv[2], images)
"""

REDRAW_ALONE = """
inpaint = sys.modules[pipeline.__module__].MRIDDPMInpaintPipeline.from_pipe(pipeline)
scan = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
images = inpaint("no_tumor", image=scan, mask_image=scan > 0.5, jump_n_sample=2, num_inference_steps=3,
    generator=torch.Generator().manual_seed(2), output_type="np").images
np.save(sys.argv[3], images)
"""


@pytest.fixture
def exported(unbroken, tmp_path) -> Path:
    export_repository(unbroken, tmp_path / "exported", "me/tiny")
    return tmp_path / "exported"


def images_of(pipeline) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return pipeline(
        "no_tumor", num_images=2, num_inference_steps=3, guidance_scale=1.5, generator=generators, output_type="np"
    ).images  # fmt: skip


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# What is written


def test_an_exported_run_holds_exactly_this(unbroken, exported):
    assert {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()} == FILES
    assert (exported / WEIGHTS).read_bytes() == (unbroken / "pipeline" / WEIGHTS).read_bytes()
    index = json.loads((exported / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_mri_ddpm", "MRIDDPMPipeline"]
    assert index["unet"] == ["modeling_attention_unet", "AttentionUNet2DModel"]
    assert index["scheduler"] == ["diffusers", "DDPMScheduler"]


def test_of_a_long_run_old_steps_are_thinned_and_all_else_stays(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    rows = [
        {"step": step, "epoch": 0, "loss": 1 / step, "images_per_second": 100.0 if step <= 9000 else 50.0}
        for step in range(1, 18_001)
    ]
    others = [
        {"step": step, "validation_loss": 0.1, "validation_loss_ema": 0.2} for step in range(10, 18_001, 10)
    ]
    write_json_lines(run / "metrics.jsonl", sorted(rows + others, key=lambda row: row["step"]))
    before = (run / "metrics.jsonl").read_bytes()
    export_repository(run, tmp_path / "exported", "me/tiny")
    assert (run / "metrics.jsonl").read_bytes() == before
    sent = read_json_lines(tmp_path / "exported/training/metrics.jsonl")
    steps = [row["step"] for row in sent if "loss" in row]
    assert [row for row in sent if "loss" not in row] == others
    assert 3000 < len(steps) <= 4000
    assert steps[-2000:] == list(range(16_001, 18_001))
    assert set(np.diff(steps[:-2000])) == {8}
    record = read_record(run)
    assert training_facts(record)["minutes"] == pytest.approx(8 * (9000 / 100 + 9000 / 50) / 60)
    thinned = training_facts(dataclasses.replace(record, metrics=sent))
    assert thinned == pytest.approx(training_facts(record), rel=1e-2)
    export_repository(tmp_path / "exported", tmp_path / "again", "me/tiny")
    assert read_json_lines(tmp_path / "again/training/metrics.jsonl") == sent


def test_exporting_what_was_exported_changes_nothing(exported, tmp_path):
    export_repository(exported, tmp_path / "again", "me/tiny")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


@pytest.mark.parametrize("name", ["pipeline_mri_ddpm.py", "unet/modeling_attention_unet.py"])
def test_the_code_files_import_no_sibling(exported, name, monkeypatch, caplog):
    """From the Hub each arrives alone, and diffusers looks for imports by a regular expression on the text."""
    monkeypatch.setitem(sys.modules, "mri_ddpm", None)  # as where it is not installed
    logging.enable_propagation()
    assert check_imports(exported / name) == []
    logging.disable_propagation()
    assert not caplog.text  # of packages that are missing
    text = (exported / name).read_text()
    text = text.replace("    import mri_ddpm.trust as trust\n", "")  # of the installed file alone
    found = re.findall(r"^\s*(?:import|from)\s+([\w.]+)", text, flags=re.MULTILINE)
    assert {module.split(".")[0] for module in found} <= {
        "torch", "diffusers", "huggingface_hub", "numpy", "PIL", "functools", "inspect", "json", "logging", "math", "shutil", "collections",
        "dataclasses", "pathlib", "re", "unicodedata",
    }  # fmt: skip


def test_no_place_of_this_machine_and_no_scan_s_name_goes_along(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run")
    config = {"train_data_dir": "/wards/7/patients", "cache_dir": "/wards/cache", "output_dir": str(run)}
    edit_json(run / "config.json", **config)
    file = {"path": "ward7/Doe_Jane.png", "sha256": "ab" * 32, "class": "no_tumor", "split": "train"}
    unreadable = [{"path": "ward7/Roe_Ann.png", "reason": "is no image"}]
    edit_json(run / "manifest.json", source="/wards/7/patients", files=[file], unreadable=unreadable)
    export_repository(run, tmp_path / "exported", "me/tiny")
    manifest = json.loads((tmp_path / "exported/training/manifest.json").read_text())
    assert manifest["source"] == "patients"
    assert manifest["files"][0]["sha256"] == "ab" * 32
    for path in (tmp_path / "exported").rglob("*"):
        if path.suffix in (".json", ".md", ".jsonl"):
            text = path.read_text()
            for secret in ("Jane", "Roe", "ward7", "/wards", str(tmp_path), str(unbroken)):
                assert secret not in text, (path, secret)


def test_a_relative_folder_in_a_folder_is_no_name_on_the_hub(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run")
    edit_json(run / "config.json", train_data_dir="wards/patients")
    edit_json(run / "manifest.json", source="wards/patients")
    export_repository(run, tmp_path / "exported", "me/tiny")
    for path in (tmp_path / "exported").rglob("*"):
        if path.suffix in (".json", ".md", ".jsonl"):
            assert "wards" not in path.read_text(), path
    edit_json(run / "config.json", train_data_dir=None, dataset_name="owner/scans")
    edit_json(run / "manifest.json", source="owner/scans")
    export_repository(run, tmp_path / "of the hub", "me/tiny")
    for name in ("config.json", "manifest.json"):
        assert "owner/scans" in (tmp_path / "of the hub/training" / name).read_text()


def test_what_is_saved_does_not_say_where_it_was_loaded_from(exported, tmp_path):
    pipeline = MRIDDPMPipeline.from_pretrained(exported)
    pipeline.save_pretrained(tmp_path / "saved")
    pipeline.unet.save_pretrained(tmp_path / "unet")
    pipeline.scheduler.save_pretrained(tmp_path / "scheduler")
    files = [path for name in ("saved", "unet", "scheduler") for path in (tmp_path / name).rglob("*.json")]
    assert len(files) == 5
    for path in files:
        assert str(tmp_path) not in path.read_text()
        assert "_name_or_path" not in path.read_text()


@pytest.mark.slow
def test_texts_are_utf_8_whatever_the_machine_writes(unbroken, run_fresh, tmp_path, monkeypatch):
    """Under a locale of ASCII, as a stand-in for a Windows of code page 1252."""
    run = shutil.copytree(unbroken, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(
        json.dumps({**config, "hub_license": "é"}, ensure_ascii=False), encoding="utf-8"
    )
    for name, value in {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}.items():
        monkeypatch.setenv(name, value)
    run_fresh(
        "import locale, sys; from pathlib import Path; from mri_ddpm.hub import export_repository\n"
        "assert locale.getpreferredencoding(False) != 'UTF-8'\n"
        "export_repository(Path(sys.argv[1]), Path(sys.argv[2]), 'me/tiny')",
        run,
        tmp_path / "exported",
    )
    assert "16×16" in (tmp_path / "exported/README.md").read_bytes().decode("utf-8")
    assert json.loads((tmp_path / "exported/training/config.json").read_bytes())["hub_license"] == "é"


@pytest.mark.slow
def test_a_second_model_in_one_process_leaves_the_first_one_whole(exported, run_fresh, tmp_path):
    """diffusers runs the code of each repository, and may run a module's text again in place."""
    shutil.copytree(exported, tmp_path / "second" / "exported")
    run_fresh(
        """
import sys, numpy as np, torch
sys.modules['mri_ddpm'] = None
from diffusers import DiffusionPipeline
def draw(pipeline):
    return pipeline("no_tumor", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np").images
first = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
before = draw(first)
second = DiffusionPipeline.from_pretrained(sys.argv[2], trust_remote_code=True)
assert np.array_equal(draw(second), before)
assert np.array_equal(draw(first), before)
""",
        exported,
        tmp_path / "second" / "exported",
    )


def test_refuses_a_folder_that_is_taken_and_a_source_that_is_none(unbroken, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="is not an empty folder"):
        export_repository(unbroken, tmp_path, "me/tiny")
    with pytest.raises(InputError, match="holds no pipeline; name a run folder"):
        export_repository(tmp_path, tmp_path / "new", "me/tiny")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_dry_run_lists_the_repository(unbroken, tmp_path, capsys):
    commands.main(["push", str(unbroken), "me/tiny", "--dry_run", str(tmp_path / "dry")])
    listed = {line.split()[-1] for line in capsys.readouterr().out.splitlines()[:-1]}
    assert (
        listed
        == FILES
        == {p.relative_to(tmp_path / "dry").as_posix() for p in (tmp_path / "dry").rglob("*.*")}
    )


# The model card


def test_the_card_is_filled_from_the_run(exported, unbroken):
    card = ModelCard.load(exported / "README.md")
    rows = [json.loads(line) for line in (unbroken / "metrics.jsonl").read_text().splitlines()]
    manifest = json.loads((unbroken / "manifest.json").read_text())
    validation = rows[-1]["validation_loss_ema"]
    assert card.data.library_name == "diffusers"
    assert card.data.pipeline_tag == "unconditional-image-generation"
    assert card.data.license == "other"
    assert card.data.eval_results[0].metric_value == validation
    assert manifest["content_sha256"] in card.text
    train = manifest["split"]["train"]
    counts = " | ".join(str(n) for n in (*train["classes"].values(), train["total"]))
    assert f"| train | {counts} |" in card.text
    for words in ("Not for diagnosis", "training/samples.png", "trust_remote_code=True", f"{validation:.4f}",
                  "**not measured**", "**Not measured.**", "no patient's scan was used", "20 (epoch"):  # fmt: skip
        assert words in card.text, words


def test_the_card_shows_an_evaluation_and_the_licence(unbroken, tmp_path):
    run = shutil.copytree(unbroken, tmp_path / "run")
    kid = {"value": 0.0182, "interval": [0.008, 0.028], "n": 2000, "real": -0.0004}
    weights = (run / "pipeline" / WEIGHTS).read_bytes()
    evaluation = {
        "settings": {
            "num_inference_steps": 50,
            "revision": f"sha256:{hashlib.sha256(weights).hexdigest()}",
        },
        "images": {"synthetic": {"total": 2000}},
        "extractor": "in-domain classifier",
        "quality": {"KID": kid},
        "memorisation": {
            "images": 2000,
            "copies": {
                "share": {"value": 0.0125, "interval": [0.006, 0.02], "n": 2000},
                "expected": 0.05,
                "count": 25,
                "distinct_training_images": 7,
            },
        },
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / "metrics.json").write_text(json.dumps(evaluation))
    Image.new("L", (8, 8)).save(run / "evaluation" / "worst_pairs.png")  # shows patients: must stay here
    export_repository(run, tmp_path / "exported", "me/tiny", license="cc-by-4.0")
    card = ModelCard.load(tmp_path / "exported/README.md")
    assert "| KID | 0.0182 | 0.008 to 0.028 | 2000 | -0.0004 |" in card.text
    assert "25 of 2000 synthetic images are taken for copies, of 7 different training scans" in card.text
    assert "1.2 % (95 % interval 0.6 to 2.0 %), where 5 % of real scans" in card.text
    assert "ot measured" not in card.text
    assert card.data.license == "cc-by-4.0"
    assert {r.metric_type: r.metric_value for r in card.data.eval_results}["KID"] == 0.0182
    assert not list((tmp_path / "exported").rglob("worst_pairs.png"))

    weights = load_file(run / "pipeline" / WEIGHTS)
    save_file({name: tensor + 1e-3 for name, tensor in weights.items()}, run / "pipeline" / WEIGHTS)
    export_repository(run, tmp_path / "trained on", "me/tiny")
    card = (tmp_path / "trained on" / "README.md").read_text()
    assert "**not measured**" in card
    assert "25 of 2000" not in card
    assert "KID |" not in card
    assert not (tmp_path / "trained on/training/evaluation").exists()


def test_the_card_is_of_the_weights_and_not_of_what_came_before_or_after(unbroken, tmp_path):
    """Resumed after its end, and killed after the checkpoint of step 20: the losses of 21, and the end's old grid."""
    run = shutil.copytree(unbroken, tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 21, "epoch": 9, "loss": 77.0}) + "\n")
    (run / "samples").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(run / "samples" / "epoch-00009-ema.png")
    export_repository(run, tmp_path / "exported", "me/tiny")
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "After step 20 (epoch" in card
    assert Image.open(tmp_path / "exported/training/samples.png").size == (8, 8)


def test_the_card_of_a_bare_pipeline_says_what_is_not_recorded(unbroken, tmp_path):
    pipeline = MRIDDPMPipeline.from_pretrained(unbroken / "pipeline")
    pipeline.save_pretrained(tmp_path / "saved")
    export_repository(tmp_path / "saved", tmp_path / "exported", "me/tiny")
    text = (tmp_path / "exported/README.md").read_text()
    assert text.count("Not recorded.") == 3
    assert "not recorded" in text
    assert "training/samples.png" not in text


# Opening it


def test_opens_with_diffusers_alone_and_draws_the_same_to_the_bit(exported, run_fresh, tmp_path):
    expected = images_of(MRIDDPMPipeline.from_pretrained(exported))
    alone = DRAW.format(
        imports="sys.modules['mri_ddpm'] = None\nfrom diffusers import DiffusionPipeline",
        load="DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)",
    )
    run_fresh(alone + REDRAW_ALONE, exported, tmp_path / "alone.npy", tmp_path / "redrawn.npy")
    assert np.array_equal(np.load(tmp_path / "alone.npy"), expected)
    inpaint = MRIDDPMInpaintPipeline.from_pretrained(exported)
    assert type(inpaint) is MRIDDPMInpaintPipeline
    scan = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    generator = torch.Generator().manual_seed(2)
    edit = {"image": scan, "mask_image": scan > 0.5, "jump_n_sample": 2, "generator": generator}
    redrawn = inpaint("no_tumor", num_inference_steps=3, output_type="np", **edit).images
    assert np.array_equal(np.load(tmp_path / "redrawn.npy"), redrawn)


def test_saving_again_and_loading_parts(exported, tmp_path):
    pipeline = MRIDDPMPipeline.from_pretrained(exported)
    assert type(pipeline) is MRIDDPMPipeline
    assert type(pipeline.unet) is AttentionUNet2DModel
    pipeline.save_pretrained(tmp_path / "saved")
    assert np.array_equal(images_of(MRIDDPMPipeline.from_pretrained(tmp_path / "saved")), images_of(pipeline))

    unet = AttentionUNet2DModel.from_pretrained(exported, subfolder="unet")
    scheduler = DDIMScheduler.from_pretrained(exported, subfolder="scheduler")
    swapped = MRIDDPMPipeline.from_pretrained(exported, unet=unet, scheduler=scheduler)
    assert swapped.unet is unet
    assert swapped.scheduler is scheduler
    half = MRIDDPMPipeline.from_pretrained(exported, torch_dtype=torch.float16)
    assert half.unet.dtype == torch.float16
    half.save_pretrained(tmp_path / "saved", variant="fp16")
    assert (tmp_path / "saved/unet/diffusion_pytorch_model.fp16.safetensors").exists()
    export_repository(tmp_path / "saved", tmp_path / "both", "me/tiny")
    again = MRIDDPMPipeline.from_pretrained(tmp_path / "both", variant="fp16", torch_dtype=torch.float16)
    assert torch.equal(again.unet.conv_in.weight, half.unet.conv_in.weight)


# Tampered with


def cut_short(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def change_tensors(change):
    def tamper(folder):
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return tamper


def pickle_instead(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "unet/diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def shards_elsewhere(folder):
    index = {"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": "../../../etc/passwd"}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def json_says(file, **changes):
    return lambda folder: edit_json(folder / file, **changes)


TAMPERED = {
    "unknown pipeline": (json_says("model_index.json", _class_name=["evil", "Evil"]), "_class_name is"),
    "path as pipeline": (
        json_says("model_index.json", _class_name=["../../evil", "MRIDDPMPipeline"]), "_class_name is",
    ),
    "unknown U-Net": (json_says("model_index.json", unet=["evil", "AttentionUNet2DModel"]), "unet is"),
    "path as U-Net": (json_says("model_index.json", unet=["../../evil", "AttentionUNet2DModel"]), "unet is"),
    "unknown scheduler": (json_says("model_index.json", scheduler=["diffusers", "Evil"]), "scheduler is"),
    "model as scheduler": (json_says("model_index.json", scheduler=["diffusers", "UNet2DModel"]), "scheduler is"),
    "scheduler from elsewhere": (json_says("model_index.json", scheduler=["os", "system"]), "scheduler is"),
    "one part more": (json_says("model_index.json", extra=["evil", "Evil"]), "extra is"),
    "other class in a config": (json_says("unet/config.json", _class_name="Evil"), "_class_name is 'Evil'"),
    "words for numbers": (json_says("unet/config.json", layers_per_block="many"), "cannot be loaded"),
    "huge network": (json_says("unet/config.json", block_out_channels=[8**10] * 2), "cannot be loaded"),
    "huge number of blocks": (json_says("unet/config.json", layers_per_block=10**9), "cannot be loaded"),
    "words for betas": (json_says("scheduler/scheduler_config.json", beta_start="low"), "is no config of"),
    "broken JSON": (lambda folder: (folder / "unet/config.json").write_text("{"), "is no config of"),
    "a list": (lambda folder: (folder / "model_index.json").write_text("[]"), "holds no mapping"),
    "other shape": (change_tensors(lambda t: t.update({"conv_in.weight": torch.zeros(5, 1, 3, 3)})), "cannot be loaded"),
    "tensor missing": (change_tensors(lambda t: t.pop("conv_in.weight")), "conv_in.weight"),
    "tensor more": (change_tensors(lambda t: t.update(evil=torch.zeros(1))), "evil"),
    "cut short": (cut_short, "damaged or cut short"),
    "no safetensors at all": (lambda folder: (folder / WEIGHTS).write_bytes(b"hello"), "damaged or cut short"),
    "a pickle": (pickle_instead, "no file named diffusion_pytorch_model.safetensors"),
    "shards elsewhere": (shards_elsewhere, "over several files"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAMPERED)
def test_a_tampered_repository_is_refused_before_any_of_its_code_runs(exported, tmp_path, capsys, kind):
    tamper, words = TAMPERED[kind]
    tamper(exported)
    for code in ("pipeline_mri_ddpm.py", "unet/modeling_attention_unet.py", "evil.py", "unet/evil.py"):
        (exported / code).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises((ValueError, OSError), match=words):
        MRIDDPMPipeline.from_pretrained(exported)
    with pytest.raises(SystemExit) as end:
        commands.main(["push", str(exported), "me/tiny", "--dry_run", str(tmp_path / "dry")])
    assert end.value.code == 2
    assert capsys.readouterr().err.split("error: ")[1].count("\n") == 1  # one sentence
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "dry").exists()


# Provenance


def test_images_say_where_they_come_from(exported, tmp_path):
    flags = ("--num_inference_steps", "3", "--guidance_scale", "1.5", "--seed", "7", "--num_images", "2")
    commands.main(
        ["sample", str(exported), "--class_label", "no_tumor", *flags, "--output_dir", str(tmp_path / "out")]
    )
    text = Image.open(tmp_path / "out" / "no_tumor-00001.png").text
    assert text["synthetic"].startswith("yes")
    assert text["model"] == "exported"
    assert text["revision"] == f"sha256:{hashlib.sha256((exported / WEIGHTS).read_bytes()).hexdigest()}"
    assert (text["seed"], text["class"], text["guidance_scale"]) == ("8", "no_tumor", "1.5")
    assert (text["num_inference_steps"], text["scheduler"]) == ("3", "DDPMScheduler")
    assert str(tmp_path) not in str(text)
