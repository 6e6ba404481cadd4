"""The peers' own ways to train: diffusers' example, lucidrains' `Trainer`, MONAI's tutorial; for `time_to_quality.py`."""

import argparse
import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from diffusers import DDIMPipeline, DDIMScheduler, DDPMScheduler
from diffusers.training_utils import EMAModel
from peers import (
    DIFFUSERS,
    LUCIDRAINS,
    MONAI,
    diffusers_unet,
    import_lucidrains,
    lucidrains_unet,
    monai_unet,
)
from torch import nn

NUM_INFERENCE_STEPS = 25


class Recipe(ABC):
    """A peer's network and all that trains it. B: batch, H, W: the resolution."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    cosine_rate = False
    max_grad_norm = 1.0

    def step(self, images: torch.Tensor, learning_rate: float) -> None:
        """One optimizer step on scans ``(B, 1, H, W)`` in [0, 1]."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.loss(images).backward()
        if self.max_grad_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average()

    @abstractmethod
    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Of scans ``(B, 1, H, W)`` in [0, 1], ``()``."""

    @abstractmethod
    def average(self) -> None:
        """Bring the averaged weights up to date, in a recipe that has them."""

    def drawing_weights(self) -> dict[str, torch.Tensor]:
        """The network's state to sample with."""
        return self.network.state_dict()

    @abstractmethod
    def sample(self, n: int) -> torch.Tensor:
        """Images ``(n, 1, H, W)`` of the network as it is, in [0, 1] but for what the caller has to cut off."""


class OfDiffusers(Recipe):
    cosine_rate = True

    def __init__(self, args: argparse.Namespace, memory_format: torch.memory_format):
        self.network = diffusers_unet(args.resolution, args.block_out_channels).to(
            memory_format=memory_format
        )
        self.noise_scheduler = DDPMScheduler(num_train_timesteps=1000)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), betas=(0.95, 0.999), weight_decay=1e-6)
        self.ema = EMAModel(self.network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)

    def loss(self, images):
        x_0 = 2 * mirror(images) - 1
        noise, timesteps = torch.randn_like(x_0), torch.randint(0, 1000, (len(x_0),))
        x_t = self.noise_scheduler.add_noise(x_0, noise, timesteps)
        return F.mse_loss(self.network(x_t, timesteps).sample, noise)

    def average(self):
        self.ema.step(self.network.parameters())

    def drawing_weights(self):
        names = [name for name, _ in self.network.named_parameters()]
        return dict(zip(names, self.ema.shadow_params, strict=True))

    def sample(self, n):
        pipeline = DDIMPipeline(self.network, DDIMScheduler.from_config(self.noise_scheduler.config))
        pipeline.set_progress_bar_config(disable=True)
        sampled = pipeline(
            n, num_inference_steps=NUM_INFERENCE_STEPS, output_type="np"
        ).images  # (n, H, W, 1)
        return torch.from_numpy(sampled).permute(0, 3, 1, 2)


class OfLucidrains(Recipe):
    def __init__(self, args: argparse.Namespace, memory_format: torch.memory_format):
        from ema_pytorch import EMA  # it comes with the library

        library = import_lucidrains()
        self.network = lucidrains_unet(library, args.block_out_channels, "cpu").to(
            memory_format=memory_format
        )
        self.diffusion = library.GaussianDiffusion(  # v-prediction and sigmoid betas
            self.network, image_size=args.resolution, timesteps=1000, sampling_timesteps=NUM_INFERENCE_STEPS
        )
        self.optimizer = torch.optim.Adam(self.diffusion.parameters(), betas=(0.9, 0.99))
        self.ema = EMA(self.diffusion, beta=0.995, update_every=10)

    def loss(self, images):
        return self.diffusion(mirror(images))  # it maps to [-1, 1] itself

    def average(self):
        self.ema.update()

    def drawing_weights(self):
        return self.ema.ema_model.model.state_dict()

    def sample(self, n):
        return self.diffusion.sample(batch_size=n)


class OfMonai(Recipe):
    max_grad_norm = 0.0

    def __init__(self, args: argparse.Namespace, memory_format: torch.memory_format):
        from monai.inferers import DiffusionInferer
        from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
        from monai.transforms import RandAffine

        self.resolution = args.resolution
        self.network = monai_unet(args.block_out_channels).to(memory_format=memory_format)
        self.inferer = DiffusionInferer(DDPMScheduler(num_train_timesteps=1000))
        self.drawing_scheduler = DDIMScheduler(num_train_timesteps=1000)
        self.drawing_scheduler.set_timesteps(NUM_INFERENCE_STEPS)
        self.optimizer = torch.optim.Adam(self.network.parameters())
        ranges = {"rotate_range": math.pi / 36, "translate_range": 1, "scale_range": 0.05}
        self.affine = RandAffine(prob=0.5, **ranges, padding_mode="zeros").set_random_state(args.seed)

    def loss(self, images):
        x_0 = torch.stack([self.affine(image).as_tensor() for image in images])
        noise, timesteps = torch.randn_like(x_0), torch.randint(0, 1000, (len(x_0),))
        prediction = self.inferer(
            inputs=x_0, diffusion_model=self.network, noise=noise, timesteps=timesteps
        )  # (B, 1, H, W)
        return F.mse_loss(prediction, noise)

    def average(self):
        """There is none."""

    def sample(self, n):
        noise = torch.randn(n, 1, self.resolution, self.resolution)
        scheduler = self.drawing_scheduler
        return self.inferer.sample(noise, self.network, scheduler=scheduler, verbose=False)


def mirror(images: torch.Tensor) -> torch.Tensor:
    """Mirror ``(B, 1, H, W)`` left to right, each with probability one half."""
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images)


PEERS = {DIFFUSERS: OfDiffusers, LUCIDRAINS: OfLucidrains, MONAI: OfMonai}
