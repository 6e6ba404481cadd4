from statistics import NormalDist

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mri_ddpm.diffusion import (
    MAX_TERMINAL_SIGNAL,
    PREDICTION_TYPES,
    lognormal_timestep_weights,
    loss_per_sample,
    make_noise_scheduler,
    min_snr_weights,
    terminal_signal,
    training_target,
)

T = 300
PAPER = (1e-4, 0.02)
SCALED = (1e-4 * 1000 / T, 0.02 * 1000 / T)


def alpha_bars(beta_start: float, beta_end: float) -> np.ndarray:
    """alpha_bar of every timestep (DDPM, below equation 3), float64."""
    return np.cumprod(1 - np.linspace(beta_start, beta_end, T))


def draw(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The schedule


@pytest.mark.parametrize("betas", [PAPER, SCALED])
def test_alpha_bar_is_the_running_product(betas):
    scheduler = make_noise_scheduler(T, *betas)
    expected = alpha_bars(*betas)
    assert scheduler.alphas_cumprod.shape == (T,)
    np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), expected, rtol=1e-5)
    assert terminal_signal(scheduler) == pytest.approx(np.sqrt(expected[-1]), rel=1e-5)


def test_terminal_signal_of_both_linear_schedules():
    paper, scaled = (terminal_signal(make_noise_scheduler(T, *betas)) for betas in (PAPER, SCALED))
    assert paper == pytest.approx(0.219, abs=5e-4)
    assert scaled == pytest.approx(0.006, abs=5e-4)
    assert scaled < MAX_TERMINAL_SIGNAL < paper


@pytest.mark.parametrize("betas", [PAPER, SCALED])
def test_rescaled_betas_leave_nothing_in_the_last_x_T(betas):
    """Lin et al. 2023, algorithm 1: sqrt(alpha_bar) shifted and stretched so that it ends in 0 and starts as it did."""
    scheduler = make_noise_scheduler(T, *betas, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    signal = np.sqrt(alpha_bars(*betas))
    expected = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
    np.testing.assert_allclose(scheduler.alphas_cumprod.sqrt().numpy(), expected, atol=2e-5)
    assert terminal_signal(scheduler) == 0


# How often timesteps are trained


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-0.6, 1.2), (0.0, 0.5)])
def test_ln_sigma_of_drawn_timesteps_is_normal(mean, std):
    """Within the schedule's reach; below each timestep lies what the normal law has below it, to half an interval."""
    bars = alpha_bars(*PAPER)
    log_sigma = np.log((1 - bars) / bars) / 2
    weights = lognormal_timestep_weights(make_noise_scheduler(T, *PAPER), mean, std).numpy()
    law = NormalDist(mean, std)
    low, high = law.cdf(log_sigma[0]), law.cdf(log_sigma[-1])
    expected = np.array([(law.cdf(x) - low) / (high - low) for x in log_sigma])
    np.testing.assert_allclose(np.cumsum(weights) - weights / 2, expected, atol=0.01)
    assert weights.sum() == pytest.approx(1)


def test_timesteps_by_ln_sigma_of_odd_schedules():
    far = lognormal_timestep_weights(make_noise_scheduler(T, *PAPER), 12.0, 0.1)  # beyond the schedule
    assert far[-1] > 0.5
    assert lognormal_timestep_weights(make_noise_scheduler(1, *PAPER), -1.2, 1.2).tolist() == [1.0]


@pytest.mark.parametrize("num_inference_steps", [1, 5, 50, T])
def test_a_shorter_chain_still_starts_in_noise(num_inference_steps):
    scheduler = make_noise_scheduler(T)
    scheduler.set_timesteps(num_inference_steps)
    assert scheduler.timesteps[0] == T - 1
    assert len(scheduler.timesteps) == num_inference_steps


# What the network learns


