"""The bound against float64 formulas, and against models whose likelihood is known.

The Gaussian model: 2x2 "scans" from N(MEAN, COVARIANCE), rounded to the 256 levels, and their best linear denoiser. Its
bound needs only second moments (and one integral for L_0), so it is calculated without the package, and so is the
scans' entropy, which no bound may undercut.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.special import ndtr
from scipy.stats import norm

from mri_ddpm import AttentionUNet2DModel
from mri_ddpm.diffusion import (
    PREDICTION_TYPES,
    bound_term,
    loss_per_sample,
    make_noise_scheduler,
    predicted_x_0,
    prior_term,
    training_target,
)
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.likelihood import (
    bits_by_term,
    bits_per_dimension,
    denoising_curves,
    loss_by_quartile,
    progressive_estimates,
    rate_distortion,
)

BIN = 2 / 255
LEVELS = np.linspace(-1, 1, 256)
MEAN = np.array([-0.1, 0.05, 0.0, 0.1])
PLACES = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
COVARIANCE = 0.2**2 * 0.6 ** np.abs(PLACES[:, None] - PLACES).sum(-1)  # neighbours are alike, as in a scan


def draw(*shape, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scaled_scheduler(num_timesteps: int, prediction_type: str = "v_prediction", **changes) -> DDPMScheduler:
    scheduler = make_noise_scheduler(num_timesteps, 0.1 / num_timesteps, 20 / num_timesteps, prediction_type)
    return DDPMScheduler.from_config(scheduler.config, **changes)


def alpha_bars(scheduler: DDPMScheduler) -> np.ndarray:
    """The chain that is really run: float32 steps, taken as they are."""
    return scheduler.alphas_cumprod.double().numpy()


def levels(x) -> np.ndarray:
    return np.round((np.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


class Denoiser:
    """Stands in for the network: an estimate of x_0 from x_t and t, told as a prediction."""

    def __init__(self, scheduler: DDPMScheduler, estimate):
        self.scheduler, self.estimate = scheduler, estimate

    def __call__(self, x_t, t):
        x_0 = self.estimate(x_t.double(), t)
        a = self.scheduler.alphas_cumprod.to(x_t)[t].reshape(-1, 1, 1, 1)
        eps = (x_t - a.sqrt() * x_0) / (1 - a).sqrt()
        kind = self.scheduler.config.prediction_type
        predictions = {"epsilon": eps, "v_prediction": a.sqrt() * eps - (1 - a).sqrt() * x_0, "sample": x_0}
        return SimpleNamespace(sample=predictions[kind])


# x_0 from a prediction


@pytest.mark.parametrize("clip_sample", [False, True])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_x_0_comes_back_from_the_target_and_is_the_samplers(prediction_type, clip_sample):
    scheduler = scaled_scheduler(300, prediction_type, clip_sample=clip_sample)
    t = torch.tensor([0, 1, 37, 150, 298, 299])
    x_0, eps = draw(6, 1, 4, 3).clamp(-1, 1), draw(6, 1, 4, 3, seed=1)
    x_t = scheduler.add_noise(x_0, eps, t)
    exact = training_target(scheduler, x_0, eps, t)
    torch.testing.assert_close(predicted_x_0(scheduler, exact, x_t, t), x_0, rtol=0, atol=1e-9)

    wrong = exact + 0.3 * draw(6, 1, 4, 3, seed=2)
    estimate = predicted_x_0(scheduler, wrong, x_t, t)
    assert (estimate.abs().max() <= 1) == clip_sample
    for i, timestep in enumerate(t):
        step = scheduler.step(wrong[i], int(timestep), x_t[i], generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(estimate[i], step.pred_original_sample, rtol=1e-4, atol=1e-6)


# The bound's terms


def gaussian_kl(mean_1, variance_1, mean_2, variance_2):
    """KL(N_1 || N_2) of independent pixels, by the textbook."""
    return 0.5 * (np.log(variance_2 / variance_1) + (variance_1 + (mean_1 - mean_2) ** 2) / variance_2 - 1)


@pytest.mark.parametrize("betas", [(1e-4, 0.02), (1 / 3000, 1 / 15)])
def test_the_prior_term_is_the_divergence_from_noise(betas):
    scheduler = make_noise_scheduler(300, *betas)
    x_0 = draw(5, 1, 4, 4).clamp(-1, 1)
    last = alpha_bars(scheduler)[-1]
    expected = gaussian_kl(np.sqrt(last) * x_0.numpy(), 1 - last, 0, 1).sum((1, 2, 3))
    np.testing.assert_allclose(prior_term(scheduler, x_0).numpy(), expected, rtol=1e-9)
    assert prior_term(scheduler, x_0.float()).dtype == torch.float64


@pytest.mark.parametrize("num_components", [0, 3])
def test_the_prior_term_of_a_chain_that_starts_with_moments(num_components):
    """Against the divergence of two Gaussians by their whole covariances."""
    scheduler, rng = make_noise_scheduler(300), np.random.default_rng(0)
    x_0, mean = rng.uniform(-1, 1, (2, 5, 1, 4, 4))
    components = rng.standard_normal((num_components, 1, 4, 4))
    alpha_bar = float(scheduler.alphas_cumprod[-1].double())
    flat = components.reshape(num_components, 16)
    covariance = alpha_bar * flat.T @ flat + (1 - alpha_bar) * np.eye(16)
    shift = np.sqrt(alpha_bar) * (x_0 - mean).reshape(5, 16)
    inverse = np.linalg.inv(covariance)
    expected = 0.5 * (
        (1 - alpha_bar) * np.trace(inverse)
        + np.einsum("bi,ij,bj->b", shift, inverse, shift)
        - 16
        + np.linalg.slogdet(covariance)[1]
        - 16 * np.log(1 - alpha_bar)
    )
    found = prior_term(scheduler, *(torch.from_numpy(x) for x in (x_0, mean, components)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_the_terms_between_against_the_posterior_by_bayes_rule():
    """q(x_{t-1} | x_t, x_0) as prior times likelihood, and the reverse step as the sampler takes it."""
    scheduler = scaled_scheduler(300, "sample")
    t = torch.tensor([1, 2, 40, 150, 299])
    x_0, eps, x_0_hat = (draw(5, 1, 3, 3, seed=seed).clamp(-1, 1) for seed in range(3))
    x_t = scheduler.add_noise(x_0, eps, t)
    terms = bound_term(scheduler, x_0, x_0_hat, t).numpy()
    for i, timestep in enumerate(t.tolist()):
        now, before = alpha_bars(scheduler)[[timestep, timestep - 1]]
        alpha = now / before
        precision = 1 / (1 - before) + alpha / (1 - alpha)
        mean = (
            np.sqrt(before) * x_0[i] / (1 - before) + np.sqrt(alpha) * x_t[i] / (1 - alpha)
        ).numpy() / precision
        reverse_mean = mean_of_step(scheduler, x_0_hat[i], timestep, x_t[i])
        expected = gaussian_kl(mean, 1 / precision, reverse_mean, 1 / precision).sum()
        assert terms[i] == pytest.approx(expected, rel=2e-3)  # the sampler's float32 coefficients


def mean_of_step(scheduler, x_0_hat, timestep, x_t) -> np.ndarray:
    """The sampler's step, less the noise that it added."""
    step = scheduler.step(x_0_hat, timestep, x_t, generator=torch.Generator().manual_seed(0)).prev_sample
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0), dtype=x_t.dtype)
    return (step - scheduler._get_variance(timestep).sqrt() * noise).numpy()


