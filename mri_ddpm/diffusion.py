"""The diffusion: the noise schedule, what the network learns, and the loss of one sample.

Equations: "DDPM" is Ho et al. 2020 (arXiv:2006.11239), "v" is Salimans & Ho 2022 (arXiv:2202.00512), "min-SNR" is Hang
et al. 2023 (arXiv:2303.09556).
"""

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
LOSS_TYPES = ("huber", "l1", "l2")
MAX_TERMINAL_SIGNAL = 0.05  # above it x_T still shows the scan, while sampling starts from noise alone


def make_noise_scheduler(
    num_train_timesteps: int = 300,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    prediction_type: str = "epsilon",
) -> DDPMScheduler:
    """Make the recipe's scheduler: linear betas (DDPM, section 4), x_0 clipped to [-1, 1], fixed-small variance.

    With trailing spacing a chain of fewer steps still starts at t = T - 1, where there is nothing but noise.
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


def min_snr_weights(scheduler: DDPMScheduler, timesteps: torch.Tensor, snr_gamma: float) -> torch.Tensor:
    """Weights ``(B,)`` that turn the loss into an x_0 loss of weight min(SNR, gamma) (min-SNR, section 3.4)."""
    snr = compute_snr(scheduler, timesteps)
    x_0_weight = snr.clamp(max=snr_gamma)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return x_0_weight / divisor[scheduler.config.prediction_type]
