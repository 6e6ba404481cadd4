"""Are synthetic images copies of training patients? The audit, and the detector that rejects copies.

For every image the nearest training image is sought by correlation of pixels and, where the caller gives one, in an
embedding. Slices of one patient resemble each other, so *real validation images* come near training images too: how
near is what synthetic images are compared with. A limit on the correlation alone fails: at 32 pixels 5 % of validation
scans correlate at over 0.985 with a slice in training, and 42 % of training scans do after noise of sigma 0.05. So

- the verdict goes by the *ratio* of the nearest distance to the mean distance of the 50 nearest (after Carlini et al.
  2023, arXiv:2301.13188): slices of one patient come in numbers, a copy is nearer than any of them. 77 % then;
- the image's own white noise is allowed for. It is measured by the *median* fine detail of what the best fit leaves,
  for noise is everywhere while two slices differ at edges; ratios of validation scans hardly change. 100 % then.

Taken for copies of the reference set's 2438 training scans (limits from half of 272 validation scans) at 32, 44 and 64 pixels:
these scans as they are, flipped, moved by 2 pixels, with noise up to 0.05, blurred by half a pixel, of other contrast or
gamma, as JPEG of quality 50, turned by 2 degrees: all; enlarged by 2 % 94 %; mixed 90:10 with another 97 %. The other half
validation scans 5.2 % (mean of 200 halves), the published testing part 5 to 6 %, noise and phantoms none. *Not seen*: turned by 5
degrees (16 %) or 10 (1 %), enlarged by 5 % (4 %), mixed 70:30 (10 %) or 50:50, half or the centre of a scan in another,
upside down (none of these), at 32 pixels a blur of 1 (6 %) or noise of 0.15 (42 %). Turned or upside-down images are not
sought: such are the nearest of 1.5 % of validation scans, and of none that is suspicious.

Images of several channels are compared in all of them at once, moved and flipped alike: their correlation is the mean of the channels'.

N: images, M: training images, K: validation images, C: channels, P: pixels of a window in all channels, D: width of the embedding.
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
from .lazy import Images, blocks

NEIGHBOURS = 50  # of fewer training images all
MIN_TRAINING, MIN_VALIDATION, MIN_SIDE = 20, 20, 16
MAX_SIDE = 128  # pixels; larger images are compared at this size
SHIFT_SHARE = 1 / 22  # of the side, rounded up: 2 pixels at 32 and 44, 3 at 64
SMOOTHING_SHARE = 1 / 45  # of the side: the standard deviation of a Gaussian
VERDICT_RATE = 0.05  # of real images never trained on, taken for copies
FALSE_ALARM_RATE = 0.05  # of sets of images without a copy, in which one is taken for a sure copy
MIN_LIMIT = 1e-3  # on the ratio; among validation scans it is 0.1, of copies 0
MAX_LOST = 0.1  # of correlation to noise; an image of noise alone would be excused half
MIN_MEAN_DISTANCE = 1e-3  # 50 copies of one picture have a mean distance of 0, but for rounding
# The second difference in both directions: of smooth pictures little passes, of white noise its whole variance.
DETAIL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6

Embedding = Callable[[np.ndarray], np.ndarray]  # images (N, C, H, W) -> features (N, D)


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training image of each of N images in one space.

    index: int64 (N,), its row in training.
    similarity: float32 (N,) <= 1; that of pixels is what it would be without the image's own white noise.
    ratio: float32 (N,), the distance 1 - similarity to it / the mean distance of the 50 nearest (all, of fewer); small is suspicious.
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

    images, training: float32 (N, C, H, W) and (M, C, H, W) in [0, 1], M > 50; constant ones correlate with nothing.
    Time grows with N * M, memory with N + M. Raises `InputError` for images that cannot be compared.
    """
    _check(training, "training images", MIN_TRAINING)
    _check(images, "images", 1, training)
    scale = max(1.0, max(images.shape[2:]) / MAX_SIDE)
    images, smooth = _prepared(images)
    steps = range(-_reach(images), _reach(images) + 1)
    variants = [(flip, down, right) for flip in (False, True) for down in steps for right in steps]
    fixed = torch.cat([_window(_prepared(block)[1]) for block in blocks(training)])  # (M, P)
    found = []
    parts = smooth.split(max(16, 2**21 // len(training)))
    for rows in tqdm(parts, desc="Comparing", unit="block", disable=not progress):
        best = torch.full((len(rows), len(fixed)), -1.0)
        product = torch.empty_like(best)
        for variant in variants:
            torch.mm(_window(rows, *variant), fixed.T, out=product)
            torch.maximum(best, product, out=best)
        similarity, index = best.topk(min(NEIGHBOURS, len(fixed)))  # (block, 50) each
        near = fixed[index[:, 0]]
        at = torch.stack([(_window(rows, *variant) * near).sum(1) for variant in variants]).argmax(0)
        found.append((similarity, index[:, 0], at))
    similarity, index, at = (torch.cat(parts) for parts in zip(*found, strict=True))
    moves = np.array(variants)[at.numpy()]  # (N, 3)
    lost = _lost_to_noise(images, smooth, _shrunk(training[index.numpy()]), moves)
    # Moves are how the image is read; on the training image, flipped first, right is the other way.
    shift = np.round(moves[:, 1:] * np.where(moves[:, :1], [[1, -1]], [[1, 1]]) * scale).astype(np.int64)
    return _nearest(index, similarity, lost, moves[:, 0] == 1, shift)


def nearest_by_embedding(features: np.ndarray, training_features: np.ndarray) -> Nearest:
    """Find each image's nearest training image by the cosine of features (N, D) and (M, D), M >= 20.

    Raises `InputError` for features that cannot be compared.
    """
    _check(training_features, "features of training images", MIN_TRAINING, axes="(N, D)")
    _check(features, "features of images", 1, training_features, axes="(N, D)")
    queries, fixed = (F.normalize(_tensor(f)) for f in (features, training_features))
    tops = [
        (rows @ fixed.T).topk(min(NEIGHBOURS, len(fixed)))
        for rows in queries.split(max(16, 2**22 // len(fixed)))
    ]
    similarity, index = (torch.cat(parts) for parts in zip(*tops, strict=True))
    return _nearest(index[:, 0], similarity)


@dataclass(frozen=True, eq=False)
class Examination:
    """What `CopyDetector.examine` found of N images.

    nearest: by space, "pixels" and, with an embedding, "embedding".
    over_95, over_99: by space, bool (N,): more similar than the validation's 95th and 99th percentile.
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
    """Training images, and how near to them real validation images come; made once by `fit`.

    The verdict: in one space or the other, an image's ratio is so low that of validation images 5 % are as low in any. 5 %
    and not 1 %, for the 1st percentile of some hundred scans is one or two of them, which may well be copies that
    de-duplication missed: over halves of the 272 it varies from 0.04 to 0.09 (32 pixels), the 5th from 0.10 to 0.12.
    """

    training: Images
    embed: Embedding | None
    training_features: np.ndarray | None
    validation: dict[str, Nearest]

    @classmethod
    def fit(
        cls, training: np.ndarray, validation: np.ndarray, embed: Embedding | None = None
    ) -> "CopyDetector":
        """Find how near the validation images come to training.

        training, validation: real images (M, C, H, W) and (K, C, H, W) in [0, 1], M >= 20 and K >= 20, no picture in
            both. Fold copies within training: of a picture there k times, the ratio is up to 50 / (51 - k) times
            too high, so a few do no harm.
        embed: for a second space.
        Raises `InputError` for images that cannot be compared, and where validation images are copies themselves.
        """
        _check(training, "training images", MIN_TRAINING)
        _check(validation, "validation images", MIN_VALIDATION, training)
        features = None if embed is None else embed(training)
        found = _nearest_in_each(validation, training, embed, features)
        if any(_quantile(nearest.ratio, VERDICT_RATE) < MIN_LIMIT for nearest in found.values()):
            raise InputError(
                "5 % or more of the validation images are copies of training images: hold out others."
            )
        return cls(training, embed, features, found)

    def examine(self, images: np.ndarray) -> Examination:
        """Find the nearest training image of each image (N, C, H, W) in each space, and pass the verdict."""
        nearest = _nearest_in_each(images, self.training, self.embed, self.training_features)
        over_95, over_99 = (
            {s: n.similarity > _quantile(self.validation[s].similarity, level) for s, n in nearest.items()}
            for level in (0.95, 0.99)
        )
        ratios = self._relative_ratios(nearest)  # (spaces, N)
        space, rows = ratios.argmin(0), np.arange(len(images))
        index = np.stack([n.index for n in nearest.values()])[space, rows]
        names = np.array(list(nearest))[space]
        suspicion = ratios.min(0)
        copied = taken_for_copies(suspicion, self.validation_suspicion)
        return Examination(nearest, over_95, over_99, suspicion, copied, names, index)

    @property
    def validation_suspicion(self) -> np.ndarray:
        """What `Examination.suspicion` is of the validation images, float (K,)."""
        return self._relative_ratios(self.validation).min(0)

    def _relative_ratios(self, nearest: dict[str, Nearest]) -> np.ndarray:
        """Ratios (spaces, N) over the limit of the space, so that those of two spaces can be compared."""
        limits = {space: _quantile(n.ratio, VERDICT_RATE) for space, n in self.validation.items()}
        return np.stack([n.ratio / limits[space] for space, n in nearest.items()])


def audit(detector: CopyDetector, images: np.ndarray, examination: Examination | None = None) -> dict:
    """Say in numbers for JSON what `detector` makes of synthetic images (N, C, H, W).

    Each share is an `Estimate` beside the share `expected` of real images never trained on. `copies` is the verdict,
    with the number of distinct training images copied, and of images that are `sure`ly copies: a few of those are lost in
    the share. `worst_pairs` are the 16 most suspicious, by their rows in `images` and in training. examination: of these
    images, where there is one already.
    """
    found = detector.examine(images) if examination is None else examination
    return {
        "images": len(images),
        "training_images": len(detector.training),
        "validation_images": len(detector.validation_suspicion),
        "copies": verdict(found.suspicion, detector.validation_suspicion, found.index),
        **{space: _numbers(nearest, detector.validation[space]) for space, nearest in found.nearest.items()},
        "worst_pairs": [_pair(found, row) for row in _worst(found, 16)],
    }


def taken_for_copies(suspicion: np.ndarray, validation: np.ndarray) -> np.ndarray:
    """Which images (N,) are taken for copies: bool (N,), where 5 % of real images are as suspicious as that; their suspicions are (K,)."""
    return suspicion < _quantile(validation, VERDICT_RATE)


def verdict(suspicion: np.ndarray, validation: np.ndarray, index: np.ndarray) -> dict:
    """`copies` of `audit`, of images' suspicions (N,) and of real images' (K,); index: their nearest training images, (N,)."""
    copied = taken_for_copies(suspicion, validation)
    return {
        **share_under(suspicion, validation, VERDICT_RATE),
        "sure": int((suspicion < sure_limit(validation, len(suspicion))).sum()),
        "count": int(copied.sum()),
        "distinct_training_images": len(np.unique(index[copied])),
    }


def sure_limit(validation: np.ndarray, count: int) -> float:
    """Under which no ratio of `count` real images lies, in 95 of 100 sets of them; `validation` (K,) are ratios of others.

    One more real image lies under the least of K once in K + 1 times, and under a share s of it s / (K + 1) times or less
    where small ratios are no commoner than larger ones. Among `count` images one does so count * s / (K + 1) times at most.
    """
    share = FALSE_ALARM_RATE * (len(validation) + 1) / count
    return float(validation.min()) * min(1.0, share)


def share_beyond(scores: np.ndarray, validation: np.ndarray, level: float) -> Estimate:
    """Share of scores (N,) over the `level` quantile of real images, which `validation` (K,) only estimates.

    Two errors add as squares (MOVER, Zou & Donner 2008): the share's own, exact binomial, and the quantile's, by the
    order statistics that enclose it 95 times in 100. An upper one beyond the K images (the 99th percentile, K < 368) is
    put as far beyond the largest as the lower one lies below it; where less than two of K are expected over the
    quantile there is none, and the interval goes down to 0. Of simulated intervals (normal, exponential and t scores,
    K from 20 to 272, N from 200 to 2000) 94.5 to 100 % hold the true share.
    """
    ordered, count = np.sort(validation), len(validation)
    over = int((scores > _quantile(validation, level)).sum())
    low, high = binom.ppf([0.025, 0.975], count, level).astype(int)  # how many may lie below the quantile
    below = ordered[low - 1] if low else -np.inf
    beyond = 2 * ordered[-1] - below if count * (1 - level) > 2 - 1e-9 else np.inf
    above = ordered[high] if high < count else beyond
    own, share = binomtest(over, len(scores)).proportion_ci(0.95), over / len(scores)
    down = math.hypot(share - own.low, share - np.mean(scores > above))
    up = math.hypot(own.high - share, np.mean(scores > below) - share)
    return Estimate(share, max(0.0, share - down), min(1.0, share + up), len(scores))


def worst_pairs_picture(
    detector: CopyDetector, examination: Examination, images: np.ndarray, count: int = 16
) -> Image.Image:
    """Show the most suspicious pairs, channel by channel: synthetic | its training image, moved as found | their difference."""
    rows, channels = _worst(examination, count), images.shape[1]
    side, columns = max(96, images.shape[3]), min(max(1, 4 // channels), len(rows))
    height, width = round(side * images.shape[2] / images.shape[3]), 3 * channels * side + 16
    canvas = Image.new("L", (columns * width, -(-len(rows) // columns) * (height + 36)))
    draw = ImageDraw.Draw(canvas)
    for place, row in enumerate(rows):
        x, y = place % columns * width, place // columns * (height + 36)
        pair = _pair(examination, row)
        real = np.asarray(detector.training[pair["training_image"]])  # (C, H, W)
        real = real[..., ::-1] if pair["flipped"] else real
        real = move(real, (0, *pair["shift"]), order=0) if pair["shift"] else real
        image = np.asarray(images[row])
        triples = np.stack([image, real, np.abs(image - real)], axis=1)  # (C, 3, H, W)
        for part, picture in enumerate(triples.reshape(-1, *triples.shape[2:])):
            pixels = Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))
            canvas.paste(pixels.resize((side, height)), (x + part * side, y))
        verdict = "taken for a copy" if examination.flagged[row] else "not taken for one"
        moved = "" if pair["shift"] is None else ", flipped" * pair["flipped"] + f", moved {pair['shift']}"
        draw.text((x + 2, y + height + 2), f"{row} : {pair['training_image']} {verdict}", fill=255)
        draw.text((x + 2, y + height + 17), f"{pair['space']} {pair['similarity']:.4f}{moved}", fill=255)
    return canvas


def _nearest_in_each(images, training, embed, training_features) -> dict[str, Nearest]:
    found = {"pixels": nearest_by_correlation(images, training, progress=len(images) > 500)}
    if embed is not None:
        found["embedding"] = nearest_by_embedding(embed(images), training_features)
    return found


def _nearest(index, similarity, lost=0.0, flipped=None, shift=None) -> Nearest:
    """Put together what was found: the 50 best `similarity` (N, 50), and what the best `lost` to noise (N,)."""
    first = (1 - similarity[:, 0] - lost).clamp_min(0)
    ratio = first / (1 - similarity).mean(1).clamp_min(MIN_MEAN_DISTANCE)
    return Nearest(index.numpy(), (1 - first).numpy(), ratio.numpy(), flipped, shift)


def _lost_to_noise(images, smooth, real, moves: np.ndarray) -> torch.Tensor:
    """By how much the white noise of each image lowers its correlation with `real`, both (N, C, H, W): (N,).

    To first order by var(noise) / (2 var(image)), both of them smoothed.
    """
    noise, variance = torch.zeros(images.shape[:2]), torch.zeros(images.shape[:2])
    for variant in np.unique(moves, axis=0):
        here = torch.from_numpy((moves == variant).all(1))
        x, y = _crop(images[here], *variant), _crop(real[here])  # (n, C, h, w) each
        x, y = (v - v.mean((2, 3), keepdim=True) for v in (x, y))
        slope = (x * y).sum((2, 3), keepdim=True) / (y * y).sum((2, 3), keepdim=True).clamp_min(1e-6)
        detail = F.conv2d((x - slope * y).flatten(0, 1)[:, None], DETAIL[None, None]).flatten(1)
        noise[here] = (detail.abs().median(1).values / 0.6745).view(
            x.shape[:2]
        ) ** 2  # a Gaussian's median is 0.6745 sigma
        variance[here] = _crop(smooth[here], *variant).flatten(2).var(2)
    kernel = gaussian_filter1d(np.eye(1, 65, 32)[0], SMOOTHING_SHARE * max(images.shape[2:]))
    left = float((kernel**2).sum()) ** 2  # of white noise when it is smoothed
    return (left * noise / (2 * variance).clamp_min(1e-8)).clamp_max(MAX_LOST).mean(1)


def _prepared(images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of at most 128 pixels, as they are and smoothed, float32 (N, C, H, W) each."""
    images = _shrunk(images)
    sigma = SMOOTHING_SHARE * max(images.shape[2:])
    return images, torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def _shrunk(images: Images) -> torch.Tensor:
    """Images of at most 128 pixels a side."""
    images, scale = _tensor(images), max(images.shape[2:]) / MAX_SIDE
    if scale <= 1:
        return images
    size = [round(side / scale) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


def _tensor(array: Images) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def _reach(images: torch.Tensor) -> int:
    return math.ceil(SHIFT_SHARE * max(images.shape[2:]))


def _crop(images: torch.Tensor, flip: bool = False, down: int = 0, right: int = 0) -> torch.Tensor:
    """What stays inside at every shift, less 1 pixel: smoothing has mixed in the border. (N, C, H, W) -> (N, C, h, w)."""
    edge, (height, width) = _reach(images) + 1, images.shape[2:]
    images = images.flip(3) if flip else images
    return images[..., edge + down : height - edge + down, edge + right : width - edge + right]


def _window(smooth: torch.Tensor, *variant) -> torch.Tensor:
    """The crop as rows (N, P) whose products are correlations, the mean over channels; constant ones become 0.

    From 64 pixels on of every second pixel or fewer, for smoothing has left nothing in between.
    """
    every = max(1, max(smooth.shape[2:]) // 32)
    rows = _crop(smooth, *variant)[..., ::every, ::every].flatten(2)  # (N, C, P / C)
    rows = rows - rows.mean(2, keepdim=True)
    return (rows / rows.norm(dim=2, keepdim=True).clamp_min(1e-3)).flatten(1) / math.sqrt(rows.shape[1])


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


def _numbers(nearest: Nearest, validation: Nearest) -> dict:
    return {
        "similarity_over_95th_percentile": _share(nearest.similarity, validation.similarity, 0.95),
        "similarity_over_99th_percentile": _share(nearest.similarity, validation.similarity, 0.99),
        "median_similarity": _median(nearest.similarity),
        "validation_median_similarity": _median(validation.similarity),
        "ratio_under_1st_percentile": share_under(nearest.ratio, validation.ratio, 0.01),
        "median_ratio": _median(nearest.ratio),
        "validation_median_ratio": _median(validation.ratio),
    }


def _share(scores: np.ndarray, validation: np.ndarray, level: float) -> dict:
    return {"share": share_beyond(scores, validation, level).as_dict(), "expected": round(1 - level, 4)}


def share_under(ratios: np.ndarray, validation: np.ndarray, rate: float) -> dict:
    """Share of images (N,) under that quantile of real ones (K,), as it stands in an audit."""
    return _share(-ratios, -validation, 1 - rate)


def _quantile(validation: np.ndarray, level: float) -> float:
    """The order statistic (K + 1) * level, which the share 1 - level of other real images exceeds."""
    return float(np.quantile(validation, level, method="weibull"))


def _median(values: np.ndarray) -> dict:
    """The median between the order statistics that enclose it 95 times in 100; of few values, between all."""
    ordered, skipped = np.sort(values), max(int(binom.ppf(0.025, len(values), 0.5)) - 1, 0)
    low, high = ordered[skipped], ordered[-1 - skipped]
    return Estimate(float(np.median(values)), float(low), float(high), len(values)).as_dict()


def _check(values: np.ndarray, name: str, fewest: int, like=None, axes: str = "(N, C, H, W)") -> None:
    """Raise `InputError` unless these are enough finite images, or features, of the size of those they meet."""
    if values.ndim != axes.count(",") + 1:
        raise InputError(f"{name} have the shape {values.shape}: give {axes}.")
    if len(values) < fewest:
        raise InputError(f"there are {len(values)} {name}: to look for copies takes {fewest} or more.")
    if values.ndim == 4 and min(values.shape[2:]) < MIN_SIDE:
        raise InputError(f"{name} are of {values.shape[2:]} pixels: to compare takes {MIN_SIDE} a side.")
    if like is not None and values.shape[1:] != like.shape[1:]:
        raise InputError(f"{name} are {values.shape[1:]} and training {like.shape[1:]}: make them one size.")
    if not all(np.isfinite(block).all() for block in blocks(values)):
        raise InputError(f"{name} hold values that are not finite numbers: mend or remove them.")