def decoder_variance(scheduler: DDPMScheduler) -> float:
    first, second = alpha_bars(scheduler)[:2]
    return (1 - first) / (1 - second) * (1 - second / first)


def decoder_mass(x_0, x_0_hat, sigma):
    """p(x_0 | x_1) of one pixel (DDPM, equation 13), as it is printed there."""
    upper = np.where(x_0 > 1 - BIN / 2, np.inf, x_0 + BIN / 2)
    lower = np.where(x_0 < -1 + BIN / 2, -np.inf, x_0 - BIN / 2)
    return norm.cdf(upper, x_0_hat, sigma) - norm.cdf(lower, x_0_hat, sigma)


def test_the_decoder_against_equation_13():
    scheduler = scaled_scheduler(300)
    x_0 = torch.tensor(LEVELS).reshape(16, 1, 4, 4)
    x_0_hat = (x_0 + 0.02 * draw(16, 1, 4, 4)).clamp(-1, 1)
    mass = decoder_mass(x_0.numpy(), x_0_hat.numpy(), np.sqrt(decoder_variance(scheduler)))
    terms = bound_term(scheduler, x_0, x_0_hat, torch.zeros(16, dtype=torch.long)).numpy()
    np.testing.assert_allclose(terms, -np.log(mass).sum((1, 2, 3)), rtol=1e-6)


