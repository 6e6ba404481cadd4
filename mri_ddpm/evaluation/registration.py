"""The nearest training image of each image after the two were laid on one another: turned, enlarged, moved, mirrored, blurred.

A copy that was turned by 10 degrees lies further from its original than many other heads do. So the 50 likeliest training images are
sought over a grid of turns, scales and moves at 16 pixels, and each is registered: the image is warped by a similarity transform until the training
image explains it best. What explains is a regression on the training image, its square and two blurs of it, for a copy may be of
other contrast and blurred too; Gauss-Newton steps reduce what that leaves (variable projection, Golub & Pereyra 1973).

N: images, M: training images, C: channels, V: variants of the grid, K: candidates, P: points of the image, R: regressors.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from .lazy import Images, blocks
from .nearest import (
    MIN_TRAINING,
    NEIGHBOURS,
    Nearest,
    among_neighbours,
    blurred,
    check,
    correlating,
    prepared,
    shrunk,
)

COARSE_SIDE, MOST_SIDE = 16, 64  # pixels at which candidates are sought, and at most are registered
DEGREES, SCALES = (-15, -7.5, 0, 7.5, 15), (0.88, 0.94, 1.0, 1.07, 1.14)  # of the grid
MOVES = (-1, 0, 1)  # of the grid, in coarse pixels
RADIUS = 0.85  # of half the side: what is compared, for corners leave the image when it is turned
BLURS = (0.02, 0.04)  # of the side
FIRST_STEPS, LAST_STEPS, LAST = 3, 6, 8  # steps for all candidates, and then for so many
# Of the logarithm of the scale, the turn in radians, and the moves in half sides
LIMITS = torch.tensor([0.25, 0.4, 0.3, 0.3])
LONGEST_STEP = 0.15
LEAST_VARIATION = 1e-3  # sum of squares about the mean; a constant image has none, and nothing explains it


def nearest_by_registration(images: Images, training: Images, *, progress: bool = False) -> Nearest:
    """Find each image's nearest training image by the share of the image that it does not explain, once laid on it.

    images, training: float32 (N, C, H, H) and (M, C, H, H) in [0, 1], M >= 20. Turns up to 15 degrees, scales from 0.88 to 1.14 and moves by a
    sixteenth of the side are found. Time grows with N * M. Raises `InputError` for images that cannot be compared.
    """
    check(training, "training images", MIN_TRAINING)
    check(images, "images", 1, training)
    grid, points = _grid(), _square(2 * COARSE_SIDE)
    tried = _laid(grid, points)[0]  # (V, P, 2)
    coarse = torch.cat([_coarse(_smooth(block), points[None]) for block in blocks(training)])[:, 0]  # (M, p)
    found = []
    for block in tqdm(list(blocks(images)), desc="Registering", unit="block", disable=not progress):
        smooth = _smooth(block)
        index, start = (
            torch.stack(part)
            for part in zip(
                *(_candidates(_coarse(image[None], tried)[0], coarse, grid) for image in smooth), strict=True
            )
        )
        needed, place = index.unique(return_inverse=True)
        regressors = _regressors(_smooth(training[needed.numpy()]))
        for row, image in enumerate(smooth):
            found.append((index[row], *_registered(image, regressors[place[row]], start[row])))
    index, left, placed = (
        torch.stack(parts) for parts in zip(*found, strict=True)
    )  # (N, K), (N, K), (N, K, 5)
    order = left.argsort(1)
    index, left = index.gather(1, order), left.gather(1, order)
    best = placed[torch.arange(len(placed)), order[:, 0]]
    return among_neighbours(index[:, 0], left, how=_how(best, images.shape[2]))


def _grid() -> torch.Tensor:
    """What is tried: (V, 5) of flipped, logarithm of the scale, radians, moves right and down in half sides."""
    step = 2 / COARSE_SIDE
    return torch.tensor(
        [
            (flipped, math.log(scale), math.radians(degrees), step * right, step * down)
            for flipped, scale, degrees, right, down in itertools.product(
                (0, 1), SCALES, DEGREES, MOVES, MOVES
            )
        ]
    )


def _smooth(images: Images) -> torch.Tensor:
    return prepared(shrunk(images, MOST_SIDE))[1]


def _coarse(images: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Images (N, C, H, H) read at 32 x 32 points `at` (V, P, 2), then at 16 pixels, as rows to correlate (N, V, p).

    Shrunk after they were laid, by means of 2 x 2 points: a smaller head would lose more of its detail than its original.
    """
    values = F.grid_sample(
        images, at.expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False
    )
    means = values.unflatten(3, (COARSE_SIDE, 2, COARSE_SIDE, 2)).mean((4, 6)).flatten(3)  # (N, C, V, p)
    here = _square(COARSE_SIDE).norm(dim=1) < RADIUS
    rows = correlating(means[..., here].transpose(1, 2).flatten(0, 1)[:, :, None])
    return rows.unflatten(0, (len(images), len(at)))


