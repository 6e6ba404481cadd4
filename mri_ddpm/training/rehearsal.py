"""Samples of the model that a training begins from, shown among the new scans, so that its old classes stay what they were.

No old scan is needed for it ("deep generative replay", Shin et al. 2017, arXiv:1705.08690).
"""

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from safetensors.numpy import load_file, save_file

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import ScanDataset, Scans
from mri_ddpm.errors import InputError
from mri_ddpm.files import whole_file
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs import Base
from mri_ddpm.sampling import SamplingOptions, sample_arrays

LEAST = 100  # samples of an old class: with fewer it is these few that are learned by heart
SCHEDULER, STEPS = "dpmsolver++sde", 20  # without guidance, which would narrow what they show


def rehearse(
    config: TrainingConfig, scans: Scans, base: Base, file: Path, device: torch.device
) -> dict[str, np.ndarray]:
    """As many samples of the base as make up ``--keep_old_share`` of all that is shown, as many of each old class, 100 or more.

    Old are the classes that have no new scans; a base without classes is sampled without, and its samples are of "no class".

    Args:
        config: of the training.
        scans: the new ones, in the order of `beginning.in_order_of`.
        base: what is sampled; where a run is resumed, the samples are read.
        file: where they are then.
        device: where to sample.

    Returns:
        ``images (N, H, W)`` uint8 and ``class_labels (N,)``.

    Raises:
        InputError: when no class is left to rehearse, or a sample could not stand for a scan.
    """
    names, share = base.class_names, config.keep_old_share
    old = [label for label in range(len(names)) if label not in scans.train.class_labels]
    if not old and (names or not (config.class_conditional and scans.class_names)):
        raise InputError(
            f"--keep_old_share {share} is for classes that have no new scans, and {base.name} has none such; leave it out."
        )
    if scans.channels.given or scans.channels.width(scans.channels.drawn) > 1:
        raise InputError(
            f"--keep_old_share {share} samples single scans without a condition so far; leave it out with several --channels, or "
            "with --condition_on."
        )
    if config.resolution != base.unet_config["sample_size"]:
        raise InputError(
            f"--keep_old_share {share} samples {base.unet_config['sample_size']} px, and --resolution is {config.resolution}; train at "
            "the size of the base first, and then begin from that at another."
        )
    if base.unet is None:
        return load_file(file)
    an_epoch = len(scans.train) * share / (1 - share)  # with each scan shown once
    number = max(1, round(an_epoch * math.ceil(LEAST * max(1, len(old)) / an_epoch)))
    counts = np.zeros(max(1, len(names)), dtype=int)
    counts[old or [0]] = [len(part) for part in np.array_split(np.arange(number), len(old) or 1)]
    pipeline = MRIDDPMPipeline(base.unet.to(device), DDPMScheduler.from_config(base.scheduler_config))
    steps = min(STEPS, config.num_train_timesteps)
    options = SamplingOptions(SCHEDULER, num_inference_steps=steps, seed=config.seed)
    options.prepare(pipeline, number, names[old[0]] if names else None)
    unit, labels = sample_arrays(pipeline, counts, options)
    base.unet.to("cpu")
    no_class = len(scans.class_names)  # of the network to come
    return {
        "images": np.round(unit[:, 0] * 255).astype(np.uint8),
        "class_labels": labels if names else np.full_like(labels, no_class),
    }


def with_rehearsal(
    train: ScanDataset, rehearsal: dict[str, np.ndarray], config: TrainingConfig
) -> ScanDataset:
    """Scans and samples in the share that is asked for: few scans are shown several times an epoch."""
    share = config.keep_old_share
    times = round(len(rehearsal["images"]) * (1 - share) / share / len(train))
    return train.with_more(**rehearsal, times=max(1, times))


def save_rehearsal(file: Path, rehearsal: dict[str, np.ndarray]) -> None:
    """Write the samples to where a resumed run finds them, whole or not at all."""
    with whole_file(file) as unfinished:
        save_file(rehearsal, unfinished)