@pytest.mark.parametrize("betas", [PAPER, SCALED])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x_0_comes_back_from_x_t_and_the_target(prediction_type, betas):
    scheduler = make_noise_scheduler(T, *betas, prediction_type=prediction_type)
    timesteps = torch.tensor([0, 1, 37, 150, 298, 299])
    x_0, eps = draw(6, 1, 4, 3).clamp(-1, 1), draw(6, 1, 4, 3, seed=1)
    x_t = scheduler.add_noise(x_0, eps, timesteps)
    target = training_target(scheduler, x_0, eps, timesteps)
    assert target.dtype == torch.float64

    a = torch.from_numpy(alpha_bars(*betas))[timesteps].sqrt()[:, None, None, None]
    s = (1 - a**2).sqrt()
    torch.testing.assert_close(x_t, a * x_0 + s * eps, rtol=1e-5, atol=1e-5)  # DDPM, equation 4
    recovered = {
        "epsilon": (x_t - s * target) / a,
        "v_prediction": a * x_t - s * target,
        "sample": target,
    }[prediction_type]
    torch.testing.assert_close(recovered, x_0, rtol=0, atol=1e-3 if prediction_type == "epsilon" else 1e-5)

    for i, t in enumerate(timesteps):  # and as the sampler sees it
        step = scheduler.step(target[i], int(t), x_t[i], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(step.pred_original_sample, x_0[i], rtol=0, atol=1e-4)


def test_targets_against_their_definitions():
    timesteps = torch.tensor([2, 250])
    x_0, eps = draw(2, 1, 3, 3), draw(2, 1, 3, 3, seed=1)
    targets = {
        kind: training_target(make_noise_scheduler(T, *SCALED, prediction_type=kind), x_0, eps, timesteps)
        for kind in PREDICTION_TYPES
    }
    a = torch.from_numpy(alpha_bars(*SCALED))[timesteps].sqrt()[:, None, None, None]
    assert torch.equal(targets["epsilon"], eps)
    assert torch.equal(targets["sample"], x_0)
    torch.testing.assert_close(targets["v_prediction"], a * eps - (1 - a**2).sqrt() * x_0, rtol=0, atol=1e-5)


# The loss


@pytest.mark.parametrize("delta", [0.1, 1.0, 2.5])
def test_huber_against_the_piecewise_formula(delta):
    prediction, target = 3 * draw(4, 1, 5, 6), draw(4, 1, 5, 6, seed=1)
    prediction.view(-1)[0] = target.view(-1)[0] + delta  # on the joint
    error = (prediction - target).numpy()
    quadratic, linear = error**2 / 2, delta * (np.abs(error) - delta / 2)
    inside = np.abs(error) <= delta
    assert 0 < inside.mean() < 1
    expected = np.where(inside, quadratic, linear).reshape(4, -1).mean(axis=1)
    actual = loss_per_sample(prediction, target, "huber", delta)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12)


def test_l1_and_l2_against_their_formulas():
    prediction, target = draw(4, 1, 5, 6), draw(4, 1, 5, 6, seed=1)
    error = (prediction - target).numpy().reshape(4, -1)
    np.testing.assert_allclose(
        loss_per_sample(prediction, target, "l1").numpy(), np.abs(error).mean(1), rtol=1e-12
    )
    np.testing.assert_allclose(
        loss_per_sample(prediction, target, "l2").numpy(), (error**2).mean(1), rtol=1e-12
    )


@pytest.mark.parametrize("loss_type", ["huber", "l1", "l2"])
def test_each_sample_keeps_its_own_loss_until_the_mean(loss_type):
    prediction, target = 3 * draw(3, 1, 4, 4), draw(3, 1, 4, 4, seed=1)
    losses = loss_per_sample(prediction, target, loss_type, 0.5)
    assert losses.shape == (3,)
    whole = {
        "huber": lambda: F.huber_loss(prediction, target, delta=0.5),
        "l1": lambda: F.l1_loss(prediction, target),
        "l2": lambda: F.mse_loss(prediction, target),
    }[loss_type]()
    torch.testing.assert_close(losses.mean(), whole)
    changed = prediction.clone()
    changed[1] += 10
    others = loss_per_sample(changed, target, loss_type, 0.5)
    assert torch.equal(others[[0, 2]], losses[[0, 2]])
    assert others[1] > losses[1]


