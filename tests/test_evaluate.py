"""The whole evaluation of a real tiny run on the phantom: numbers, report, refusals, and copies left out of samples."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import datasets
import numpy as np
import pytest
from conftest import shorten, tiny, train_alone
from huggingface_hub import ModelCard
from nibabel import Nifti1Image
from PIL import Image

from mri_ddpm import commands
from mri_ddpm.data import PHANTOM_CLASS_NAMES, draw_phantoms, load_phantoms, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import parts
from mri_ddpm.evaluation.evaluate import evaluate, evaluate_images
from mri_ddpm.evaluation.pictures import PLOTS
from mri_ddpm.evaluation.report import verdicts, write_report
from mri_ddpm.evaluation.subject import class_counts, load_real_scans, refuse_other_scans
from mri_ddpm.files import read_json_lines
from mri_ddpm.hub import export_repository, push_run
from mri_ddpm.runs import load_record
from mri_ddpm.sampling import SamplingOptions
from mri_ddpm.sampling.folder import SampleFolder

NAMES = tuple(PHANTOM_CLASS_NAMES)
OPTIONS = SamplingOptions("dpmsolver++", num_inference_steps=4)
FAST = {"num_images": 120, "options": OPTIONS}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run of ``tiny`` with enough phantoms for an audit, evaluated at both its epochs."""
    changes = {"phantom_images": 320, "max_train_steps": 36, "train_batch_size": 16, "evaluate_images": 100}
    changes |= {"validation_steps": 100, "checkpointing_steps": 100}
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        folder = tmp_path_factory.mktemp("evaluated") / "run"
        return train_alone(
            tiny(folder, evaluate_epochs=[1, 2], cache_dir=str(folder.parent / "cache"), **changes)
        )


@pytest.fixture(scope="module")
def evaluated(run) -> Path:
    """The run, evaluated into its ``evaluation/``."""
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        evaluate(str(run), run / "evaluation", cache_dir=str(run.parent / "cache"), **FAST)
    return run


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    shorten(monkeypatch)


def metrics_of(run: Path) -> dict:
    return json.loads((run / "evaluation" / "metrics.json").read_text())


def test_every_number_has_an_interval_and_a_count(evaluated):
    metrics = metrics_of(evaluated)

    def estimates(value):
        if isinstance(value, dict) and "value" in value:
            yield value
        elif isinstance(value, (dict, list)):
            for entry in value.values() if isinstance(value, dict) else value:
                yield from estimates(entry)

    found = list(estimates(metrics))
    assert len(found) > 60
    for estimate in found:
        assert estimate["interval"][0] <= estimate["value"] <= estimate["interval"][1]
        assert estimate["n"] > 0


def test_the_report_answers_the_three_questions(evaluated):
    metrics = metrics_of(evaluated)
    assert [verdict["question"] for verdict in metrics["verdicts"]] == [
        "Do they look like real scans?", "Do they help a model?", "Do they copy patients?",
    ]  # fmt: skip
    assert set(metrics["quality"]) == {
        "two_sample_accuracy", "wavelet_kid", "wavelet_frechet_distance", "detail_ratio",
        "kid", "frechet_distance", "precision", "recall", "density", "coverage", "ms_ssim",
    }  # fmt: skip
    # 36 steps make no heads
    assert metrics["verdicts"][0]["tone"] == "bad"
    assert metrics["quality"]["wavelet_kid"]["interval"][0] > 1 > metrics["quality"]["wavelet_kid"]["real"]
    assert metrics["quality"]["precision"]["value"] < metrics["quality"]["precision"]["real"]
    assert set(metrics["quality_by_class"]) == set(NAMES)
    assert set(metrics["loss_by_timestep_quartile"]) == {"ema", "raw"}
    assert set(metrics["usefulness"]["validation"]) == {
        "n",
        "synthetic_share",
        "real",
        "synthetic",
        "real_and_synthetic",
    }
    assert metrics["images"]["synthetic"]["total"] == 120
    html = (evaluated / "evaluation" / "report.html").read_text()
    shown = PLOTS.keys() - {"fidelity.png"}  # which takes a condition
    assert html.count("data:image/png;base64,") == len(shown)
    assert "http" not in html.replace("http-equiv", "")
    assert "Absence of evidence is not privacy" in html
    for name in shown:
        assert Image.open(evaluated / "evaluation" / name).width > 200


