"""What each metric of quality sees, and what it is blind to, on phantoms."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mri_ddpm.data import PHANTOM_CLASS_NAMES
from mri_ddpm.data.phantom import PLANES, draw_phantom
from mri_ddpm.evaluation.quality import (
    frechet_distance,
    kid,
    ms_ssim_of_pairs,
    power_spectrum,
    precision_recall_density_coverage,
)

HEADS = 180


def heads(seed, planes=PLANES, classes=PHANTOM_CLASS_NAMES):
    return np.stack(
        [draw_phantom(classes[i % len(classes)], seed + i, 32, planes[i % len(planes)]) for i in range(HEADS)]
    )


class Phantoms:
    """Real heads, fresh ones as a perfect generator's, and every metric over 16 principal components of the pixels."""

    def __init__(self):
        self.real, self.fresh = heads(0), heads(10_000)
        flat = self.real.reshape(HEADS, -1)
        self.mean = flat.mean(axis=0)
        self.components = np.linalg.svd(flat - self.mean, full_matrices=False)[2][:16]
        self.of_fresh = self.score(self.fresh)

    def features(self, images):
        return (images.reshape(len(images), -1) - self.mean) @ self.components.T

    def score(self, images):
        real, fake = self.features(self.real), self.features(images)
        return {
            "kid": kid(real, fake),
            "frechet_distance": frechet_distance(real, fake),
            "ms_ssim": ms_ssim_of_pairs(images[:, None], pairs=400),
            **precision_recall_density_coverage(real, fake),
        }

    def steps(self, *degraded):
        """Values by metric, from fresh heads through every step."""
        scores = [self.of_fresh, *map(self.score, degraded)]
        return {name: np.array([score[name].value for score in scores]) for name in self.of_fresh}


@pytest.fixture(scope="module")
def phantoms():
    return Phantoms()


def rises(values):
    return (np.diff(values) > 0).all()


def falls(values):
    return (np.diff(values) < 0).all()


def test_fresh_heads_score_as_real_ones_do(phantoms):
    scores = phantoms.of_fresh
    assert scores["kid"].low < 0 < scores["kid"].high
    assert scores["frechet_distance"].low == 0
    assert min(scores[name].value for name in ("precision", "recall", "coverage")) > 0.9
    assert scores["density"].value > 0.9
    real = ms_ssim_of_pairs(phantoms.real[:, None])
    assert scores["ms_ssim"].low < real.high
    assert real.low < scores["ms_ssim"].high


def test_blur_is_seen_but_not_by_precision_and_ms_ssim_goes_the_wrong_way(phantoms):
    blurred = [gaussian_filter(phantoms.fresh, (0, sigma, sigma)) for sigma in (1, 2, 4)]
    steps = phantoms.steps(*blurred)
    assert rises(steps["kid"])
    assert rises(steps["frechet_distance"])
    assert falls(steps["recall"][:3])
    assert falls(steps["coverage"])
    assert (steps["precision"][:3] >= steps["precision"][0]).all()
    assert (steps["density"][1:3] > steps["density"][0]).all()
    assert rises(steps["ms_ssim"])
    spectra = [power_spectrum(x[:, None])[1][10:].sum() for x in (phantoms.fresh, *blurred)]
    assert falls(spectra)


def test_noise_is_seen_by_all_but_takes_ms_ssim_for_diversity(phantoms):
    noise = np.random.default_rng(0).normal(size=phantoms.fresh.shape)
    noisy = [(phantoms.fresh + sigma * noise).clip(0, 1).astype(np.float32) for sigma in (0.15, 0.3, 0.6)]
    steps = phantoms.steps(*noisy)
    assert rises(steps["kid"])
    assert rises(steps["frechet_distance"])
    for name in ("precision", "recall", "density", "coverage"):
        assert falls(steps[name][1:]), name
    assert falls(steps["ms_ssim"])
    spectra = [power_spectrum(x[:, None])[1][10:].sum() for x in (phantoms.fresh, *noisy)]
    assert rises(spectra)


def test_modes_left_out_are_seen_but_not_by_precision_and_density(phantoms):
    steps = phantoms.steps(heads(10_000, PLANES[:2]), heads(10_000, PLANES[:1]))
    assert rises(steps["kid"])
    assert rises(steps["frechet_distance"])
    assert falls(steps["recall"])
    assert falls(steps["coverage"])
    assert rises(steps["ms_ssim"])
    assert steps["precision"].min() > 0.95
    assert steps["density"].min() > 0.9


def test_no_metric_sees_more_than_its_features(phantoms):
    """A class without its lesion is a few pixels, which 16 components of all pixels do not hold."""
    scores = phantoms.score(heads(10_000, classes=("no_tumor",)))
    assert scores["kid"].low < 0 < scores["kid"].high
    assert scores["frechet_distance"].low == 0
    assert min(scores[name].value for name in ("precision", "recall", "coverage")) > 0.9


def test_few_images_repeated_are_seen_but_not_by_precision_and_hardly_by_ms_ssim(phantoms):
    steps = phantoms.steps(*(phantoms.fresh[np.arange(HEADS) % few] for few in (60, 20, 10)))
    assert rises(steps["kid"])
    assert rises(steps["frechet_distance"])
    assert (np.diff(steps["recall"]) <= 0).all()
    assert steps["recall"][-1] == 0
    assert falls(steps["coverage"])
    assert steps["precision"].min() > 0.85
    assert np.ptp(steps["ms_ssim"]) < 0.1


def test_copies_of_the_real_images_score_best_of_all(phantoms):
    """So a copy detector has to stand beside every one of these metrics."""
    noise = np.random.default_rng(0).normal(size=phantoms.real.shape)
    near_copies = (phantoms.real + 0.02 * noise).clip(0, 1).astype(np.float32)
    for copies in (phantoms.real, near_copies):
        scores = phantoms.score(copies)
        assert scores["kid"].value < phantoms.of_fresh["kid"].value
        assert scores["kid"].value < 0
        assert scores["frechet_distance"].value < 0.1 * phantoms.of_fresh["frechet_distance"].value
        assert all(scores[name].value == 1 for name in ("precision", "recall", "coverage"))
