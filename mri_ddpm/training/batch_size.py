"""``--train_batch_size auto``: as many scans a step as fit into memory."""

import dataclasses
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import find_executable_batch_size

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import Scans
from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO
from mri_ddpm.files import read_json
from mri_ddpm.runs import Base, RunFolder
from mri_ddpm.sampling import activation_bytes
from mri_ddpm.training.state import build_optimizer, build_unet

LARGEST = {"cpu": 64}  # beyond it a CPU gains nothing
LARGEST_ELSEWHERE = 1024
# Bytes at the peak of a step for each byte that the layers give out: measured 1.5 to 1.6, and 0.41 to 0.44
HELD, HELD_CHECKPOINTING = 1.6, 0.45


def settle_batch_size(
    accelerator: Accelerator, config: TrainingConfig, scans: Scans, base: Base | None = None
) -> TrainingConfig:
    """Put a number in the place of "auto": that of the run which is resumed, else one that is found by trying.

    Every process takes the number of the one with the least memory.

    Raises:
        InputError: when that run's ``config.json`` holds none.
    """
    if config.train_batch_size != AUTO:
        return config
    folder = RunFolder(Path(config.output_dir))
    if config.resume_from_checkpoint and folder.config.exists():
        number = read_json(folder.config).get("train_batch_size")
        if type(number) is not int:
            raise InputError(
                f"{folder.config} has no train_batch_size to resume with; name one by --train_batch_size."
            )
    else:
        number = batch_size_that_fits(accelerator, config, scans, base)
        number = int(accelerator.gather(torch.tensor([number], device=accelerator.device)).min())
    return dataclasses.replace(config, train_batch_size=number)


def batch_size_that_fits(
    accelerator: Accelerator, config: TrainingConfig, scans: Scans, base: Base | None = None
) -> int:
    """The largest batch of which a step of training works, halving from the most that could be of use.

    A CPU gives out memory that it does not have and kills who uses it, so there the bound is half of what is free, by estimate.
    """
    device = accelerator.device
    unet = build_unet(config, scans.class_names, scans.channels, base)
    unet.to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(config, unet)

    def step(batch_size: int) -> int:
        shape = batch_size, unet.config.out_channels, config.resolution, config.resolution
        images = torch.randn(shape, device=device)
        with accelerator.autocast():
            unet(images, torch.zeros(batch_size, device=device)).sample.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return batch_size

    largest = min(LARGEST.get(device.type, LARGEST_ELSEWHERE), len(scans.train) // accelerator.num_processes)
    if device.type == "cpu":
        with activation_bytes(unet) as each:
            step(1)
        free = psutil.virtual_memory().available / accelerator.num_processes
        held = HELD_CHECKPOINTING if config.gradient_checkpointing else HELD
        largest = min(largest, int(free / (2 * held * sum(each))))
    return find_executable_batch_size(step, starting_batch_size=max(1, largest))()
