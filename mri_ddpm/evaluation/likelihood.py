"""How well a model denoises scans it has not seen, timestep by timestep, and what that says of their likelihood.

"DDPM" is Ho et al. 2020 (arXiv:2006.11239). N: scans, T: timesteps, K: scans a timestep, B: batch. Timestep t is the
paper's t + 1: its network call estimates x_0 and gives the bound's term L_t.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
import torch
from diffusers import DDPMScheduler
from scipy.special import stdtrit
from tqdm.auto import tqdm

from mri_ddpm.data import to_model_range, to_unit_range
from mri_ddpm.diffusion import bound_term, predicted_x_0, prior_term, training_loss
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.estimates import Estimate

MIN_IMAGES = 2  # of which a spread can be told


@dataclass(frozen=True)
class DenoisingCurves:
    """What one pass over the timesteps measured, call by call; row t, column k is the k-th scan at timestep t.

    scans: which scan it was, ``(T, K)`` int64 in 0..N-1.
    loss: the training loss, unweighted, ``(T, K)``.
    bound: the bound's term L_t (L_0 in row 0), in nats a scan, ``(T, K)``.
    squared_error: of the x_0 estimate, the mean over pixels in the range [-1, 1], ``(T, K)``.
    prior: L_T of every scan, in nats, ``(N,)``.
    num_pixels: of one scan.
    """

    scans: np.ndarray
    loss: np.ndarray
    bound: np.ndarray
    squared_error: np.ndarray
    prior: np.ndarray
    num_pixels: int

    def by_timestep(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard error at every timestep, each ``(T,)``, of "loss", "bound" or "squared_error"."""
        values = getattr(self, name)
        rows = zip(values, self.scans, strict=True)
        errors = [_standard_error(row[None], scans[None], len(self.prior))[0] for row, scans in rows]
        return values.mean(1), np.array(errors)


