"""The nearest training image of each image, in pixels and in an embedding; other searches are in `registration` and `fragments`.

Each search gives a `Nearest`, whose *ratio* is what tells a copy: the nearest distance over the mean of the 50 nearest (after
Carlini et al. 2023, arXiv:2301.13188). Slices of one patient come in numbers; a copy is nearer than any of them.

N: images, M: training images, C: channels, P: pixels of a window in all channels, D: width of the embedding.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from tqdm import tqdm

from mri_ddpm.errors import InputError

from .lazy import Images, blocks

NEIGHBOURS = 50  # of fewer training images all
MIN_TRAINING, MIN_SIDE = 20, 16
MAX_SIDE = 128  # pixels; larger images are compared at this size
SHIFT_SHARE = 1 / 22  # of the side, rounded up: 2 pixels at 32 and 44, 3 at 64
SMOOTHING_SHARE = 1 / 45  # of the side: the standard deviation of a Gaussian
MAX_LOST = 0.1  # of correlation to noise; an image of noise alone would be excused half
MIN_MEAN_DISTANCE = 1e-3  # 50 copies of one picture have a mean distance of 0, but for rounding
# The second difference in both directions: of smooth pictures little passes, of white noise its whole variance.
DETAIL = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]]) / 6


@dataclass(frozen=True, eq=False)
class Nearest:
    """The nearest training image of each of N images in one space.

    index: int64 (N,), its row in training.
    similarity: float32 (N,) <= 1.
    ratio: float32 (N,), the distance 1 - similarity to it / the mean distance of the 50 nearest (all, of fewer); small is suspicious.
    how: by name an array (N, ...) of how the training image lies on the image, first ``flipped`` left-right, then turned by
        ``degrees`` counter-clockwise and enlarged by ``scale``, then moved by ``shift`` in pixels down and right; ``region``, top, left and side
        in pixels, where only that is alike; ``mixed_with``, the row of the other training image. What a search does not look for is absent.
    """

    index: np.ndarray
    similarity: np.ndarray
    ratio: np.ndarray
    how: dict[str, np.ndarray] = field(default_factory=dict)


def nearest_by_correlation(images: Images, training: Images, *, progress: bool = False) -> Nearest:
    """Find each image's nearest training image by correlation, at its best over shifts and a left-right flip.

    The image's own white noise is allowed for. It is measured by the *median* fine detail of what the best fit leaves, for noise is
    everywhere while two slices differ at edges. `similarity` is what it would be without that noise.

    images, training: float32 (N, C, H, W) and (M, C, H, W) in [0, 1], M >= 20; constant ones correlate with nothing.
    Time grows with N * M, memory with N + M. Raises `InputError` for images that cannot be compared.
    """
    check(training, "training images", MIN_TRAINING)
    check(images, "images", 1, training)
    scale = max(1.0, max(images.shape[2:]) / MAX_SIDE)
    images, smooth = prepared(images)
    steps = range(-_reach(images), _reach(images) + 1)
    variants = [(flip, down, right) for flip in (False, True) for down in steps for right in steps]
    fixed = torch.cat([_window(prepared(block)[1]) for block in blocks(training)])  # (M, P)
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
    lost = _lost_to_noise(images, smooth, shrunk(training[index.numpy()]), moves)
    # Moves are how the image is read; on the training image, flipped first, right is the other way.
    shift = np.round(moves[:, 1:] * np.where(moves[:, :1], [[1, -1]], [[1, 1]]) * scale).astype(np.int64)
    return among_neighbours(index, 1 - similarity, lost, {"flipped": moves[:, 0] == 1, "shift": shift})


def nearest_by_embedding(features: np.ndarray, training_features: np.ndarray) -> Nearest:
    """Find each image's nearest training image by the cosine of features (N, D) and (M, D), M >= 20.

    Raises `InputError` for features that cannot be compared.
    """
    check(training_features, "features of training images", MIN_TRAINING, axes="(N, D)")
    check(features, "features of images", 1, training_features, axes="(N, D)")
    queries, fixed = (F.normalize(as_tensor(f)) for f in (features, training_features))
    tops = [
        (rows @ fixed.T).topk(min(NEIGHBOURS, len(fixed)))
        for rows in queries.split(max(16, 2**22 // len(fixed)))
    ]
    similarity, index = (torch.cat(parts) for parts in zip(*tops, strict=True))
    return among_neighbours(index[:, 0], 1 - similarity)


# For every search


def among_neighbours(
    index: torch.Tensor, distance: torch.Tensor, lost: torch.Tensor | float = 0.0, how: dict | None = None
) -> Nearest:
    """Put together what was found: the least `distance` (N, 50), the first of them the least, and what that `lost` to noise (N,)."""
    first = (distance[:, 0] - lost).clamp_min(0)
    ratio = first / distance.mean(1).clamp_min(MIN_MEAN_DISTANCE)
    return Nearest(index.numpy(), (1 - first).numpy(), ratio.numpy(), how or {})


def prepared(images: Images) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of at most 128 pixels, as they are and smoothed, float32 (N, C, H, W) each."""
    images = shrunk(images)
    return images, blurred(images, SMOOTHING_SHARE)


def blurred(images: torch.Tensor, share: float) -> torch.Tensor:
    """Images (N, C, H, W) under a Gaussian of so much of their side."""
    sigma = share * max(images.shape[2:])
    return torch.from_numpy(gaussian_filter(images.numpy(), (0, 0, sigma, sigma), mode="nearest"))


def shrunk(images: Images, most: int = MAX_SIDE) -> torch.Tensor:
    """Images of at most so many pixels a side."""
    images, scale = as_tensor(images), max(images.shape[2:]) / most
    if scale <= 1:
        return images
    size = [round(side / scale) for side in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bicubic", antialias=True)


def as_tensor(array: Images) -> torch.Tensor:
    """An array in memory, float32."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def check(values: np.ndarray, name: str, fewest: int, like=None, axes: str = "(N, C, H, W)") -> None:
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


# For the search by correlation


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
    return correlating(_crop(smooth, *variant)[..., ::every, ::every])


def correlating(images: torch.Tensor, least: float = 1e-3) -> torch.Tensor:
    """Images (N, C, h, w) as rows (N, P) whose products are correlations, the mean over channels.

    least: norm of what is in a channel besides its mean; one that has less counts as less alike, and a constant one is 0.
    """
    rows = images.flatten(2)  # (N, C, P / C)
    rows = rows - rows.mean(2, keepdim=True)
    return (rows / rows.norm(dim=2, keepdim=True).clamp_min(least)).flatten(1) / math.sqrt(rows.shape[1])
