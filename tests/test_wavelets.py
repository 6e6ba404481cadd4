"""Wavelet features: closed forms, and a ladder of damage, each rung of which must cost more than brightness does."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import phantom_images
from scipy.ndimage import gaussian_filter

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.quality import frechet_distance, kid
from mri_ddpm.evaluation.subject import as_arrays
from mri_ddpm.evaluation.wavelets import WaveletFeatures, morlet_wavelets

# Closed forms


@pytest.mark.parametrize("shape", [(32, 32), (40, 32)])
def test_a_wave_is_strongest_in_the_wavelet_of_its_scale_and_direction(shape):
    wavelets = morlet_wavelets(*shape)  # (3, 6, H, W)
    assert wavelets[..., 0, 0].abs().max() < 1e-6  # of mean 0
    down, right = np.mgrid[: shape[0], : shape[1]]
    for scale in range(3):
        for turn in range(6):
            frequency, angle = 0.75 * np.pi / 2**scale, np.pi * turn / 6
            wave = np.cos(frequency * (np.cos(angle) * right + np.sin(angle) * down))
            window = np.outer(*map(np.hanning, shape))
            spectrum = torch.fft.fft2(torch.from_numpy(wave * window))
            energies = torch.fft.ifft2(spectrum * wavelets).abs().mean((2, 3))  # (3, 6)
            assert np.unravel_index(energies.argmax(), (3, 6)) == (scale, turn)


@pytest.fixture(scope="module")
def phantoms():
    images = phantom_images(340, 32)
    return images[:240], images[240:], np.arange(240, 340) % 4


@pytest.fixture(scope="module")
def features(phantoms):
    return WaveletFeatures.fit(phantoms[0])


def test_the_training_scans_are_white(phantoms, features):
    found = features(phantoms[0])
    assert found.shape == (240, 48)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(np.cov(found.T), np.eye(48), atol=1e-9)


def test_brightness_drops_out(phantoms, features):
    images = phantoms[1][:40]
    np.testing.assert_allclose(features(0.5 * images), features(images), atol=1e-3)


@pytest.mark.parametrize("side", [16, 17, 29])
def test_any_size_is_taken_and_black_images_are_finite(side):
    images = phantom_images(60, side, seed=1)
    features = WaveletFeatures.fit(images)
    assert features(images).shape == (60, 48)
    assert np.isfinite(features(np.zeros((2, 1, side, side), np.float32))).all()


def test_what_cannot_be_whitened_is_refused(phantoms):
    with pytest.raises(InputError, match="all alike"):
        WaveletFeatures.fit(np.repeat(phantoms[0][:1], 5, axis=0))
    with pytest.raises(InputError, match="take 16 a side or more"):
        WaveletFeatures.fit(phantoms[0][:, :, :15])
    assert WaveletFeatures.fit(phantoms[0][:9])(phantoms[0]).shape == (240, 8)


# The ladder


def blurred(images, sigma):
    return gaussian_filter(images, (0, 0, sigma, sigma))


def at_half_resolution(images):
    small = F.avg_pool2d(torch.from_numpy(images), 2)
    return F.interpolate(small, scale_factor=2, mode="bilinear").numpy()


def with_patches_swapped(images, swaps):
    """Squares of a quarter of the side change places within the image."""
    rng, images = np.random.default_rng(0), images.copy()
    side = images.shape[-1] // 4
    for image in images[:, 0]:
        for _ in range(swaps):
            (a, b), (c, d) = rng.integers(0, image.shape[-1] - side + 1, (2, 2))
            here, there = image[a : a + side, b : b + side].copy(), image[c : c + side, d : d + side].copy()
            image[a : a + side, b : b + side], image[c : c + side, d : d + side] = there, here
    return images


def in_a_share(share, images, damaged):
    return np.where(np.arange(len(images))[:, None, None, None] % 4 < 4 * share, damaged, images)


def spliced(images):
    """The left half of one head beside the right half of another."""
    half = images.shape[-1] // 2
    return np.concatenate(
        [images[..., :half], np.roll(images, len(images) // 2 + 1, axis=0)[..., half:]], axis=3
    )


def with_texture_of_another_class(images, labels):
    rng = np.random.default_rng(0)
    others = images[[rng.choice(np.flatnonzero(labels != label)) for label in labels]]
    return (blurred(images, 1.5) + others - blurred(others, 1.5)).clip(0, 1)


def with_contrast(images, factor):
    mean = images.mean(axis=(2, 3), keepdims=True)
    return (mean + factor * (images - mean)).clip(0, 1)


def ladders(images, labels, shares_spliced):
    splices, textures = spliced(images), with_texture_of_another_class(images, labels)
    return {
        "blur": [blurred(images, sigma) for sigma in (0.5, 0.7, 1)],
        "resolution": [at_half_resolution(images)],
        "patches": [with_patches_swapped(images, swaps) for swaps in (1, 2, 4)],
        "spliced": [in_a_share(share, images, splices) for share in shares_spliced],
        "texture": [in_a_share(share, images, textures) for share in (0.5, 1)],
    }


def climb(training, unseen, labels, shares_spliced):
    """Every rung costs more than the one below, and the first more than 5 % of brightness or 10 % of contrast."""
    features = WaveletFeatures.fit(training)
    reference = features(training)

    def costs(images):
        found = features(images.astype(np.float32))
        return np.array([kid(reference, found).value, frechet_distance(reference, found).value])

    harmless = [(factor * unseen).clip(0, 1) for factor in (0.95, 1.05)]
    harmless += [with_contrast(unseen, factor) for factor in (0.9, 1.1)]
    ground = np.max([costs(images) for images in harmless], axis=0)
    for name, rungs in ladders(unseen, labels, shares_spliced).items():
        steps = np.diff([ground, *map(costs, rungs)], axis=0)
        assert (steps > 0).all(), f"{name}: {steps}"


def test_each_rung_costs_more_than_brightness_on_phantoms(phantoms):
    """Less contrast lifts their black background, which costs more KID than half of the heads spliced."""
    climb(*phantoms, shares_spliced=(0.75, 1))


@pytest.mark.slow
def test_each_rung_costs_more_than_brightness_on_scans(reference_scans):
    scans = reference_scans(32)
    training, (unseen, labels) = as_arrays(scans.train)[0], as_arrays(scans.validation)
    climb(np.asarray(training[::8]), np.asarray(unseen[::2]), labels[::2], shares_spliced=(0.25, 0.5, 1))
