"""One optimizer step: the batches of it, their loss, and the update."""

import math
from collections.abc import Iterator
from contextlib import nullcontext

import torch

from mri_ddpm.data import to_model_range
from mri_ddpm.diffusion import min_snr_weights, training_loss
from mri_ddpm.training.randomness import DROPOUT, derive_seed, draw_for_batch
from mri_ddpm.training.state import TrainingState


def rest_of_epoch(state: TrainingState) -> Iterator[list[tuple[int, dict]]]:
    """Yield the rest of the current epoch, an optimizer step's batches at a time, each with its global index."""
    accumulation = state.config.gradient_accumulation_steps
    epoch, within = divmod(state.progress.step, state.steps_per_epoch)
    state.sampler.epoch = epoch
    skipped = within * accumulation
    loader = state.accelerator.skip_first_batches(state.loader, skipped) if skipped else state.loader
    pending = []
    for numbered in enumerate(loader, start=epoch * len(state.loader) + skipped):
        pending.append(numbered)
        if len(pending) == accumulation:
            yield pending
            pending = []
    if pending:
        yield pending


def take_step(state: TrainingState, batches: list[tuple[int, dict]]) -> dict:
    """One optimizer step; returns its loss, rate and gradient norm, still on the device."""
    losses = []
    for index, batch in batches:
        # Not accelerate's accumulate(): of an epoch's last batches, gathered here, each would become a step of its own
        is_last = index == batches[-1][0]
        with nullcontext() if is_last else state.accelerator.no_sync(state.unet):
            loss = batch_loss(state, index, batch)
            losses.append(loss.detach())
            state.accelerator.backward(loss / len(batches))
    max_norm = state.config.max_grad_norm or math.inf
    grad_norm = state.accelerator.clip_grad_norm_(state.unet.parameters(), max_norm)
    verdict = state.guard.judge(grad_norm, max_norm)
    state.optimizer.step()
    state.optimizer.zero_grad()
    learning_rate = state.lr_scheduler.get_last_lr()[0]
    state.lr_scheduler.step()
    state.ema.step(state.raw_unet.parameters())
    loss = torch.stack(losses).mean()
    return {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, **verdict}


def batch_loss(state: TrainingState, batch_index: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss ``()`` of this process's part of a batch: ``pixel_values (B, C, H, W)`` in [0, 1], ``class_labels (B,)``.

    And ``condition (B, K, H, W)``, where there is one: it gets no noise, and has no part in the loss.
    """
    config, accelerator = state.config, state.accelerator
    torch.manual_seed(derive_seed(config.seed, DROPOUT, batch_index, accelerator.process_index))
    labels = state.scans.channels.label_channels
    draws = draw_for_batch(
        config,
        batch_index,
        batch["pixel_values"],
        accelerator.process_index,
        accelerator.num_processes,
        state.timestep_weights,
        len(labels),
    )
    if (
        config.mask_label_dropout_prob
    ):  # as segmentation-guided-diffusion trains (Konz et al. 2024, arXiv:2402.05210)
        condition = batch["condition"].clone()  # (B, K, H, W)
        condition[:, labels] = condition[:, labels].masked_fill(draws.drop_labels[..., None, None], 0)
        batch = batch | {"condition": condition}
    if config.random_flip:
        keep_side = [state.scans.class_names.index(name) for name in config.no_flip_classes]
        flip = draws.flip & ~torch.isin(batch["class_labels"], batch["class_labels"].new_tensor(keep_side))
        # Whatever is an image turns with the scan, and the network is told
        images = {name: tensor for name, tensor in batch.items() if tensor.ndim == 4}
        batch = batch | {
            name: torch.where(flip[:, None, None, None], x.flip(-1), x) for name, x in images.items()
        }
        batch["augment_labels"] = flip[:, None].float()  # (B, 1)
    x_0 = to_model_range(batch["pixel_values"])  # (B, C, H, W)
    dropped = {"class_labels": draws.drop_class, "condition": draws.drop_condition}
    conditioning = state.raw_unet.drop_conditioning(state.raw_unet.conditioning_of(batch), dropped)
    kind = {"loss_type": config.loss_type, "huber_delta": config.huber_delta}
    with accelerator.autocast():
        noised = (x_0, draws.noise, draws.timesteps)
        loss = training_loss(
            state.unet, state.noise_scheduler, *noised, conditioning, **kind
        ).per_sample  # (B,)
    if config.snr_gamma:
        loss = loss * min_snr_weights(state.noise_scheduler, draws.timesteps, config.snr_gamma)
    return loss.mean()