@pytest.mark.parametrize("x_0_hat", [-1.0, -0.999, -0.3, 0.0, 0.5019, 1.0])
@pytest.mark.parametrize("num_timesteps", [30, 1000])
def test_the_decoder_sums_to_one_over_the_levels(x_0_hat, num_timesteps):
    x_0 = torch.tensor(LEVELS).reshape(256, 1, 1, 1)
    zeros = torch.zeros(256, dtype=torch.long)
    terms = bound_term(scaled_scheduler(num_timesteps), x_0, torch.full_like(x_0, x_0_hat), zeros)
    assert terms.isfinite().all()  # even where the mass is far below 1e-308
    assert terms.neg().exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_every_row_of_a_mixed_batch_gets_its_own_term():
    scheduler = scaled_scheduler(30)
    x_0, x_0_hat = (torch.tensor(levels(0.3 * draw(4, 1, 2, 2, seed=seed).numpy())) for seed in range(2))
    t = torch.tensor([0, 7, 0, 29])
    together = bound_term(scheduler, x_0, x_0_hat, t)
    apart = [bound_term(scheduler, x_0[i : i + 1], x_0_hat[i : i + 1], t[i : i + 1]) for i in range(4)]
    torch.testing.assert_close(together, torch.cat(apart))


# The Gaussian model


def gaussian_scans(num_images: int, seed: int = 0) -> torch.Tensor:
    x = np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, num_images)
    return torch.from_numpy(levels(x)).reshape(num_images, 1, 2, 2)


def rounded_covariance() -> np.ndarray:
    """COVARIANCE, and the variance that rounding adds."""
    return COVARIANCE + BIN**2 / 12 * np.eye(4)


def gaussian_denoiser(scheduler: DDPMScheduler) -> Denoiser:
    """MEAN + a C (a^2 C + s^2)^-1 (x_t - a MEAN), for all timesteps at once by the eigenvectors of C."""
    variances, directions = (torch.from_numpy(x) for x in np.linalg.eigh(rounded_covariance()))
    mean, alpha_bar = torch.from_numpy(MEAN), torch.from_numpy(alpha_bars(scheduler))

    def estimate(x_t, t):
        a = alpha_bar[t][:, None]  # (B, 1)
        gain = a.sqrt() * variances / (a * variances + 1 - a)  # (B, 4)
        centred = x_t.flatten(1) - a.sqrt() * mean
        return (mean + (centred @ directions * gain) @ directions.T).reshape(x_t.shape)

    return Denoiser(scheduler, estimate)


def gaussian_squared_error(alpha_bar: np.ndarray) -> np.ndarray:
    """E |x_0 - x_0_hat|^2 / 4 at every timestep."""
    variances = np.linalg.eigvalsh(rounded_covariance())
    a = alpha_bar[:, None]
    return (variances * (1 - a) / (a * variances + 1 - a)).mean(1)