def test_the_report_says_what_makes_the_audit_weaker(evaluated, tmp_path):
    metrics = metrics_of(evaluated)
    write_report(metrics, tmp_path)
    plain = (tmp_path / "report.html").read_text()
    metrics["memorisation"] |= {"validation_copies": 2, "not_sought": ["parts"]}
    write_report(metrics, tmp_path)
    found = (tmp_path / "report.html").read_text()
    for words in ("2 of the 32 validation scans are surely copies", "Not sought: parts."):
        assert words in found
        assert words not in plain


def test_an_evaluation_cut_short_goes_on_with_the_images_it_has(evaluated, tmp_path, monkeypatch):
    again = {"output_dir": tmp_path / "evaluation", "cache_dir": str(evaluated.parent / "cache")}
    again |= {"metrics": ["kid"], "num_images": 120}
    options, saved, save = replace(OPTIONS, batch_size=16), [], SampleFolder.save

    class Stopped(Exception):
        pass

    def count(folder, image, file, text):
        save(folder, image, file, text)
        saved.append(file)
        if len(saved) == 40:
            raise Stopped

    monkeypatch.setattr(SampleFolder, "save", count)
    with pytest.raises(Stopped):
        evaluate(str(evaluated), **again, options=options)
    with pytest.raises(InputError, match="holds images of seed 0, not 5"):
        evaluate(str(evaluated), **again, options=replace(options, seed=5))
    evaluate(str(evaluated), **again, options=options)
    assert len(saved) == len(set(saved)) == 120
    metrics = evaluate(str(evaluated), **again, options=options)  # of the images that are there
    assert len(saved) == 120
    assert metrics["settings"]["scheduler"] == "DPMSolverMultistepScheduler"
    assert metrics["quality"]["kid"]["value"] == pytest.approx(
        metrics_of(evaluated)["quality"]["kid"]["value"], rel=0.01
    )
    assert not list((tmp_path / "evaluation").glob(".*"))
    html = (tmp_path / "evaluation" / "report.html").read_text()
    assert "<td>KID of the features</td>" in html
    assert "<td>MS-SSIM between pairs</td>" not in html  # which nobody asked for

    # More of the same images is added to what was measured of them
    more = evaluate(str(evaluated), **{**again, "metrics": ["ms_ssim", "memorisation"]}, options=options)
    assert set(more["quality"]) == {"kid", "ms_ssim"}
    assert more["quality"]["kid"] == metrics["quality"]["kid"]
    assert more["seconds"]["sampling"] == metrics["seconds"]["sampling"]
    parts = {name.split(" of ")[0] for name in more["not_measured"]}
    assert parts == {"kid", "ms_ssim", "likelihood", "usefulness"}  # the first two of small classes
    last = evaluate(str(evaluated), **{**again, "metrics": ["kid"]}, options=options)
    assert last["memorisation"] == more["memorisation"]
    assert last["verdicts"] == more["verdicts"]


def test_the_model_card_shows_it(evaluated, tmp_path):
    export_repository(evaluated, tmp_path / "exported", "me/tiny")
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    kid = metrics_of(evaluated)["quality"]["kid"]
    assert f"| kid | {kid['value']:.4g} |" in card.text
    assert "ot measured" not in card.text
    assert {result.metric_type for result in card.data.eval_results} >= {"kid", "frechet_distance", "loss"}
    assert not list((tmp_path / "exported").rglob("worst_pairs.png"))
    assert not list((tmp_path / "exported").rglob("*.npz"))


@pytest.mark.slow
def test_a_model_on_the_hub_is_evaluated_alike(hub, evaluated, tmp_path):
    push_run(evaluated, "me/tiny")
    asked = {
        "metrics": ["kid", "precision_recall", "likelihood"],
        "cache_dir": str(evaluated.parent / "cache"),
    }
    metrics = evaluate("me/tiny", tmp_path / "eval", **asked, **FAST)
    for name, entry in metrics["quality"].items():
        assert entry == metrics_of(evaluated)["quality"][name]
    assert metrics["settings"]["revision"] == hub.repositories["me/tiny"].find("main").sha
    assert set(metrics["loss_by_timestep_quartile"]) == {"ema"}  # the raw weights stayed at home


def numbers(value: float, low: float, high: float, **more) -> dict:
    return {"value": value, "interval": [low, high], "n": 500, **more}