def _square(side: int, every: int = 1) -> torch.Tensor:
    """Pixels' centres, (P, 2), right and down in half sides."""
    axis = (torch.arange(side)[::every] + 0.5) * 2 / side - 1
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([right, down], -1).flatten(0, 1)


def _points(side: int) -> torch.Tensor:
    """Those in the circle that is compared, at most 32 a row or so."""
    points = _square(side, max(1, side // 32))
    return points[points.norm(dim=1) < RADIUS]


def _inside(images: torch.Tensor) -> torch.Tensor:
    """Their values at `_points`, (N, C, 1, P)."""
    return F.grid_sample(
        images, _points(images.shape[2])[None, None].expand(len(images), -1, -1, -1), align_corners=False
    )


def _laid(placed: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where `placed` (K, 5) puts points (P, 2), and the points turned and scaled alone: (K, P, 2) each."""
    flipped, log_scale, turn, *_ = placed.unbind(1)
    cos, sin = log_scale.exp() * turn.cos(), log_scale.exp() * turn.sin()
    turned = points @ torch.stack([cos, sin, -sin, cos], 1).unflatten(1, (2, 2))
    mirror = torch.stack([1 - 2 * flipped, torch.ones_like(flipped)], 1)[:, None]
    return torch.addcmul(placed[:, None, 3:], turned, mirror), turned


def _candidates(
    rows: torch.Tensor, coarse: torch.Tensor, grid: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The K training images of `coarse` (M, p) that are likest to an image, (K,), and where on `grid` each is, (2, K, 5).

    rows: the image as it is laid by each of the grid, (V, p).
    Where it is without a flip, and with one: at 16 pixels many a head is its own mirror image.
    """
    index = (rows @ coarse.T).amax(0).topk(min(NEIGHBOURS, len(coarse))).indices
    likeness = (rows @ coarse[index].T).unflatten(0, (2, -1))  # (2, V / 2, K)
    return index, grid.unflatten(0, (2, -1))[torch.arange(2)[:, None], likeness.argmax(1)]


def _regressors(smooth: torch.Tensor) -> torch.Tensor:
    """What an image that shows the same may be made of, orthonormal, (M, C, R, P): a constant, the image, its square, and blurs."""
    parts = [torch.ones_like(smooth), smooth, smooth**2, *(blurred(smooth, share) for share in BLURS)]
    rows = torch.stack([_inside(part)[:, :, 0] for part in parts], 2).double()  # (M, C, R, P)
    gram = rows @ rows.transpose(2, 3)
    ridge = 1e-7 * gram.diagonal(dim1=2, dim2=3).mean(2)[..., None, None] * torch.eye(len(parts))
    return torch.linalg.solve_triangular(torch.linalg.cholesky(gram + ridge), rows, upper=False).float()


def _registered(
    image: torch.Tensor, regressors: torch.Tensor, start: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay an image (C, H, H) on K candidates from `start` (2, K, 5): the share that each leaves unexplained, (K,), and where it is, (K, 5)."""
    both = _gauss_newton(image, regressors.repeat(2, 1, 1, 1), start.flatten(0, 1), FIRST_STEPS)
    left, placed = (found.unflatten(0, (2, -1)) for found in both)  # (2, K), (2, K, 5)
    flipped = left[1] < left[0]
    left, placed = left.amin(0), torch.where(flipped[:, None], placed[1], placed[0])
    last = left.argsort()[:LAST]
    left[last], placed[last] = _gauss_newton(image, regressors[last], placed[last], LAST_STEPS, "bicubic")
    return left, placed


def _gauss_newton(
    image, regressors, start, steps: int, mode: str = "bilinear"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Steps of Levenberg and Marquardt from `start` (K, 5); arguments and results as of `_registered`."""
    count, stack = len(start), _with_slopes(image).expand(len(start), -1, -1, -1)  # (K, 3 C, H, H)
    points, mirror = _points(image.shape[1]), 1 - 2 * start[:, :1, None]  # (P, 2), (K, 1, 1)
    best, placed, damping = torch.full((count,), math.inf), start.clone(), torch.full((count,), 1e-2)
    tried, normal, gradient = start, torch.zeros(count, 4, 4), torch.zeros(count, 4)
    for step in range(steps + 1):
        at, turned = _laid(tried, points)
        values = F.grid_sample(stack, at[:, None], mode, "border", align_corners=False)[:, :, 0]
        value, along, across = values.unflatten(1, (3, -1)).unbind(1)  # (K, C, P) each
        variation = (value - value.mean(2, keepdim=True)).square().sum(2)  # (K, C)
        whole = variation.clamp_min(LEAST_VARIATION)
        rest = _unexplained(value[:, :, None], regressors)
        left = (1 - (variation - rest.square().sum((2, 3))) / whole).mean(1)
        better = left < best
        best, placed = torch.where(better, left, best), torch.where(better[:, None], tried, placed)
        if step == steps:
            break
        x, y = turned[:, None].unbind(3)  # (K, 1, P)
        slopes = (along * mirror * x + across * y, across * x - along * mirror * y, along, across)
        slopes = _unexplained(torch.stack(slopes, 2), regressors)  # (K, C, 4, P), by scale, turn and moves
        of_channels = slopes / whole[..., None, None]
        normal = torch.where(better[:, None, None], (of_channels @ slopes.mT).sum(1), normal)
        gradient = torch.where(better[:, None], (of_channels @ rest.mT)[..., 0].sum(1), gradient)
        damping = torch.where(better, damping / 3, damping * 5)
        damped = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2) + 1e-9)
        change = torch.linalg.solve(damped, gradient).clamp(-LONGEST_STEP, LONGEST_STEP)
        tried = torch.cat([placed[:, :1], (placed[:, 1:] - change).clamp(-LIMITS, LIMITS)], 1)
    return best, placed


def _with_slopes(image: torch.Tensor) -> torch.Tensor:
    """An image (C, H, H) and its slopes along and across in intensity over half a side, (1, 3 C, H, H)."""
    half = image.shape[1] / 2
    wide, high = (F.pad(image[None], pad, mode="replicate")[0] for pad in ((1, 1, 0, 0), (0, 0, 1, 1)))
    along, across = (wide[:, :, 2:] - wide[:, :, :-2]) * half / 2, (high[:, 2:] - high[:, :-2]) * half / 2
    return torch.cat([image, along, across])[None]


def _unexplained(values: torch.Tensor, regressors: torch.Tensor) -> torch.Tensor:
    """What the orthonormal regressors (K, C, R, P) leave of values (K, C, S, P)."""
    return values - (values @ regressors.mT) @ regressors


def _how(placed: torch.Tensor, side: int) -> dict[str, np.ndarray]:
    """How the training images lie on the images, of where these were read, (N, 5): the transform the other way."""
    flipped, log_scale, turn, right, down = placed.double().numpy().T
    sign = 1 - 2 * flipped
    # Read at M T p + m: p of the training image is at M T p + m of the image. M T = T' M, turned by the opposite where mirrored.
    shift = np.round(np.stack([down, right], 1) * side / 2, 2)
    return {
        "flipped": flipped > 0,
        "degrees": -np.degrees(turn) * sign,
        "scale": np.exp(log_scale),
        "shift": shift,
    }