@pytest.mark.parametrize("betas", [PAPER, SCALED])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weighs_every_target_as_the_same_x_0_loss(prediction_type, betas):
    gamma, timesteps = 5.0, torch.tensor([0, 5, 30, 100, 200, 299])
    scheduler = make_noise_scheduler(T, *betas, prediction_type=prediction_type)
    alpha_bar = torch.from_numpy(alpha_bars(*betas))[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    assert snr[0] > gamma > snr[-1]  # both sides of the minimum

    # A network that knows x_t and takes x_0_hat for x_0, whatever it is asked to predict.
    x_0, eps, x_0_hat = (draw(6, 1, 4, 4, seed=seed) for seed in range(3))
    a, s = (x.sqrt()[:, None, None, None] for x in (alpha_bar, 1 - alpha_bar))
    x_t = a * x_0 + s * eps
    eps_hat = (x_t - a * x_0_hat) / s
    predicted = {"epsilon": eps_hat, "v_prediction": a * eps_hat - s * x_0_hat, "sample": x_0_hat}[
        prediction_type
    ]
    true = {"epsilon": eps, "v_prediction": a * eps - s * x_0, "sample": x_0}[prediction_type]

    weighted = min_snr_weights(scheduler, timesteps, gamma).double() * loss_per_sample(predicted, true, "l2")
    expected = snr.clamp(max=gamma) * (x_0 - x_0_hat).square().flatten(1).mean(1)
    torch.testing.assert_close(weighted, expected, rtol=1e-3, atol=0)  # 1 - 1e-4 in float32 is good to 3e-4


# The reverse chain (MRIDiff, algorithm 2), for scans from N(MEAN, STD^2), whose best denoiser is known

MEAN, STD = 0.2, 0.1


def best_prediction(x_t, alpha_bar, prediction_type):
    """E[target | x_t] for x_0 from N(MEAN, STD^2)."""
    a, s = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    eps = s * (x_t - a * MEAN) / (alpha_bar * STD**2 + s**2)
    x_0 = (x_t - s * eps) / a
    return {"epsilon": eps, "v_prediction": a * eps - s * x_0, "sample": x_0}[prediction_type]


def algorithm_2(alpha_bar, x, noises):
    """The chain step by step from noise x, in float64; no noise is added at the last step."""
    alpha = alpha_bar / np.append(1.0, alpha_bar[:-1])
    for t in range(T - 1, -1, -1):
        eps = best_prediction(x, alpha_bar[t], "epsilon")
        x = (x - (1 - alpha[t]) / np.sqrt(1 - alpha_bar[t]) * eps) / np.sqrt(alpha[t])
        if t > 0:
            sigma_2 = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * (1 - alpha[t])
            x = x + np.sqrt(sigma_2) * noises[t]
    return x


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_chain_follows_algorithm_2_with_the_same_noise(prediction_type):
    scheduler = make_noise_scheduler(T, *SCALED, prediction_type=prediction_type)
    scheduler.set_timesteps(T)
    alpha_bar = alpha_bars(*SCALED)
    generator, same = (torch.Generator().manual_seed(3) for _ in range(2))
    x_T = draw(8, 1, 2, 2)
    noises = {t: torch.randn(8, 1, 2, 2, generator=same, dtype=torch.float64) for t in range(T - 1, 0, -1)}
    x = x_T
    for t in scheduler.timesteps:
        x = scheduler.step(
            best_prediction(x, alpha_bar[t], prediction_type), t, x, generator=generator
        ).prev_sample
    torch.testing.assert_close(x, algorithm_2(alpha_bar, x_T, noises), rtol=0, atol=1e-4)
    assert torch.equal(generator.get_state(), same.get_state())  # nothing drawn at t = 0


def test_the_chain_ends_at_the_mean_and_spread_of_the_data():
    """Every step is linear in x, so the chain's mean and variance have a closed recursion; samples must show it."""
    alpha_bar = alpha_bars(*SCALED)
    alpha = alpha_bar / np.append(1.0, alpha_bar[:-1])
    mean, variance = 0.0, 1.0
    for t in range(T - 1, -1, -1):
        shrink = (1 - alpha[t]) / (alpha_bar[t] * STD**2 + 1 - alpha_bar[t])
        slope = (1 - shrink) / np.sqrt(alpha[t])
        offset = shrink * np.sqrt(alpha_bar[t]) * MEAN / np.sqrt(alpha[t])
        previous = alpha_bar[t - 1] if t else 1.0
        mean = slope * mean + offset
        variance = slope**2 * variance + (1 - previous) / (1 - alpha_bar[t]) * (1 - alpha[t])
    assert mean == pytest.approx(MEAN, abs=2e-3)
    assert np.sqrt(variance) == pytest.approx(STD, rel=0.1)  # the "small" variance is the lower bound

    n = 20_000
    scheduler = make_noise_scheduler(T, *SCALED)
    scheduler.set_timesteps(T)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(best_prediction(x, alpha_bar[t], "epsilon"), t, x, generator=generator).prev_sample
    assert x.mean().item() == pytest.approx(mean, abs=5 * np.sqrt(variance / n))
    assert x.std().item() == pytest.approx(np.sqrt(variance), rel=5 / np.sqrt(2 * n))