@pytest.mark.parametrize(
    ("taught", "kid", "gain", "share", "sure", "tones"),
    [
        ((0.51, 0.48, 0.54), (0.001, -0.01, 0.01), (0.03, 0.01, 0.05), (0.04, 0.02, 0.07), 0, ["good", "good", "good"]),
        ((0.51, 0.48, 0.54), (0.05, 0.03, 0.07), (0.01, -0.01, 0.03), (0.08, 0.04, 0.13), 0, ["bad", "open", "open"]),
        ((0.98, 0.97, 0.99), (0.001, -0.01, 0.01), (-0.04, -0.06, -0.01), (0.4, 0.3, 0.5), 0, ["bad", "bad", "bad"]),
        ((0.51, 0.48, 0.54), (0.001, -0.01, 0.01), (0.03, 0.01, 0.05), (0.04, 0.02, 0.07), 1, ["good", "good", "bad"]),
    ],
)  # fmt: skip
def test_a_verdict_says_no_more_than_its_interval(taught, kid, gain, share, sure, tones):
    told = {"wavelet_kid": numbers(0.05, 0.03, 0.07, real=0.002)}
    metrics = {
        "quality": {
            "wavelet_kid": numbers(*kid, real=0.002),
            "two_sample_accuracy": numbers(*taught, real=0.5),
            "kid": numbers(0.5, 0.4, 0.6, real=0.002),  # of brightness perhaps, so nothing goes by it
        },
        "quality_by_class": {"no_tumor": told, "pituitary_tumor": {}},
        "usefulness": {"validation": {"real_and_synthetic": {"gain": {"accuracy": numbers(*gain)}}}},
        "memorisation": {
            "copies": {
                "share": numbers(*share),
                "expected": 0.05,
                "distinct_training_images": 3,
                "sure": sure,
            },
        },
    }
    found = verdicts(metrics)
    assert [verdict["tone"] for verdict in found] == tones
    assert ("wavelets tell no_tumor apart" in found[0]["answer"]) == (tones[0] == "bad")
    del metrics["quality"]["two_sample_accuracy"]
    assert verdicts(metrics)[0]["tone"] == ("bad" if kid[1] > 0 else "open")
    metrics["quality"] = {"wavelet_kid": {**numbers(*kid), "real": None}}
    assert "with too few validation scans to measure theirs" in verdicts(metrics)[0]["answer"]
    metrics["quality"] = {}
    assert verdicts(metrics)[0]["tone"] == "open"
    metrics["memorisation"]["copies"]["distinct_training_images"] = 0
    assert "%), where 5%" in verdicts(metrics)[-1]["answer"]


@pytest.mark.slow
def test_a_model_without_classes_is_compared_without_them(tmp_path):
    """Its scans have classes, its images have none: nothing by class may be made up."""
    changes = {"phantom_images": 320, "max_train_steps": 4, "class_conditional": False, "validation_steps": 4}
    run = train_alone(tiny(tmp_path / "run", **changes))
    asked = {"metrics": ["kid", "usefulness"], "cache_dir": str(tmp_path / "cache")}
    metrics = evaluate(str(run), tmp_path / "eval", **asked, **FAST)
    assert metrics["quality"]["kid"]["n"] == 120
    assert metrics["quality_by_class"] == {}
    assert "usefulness" not in metrics
    assert "the model samples without classes" in metrics["not_measured"]["usefulness"]
    assert "the model samples without classes" in (tmp_path / "eval" / "report.html").read_text()


@pytest.mark.slow
def test_of_a_small_set_is_measured_what_can_be(tmp_path, capsys):
    """45 scans, 5 of them for validation: too few for an audit, for which nothing else may be lost."""
    run = train_alone(
        tiny(tmp_path / "run", phantom_images=45, max_train_steps=6, evaluate_epochs=[1], evaluate_images=100,
             cache_dir=str(tmp_path / "cache"))
    )  # fmt: skip
    assert "warning: --evaluate_epochs leaves out the search for copies" in capsys.readouterr().out
    [row] = [row for row in read_json_lines(run / "metrics.jsonl") if "kid" in row]
    assert row["epoch"] == 1
    assert "flagged_share" not in row
    assert row["wavelet_kid_interval"][0] > 0
    assert Image.open(run / "evaluation.png").width > 400
    commands.main(
        ["evaluate", str(run), "--scheduler", "ddim", "--num_inference_steps", "2", "--num_images", "100"]
    )
    printed = capsys.readouterr().out
    assert "Do they copy patients? Not measured: " in printed
    assert "50 or more" not in printed
    metrics = metrics_of(run)
    assert metrics["quality"]["wavelet_kid"]["value"] > 1
    assert metrics["bits_per_dimension"]["validation"]
    assert set(metrics["not_measured"]) >= {"memorisation", "usefulness", "two_sample_accuracy"}
    html = (run / "evaluation" / "report.html").read_text()
    assert metrics["not_measured"]["memorisation"] in html


