"""Randomness as a function of progress: what step 5000 draws depends on the seed and 5000, and on nothing before it.

So a resumed run draws what the unbroken run drew, and two processes draw what one would.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from mri_ddpm.config import TrainingConfig

ORDER, STEP, VALIDATION, SAMPLES, DROPOUT = range(5)  # streams that never share a seed


def derive_seed(seed: int, stream: int, *progress: int) -> int:
    """Hash a seed, a stream and a position in it to a 64-bit seed of its own."""
    return int(
        np.random.SeedSequence([seed, stream, *progress]).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


def make_generator(
    seed: int, stream: int, *progress: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A generator for one position of one stream."""
    return torch.Generator(device).manual_seed(derive_seed(seed, stream, *progress))


class EpochSampler(Sampler[int]):
    """The order of one epoch: a permutation drawn from the seed and ``epoch``, which the loop sets."""

    def __init__(self, num_scans: int, seed: int):
        self.num_scans, self.seed, self.epoch = num_scans, seed, 0

    def __len__(self) -> int:
        return self.num_scans

    def __iter__(self):
        yield from torch.randperm(
            self.num_scans, generator=make_generator(self.seed, ORDER, self.epoch)
        ).tolist()


@dataclass(frozen=True)
class Draws:
    """What one batch draws: noise like the scans, timesteps ``(B,)``, three masks ``(B,)`` and one ``(B, labels)``."""

    noise: torch.Tensor
    timesteps: torch.Tensor
    drop_class: torch.Tensor
    flip: torch.Tensor
    drop_condition: torch.Tensor
    drop_labels: torch.Tensor


def draw_for_batch(
    config: TrainingConfig,
    batch_index: int,
    x_0: torch.Tensor,
    rank: int,
    world_size: int,
    timestep_weights: torch.Tensor | None = None,
    num_labels: int = 0,
) -> Draws:
    """Draw for this process's part of a batch: the global batch is drawn, and its rank-th slice is kept.

    Args:
        batch_index: batches since the start of training, over all epochs.
        x_0: this process's scans, ``(B, C, H, W)``.
        timestep_weights: how often each timestep is drawn, ``(T,)``; all alike when ``None``.
        num_labels: of the masks that are given.
    """
    generator = make_generator(config.seed, STEP, batch_index, device=x_0.device)
    local, total = len(x_0), len(x_0) * world_size
    mine = slice(rank * local, (rank + 1) * local)

    def uniform() -> torch.Tensor:
        return torch.rand(total, generator=generator, device=x_0.device)[mine]

    if timestep_weights is None:
        drawn = torch.randint(config.num_train_timesteps, (total,), generator=generator, device=x_0.device)
    else:
        drawn = timestep_weights.multinomial(total, replacement=True, generator=generator)
    timesteps = drawn[mine]
    drop_class, flip = uniform() < config.class_dropout_prob, uniform() < 0.5
    noise = torch.randn((total, *x_0.shape[1:]), generator=generator, device=x_0.device, dtype=x_0.dtype)[
        mine
    ]
    # Last, so that a model without a condition draws what it always drew
    drop_condition = uniform() < config.condition_dropout_prob
    of_labels = torch.rand((total, num_labels), generator=generator, device=x_0.device)[mine]
    drop_labels = of_labels < config.mask_label_dropout_prob
    return Draws(noise, timesteps, drop_class, flip, drop_condition, drop_labels)
