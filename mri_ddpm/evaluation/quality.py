"""How good synthetic images are: each metric a pure function on arrays, each number with its 95 % interval.

Real and fake sets come as features ``(N, D)`` of any one extractor, or as images ``(N, 1, H, W)`` in [0, 1]. No metric
sees everything: what each is blind to stands in its docstring. Letters: M real and N fake images, D features, B resamples
of the bootstrap, P pairs.
"""

from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial.distance import cdist
from scipy.stats import t

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.estimates import Estimate, percentile_interval, resampling_counts, share
from mri_ddpm.evaluation.lazy import Images, LazyImages, blocks

_LEAST_IMAGES = 10  # an interval from fewer says nothing
_FRECHET_RESAMPLES = 200  # each takes a twentieth of a second at 3000 images and 128 features
_LEAST_POWER = 1e-12  # of flat images there is only rounding
_BLOCK = 256  # features compared with all others at a time, to keep memory low
_BLOCK_PIXELS = 2**16  # of images handled at a time: they stay in the cache, twice as fast
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2
_MS_SSIM_LEAST_SIDES = (11, 22, 44, 99, 176)  # in pixels, for 1, 2, ... 5 scales


def kid(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> Estimate:
    """Kernel Inception Distance between features ``(M, D)`` and ``(N, D)``: 0 is best, and below 0 it is noise.

    The unbiased estimate of MMD^2 under the kernel (x . y / D + 1)^3 (Bińkowski et al. 2018, arXiv:1801.01401), over all
    images, not over subsets. The interval is a percentile bootstrap of both sets. Where the two distributions are the same
    it is nearly twice too wide, which is the safe side.

    Blind to copying: a set of copies of the real images scores best of all. ``n`` is the size of the smaller set. Needs
    10 images in each; raises `InputError` for fewer, for features of different width, and for NaNs.
    """
    real, fake = _checked_features("KID", real, fake, _LEAST_IMAGES)
    rng = np.random.default_rng(seed)
    # The first row weighs every image once, the others are resamples.
    real_counts = np.vstack([np.ones(len(real)), resampling_counts(len(real), rng)])  # (1 + B, M)
    fake_counts = np.vstack([np.ones(len(fake)), resampling_counts(len(fake), rng)])  # (1 + B, N)
    between = _kernel_sums(real, fake, real_counts, fake_counts) / (len(real) * len(fake))  # (1 + B,)
    mmd = _mean_within(real, real_counts) + _mean_within(fake, fake_counts) - 2 * between  # (1 + B,)
    return Estimate(float(mmd[0]), *percentile_interval(mmd[1:]), n=min(len(real), len(fake)))


def frechet_distance(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> Estimate:
    """Fréchet distance of the Gaussians fitted to features ``(M, D)`` and ``(N, D)``: 0 is best.

    |mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2)) (Heusel et al. 2017, arXiv:1706.08500, equation 6). The value is the
    usual one, biased upwards, the more so the fewer images there are for D features: compare at equal numbers only. The
    interval is for the true distance: percentiles of a bootstrap of both sets, moved down by twice its bias (once for its
    own, once for the value's, which it estimates), cut at 0 and stretched to the value, which with few images is its upper
    end. It needs 2 D images or more to hold, and many times D to be narrow.

    Blind to copying, as `kid` is, and to everything but means and covariances. ``n`` is the size of the smaller set. Raises
    `InputError` unless both hold more than D images, for features of different width, and for NaNs.
    """
    real, fake = _checked_features("the Fréchet distance", real, fake)
    width = real.shape[1]
    _check_enough("the Fréchet distance", min(len(real), len(fake)), width + 1, f" for {width} features")
    rng = np.random.default_rng(seed)
    value = _gaussian_distance(_fit(real, np.ones(len(real))), _fit(fake, np.ones(len(fake))))
    counts = [resampling_counts(len(x), rng, _FRECHET_RESAMPLES) for x in (real, fake)]  # (B, M), (B, N)
    replicates = [_gaussian_distance(_fit(real, a), _fit(fake, b)) for a, b in zip(*counts, strict=True)]
    bias = float(np.mean(replicates)) - value
    low, high = (max(end - 2 * bias, 0.0) for end in percentile_interval(replicates))
    return Estimate(value, min(low, value), max(high, value), n=min(len(real), len(fake)))


def precision_recall_density_coverage(
    real: np.ndarray, fake: np.ndarray, k: int = 5, seed: int = 0
) -> dict[str, Estimate]:
    """Share of fakes that look real and of reals that the fakes reach, from features ``(M, D)`` and ``(N, D)``.

    A ball around every image of one set, out to its k-th neighbour in the same set, makes up that set's manifold.
    ``precision`` is the share of fakes in the real manifold and ``recall`` of reals in the fake one (Kynkäänniemi et al.
    2019, arXiv:1904.06991); ``density`` the mean number of real balls around a fake over k, which may pass 1, and
    ``coverage`` the share of real balls with a fake inside (Naeem et al. 2020, arXiv:2002.09797). All depend on M, N and k:
    compare at equal numbers only.

    The intervals are over the images whose values are averaged, ``n`` of them, with the manifolds held fixed: Wilson's
    for the three shares (a bootstrap of a share of 0 or 1 has no width), a percentile bootstrap for density. They leave out
    the manifolds' own noise, and are up to 40 % too narrow for other sets.

    Precision and density are blind to modes left out and to few images repeated; all four to copying the real images.
    Raises `InputError` unless 1 <= k < M and N, for features of different width, and for NaNs.
    """
    real, fake = _checked_features("precision and recall", real, fake)
    if k < 1:
        raise InputError(f"k is {k}: precision and recall take 1 or more.")
    _check_enough("precision and recall", min(len(real), len(fake)), k + 1, f" for k = {k}")
    real_radii, fake_radii = _kth_neighbour_distances(real, k), _kth_neighbour_distances(fake, k)
    balls_around = np.zeros(len(fake))  # (N,), how many real balls each fake lies in
    reached = np.zeros(len(real), dtype=bool)  # (M,), whether each real lies in a fake ball
    nearest = np.full(len(real), np.inf)  # (M,), how far each real is from a fake
    for block in _blocks(len(fake)):
        distances = cdist(fake[block], real)  # (block, M)
        balls_around[block] = (distances < real_radii).sum(axis=1)
        reached |= (distances < fake_radii[block, None]).any(axis=0)
        nearest = np.minimum(nearest, distances.min(axis=0))
    density = balls_around / k  # (N,)
    counts = resampling_counts(len(fake), np.random.default_rng(seed))  # (B, N)
    interval = percentile_interval(counts @ density / len(fake))
    return {
        "precision": share(balls_around > 0),
        "recall": share(reached),
        "density": Estimate(float(density.mean()), *interval, n=len(fake)),
        "coverage": share(nearest < real_radii),
    }


def ms_ssim_of_pairs(images: np.ndarray, pairs: int = 1000, seed: int = 0) -> Estimate:
    """Mean MS-SSIM of random pairs of different images ``(N, 1, H, W)`` in [0, 1]: low is diverse, 1 is all the same.

    MS-SSIM is Wang et al.'s (2003, equation 7; a negative term counts as 0), its use for diversity Odena et al.'s (2017,
    arXiv:1610.09585). Five scales need a smaller side of 176 pixels, four 99, three 44, two 22 and one 11, so that the
    11-pixel window fits the coarsest and torchmetrics takes it; fewer scales keep the first weights, rescaled to sum to 1.
    So values compare at equal size only. Pairs are distinct, all of them where there are fewer than ``pairs``.

    Pairs share images, so the interval is Student's, with a variance that counts what pairs with an image in common share
    (`_dyadic_variance`). Resampling images instead would triple that variance where few pairs share any.

    It sees no quality: noise lowers it and blur raises it, and it hardly sees few images repeated. Compare it with that of
    real images. ``n`` counts images. Needs 10 images and 1 pair; raises `InputError` for fewer, for images of different
    size or under 11 pixels, and for NaNs.
    """
    images = _checked_images("MS-SSIM of pairs", images, _LEAST_IMAGES)
    if pairs < 1:
        raise InputError(f"pairs is {pairs}: MS-SSIM of pairs takes 1 or more.")
    weights = _ms_ssim_weights(min(images.shape[2:]))
    first, second = _distinct_pairs(len(images), pairs, np.random.default_rng(seed))
    pairs_of = ((first[b], second[b]) for b in _blocks(len(first), _in_cache(images)))
    values = np.concatenate(
        [_ms_ssim(np.asarray(images[a]), np.asarray(images[b]), weights) for a, b in pairs_of]
    )
    value = float(values.mean())
    spread = np.sqrt(_dyadic_variance(values, first, second, len(images))) * t.ppf(0.975, len(images) - 1)
    return Estimate(value, value - float(spread), value + float(spread), n=len(images))


def ssim_to_nearest(images: np.ndarray, scans: np.ndarray) -> np.ndarray:
    """SSIM of every image to the scan it resembles most, ``(N, 1, H, W), (M, 1, H, W) -> (N,)``; 1 is the same.

    SSIM is Wang et al.'s (2004, equation 13; Gaussian window of 11 pixels, borders mirrored, range 1). Of real images never seen it is
    what validation scans of the same kind reach; of copies of the scans it is 1. Blur raises it. It falls with resolution, so
    values compare at equal size and equal M only. Raises `InputError` for images under 11 pixels or of different size, and
    for NaNs.
    """
    images, scans = (_checked_images("SSIM to the nearest", x, 1) for x in (images, scans))
    if images.shape[1:] != scans.shape[1:] or min(images.shape[2:]) < _MS_SSIM_LEAST_SIDES[0]:
        sizes = f"{images.shape[2:]} and the scans {scans.shape[2:]} pixels"
        raise InputError(f"The images are {sizes}: SSIM takes one size, of 11 pixels a side or more.")
    from torchmetrics.functional.image import (
        structural_similarity_index_measure,
    )  # late, for it takes a second

    best = np.full(len(images), -1.0)
    images, others = (torch.from_numpy(np.ascontiguousarray(x)) for x in (images, scans))
    for block in _blocks(len(scans), _in_cache(scans)):
        near = others[block]
        for i, image in enumerate(images):
            values = structural_similarity_index_measure(
                image.expand_as(near), near, data_range=1.0, reduction="none"
            )
            best[i] = max(best[i], values.max().item())
    return best


def detail_ratio(real: np.ndarray, fake: np.ndarray, seed: int = 0) -> Estimate:
    """Fine detail of images ``(N, 1, H, W)`` over that of real ones ``(M, 1, H, W)``: 1 is right, less is blurred.

    `detail` of the one set over that of the other, with a percentile bootstrap of both. More than 1 is sharper, or noisy: it
    cannot tell noise from detail, nor detail in the right place from detail in the wrong one, and copies score 1. ``n`` is
    the size of the smaller set. Needs 10 images in each; raises `InputError` for fewer, for real images without any detail,
    and otherwise as `power_spectrum`.
    """
    rng = np.random.default_rng(seed)
    shares = []
    for images in (real, fake):
        _check_enough("the detail ratio", len(images), _LEAST_IMAGES)
        fine, whole = _fine_and_whole_power(images)  # (N,) each
        # The first row weighs every image once, the others are resamples.
        counts = np.vstack([np.ones(len(fine)), resampling_counts(len(fine), rng)])  # (1 + B, N)
        shares.append(counts @ fine / np.maximum(counts @ whole, _LEAST_POWER))
    if shares[0].min() == 0:
        raise InputError("The real images are flat, so no detail can be compared with theirs.")
    ratios = shares[1] / shares[0]
    return Estimate(float(ratios[0]), *percentile_interval(ratios[1:]), n=min(len(real), len(fake)))


def detail(images: np.ndarray) -> float:
    """Share of the power of images ``(N, 1, H, W)`` in the finest third of the spectrum: low is blurred, high sharp or noisy.

    That is beyond a third of a cycle a pixel, out of all but the mean's, so brightness does not matter. Flat images have
    0. Errors as of `power_spectrum`.
    """
    fine, whole = _fine_and_whole_power(images)
    return float(fine.sum() / max(whole.sum(), _LEAST_POWER))


def _fine_and_whole_power(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Power beyond a third of a cycle a pixel, and at all frequencies but 0, of each image: ``(N,)`` each."""
    images = _checked_images("fine detail", images, 1)
    radii = np.hypot(*np.meshgrid(*map(np.fft.fftfreq, images.shape[2:]), indexing="ij"))  # (H, W)
    fine, whole = np.empty(len(images)), np.empty(len(images))
    for block in _blocks(len(images), _in_cache(images)):
        power = np.abs(np.fft.fft2(np.asarray(images[block], np.float64)[:, 0])) ** 2  # (block, H, W)
        fine[block], whole[block] = power[:, radii > 1 / 3].sum(1), power[:, radii > 0].sum(1)
    return fine, whole


def power_spectrum(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radially averaged power of images ``(N, 1, H, W)``: frequencies ``(R,)`` in cycles/pixel, mean power ``(R,)``.

    Power is |FFT|^2 / (H W), so its mean over all frequencies is the images' mean square (Parseval). It is averaged over
    images and over rings one cycle per smaller side wide, from the mean's at 0 to the corners' beyond 0.5. Blur lowers the
    high end, noise lifts it. Raises `InputError` for no images, images of different size, and NaNs.
    """
    images = _checked_images("the power spectrum", images, 1)
    height, width = images.shape[2:]
    power = np.zeros((height, width))
    for block in _blocks(len(images), _in_cache(images)):
        spectrum = np.fft.fft2(np.asarray(images[block], np.float64)[:, 0])  # (block, H, W)
        power += (np.abs(spectrum) ** 2).sum(axis=0) / (height * width * len(images))
    radii = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))  # (H, W)
    rings = np.rint(radii * min(height, width)).astype(int).ravel()  # (H W,)
    frequencies = np.arange(rings.max() + 1) / min(height, width)  # (R,)
    return frequencies, np.bincount(rings, power.ravel()) / np.bincount(rings)


def intensity_histogram(images: np.ndarray, bins: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Distribution of the pixels of images ``(N, 1, H, W)``: bin centres ``(bins,)`` in [0, 1], density ``(bins,)``.

    The density integrates to 1. Raises `InputError` for no images, images of different size, and NaNs.
    """
    images = _checked_images("the intensity histogram", images, 1)
    edges = np.linspace(0, 1, bins + 1)
    counts = sum(np.histogram(block, edges)[0] for block in blocks(images))
    return (edges[:-1] + edges[1:]) / 2, counts * bins / counts.sum()


def _cubic_kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(x . y / D + 1)^3 of every pair, ``(M, D), (N, D) -> (M, N)`` (Bińkowski et al. 2018)."""
    kernel = a @ b.T
    kernel /= a.shape[1]
    kernel += 1
    kernel *= kernel * kernel
    return kernel


def _kernel_sums(
    a: np.ndarray, b: np.ndarray, a_counts: np.ndarray, b_counts: np.ndarray, apart: bool = False
) -> np.ndarray:
    """Kernels of all pairs, each as often as its images are taken: ``(M, D), (N, D), (B, M), (B, N) -> (B,)``.

    In blocks of the second set: of 50,000 images the whole matrix would fill 20 GB. ``apart``: of a set with itself, where no
    image is paired with itself.
    """
    sums = np.zeros(len(a_counts))
    for block in _blocks(len(b)):
        kernel = _cubic_kernel(a, b[block])  # (M, block)
        if apart:
            np.fill_diagonal(kernel[block], 0)
        sums += np.einsum("bn,bn->b", a_counts @ kernel, b_counts[:, block])
    return sums


def _mean_within(features: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean kernel of two different images of one set, ``(M, D), (B, M) -> (B,)``.

    A resample holds images twice. Their k(x, x) would bias the mean, so no image is paired with itself or its own copy.
    """
    pairs = counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1)
    return _kernel_sums(features, features, counts, counts, apart=True) / pairs


def _fit(features: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``(D,)`` and a root R ``(D, D)`` of the covariance R^T R, of features ``(N, D)`` taken ``counts`` times."""
    mean = counts @ features / counts.sum()
    centred = np.sqrt(counts)[:, None] * (features - mean)
    return mean, np.linalg.qr(centred, mode="r") / np.sqrt(counts.sum() - 1)


def _gaussian_distance(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """Fréchet distance of two fits; tr (S_1 S_2)^(1/2) is the sum of the singular values of R_1 R_2^T.

    So no matrix root is taken, and covariances that are singular do no harm.
    """
    (mean_a, root_a), (mean_b, root_b) = a, b
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    distance = ((mean_a - mean_b) ** 2).sum() + (root_a**2).sum() + (root_b**2).sum() - 2 * cross
    return max(float(distance), 0.0)  # rounding may leave -1e-15


def _kth_neighbour_distances(features: np.ndarray, k: int) -> np.ndarray:
    """Distance of every image to its k-th nearest other, ``(N, D) -> (N,)``."""
    # An image is its own nearest, at 0.
    return np.concatenate(
        [np.partition(cdist(features[b], features), k, axis=1)[:, k] for b in _blocks(len(features))]
    )


def _ms_ssim_weights(side: int) -> tuple[float, ...]:
    scales = sum(side >= least for least in _MS_SSIM_LEAST_SIDES)
    if not scales:
        raise InputError(f"MS-SSIM of pairs needs images of 11 pixels a side or more, and these have {side}.")
    weights = _MS_SSIM_WEIGHTS[:scales]
    return tuple(weight / sum(weights) for weight in weights)


def _ms_ssim(a: np.ndarray, b: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """MS-SSIM of each image of one block with the same of another, ``(B, 1, H, W) -> (B,)``."""
    # Imported late, as above
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    values = multiscale_structural_similarity_index_measure(
        torch.from_numpy(a), torch.from_numpy(b), data_range=1.0, betas=weights, reduction="none"
    )
    return values.double().numpy()


def _distinct_pairs(n: int, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw different pairs i > j of n images, all of them if there are not so many: ``(P,)`` each."""
    total = n * (n - 1) // 2
    index = rng.choice(total, size=min(pairs, total), replace=False)
    i = ((1 + np.sqrt(1 + 8 * index)) // 2).astype(np.int64)  # pairs numbered row by row: i (i - 1) / 2 + j
    return i, index - i * (i - 1) // 2


def _dyadic_variance(values: np.ndarray, first: np.ndarray, second: np.ndarray, n: int) -> float:
    """Variance of the mean of ``(P,)`` values of pairs of n images (Aronow, Samii & Assenova 2015, arXiv:1312.3398).

    Sums the products of residuals of every two pairs with an image in common, each pair with itself once; the factor is
    the jackknife's for few images.
    """
    residuals = values - values.mean()
    by_image = np.bincount(first, residuals, n) + np.bincount(second, residuals, n)  # (N,)
    alone = (residuals**2).sum()  # each pair with itself, which stands at both its images
    total = n * (n - 1) / (n - 2) ** 2 * (by_image**2).sum() - alone
    return max(total, alone) / len(values) ** 2  # images in common make pairs alike, never unlike


def _blocks(n: int, size: int = _BLOCK) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def _in_cache(images: Images) -> int:
    return max(1, _BLOCK_PIXELS // int(np.prod(images.shape[1:])))


def _checked_features(metric: str, real: np.ndarray, fake: np.ndarray, least: int = 1) -> list[np.ndarray]:
    """Return both as float64, or refuse them."""
    real, fake = np.asarray(real, dtype=np.float64), np.asarray(fake, dtype=np.float64)
    for name, features in (("real", real), ("fake", fake)):
        if features.ndim != 2:
            raise InputError(f"The {name} features have shape {features.shape}, and {metric} takes (N, D).")
        _check_enough(metric, len(features), least)
        _check_finite(f"The {name} features", features)
    if real.shape[1] != fake.shape[1]:
        widths = f"{real.shape[1]} wide and the fake ones {fake.shape[1]}"
        raise InputError(f"The real features are {widths}: take both from one extractor.")
    return [real, fake]


def _checked_images(metric: str, images: Images, least: int) -> Images:
    """Return the images as float32 ``(N, 1, H, W)``, those on disk unread, or refuse them."""
    if not isinstance(images, LazyImages):
        shapes = sorted({np.shape(image) for image in images})
        if len(shapes) > 1:
            raise InputError(
                f"The images have shapes {shapes[0]} and {shapes[1]}, and {metric} takes one size."
            )
        images = np.asarray(images, dtype=np.float32)
    _check_enough(metric, len(images), least)
    if images.ndim != 4 or images.shape[1] != 1:
        raise InputError(f"The images have shape {images.shape}, and {metric} takes (N, 1, H, W).")
    bad, low, high = 0, np.inf, -np.inf
    for block in blocks(images):
        bad += int((~np.isfinite(block)).sum())
        low, high = min(low, block.min()), max(high, block.max())
    if bad:
        raise InputError(f"The images hold NaN or infinity in {bad} places.")
    if low < 0 or high > 1:
        raise InputError(f"The images reach from {low:.3g} to {high:.3g}, and {metric} takes [0, 1].")
    return images


def _check_enough(metric: str, images: int, least: int, reason: str = "") -> None:
    if images < least:
        raise InputError(f"{images} images are too few for {metric}: at least {least} are needed{reason}.")


def _check_finite(what: str, array: np.ndarray) -> None:
    if not np.isfinite(array).all():
        raise InputError(f"{what} hold NaN or infinity in {int((~np.isfinite(array)).sum())} places.")