def test_what_was_measured_is_on_disk_before_the_next_part(evaluated, tmp_path, monkeypatch):
    class Lost(Exception):
        pass

    def lose(*_, **__):
        raise Lost

    monkeypatch.setattr(parts, "audit", lose)
    asked = {"metrics": ["wavelet_kid", "memorisation"], "cache_dir": str(evaluated.parent / "cache")}
    shutil.copytree(evaluated / "evaluation" / "samples", tmp_path / "eval" / "samples")
    with pytest.raises(Lost):
        evaluate(str(evaluated), tmp_path / "eval", **asked, **FAST)
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert metrics["quality"]["wavelet_kid"]["n"] > 0
    assert "Not measured yet." in (tmp_path / "eval" / "report.html").read_text()


# During training


def test_epochs_are_evaluated_during_training(run, unbroken):
    rows = [row for row in read_json_lines(run / "metrics.jsonl") if "kid" in row]
    assert [row["epoch"] for row in rows] == [1, 2]
    for row in rows:
        for name in ("kid", "wavelet_kid"):
            assert row[f"{name}_interval"][0] <= row[name] <= row[f"{name}_interval"][1]
        assert (
            0
            <= row["flagged_share_interval"][0]
            <= row["flagged_share"]
            <= row["flagged_share_interval"][1]
            <= 1
        )
        assert row["detail_ratio"] > 0
    assert Image.open(run / "evaluation.png").width > 400
    assert Image.open(run / "loss.png").width > 400  # is not confused by the new rows


# Copies


def test_sample_leaves_copies_out_and_says_how_many(run, tmp_path, capsys):
    """The model draws its own "training scans" first, so that drawing them again from the same seeds is copying."""
    flags = ["--num_inference_steps", "4", "--batch_size", "50"]
    commands.main(
        ["sample", str(run), *flags, "--num_images", "120", "--output_dir", str(tmp_path / "drawn")]
    )
    for path in list((tmp_path / "drawn").glob("*.png")):
        folder = tmp_path / "scans" / path.name.rpartition("-")[0]
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
    scans = load_scans(
        train_data_dir=str(tmp_path / "scans"), resolution=16, validation_share=0.25, keep_repeats=True
    )
    copycat = shutil.copytree(run, tmp_path / "copycat")
    (copycat / "manifest.json").write_text(json.dumps(scans.manifest))
    learned = {Path(f["path"]).name for f in scans.manifest["files"] if f["split"] == "train"}

    rejecting = ["--num_images", "24", "--reject_copies", "--train_data_dir", str(tmp_path / "scans")]
    commands.main(["sample", str(copycat), *flags, *rejecting, "--output_dir", str(tmp_path / "kept")])
    kept = {path.name for path in (tmp_path / "kept").glob("*.png")}
    assert f"{24 - len(kept)} of 24 images came too close to a training scan" in capsys.readouterr().out
    assert not kept & learned  # all that it had learned were left out
    assert len(kept) >= 3  # and most of the quarter that it had not, kept

    if find_spec("pydicom"):
        dicom = ["--format", "dicom", "--output_dir", str(tmp_path / "dicom")]
        commands.main(["sample", str(copycat), *flags, *rejecting, *dicom])
        assert {f"{path.stem}.png" for path in (tmp_path / "dicom").glob("*.dcm")} == kept


# Scans of a data set of `datasets`


