"""The validation loss, with the same noise and timesteps every time, and the sample grids, with the same noise too."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.utils.torch_utils import randn_tensor

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import ScanDataset, to_model_range
from mri_ddpm.diffusion import training_loss
from mri_ddpm.errors import InputError
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.training.plots import save_grid
from mri_ddpm.training.randomness import SAMPLES, VALIDATION, make_generator


@contextmanager
def pipeline_of(unet: AttentionUNet2DModel, noise_scheduler: DDPMScheduler) -> Iterator[MRIDDPMPipeline]:
    """The network as a pipeline, in evaluation mode for the length of a block; sampling changes a copy of the scheduler."""
    was_training = unet.training
    yield MRIDDPMPipeline(unet.eval(), DDPMScheduler.from_config(noise_scheduler.config))
    unet.train(was_training)


@torch.no_grad()
def validation_losses(
    accelerator: Accelerator,
    unet: AttentionUNet2DModel,
    scheduler: DDPMScheduler,
    scans: ScanDataset,
    config: TrainingConfig,
) -> torch.Tensor:
    """Unweighted loss ``(N,)`` of each validation scan at one timestep; the timesteps cover 0..T-1 evenly.

    The batches are shared out over the processes, and a scan's noise depends on its index alone, so the values are the
    same for any number of processes and any batch size.
    """
    was_training = unet.training
    unet.eval()
    num_timesteps = scheduler.config.num_train_timesteps
    spread = torch.randperm(len(scans), generator=make_generator(config.seed, VALIDATION))
    timesteps = (spread + 0.5).mul(num_timesteps / len(scans)).long()  # (N,)

    kind = {"loss_type": config.loss_type, "huber_delta": config.huber_delta}
    losses = torch.zeros(len(scans), device=accelerator.device)
    starts = range(0, len(scans), config.train_batch_size)
    for index in range(accelerator.process_index, len(starts), accelerator.num_processes):
        rows = range(starts[index], min(starts[index] + config.train_batch_size, len(scans)))
        batch = {name: tensor.to(accelerator.device) for name, tensor in scans.batch(rows).items()}
        x_0 = to_model_range(batch["pixel_values"])  # (B, C, H, W)
        noise = randn_tensor(x_0.shape, [make_generator(config.seed, VALIDATION, 1 + row) for row in rows])
        noised = (x_0, noise.to(x_0), timesteps[rows.start : rows.stop].to(x_0.device))
        conditioning = unet.conditioning_of(batch)
        with accelerator.autocast():
            found = training_loss(unet, scheduler, *noised, conditioning, **kind).per_sample  # (B,)
        losses[rows.start : rows.stop] = found
    unet.train(was_training)
    return accelerator.reduce(losses, "sum")


def draw_grid(
    unet: AttentionUNet2DModel,
    scheduler: DDPMScheduler,
    config: TrainingConfig,
    path: Path,
    scans: ScanDataset | None = None,
    progress: bool = False,
) -> None:
    """Sample ``config.num_samples`` images from the same noise every time, and write them as one grid.

    It has a row a class, and of each a row a channel. What the model is to be given is taken from ``scans``, of the class.
    """
    with pipeline_of(unet, scheduler) as pipeline:
        pipeline.set_progress_bar_config(disable=not progress, desc="sampling", leave=False)
        names = pipeline.class_names or ("",)
        columns = max(1, config.num_samples // len(names))
        labels = [name for name in names for _ in range(columns)] if pipeline.class_names else None
        num_images = columns * len(names)
        generators = [make_generator(config.seed, SAMPLES, i) for i in range(num_images)]
        known = conditions_for_grid(scans, names, columns) if pipeline.condition_names and scans else None
        try:
            sampled = pipeline(
                labels, num_images, config.num_inference_steps, generator=generators, condition=known
            )
        except ValueError as error:  # of predictions that are not finite
            raise InputError(f"{path} cannot be made: {error}") from error
        channels = sampled.by_channel
        rows = [(i, channel) for i in range(len(names)) for channel in channels]
        images = [image for i, name in rows for image in channels[name][i * columns : (i + 1) * columns]]
        titles = [" ".join(filter(None, (names[i], channel))) for i, channel in rows]
        save_grid(images, titles, path)


def conditions_for_grid(scans: ScanDataset, class_names: tuple[str, ...], columns: int) -> dict:
    """What the first scans of each class give, ``columns`` of each, over again where there are fewer."""
    of_class = [np.flatnonzero(scans.class_labels == label) for label in range(len(class_names))]
    everything = np.arange(len(scans))
    rows = [np.resize(found if len(found) else everything, columns) for found in of_class]
    condition = scans.batch(np.concatenate(rows))["condition"]
    return scans.channels.by_name(condition.cpu().numpy())
