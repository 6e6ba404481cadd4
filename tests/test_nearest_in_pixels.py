"""The search for the nearest training scan in pixels: against brute force, in other frames, and in parts."""

import numpy as np
import pytest
import torch
from conftest import phantom_images
from scipy.ndimage import gaussian_filter, shift

from mri_ddpm.evaluation.memorisation import (
    CopyDetector,
    worst_pairs_picture,
)
from mri_ddpm.evaluation.nearest import nearest_by_correlation


def correlation(a, b):
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize("channels", [1, 2])
def test_the_nearest_by_hand(channels):
    """At 16 pixels: smoothed by 16/45, moved by 1 pixel, compared within a margin of 2; the mean over channels, moved alike."""
    images = np.concatenate([phantom_images(4, 16, seed=1), phantom_images(4, 16, seed=2)[::-1]], axis=1)
    training = np.concatenate([phantom_images(60, 16), phantom_images(60, 16)[::-1]], axis=1)
    images, training = images[:, :channels], training[:, :channels]
    smooth = [
        gaussian_filter(part.astype(np.float64), (0, 0, 16 / 45, 16 / 45), mode="nearest")
        for part in (images, training)
    ]
    found = nearest_by_correlation(images, training)
    for row, image in enumerate(smooth[0]):
        best = np.array(
            [
                max(
                    np.mean([correlation(a[2 + y : 14 + y, 2 + x : 14 + x], b[2:14, 2:14]) for a, b in pairs])
                    for side in (image, image[..., ::-1])
                    for pairs in [list(zip(side, real, strict=True))]
                    for y in (-1, 0, 1)
                    for x in (-1, 0, 1)
                )
                for real in smooth[1]
            ]
        )
        assert found.index[row] == best.argmax()
        distance = 1 - found.similarity[row]  # less what noise is taken for
        assert 0 < distance <= 1 - best.max() + 1e-5
        assert distance > 0.5 * (1 - best.max())
        np.testing.assert_allclose(found.ratio[row], distance / np.mean(1 - np.sort(best)[-50:]), rtol=1e-3)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("by", [(0, 0), (2, -1), (-2, 2)])
def test_how_it_was_moved_is_found(flipped, by):
    training = phantom_images(60, 32)
    images = shift(training[:5, :, :, ::-1] if flipped else training[:5], (0, 0, *by), order=0)
    found = nearest_by_correlation(images, training)
    np.testing.assert_array_equal(found.index, range(5))
    np.testing.assert_array_equal(found.how["flipped"], [flipped] * 5)
    np.testing.assert_array_equal(found.how["shift"], [by] * 5)
    np.testing.assert_allclose(found.similarity, 1, atol=1e-3)
    detector = CopyDetector.fit(training, phantom_images(20, 32, seed=1))
    picture = np.asarray(worst_pairs_picture(detector, detector.examine(images), images))
    assert picture.shape == (2 * (96 + 36), 4 * (3 * 96 + 16))
    assert picture[10:86, 202:278].max() == 0  # the difference, within the shift's border
    assert picture[10:86, 10:86].max() > 50


def test_white_noise_is_allowed_for_and_no_more():
    training = phantom_images(100, 32)
    noise = np.random.default_rng(0).standard_normal(training.shape).astype(np.float32)
    noisy = nearest_by_correlation(training + 0.05 * noise, training).similarity
    assert np.median(noisy) > 0.999
    others = phantom_images(100, 32, seed=1)
    plain, noisy = (nearest_by_correlation(x, training).similarity for x in (others, others + 0.05 * noise))
    assert abs(np.median(noisy - plain)) < 0.01
    assert nearest_by_correlation(noise, training).ratio.min() > 0.5


def test_larger_images_are_compared_at_128_pixels():
    training = torch.nn.functional.interpolate(
        torch.from_numpy(phantom_images(60, 64)), size=200, mode="bicubic"
    )
    training = training.clamp(0, 1).numpy()
    images = shift(training[:6], (0, 0, 3, -8), order=0)
    found = nearest_by_correlation(images, training)
    np.testing.assert_array_equal(found.index, range(6))
    assert np.abs(found.how["shift"] - (3, -8)).max() <= 1
    assert found.ratio.max() < 0.02


def test_copies_of_few_scans_are_found():
    """Those who adapt a model have few: where there are not 50 neighbours, all others are."""
    images, rng = phantom_images(120, 32, seed=3), np.random.default_rng(0)
    training, validation, honest = np.split(images, [20, 60])
    noisy = np.clip(training + rng.normal(0, 0.05, training.shape), 0, 1).astype(np.float32)
    detector = CopyDetector.fit(training, validation)
    for copies in (training, noisy, training[..., ::-1].copy(), np.roll(training, 1, axis=-1)):
        assert detector.examine(copies).flagged.all()
    assert detector.examine(honest).flagged.mean() < 0.2


def test_constant_images_are_no_copies():
    constant = (
        np.ones((3, 1, 32, 32), dtype=np.float32)
        * np.array([0, 0.4, 1], dtype=np.float32)[:, None, None, None]
    )
    training, validation = np.concatenate([phantom_images(60, 32), constant]), phantom_images(25, 32, seed=1)
    found = CopyDetector.fit(training, validation).examine(np.concatenate([constant, training[:2]]))
    assert found.flagged.tolist() == [False] * 3 + [True] * 2
    assert np.isfinite(found.suspicion).all()
    np.testing.assert_allclose(found.nearest["pixels"].similarity[:3], 0, atol=1e-4)


@pytest.mark.parametrize("times", [5, 60])
def test_copies_within_training_do_not_hide_copies(times):
    training = phantom_images(100, 32)
    training = np.concatenate([training, np.repeat(training[:3], times - 1, axis=0)])
    detector = CopyDetector.fit(training, phantom_images(60, 32, seed=1))
    assert detector.examine(training[:3]).flagged.all()
    noisy = training[:3] + 0.03 * np.random.default_rng(0).standard_normal((3, 1, 32, 32))
    assert detector.examine(noisy.astype(np.float32)).flagged.all()
