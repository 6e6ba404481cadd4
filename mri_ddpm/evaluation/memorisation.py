"""Are synthetic images copies of training patients? The audit, and the detector that rejects copies.

For every image the nearest training image is sought by correlation of pixels and, where the caller gives one, in an
embedding. Slices of one patient resemble each other, so *held-out real images* come near training images too: how
near is what synthetic images are compared with.

Pixels are compared by the correlation of lightly smoothed images without their margin, at its best over shifts and a
left-right flip. A limit on it alone fails: at 32 pixels 5 % of held-out scans correlate at over 0.985 with a slice in
training, but of training scans with noise of sigma 0.05 only 42 % do. Two things mend it:

- the *ratio* of the nearest distance, 1 - correlation, to the mean distance of the 50 nearest (after Carlini et al.
  2023, arXiv:2301.13188): neighbouring slices come in numbers, a copy is nearer than any. 77 % then;
- the image's own white noise is allowed for. It is measured by the *median* fine detail of what the best fit leaves,
  for noise is everywhere, while two slices differ at edges; held-out ratios hardly change. 100 % then.

Measured on the reference set's scans (2438 to train, limits from half of 272 held out) at 32, 44 and 64 pixels, taken
for copies: training scans as they are, flipped, shifted, with noise of 0.02 to 0.05, blurred by half a pixel, of other
brightness, contrast or gamma, as JPEG of quality 75 or 50: 100 %; the other half held out: 5.2 % (mean of 200 ways to
halve them); the published testing part: 5 to 6 %; noise, phantoms: none. Turned by 2 degrees 100 %, enlarged by 2 % 94 to
98 %, mixed 90:10 with another scan 97 %. *Not seen*: turned by 5 degrees (16 %) or 10 (1 %), enlarged by 5 % (3 to 5 %),
mixed 70:30 (9 to 12 %) or 50:50 (none), half or the centre of a scan in another (none), upside down (none), noise of 0.15
at 32 pixels (42 %), a blur of 1 pixel at 32 (6 %) or 44 (61 %). Turned and upside-down images are not searched for: they
are nearest for 1.5 % of held-out scans and for none of the most suspicious, and the package trains on none.

N: images, M: training images, K: held-out images, P: pixels of a window, D: width of the embedding.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from scipy.ndimage import shift as move
from scipy.stats import binom, binomtest
from tqdm import tqdm

from mri_ddpm.errors import InputError

from .estimates import Estimate

NEIGHBOURS = 50
MIN_TRAINING, MIN_HELD_OUT, MIN_SIDE = NEIGHBOURS + 1, 20, 16
MAX_SIDE = 128  # pixels; larger images are compared at this size
SHIFT_SHARE = 1 / 22  # of the side, rounded up: 2 pixels at 32 and 44, 3 at 64
SMOOTHING_SHARE = 1 / 45  # of the side: the standard deviation of a Gaussian
VERDICT_RATE = 0.05  # of real images never trained on, taken for copies
MIN_LIMIT = 1e-3  # on the ratio; held-out scans have 0.1, copies of training images 0
MAX_LOST = 0.1  # of correlation to noise; an image of noise alone would be excused half
MIN_MEAN_DISTANCE = 1e-3  # 50 copies of one picture have a mean distance of 0, but for rounding
# The second difference in both directions: of smooth pictures little passes, of white noise its whole variance.
DETAIL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6

Variant = tuple[bool, int, int]  # an image flipped left-right or not, then read so far down and right


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training image of each of N images in one space.

    index: int64 (N,), its row in training.
    similarity: float32 (N,) <= 1; that of pixels is what it would be without the image's own white noise.
    ratio: float32 (N,), the distance 1 - similarity to it / the mean distance of the 50 nearest; small is suspicious.
    flipped, shift: bool (N,) and int64 (N, 2): flipped left-right or not, then moved so many pixels down and right,
        the training image lies on the image. None in an embedding.
    """

    index: np.ndarray
    similarity: np.ndarray
    ratio: np.ndarray
    flipped: np.ndarray | None = None
    shift: np.ndarray | None = None


