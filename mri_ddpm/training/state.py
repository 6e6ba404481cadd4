"""All that a training step reads or changes, as data, and how it is built."""

import dataclasses
import math
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import Channels, Scans
from mri_ddpm.diffusion import lognormal_timestep_weights, make_noise_scheduler
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.runs import Base, RunFolder
from mri_ddpm.training.beginning import begin_with, choose_trained, refuse_other_channels
from mri_ddpm.training.device import hold_if_small
from mri_ddpm.training.guard import Guard
from mri_ddpm.training.moments import MAX_COMPONENTS, keep_moments, moments_size
from mri_ddpm.training.randomness import EpochSampler
from mri_ddpm.training.rehearsal import with_rehearsal


class Progress:
    """Optimizer steps taken; saved in every checkpoint. The epoch and the place in it follow from it."""

    def __init__(self):
        self.step = 0

    def state_dict(self) -> dict:
        return {"step": self.step}

    def load_state_dict(self, state: dict) -> None:
        self.step = state["step"]


@dataclass
class TrainingState:
    """Everything that a step reads or changes. ``unet`` is wrapped for this process, ``raw_unet`` is the same bare."""

    accelerator: Accelerator
    config: TrainingConfig
    folder: RunFolder
    scans: Scans
    sampler: EpochSampler
    loader: DataLoader
    unet: torch.nn.Module
    raw_unet: AttentionUNet2DModel
    noise_scheduler: DDPMScheduler
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMAModel
    guard: Guard
    progress: Progress
    steps_per_epoch: int
    max_steps: int
    base: Base | None  # what the training began from
    timestep_weights: torch.Tensor | None = None  # how often each is trained; all alike when None

    @property
    def averaged_weights(self):
        """A context in which the network has the EMA weights."""
        return averaged_weights(self.ema, self.raw_unet)


def prepare(
    accelerator: Accelerator,
    config: TrainingConfig,
    scans: Scans,
    folder: RunFolder,
    base: Base | None = None,
    rehearsal: dict[str, np.ndarray] | None = None,
) -> TrainingState:
    """Build the network, the optimizer and the rest for this process.

    With the weights of a base, where it is open, and with what `rehearse` gives among the scans.
    """
    shown = with_rehearsal(scans.train, rehearsal, config) if rehearsal else scans.train
    sampler = EpochSampler(len(shown), config.seed)
    held = hold_if_small(accelerator, shown, scans.validation)
    loader = DataLoader(
        shown,
        batch_size=config.train_batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=0 if held else config.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda" and not held,
    )
    raw_unet = build_unet(config, scans.class_names, scans.channels, base)
    if config.mask_label_dropout_prob == 0 and not base:  # else it has seen empty masks
        raw_unet.register_to_config(always_marked=always_marked(scans, raw_unet.config.class_names))
    if base and base.unet:
        refuse_other_channels(base, raw_unet)
        begin_with(raw_unet, base, config.like)
    if config.start_from_moments:
        keep_moments(raw_unet, scans, base)
    choose_trained(raw_unet, config)
    raw_unet.to(memory_format=torch.channels_last)
    optimizer = build_optimizer(config, raw_unet)
    unet, optimizer, loader = accelerator.prepare(raw_unet, optimizer, loader)
    # Without accelerate's autocast, which losses ask for: samples are made in float32, as by the pipeline
    accelerator.unwrap_model(unet, keep_fp32_wrapper=False)
    steps_per_epoch = math.ceil(len(loader) / config.gradient_accumulation_steps)
    max_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch

    # Not prepared by accelerate, which would step it once a process: it counts optimizer steps.
    lr_scheduler = get_scheduler(
        "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler,
        optimizer.optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max_steps,
    )
    ema = EMAModel(
        raw_unet.parameters(), decay=config.ema_max_decay, use_ema_warmup=True, power=config.ema_power
    )
    progress = Progress()
    parameters, fp16 = list(raw_unet.parameters()), accelerator.scaler is not None
    guard = Guard(optimizer.optimizer, parameters, config.surge_guard, fp16, begun=bool(base))
    accelerator.register_for_checkpointing(progress, ema, guard)  # the rate follows from the step
    noise_scheduler = make_noise_scheduler(
        config.num_train_timesteps,
        config.beta_start,
        config.beta_end,
        config.prediction_type,
        config.rescale_betas_zero_snr,
    )
    timestep_weights = None
    if config.timestep_sampling == "lognormal":
        timestep_weights = lognormal_timestep_weights(
            noise_scheduler, config.log_sigma_mean, config.log_sigma_std
        ).to(accelerator.device)
    base = base and dataclasses.replace(base, unet=None)  # its weights are in the network now
    return TrainingState(
        accelerator, config, folder, scans, sampler, loader, unet, raw_unet, noise_scheduler, optimizer, lr_scheduler, ema,
        guard, progress, steps_per_epoch, max_steps, base, timestep_weights,
    )  # fmt: skip


