"""Each metric of quality against its formula or its authors' package, and its interval against the truth."""

import numpy as np
import pytest
import torch
from conftest import phantom_images
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from scipy.stats import t as student
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure
from torchmetrics.image.kid import poly_mmd

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.quality import (
    detail,
    detail_ratio,
    frechet_distance,
    intensity_histogram,
    kid,
    ms_ssim_of_pairs,
    power_spectrum,
    precision_recall_density_coverage,
    ssim_to_nearest,
)

WIDTH = 4
MEANS = (np.full(WIDTH, 0.3), np.full(WIDTH, 0.8))
COVARIANCES = (np.diag([0.2, 0.8, 1.4, 2.0]), np.diag([0.4, 1.0, 1.0, 2.0]))


def draw(mean, covariance, n, seed):
    return np.random.default_rng(seed).multivariate_normal(mean, covariance, n)


def uniform_images(n, side, seed=0):
    return np.random.default_rng(seed).uniform(size=(n, 1, side, side)).astype(np.float32)


def share_covered(estimates, truth):
    return np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])


# KID


def expected_kernel(mean_x, covariance_x, mean_y, covariance_y):
    """E (x . y / D + 1)^3 of independent Gaussians: given x, x . y is Gaussian; then moments of a quadratic form."""
    width = len(mean_x)
    mean = 1 + mean_x @ mean_y / width
    variance = mean_y @ covariance_x @ mean_y / width**2
    quadratic = np.trace(covariance_x @ covariance_y) + mean_x @ covariance_y @ mean_x
    cubic = 2 * mean_y @ covariance_x @ covariance_y @ mean_x / width
    return mean**3 + 3 * mean * variance + 3 / width**2 * (mean * quadratic + cubic)


def expected_kid(means, covariances):
    (m, n), (s, t) = means, covariances
    return expected_kernel(m, s, m, s) + expected_kernel(n, t, n, t) - 2 * expected_kernel(m, s, n, t)


def test_the_closed_form_of_the_kernel_against_quadrature():
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)  # exact for polynomials of degree 15
    weights = weights / weights.sum()
    x, y = 0.4 + np.sqrt(1.7) * nodes, -0.9 + np.sqrt(0.6) * nodes
    expected = weights @ (np.outer(x, y) + 1) ** 3 @ weights
    closed = expected_kernel(np.array([0.4]), np.array([[1.7]]), np.array([-0.9]), np.array([[0.6]]))
    assert closed == pytest.approx(expected, rel=1e-12)


