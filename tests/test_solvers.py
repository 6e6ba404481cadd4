"""Every scheduler of `SCHEDULERS` on a Gaussian, where the optimal network and each marginal are known.

For x_0 ~ N(MEAN, COVARIANCE) the optimal prediction is affine in x_t, and so is every step of every solver. A
whole chain is then an affine map of its noise, which the real pipeline gives away exactly: run on a batch of
no noise and the unit vectors, in x_T and in each step's own noise. The moments of its samples follow without
drawing any. x_T has the true marginal's moments, not N(0, I)'s, so that the error is the solver's alone.
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers import scheduling_ddpm, scheduling_dpmsolver_multistep
from mri_ddpm.pipelines import pipeline_mri_ddpm

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.presets import PAPER_BETAS, SCALED_BETAS
from mri_ddpm.sampling import SCHEDULERS, set_scheduler

T, SIDE = 300, 2
PIXELS = SIDE * SIDE
EYE = np.eye(PIXELS)
BETAS = {"paper": PAPER_BETAS, "scaled": SCALED_BETAS}
NOISE_SOURCES = (pipeline_mri_ddpm, scheduling_ddpm, scheduling_dpmsolver_multistep)
STOCHASTIC = ("ddpm", "dpmsolver++sde")
ZERO_SNR = [name for name in SCHEDULERS if name != "heun"]  # which is refused
ONE_LEVEL = {"block_out_channels": (8,), "attention_types": ("linear",)}

# Standard deviations 0.3 to 0.8 along axes that no pixel lies on
AXES = np.linalg.qr(np.random.RandomState(0).randn(PIXELS, PIXELS))[0]
COVARIANCE = AXES @ np.diag([0.3, 0.5, 0.6, 0.8]) ** 2 @ AXES.T
MEAN = np.array([0.3, -0.2, 0.1, -0.4])

every_solver = pytest.mark.parametrize("name", SCHEDULERS)
both_schedules = pytest.mark.parametrize(
    "schedule", ["paper", pytest.param("scaled", marks=pytest.mark.slow)]
)
both_variances = pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])


@pytest.fixture(autouse=True)
def even_steps(monkeypatch):
    """Steps all alike, for orders of convergence are about them; where steps are to lie is a question of its own, at the end."""
    monkeypatch.setattr(pipeline_mri_ddpm, "SPACING", 1.0)


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """The best possible network for the Gaussian, in float64; it has nothing to learn."""

    @register_to_config
    def __init__(
        self,
        schedule: list[float],
        prediction_type: str,
        sample_size: int = SIDE,
        out_channels: int = 1,
        num_class_embeds: int | None = None,
        class_names: list[str] | None = None,
        knows_moments: bool = False,
    ):
        super().__init__()
        if knows_moments:
            components = np.linalg.cholesky(COVARIANCE).T.reshape(PIXELS, 1, SIDE, SIDE)
            self.register_buffer("x_0_mean", torch.tensor(MEAN).reshape(1, 1, SIDE, SIDE))
            self.register_buffer("x_0_components", torch.from_numpy(components))
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("alpha_bars", torch.tensor(schedule, dtype=torch.float64))
        self.register_buffer("gains", torch.from_numpy(np.stack([gain(a) for a in schedule])))

    def x_0_moments(self, height, width):
        return self.x_0_mean, self.x_0_components

    def forward(self, x_t, timestep, class_labels=None):
        t = timestep.long()
        assert t == timestep, "trailing timesteps are whole, also where the scheduler has them as floats"
        signal, noise = self.alpha_bars[t].sqrt(), (1 - self.alpha_bars[t]).sqrt()
        x_t = x_t.flatten(1)  # (B, PIXELS)
        x_0 = self.mean + (x_t - signal * self.mean) @ self.gains[t].T
        epsilon = (x_t - signal * x_0) / noise
        is_epsilon = self.config.prediction_type == "epsilon"
        prediction = epsilon if is_epsilon else signal * epsilon - noise * x_0
        return SimpleNamespace(sample=prediction.reshape(-1, 1, SIDE, SIDE))


def gain(alpha_bar: float) -> np.ndarray:
    """E[x_0 | x_t] = MEAN + gain (x_t - sqrt(alpha_bar) MEAN)."""
    return np.sqrt(alpha_bar) * COVARIANCE @ np.linalg.inv(marginal(alpha_bar)[1])


def marginal(alpha_bar: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x_t."""
    return np.sqrt(alpha_bar) * MEAN, alpha_bar * COVARIANCE + (1 - alpha_bar) * EYE


