"""The first two moments of the training scans: what x_T is made of besides noise, where a schedule leaves some of the scan.

The forward process ends at q(x_T), whose mean is sqrt(alpha_bar_T) times the mean scan. A chain that starts at N(0, I)
instead is asked to denoise what no scan becomes, and takes the missing black for a bright scan. The network keeps the
moments, so that the pipeline can start from where the forward process ends.

A mean of few scans is a picture of patients. So every mean is shrunk towards what more scans share, and a direction of
variation is kept for so many scans at least.

A training that begins from a model has its moments: those of classes that the new scans have are theirs, shrunk towards the
old ones, and those of other classes stay.
"""

import numpy as np
import torch
import torch.nn.functional as F

from mri_ddpm.data import Scans, to_model_range
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.runs import Base

SIZE = 32  # pixels a side at most, of one channel: x_T shows nothing finer
PRIOR_SCANS = 50  # a mean of n scans counts n, and what it is shrunk towards counts this many
SCANS_A_COMPONENT = 50
MAX_COMPONENTS = 16
_BATCH = 512


def moments_size(resolution: int, num_channels: int = 1) -> int:
    """Pixels a side at which the moments of such scans are kept: all channels together have no more than one would."""
    return min(resolution, int(SIZE / num_channels**0.5))


def num_components(num_scans: int) -> int:
    """How many directions of variation are kept of so many scans."""
    return min(MAX_COMPONENTS, num_scans // SCANS_A_COMPONENT)


@torch.no_grad()
def keep_moments(unet: AttentionUNet2DModel, scans: Scans, base: Base | None = None) -> None:
    """Give the network the moments of its training scans, in its buffers ``x_0_mean`` and ``x_0_components``.

    Of the scans as they are, mirrored or not in training: so are samples. Directions of variation that the scans are too few for
    are left at 0.

    Args:
        unet: made with ``moments_size`` and ``num_components``.
        scans: of which the train split is read, in batches.
        base: the model whose moments the network has already.
    """
    size, classes = unet.config.moments_size, unet.config.num_class_embeds or 0
    shape = (unet.config.out_channels, size, size)
    pixels = int(np.prod(shape))
    # With a base, scans without a class are possible beside its classes
    counts = torch.zeros(classes + 1 if base else max(1, classes), dtype=torch.float64)
    sums = torch.zeros(len(counts), pixels, dtype=torch.float64)
    products = torch.zeros(pixels, pixels, dtype=torch.float64)
    for start in range(0, len(scans.train), _BATCH):
        batch = scans.train.batch(range(start, min(start + _BATCH, len(scans.train))))
        x_0, labels = to_model_range(batch["pixel_values"].cpu()), batch["class_labels"].cpu() * bool(classes)
        rows = F.interpolate(x_0, size=(size, size), mode="area").flatten(1).double()  # (B, pixels)
        counts += labels.bincount(minlength=len(counts))
        sums.index_add_(0, labels, rows)
        products += rows.T @ rows

    # Of the scans about their classes' plain means, in which the shrinkage has no part
    plain = sums / counts.clamp(min=1)[:, None]
    covariance = (products - plain.T @ (counts[:, None] * plain)) / counts.sum()
    variances, axes = torch.linalg.eigh(covariance)  # ascending
    kept = slice(pixels - num_components(len(scans.train)), None)
    components = axes[:, kept].T * variances[kept].clamp(min=0).sqrt()[:, None]  # (components, pixels)
    if base:
        means, components = joined(unet, base, counts, sums, components)
    else:
        total, overall = counts.sum(), sums.sum(0)
        # Black, grey or white, a channel: it shows nobody
        flat = (overall.unflatten(0, (shape[0], -1)).mean(1) / total).repeat_interleave(size * size)
        mean = shrunk(overall, total, flat)
        means = torch.cat([shrunk(sums, counts[:, None], mean), mean[None]] if classes else [mean[None]])
    unet.x_0_mean.copy_(means.unflatten(1, shape))
    unet.x_0_components[: len(components)] = components.unflatten(1, shape)


def joined(
    unet: AttentionUNet2DModel, base: Base, counts: torch.Tensor, sums: torch.Tensor, components: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means ``(classes + 1, pixels)`` and directions ``(K, pixels)`` of new scans together with those that the network has.

    Args:
        unet: with the moments of its base.
        base: says how many scans these are of.
        counts: new scans of each class, and last without one, ``(classes + 1,)``.
        sums: of these scans, ``(classes + 1, pixels)``.
        components: directions in which they vary, ``(k, pixels)``.
    """
    before, directions = unet.x_0_mean.flatten(1).double(), unet.x_0_components.flatten(1).double()
    names = (*(unet.config.class_names or ()), "")
    # The base's scans count on in the classes of which there are no new ones
    kept = torch.tensor([base.scans.get(name, 0) for name in names]).double() * (counts == 0)
    mean = shrunk(sums.sum(0) + kept @ before, counts.sum() + kept.sum(), before[-1])
    is_new = (counts > 0)[:-1, None]
    means = torch.where(is_new, shrunk(sums, counts[:, None], before)[:-1], before[:-1])
    means = torch.cat([means, mean[None]])
    if not len(components):
        return means, directions
    # Covariances add up as scans do
    new, old = counts.sum(), kept.sum() + PRIOR_SCANS
    both = torch.cat([components * new.sqrt(), directions * old.sqrt()]) / (new + old).sqrt()
    _, lengths, axes = torch.linalg.svd(both, full_matrices=False)
    return means, (lengths[:, None] * axes)[: len(directions)]


def shrunk(sums: torch.Tensor, counts: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """The mean of scans of that sum and number, as if ``PRIOR_SCANS`` more had been like ``towards``."""
    return (sums + PRIOR_SCANS * towards) / (counts + PRIOR_SCANS)
