"""The classifier, its features, and what synthetic scans are good for."""

import numpy as np
import pytest
import torch
from conftest import phantom_images
from hub_server import Repository
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score, multiclass_recall

from mri_ddpm.data import PHANTOM_CLASS_NAMES
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import classifier, features
from mri_ddpm.evaluation.usefulness import compare, usefulness

NAMES = tuple(PHANTOM_CLASS_NAMES)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 30)


@pytest.fixture
def three_steps(monkeypatch):
    """Where it does not matter how well a classifier is trained."""
    monkeypatch.setattr(classifier, "STEPS", 3)


def phantoms(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return phantom_images(n, 24, seed), np.arange(n) % 4


def brightness_classes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that can be told apart at once: noise of four brightnesses in four corners."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 4
    images = 0.2 * generator.random((n, 1, 16, 16), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        image[0, 8 * (label // 2) :][:8] += 0.2 + 0.2 * label
    return images, labels


# Scores


def test_scores_are_those_of_torchmetrics():
    generator = np.random.default_rng(0)
    labels = generator.integers(4, size=200)
    predictions = np.where(generator.random((3, 200)) < 0.7, labels, generator.integers(4, size=(3, 200)))
    found = compare({"real": predictions}, labels, NAMES)["real"]
    p, y = torch.from_numpy(predictions.ravel()), torch.from_numpy(np.tile(labels, 3))
    assert found["accuracy"]["value"] == pytest.approx(float(multiclass_accuracy(p, y, 4, average="micro")))
    assert found["macro_f1"]["value"] == pytest.approx(float(multiclass_f1_score(p, y, 4, average="macro")))
    recalls = multiclass_recall(p, y, 4, average=None).tolist()
    assert [found["recall"][name]["value"] for name in NAMES] == pytest.approx(recalls)
    assert found["accuracy"]["n"] == 200


def test_a_class_that_is_not_tested_is_left_out():
    labels = np.array([0, 1, 1, 3] * 10)
    found = compare({"real": labels[None]}, labels, NAMES)["real"]
    assert list(found["recall"]) == [NAMES[0], NAMES[1], NAMES[3]]
    assert found["macro_f1"]["value"] == 1


def test_intervals_of_accuracy_cover_the_truth():
    """One seed of answers that are right with probability 0.8: the interval holds 0.8 about 95 times in 100."""
    generator, covered = np.random.default_rng(1), 0
    for _ in range(100):
        labels = generator.integers(4, size=150)
        right = generator.random((1, 150)) < 0.8
        low, high = compare({"real": np.where(right, labels, (labels + 1) % 4)}, labels, NAMES)["real"][
            "accuracy"
        ]["interval"]
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 100


def test_a_paired_gain_is_sharper_than_its_parts():
    generator = np.random.default_rng(2)
    labels = generator.integers(4, size=300)
    worse = np.where(generator.random((3, 300)) < 0.7, labels, (labels + 1) % 4)
    better = np.where(generator.random((3, 300)) < 0.2, labels, worse)
    found = compare({"real": worse, "synthetic": better}, labels, NAMES)
    gain = found["synthetic"]["gain"]["accuracy"]
    assert gain["value"] == pytest.approx(
        found["synthetic"]["accuracy"]["value"] - found["real"]["accuracy"]["value"]
    )
    assert gain["interval"][0] > 0
    width = np.ptp(found["real"]["accuracy"]["interval"])
    assert np.ptp(gain["interval"]) < width


# Training


def test_synthetic_scans_help_when_they_are_good_and_not_when_they_are_noise(few_steps):
    training, tested = brightness_classes(64, 0), {"validation": brightness_classes(80, 1)}
    good = usefulness(training, brightness_classes(64, 2), tested, NAMES, seeds=1)["validation"]
    assert good["n"] == 80
    assert good["synthetic"]["accuracy"]["value"] > 0.9
    noise = np.random.default_rng(3).random((64, 1, 16, 16), dtype=np.float32), np.arange(64) % 4
    bad = usefulness(training, noise, tested, NAMES, seeds=1)["validation"]
    assert bad["synthetic"]["accuracy"]["value"] < 0.6
    assert bad["synthetic"]["gain"]["accuracy"]["interval"][1] < 0


def test_more_synthetic_scans_are_no_larger_share_of_a_batch(few_steps):
    """Nine times as many scans of wrong classes as real ones: pooled, they would drown them."""
    training, tested = brightness_classes(64, 0), {"validation": brightness_classes(80, 1)}
    images, labels = brightness_classes(576, 2)
    wrong = images, (labels + 1) % 4
    found = usefulness(training, wrong, tested, NAMES, seeds=1, synthetic_share=0.05)["validation"]
    assert found["synthetic_share"] == 0.05
    assert found["synthetic"]["accuracy"]["value"] < 0.2
    assert found["real_and_synthetic"]["accuracy"]["value"] > 0.9


def test_the_same_seed_trains_the_same_classifier(three_steps):
    x, y = brightness_classes(32, 0)
    a, b, c = (classifier.train_classifier(x, y, 4, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.to_classes.weight, b.to_classes.weight)
    assert not torch.equal(a.to_classes.weight, c.to_classes.weight)


def test_augmentation_keeps_what_it_should():
    images = torch.from_numpy(phantoms(32, 0)[0])
    moved = classifier.augment(images, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert float(moved.mean()) == pytest.approx(float(images.mean()), rel=0.1)
    correlation = [float(np.corrcoef(a.ravel(), b.ravel())[0, 1]) for a, b in zip(images, moved, strict=True)]
    assert 0.4 < np.mean(correlation) < 0.98


@pytest.mark.parametrize(("names", "words"), [((), "at least two classes"), (NAMES, "no synthetic scan of")])
def test_refuses_what_cannot_be_compared(names, words):
    training = brightness_classes(16, 0)
    with pytest.raises(InputError, match=words):
        usefulness(training, (training[0][:2], training[1][:2]), {}, names)


# Extractors


def test_the_in_domain_extractor_is_trained_once(three_steps, tmp_path, monkeypatch):
    x, y = phantoms(32, 0)
    first = features.make_extractor("in_domain", x, y, NAMES, cache_dir=tmp_path)
    monkeypatch.setattr(features, "train_classifier", None)  # a second training would fail
    again = features.make_extractor("in_domain", x, y, NAMES, cache_dir=tmp_path)
    assert first(x).shape == (32, classifier.FEATURES)
    assert np.array_equal(first(x), again(x))
    assert "16 of 32 training scans" in first.name
    with pytest.raises(TypeError):  # other scans, another classifier
        features.make_extractor("in_domain", x[:16], y[:16], NAMES, cache_dir=tmp_path)


def test_the_in_domain_extractor_has_not_seen_its_reference(three_steps, tmp_path):
    """Else copies of the reference come nearer to it than unseen scans do, and score better."""
    x, y = phantoms(32, 0)
    first = features.make_extractor("in_domain", x, y, NAMES, cache_dir=tmp_path)
    other = x.copy()
    other[first.reference] = phantoms(32, 1)[0][first.reference]
    assert first.reference.sum() == 16
    again = features.make_extractor("in_domain", other, y, NAMES, cache_dir=tmp_path)
    assert np.array_equal(first(x), again(x))
    assert set(y[first.reference]) == set(range(4))


def test_without_classes_it_learns_turns(three_steps, tmp_path):
    x, _ = phantoms(16, 0)
    extractor = features.make_extractor("in_domain", x, np.zeros(16, np.int64), (), cache_dir=tmp_path)
    assert "turns" in extractor.name
    assert np.isfinite(extractor(x)).all()


def test_dinov2_comes_through_transformers(hub, tmp_path):
    """A tiny one of the same kind, from the Hub that ``HF_ENDPOINT`` names."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=224, patch_size=14
    )
    Dinov2Model(config).save_pretrained(tmp_path)
    x, y = phantoms(3, 0)
    with pytest.raises(InputError, match="--extractor dinov2 needs its weights from the network"):
        features.make_extractor("dinov2", x, y, NAMES)
    hub.repositories[features.DINOV2] = Repository()
    for file in tmp_path.iterdir():
        hub.edit(features.DINOV2, file.name, file.read_bytes())
    extractor = features.make_extractor("dinov2", x, y, NAMES)
    assert extractor(x).shape == (3, 16)


def test_other_extractors_say_what_is_missing():
    x, y = phantoms(3, 0)
    with pytest.raises(
        InputError, match="--extractor resnet is unknown; take one of in_domain, dinov2, inception"
    ):
        features.make_extractor("resnet", x, y, NAMES)
    with pytest.raises(InputError, match="--extractor inception needs its weights from the network"):
        features.make_extractor("inception", x, y, NAMES)