def gaussian_bound(scheduler: DDPMScheduler) -> np.ndarray:
    """L_0 ... L_T of the Gaussian model, in bits a pixel, by algebra and one integral."""
    a = alpha_bars(scheduler)
    snr = a / (1 - a)
    between = (snr[:-1] - snr[1:]) / 2 * gaussian_squared_error(a)[1:]  # in the form of Kingma et al. 2021
    second_moment = (np.diag(rounded_covariance()) + MEAN**2).mean()
    prior = (a[-1] * second_moment - a[-1] - np.log(1 - a[-1])) / 2
    C = rounded_covariance()
    left = np.diag(C - a[0] * C @ np.linalg.solve(a[0] * C + (1 - a[0]) * np.eye(4), C))
    z = np.linspace(-8, 8, 8001)
    error = np.sqrt(left)[:, None] * z
    sigma = np.sqrt(decoder_variance(scheduler))
    mass = ndtr((BIN / 2 - np.abs(error)) / sigma) - ndtr((-BIN / 2 - np.abs(error)) / sigma)
    decoder = -(np.log(mass) * norm.pdf(z)).sum(1).mean() * (z[1] - z[0])
    return np.concatenate([[decoder], between, [prior]]) / np.log(2)


def gaussian_entropy() -> float:
    """Bits a pixel that no code undercuts: the differential entropy, counted in bins (far narrower than it)."""
    return np.linalg.slogdet(2 * np.pi * np.e * COVARIANCE)[1] / 2 / 4 / np.log(2) - np.log2(BIN)


def gaussian_curves(num_timesteps: int, num_images: int, images_per_timestep: int, seed: int = 0):
    scheduler = scaled_scheduler(num_timesteps)
    scans = gaussian_scans(num_images, 1_000_000 + seed)  # no stream of the pass's own
    curves = denoising_curves(
        gaussian_denoiser(scheduler),
        scheduler,
        scans,
        {},
        images_per_timestep=images_per_timestep,
        loss_type="l2",
        batch_size=1000,
        seed=seed,
    )
    return scheduler, curves


def test_the_bound_is_the_exact_one_and_nears_the_entropy_as_steps_get_finer():
    gaps = []
    for num_timesteps, images_per_timestep in [(30, 400), (100, 160), (300, 80), (1000, 40)]:
        scheduler, curves = gaussian_curves(num_timesteps, 1000, images_per_timestep)
        exact = gaussian_bound(scheduler).sum()
        measured = bits_per_dimension(curves)
        error = (measured.high - measured.low) / 4
        assert error < 0.16
        assert abs(measured.value - exact) < 4 * error
        assert measured.value == pytest.approx(bits_by_term(curves).sum())
        assert measured.low > gaussian_entropy()
        assert measured.n == 1000
        gaps.append(exact - gaussian_entropy())
    assert all(finer < 0.8 * coarser for coarser, finer in zip(gaps[:-1], gaps[1:], strict=True))
    # Each step's variance is the posterior's and not the reverse step's, a factor near t / (t - 1): over all steps this
    # costs half Euler's constant, for as long as the first noise is wider than a bin.
    assert np.euler_gamma / 2 / np.log(2) < gaps[-1] < 0.8


def test_every_term_is_the_exact_one():
    scheduler, curves = gaussian_curves(30, 2000, 1000)
    exact = gaussian_bound(scheduler)
    error = curves.by_timestep("bound")[1] / (4 * np.log(2))
    deviation = (bits_by_term(curves)[:-1] - exact[:-1]) / error
    assert np.abs(deviation).max() < 4
    assert (np.abs(deviation) < 2).mean() > 0.8
    assert bits_by_term(curves)[-1] == pytest.approx(exact[-1], rel=0.1)


def test_intervals_cover_what_they_claim_to():
    repeats = 100
    covered = np.zeros(5)  # the bound, and the loss over each quarter
    for seed in range(repeats):
        scheduler, curves = gaussian_curves(30, 100, 16, seed)
        a = alpha_bars(scheduler)
        losses = gaussian_squared_error(a) / (1 - a)  # |v - v_hat| = |x_0 - x_0_hat| / sqrt(1 - alpha_bar)
        quarters = np.arange(30) * 4 // 30
        truths = [gaussian_bound(scheduler).sum(), *(losses[quarters == q].mean() for q in range(4))]
        estimates = [bits_per_dimension(curves), *loss_by_quartile(curves)]
        covered += [e.low <= truth <= e.high for e, truth in zip(estimates, truths, strict=True)]
    assert (covered / repeats > 0.86).all()  # 95 %, less what skewness costs, less chance
    assert (covered < repeats).any()


