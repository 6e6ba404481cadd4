"""Several channels and a condition are measured: each channel as one alone would be, all together, and by what was given."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import shorten, tiny, train_alone
from huggingface_hub import ModelCard
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from PIL import Image

from mri_ddpm import commands
from mri_ddpm.data import load_scans
from mri_ddpm.data.phantom import CLASS_NAMES, LABELS
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import two_sample
from mri_ddpm.evaluation.classifier import predict, train_classifier
from mri_ddpm.evaluation.during_training import is_evaluation
from mri_ddpm.evaluation.evaluate import evaluate, evaluate_images
from mri_ddpm.evaluation.fidelity import MOST_DECIBELS, another, fidelity
from mri_ddpm.evaluation.memorisation import CopyDetector, audit
from mri_ddpm.evaluation.quality import kid
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.evaluation.two_sample import mirror_and_move, two_sample_accuracy
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import read_json_lines
from mri_ddpm.hub import export_repository
from mri_ddpm.runs import load_record
from mri_ddpm.sampling import SamplingOptions

OPTIONS = SamplingOptions("dpmsolver++", num_inference_steps=3)
METRICS = (
    "wavelet_kid",
    "kid",
    "two_sample_accuracy",
    "fidelity",
    "likelihood",
    "usefulness",
    "memorisation",
)


def pictures(count: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Noise with some structure, ``(N, C, 16, 16)`` in [0, 1]."""
    coarse = np.random.default_rng(seed).random((count, channels, 4, 4), dtype=np.float32)
    return coarse.repeat(4, 2).repeat(4, 3)


# Fidelity


def test_fidelity_by_hand():
    scans, labels = pictures(40), np.arange(40) % 3
    noisy = (scans + 0.1 * np.random.default_rng(1).standard_normal(scans.shape)).astype(np.float32)
    found = fidelity(noisy, scans, labels)
    own = -10 * np.log10(np.square(noisy - scans).mean((1, 2, 3), dtype=np.float64))
    others = -10 * np.log10(np.square(noisy[another(labels)] - scans).mean((1, 2, 3), dtype=np.float64))
    np.testing.assert_allclose(found["psnr"]["value"], own.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["psnr"]["of_others"]["value"], others.mean(), rtol=1e-5)
    gain = own - others
    np.testing.assert_allclose(found["psnr"]["gain"]["value"], gain.mean(), rtol=1e-5)
    spread = 1.96 * gain.std() / 40**0.5  # of a mean
    np.testing.assert_allclose(
        found["psnr"]["gain"]["interval"], gain.mean() + [-spread, spread], atol=spread / 5
    )
    assert found["psnr"]["n"] == 40
    same = fidelity(scans, scans, labels)
    assert same["ssim"]["value"] == pytest.approx(1)
    assert same["psnr"]["value"] == pytest.approx(MOST_DECIBELS)  # and no infinity


def test_samples_that_ignore_their_condition_gain_nothing():
    """Of 30 intervals 28.5 are promised to hold the true gain, 0."""
    held = 0
    for seed in range(30):
        samples, scans = pictures(50, seed=2 * seed), pictures(50, seed=2 * seed + 1)
        low, high = fidelity(samples, scans, np.arange(50) % 2)["psnr"]["gain"]["interval"]
        held += low < 0 < high
    assert held >= 25


def test_the_other_is_another_of_the_class():
    labels = np.random.default_rng(0).integers(0, 4, 100)
    other = another(labels)
    np.testing.assert_array_equal(np.sort(other), range(100))
    assert (other != np.arange(100)).all()
    assert (labels[other] != labels).sum() <= 4


def test_dice_by_hand_leaves_out_masks_that_show_nothing():
    rng = np.random.default_rng(0)
    samples, scans = ((rng.random((30, 2, 16, 16)) < 0.3).astype(np.float32) for _ in range(2))
    samples[:12, 1], scans[:12, 1], scans[:25, 0], samples[:25, 0] = 0, 0, 0, 0
    found = fidelity(samples, scans, np.zeros(30, int), ("a", "b"))
    assert found.keys() == {"dice_b"}  # only 5 have the other
    other = samples[another(np.zeros(30, int))]
    dice = [
        2 * np.sum(a[1] * b[1]) / np.sum(a[1] + b[1]) for a, b in zip(samples[12:], scans[12:], strict=True)
    ]
    assert found["dice_b"]["n"] == 18
    np.testing.assert_allclose(found["dice_b"]["value"], np.mean(dice), rtol=1e-6)
    dice = [
        2 * np.sum(a[1] * b[1]) / np.sum(a[1] + b[1]) for a, b in zip(other[12:], scans[12:], strict=True)
    ]
    np.testing.assert_allclose(found["dice_b"]["of_others"]["value"], np.mean(dice), rtol=1e-6)