def test_kid_against_torchmetrics_and_the_definition():
    real, fake = (draw(m, s, 40, i) for i, (m, s) in enumerate(zip(MEANS, COVARIANCES, strict=True)))
    theirs = poly_mmd(torch.from_numpy(real), torch.from_numpy(fake))
    assert kid(real, fake).value == pytest.approx(float(theirs), rel=1e-10)

    real = real[:12]  # theirs takes equal numbers only
    pairs_of_one = [
        np.mean([(a @ b / WIDTH + 1) ** 3 for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        for x in (real, fake)
    ]
    pairs_of_both = np.mean([(a @ b / WIDTH + 1) ** 3 for a in real for b in fake])
    estimate = kid(real, fake)
    assert estimate.value == pytest.approx(sum(pairs_of_one) - 2 * pairs_of_both, rel=1e-10)
    assert estimate.n == 12


def test_kid_is_unbiased_and_covered_under_a_difference():
    truth = expected_kid(MEANS, COVARIANCES)
    estimates = [
        kid(draw(MEANS[0], COVARIANCES[0], 50, 2 * i), draw(MEANS[1], COVARIANCES[1], 60, 2 * i + 1))
        for i in range(200)
    ]
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() == pytest.approx(truth, abs=3 * values.std() / np.sqrt(200))
    assert 0.9 <= share_covered(estimates, truth) <= 0.99


def test_kid_is_unbiased_and_its_interval_safe_under_no_difference():
    """Wide features make k(x, x) = 8 beside k(x, y) = 1: pairs of an image with itself would be off by 40 deviations."""
    estimates = [kid(*np.random.default_rng(i).normal(size=(2, 50, 64))) for i in range(100)]
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() == pytest.approx(0, abs=3 * values.std() / 10)
    assert share_covered(estimates, 0) >= 0.95
    widths = [estimate.high - estimate.low for estimate in estimates]
    # As the docstring says
    assert np.mean(widths) / (2 * 1.96 * values.std()) == pytest.approx(1.75, abs=0.35)
    middles = [(estimate.low + estimate.high) / 2 for estimate in estimates]
    assert np.mean(middles) == pytest.approx(0, abs=values.std())


# Fréchet distance


def with_moments(mean, covariance, n, seed):
    """A sample whose own mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(n, len(mean)))
    x -= x.mean(axis=0)
    whitener = np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return mean + x @ whitener @ np.linalg.cholesky(covariance).T


def closed_form(means, covariances):
    (m, n), (s, t) = means, covariances
    return float(np.sum((m - n) ** 2) + np.trace(s + t - 2 * sqrtm(s @ t).real))


def test_frechet_distance_against_the_closed_form():
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 6, 6))
    covariances = [root @ root.T + 0.1 * np.eye(6) for root in roots]  # do not commute
    means = rng.normal(size=(2, 6))
    real, fake = (with_moments(m, s, n, n) for m, s, n in zip(means, covariances, (50, 70), strict=True))
    estimate = frechet_distance(real, fake)
    assert estimate.value == pytest.approx(closed_form(means, covariances), rel=1e-10)
    assert estimate.n == 50


def test_frechet_distance_of_a_set_to_itself_is_zero():
    x = draw(MEANS[0], COVARIANCES[0], 100, 0)
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x[::-1]).value == pytest.approx(0, abs=1e-12)


def test_frechet_distance_takes_singular_covariances():
    x = np.repeat(draw(MEANS[0], COVARIANCES[0], 60, 0), 2, axis=1)  # every feature twice
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-12)
    assert frechet_distance(x, x + 1).value == pytest.approx(8, rel=1e-12)


def test_frechet_distance_is_covered_where_its_value_is_biased():
    truth = closed_form(MEANS, COVARIANCES)
    estimates = [
        frechet_distance(
            draw(MEANS[0], COVARIANCES[0], 100, 2 * i), draw(MEANS[1], COVARIANCES[1], 80, 2 * i + 1)
        )
        for i in range(80)
    ]
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() > truth + 4 * values.std() / np.sqrt(80)
    assert 0.9 <= share_covered(estimates, truth) <= 0.99
    assert all(estimate.low <= estimate.value <= estimate.high for estimate in estimates)


def test_frechet_interval_reaches_zero_under_no_difference():
    estimates = [frechet_distance(*np.random.default_rng(i).normal(size=(2, 80, 4))) for i in range(30)]
    assert share_covered(estimates, 0) >= 0.95


# Precision, recall, density, coverage


@pytest.mark.parametrize("k", [1, 5])
def test_precision_recall_density_coverage_against_the_authors_package(k):
    prdc = pytest.importorskip("prdc")
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(270, 8)), 0.3 + 0.9 * rng.normal(size=(300, 8))
    theirs = prdc.compute_prdc(real, fake, nearest_k=k)
    ours = precision_recall_density_coverage(real, fake, k)
    assert {name: estimate.value for name, estimate in ours.items()} == pytest.approx(theirs, abs=1e-12)
    assert {name: estimate.n for name, estimate in ours.items()} == {
        "precision": 300, "recall": 270, "density": 300, "coverage": 270
    }  # fmt: skip


@pytest.mark.slow
def test_precision_and_density_are_covered_for_one_real_manifold():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(150, 4))

    def measure(n):
        return precision_recall_density_coverage(real, 0.5 + rng.normal(size=(n, 4)))

    truth = {name: estimate.value for name, estimate in measure(3000).items()}
    repeated = [measure(100) for _ in range(120)]
    for name in ("precision", "density"):
        assert 0.9 <= share_covered([one[name] for one in repeated], truth[name]) <= 0.99


def test_a_share_of_all_or_nothing_still_has_an_interval():
    real = np.random.default_rng(0).normal(size=(20, 3))
    same = precision_recall_density_coverage(real, real)
    assert same["precision"].value == same["recall"].value == same["coverage"].value == 1
    assert same["precision"].low == pytest.approx(20 / (20 + 1.96**2), abs=1e-4)
    assert precision_recall_density_coverage(real, real + 100)["precision"].high > 0.1


# MS-SSIM of pairs

ALL_SCALES = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


@pytest.mark.parametrize(
    ("side", "scales"),
    [(16, 1), (32, 2), (44, 3), (98, 3), (99, 4), pytest.param(176, 5, marks=pytest.mark.slow)],
)
def test_ms_ssim_against_torchmetrics_image_by_image(side, scales):
    images = gaussian_filter(uniform_images(10, side), (0, 0, 2, 2))
    weights = tuple((ALL_SCALES / ALL_SCALES[:scales].sum())[:scales])
    x = torch.from_numpy(images)
    expected = [
        multiscale_structural_similarity_index_measure(
            x[i : i + 1], x[j : j + 1], data_range=1.0, betas=weights
        )
        for i in range(10)
        for j in range(i)
    ]
    estimate = ms_ssim_of_pairs(images)
    assert estimate.value == pytest.approx(float(np.mean(expected)), rel=1e-5)
    assert estimate.low < estimate.value < estimate.high
    assert estimate.n == 10


def test_no_image_is_paired_with_itself_and_no_pair_drawn_twice():
    images = uniform_images(10, 11)
    images[5:] = images[:5]  # five of the 45 pairs are equal images
    everything = ms_ssim_of_pairs(images).value
    most = [ms_ssim_of_pairs(images, pairs=44, seed=seed).value for seed in range(40)]
    # Without one pair the sum changes by that pair's value, which is 1 at most
    assert all(abs(45 * everything - 44 * value) <= 1 + 1e-6 for value in most)
    assert max(most) < 0.3


Y, X = np.mgrid[:11, :11] / 11


def waves(n, seed):
    rng = np.random.default_rng(seed)
    phase, slope = rng.uniform(0, 0.5, (n, 1, 1)), rng.uniform(0.2, 0.8, (n, 1, 1))
    turn = rng.integers(0, 3, (n, 1, 1))
    return (0.5 + 0.4 * np.sin(2 * np.pi * (phase + slope * (X + turn * Y)))).astype(np.float32)[:, None]


@pytest.fixture(scope="module")
def ms_ssim_of_waves():
    return ms_ssim_of_pairs(waves(20_000, seed=999), pairs=20_000).value


@pytest.mark.parametrize(("n", "pairs"), [(15, 105), pytest.param(600, 100, marks=pytest.mark.slow)])
def test_ms_ssim_is_covered_whether_pairs_share_many_images_or_few(n, pairs, ms_ssim_of_waves):
    estimates = [ms_ssim_of_pairs(waves(n, seed), pairs, seed) for seed in range(150)]
    assert 0.9 <= share_covered(estimates, ms_ssim_of_waves) <= 0.99
    standard_errors = [(e.high - e.low) / 2 / student.ppf(0.975, n - 1) for e in estimates]
    assert np.mean(standard_errors) == pytest.approx(np.std([e.value for e in estimates]), rel=0.25)


# SSIM to the nearest scan


@pytest.fixture(scope="module")
def few_heads() -> np.ndarray:
    return phantom_images(12, 32, seed=3)


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


def test_it_is_the_formula_s_greatest_value_over_all_scans(few_heads):
    images, scans = few_heads[:4], few_heads[4:]
    expected = [max(ssim(image[0], scan[0]) for scan in scans) for image in images]
    np.testing.assert_allclose(ssim_to_nearest(images, scans), expected, atol=2e-4)


def test_a_copy_scores_1_and_noise_little(few_heads):
    rng = np.random.default_rng(0)
    noise = rng.uniform(size=(2, 1, 32, 32)).astype(np.float32)
    values = ssim_to_nearest(np.concatenate([few_heads[5:6], noise]), few_heads)
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values[1:].max() < 0.2


def test_the_order_and_number_of_scans_at_a_time_do_not_matter():
    """80 scans of 32 pixels are more than one block."""
    images = phantom_images(80, 32, seed=4)
    values = ssim_to_nearest(images[:3], images[3:])
    np.testing.assert_allclose(values, ssim_to_nearest(images[:3], images[:2:-1]), atol=1e-6)


def test_images_that_cannot_be_compared_are_refused(few_heads):
    with pytest.raises(InputError, match="one size"):
        ssim_to_nearest(few_heads, few_heads[:, :, :16, :16])
    with pytest.raises(InputError, match="11 pixels"):
        ssim_to_nearest(few_heads[:, :, :10, :10], few_heads[:, :, :10, :10])


# Fine detail


def test_detail_is_the_share_of_power_beyond_a_third_of_a_cycle(few_heads):
    """White noise has the same power at every frequency; a sinusoid has all of it at its own."""
    noise = np.clip(np.random.default_rng(0).normal(0.5, 0.1, (400, 1, 32, 32)), 0, 1).astype(np.float32)
    radii = np.hypot(np.fft.fftfreq(32)[:, None], np.fft.fftfreq(32))
    assert detail(noise) == pytest.approx((radii > 1 / 3).sum() / (32 * 32 - 1), rel=0.01)
    assert detail(np.full((2, 1, 32, 32), 0.4, np.float32)) == pytest.approx(0, abs=1e-6)
    for cycles, share in ((3, 0), (10, 0), (11, 1), (15, 1)):
        wave = 0.5 + 0.4 * np.sin(2 * np.pi * cycles * np.arange(32) / 32)
        assert detail(np.tile(wave, (2, 1, 32, 1))) == pytest.approx(share, abs=1e-6)
    assert detail(0.8 * few_heads) == pytest.approx(detail(few_heads))


def test_the_detail_ratio_is_one_for_fresh_phantoms_and_falls_with_blur():
    real, fresh = (phantom_images(120, 32, seed) for seed in (0, 1))
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
    images = phantom_images(300, 16, seed=2)
    pick = np.random.default_rng(0)
    found = [
        detail_ratio(images[pick.integers(300, size=60)], images[pick.integers(300, size=60)])
        for _ in range(80)
    ]
    assert 0.89 <= share_covered(found, 1.0) <= 0.99


# Curves


def test_the_power_of_a_sinusoid_lies_at_its_frequency():
    x = np.arange(64)
    for cycles in (1, 5, 31):
        wave = 0.5 + 0.4 * np.sin(2 * np.pi * cycles * x / 64)
        for image in (np.tile(wave, (64, 1)), np.tile(wave, (64, 1)).T):
            frequencies, power = power_spectrum(image[None, None])
            assert frequencies[1 + power[1:].argmax()] == pytest.approx(cycles / 64)
            assert power[1:].max() > 1e6 * np.sort(power[1:])[-2]
            assert power[0] == pytest.approx(64 * 64 * 0.25)


@pytest.mark.parametrize("shape", [(32, 32), (33, 33), (24, 40)])
def test_the_power_spectrum_keeps_the_mean_square(shape):
    images = np.random.default_rng(0).uniform(size=(80, 1, *shape)).astype(np.float32)
    frequencies, power = power_spectrum(images)
    radii = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij"))
    edges = np.append(0, frequencies[:-1] + np.diff(frequencies) / 2)
    counts = np.histogram(radii, np.append(edges, 1))[0]
    assert counts.sum() == np.prod(shape)
    assert (counts * power).sum() / np.prod(shape) == pytest.approx(np.mean(images**2), rel=1e-6)
    # White noise is flat; the last rings hold few frequencies.
    np.testing.assert_allclose(power[3:-2], 1 / 12, rtol=0.15)


def test_the_histogram_integrates_to_one_and_follows_the_density():
    images = np.sqrt(uniform_images(100, 64))  # density 2 x
    for bins in (64, 10):
        centres, density = intensity_histogram(images, bins)
        assert density.sum() / bins == pytest.approx(1)
        assert centres[0] == pytest.approx(0.5 / bins)
        np.testing.assert_allclose(density, 2 * centres, atol=0.1)
    assert intensity_histogram(np.ones((1, 1, 2, 2)))[1][-1] == 64  # 1 is inside


# Seeds and refusals


@pytest.mark.parametrize("metric", [kid, frechet_distance])
def test_a_seed_repeats_the_interval_and_leaves_the_value(metric):
    real, fake = np.random.default_rng(0).normal(size=(2, 40, 3))
    assert metric(real, fake) == metric(real, fake)
    assert metric(real, fake).value == metric(real, fake, seed=1).value
    assert metric(real, fake) != metric(real, fake, seed=1)


NORMAL = np.random.default_rng(0).normal(size=(30, 12)).astype(np.float32)
WITH_NAN = np.where(np.arange(12) == 3, np.nan, NORMAL)


@pytest.mark.parametrize("metric", [kid, frechet_distance, precision_recall_density_coverage])
def test_features_that_cannot_be_compared_are_refused(metric):
    with pytest.raises(InputError, match="12 wide and the fake ones 11"):
        metric(NORMAL, NORMAL[:, :11])
    with pytest.raises(InputError, match="The fake features hold NaN or infinity in 30 places"):
        metric(NORMAL, WITH_NAN)
    with pytest.raises(InputError, match="The real features hold NaN"):
        metric(WITH_NAN, NORMAL)
    with pytest.raises(InputError, match=r"The real features have shape \(30,\)"):
        metric(NORMAL[:, 0], NORMAL)


@pytest.mark.parametrize(
    ("metric", "enough", "message"),
    [
        (kid, 10, "9 images are too few for KID: at least 10 are needed"),
        (
            frechet_distance,
            13,
            "12 images are too few for the Fréchet distance: at least 13 are needed for 12 features",
        ),
        (
            precision_recall_density_coverage,
            6,
            "5 images are too few for precision and recall: at least 6 are needed for k = 5",
        ),
    ],
)
def test_too_few_features_are_refused(metric, enough, message):
    metric(NORMAL[:enough], NORMAL)
    for sets in ((NORMAL[: enough - 1], NORMAL), (NORMAL, NORMAL[: enough - 1])):
        with pytest.raises(InputError, match=message):
            metric(*sets)


def test_k_out_of_range_is_refused():
    with pytest.raises(InputError, match="30 images are too few for .*: at least 31 are needed for k = 30"):
        precision_recall_density_coverage(NORMAL, NORMAL, k=30)
    with pytest.raises(InputError, match="k is 0"):
        precision_recall_density_coverage(NORMAL, NORMAL, k=0)


@pytest.mark.parametrize("metric", [ms_ssim_of_pairs, power_spectrum, intensity_histogram])
def test_images_that_cannot_be_measured_are_refused(metric):
    images = uniform_images(12, 16)
    metric(images)
    with pytest.raises(InputError, match=r"shapes \(1, 11, 11\) and \(1, 16, 16\), and .* takes one size"):
        metric([*images, *uniform_images(2, 11)])
    with pytest.raises(InputError, match=r"shape \(12, 16, 16\).*takes \(N, 1, H, W\)"):
        metric(images[:, 0])
    with pytest.raises(InputError, match="-1 to 1.*takes"):
        metric((2 * images - 1).round())
    images[3, 0, 2, 2] = np.nan
    with pytest.raises(InputError, match="The images hold NaN or infinity in 1 places"):
        metric(images)
    with pytest.raises(InputError, match="0 images are too few for"):
        metric(images[:0])


def test_ms_ssim_refuses_what_is_too_few_or_too_small():
    with pytest.raises(InputError, match="9 images are too few for MS-SSIM of pairs: at least 10 are needed"):
        ms_ssim_of_pairs(uniform_images(9, 16))
    with pytest.raises(InputError, match="11 pixels a side or more, and these have 10"):
        ms_ssim_of_pairs(uniform_images(12, 10))
    with pytest.raises(InputError, match="pairs is 0"):
        ms_ssim_of_pairs(uniform_images(12, 16), pairs=0)