@torch.no_grad()
def denoising_curves(
    unet: Callable,
    scheduler: DDPMScheduler,
    x_0: torch.Tensor,
    conditioning: dict[str, torch.Tensor],
    *,
    images_per_timestep: int,
    loss_type: str,
    huber_delta: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> DenoisingCurves:
    """Noise and denoise scans at every timestep once: T x ``images_per_timestep`` calls' worth of network, batched.

    Every timestep gets equally many scans, and every scan is taken equally often, give or take one. Which, with which
    noise, depends on ``seed`` and the place in that order alone, and not on ``batch_size``.

    Args:
        unet: called as ``unet(x_t, t, **conditioning).sample``, ``t`` being ``(B,)``; in evaluation mode.
        x_0: scans, ``(N, 1, H, W)`` in [-1, 1], on the network's device; rounded to the 256 levels that bits count.
        conditioning: tensors ``(N, ...)`` by name, as the network's ``conditioning_of`` picks them from a batch.
        images_per_timestep: K, at least 2; best no more than N.
        loss_type: what the network was trained by, as in the configuration, with its ``huber_delta``.
        progress: show a bar.

    Raises:
        InputError: for scans or counts that cannot be used, and predictions that are not finite.
    """
    _check_scans(x_0, conditioning, MIN_IMAGES)
    if images_per_timestep < MIN_IMAGES:
        raise InputError(
            f"images_per_timestep is {images_per_timestep}: give at least {MIN_IMAGES}, for an interval needs a spread."
        )
    x_0 = to_model_range((to_unit_range(x_0) * 255).round() / 255)
    shape = (scheduler.config.num_train_timesteps, images_per_timestep)  # (T, K)
    order = np.random.default_rng(seed).permutation(len(x_0))
    scans = order[np.arange(shape[0] * shape[1]) % len(x_0)]  # (T * K,)
    measured, kind = [], {"loss_type": loss_type, "huber_delta": huber_delta}
    starts = range(0, len(scans), batch_size)
    for start in tqdm(starts, desc="denoising", unit="batch", disable=not progress):
        calls = np.arange(start, min(start + batch_size, len(scans)))  # (B,)
        rows = torch.from_numpy(scans[calls]).to(x_0.device)
        t = torch.from_numpy(calls // images_per_timestep).to(x_0.device)
        known = {name: tensor[rows] for name, tensor in conditioning.items()}
        noise = _noise(x_0, seed, calls.tolist())
        loss, x_0_hat = _denoise(unet, scheduler, x_0[rows], noise, t, known, **kind)
        values = (
            loss.double(),
            bound_term(scheduler, x_0[rows], x_0_hat, t),
            (x_0_hat.double() - x_0[rows].double()).square().flatten(1).mean(1),
        )
        measured.append(torch.stack(values).cpu())  # (3, B)
    loss, bound, squared_error = torch.cat(measured, 1).numpy().reshape(3, *shape)
    prior = prior_term(scheduler, x_0, *_start(unet, x_0, conditioning)).cpu().numpy()
    return DenoisingCurves(scans.reshape(shape), loss, bound, squared_error, prior, x_0[0].numel())


def loss_by_quartile(curves: DenoisingCurves) -> list[Estimate]:
    """The training loss over each quarter of the timesteps, from the least noise (0-25 %) to the most (75-100 %)."""
    num_timesteps = len(curves.loss)
    quartile = np.arange(num_timesteps) * 4 // num_timesteps  # (T,)
    estimates = []
    for q in range(4):
        loss, scans = curves.loss[quartile == q], curves.scans[quartile == q]
        spread = _standard_error(loss, scans, len(curves.prior))
        estimates.append(_estimate(loss.mean(1).sum(), spread, 1 / len(loss), scans))
    return estimates


def bits_per_dimension(curves: DenoisingCurves) -> Estimate:
    """The whole variational bound in bits a pixel: the model's likelihood of a scan costs no more (DDPM, table 1).

    It counts scans of 256 grey levels and the full chain of T steps with fixed-small variance.
    """
    nats = curves.prior.mean() + curves.bound.mean(1).sum()
    prior = (curves.prior - curves.prior.mean()) / len(curves.prior)  # (N,)
    spread = _standard_error(curves.bound, curves.scans, len(prior), prior)
    return _estimate(nats, spread, 1 / (curves.num_pixels * log(2)), curves.scans)


def bits_by_term(curves: DenoisingCurves) -> np.ndarray:
    """What each term of the bound adds to the bits a pixel: L_0 at timestep 0 ... L_{T-1}, and L_T; ``(T + 1,)``."""
    return np.append(curves.bound.mean(1), curves.prior.mean()) / (curves.num_pixels * log(2))


def rate_distortion(curves: DenoisingCurves) -> tuple[np.ndarray, np.ndarray]:
    """Progressive lossy compression (DDPM, section 4.3, figure 5), by timestep, each ``(T,)``.

    The rate is what the receiver of x_t has been sent, L_T + ... + L_{t+1}, in bits a pixel; the distortion is the
    root mean squared error of the x_0 estimated from it, on the scale of 0 to 255.
    """
    bits = bits_by_term(curves)
    rate = bits[::-1].cumsum()[::-1][1:]
    return rate, 255 / 2 * np.sqrt(curves.squared_error.mean(1))


@torch.no_grad()
def progressive_estimates(
    unet: Callable,
    scheduler: DDPMScheduler,
    x_0: torch.Tensor,
    conditioning: dict[str, torch.Tensor],
    timesteps: Sequence[int],
    seed: int = 0,
) -> torch.Tensor:
    """What the model makes of each scan after more and more noise, ``(len(timesteps), B, 1, H, W)``.

    The estimates are those whose error `rate_distortion` plots (DDPM, section 4.3). A scan's noise depends on ``seed``
    and its row alone, and is the same at all timesteps, which are in 0..T-1. Other arguments and errors are those of
    `denoising_curves`.
    """
    _check_scans(x_0, conditioning, 1)
    last = scheduler.config.num_train_timesteps - 1
    if unknown := [t for t in timesteps if not 0 <= t <= last]:
        raise InputError(f"There is no timestep {unknown[0]}: the model's are 0 to {last}.")
    noise = _noise(x_0, seed, range(len(x_0)))
    estimates = x_0.new_empty(len(timesteps), *x_0.shape)
    for row, timestep in enumerate(timesteps):
        t = torch.full((len(x_0),), timestep, device=x_0.device)
        estimates[row] = _denoise(unet, scheduler, x_0, noise, t, conditioning)[1]
    return estimates


def _denoise(unet, scheduler, x_0, noise, t, conditioning, **kind) -> tuple[torch.Tensor, torch.Tensor]:
    """The training loss of scans with noise, ``(B,)``, and the x_0 that the network predicts, ``(B, 1, H, W)``."""
    found = training_loss(unet, scheduler, x_0, noise, t, conditioning, **kind)
    finite = found.prediction.isfinite().flatten(1).all(1)
    if not finite.all():
        raise InputError(
            f"The network's prediction at timestep {t[~finite][0].item()} is not finite: take weights from before its"
            " training went astray."
        )
    return found.per_sample, predicted_x_0(scheduler, found.prediction.double(), found.x_t.double(), t)


def _start(unet, x_0: torch.Tensor, conditioning: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The moments that the model's chains start with, for `prior_term`; none of a model that starts in noise alone."""
    if getattr(unet, "x_0_mean", None) is None:
        return ()
    mean, components = unet.x_0_moments(*x_0.shape[-2:])
    if "condition" in conditioning:
        components = components[:0]  # as in the pipeline
    labels = conditioning.get("class_labels")  # the only condition that the moments know
    return (mean[-1:].expand_as(x_0) if labels is None else mean[labels]), components


def _noise(x_0: torch.Tensor, seed: int, places: Sequence[int]) -> torch.Tensor:
    """Noise for a batch, ``(B, 1, H, W)``, drawn one by one, so that it is the same in any batch."""
    generators = [np.random.default_rng([seed, 1 + place]) for place in places]
    return torch.from_numpy(np.stack([g.standard_normal(x_0.shape[1:]) for g in generators])).to(x_0)


def _check_scans(x_0: torch.Tensor, conditioning: dict[str, torch.Tensor], at_least: int) -> None:
    if x_0.ndim != 4 or len(x_0) < at_least:
        raise InputError(
            f"The scans have the shape {tuple(x_0.shape)}: give (N, 1, H, W), with N at least {at_least}."
        )
    if not (x_0.abs() <= 1).all():  # NaN is not either
        raise InputError(
            f"The scans go from {x_0.min():.4g} to {x_0.max():.4g}: give them in the model's range, -1 to 1."
        )
    for name, tensor in conditioning.items():
        if len(tensor) != len(x_0):
            raise InputError(f"{name} has {len(tensor)} rows for {len(x_0)} scans: give one a scan.")


def _standard_error(
    values: np.ndarray, scans: np.ndarray, num_scans: int, other: np.ndarray | float = 0.0
) -> tuple[float, float]:
    """Standard error of the sum of the rows' means, for rows that share scans, and its degrees of freedom.

    What a hard scan adds at one timestep it adds at others too, so deviations are summed by scan before they are
    squared (clusters in strata: Cochran, Sampling Techniques, 1977). A few timesteps make most of the bound, and then
    only their scans tell the spread: the degrees of freedom are Welch's (Biometrika 34, 1947), or those of all scans.

    Args:
        values: ``(R, K)``.
        scans: which of the ``num_scans`` scans each value is of, ``(R, K)``.
        other: the scans' share in a further mean, ``(N,)``.
    """
    deviations = (values - values.mean(1, keepdims=True)) / values.shape[1]
    by_scan = np.bincount(scans.ravel(), deviations.ravel(), num_scans) + other  # (N,)
    free = min(values.shape[1], num_scans) - 1
    error = np.sqrt((free + 1) / free * np.square(by_scan).sum())
    spreads = np.square(deviations).sum(1)  # (R,)
    welch = free * spreads.sum() ** 2 / max(np.square(spreads).sum(), 1e-300)
    return float(error), float(np.clip(welch, 1, np.unique(scans).size - 1))


def _estimate(value: float, spread: tuple[float, float], scale: float, scans: np.ndarray) -> Estimate:
    """``scale`` times a sum of means, with its interval by Student's t."""
    error, degrees_of_freedom = spread
    half = stdtrit(degrees_of_freedom, 0.975) * error
    low, middle, high = (float(scale * x) for x in (value - half, value, value + half))
    return Estimate(middle, low, high, np.unique(scans).size)
