"""The diffusion: the noise schedule, what the network learns, the loss of one sample, and its variational bound.

Equations: "DDPM" is Ho et al. 2020 (arXiv:2006.11239), "v" is Salimans & Ho 2022 (arXiv:2202.00512), "min-SNR" is Hang
et al. 2023 (arXiv:2303.09556). Timesteps count from 0: timestep t is the papers' t + 1, and L_t is its bound's term.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
MAX_TERMINAL_SIGNAL = 0.05  # above it x_T still shows the scan, while sampling starts from noise alone


def make_noise_scheduler(
    num_train_timesteps: int = 300,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    prediction_type: str = "epsilon",
    rescale_betas_zero_snr: bool = False,
) -> DDPMScheduler:
    """Make the recipe's scheduler: linear betas (DDPM, section 4), x_0 clipped to [-1, 1], fixed-small variance.

    With trailing spacing a chain of fewer steps still starts at t = T - 1, where there is nothing but noise: nearly, or
    exactly with ``rescale_betas_zero_snr`` (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    """
    return DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule="linear",
        prediction_type=prediction_type,
        variance_type="fixed_small",
        clip_sample=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=rescale_betas_zero_snr,
    )


def terminal_signal(scheduler: DDPMScheduler) -> float:
    """Share of x_0 that is left in x_T: sqrt(alpha_bar_T) (DDPM, equation 4); 0 would be pure noise."""
    return float(scheduler.alphas_cumprod[-1].sqrt())


def training_target(
    scheduler: DDPMScheduler, x_0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the network has to predict, ``(B, C, H, W)``: the noise, x_0, or the velocity between them.

    v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (v, section 4).
    """
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return x_0
    return scheduler.get_velocity(x_0, noise, timesteps)


def loss_per_sample(
    prediction: torch.Tensor, target: torch.Tensor, loss_type: str = "huber", huber_delta: float = 1.0
) -> torch.Tensor:
    """Mean loss over each sample's pixels, ``(B, C, H, W) -> (B,)``.

    ``"huber"`` is a^2 / 2 for |a| <= delta and delta (|a| - delta / 2) beyond (Huber 1964; MRIDiff, section 6).
    """
    if loss_type == "huber":
        loss = F.huber_loss(prediction, target, reduction="none", delta=huber_delta)
    else:
        loss = {"l1": F.l1_loss, "l2": F.mse_loss}[loss_type](prediction, target, reduction="none")
    return loss.flatten(1).mean(1)


@dataclass(frozen=True)
class TrainingLoss:
    """What one call of the network gives: the loss ``(B,)``, and with it ``prediction`` and ``x_t``, ``(B, C, H, W)`` each."""

    per_sample: torch.Tensor
    prediction: torch.Tensor
    x_t: torch.Tensor


def training_loss(
    unet: Callable,
    scheduler: DDPMScheduler,
    x_0: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    conditioning: dict[str, torch.Tensor],
    *,
    loss_type: str = "huber",
    huber_delta: float = 1.0,
) -> TrainingLoss:
    """The one training loss (DDPM, algorithm 1): noise x_0, have the network predict, and compare with what it should say.

    Args:
        unet: called as ``unet(x_t, timesteps, **conditioning).sample``.
        scheduler: knows the noise of each timestep, and what is to be predicted.
        x_0: ``(B, C, H, W)`` in [-1, 1].
        noise: of the same shape.
        timesteps: ``(B,)``, in 0..T-1.
        conditioning: by name, as the network's ``conditioning_of`` picks it from a batch.
        loss_type: ``"huber"``, ``"l1"`` or ``"l2"``.
        huber_delta: where the Huber loss turns linear.
    """
    x_t = scheduler.add_noise(x_0, noise, timesteps)
    prediction = unet(x_t, timesteps, **conditioning).sample.to(x_t.dtype)
    target = training_target(scheduler, x_0, noise, timesteps)
    return TrainingLoss(loss_per_sample(prediction, target, loss_type, huber_delta), prediction, x_t)


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, snr_gamma: float) -> torch.Tensor:
    """Weights ``(B,)`` that turn the loss into an x_0 loss of weight min(SNR, gamma) (min-SNR, section 3.4)."""
    snr = compute_snr(scheduler, timesteps)
    x_0_weight = snr.clamp(max=snr_gamma)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return x_0_weight / divisor[scheduler.config.prediction_type]