# Classifiers of several channels


def test_all_channels_are_mirrored_and_moved_alike():
    images = torch.from_numpy(pictures(20)).expand(-1, 3, -1, -1)
    moved = mirror_and_move(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 0], moved[:, 2])
    one = mirror_and_move(images[:, :1], torch.Generator().manual_seed(0))
    assert torch.equal(moved[:, 1:2], one)


@pytest.mark.slow
def test_channels_that_do_not_fit_one_another_are_told_by_all_together(monkeypatch):
    """Each channel is as it should be, but the second belongs to another head."""
    monkeypatch.setattr(two_sample, "STEPS", 150)
    sets = [np.concatenate([x, 1 - x], axis=1) for x in (pictures(n, seed=n) for n in (300, 60, 100))]
    sets[2][:, 1] = np.roll(sets[2][:, 1], 1, axis=0)
    assert two_sample_accuracy(*(x[:, 1:] for x in sets)).value < 0.65
    assert two_sample_accuracy(*sets).low > 0.7


@pytest.mark.slow
def test_a_classifier_sees_all_channels():
    """The class is whether both channels are the same, which neither shows alone."""
    sets = []
    for n in (300, 100):
        images, labels = pictures(n, channels=2, seed=n), np.arange(n) % 2
        images[labels == 1, 1] = images[labels == 1, 0]
        sets.append((images, labels))
    model = train_classifier(*sets[0], 2, seed=0, steps=100)
    assert (predict(model, sets[1][0]) == sets[1][1]).mean() > 0.85


# A real run of two contrasts and a mask, given a third contrast


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("by_channel")
    flags = {"channels": ["t1", "t2", "seg"], "condition_on": ["flair"], "cache_dir": str(folder / "cache")}
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        run = train_alone(
            tiny(folder / "run", **flags, phantom_images=240, max_train_steps=4, lr_warmup_steps=1)
        )
        asked = {"metrics": METRICS, "num_images": 100, "options": OPTIONS}
        evaluate(str(run), run / "evaluation", cache_dir=flags["cache_dir"], **asked)
    return run


@pytest.fixture(scope="module")
def metrics(evaluated) -> dict:
    return json.loads((evaluated / "evaluation" / "metrics.json").read_text())


@pytest.fixture(scope="module")
def real(evaluated):
    return load_real_scans(load_record(str(evaluated)), {}, 16)