@contextmanager
def averaged_weights(ema: EMAModel, unet: AttentionUNet2DModel):
    """Give the network the EMA weights for the length of a block."""
    parameters = list(unet.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


def build_unet(
    config: TrainingConfig,
    class_names: tuple[str, ...],
    channels: Channels | None = None,
    base: Base | None = None,
) -> AttentionUNet2DModel:
    """The network, its weights drawn from the seed; of one channel without a name where ``channels`` says nothing else.

    With a base it fits the base's weights: it has the base's classes where the scans have none, and moments of the same size.
    """
    channels, before = channels or Channels(), base.unet_config if base else {}
    out_channels, known = channels.width(channels.drawn) or 1, channels.width(channels.given)
    # "No class" and "no condition" mean something where the base or this training has seen them
    null_class = config.class_dropout_prob > 0 or not class_names or (base and before["null_class"])
    null_condition = config.condition_dropout_prob > 0 or (base and before["null_condition"])
    class_names = class_names or (base.class_names if base else ())
    conditional = config.class_conditional and bool(class_names)
    size, components = moments_size(config.resolution, out_channels), MAX_COMPONENTS
    if base:
        size, components = before["moments_size"], before["num_components"]
    torch.manual_seed(config.seed)
    unet = AttentionUNet2DModel(
        sample_size=config.resolution,
        in_channels=out_channels
        + (known + 1 if known else 0),  # and one that says that the condition is known
        out_channels=out_channels,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        block_type=config.block_type,
        attention_types=attention_types(config),
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        num_class_embeds=len(class_names) if conditional else None,
        class_names=tuple(class_names) if conditional else None,
        null_class=not conditional or bool(null_class),
        moments_size=size if config.start_from_moments else None,
        num_components=components if config.start_from_moments else 0,
        channel_names=channels.drawn or None,
        condition_names=channels.given or None,
        mask_labels=channels.mask_labels or None,
        null_condition=not known or bool(null_condition),
        augment_dim=int(config.random_flip),
    )
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def always_marked(scans: Scans, class_names: tuple[str, ...] | None) -> dict[str, tuple[str, ...]] | None:
    """The classes, ``""`` where the model has none, of which no scan has an empty mask, by the mask that is given.

    A class without validation scans is left out, for grids give it masks of other classes.
    """
    parts, found = [(part.marked(), part.class_labels) for part in (scans.train, scans.validation)], {}
    for mask in parts[0][0]:
        found[mask] = ()
        for number, name in enumerate(class_names or ("",)):
            of_class = [marked[mask][labels == number if class_names else ...] for marked, labels in parts]
            if all(len(are_marked) and are_marked.all() for are_marked in of_class):
                found[mask] += (name,)
    return found or None


def attention_types(config: TrainingConfig) -> tuple[str | None, ...]:
    """The flag's words as the network takes them: "none" is ``None``."""
    return tuple(None if kind == "none" else kind for kind in config.attention_types)


def build_optimizer(config: TrainingConfig, unet: AttentionUNet2DModel) -> torch.optim.Optimizer:
    """Adam as in the recipe, or AdamW, of what is trained; fused, so that the guard can have an update left out without waiting for it."""
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return optimizer_class(
        [parameter for parameter in unet.parameters() if parameter.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        fused=True,
    )
