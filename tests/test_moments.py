"""The moments of the training scans that a model keeps: what they are, whom they show, and what starts from them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import tiny, train_alone

from mri_ddpm import (
    AttentionUNet2DModel,
    MRIDDPMImg2ImgPipeline,
    MRIDDPMInpaintPipeline,
    MRIDDPMPipeline,
)
from mri_ddpm.data import load_phantoms, to_model_range
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.errors import InputError
from mri_ddpm.training.moments import MAX_COMPONENTS, PRIOR_SCANS, SCANS_A_COMPONENT, keep_moments
from mri_ddpm.training.state import build_unet

NUM_IMAGES = 160


@pytest.fixture(scope="module")
def scans():
    return load_phantoms(num_images=NUM_IMAGES, resolution=16)


def moments_of(scans) -> AttentionUNet2DModel:
    unet = build_unet(tiny("nowhere"), scans.class_names)
    keep_moments(unet, scans)
    return unet


def as_rows(scans) -> tuple[np.ndarray, np.ndarray]:
    """All training scans in [-1, 1], ``(N, 256)`` float64, and their classes."""
    batch = scans.train.batch(range(len(scans.train)))
    x_0, labels = to_model_range(batch["pixel_values"]), batch["class_labels"]
    return x_0.flatten(1).double().numpy(), labels.numpy()


def test_the_means_are_those_of_the_training_scans_each_shrunk_by_its_number(scans):
    rows, labels = as_rows(scans)
    unet = moments_of(scans)

    def shrunk(part, towards):
        return (part.sum(0) + PRIOR_SCANS * towards) / (len(part) + PRIOR_SCANS)

    overall = shrunk(rows, np.full(256, rows.mean()))
    expected = [shrunk(rows[labels == c], overall) for c in range(4)] + [overall]
    np.testing.assert_allclose(unet.x_0_mean.reshape(5, 256), expected, atol=1e-6)


def test_the_components_are_the_leading_ones_of_the_scans_about_their_classes_means(scans):
    rows, labels = as_rows(scans)
    centred = rows - np.stack([rows[labels == c].mean(0) for c in range(4)])[labels]
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    kept = len(rows) // SCANS_A_COMPONENT
    assert 0 < kept < MAX_COMPONENTS
    expected = (axes[:kept].T * singular[:kept] ** 2 / len(rows)) @ axes[:kept]
    components = moments_of(scans).x_0_components.flatten(1).double().numpy()
    np.testing.assert_allclose(components.T @ components, expected, atol=1e-4)
    assert (np.abs(components).sum(1) > 0).sum() == kept


def test_a_single_scan_can_hardly_be_told_from_its_classs_mean():
    """Who holds a scan and the moments asks whether it was trained on: the mean leans towards its own scans, but too little.

    The test that an attacker would take (Dwork et al. 2015, "Robust traceability from trace amounts"): how far the class's mean
    lies in the scan's direction. For scans trained on and others it says the same but for half of a standard deviation, in a
    class of ten of which the plain mean tells a whole one and more.
    """
    population = load_phantoms(num_images=400, resolution=16, seed=1)
    rows, labels = as_rows(population)
    few = np.flatnonzero(labels == 0)
    inside, outside = few[:10], few[10:]
    kept = [*inside, *np.flatnonzero(labels != 0)]
    train = dataclasses.replace(population, train=Part(population.train, kept))
    mean = moments_of(train).x_0_mean[0].flatten().double().numpy()

    def told_apart(mean: np.ndarray) -> float:
        scores = [(rows[part] - rows[few].mean(0)) @ (mean - rows[few].mean(0)) for part in (inside, outside)]
        return (scores[0].mean() - scores[1].mean()) / scores[1].std()

    assert told_apart(rows[inside].mean(0)) > 1
    assert abs(told_apart(mean)) < 0.5
    # Nor is it the picture of any one: each scan has a weight of one in sixty
    without = dataclasses.replace(population, train=Part(population.train, kept[1:]))
    change = moments_of(without).x_0_mean[0].flatten().double().numpy() - mean
    assert np.abs(change).max() < 2 * 1.1 / (len(inside) + PRIOR_SCANS)


@pytest.mark.parametrize("num_scans", [pytest.param(60, marks=pytest.mark.slow), 120])
def test_a_single_scan_can_hardly_be_told_from_the_directions(num_scans):
    """How much of a scan lies along them: more, for scans trained on, where there are as many directions as for thousands."""
    population = load_phantoms(num_images=2 * num_scans + 200, resolution=16, seed=2)
    rows, labels = as_rows(population)
    inside, outside = np.arange(num_scans), np.arange(num_scans, len(rows))
    unet = moments_of(dataclasses.replace(population, train=Part(population.train, inside)))
    components = unet.x_0_components.flatten(1).double().numpy()
    deviations = rows - unet.x_0_mean.flatten(1).double().numpy()[labels]

    def told_apart(axes: np.ndarray) -> float:
        along = ((deviations @ axes.T) ** 2).sum(1) / (deviations**2).sum(1)
        return (along[inside].mean() - along[outside].mean()) / along[outside].std()

    kept = np.linalg.qr(components[components.any(1)].T)[0].T
    many = np.linalg.svd(rows[inside] - rows[inside].mean(0), full_matrices=False)[2][:MAX_COMPONENTS]
    assert len(kept) == num_scans // SCANS_A_COMPONENT
    assert told_apart(many) > 0.8
    assert abs(told_apart(kept)) < 0.3


class Part:
    """Some rows of a data set."""

    def __init__(self, whole, rows):
        self.whole, self.rows = whole, np.asarray(rows)

    def __len__(self):
        return len(self.rows)

    def batch(self, indices):
        return self.whole.batch(self.rows[np.asarray(indices)])


def test_a_trained_model_keeps_them_and_one_without_samples_as_before(tmp_path):
    with_moments, without = (
        train_alone(tiny(tmp_path / str(keep), max_train_steps=2, start_from_moments=keep)) / "pipeline"
        for keep in (True, False)
    )
    known, alone = (MRIDDPMPipeline.from_pretrained(folder) for folder in (with_moments, without))
    assert known.unet.x_0_mean.shape == (5, 1, 16, 16)
    assert known.unet.x_0_mean.mean() < -0.5  # heads before a black ground
    assert alone.unet.config.moments_size is None
    noise = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    first = [
        pipeline(0, 1, 2, generator=torch.Generator().manual_seed(0), output_trajectory=True).x_t[0]
        for pipeline in (known, alone)
    ]
    assert torch.equal(first[1], noise)
    alpha_bar = known.scheduler.alphas_cumprod[-1]
    # The same noise, and x_0 by the moments
    drawn = (first[0] - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()
    components = known.unet.x_0_components[known.unet.x_0_components.flatten(1).any(1)].flatten(1)
    off = (drawn - known.unet.x_0_mean[0]).flatten()
    residual = off - components.T @ torch.linalg.lstsq(components.T, off).solution
    assert residual.abs().max() < 1e-2  # in units of x_0, of rounding divided by a small alpha_bar


@pytest.fixture
def pipeline(make_unet):
    unet = make_unet(num_class_embeds=2, class_names=("a", "b"), moments_size=8, num_components=3)
    unet.x_0_mean[:] = torch.tensor([-0.8, 0.4, -0.2])[:, None, None, None]
    paper = MRIDDPMPipeline(unet, make_noise_scheduler(300))
    paper.set_progress_bar_config(disable=True)
    return paper


def first_x_t(pipeline, *arguments, **more) -> torch.Tensor:
    generator = [torch.Generator().manual_seed(i) for i in range(40)]
    return pipeline(
        *arguments, num_images=40, num_inference_steps=2, generator=generator, output_trajectory=True, **more
    ).x_t[0]


@pytest.mark.parametrize(("label", "mean"), [("a", -0.8), ("b", 0.4), (None, -0.2)])
@pytest.mark.parametrize("size", [16, 24])
def test_a_chain_starts_about_its_classs_mean_at_any_size(pipeline, label, mean, size):
    x_t = first_x_t(pipeline, label, height=size, width=size)
    signal = pipeline.scheduler.alphas_cumprod[-1].sqrt()
    assert x_t.mean() == pytest.approx(float(signal * mean), abs=0.02)
    assert x_t.std() == pytest.approx(float((1 - signal**2).sqrt()), abs=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_of_16_bits_starts_there_too(pipeline, dtype):
    """On a CPU torch resizes no image of 16 bits."""
    expected = first_x_t(pipeline, "a")
    x_t = first_x_t(pipeline.to(dtype), "a")
    assert x_t.dtype == torch.float32
    torch.testing.assert_close(x_t, expected, atol=5e-3, rtol=0)


def test_a_variation_starts_from_its_scan_and_a_mask_from_the_mean(pipeline):
    """What a mask covers is sampled anew: nothing of it may show through x_T. A scan without a mask is to show through."""
    scan = np.ones((16, 16), np.float32)
    mask = np.zeros((16, 16), np.float32)
    mask[:8] = 1
    signal = float(pipeline.scheduler.alphas_cumprod[-1].sqrt())
    varied = first_x_t(MRIDDPMImg2ImgPipeline.from_pipe(pipeline), "a", image=scan, strength=1.0)
    assert varied.mean() == pytest.approx(signal, abs=0.02)
    inpaint = MRIDDPMInpaintPipeline.from_pipe(pipeline)
    masked = first_x_t(inpaint, "a", image=scan, mask_image=mask, jump_n_sample=1)
    assert masked[:, :, :8].mean() == pytest.approx(signal * -0.8, abs=0.03)
    assert masked[:, :, 8:].mean() == pytest.approx(signal, abs=0.03)


def test_of_a_schedule_without_terminal_signal_they_change_nothing(pipeline):
    scheduler = make_noise_scheduler(300, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    zero = MRIDDPMPipeline(pipeline.unet, scheduler)
    zero.set_progress_bar_config(disable=True)
    noise = torch.stack(
        [torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    )
    torch.testing.assert_close(first_x_t(zero, "a"), noise, atol=1e-6, rtol=0)


def test_a_run_from_before_there_were_moments_goes_on_without_them(tmp_path):
    run_dir = train_alone(tiny(tmp_path / "run", max_train_steps=2, start_from_moments=False))
    settings = json.loads((run_dir / "config.json").read_text())
    del settings["start_from_moments"]
    (run_dir / "config.json").write_text(json.dumps(settings))
    more = {"max_train_steps": 4, "resume_from_checkpoint": "latest"}
    with pytest.raises(
        InputError, match="trained with --no_start_from_moments, and this is --start_from_moments"
    ):
        train_alone(tiny(run_dir, **more))
    train_alone(tiny(run_dir, **more, start_from_moments=False))
    assert MRIDDPMPipeline.from_pretrained(run_dir / "pipeline").unet.config.moments_size is None