def test_rate_and_distortion_are_the_exact_ones():
    scheduler, curves = gaussian_curves(30, 1500, 1500)
    rate, distortion = rate_distortion(curves)
    exact_rate = [gaussian_bound(scheduler)[t + 1 :].sum() for t in range(30)]
    exact_distortion = 127.5 * np.sqrt(gaussian_squared_error(alpha_bars(scheduler)))
    np.testing.assert_allclose(rate, exact_rate, rtol=0.1)
    np.testing.assert_allclose(distortion, exact_distortion, rtol=0.05)
    assert (np.diff(rate) < 0).all()
    assert (np.diff(exact_distortion) > 0).all()
    assert (np.diff(distortion[:12:2]) > 0).all()  # later steps add less than chance does
    assert rate[0] + bits_by_term(curves)[0] == pytest.approx(bits_per_dimension(curves).value)


@pytest.mark.parametrize("loss_type", ["huber", "l1", "l2"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_prediction_type_changes_the_loss_and_nothing_else(prediction_type, loss_type):
    """By hand: the noise of a call is what x_t holds beside its scan."""
    scheduler = scaled_scheduler(30, prediction_type)
    scans, best, seen = gaussian_scans(10), gaussian_denoiser(scheduler), []

    def unet(x_t, t, class_labels, mask):  # one condition that the package knows, and one that it does not
        prediction = best(x_t, t).sample
        seen.append((x_t, t, prediction, class_labels, mask))
        return SimpleNamespace(sample=prediction)

    settings = {"images_per_timestep": 5, "loss_type": loss_type, "huber_delta": 0.5}
    conditioning = {"class_labels": torch.arange(10), "mask": scans > 0}
    curves = denoising_curves(unet, scheduler, scans, conditioning, **settings)
    x_t, t, prediction, labels, mask = (torch.cat(x) for x in zip(*seen, strict=True))
    assert np.array_equal(labels, curves.scans.ravel())
    assert torch.equal(mask, scans[curves.scans.ravel()] > 0)
    x_0, a = scans[curves.scans.ravel()], torch.from_numpy(alpha_bars(scheduler))[t][:, None, None, None]
    assert torch.equal(t, torch.arange(30).repeat_interleave(5))
    target = training_target(scheduler, x_0, (x_t - a.sqrt() * x_0) / (1 - a).sqrt(), t)
    losses = loss_per_sample(prediction, target, loss_type, 0.5)
    np.testing.assert_allclose(curves.loss.ravel(), losses.numpy(), rtol=1e-6)

    same = denoising_curves(
        gaussian_denoiser(scaled_scheduler(30)), scaled_scheduler(30), scans, {}, **settings
    )
    np.testing.assert_allclose(curves.bound, same.bound, rtol=1e-6)
    np.testing.assert_allclose(curves.squared_error, same.squared_error, rtol=1e-6)


# One pass


def tiny_unet(**kwargs) -> AttentionUNet2DModel:
    torch.manual_seed(0)
    return AttentionUNet2DModel(
        sample_size=16,
        block_out_channels=(4, 8),
        attention_types=("linear", "linear"),
        attention_head_dim=4,
        norm_num_groups=2,
        **kwargs,
    ).eval()


def test_a_network_with_classes_measures_the_same_in_any_batch_and_not_by_another_seed():
    unet, scheduler = tiny_unet(num_class_embeds=3), scaled_scheduler(24)
    x_0, labels = 0.4 * draw(5, 1, 16, 16).float().clamp(-2, 2), torch.tensor([0, 1, 2, 0, 1])

    def curves(seed=0, batch_size=64):
        settings = {"images_per_timestep": 3, "loss_type": "huber", "seed": seed, "batch_size": batch_size}
        return denoising_curves(unet, scheduler, x_0, {"class_labels": labels}, **settings)

    first, again, other_batches = curves(), curves(), curves(batch_size=7)
    for name in ("scans", "loss", "bound", "squared_error", "prior"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
        np.testing.assert_allclose(getattr(first, name), getattr(other_batches, name), rtol=1e-4)
    assert not np.isclose(first.loss, curves(seed=1).loss).any()
    assert len(loss_by_quartile(first)) == 4


def test_every_timestep_and_every_scan_gets_its_share():
    _, curves = gaussian_curves(30, 50, 8)
    assert curves.scans.shape == curves.loss.shape == curves.bound.shape == (30, 8)
    assert all(len(set(row)) == 8 for row in curves.scans)
    counts = np.bincount(curves.scans.ravel(), minlength=50)
    assert counts.max() - counts.min() <= 1


def test_scans_between_the_levels_are_rounded_to_them():
    scheduler, scans = scaled_scheduler(30), gaussian_scans(20)
    between = scans + 0.49 * BIN * torch.tensor([1, -1]).repeat(10)[:, None, None, None]
    settings = {"images_per_timestep": 4, "loss_type": "l2"}
    on, off, single = (
        denoising_curves(gaussian_denoiser(scheduler), scheduler, x, {}, **settings)
        for x in (scans, between, scans.float())
    )
    np.testing.assert_allclose(off.bound, on.bound, rtol=1e-9)
    np.testing.assert_allclose(single.bound, on.bound, rtol=0.01)  # float32 is enough


def test_progressive_estimates_are_the_denoisers_and_blur_with_noise():
    scheduler, scans = scaled_scheduler(100), gaussian_scans(200)
    unet, timesteps = gaussian_denoiser(scheduler), (0, 20, 60, 99)
    estimates = progressive_estimates(unet, scheduler, scans, {}, timesteps, seed=3)
    assert estimates.shape == (4, 200, 1, 2, 2)
    errors = (estimates - scans).square().flatten(1).mean(1).numpy()
    np.testing.assert_allclose(
        errors, gaussian_squared_error(alpha_bars(scheduler))[list(timesteps)], rtol=0.3
    )
    few = progressive_estimates(unet, scheduler, scans[:2], {}, timesteps[1:], seed=3)
    torch.testing.assert_close(few, estimates[1:, :2])
    assert not torch.isclose(
        estimates, progressive_estimates(unet, scheduler, scans, {}, timesteps, seed=4)
    ).all()


# Refusals


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_refused_with_their_timestep(value):
    scheduler = scaled_scheduler(30)

    def unet(x_t, t):
        return SimpleNamespace(sample=torch.where((t == 17)[:, None, None, None], value, x_t))

    with pytest.raises(InputError, match="prediction at timestep 17 is not finite"):
        denoising_curves(unet, scheduler, gaussian_scans(4), {}, images_per_timestep=2, loss_type="l2")
    with pytest.raises(InputError, match="prediction at timestep 17 is not finite"):
        progressive_estimates(unet, scheduler, gaussian_scans(4), {}, (5, 17))


@pytest.mark.parametrize(
    ("x_0", "conditioning", "images_per_timestep", "message"),
    [
        (torch.zeros(0, 1, 2, 2), {}, 2, r"shape \(0, 1, 2, 2\): give"),
        (torch.zeros(1, 1, 2, 2), {}, 2, "N at least 2"),
        (torch.zeros(4, 2, 2), {}, 2, "shape"),
        (torch.full((4, 1, 2, 2), 1.01), {}, 2, "from 1.01 to 1.01: give them in"),
        (torch.full((4, 1, 2, 2), torch.nan), {}, 2, "from nan to nan"),
        (torch.zeros(4, 1, 2, 2), {"mask": torch.zeros(3)}, 2, "mask has 3 rows for 4 scans"),
        (torch.zeros(4, 1, 2, 2), {}, 1, "images_per_timestep is 1: give at least 2"),
    ],
)
def test_scans_and_counts_that_cannot_be_used_are_refused(x_0, conditioning, images_per_timestep, message):
    scheduler = scaled_scheduler(30)
    settings = {"images_per_timestep": images_per_timestep, "loss_type": "l2"}
    with pytest.raises(InputError, match=message):
        denoising_curves(gaussian_denoiser(scheduler), scheduler, x_0, conditioning, **settings)


def test_a_timestep_that_is_none_is_refused():
    scheduler = scaled_scheduler(30)
    with pytest.raises(InputError, match="no timestep 30: the model's are 0 to 29"):
        progressive_estimates(gaussian_denoiser(scheduler), scheduler, gaussian_scans(4), {}, (0, 30))