def make_pipeline(
    name: str,
    schedule: str,
    prediction_type: str = "v_prediction",
    unet=None,
    knows_moments=False,
    **scheduler_config,
):
    config = make_noise_scheduler(T, **BETAS[schedule], prediction_type=prediction_type).config
    scheduler = DDPMScheduler.from_config(config, **{"clip_sample": False, **scheduler_config})
    alpha_bars = np.cumprod(1 - scheduler.betas.double().numpy()).tolist()
    unet = unet or GaussianDenoiser(alpha_bars, prediction_type, knows_moments=knows_moments)
    pipeline = MRIDDPMPipeline(unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    set_scheduler(pipeline, name)
    return pipeline


class Chain:
    """The affine map from noise to x_t that each call of the network saw, and, as the last, to the sample.

    Attributes:
        timesteps: of the network's calls.
        alpha_bars: of every timestep.
        maps: ``(calls + 1, 1 + draws * PIXELS, PIXELS)``: x_t without noise, and with each unit vector of it.
    """

    def __init__(self, pipeline: MRIDDPMPipeline, steps: int, stochastic: bool):
        knows_moments = pipeline.unet.config.knows_moments  # and draws x_0 by them, after the noise of x_T
        rows = 1 + PIXELS * (1 + knows_moments + steps * stochastic)
        draws = 0

        def unit_noise(shape, dtype, **_):
            nonlocal draws
            noise = torch.zeros(rows, PIXELS, dtype=dtype)
            first = 1 + PIXELS * draws
            noise[first : first + PIXELS] = torch.eye(PIXELS)
            draws += 1
            return noise.reshape(shape)

        with pytest.MonkeyPatch.context() as patch:
            for module in NOISE_SOURCES:
                patch.setattr(module, "randn_tensor", unit_noise)
            calls = watch(pipeline.unet)
            sample, output = run_unclamped(pipeline, num_images=rows, num_inference_steps=steps)
        self.timesteps = calls
        self.alpha_bars = pipeline.unet.alpha_bars.numpy()
        states = torch.cat([output.x_t, sample[None]]).double()
        self.maps = states.reshape(len(states), rows, PIXELS).numpy()

    def moments(self, call: int = -1, start=None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and covariance of x_t at a call, or of the samples."""
        mean, covariance = marginal(self.alpha_bars[-1]) if start is None else start
        constant, linear = self.maps[call, 0], (self.maps[call, 1:] - self.maps[call, 0]).T
        of_start, of_noise = linear[:, :PIXELS], linear[:, PIXELS:]
        return of_start @ mean + constant, of_start @ covariance @ of_start.T + of_noise @ of_noise.T

    def error(self, timestep: int = -1, start=None) -> float:
        """Largest error of the covariance at a timestep, or of the samples'.

        The mean has none: on its path each estimate of x_0 is MEAN, and any consistent step stays on it.
        """
        call = -1 if timestep < 0 else len(self.timesteps) - 1 - self.timesteps[::-1].index(timestep)
        mean, covariance = self.moments(call, start)
        true_mean, true_covariance = marginal(1.0 if timestep < 0 else self.alpha_bars[timestep])
        # diffusers divides float32 alpha_bars near 1 by each other, and takes 2^-24 for an alpha_bar of 0
        np.testing.assert_allclose(mean, true_mean, rtol=0, atol=1.5e-4)
        return np.abs(covariance - true_covariance).max()


def run_unclamped(pipeline: MRIDDPMPipeline, output_trajectory: bool = True, **arguments):
    """The sample before it is clamped to an image's range, and the output."""
    kept = {}
    output = pipeline(
        output_type="pt",
        output_trajectory=output_trajectory,
        callback_on_step_end=lambda pipeline, step, timestep, tensors: kept.update(tensors) or {},
        **arguments,
    )
    return kept["x_t"], output


def watch(unet: torch.nn.Module) -> list[float]:
    """Record the timestep of every call of the network."""
    calls = []
    unet.register_forward_pre_hook(lambda module, inputs: calls.append(float(inputs[1])))
    return calls


def make_chain(name: str, schedule: str, steps: int, **config) -> Chain:
    return Chain(make_pipeline(name, schedule, **config), steps, name in STOCHASTIC)


# Convergence

# Of the covariance on the way; UniPC's corrector raises it by one (Zhao et al. 2023, theorem 3.1)
ORDER = {"ddpm": 1, "ddim": 1, "euler": 1, "dpmsolver++": 2, "dpmsolver++sde": 2, "heun": 2, "unipc": 3}
# Error of the samples' covariance, whose largest entry is 0.58, after 10 and after 20 steps, as measured
END_ERROR = {
    "paper": {
        "ddpm": (0.195, 0.120),
        "ddim": (0.117, 0.062),
        "euler": (0.117, 0.062),  # which is DDIM, see below
        "dpmsolver++": (0.024, 0.0059),
        "dpmsolver++sde": (0.026, 0.041),  # it passes through 0 near 10 steps, and falls from 20 on
        "unipc": (0.023, 0.0029),
        "heun": (0.020, 0.0059),
    },
    "scaled": {
        "ddpm": (0.279, 0.184),
        "ddim": (0.202, 0.111),
        "euler": (0.202, 0.111),
        "dpmsolver++": (0.098, 0.021),
        "dpmsolver++sde": (0.111, 0.030),
        "unipc": (0.087, 0.020),
        "heun": (0.058, 0.018),
    },
}


@both_schedules
@pytest.mark.parametrize(
    ("name", "zero_snr"), [(name, False) for name in SCHEDULERS] + [(name, True) for name in ZERO_SNR]
)
def test_order_of_convergence(name, zero_snr, schedule):
    """At timestep 23, which 25, 50 and 100 steps all stop at; from pure noise, where the schedule ends in it.

    Not of the samples themselves: the last step goes from timestep T / N - 1 to 0 at once, see below. And in
    the end sigma is nearly proportional to t, so the last steps in log(sigma), which all but Euler and Heun
    take, are log(2), log(1.5) ... for every N: an order needs steps that shrink with N.
    """
    config = {"rescale_betas_zero_snr": zero_snr}
    errors = [make_chain(name, schedule, steps, **config).error(23) for steps in (25, 50, 100)]
    coarse, fine = np.log2(errors[0] / errors[1]), np.log2(errors[1] / errors[2])
    # Higher powers of 1 / N are still felt, by half an order in the first pair and by a quarter in the second
    assert coarse == pytest.approx(ORDER[name], abs=0.55)
    assert fine == pytest.approx(ORDER[name], abs=0.25)


@both_schedules
@every_solver
def test_the_last_step_is_the_mean_of_x_0(name, schedule):
    """sigma is 0 after it, and every solver is of first order there: sample = E[x_0 | x_t].

    It loses the posterior's covariance at timestep T / N - 1, which is at most sigma^2: about N^-2 while beta
    is mostly slope, and for N = T beta_0, 1e-4 or 3e-4, under which a solver comes by luck alone.
    """
    chain = make_chain(name, schedule, 20)
    alpha_bar = chain.alpha_bars[T // 20 - 1]
    expected = MEAN + (chain.maps[-2] - np.sqrt(alpha_bar) * MEAN) @ gain(alpha_bar).T
    np.testing.assert_allclose(chain.maps[-1], expected, rtol=0, atol=1e-5)


@both_schedules
@every_solver
def test_error_of_few_steps(name, schedule):
    for steps, measured in zip((10, 20), END_ERROR[schedule][name], strict=True):
        assert make_chain(name, schedule, steps).error() < 1.5 * measured


@both_schedules
def test_ddim_is_euler_in_sigma(schedule):
    """Song et al. 2020, section 4.3: two implementations of one step, which share nothing."""
    ddim, euler = (make_chain(name, schedule, 20).maps for name in ("ddim", "euler"))
    np.testing.assert_allclose(ddim, euler, rtol=0, atol=1e-5)


@both_schedules
@every_solver
def test_every_number_of_steps(name, schedule):
    """diffusers adds t = -1 for 7, 28, 55, 56 ..., and its DDIM takes wrong ones unless N divides T."""
    errors = []
    for steps in (1, 2, 3, 7, 13, 28, 56, 299, 300):
        chain = make_chain(name, schedule, steps)
        calls = chain.timesteps
        assert len(calls) == (2 * steps - 1 if name == "heun" else steps)
        assert calls[0] == T - 1
        assert calls[-1] == round(T / steps) - 1
        assert sorted(set(calls), reverse=True) == (calls if name != "heun" else [calls[0], *calls[1::2]])
        errors.append(chain.error())
    # 299 and 300 end alike
    assert all(later < 1.3 * error for error, later in zip(errors, errors[1:], strict=False))


@both_schedules
@every_solver
def test_predicting_noise_or_velocity_is_the_same(name, schedule):
    epsilon, v = (make_chain(name, schedule, 13, prediction_type=p).maps for p in ("epsilon", "v_prediction"))
    np.testing.assert_allclose(epsilon, v, rtol=0, atol=1e-5)


# Without any signal in x_T: from N(0, I), which is then the true marginal


@both_schedules
@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr(name, schedule):
    """T steps stop at T - 2, where alpha_bar can be less than the 2^-24 that stands for the 0 at T - 1."""
    chains = [make_chain(name, schedule, steps, rescale_betas_zero_snr=True) for steps in (1, 100, T)]
    assert all(np.isfinite(chain.maps).all() for chain in chains)
    errors = [chain.error(start=(np.zeros(PIXELS), EYE)) for chain in chains]
    # Of no signal the estimate is the mean, always
    assert errors[0] == pytest.approx(COVARIANCE.max(), rel=0.01)
    assert errors[0] > 10 * errors[1] > 10 * errors[2]
    assert errors[2] < 0.021  # DDPM's


def test_zero_terminal_snr_is_refused_where_the_scheduler_has_none():
    with pytest.raises(ValueError, match="trained with rescale_betas_zero_snr, which HeunDiscreteScheduler"):
        make_pipeline("heun", "scaled", rescale_betas_zero_snr=True)(num_inference_steps=2)


# With the moments of the data kept: from q(x_T), whatever is left of them in it


@both_schedules
@every_solver
@pytest.mark.parametrize("steps", [20, 100])
def test_a_chain_that_knows_the_moments_starts_at_the_true_marginal(name, schedule, steps):
    """So what it ends at has the truth's mean, and its covariance as well as the solver can; of noise alone it has neither."""
    alone, known = (make_chain(name, schedule, steps, knows_moments=knows) for knows in (False, True))
    noise = (np.zeros(PIXELS), EYE)  # all that is drawn is of N(0, I)
    for found, true in zip(known.moments(0, noise), marginal(known.alpha_bars[-1]), strict=True):
        np.testing.assert_allclose(found, true, rtol=0, atol=1e-5)
    assert known.error(start=noise) == pytest.approx(alone.error(), abs=1e-4)  # which is given the true start
    missed = np.abs(alone.moments(0, noise)[0] - marginal(known.alpha_bars[-1])[0]).max()
    assert missed == pytest.approx(np.sqrt(known.alpha_bars[-1]) * 0.4)


# Ancestral sampling


@both_schedules
@both_variances
@pytest.mark.parametrize("steps", [10, T])
def test_ddpm_follows_the_recursion_of_its_moments(schedule, variance_type, steps):
    """Ho et al. 2020, equation 7 and algorithm 2, for the moments instead of for samples."""
    beta = np.linspace(*BETAS[schedule].values(), T)
    alpha_bars = np.cumprod(1 - beta)[T // steps - 1 :: T // steps][::-1]
    mean, covariance = marginal(alpha_bars[0])
    for now, later in zip(alpha_bars, [*alpha_bars[1:], 1.0], strict=True):
        alpha = now / later
        of_x_0 = np.sqrt(later) * (1 - alpha) / (1 - now)
        of_x_t = np.sqrt(alpha) * (1 - later) / (1 - now)
        linear = of_x_0 * gain(now) + of_x_t * EYE
        mean = linear @ mean + of_x_0 * (MEAN - gain(now) @ MEAN * np.sqrt(now))
        variance = (1 - alpha) * ((1 - later) / (1 - now) if variance_type == "fixed_small" else 1)
        covariance = linear @ covariance @ linear.T + (variance if later < 1 else 0) * EYE
    found = make_chain("ddpm", schedule, steps, variance_type=variance_type).moments()
    np.testing.assert_allclose(found[0], mean, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found[1], covariance, rtol=0, atol=1e-4)


@both_schedules
@pytest.mark.parametrize(
    ("name", "steps", "count"), [("ddpm", 10, 50_000), ("ddpm", T, 4_000), ("dpmsolver++sde", 10, 50_000)]
)
def test_samples_have_the_moments_of_the_chain(name, schedule, steps, count):
    """The noise that is really drawn: of variance 1, and new in every step and pixel."""
    pipeline = make_pipeline(name, schedule)
    mean, covariance = Chain(pipeline, steps, stochastic=True).moments(start=(np.zeros(PIXELS), EYE))
    arguments = {"num_images": count, "num_inference_steps": steps, "output_trajectory": False}
    samples, _ = run_unclamped(pipeline, generator=torch.Generator().manual_seed(0), **arguments)
    samples = samples.reshape(count, PIXELS).numpy()
    variance = np.diag(covariance)
    # 4.5 standard errors of a mean, and of a covariance (Isserlis), of which there are 14
    assert (np.abs(samples.mean(0) - mean) < 4.5 * np.sqrt(variance / count)).all()
    errors = 4.5 * np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    assert (np.abs(np.cov(samples.T) - covariance) < errors).all()


@pytest.mark.parametrize(("schedule", "variance_type"), [("paper", "fixed_small"), ("scaled", "fixed_large")])
def test_ddpm_is_algorithm_2_in_every_step(make_unet, schedule, variance_type):
    """Each x_{t-1} from the x_t before it, by Ho et al. 2020, algorithm 2, with a real network in float64."""
    unet = make_unet(**ONE_LEVEL).double()
    pipeline = make_pipeline("ddpm", schedule, "epsilon", unet, variance_type=variance_type)
    sample, output = run_unclamped(pipeline, generator=torch.Generator().manual_seed(3))
    x = torch.cat([output.x_t, sample[None]])[:, 0]  # (T + 1, 1, 16, 16)

    generator = torch.Generator().manual_seed(3)
    z = [torch.randn(1, 1, 16, 16, generator=generator, dtype=torch.float64) for _ in range(T)]
    assert torch.equal(x[:1], z[0])
    z = torch.cat([*z[1:], torch.zeros(1, 1, 16, 16)])  # none in the last step
    timesteps = torch.arange(T - 1, -1, -1)
    with torch.no_grad():
        epsilon = unet(x[:-1], timesteps).sample
    beta = torch.from_numpy(np.linspace(*BETAS[schedule].values(), T))
    alpha_bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1), alpha_bar[:-1]])
    variance = beta if variance_type == "fixed_large" else (1 - before) / (1 - alpha_bar) * beta
    beta, alpha_bar, variance = (a[timesteps][:, None, None, None] for a in (beta, alpha_bar, variance))
    expected = (x[:-1] - beta / (1 - alpha_bar).sqrt() * epsilon) / (1 - beta).sqrt() + variance.sqrt() * z

    # diffusers' alpha_bars are float32, whose rounding shows where 1 - alpha_bar is small
    tolerance = 8 * 2**-24 * x[:-1].abs().amax((1, 2, 3)) / (1 - alpha_bar.flatten())
    assert ((x[1:] - expected).abs().amax((1, 2, 3)) < tolerance).all()
    assert (expected - x[:-1]).abs().amax((1, 2, 3)).min() > 1e-3


# Speed


@every_solver
def test_nothing_is_read_back_from_the_device(make_unet, name):
    """On the meta device, which has no values, any such wait of the loop for a GPU raises.

    It does not see what waits inside a GPU's library: UniPC solves a 2 x 2 system on the device every step.
    """
    unet = make_unet(**ONE_LEVEL, num_class_embeds=3, class_names=("a", "b", "c")).to("meta")
    pipeline = make_pipeline(name, "scaled", unet=unet, clip_sample=True)

    def last_step(pipe, step, t, tensors):
        if step == 2:
            raise StopIteration  # after it, one look at whether all was finite
        return tensors

    arguments = {"num_images": 2, "num_inference_steps": 3, "callback_on_step_end": last_step}
    for more in ({}, {"class_labels": ["a", "c"], "guidance_scale": 2.0, "dynamic_thresholding_ratio": 0.9}):
        with pytest.raises(StopIteration):
            pipeline(**arguments, **more)


# Where steps lie


@pytest.mark.parametrize("total", [300, 1000])
def test_steps_lie_closer_at_low_noise_and_no_two_alike(monkeypatch, total):
    monkeypatch.setattr(pipeline_mri_ddpm, "SPACING", 1.5)
    assert pipeline_mri_ddpm.spaced_timesteps(300, 10) == [299, 255, 214, 175, 138, 105, 75, 48, 26, 8]
    for steps in range(1, total + 1):
        timesteps = pipeline_mri_ddpm.spaced_timesteps(total, steps)
        assert len(set(timesteps)) == steps
        assert timesteps == sorted(timesteps, reverse=True)
        assert (timesteps[0], timesteps[-1] >= 0) == (total - 1, True)
    assert timesteps == list(range(total))[::-1]


@both_schedules
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "unipc"])  # which takes no timesteps
def test_ten_steps_keep_more_of_what_varies_little_where_they_lie_closer_at_low_noise(
    monkeypatch, name, schedule
):
    """The last step loses what it cannot tell from noise: of ten even steps a detail of 0.05 nearly whole."""
    deviations = np.array([0.05, 0.1, 0.3, 0.8])
    monkeypatch.setattr(sys.modules[__name__], "COVARIANCE", AXES @ np.diag(deviations**2) @ AXES.T)
    kept = {}
    for spacing, last in ((1.0, 29), (1.5, 8)):
        monkeypatch.setattr(pipeline_mri_ddpm, "SPACING", spacing)
        chain = make_chain(name, schedule, 10)
        assert (chain.timesteps[0], chain.timesteps[-1]) == (T - 1, last)
        kept[spacing] = np.sqrt(np.diag(AXES.T @ chain.moments()[1] @ AXES)) / deviations
    assert kept[1.0][0] < 0.5
    assert kept[1.5][0] > 1.5 * kept[1.0][0]
