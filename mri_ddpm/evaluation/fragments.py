"""The nearest training image of a part of each image, and the two training images of which each image is a mixture.

A part of a scan in another head, or two heads laid over one another, resemble no training image as a whole.

N: images, M: training images, C: channels, K: candidates, P: pixels in all channels.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from .lazy import Images, blocks
from .nearest import MIN_TRAINING, NEIGHBOURS, Nearest, among_neighbours, check, correlating, prepared

PART_SHARE, STEP_SHARE = 5 / 16, 1 / 8  # of the side: of a part that is compared, and from one to the next
# So a copied square of half the side or more holds a whole part, and its smoothed border is left out.
LEAST_CONTRAST = 0.02  # standard deviation within a part; flatter ones count as less alike
NO_DISTANCE = 1e-5  # added to distances: a label that is in all scans is no copy
MIN_OWN_SHARE = 0.02  # of its variance that an image of a mixture does not share with the other
MIN_WEIGHT = 0.1  # of the second image of a mixture beside the first


def nearest_by_parts(images: Images, training: Images, *, progress: bool = False) -> Nearest:
    """Find the training image that is nearest to a part of each image, in the part whose ratio is least.

    Overlapping squares of 5/16 of the side are compared with those of training images, moved by up to 1/32 of the side, as they are and flipped.

    images, training: float32 (N, C, H, W) and (M, C, H, W) in [0, 1], M >= 20. Time grows with N * M. Raises `InputError` for images that
    cannot be compared.
    """
    check(training, "training images", MIN_TRAINING)
    check(images, "images", 1, training)
    smooth, larger = prepared(images)[1], max(images.shape[2:])
    every = _every(smooth)
    fixed = torch.cat([_both_ways(prepared(block)[1], every) for block in blocks(training)], 1)
    rows = _thinned(smooth, every)
    height, width = rows.shape[2:]
    side = round(PART_SHARE * max(height, width))
    places = [(top, left) for top in _starts(height, side) for left in _starts(width, side)]
    least = LEAST_CONTRAST * side  # of a norm
    found = []
    parts = rows.split(max(16, 2**21 // len(training)))
    for part in tqdm(parts, desc="Comparing parts", unit="block", disable=not progress):
        of_places = [_nearest_part(part, fixed, place, side, least) for place in places]
        of_places = [
            torch.stack(values, 1) for values in zip(*of_places, strict=True)
        ]  # (block, places) each
        place = of_places[0].argmin(1, keepdim=True)
        found.append([*(values.gather(1, place)[:, 0] for values in of_places), place[:, 0]])
    ratio, index, similarity, variant, place = (
        torch.cat(values).numpy() for values in zip(*found, strict=True)
    )
    pixel = every * larger / max(smooth.shape[2:])
    region = np.round(np.array([(top, left, side) for top, left in places])[place] * pixel).astype(np.int64)
    shift = np.round(np.stack([1 - variant % 9 // 3, 1 - variant % 3], 1) * pixel).astype(np.int64)
    return Nearest(index, similarity, ratio, {"flipped": variant >= 9, "shift": shift, "region": region})


def nearest_by_mixture(images: Images, training: Images, *, progress: bool = False) -> Nearest:
    """Find the two training images whose weighted sum explains each image best; `index` is that of the greater weight.

    The ratio is what they leave over the mean of what the 50 likeliest training images leave, each with its best partner and
    without these two. Neither may be all but the other. Arguments and errors as of `nearest_by_parts`.
    """
    check(training, "training images", MIN_TRAINING)
    check(images, "images", 1, training)
    rows = torch.cat([_inner(prepared(block)[1]) for block in blocks(images)])
    fixed = torch.cat([_inner(prepared(block)[1]) for block in blocks(training)])  # (M, P)
    found = [
        _mixture(similarity, fixed)
        for block in tqdm(rows.split(256), desc="Comparing mixtures", unit="block", disable=not progress)
        for similarity in block @ fixed.T
    ]
    index, other, distance = (torch.stack(part) for part in zip(*found, strict=True))
    return among_neighbours(index, distance, how={"mixed_with": other.numpy()})


def _every(smooth: torch.Tensor) -> int:
    """Which pixels are compared: from 64 a side on every second or fewer, for smoothing has left nothing in between."""
    return max(1, max(smooth.shape[2:]) // 32)


def _thinned(smooth: torch.Tensor, every: int) -> torch.Tensor:
    return smooth[..., ::every, ::every]


def _both_ways(smooth: torch.Tensor, every: int) -> torch.Tensor:
    """Images as they are and flipped, thinned, and with a border to move in: (2, N, C, h + 2, w + 2)."""
    ways = [F.pad(_thinned(part, every), (1, 1, 1, 1), mode="replicate") for part in (smooth, smooth.flip(3))]
    return torch.stack(ways)


def _starts(length: int, side: int) -> list[int]:
    """Where parts begin; the last ends with the image."""
    step = STEP_SHARE * length
    return sorted({min(round(i * step), length - side) for i in range(round(1 / STEP_SHARE))})


def _nearest_part(rows, fixed, place, side: int, least: float) -> tuple[torch.Tensor, ...]:
    """Of a part of images (N, C, h, w): ratio, training image, similarity and variant, (N,) each."""
    top, left = place
    part = correlating(rows[..., top : top + side, left : left + side], least)
    best = torch.full((len(rows), fixed.shape[1]), -2.0)
    product = torch.empty_like(best)
    for other in _squares(fixed, place, side, least):
        torch.maximum(best, torch.mm(part, other.T, out=product), out=best)
    similarity, index = best.topk(min(NEIGHBOURS, best.shape[1]))
    near = _squares(fixed[:, index[:, 0]], place, side, least)
    at = torch.stack([(part * other).sum(1) for other in near], 1).argmax(1)
    distance = (1 - similarity).clamp_min(0) + NO_DISTANCE
    return distance[:, 0] / distance.mean(1), index[:, 0], similarity[:, 0], at


def _squares(ways: torch.Tensor, place: tuple[int, int], side: int, least: float) -> Iterator[torch.Tensor]:
    """Rows (M, P) of a part of training images, by variant: as they are and flipped, each moved by a pixel or none."""
    for way in ways:
        for top in range(place[0], place[0] + 3):
            for left in range(place[1], place[1] + 3):
                yield correlating(way[..., top : top + side, left : left + side], least)


def _inner(smooth: torch.Tensor) -> torch.Tensor:
    """Rows to correlate, without the border, where scans are black and smoothing has repeated the last pixel."""
    thin = _thinned(smooth, _every(smooth))
    edge = max(thin.shape[2:]) // 16
    return correlating(thin[..., edge:-edge, edge:-edge])


def _mixture(similarity: torch.Tensor, fixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Of one image, whose correlations with training are given, (M,): the greater image, the other, and distances (K,)."""
    first, index = similarity.topk(min(NEIGHBOURS, len(fixed)))
    alike = fixed[index] @ fixed.T  # (K, M)
    own = 1 - alike**2
    a, b = first[:, None], similarity[None]
    weight, other_weight = (a - b * alike), (b - a * alike)  # times own
    mixed = (weight > 0) & (other_weight > MIN_WEIGHT * weight) & (own > MIN_OWN_SHARE)
    explained = torch.where(mixed, (a * weight + b * other_weight) / own.clamp_min(MIN_OWN_SHARE), a**2)
    row, partner = divmod(int(explained.argmax()), len(fixed))
    pair = torch.stack([index[row], torch.tensor(partner)])
    if not mixed[row, partner]:  # the image is all but one of training
        pair[1] = pair[0]
    elif other_weight[row, partner] > weight[row, partner]:
        pair = pair.flip(0)
    others = explained.index_fill(1, pair, -1).amax(1)[~torch.isin(index, pair)]
    best = 1 - explained.max()
    distance = torch.cat([best[None], 1 - others.topk(min(len(others), len(index) - 2)).values])
    return pair[0], pair[1], distance.clamp_min(0)
