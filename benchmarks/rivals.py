"""Networks that are trained beside a diffusion model, by the same recipe: a segmenter, and a plain regression; for `conditions.py`.

B: batch, K: labels of a mask, H, W: the resolution.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn
from torchmetrics.functional.image import structural_similarity_index_measure
from tqdm.auto import tqdm

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import ScanDataset, to_model_range, to_unit_range
from mri_ddpm.evaluation.estimates import Estimate, percentile_interval, resampling_counts
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel

AT_ONCE = 100  # images of one forward pass
SEGMENTER = {
    "block_out_channels": (8, 16, 32), "layers_per_block": 1, "attention_types": (None, None, None),
    "attention_head_dim": 8, "norm_num_groups": 4,
}  # fmt: skip


def fit(
    network: nn.Module,
    loss_of: Callable[[np.ndarray], torch.Tensor],
    parts: Sequence[np.ndarray],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> nn.Module:
    """Train as `mri-ddpm train` does: Adam with warm-up and a cosine rate, clipped gradients, averaged weights.

    Args:
        network: gets the averaged weights at the end, and goes to evaluation mode.
        loss_of: the loss ``()`` of a batch, by its row numbers.
        parts: row numbers; a batch has equally many of each part, drawn with replacement.
    """
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate, fused=True)
    rate = get_scheduler("cosine", optimizer, num_warmup_steps=50, num_training_steps=steps)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
    rng = np.random.default_rng(seed)
    network.train()
    for _ in tqdm(range(steps), desc="training", unit="step"):
        loss_of(np.concatenate([rng.choice(part, batch_size // len(parts)) for part in parts])).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
        ema.step(network.parameters())
    ema.copy_to(network.parameters())
    return network.eval()


def train_segmenter(
    images: np.ndarray, masks: np.ndarray, parts: Sequence[np.ndarray], num_labels: int, seed: int, steps: int
) -> AttentionUNet2DModel:
    """A network that finds a mask in an image; both are mirrored half of the time.

    Args:
        images: ``(N, H, W)`` in [0, 1].
        masks: ``(N, H, W)``, numbers of labels, 0 for none.
        parts: as of `fit`.
    """
    torch.manual_seed(seed)
    size = images.shape[-1]
    network = AttentionUNet2DModel(sample_size=size, in_channels=1, out_channels=num_labels + 1, **SEGMENTER)
    x, y = to_model_range(torch.from_numpy(images)[:, None]), torch.from_numpy(masks).long()

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        turned = torch.rand(len(rows), 1, 1) < 0.5
        mask = torch.where(turned, y[rows].flip(-1), y[rows])
        image = torch.where(turned[:, None], x[rows].flip(-1), x[rows])
        return F.cross_entropy(network(image, 0).sample, mask)

    return fit(network, loss_of, parts, steps=steps, batch_size=16, learning_rate=4e-3, seed=seed)


@torch.no_grad()
def found_by(segmenter: AttentionUNet2DModel, images: np.ndarray) -> np.ndarray:
    """The mask that a segmenter finds in images ``(N, H, W)`` in [0, 1]: numbers of labels, ``(N, H, W)``."""
    x = to_model_range(torch.from_numpy(images)[:, None])
    return np.concatenate([segmenter(part, 0).sample.argmax(1).numpy() for part in x.split(AT_ONCE)])


def regression(
    unet: AttentionUNet2DModel, scans: ScanDataset, config: TrainingConfig, folder: Path
) -> AttentionUNet2DModel:
    """The diffusion model's own network, trained to give the scan itself: without noise, at one timestep, by as many steps.

    It is kept in the folder, and opened from there if it is there.
    """
    if folder.exists():
        return AttentionUNet2DModel.from_pretrained(folder).eval()
    torch.manual_seed(config.seed)
    network = AttentionUNet2DModel.from_config(unet.config)

    def loss_of(rows: np.ndarray) -> torch.Tensor:
        batch = scans.batch(rows)
        x_0 = to_model_range(batch["pixel_values"])
        return F.huber_loss(network(torch.zeros_like(x_0), 0, **network.conditioning_of(batch)).sample, x_0)

    fit(
        network, loss_of, [np.arange(len(scans))], steps=config.max_train_steps, batch_size=config.train_batch_size,
        learning_rate=config.learning_rate, seed=config.seed,
    )  # fmt: skip
    network.save_pretrained(folder)
    return network


@torch.no_grad()
def restored_by(network: AttentionUNet2DModel, scans: ScanDataset, count: int) -> np.ndarray:
    """What the regression makes of the first scans' conditions, ``(count, H, W)`` in [0, 1]."""
    found = []
    for start in range(0, count, AT_ONCE):
        batch = scans.batch(range(start, min(start + AT_ONCE, count)))
        x_0 = network(torch.zeros_like(batch["pixel_values"]), 0, **network.conditioning_of(batch)).sample
        found.append(to_unit_range(x_0)[:, 0].numpy())
    return np.concatenate(found)


def dice(asked: np.ndarray, found: np.ndarray, label: int) -> np.ndarray:
    """2 |A and B| / (|A| + |B|) of one label in masks ``(N, H, W)``: ``(N,)``, not a number where nothing was asked for."""
    a, b = asked == label, found == label
    both, sizes = (a & b).sum((1, 2)), a.sum((1, 2)) + b.sum((1, 2))
    return np.where(a.any((1, 2)), 2 * both / np.maximum(sizes, 1), np.nan)


def psnr(truth: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of images ``(N, H, W)`` in [0, 1], each by itself: ``(N,)``."""
    return -10 * np.log10(np.maximum(((images - truth) ** 2).mean((1, 2)), 1e-12))


def ssim(truth: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Structural similarity of images ``(N, H, W)`` in [0, 1] (Wang et al. 2004), each by itself: ``(N,)``."""
    pair = (torch.from_numpy(x).float()[:, None] for x in (images, truth))
    return structural_similarity_index_measure(*pair, data_range=1.0, reduction="none").numpy()


def mean_of_images(values: np.ndarray) -> Estimate:
    """The mean over images, with a bootstrap's interval; those without a number are left out."""
    values = values[~np.isnan(values)]
    counts = resampling_counts(len(values), np.random.default_rng(0))
    low, high = percentile_interval(counts @ values / len(values))
    return Estimate(float(values.mean()), low, high, len(values))
