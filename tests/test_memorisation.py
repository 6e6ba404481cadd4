"""The audit of copies: its controls on phantoms and on real scans, its intervals, its refusals."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, shift

from mri_ddpm.data import draw_phantoms, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.memorisation import (
    CopyDetector,
    audit,
    nearest_by_correlation,
    nearest_by_embedding,
    share_beyond,
    worst_pairs_picture,
)
from mri_ddpm.evaluation.subject import as_arrays

REFERENCE_SET = Path(__file__).parents[2] / "shared" / "data" / "brain_tumor_mri"


def phantoms(n: int, seed: int, size: int = 32) -> np.ndarray:
    return draw_phantoms(n, size, seed)[0][:, None].astype(np.float32)


def each(images: np.ndarray, change) -> np.ndarray:
    return (
        np.stack([change(image[0], i) for i, image in enumerate(images)])[:, None]
        .clip(0, 1)
        .astype(np.float32)
    )


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.round(image * 255).astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file), dtype=np.float32) / 255


GENERATOR = np.random.default_rng(0)
COPIES = {  # what a copy may have gone through, and the least share that must be found
    "as it is": (lambda x, i: x, 0.99),
    "shifted": (lambda x, i: shift(x, (i % 5 - 2, i // 5 % 5 - 2), order=0), 0.95),
    "flipped": (lambda x, i: x[:, ::-1], 0.95),
    "noised a little": (lambda x, i: x + 0.02 * GENERATOR.standard_normal(x.shape), 0.95),
    "noised": (lambda x, i: x + 0.05 * GENERATOR.standard_normal(x.shape), 0.95),
    "blurred": (lambda x, i: gaussian_filter(x, 0.5), 0.95),
    "brightened": (lambda x, i: 0.8 * x + 0.1, 0.95),
    "JPEG 75": (lambda x, i: jpeg(x, 75), 0.95),
    "JPEG 50": (lambda x, i: jpeg(x, 50), 0.95),
}  # fmt: skip


@pytest.fixture(scope="module")
def detector() -> CopyDetector:
    return CopyDetector.fit(phantoms(500, 0), phantoms(150, 1))


@pytest.fixture(scope="module")
def real() -> tuple[CopyDetector, np.ndarray]:
    """A detector with half of the held-out scans, and the other half."""
    if not REFERENCE_SET.is_dir():
        pytest.skip("the reference set is not here")
    scans = load_scans(train_data_dir=str(REFERENCE_SET), resolution=44)
    training, held_out = as_arrays(scans.train)[0], as_arrays(scans.validation)[0]
    order = np.random.default_rng(0).permutation(len(held_out))
    return CopyDetector.fit(training, held_out[order[::2]]), held_out[order[1::2]]


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_phantoms_are_found(detector, kind):
    change, least = COPIES[kind]
    found = detector.examine(each(detector.training[:100], change))
    assert found.flagged.mean() >= least
    assert (found.index[found.flagged] == np.flatnonzero(found.flagged)).all()


@pytest.mark.parametrize("kind", COPIES)
def test_copies_of_real_scans_are_found(real, kind):
    change, least = COPIES[kind]
    detector, _ = real
    rows = np.random.default_rng(1).permutation(len(detector.training))[:100]
    found = detector.examine(each(detector.training[rows], change))
    assert found.flagged.mean() >= least
    assert (found.index == rows)[found.flagged].all()


def test_real_scans_never_trained_on_are_at_the_nominal_rate(real):
    detector, others = real
    copies = audit(detector, others)["copies"]
    low, high = copies["share"]["interval"]
    assert low <= copies["expected"] <= high
    assert copies["share"]["value"] < 0.2


def test_fresh_phantoms_noise_and_blanks_are_not_copies(detector):
    copies = audit(detector, phantoms(200, 2))["copies"]
    assert copies["share"]["interval"][0] <= copies["expected"] <= copies["share"]["interval"][1]
    noise = np.random.default_rng(3).random((50, 1, 32, 32), dtype=np.float32)
    blank = np.stack([np.full((1, 32, 32), level, np.float32) for level in (0, 0.5, 1)])
    assert not detector.examine(np.concatenate([noise, blank])).flagged.any()


def test_an_embedding_is_a_second_space():
    training = phantoms(200, 0)
    projection = np.random.default_rng(0).standard_normal((32 * 32, 16)).astype(np.float32)
    detector = CopyDetector.fit(training, phantoms(60, 1), lambda x: x.reshape(len(x), -1) @ projection)
    report = audit(detector, training[:60])
    assert report["copies"]["count"] >= 59
    assert report["copies"]["distinct_training_images"] >= 59
    assert report["embedding"]["similarity_over_99th_percentile"]["share"]["value"] >= 0.99
    assert len(report["worst_pairs"]) == 16


def test_the_picture_shows_the_worst_pairs(detector):
    images = np.concatenate([detector.training[:3], phantoms(20, 5)])
    picture = worst_pairs_picture(detector, detector.examine(images), images, count=4)
    assert picture.width > 3 * 96
    assert np.asarray(picture).std() > 10


def test_nearest_is_found_with_its_flip_and_shift():
    training = phantoms(60, 0)
    moved = np.stack([shift(training[7, 0, :, ::-1], (1, -2), order=0)])[:, None].astype(np.float32)
    nearest = nearest_by_correlation(moved, training)
    assert nearest.index.tolist() == [7]
    assert nearest.similarity[0] > 0.99
    assert nearest.flipped.tolist() == [True]
    features = training.reshape(60, -1)
    assert nearest_by_embedding(features[:5], features).index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("level", "true_share"), [(0.95, 0.05), (0.95, 0.3), (0.99, 0.1)])
def test_the_interval_of_a_share_covers_the_truth(level, true_share):
    """Scores moved so that the true share over the true quantile is known; both are estimated from few."""
    from scipy.stats import norm

    generator, covered = np.random.default_rng(0), 0
    move = norm.ppf(level) - norm.ppf(1 - true_share)
    for _ in range(200):
        estimate = share_beyond(generator.standard_normal(1000) + move, generator.standard_normal(272), level)
        covered += estimate.low <= true_share <= estimate.high
    assert covered >= 180


@pytest.mark.parametrize(
    ("training", "held_out", "words"),
    [
        (phantoms(30, 0), phantoms(30, 1), "30"),
        (phantoms(60, 0), phantoms(10, 1), "10"),
        (phantoms(60, 0), phantoms(30, 1, size=24), "24"),
        (np.full((60, 1, 32, 32), np.nan, np.float32), phantoms(30, 1), "finite|NaN"),
    ],
)
def test_refuses_what_cannot_be_compared(training, held_out, words):
    with pytest.raises(InputError, match=words):
        CopyDetector.fit(training, held_out)
