"""Do samples follow their condition? They are given what belongs to validation scans, and held against these scans.

N: scans. Images are ``(N, 1, H, W)`` in [0, 1], masks ``(N, labels, H, W)`` of 0 and 1.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.estimates import Estimate, percentile_interval, resampling_counts
from mri_ddpm.evaluation.lazy import BLOCK, Images

FEWEST = 10  # scans; fewer say nothing
MOST_DECIBELS = 20 * np.log10(2 * 255)  # that 256 levels can tell: an error of half a level


def fidelity(samples: Images, scans: Images, labels: np.ndarray, mask_labels: Sequence[str] = ()) -> dict:
    """How like the true scan each sample is that was given what belongs to that scan.

    Of a contrast ``psnr`` in decibels and ``ssim``; of a mask Dice by label, over the scans where it is in scan or sample.
    Beside each stands ``of_others``: the scan against a sample that was given what belongs to another scan of the class. All heads
    of a class are somewhat alike, so what the condition tells is ``gain``, the mean of the paired differences.

    Args:
        samples: the i-th was given what belongs to the i-th scan.
        scans: unseen in training.
        labels: their classes, ``(N,)``.
        mask_labels: of a mask the names of its labels.

    Returns:
        By measure an ``Estimate.as_dict()``, and in it ``of_others`` and ``gain``, which are estimates too. Intervals are of a
        bootstrap over scans. A label that fewer than 10 scans or samples have is left out.

    """
    measures = {"psnr": psnr, "ssim": ssim}
    if mask_labels:
        measures = {f"dice_{name}": dice_of(i) for i, name in enumerate(mask_labels)}
    other = samples[another(labels)]
    found = {}
    for name, measure in measures.items():
        values = np.stack([in_blocks(measure, images, scans) for images in (samples, other)])  # (2, N)
        own, of_others = values[:, np.isfinite(values).all(0)]
        if len(own) >= FEWEST:
            beside = {"of_others": mean(of_others).as_dict(), "gain": mean(own - of_others).as_dict()}
            found[name] = mean(own).as_dict() | beside
    return found


def refuse_few(count: int) -> None:
    """Raise an ``InputError`` for fewer than 10 validation scans whose conditions the model takes."""
    if count < FEWEST:
        raise InputError(f"{count} validation scans are too few for fidelity: at least {FEWEST} are needed.")


def another(labels: np.ndarray) -> np.ndarray:
    """For each of ``(N,)`` images another one, chosen at random: of its class, except for one image a class."""
    order = np.lexsort([np.random.default_rng(0).random(len(labels)), labels])
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.roll(order, -1)
    return found


def mean(values: np.ndarray) -> Estimate:
    """Mean of ``(N,)`` values, with a bootstrap's percentile interval."""
    replicates = resampling_counts(len(values), np.random.default_rng(0)) @ values / len(values)
    return Estimate(float(values.mean()), *percentile_interval(replicates), n=len(values))


def psnr(images: torch.Tensor, scans: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image in decibels, ``(N,)``."""
    found = peak_signal_noise_ratio(images, scans, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return found.clamp_max(MOST_DECIBELS)


def ssim(images: torch.Tensor, scans: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image, ``(N,)`` (Wang et al. 2004)."""
    return structural_similarity_index_measure(images, scans, data_range=1.0, reduction="none")


def dice_of(label: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Dice of one label in masks, ``(N,)``: twice the overlap over both areas; NaN where neither mask has it."""
    return lambda a, b: 2 * (a * b)[:, label].sum((1, 2)) / (a + b)[:, label].sum((1, 2))


def in_blocks(measure: Callable[..., torch.Tensor], images: Images, scans: Images) -> np.ndarray:
    """A measure of each image and its scan, ``(N,)`` float64, few at a time."""
    starts = range(0, len(scans), BLOCK)
    pairs = ((torch.from_numpy(np.asarray(x[i : i + BLOCK])) for x in (images, scans)) for i in starts)
    return torch.cat([measure(*pair) for pair in pairs]).double().numpy()