def lognormal_timestep_weights(scheduler: DDPMScheduler, mean: float, std: float) -> torch.Tensor:
    """How often to train each timestep, ``(T,)``, so that ln(sigma) ~ N(mean, std^2), as far as the schedule reaches.

    sigma = sqrt((1 - alpha_bar) / alpha_bar) is the noise beside the scan: most of the training is where a scan's shapes
    and details are decided. Karras et al. 2022 (arXiv:2206.00364, table 1) take N(-1.2, 1.2^2); the default is N(-0.6, 1.2^2).
    """
    alpha_bars = scheduler.alphas_cumprod.double()
    log_sigma = ((1 - alpha_bars) / alpha_bars).log() / 2  # (T,), rising
    # The interval that each timestep stands for
    widths = torch.gradient(log_sigma)[0] if len(log_sigma) > 1 else torch.ones_like(log_sigma)
    # Of logarithms, so that not all are 0 where the mean lies beyond the schedule
    return torch.softmax(widths.log() - ((log_sigma - mean) / std).square() / 2, 0)


def predicted_x_0(
    scheduler: DDPMScheduler, prediction: torch.Tensor, x_t: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """The scan that a prediction stands for, ``(B, C, H, W)``, clipped where the scheduler clips.

    It is what `DDPMScheduler.step` uses next, for timesteps ``(B,)`` that may all differ.
    """
    alpha_bar, _ = _alpha_bars(scheduler, timesteps, x_t)  # (B, 1, 1, 1)
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        x_0 = (x_t - (1 - alpha_bar).sqrt() * prediction) / alpha_bar.sqrt()  # DDPM, equation 15
    elif prediction_type == "v_prediction":
        x_0 = alpha_bar.sqrt() * x_t - (1 - alpha_bar).sqrt() * prediction  # v, section 4
    else:
        x_0 = prediction
    if not scheduler.config.clip_sample:
        return x_0
    return x_0.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)


# The variational bound (DDPM, equation 5): -log p(x_0) <= E[L_T + L_{T-1} + ... + L_1 + L_0], in nats a sample, in
# float64, of the chain with fixed-small variance. Each function's result is (B,).


def prior_term(
    scheduler: DDPMScheduler,
    x_0: torch.Tensor,
    mean: torch.Tensor | None = None,
    components: torch.Tensor | None = None,
) -> torch.Tensor:
    """L_T: the divergence of q(x_T | x_0) from what the chain starts at (DDPM, equations 4 and 5); no network has a part in it.

    That is N(0, I), or with moments N(sqrt(alpha_bar_T) mean, alpha_bar_T C^T C + (1 - alpha_bar_T) I).

    Args:
        x_0: ``(B, C, H, W)``.
        mean: of each scan's class, ``(B, C, H, W)``.
        components: C, ``(K, C, H, W)``; may be none.
    """
    x_0 = x_0.double().flatten(1)  # (B, D)
    alpha_bar = scheduler.alphas_cumprod[-1].double().to(x_0.device)
    variance = 1 - alpha_bar
    if mean is None:
        return ((variance + alpha_bar * x_0.square() - 1 - variance.log()) / 2).sum(1)
    c = components.double().flatten(1)  # (K, D)
    shift = alpha_bar.sqrt() * (x_0 - mean.double().flatten(1))  # (B, D)
    # By Woodbury, in K dimensions instead of D: the covariance is (1 - alpha_bar) (I + C^T C / SNR^-1)
    inner = torch.eye(len(c), dtype=c.dtype, device=c.device) + alpha_bar / variance * c @ c.T
    along = shift @ c.T  # (B, K)
    squared = shift.square().sum(1) - alpha_bar / variance * (
        along * torch.linalg.solve(inner, along.T).T
    ).sum(1)
    spread = torch.linalg.inv(inner).trace() - len(c) + torch.linalg.slogdet(inner).logabsdet
    return (spread + squared / variance) / 2