def test_a_model_of_a_data_set_is_accounted_for_measured_and_checked(tmp_path, capsys):
    """Its columns are in the run's papers, its place is not: of a folder no path leaves the machine."""
    images, labels = draw_phantoms(80, 16, seed=3)
    pictures = [Image.fromarray((image * 255).round().astype(np.uint8)) for image in images]
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict(
        {"scan": pictures, "kind": [NAMES[label] for label in labels]},
        features=datasets.Features({"scan": datasets.Image(), "kind": datasets.Value("string")}),
    ).save_to_disk(saved)
    there = ["--dataset_name", str(saved), "--image_column", "scan", "--label_column", "kind"]
    commands.main(["data", *there, "--output", str(tmp_path / "manifest.json")])
    cache = {"cache_dir": str(tmp_path / "cache"), "validation_share": 0.3}
    columns = {"dataset_name": str(saved), "image_column": "scan", "label_column": "kind"}
    run = train_alone(tiny(tmp_path / "run", **columns, **cache, max_train_steps=4))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        commands.main(["evaluate", str(run), "--num_images", "100"])
    assert "by --train_data_dir, or the data set by --dataset_name" in capsys.readouterr().err
    real = load_real_scans(load_record(str(run)), {"dataset_name": str(saved)}, 16)
    assert real.class_names == NAMES
    assert len(real.training[1]) + len(real.validation[1]) == 80
    flags = ["--reject_copies", "--num_images", "4", "--num_inference_steps", "2"]
    commands.main(["sample", str(run), *flags, *there, "--output_dir", str(tmp_path / "drawn")])
    assert "of 4 images came too close" in capsys.readouterr().out


# Anybody's images


@pytest.fixture(scope="module")
def scans_and_images(tmp_path_factory) -> tuple[Path, Path]:
    """100 phantoms as scans, and 60 others as the images of a perfect generator, in class folders."""
    folder = tmp_path_factory.mktemp("anybodys")
    for name, count, seed in (("scans", 240, 0), ("images", 60, 1)):
        for i, (image, label) in enumerate(zip(*draw_phantoms(count, 16, seed), strict=True)):
            where = folder / name / NAMES[label]
            where.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255).round().astype(np.uint8)).save(where / f"{i:03d}.png")
    return folder / "scans", folder / "images"


def test_images_of_anybody_are_measured(scans_and_images, tmp_path, capsys):
    scans, images = scans_and_images
    out = ["--train_data_dir", str(scans), "--output_dir", str(tmp_path / "eval")]
    chosen = ["wavelet_kid", "detail_ratio", "memorisation", "likelihood"]
    commands.main(["evaluate", "--images", str(images), *out, "--metrics", *chosen])
    assert "Do they copy patients?" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert set(metrics["quality"]) == {"wavelet_kid", "detail_ratio"}
    assert metrics["quality"]["wavelet_kid"]["interval"][0] < 0.1  # as good as scans
    assert metrics["quality_by_class"].keys() == set(NAMES)
    assert metrics["memorisation"]["images"] == 60
    assert metrics["not_measured"]["usefulness"] == "it was not asked for."
    assert metrics["not_measured"]["likelihood"] == "there is no network, but images alone."
    html = (tmp_path / "eval" / "report.html").read_text()
    assert "Evaluation of images" in html
    assert "revision" not in html
    # Copies of scans are known for what they are, flat and without classes too
    flat = tmp_path / "copies"
    flat.mkdir()
    for file in sorted(scans.rglob("*.png"))[:40]:
        shutil.copy(file, flat / f"{file.parent.name}-{file.name}")
    shutil.copy(file, flat / "head_mask.png")
    found = evaluate_images(flat, tmp_path / "eval2", metrics=["memorisation"], train_data_dir=str(scans))
    assert found["memorisation"]["copies"]["sure"] > 20
    assert found["images"]["synthetic"] == {"total": 40}
    assert "left out: 1 mask, by name (head_mask.png)" in capsys.readouterr().out


