"""SSIM to the nearest scan against its formula, and fine detail against what noise and flat images have of it."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from mri_ddpm.data import draw_phantoms
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.quality import detail, detail_ratio, ssim_to_nearest


@pytest.fixture(scope="module")
def phantoms() -> np.ndarray:
    return draw_phantoms(12, 32, seed=3)[0][:, None]


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, equation 13, by scipy's Gaussian filter: sigma 1.5, 11 pixels wide, borders mirrored."""

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x.astype(np.float64), 1.5, truncate=5 / 1.5, mode="mirror")

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return float((luminance * structure).mean())


def test_it_is_the_formula_s_greatest_value_over_all_scans(phantoms):
    images, scans = phantoms[:4], phantoms[4:]
    expected = [max(ssim(image[0], scan[0]) for scan in scans) for image in images]
    np.testing.assert_allclose(ssim_to_nearest(images, scans), expected, atol=2e-4)


def test_a_copy_scores_1_and_noise_little(phantoms):
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(2, 1, 32, 32)).astype(np.float32)
    values = ssim_to_nearest(np.concatenate([phantoms[5:6], noise]), phantoms)
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[1:].max() < 0.2


def test_the_order_and_number_of_scans_at_a_time_do_not_matter():
    """80 scans of 32 pixels are more than one block."""
    images = draw_phantoms(80, 32, seed=4)[0][:, None]
    values = ssim_to_nearest(images[:3], images[3:])
    np.testing.assert_allclose(values, ssim_to_nearest(images[:3], images[:2:-1]), atol=1e-6)


def test_images_that_cannot_be_compared_are_refused(phantoms):
    with pytest.raises(InputError, match="one size"):
        ssim_to_nearest(phantoms, phantoms[:, :, :16, :16])
    with pytest.raises(InputError, match="11 pixels"):
        ssim_to_nearest(phantoms[:, :, :10, :10], phantoms[:, :, :10, :10])


def test_detail_is_the_share_of_power_beyond_a_third_of_a_cycle(phantoms):
    """White noise has the same power at every frequency; a sinusoid has all of it at its own."""
    noise = np.clip(np.random.default_rng(0).normal(0.5, 0.1, (400, 1, 32, 32)), 0, 1).astype(np.float32)
    radii = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    assert detail(noise) == pytest.approx((radii > 1 / 3).sum() / (32 * 32 - 1), rel=0.01)
    assert detail(np.full((2, 1, 32, 32), 0.4, np.float32)) == pytest.approx(0, abs=1e-6)
    for cycles, share in ((3, 0), (10, 0), (11, 1), (15, 1)):
        wave = 0.5 + 0.4 * np.sin(2 * np.pi * cycles * np.arange(32) / 32)
        assert detail(np.tile(wave, (2, 1, 32, 1))) == pytest.approx(share, abs=1e-6)
    assert detail(0.8 * phantoms) == pytest.approx(detail(phantoms))


def test_the_detail_ratio_is_one_for_fresh_phantoms_and_falls_with_blur():
    real, fresh = (draw_phantoms(120, 32, seed)[0][:, None] for seed in (0, 1))
    ratio = detail_ratio(real, fresh)
    assert ratio.low < 1 < ratio.high
    assert ratio.value == pytest.approx(detail(fresh) / detail(real))
    blurred = [detail_ratio(real, gaussian_filter(fresh, (0, 0, sigma, sigma))) for sigma in (0.5, 0.7, 1)]
    assert ratio.low > blurred[0].high > blurred[0].low > blurred[1].high > blurred[1].low > blurred[2].high
    with pytest.raises(InputError, match="9 images are too few for the detail ratio"):
        detail_ratio(real, fresh[:9])
    with pytest.raises(InputError, match="real images are flat"):
        detail_ratio(np.zeros_like(real), fresh)


def test_the_interval_of_the_detail_ratio_covers_it():
    images = draw_phantoms(2000, 16, seed=2)[0][:, None]
    truth, pick = 1.0, np.random.default_rng(0)
    found = [
        detail_ratio(images[pick.integers(2000, size=60)], images[pick.integers(2000, size=60)])
        for _ in range(150)
    ]
    assert 0.89 <= np.mean([estimate.low <= truth <= estimate.high for estimate in found]) <= 0.99
