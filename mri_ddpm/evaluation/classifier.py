"""A small classifier of scans: the default feature extractor, and the judge of what synthetic scans are good for.

Images are float32 ``(N, C, H, W)`` in [0, 1]. B: batch, C: channels, one or several contrasts.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from mri_ddpm.evaluation.lazy import Images, blocks

Labelled = tuple[Images, np.ndarray]  # images and their classes (N,) int64
FEATURES = 64
BATCH = 64
STEPS = 1000  # 26 epochs of the reference set: 0.90 of validation scans right at 44 px, 0.84 after 600
LEARNING_RATE = 2e-3


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with group norm before each (He et al. 2016), the first of them halving the size."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, in_channels), nn.GroupNorm(8, out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C', H / 2, W / 2)
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class ScanClassifier(nn.Module):
    """Images of any size from 16 pixels to ``FEATURES`` numbers, and from those to classes."""

    def __init__(self, num_classes: int, in_channels: int = 1):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 32, 5, stride=2, padding=2)
        self.blocks = nn.Sequential(ResidualBlock(32, 64), ResidualBlock(64, 128))
        self.norm = nn.GroupNorm(8, 128)
        self.to_features = nn.Linear(128, FEATURES)
        self.to_classes = nn.Linear(FEATURES, num_classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """``(B, C, H, W)`` in [0, 1] -> ``(B, FEATURES)``."""
        x = self.blocks(self.stem(2 * images - 1))  # (B, 128, H / 8, W / 8)
        return self.to_features(F.silu(self.norm(x)).mean((2, 3)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.to_classes(F.silu(self.features(images)))  # (B, num_classes)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Classical augmentation: mirror, turn by up to 10 degrees, scale and move by up to 10 %, change the contrast."""
    n = len(images)
    draw = torch.rand(6, n, generator=generator) * 2 - 1  # (6, B) in [-1, 1)
    angle, scale = draw[0] * math.radians(10), 1 + 0.1 * draw[1]
    mirror = draw[2].sign()
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([mirror * cos, -sin, 0.1 * draw[3]]), torch.stack([mirror * sin, cos, 0.1 * draw[4]])]
    theta = torch.stack(rows).permute(2, 0, 1).to(images)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, align_corners=False)  # black outside, as scans are
    return (moved * (1 + 0.2 * draw[5].to(images))[:, None, None, None]).clamp(0, 1)


def train_classifier(
    images: Images,
    labels: np.ndarray,
    num_classes: int,
    *,
    seed: int,
    steps: int | None = None,
    augmentation: Callable[[torch.Tensor, torch.Generator], torch.Tensor] = augment,
    device: str = "cpu",
    title: str = "",
    weights: np.ndarray | None = None,
) -> ScanClassifier:
    """Train for ``steps`` or ``STEPS`` steps of AdamW with one cycle of the rate, augmentation and smoothed labels.

    The number of steps does not depend on the number of images, so that settings with more of them get no more training.
    ``weights`` ``(N,)``: how often each image is drawn; all alike when ``None``.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ScanClassifier(num_classes, images.shape[1]).to(device, memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    steps = steps or STEPS
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    labels = torch.from_numpy(labels)
    for _ in tqdm(range(steps), desc=title, leave=False, disable=not title):
        if weights is None:
            rows = torch.randint(len(images), (BATCH,), generator=generator)
        else:
            rows = torch.multinomial(torch.from_numpy(weights), BATCH, replacement=True, generator=generator)
        chosen = torch.from_numpy(np.asarray(images[rows.numpy()]))  # (B, C, H, W)
        batch = augmentation(chosen, generator).to(device)
        loss = F.cross_entropy(model(batch), labels[rows].to(device), label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def predict(model: ScanClassifier, images: Images, device: str = "cpu") -> np.ndarray:
    """The class of each image, ``(N,)`` int64."""
    batches = (torch.from_numpy(block).to(device) for block in blocks(images, 256))
    return torch.cat([model(batch).argmax(1).cpu() for batch in batches]).numpy()