def drawn(evaluated: Path, channel: str, folder: str = "samples") -> np.ndarray:
    """The files of a channel, in order of classes and numbers, ``(N, 1, 16, 16)``."""
    files = sorted((evaluated / "evaluation" / folder).glob(f"*-{channel}.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])[:, None]


def unit(images: np.ndarray) -> np.ndarray:
    return (images / 255).astype(np.float32)


@pytest.mark.slow
def test_each_contrast_is_measured_as_one_alone_would_be(evaluated, metrics, real):
    assert metrics["channels"].keys() == {"t1", "t2", "seg"}
    assert "wavelet_kid" not in metrics["quality"]
    for place, name in enumerate(("t1", "t2")):
        found = metrics["channels"][name]
        training, validation = (
            np.asarray(real.of(name).__getattribute__(part)[0]) for part in ("training", "validation")
        )
        planes = (
            real.scans["training"].batch(range(len(training)))["pixel_values"][:, place : place + 1].numpy()
        )
        np.testing.assert_allclose(training, planes, atol=0.5 / 255 + 1e-6)
        images, wavelets = unit(drawn(evaluated, name)), WaveletFeatures.fit(training)
        expected = kid(wavelets(training), wavelets(images)).as_dict()
        assert found["quality"]["wavelet_kid"]["value"] == pytest.approx(expected["value"], rel=1e-4)
        expected = kid(wavelets(training), wavelets(validation)).value
        assert found["quality"]["wavelet_kid"]["real"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
        alone = audit(CopyDetector.fit(training, validation), images)["pixels"]
        for key, numbers in alone.items():
            got = found["memorisation"]["pixels"][key]
            value = numbers.get("share", numbers)["value"]
            assert got.get("share", got)["value"] == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert "classes, 108 of 216 training scans" in found["extractor"]
    assert metrics["channels"]["seg"].keys() == {"label_shares", "fidelity"}
    assert metrics["quality"].keys() == {"two_sample_accuracy"}
    assert (
        metrics["memorisation"]["joint"]["images"] == metrics["memorisation"]["copies"]["share"]["n"] == 100
    )
    assert metrics["bits_per_dimension"]["validation"]["n"] > 0


@pytest.mark.slow
def test_of_a_mask_the_share_of_each_label_is_measured(evaluated, metrics, real):
    found, masks = metrics["channels"]["seg"]["label_shares"], drawn(evaluated, "seg")
    assert tuple(found) == LABELS
    planes = real.scans["validation"].batch(range(len(real.validation[1])))["pixel_values"][:, 2:].numpy()
    for number, label in enumerate(LABELS, 1):
        shares = (masks == number).mean((1, 2, 3))
        assert found[label]["synthetic"]["value"] == pytest.approx(shares.mean())
        assert (
            found[label]["synthetic"]["interval"][0]
            < shares.mean()
            < found[label]["synthetic"]["interval"][1]
        )
        assert found[label]["validation"]["value"] == pytest.approx(planes[:, number - 1].mean(), rel=1e-5)
    assert found["brain"]["training"]["n"] == 216


@pytest.mark.slow
def test_samples_that_are_held_against_validation_scans_were_given_what_belongs_to_these(
    evaluated, metrics, real
):
    scans, labels = real.scans["validation"], real.validation[1]
    batch = scans.batch(range(len(labels)))
    order = np.lexsort([np.arange(len(labels)), [CLASS_NAMES[label] for label in labels]])  # of the files
    for place, name in enumerate(("t1", "t2")):
        images = unit(drawn(evaluated, name, "samples_of_validation")).astype(np.float64)
        truth = np.round(batch["pixel_values"][order, place : place + 1].numpy() * 255) / 255
        psnr = -10 * np.log10(np.square(images - truth).mean((1, 2, 3)))
        assert metrics["channels"][name]["fidelity"]["psnr"]["value"] == pytest.approx(psnr.mean(), rel=1e-4)
        assert metrics["channels"][name]["fidelity"]["psnr"]["n"] == len(labels) == 24
    assert metrics["channels"]["seg"]["fidelity"].keys() <= {f"dice_{label}" for label in LABELS}
    pipeline = MRIDDPMPipeline.from_pretrained(evaluated / "pipeline")
    OPTIONS.prepare(pipeline, 1, None)
    for row in (0, 23):
        again = pipeline(
            int(labels[row]), num_inference_steps=3, generator=torch.Generator().manual_seed(row),
            condition={"flair": batch["condition"][row, 0].numpy()},
        ).channels["t2"][0]  # fmt: skip
        file = (
            evaluated
            / "evaluation"
            / "samples_of_validation"
            / f"{CLASS_NAMES[labels[row]]}-{row:05d}-t2.png"
        )
        difference = np.abs(np.asarray(again).astype(int) - np.asarray(Image.open(file)))
        assert difference.max() <= 1


@pytest.mark.slow
def test_the_report_has_a_grid_a_channel(evaluated, metrics):
    folder = evaluated / "evaluation"
    html = (folder / "report.html").read_text()
    for name in ("t1", "t2", "seg"):
        assert f"<h3>{name}</h3>" in html
        assert Image.open(folder / "channels" / name / "side_by_side.png").width > 200
    # Of a contrast five pictures, of a mask two, of all together the pairs and what the network has learned
    assert html.count("data:image/png;base64,") == 2 * 5 + 2 + 5
    assert "whether they fit one another" in html
    assert "Dice of brain" in html
    questions = [verdict["question"] for verdict in metrics["verdicts"]]
    assert questions == [
        "Do they look like real scans (t1)?", "Do they look like real scans (t2)?",
        "Do they look like real scans (all contrasts together)?", "Do they follow their condition?",
        "Do they help a model?", "Do they copy patients?",
    ]  # fmt: skip
    assert "PSNR in dB of t1" in metrics["verdicts"][3]["answer"]


@pytest.mark.slow
def test_images_of_several_channels_are_measured_one_at_a_time(evaluated, tmp_path, monkeypatch):
    shorten(monkeypatch)
    several = shutil.copytree(evaluated / "evaluation" / "samples", tmp_path / "several")
    scans = tmp_path / "scans"
    for file in several.glob("*-t1.png"):
        (scans / file.name.rpartition("-")[0][:-6]).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, scans / file.name.rpartition("-")[0][:-6])
    with pytest.raises(InputError, match="holds images of several channels .t1, t2.; give a folder of each"):
        evaluate_images(several, tmp_path / "eval", train_data_dir=str(scans))
    for file in [*several.glob("*-t2.png"), *several.glob("*-seg.png")]:
        file.unlink()
    found = evaluate_images(
        several,
        tmp_path / "eval",
        metrics=["detail_ratio"],
        train_data_dir=str(scans),
        cache_dir=str(tmp_path),
    )
    assert found["images"]["synthetic"]["total"] == 100
    assert found["quality"]["detail_ratio"]["value"] > 0


@pytest.mark.slow
def test_of_masks_alone_is_measured_what_can_be(tmp_path, capsys):
    run = train_alone(tiny(tmp_path / "run", channels=["seg"], max_train_steps=2, lr_warmup_steps=1))
    asked = {"metrics": ("wavelet_kid", "memorisation"), "num_images": 100, "options": OPTIONS}
    found = evaluate(str(run), tmp_path / "eval", **asked)
    assert found["channels"]["seg"].keys() == {"label_shares"}
    assert "the model draws masks alone" in found["not_measured"]["memorisation"]
    with pytest.raises(SystemExit):
        commands.main(["sample", str(run), "--reject_copies", "--output_dir", str(tmp_path / "out")])
    assert "--reject_copies compares contrasts, and this model draws seg alone" in capsys.readouterr().err


@pytest.mark.slow
def test_the_card_has_the_numbers_of_each_channel(evaluated, metrics, tmp_path):
    export_repository(evaluated, tmp_path / "exported", "me/tiny")
    card = ModelCard.load(tmp_path / "exported" / "README.md")
    for name in ("t1", "t2"):
        value = metrics["channels"][name]["quality"]["wavelet_kid"]["value"]
        assert f"| wavelet_kid of {name} | {value:.4g} |" in card.text
        assert f"| psnr of {name} | " in card.text
    assert "ot measured" not in card.text
    assert "kid of t2" in {result.metric_type for result in card.data.eval_results}


@pytest.mark.slow
def test_epochs_are_evaluated_by_channel_and_with_conditions(tmp_path, monkeypatch):
    shorten(monkeypatch)
    flags = {"channels": ["t1", "t2", "seg"], "condition_on": ["flair"], "condition_dropout_prob": 0.0}
    flags |= {
        "phantom_images": 240,
        "train_batch_size": 216,
        "num_train_epochs": 2,
        "evaluate_epochs": [1, 2],
    }
    flags |= {"num_inference_steps": 3, "evaluate_images": 100, "lr_warmup_steps": 1}
    run = train_alone(tiny(tmp_path / "run", **flags, cache_dir=str(tmp_path / "cache")))
    rows = [row for row in read_json_lines(run / "metrics.jsonl") if is_evaluation(row)]
    assert [row["epoch"] for row in rows] == [1, 2]
    values = {f"{name}_{channel}" for name in ("wavelet_kid", "kid") for channel in ("t1", "t2")}
    values |= {"flagged_share"}
    intervals = {f"{name}_interval" for name in values}
    assert rows[0].keys() == {"step", "epoch", "detail_ratio_t1", "detail_ratio_t2", *values, *intervals}
    assert Image.open(run / "evaluation.png").width > 400


def test_fidelity_takes_a_condition(unbroken, tmp_path):
    with pytest.raises(InputError, match="--metrics fidelity is to a condition, and the model has none"):
        evaluate(str(unbroken), tmp_path / "eval", metrics=("fidelity",))
    with pytest.raises(InputError, match="--metrics fidelity takes a network"):
        evaluate_images(tmp_path, tmp_path / "eval", metrics=("fidelity",))


@pytest.mark.slow
def test_sample_leaves_out_copies_of_several_channels(tmp_path, capsys, monkeypatch):
    """The model samples its own "training scans" first, so that sampling them again from the same seeds is copying."""
    shorten(monkeypatch)
    run = train_alone(tiny(tmp_path / "run", channels=["t1", "t2"], max_train_steps=2, lr_warmup_steps=1))
    flags = ["--num_inference_steps", "4", "--batch_size", "50"]
    commands.main(
        ["sample", str(run), *flags, "--num_images", "120", "--output_dir", str(tmp_path / "drawn")]
    )
    for path in list((tmp_path / "drawn").glob("*.png")):
        class_name, number, channel = path.stem.rsplit("-", 2)
        folder = tmp_path / "scans" / class_name
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / f"{number}_{channel}.png")
    scans = load_scans(
        train_data_dir=str(tmp_path / "scans"),
        resolution=16,
        validation_share=0.25,
        channels=["t1", "t2"],
        keep_repeats=True,
    )
    (run / "manifest.json").write_text(json.dumps(scans.manifest))
    learned = {
        Path(file["path"]).stem.partition("_")[0]
        for file in scans.manifest["files"]
        if file["split"] == "train"
    }
    rejecting = ["--num_images", "24", "--reject_copies", "--train_data_dir", str(tmp_path / "scans")]
    capsys.readouterr()
    commands.main(["sample", str(run), *flags, *rejecting, "--output_dir", str(tmp_path / "kept")])
    kept = {path.stem.rsplit("-", 2)[1] for path in (tmp_path / "kept").glob("*-t2.png")}
    assert kept == {path.stem.rsplit("-", 2)[1] for path in (tmp_path / "kept").glob("*-t1.png")}
    assert f"{24 - len(kept)} of 24 images came too close to a training scan" in capsys.readouterr().out
    assert not kept & learned
    assert len(kept) >= 3