def test_refuses_images_that_cannot_be_measured(scans_and_images, run, tmp_path, capsys):
    scans, images = scans_and_images

    def message(*args) -> str:
        with pytest.raises(SystemExit) as end:
            commands.main(["evaluate", *map(str, args)])
        assert end.value.code == 2
        return capsys.readouterr().err.split("error: ")[1]

    there = ("--train_data_dir", scans, "--output_dir", tmp_path / "eval")
    assert "either a PIPELINE to sample with, or --images" in message(*there)
    assert "either a PIPELINE to sample with, or --images" in message(run, "--images", images, *there)
    assert "--images is given without --output_dir" in message("--images", images, "--train_data_dir", scans)
    assert "--metrics fid is unknown; take some of wavelet_kid" in message(
        "--images", images, *there, "--metrics", "fid"
    )
    assert "takes a network" in message("--images", images, *there, "--metrics", "likelihood")
    for flag, value in (("--num_images", 7), ("--guidance_scale", 3), ("--scheduler", "euler")):
        assert f"{flag} is for a model that samples" in message("--images", images, *there, flag, value)
    assert "No scans were given" in message("--images", images, "--output_dir", tmp_path / "eval")
    other = shutil.copytree(images, tmp_path / "other")
    (other / NAMES[0]).rename(other / "cyst")
    assert "has images of class cyst, which is none of the scans' classes" in message(
        "--images", other, *there
    )
    Image.new("L", (20, 16)).save(other / "cyst" / "0.png")
    assert "cyst/0.png has 20 x 16 pixels; give square images of one size" in message(
        "--images", other, *there
    )
    (other / "cyst" / "0.png").write_bytes(b"no image")
    assert "cyst/0.png" in message("--images", other, *there)
    volume = tmp_path / "volume"
    volume.mkdir()
    Nifti1Image(np.ones((4, 4, 4)), np.eye(4)).to_filename(volume / "v.nii")
    assert "v.nii is a volume; give its slices, one a file" in message("--images", volume, *there)
    assert not (tmp_path / "eval").exists()


# Refusals


def test_refuses_what_cannot_be_evaluated(run, tmp_path, capsys):
    def message(*args) -> str:
        with pytest.raises(SystemExit) as end:
            commands.main(["evaluate", *map(str, args)])
        assert end.value.code == 2
        return capsys.readouterr().err.split("error: ")[1]

    out = ("--output_dir", tmp_path / "eval")
    assert "--num_images is 20; take 100 or more" in message(run, "--num_images", 20, *out)
    assert "there is no such folder" in message(tmp_path / "no" / "run", *out)
    assert "num_inference_steps is 500" in message(run, "--num_inference_steps", 500, *out)
    assert "--batch_size is 0" in message(run, "--batch_size", 0, *out)
    assert "--seed is -1" in message(run, "--seed", -1, *out)
    assert "is no run folder; check the name, or say by --output_dir" in message(
        run / "pipeline", "--num_images", 200
    )
    bare = shutil.copytree(run / "pipeline", tmp_path / "bare")
    assert "without the manifest of its training" in message(bare, *out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "is not an empty folder" in message(run, "--output_dir", tmp_path / "full")
    assert not (tmp_path / "eval").exists()


def test_refuses_scans_that_the_model_has_seen_or_that_are_not_its_own(run, tmp_path):
    def with_manifest(**changes) -> str:
        copy = shutil.copytree(run, tmp_path / f"run-{len(list(tmp_path.iterdir()))}")
        manifest = json.loads((copy / "manifest.json").read_text())
        (copy / "manifest.json").write_text(json.dumps({**manifest, **changes}))
        return str(copy)

    manifest = json.loads((run / "manifest.json").read_text())
    seen = [{**file, "split": "train"} for file in manifest["files"]]
    with pytest.raises(InputError, match="was trained on 32 of the scans that"):
        evaluate(with_manifest(files=seen), tmp_path / "eval", **FAST)
    other = [{**file, "sha256": "ab" * 32} for file in manifest["files"]]
    with pytest.raises(InputError, match="lacks 1 of the 1 scans that the model was trained on"):
        evaluate(with_manifest(files=other), tmp_path / "eval", **FAST)
    with pytest.raises(
        InputError, match="was trained on ward-7; give the folder of these scans by --train_data_dir"
    ):
        evaluate(with_manifest(source="ward-7"), tmp_path / "eval", **FAST)


def test_refuses_scans_in_other_classes_than_the_model_s():
    """As where folders of patients were classes when the model was trained."""
    found = load_phantoms(num_images=8, resolution=16).manifest
    trained = {**found, "class_names": ["sub-01", "sub-02"]}
    with pytest.raises(InputError) as caught:
        refuse_other_scans(trained, found)
    assert str(caught.value) == (
        "phantom has the classes glioma_tumor, meningioma_tumor, no_tumor, pituitary_tumor, and the model was trained on sub-01,"
        " sub-02; give the data set, and the --label_column, that it was trained on, or train anew."
    )
    refuse_other_scans(found, found)


def test_counts_are_shared_out_in_proportion():
    labels = np.repeat(np.arange(3), [50, 30, 21])
    counts = class_counts(labels, 3, 10)
    assert counts.tolist() == [5, 3, 2]
    assert class_counts(labels, 3, 101).tolist() == [50, 30, 21]
    assert class_counts(np.zeros(7, int), 1, 100).tolist() == [100]