def bound_term(
    scheduler: DDPMScheduler, x_0: torch.Tensor, x_0_hat: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """L_t: what it costs to tell x_{t-1} from x_t by the reverse step's distribution; x_0 itself at timestep 0.

    Args:
        x_0: the scans, on the 256 levels of [-1, 1], ``(B, C, H, W)``.
        x_0_hat: their estimates from x_t, by `predicted_x_0`.
        timesteps: ``(B,)``, in 0..T-1.
    """
    x_0, x_0_hat = x_0.double(), x_0_hat.double()
    last = timesteps == 0
    terms = x_0.new_empty(len(x_0))
    terms[last] = _decoder_term(scheduler, x_0[last], x_0_hat[last])
    terms[~last] = _posterior_term(scheduler, x_0[~last], x_0_hat[~last], timesteps[~last])
    return terms


def _posterior_term(scheduler, x_0, x_0_hat, timesteps) -> torch.Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) at timesteps from 1: both have the posterior's variance."""
    alpha_bar, previous = _alpha_bars(scheduler, timesteps, x_0)
    beta = 1 - alpha_bar / previous
    variance = (1 - previous) / (1 - alpha_bar) * beta  # DDPM, equation 7
    # Both means are equation 7's, one of x_0 and one of its estimate: their parts in x_t cancel.
    difference = previous.sqrt() * beta / (1 - alpha_bar) * (x_0 - x_0_hat)
    return (difference.square() / (2 * variance)).flatten(1).sum(1)  # DDPM, equation 8


def _decoder_term(scheduler, x_0, x_0_hat) -> torch.Tensor:
    """-log p(x_0 | x_1) of a Gaussian about the estimate, summed up over each level's bin (DDPM, equation 13).

    The posterior's variance at timestep 0 is 0, which no error survives, and any other gives a bound. This takes the
    posterior's at timestep 1, as does the code of Nichol & Dhariwal 2021 (arXiv:2102.09672); on validation scans, with our
    scaled betas, it came within 0.01 bits a pixel of the best variance, and beta at timestep 0 did not.
    """
    alpha_bar_0, alpha_bar_1 = scheduler.alphas_cumprod[:2].double().tolist()
    sigma = ((1 - alpha_bar_0) / (1 - alpha_bar_1) * (1 - alpha_bar_1 / alpha_bar_0)) ** 0.5
    half_bin = 1 / (255 * sigma)
    deviation = (x_0 - x_0_hat) / sigma
    # By symmetry the bin is taken on the left of the mean, where logarithms of the distribution keep their digits.
    upper = torch.special.log_ndtr(half_bin - deviation.abs())
    lower = torch.special.log_ndtr(-half_bin - deviation.abs())
    log_mass = upper + (-torch.expm1(lower - upper)).log()
    # The bins of black and white reach to infinity.
    log_mass = torch.where(x_0 < -1 + 1 / 255, torch.special.log_ndtr(half_bin + deviation), log_mass)
    log_mass = torch.where(x_0 > 1 - 1 / 255, torch.special.log_ndtr(half_bin - deviation), log_mass)
    return -log_mass.flatten(1).sum(1)


def _alpha_bars(
    scheduler: DDPMScheduler, timesteps: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha_bar of each timestep and of the one before it (1 before the first), each ``(B, 1, 1, 1)``."""
    padded = F.pad(scheduler.alphas_cumprod, (1, 0), value=1.0).to(like)
    timesteps = timesteps.to(like.device)[:, None, None, None]
    return padded[timesteps + 1], padded[timesteps]