def nearest_by_correlation(images: np.ndarray, training: np.ndarray, *, progress: bool = False) -> Nearest:
    """Find each image's nearest training image by correlation, at its best over shifts and a left-right flip.

    images, training: float32 (N, 1, H, W) and (M, 1, H, W) in [0, 1], M > 50; constant ones correlate with nothing.
    Time grows with N * M, memory with N + M. Raises `InputError` for images that cannot be compared.
    """
    _check_images(training, "training", MIN_TRAINING)
    _check_images(images, "images", 1, training)
    scale = max(1.0, max(images.shape[2:]) / MAX_SIDE)
    images, training = _at_most_128(images), _at_most_128(training)
    sigma = SMOOTHING_SHARE * max(images.shape[2:])
    smooth, variants = _smoothed(images, sigma), _variants(images)
    fixed = _unit(_window(_smoothed(training, sigma), (False, 0, 0)))  # (M, P)
    found = []
    blocks = smooth.split(max(16, 2**21 // len(training)))
    for rows in tqdm(blocks, desc="Comparing", unit="block", disable=not progress):
        best = torch.full((len(rows), len(fixed)), -1.0)
        product = torch.empty_like(best)
        for variant in variants:
            torch.mm(_unit(_window(rows, variant)), fixed.T, out=product)
            torch.maximum(best, product, out=best)
        similarity, index = best.topk(NEIGHBOURS)  # (block, 50) each
        near = fixed[index[:, 0]]
        at = torch.stack([(_unit(_window(rows, v)) * near).sum(1) for v in variants]).argmax(0)
        found.append((similarity, index[:, 0], at))
    similarity, index, at = (torch.cat(parts) for parts in zip(*found, strict=True))
    moves = np.array(variants)[at.numpy()]  # (N, 3)
    lost = _lost_to_noise(images, smooth, training[index], moves, sigma)
    # Found is how the image is read; to lay the training image on it, right is left once it has been flipped.
    shift = moves[:, 1:] * np.where(moves[:, :1], [[1, -1]], [[1, 1]]) * scale
    return _nearest(index, similarity, lost, moves[:, 0] == 1, np.round(shift).astype(np.int64))


def nearest_by_embedding(features: np.ndarray, training_features: np.ndarray) -> Nearest:
    """Find each image's nearest training image by the cosine of features (N, D) and (M, D), M > 50.

    Raises `InputError` for features that cannot be compared.
    """
    _check_features(training_features, "training", MIN_TRAINING)
    _check_features(features, "images", 1, training_features)
    queries, fixed = (F.normalize(_tensor(f)) for f in (features, training_features))
    tops = [(rows @ fixed.T).topk(NEIGHBOURS) for rows in queries.split(max(16, 2**22 // len(fixed)))]
    similarity, index = (torch.cat(parts) for parts in zip(*tops, strict=True))
    return _nearest(index[:, 0], similarity, 0.0)


@dataclass(frozen=True, eq=False)
class Examination:
    """What `CopyDetector.examine` found of N images.

    nearest: by space, "pixels" and, with an embedding, "embedding".
    over_95, over_99: by space, bool (N,): more similar than the held-out's 95th and 99th percentile.
    suspicion: float (N,), the least of the spaces' ratios, each over its space's limit; small is suspicious.
    flagged: bool (N,), the verdict: taken for a copy.
    space, index: str (N,) and int64 (N,), the space of that least ratio, and the training image there.
    """

    nearest: dict[str, Nearest]
    over_95: dict[str, np.ndarray]
    over_99: dict[str, np.ndarray]
    suspicion: np.ndarray
    flagged: np.ndarray
    space: np.ndarray
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class CopyDetector:
    """Training images, and how near to them held-out real images come; made once by `fit`.

    The verdict: in one space or the other, an image's ratio is so low that of held-out images 5 % are as low in any. 5 %
    and not 1 %, for the 1st percentile of some hundred scans is one or two of them, which may well be copies that
    de-duplication missed: over halves of the 272 it varies from 0.04 to 0.09 (32 pixels), the 5th from 0.10 to 0.12.
    """

    training: np.ndarray
    embed: Callable[[np.ndarray], np.ndarray] | None
    training_features: np.ndarray | None
    held_out: dict[str, Nearest]

    @classmethod
    def fit(
        cls,
        training: np.ndarray,
        held_out: np.ndarray,
        embed: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> "CopyDetector":
        """Find how near the held-out images come to training.

        training, held_out: real images (M, 1, H, W) and (K, 1, H, W) in [0, 1], M > 50 and K >= 20, no picture in
            both. Copies within training should be folded: of a picture there k times the ratio is up to
            50 / (51 - k) times too high, so a few do no harm.
        embed: images (N, 1, H, W) -> features (N, D), for a second space.
        Raises `InputError` for images that cannot be compared.
        """
        _check_images(held_out, "held_out", MIN_HELD_OUT)
        _check_images(training, "training", MIN_TRAINING, held_out)
        features = None if embed is None else embed(training)
        found = _nearest_in_each(held_out, training, embed, features)
        for space, nearest in found.items():
            if _quantile(nearest.ratio, VERDICT_RATE) < MIN_LIMIT:
                raise InputError(
                    f"5 % or more of the held-out images are copies of training images ({space}), so nothing tells"
                    " copies apart: hold out others."
                )
        return cls(training, embed, features, found)

    def examine(self, images: np.ndarray) -> Examination:
        """Find the nearest training image of each image (N, 1, H, W) in each space, and pass the verdict."""
        nearest = _nearest_in_each(images, self.training, self.embed, self.training_features)
        over_95, over_99 = (
            {s: n.similarity > _quantile(self.held_out[s].similarity, level) for s, n in nearest.items()}
            for level in (0.95, 0.99)
        )
        ratios = self._relative_ratios(nearest)  # (spaces, N)
        space, rows = ratios.argmin(0), np.arange(len(images))
        flagged = ratios.min(0) < _quantile(self.held_out_suspicion, VERDICT_RATE)
        index = np.stack([n.index for n in nearest.values()])[space, rows]
        names = np.array(list(nearest))[space]
        return Examination(nearest, over_95, over_99, ratios.min(0), flagged, names, index)

    @property
    def held_out_suspicion(self) -> np.ndarray:
        """What `Examination.suspicion` is of the held-out images, float (K,)."""
        return self._relative_ratios(self.held_out).min(0)

    def _relative_ratios(self, nearest: dict[str, Nearest]) -> np.ndarray:
        """Ratios (spaces, N) over the limit of the space, so that those of two spaces can be compared."""
        limits = {space: _quantile(n.ratio, VERDICT_RATE) for space, n in self.held_out.items()}
        return np.stack([n.ratio / limits[space] for space, n in nearest.items()])


def audit(detector: CopyDetector, images: np.ndarray, examination: Examination | None = None) -> dict:
    """Say in numbers for JSON what `detector` makes of synthetic images (N, 1, H, W).

    Each share is an `Estimate` beside the share `expected` of real images never trained on. `copies` is the verdict,
    with the number of distinct training images copied; `worst_pairs` are the 16 most suspicious, by their rows in
    `images` and in training. examination: of these images, where there is one already.
    """
    found = detector.examine(images) if examination is None else examination
    verdict = _share(-found.suspicion, -detector.held_out_suspicion, 1 - VERDICT_RATE)
    distinct = len(np.unique(found.index[found.flagged]))
    return {
        "images": len(images),
        "training_images": len(detector.training),
        "held_out_images": len(detector.held_out_suspicion),
        "copies": verdict | {"count": int(found.flagged.sum()), "distinct_training_images": distinct},
        **{space: _numbers(nearest, detector.held_out[space]) for space, nearest in found.nearest.items()},
        "worst_pairs": [_pair(found, row) for row in _worst(found, 16)],
    }


def share_beyond(scores: np.ndarray, held_out: np.ndarray, level: float) -> Estimate:
    """Share of scores (N,) over the `level` quantile of real images, which `held_out` (K,) only estimates.

    Two errors add as squares (MOVER, Zou & Donner 2008): the share's own, exact binomial, and the quantile's, by the
    order statistics that enclose it 95 times in 100. An upper one beyond the K images (the 99th percentile with
    K < 368) is put as far beyond the largest as the lower one lies below it; where less than two of K are expected over
    the quantile there is none, and the interval goes down to 0.
    """
    ordered, count, share = np.sort(held_out), len(held_out), _share_over(scores, _quantile(held_out, level))
    low, high = (
        int(binom.ppf(p, count, level)) for p in (0.025, 0.975)
    )  # how many may lie below the quantile
    below = ordered[low - 1] if low else -np.inf
    if high < count:
        above = ordered[high]
    else:
        above = 2 * ordered[-1] - below if count * (1 - level) > 2 - 1e-9 else np.inf
    own = binomtest(round(share * len(scores)), len(scores)).proportion_ci(0.95)
    down = math.hypot(share - own.low, share - _share_over(scores, above))
    up = math.hypot(own.high - share, _share_over(scores, below) - share)
    return Estimate(share, max(0.0, share - down), min(1.0, share + up), len(scores))


def worst_pairs_picture(
    detector: CopyDetector, examination: Examination, images: np.ndarray, count: int = 16
) -> Image.Image:
    """Draw the most suspicious pairs: synthetic | its training image, moved as found | their difference."""
    rows = _worst(examination, count)
    side, columns = max(96, images.shape[3]), min(4, len(rows))
    height = round(side * images.shape[2] / images.shape[3])
    canvas = Image.new("L", (columns * (3 * side + 16), -(-len(rows) // columns) * (height + 36)))
    draw = ImageDraw.Draw(canvas)
    for place, row in enumerate(rows):
        x, y = place % columns * (3 * side + 16), place // columns * (height + 36)
        pair = _pair(examination, row)
        real = detector.training[pair["training_image"], 0]  # (H, W)
        real = real[:, ::-1] if pair["flipped"] else real
        real = move(real, pair["shift"], order=0) if pair["shift"] else real
        for part, picture in enumerate((images[row, 0], real, np.abs(images[row, 0] - real))):
            pixels = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
            canvas.paste(pixels.resize((side, height)), (x + part * side, y))
        verdict = "taken for a copy" if examination.flagged[row] else "not taken for one"
        moved = "" if pair["shift"] is None else f", moved {pair['shift']}" + ", flipped" * pair["flipped"]
        caption = (
            f"{row} : {pair['training_image']} {verdict}\n{pair['space']} {pair['similarity']:.4f}{moved}"
        )
        draw.multiline_text((x + 2, y + height + 2), caption, fill=255)
    return canvas


def _nearest_in_each(images, training, embed, training_features) -> dict[str, Nearest]:
    found = {"pixels": nearest_by_correlation(images, training)}
    if embed is not None:
        found["embedding"] = nearest_by_embedding(embed(images), training_features)
    return found


def _nearest(index, similarity, lost, flipped=None, shift=None) -> Nearest:
    """Put together what was found: the 50 best `similarity` (N, 50), and what the best `lost` to noise (N,)."""
    first = (1 - similarity[:, 0] - lost).clamp_min(0)
    ratio = first / (1 - similarity).mean(1).clamp_min(MIN_MEAN_DISTANCE)
    return Nearest(index.numpy(), (1 - first).numpy(), ratio.numpy(), flipped, shift)


def _lost_to_noise(images, smooth, real, moves: np.ndarray, sigma: float) -> torch.Tensor:
    """By how much the white noise of each image lowers its correlation with `real`, both (N, 1, H, W): (N,).

    To first order by var(noise) / (2 var(image)). The noise is measured in what is left of the image after the best fit
    a + b * real, by its median fine detail: noise is everywhere, what two slices differ in sits at some edges.
    """
    left, variance = torch.zeros(len(images)), torch.zeros(len(images))
    for flip, down, right in np.unique(moves, axis=0).tolist():
        here = torch.from_numpy((moves == (flip, down, right)).all(1))
        x, y = _crop(images[here], (flip, down, right)), _crop(real[here], (False, 0, 0))  # (n, h, w)
        x, y = (v - v.mean((1, 2), keepdim=True) for v in (x, y))
        slope = (x * y).sum((1, 2), keepdim=True) / (y * y).sum((1, 2), keepdim=True).clamp_min(1e-6)
        detail = F.conv2d((x - slope * y)[:, None], DETAIL[None, None]).flatten(1)
        left[here] = (
            detail.abs().median(1).values / 0.6745
        ) ** 2  # of a Gaussian, the median is 0.6745 sigma
        variance[here] = _window(smooth[here], (flip, down, right)).var(1)
    passes = (
        float((gaussian_filter1d(np.eye(1, 65, 32)[0], sigma) ** 2).sum()) ** 2
    )  # the smoothing, of noise
    return (passes * left / (2 * variance).clamp_min(1e-8)).clamp_max(MAX_LOST)


def _variants(images: torch.Tensor) -> list[Variant]:
    steps = range(-_reach(images), _reach(images) + 1)
    return [(flip, down, right) for flip in (False, True) for down in steps for right in steps]


def _reach(images: torch.Tensor) -> int:
    return math.ceil(SHIFT_SHARE * max(images.shape[2:]))


def _crop(images: torch.Tensor, variant: Variant) -> torch.Tensor:
    """What stays inside at every shift, less 1 pixel: smoothing has mixed in the border. (N, 1, H, W) -> (N, h, w)."""
    flip, down, right = variant
    edge, (height, width) = _reach(images) + 1, images.shape[2:]
    images = images.flip(3) if flip else images
    return images[:, 0, edge + down : height - edge + down, edge + right : width - edge + right]


def _window(images: torch.Tensor, variant: Variant) -> torch.Tensor:
    """The crop as rows (N, P); at 64 pixels of every second pixel, for smoothing has left nothing in between."""
    every = max(1, max(images.shape[2:]) // 32)
    return _crop(images, variant)[:, ::every, ::every].flatten(1)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    """Rows (N, P) of mean 0 and length 1, whose products are correlations; constant rows become 0."""
    rows = rows - rows.mean(1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-3)


def _smoothed(images: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def _at_most_128(images: np.ndarray) -> torch.Tensor:
    images, scale = _tensor(images), max(images.shape[2:]) / MAX_SIDE
    if scale <= 1:
        return images
    size = [round(side / scale) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _worst(examination: Examination, count: int) -> list[int]:
    return np.argsort(examination.suspicion, kind="stable")[:count].tolist()


def _pair(examination: Examination, row: int) -> dict:
    space = str(examination.space[row])
    nearest = examination.nearest[space]
    return {
        "image": row,
        "training_image": int(nearest.index[row]),
        "space": space,
        "similarity": float(nearest.similarity[row]),
        "ratio": float(nearest.ratio[row]),
        "flipped": None if nearest.flipped is None else bool(nearest.flipped[row]),
        "shift": None if nearest.shift is None else nearest.shift[row].tolist(),
    }


def _numbers(nearest: Nearest, held_out: Nearest) -> dict:
    return {
        "similarity_over_95th_percentile": _share(nearest.similarity, held_out.similarity, 0.95),
        "similarity_over_99th_percentile": _share(nearest.similarity, held_out.similarity, 0.99),
        "median_similarity": _median(nearest.similarity),
        "median_similarity_held_out": _median(held_out.similarity),
        "ratio_under_1st_percentile": _share(-nearest.ratio, -held_out.ratio, 0.99),
        "median_ratio": _median(nearest.ratio),
        "median_ratio_held_out": _median(held_out.ratio),
    }


def _share(scores: np.ndarray, held_out: np.ndarray, level: float) -> dict:
    return {"share": share_beyond(scores, held_out, level).as_dict(), "expected": round(1 - level, 4)}


def _share_over(scores: np.ndarray, limit: float) -> float:
    return float((scores > limit).mean())


def _quantile(held_out: np.ndarray, level: float) -> float:
    """Between order statistics (K + 1) * level, so that of other real images the share 1 - level lies over it."""
    return float(np.quantile(held_out, level, method="weibull"))


def _median(values: np.ndarray) -> dict:
    """The median between the order statistics that enclose it 95 times in 100; of few values, between all."""
    ordered, count = np.sort(values), len(values)
    low = max(int(binom.ppf(0.025, count, 0.5)) - 1, 0)
    middle, low, high = float(np.median(ordered)), float(ordered[low]), float(ordered[count - 1 - low])
    return Estimate(middle, low, high, count).as_dict()


def _check_images(images: np.ndarray, name: str, fewest: int, like: np.ndarray | None = None) -> None:
    """Raise `InputError` unless these are enough finite images (N, 1, H, W), of the size of `like`."""
    if images.ndim != 4 or images.shape[1] != 1 or min(images.shape[2:]) < MIN_SIDE:
        raise InputError(
            f"{name} have the shape {images.shape}: give (N, 1, H, W) of at least {MIN_SIDE} pixels a side."
        )
    if len(images) < fewest:
        raise InputError(f"{name} are {len(images)} images: looking for copies needs at least {fewest}.")
    if like is not None and images.shape[2:] != like.shape[2:]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (images.shape[2:], like.shape[2:])]
        raise InputError(f"{name} are {sizes[0]} pixels and training {sizes[1]}: bring them to one size.")
    if not np.isfinite(images).all():
        raise InputError(f"{name} hold values that are not finite numbers: mend or remove them.")


def _check_features(features: np.ndarray, name: str, fewest: int, like: np.ndarray | None = None) -> None:
    """Raise `InputError` unless these are enough finite features (N, D), as wide as those of `like`."""
    if features.ndim != 2 or (like is not None and features.shape[1] != like.shape[1]):
        raise InputError(
            f"The embedding gives {features.shape} for {name}: it has to give (N, D), D the same."
        )
    if len(features) < fewest:
        raise InputError(f"{name} has features of {len(features)} images: at least {fewest} are needed.")
    if not np.isfinite(features).all():
        raise InputError(f"The embedding gives values for {name} that are not finite numbers.")
