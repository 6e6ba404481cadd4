"""Guidance intervals, thresholding, trajectories, variations of a scan and regions sampled anew, by the pipeline itself."""

import json
import logging

import diffusers
import numpy as np
import pytest
import torch
from mri_ddpm.pipelines.pipeline_mri_ddpm import spaced_timesteps
from PIL import Image

from mri_ddpm import MRIDDPMImg2ImgPipeline, MRIDDPMInpaintPipeline, MRIDDPMPipeline
from mri_ddpm.diffusion import make_noise_scheduler

SCALED = {"beta_start": 1 / 300, "beta_end": 0.6}  # of 30 timesteps
CLASSES = ("glioma_tumor", "no_tumor")
THREE = (MRIDDPMPipeline, MRIDDPMImg2ImgPipeline, MRIDDPMInpaintPipeline)
FOUR_STEPS, SIX_STEPS = spaced_timesteps(300, 4), spaced_timesteps(300, 6)


@pytest.fixture
def make_pipeline(make_unet):
    def make(scheduler: str = "DDPMScheduler", kind: type = MRIDDPMPipeline, **config):
        recipe = make_noise_scheduler(prediction_type="v_prediction", **config.pop("schedule", {}))
        pipeline = kind(
            make_unet(**{"num_class_embeds": 2, "class_names": CLASSES, **config}),
            getattr(diffusers, scheduler).from_config(recipe.config),
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(pipeline, *arguments, seed: int = 0, **keywords) -> np.ndarray:
    keywords = {"num_inference_steps": 6, "output_type": "np", "generator": generator(seed), **keywords}
    return pipeline(*arguments, **keywords).images


def scan_and_mask(side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    scan = np.random.default_rng(0).random((side, side), dtype=np.float32)
    mask = np.zeros((side, side), bool)
    mask[4:12, 3:10] = True
    return scan, mask


# Guidance


def batches_by_timestep(pipeline) -> dict[float, int]:
    calls = {}
    pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: calls.update({float(inputs[1]): len(inputs[0])})
    )
    return calls


def test_guidance_costs_a_second_image_only_inside_its_interval(make_pipeline):
    pipeline = make_pipeline()
    calls = batches_by_timestep(pipeline)
    draw(pipeline, 0, guidance_scale=3.0, guidance_start=1 / 6, guidance_end=0.5)
    assert calls == dict(zip(SIX_STEPS, (1, 2, 2, 1, 1, 1), strict=True))
    calls.clear()
    draw(pipeline, 0, guidance_scale=3.0)
    assert set(calls.values()) == {2}
    calls.clear()
    draw(pipeline, 0, guidance_scale=1.0)
    assert set(calls.values()) == {1}


def test_outside_its_interval_guidance_changes_nothing(make_pipeline):
    pipeline = make_pipeline()
    plain, guided = draw(pipeline, 0), draw(pipeline, 0, guidance_scale=3.0)
    first_half = draw(pipeline, 0, guidance_scale=3.0, guidance_end=0.5)
    np.testing.assert_array_equal(
        draw(pipeline, 0, guidance_scale=3.0, guidance_start=0.95, guidance_end=1.0), plain
    )
    assert np.abs(first_half - plain).max() > 0.01
    assert np.abs(first_half - guided).max() > 0.01


def test_a_model_without_a_null_class_takes_no_guidance_and_always_a_class(make_pipeline):
    pipeline = make_pipeline(null_class=False)
    for arguments in ({"class_labels": 0, "guidance_scale": 2.0}, {}):
        with pytest.raises(ValueError, match=r"class_dropout_prob 0\) and has no null class"):
            draw(pipeline, **arguments)
    assert draw(pipeline, 1).shape == (1, 16, 16)


# Clipping


def test_dynamic_thresholding_scales_down_instead_of_clipping(make_pipeline):
    pipeline = make_pipeline()
    estimates = torch.tensor([0.0, 0.5, -3.0, 2.0] + [0.1] * 12).reshape(1, 1, 4, 4)
    alpha_bar = 0.5
    x_t = torch.randn(1, 1, 4, 4, generator=generator())
    v = (alpha_bar**0.5 * x_t - estimates) / (1 - alpha_bar) ** 0.5
    prediction, x_0 = pipeline.clip(v, x_t, alpha_bar, None)
    torch.testing.assert_close(x_0, estimates.clamp(-1, 1))
    torch.testing.assert_close(alpha_bar**0.5 * x_t - (1 - alpha_bar) ** 0.5 * prediction, x_0)
    _, x_0 = pipeline.clip(v, x_t, alpha_bar, 1.0)  # nothing is clipped
    torch.testing.assert_close(x_0, estimates / 3)
    _, x_0 = pipeline.clip(v, x_t, alpha_bar, 0.5)  # the median is under 1: clipping as usual
    torch.testing.assert_close(x_0, estimates.clamp(-1, 1))
    _, x_0 = pipeline.clip(v, x_t, alpha_bar, 14 / 15)  # all but the largest of 16
    torch.testing.assert_close(x_0, estimates.clamp(-2, 2) / 2)


@pytest.mark.parametrize(
    "scheduler",
    [
        "DDPMScheduler",
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "HeunDiscreteScheduler",
        "EulerDiscreteScheduler",
    ],
)
def test_every_scheduler_draws_within_the_range_of_images(make_pipeline, scheduler):
    """Without clipping in between, an untrained network leaves [-1, 1]; some schedulers of diffusers never clip."""
    pipeline = make_pipeline(scheduler)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.mul_(20)
    last = []
    draw(pipeline, 0, callback_on_step_end=lambda pipe, i, t, tensors: last.append(tensors["x_t"]) or {})
    assert last[-1].abs().max() <= 1 + 1e-5
    assert (last[-1].abs() > 0.999).float().mean() > 0.1  # it did act


def test_a_network_in_bf16_keeps_the_chain_in_float32(make_pipeline):
    """x_t of 8 bits would be rounded at each of 300 steps, by more than the network's own error."""
    pipeline = make_pipeline()
    many = {"num_images": 2, "num_inference_steps": 60, "output_type": "pt", "output_trajectory": True}
    exact = pipeline(0, generator=generator(), **many)
    pipeline.to(torch.bfloat16)
    coarse = pipeline(0, generator=generator(), **many)
    assert coarse.x_t.dtype == torch.float32
    assert coarse.images.dtype == torch.float32
    assert (coarse.images - exact.images).abs().mean() < 0.02
    assert exact.images.std() > 0.05


# What happened on the way


@pytest.mark.parametrize(
    "scheduler",
    ["DDPMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler", "EulerDiscreteScheduler"],
)
def test_the_trajectory_leads_from_the_noise_to_the_image(make_pipeline, scheduler):
    pipeline = make_pipeline(scheduler)
    output = pipeline([0, 1], 2, 6, generator=generator(), output_type="pt", output_trajectory=True)
    calls = 11 if scheduler.startswith("Heun") else 6
    assert output.x_t.shape == output.x_0.shape == (calls, 2, 1, 16, 16)
    assert output.timesteps.tolist()[:2] == SIX_STEPS[:2]
    noise = torch.randn((2, 1, 16, 16), generator=generator())
    torch.testing.assert_close(output.x_t[0], noise, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(output.x_0[-1] / 2 + 0.5, output.images, atol=1e-5, rtol=0)
    assert output.x_0.abs().max() <= 1
    assert set(pipeline(0, 1, 2).keys()) == {"images"}


def test_a_callback_sees_each_step_and_may_change_it(make_pipeline):
    pipeline = make_pipeline()
    seen = []

    def watch(pipe, step, timestep, tensors):
        seen.append((pipe is pipeline, step, int(timestep), sorted(tensors)))
        return {"x_t": torch.full_like(tensors["x_t"], 0.5)} if step == 5 else {}

    names = ["x_t", "x_0"]
    images = draw(pipeline, 0, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names)
    assert seen == [(True, i, t, ["x_0", "x_t"]) for i, t in enumerate(SIX_STEPS)]
    assert (images == 0.75).all()
    with pytest.raises(ValueError, match="names 'latents'; there are"):
        draw(pipeline, 0, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=["latents"])


# A scan sampled anew


SCHEDULERS = [
    "DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler",
    "EulerDiscreteScheduler",
]  # fmt: skip


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_strength_is_the_share_of_the_timesteps_that_is_run(make_pipeline, scheduler):
    """From the step nearest to it, wherever a scheduler's steps lie."""
    pipeline = make_pipeline(scheduler, MRIDDPMImg2ImgPipeline)
    calls = batches_by_timestep(pipeline)
    scan, _ = scan_and_mask()
    even = scheduler == "UniPCMultistepScheduler"  # which takes no timesteps
    steps = [299, 249, 199, 149, 99, 49] if even else [299, 227, 162, 105, 57, 19]
    draw(pipeline, 0, image=scan)
    assert list(calls) == steps[-1 if even else -2 :]
    for strength, count in ((0.5, 3 if even else 4), (1.0, 6), (0.01, 1)):
        calls.clear()
        draw(pipeline, 0, image=scan, strength=strength)
        assert list(calls) == steps[-count:]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_chain_starts_from_the_noised_scan(make_pipeline, scheduler):
    pipeline = make_pipeline(scheduler, MRIDDPMImg2ImgPipeline)
    scan, _ = scan_and_mask()
    start = {"image": scan, "strength": 0.5, "generator": generator()}
    output = pipeline(0, num_inference_steps=6, output_trajectory=True, **start)
    alpha_bar = pipeline.scheduler.alphas_cumprod[int(output.timesteps[0])]
    noise = torch.randn((1, 1, 16, 16), generator=generator())
    expected = alpha_bar.sqrt() * (torch.from_numpy(scan) * 2 - 1) + (1 - alpha_bar).sqrt() * noise[0, 0]
    torch.testing.assert_close(output.x_t[0, 0, 0], expected, atol=1e-4, rtol=1e-4)


def test_a_weaker_variation_stays_closer_to_the_scan(make_pipeline):
    pipeline = make_pipeline(kind=MRIDDPMImg2ImgPipeline)
    scan, _ = scan_and_mask()
    distance = [
        np.abs(draw(pipeline, 0, image=scan, strength=strength, num_inference_steps=100) - scan).mean()
        for strength in (0.01, 0.2, 0.8)
    ]
    assert distance[0] < 0.1
    assert distance == sorted(distance)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_pixels_outside_the_mask_stay_to_the_bit(make_pipeline, scheduler, strength):
    pipeline = make_pipeline(scheduler, MRIDDPMInpaintPipeline)
    scan, mask = scan_and_mask()
    drawn = draw(pipeline, [0, 1], num_images=2, image=scan, mask_image=mask, strength=strength)
    for image in drawn:
        np.testing.assert_array_equal(image[~mask], scan[~mask])
        assert (image[mask] != scan[mask]).mean() > 0.9


@pytest.mark.parametrize(
    "scheduler", ["DDPMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
)
def test_nothing_of_what_the_mask_covers_shows_through(make_pipeline, scheduler):
    """Also of a model without moments, by betas that leave a part of the scan in x_T."""
    pipeline = make_pipeline(scheduler, MRIDDPMInpaintPipeline)
    scan, mask = scan_and_mask()
    others = [np.where(mask, np.float32(covered), scan) for covered in (0, 1)]
    edited = [draw(pipeline, 0, image=image, mask_image=mask) for image in others]
    np.testing.assert_array_equal(*edited)


@pytest.mark.parametrize(
    ("mode", "dtype", "output_type"), [("L", np.uint8, "pil"), ("I;16", np.uint16, "pil16")]
)
def test_pil_images_come_back_in_the_same_levels(make_pipeline, mode, dtype, output_type):
    levels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, (16, 16), dtype=dtype, endpoint=True)
    _, mask = scan_and_mask()
    scan = Image.fromarray(levels)
    assert scan.mode == mode
    pipeline = make_pipeline(kind=MRIDDPMInpaintPipeline)
    (image,) = draw(pipeline, 0, image=scan, mask_image=Image.fromarray(mask), output_type=output_type)
    np.testing.assert_array_equal(np.asarray(image)[~mask], levels[~mask])


def test_repaint_goes_back_and_draws_each_stretch_again(make_pipeline):
    pipeline = make_pipeline(kind=MRIDDPMInpaintPipeline)
    scan, mask = scan_and_mask()

    def timesteps(**jumps) -> list[float]:
        arguments = {"image": scan, "mask_image": mask, "generator": generator(), **jumps}
        return pipeline(0, num_inference_steps=4, output_trajectory=True, **arguments).timesteps.tolist()

    assert timesteps(jump_length=2, jump_n_sample=3) == 3 * FOUR_STEPS[:2] + 3 * FOUR_STEPS[2:]
    assert timesteps(jump_n_sample=1) == FOUR_STEPS
    assert len(timesteps()) == 40  # a DDPMScheduler takes RePaint's 10
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    assert len(timesteps()) == 4
    with pytest.raises(
        ValueError, match="jump_n_sample is 10, but a DPMSolverMultistepScheduler cannot go back"
    ):
        timesteps(jump_n_sample=10)


def test_what_is_known_has_the_noise_of_each_step(make_pipeline):
    """Outside the mask x_t is the scan with fresh noise of its timestep, also after going back."""
    pipeline = make_pipeline(kind=MRIDDPMInpaintPipeline)
    mask = np.zeros((16, 16), bool)
    mask[0, 0] = True
    scan = np.full((16, 16), 0.75, np.float32)  # 0.5 in the model's range
    edit = {"image": scan, "mask_image": mask, "output_trajectory": True, "generator": generator()}
    output = pipeline(0, num_images=40, num_inference_steps=5, jump_length=2, jump_n_sample=2, **edit)
    for t, x_t in zip(output.timesteps, output.x_t, strict=True):
        alpha_bar = pipeline.scheduler.alphas_cumprod[t]
        known = x_t[:, 0][:, ~torch.from_numpy(mask)]
        assert known.mean() == pytest.approx(float(alpha_bar.sqrt() * 0.5), abs=0.04)
        assert known.std() == pytest.approx(float((1 - alpha_bar).sqrt()), abs=0.04)


def test_going_back_adds_the_noise_between_two_timesteps(make_pipeline):
    """The part sampled anew, too, keeps its variance on the way back: v = 0 and fixed-large steps are exact for N(0, I)."""
    pipeline = make_pipeline(
        kind=MRIDDPMInpaintPipeline, block_out_channels=(8,), attention_types=("linear",)
    )
    exact = {"clip_sample": False, "variance_type": "fixed_large"}
    pipeline.scheduler = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config, **exact)
    with torch.no_grad():
        pipeline.unet.conv_out.weight.zero_()
        pipeline.unet.conv_out.bias.zero_()
    scan, mask = np.full((16, 16), 0.5, np.float32), np.ones((16, 16), bool)
    edit = {"image": scan, "mask_image": mask, "output_trajectory": True, "generator": generator()}
    output = pipeline(0, num_images=40, num_inference_steps=10, jump_length=5, jump_n_sample=3, **edit)
    spread = output.x_t.std(dim=(1, 2, 3, 4))
    assert ((spread > 0.97) & (spread < 1.03)).all()


def test_a_scheduler_of_another_kind_is_refused(make_pipeline):
    pipeline = make_pipeline()
    pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="a FlowMatchEulerDiscreteScheduler knows no alphas of a DDPM"):
        draw(pipeline, 0)


@pytest.mark.parametrize(
    "scheduler",
    ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "HeunDiscreteScheduler"],
)
@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_all_steps_are_the_same_by_any_spacing(make_pipeline, scheduler, spacing):
    """diffusers' own lists for all T steps, here 30, hold a timestep twice, which divides by 0."""
    pipeline = make_pipeline(scheduler, schedule={"num_train_timesteps": 30, **SCALED})
    expected = draw(pipeline, 0, num_inference_steps=30)
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, timestep_spacing=spacing
    )
    np.testing.assert_allclose(draw(pipeline, 0, num_inference_steps=30), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"strength": 0.0}, r"strength is 0\.0; take a share"),
        ({"image": np.ones((16, 12))}, "image is 12x16 pixels, but the model takes 16x16; resize it"),
        ({"width": 20}, "image is 16x16 pixels, but the model takes 20x16"),
        ({"image": np.ones((3, 16, 16))}, "3 are given as image for 1 images"),
        ({"image": np.ones((1, 3, 16, 16))}, r"image of shape \(1, 3, 16, 16\) is not grey"),
        ({"image": np.ones((16, 16, 3))}, r"image of shape \(16, 16, 3\) is not grey"),
        ({"image": np.ones(16)}, r"image of shape \(16,\) is not grey"),
        ({"image": 0.5}, r"image of shape \(\) is not grey"),
        ({"image": np.ones((16, 16), int)}, "image is of int64; give floats"),
        ({"image": Image.new("F", (16, 16))}, "image is a PIL image of mode F; convert it to 'L'"),
        ({"image": []}, "image is no image"),
        ({"image": np.full((16, 16), -1.0)}, r"image has values outside \[0, 1\]"),
        ({"image": np.full((16, 16), np.nan)}, r"image has values outside \[0, 1\]"),
        (
            {"image": [np.ones((16, 16)), np.ones((8, 8))]},
            "image is no image, or images of several sizes",
        ),
        ({"mask_image": np.ones((16, 16), np.uint8)}, "mask_image has no white pixel"),
        ({"mask_image": np.ones((8, 8))}, "mask_image is 8x8 pixels"),
        ({"jump_length": 0}, "jump_length is 0"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf; take a number"),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, r"guidance_start is 0\.5 and guidance_end 0\.5"),
        ({"dynamic_thresholding_ratio": 0.0}, r"dynamic_thresholding_ratio is 0\.0"),
    ],
)
def test_refusals(make_pipeline, arguments, sentence):
    pipeline = make_pipeline(kind=MRIDDPMInpaintPipeline)
    whole = {"image": np.ones((16, 16)), "mask_image": np.ones((16, 16))}
    with pytest.raises(ValueError, match=sentence):
        draw(pipeline, 0, **{**whole, **arguments})
    if not {"mask_image", "jump_length"} & arguments.keys():
        pipeline = MRIDDPMImg2ImgPipeline.from_pipe(pipeline)
        with pytest.raises(ValueError, match=sentence):
            draw(pipeline, 0, **{"image": whole["image"], **arguments})


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (
            MRIDDPMPipeline,
            {"image": 1, "mask_image": 1},
            "takes no mask_image; MRIDDPMInpaintPipeline.from_pipe",
        ),
        (MRIDDPMPipeline, {"strength": 0.3}, "takes no strength; MRIDDPMImg2ImgPipeline.from_pipe"),
        (
            MRIDDPMImg2ImgPipeline,
            {"image": 1, "jump_length": 5},
            "takes no jump_length; MRIDDPMInpaintPipeline",
        ),
        (MRIDDPMImg2ImgPipeline, {"image": 1, "batch_size": 5}, "takes no batch_size; here it is num_images"),
        (MRIDDPMImg2ImgPipeline, {}, "image"),
        (MRIDDPMInpaintPipeline, {"image": 1}, "mask_image"),
    ],
)
def test_what_another_of_the_three_takes_is_said(make_pipeline, kind, arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        make_pipeline(kind=kind)(0, **arguments)


# Several channels, and conditions


SEG = {"seg": ("1", "2", "4")}


@pytest.fixture
def several(make_pipeline):
    """Return a function that builds a pipeline which draws t1 and a mask, given flair."""

    def build(kind):
        names = {"channel_names": ("t1", "seg"), "condition_names": ("flair",), "mask_labels": SEG}
        return make_pipeline(kind=kind, in_channels=6, out_channels=4, **names)

    return build


def t1_and_seg() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    seg = rng.choice([0, 1, 2, 4], (16, 16)).astype(np.uint8)
    return {"t1": rng.random((16, 16), dtype=np.float32), "seg": seg}


def test_inpainting_keeps_every_channel_outside_the_mask_to_the_bit(several):
    pipeline, image, (flair, mask) = several(MRIDDPMInpaintPipeline), t1_and_seg(), scan_and_mask()
    arguments = {"image": image, "mask_image": mask, "num_inference_steps": 6, "output_type": "np"}
    arguments |= {"class_labels": 0, "num_images": 2, "jump_n_sample": 1}
    first, again, other = (
        pipeline(**arguments, condition={"flair": given}, generator=generator()).channels
        for given in (flair, flair, 1 - flair)
    )
    for name, given in image.items():
        assert first[name].dtype == given.dtype
        np.testing.assert_array_equal(first[name][:, ~mask], np.stack([given[~mask]] * 2))
        assert (first[name][0, mask] != given[mask]).any()
        np.testing.assert_array_equal(first[name], again[name])
    assert (first["t1"][:, mask] != other["t1"][:, mask]).any()  # the condition is followed


def test_variations_start_from_the_noised_channels(several):
    pipeline, image = several(MRIDDPMImg2ImgPipeline), t1_and_seg()
    arguments = {"class_labels": 0, "strength": 0.5, "num_inference_steps": 6, "output_trajectory": True}
    output = pipeline(image=image, generator=generator(), output_type="np", **arguments)
    planes = [image["t1"], *(image["seg"] == value for value in (1, 2, 4))]
    x_0 = torch.from_numpy(np.stack(planes)[None].astype(np.float32)) * 2 - 1
    eps = torch.randn(1, 4, 16, 16, generator=generator())
    torch.testing.assert_close(output.x_t[0], pipeline.scheduler.add_noise(x_0, eps, output.timesteps[:1]))
    assert {*np.unique(output.channels["seg"])} <= {0, 1, 2, 4}


def test_channels_come_back_in_every_form(several):
    pipeline = several(MRIDDPMPipeline)
    asked = {"condition": {"flair": np.zeros((16, 16))}, "num_inference_steps": 2, "output_type": "np"}
    output = pipeline(0, **asked, generator=generator())
    assert list(output) == ["images", "channels"]
    assert output["images"] is output.images
    assert list(output.images) == ["t1", "seg"]
    for channels in pipeline(0, **asked, generator=generator(), return_dict=False):
        for name, drawn in channels.items():
            np.testing.assert_array_equal(drawn, output.images[name])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.ones((16, 16)), "image is a ndarray; give a dict by name, of: t1, seg"),
        ({"t1": np.ones((16, 16))}, "image lacks 'seg'"),
        ({**t1_and_seg(), "t2": np.ones((16, 16))}, "image has 't2', which the model does not know"),
        ({**t1_and_seg(), "t1": np.ones((12, 16))}, "image 't1' is 16x12 pixels, but the model takes 16x16"),
        ({**t1_and_seg(), "seg": np.full((16, 16), 3)}, "image 'seg' has the label 3, which the model does not know"),
    ],
)  # fmt: skip
def test_channels_that_do_not_fit_are_one_sentence(several, image, words):
    with pytest.raises(ValueError, match=words):
        several(MRIDDPMImg2ImgPipeline)(0, image=image)


# From one to another


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", THREE)
def test_from_pipe_leads_from_each_to_each(make_pipeline, kind, dtype, monkeypatch, caplog):
    pipeline = make_pipeline("UniPCMultistepScheduler", kind).to(dtype)
    monkeypatch.setattr(logging.getLogger("diffusers.models.modeling_utils"), "handlers", [caplog.handler])
    caplog.clear()
    for other_kind in THREE:
        other = other_kind.from_pipe(pipeline)
        assert type(other) is other_kind
        assert other.unet is pipeline.unet
        assert other.scheduler is pipeline.scheduler
        assert other.unet.dtype == dtype  # diffusers would make it float32, for both
    assert MRIDDPMPipeline.from_pipe(pipeline, dtype=torch.float32).unet.dtype == torch.float32
    unet = make_pipeline().unet
    assert kind.from_pipe(pipeline, unet=unet).unet is unet
    assert not caplog.records  # nothing is cast that would lose by it


def test_a_subclass_of_a_user_is_saved_as_what_the_repository_holds(make_pipeline, tmp_path):
    class Mine(MRIDDPMInpaintPipeline):
        pass

    Mine.from_pipe(make_pipeline()).save_pretrained(tmp_path / "saved")
    assert Mine.from_pretrained(tmp_path / "saved").unet.config.class_names == list(CLASSES)
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_mri_ddpm", "MRIDDPMInpaintPipeline"]


@pytest.mark.parametrize("kind", THREE)
def test_what_one_saves_every_other_opens(make_pipeline, tmp_path, kind):
    pipeline = kind.from_pipe(make_pipeline())
    pipeline.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_mri_ddpm", kind.__name__]
    for other_kind in THREE:
        other = other_kind.from_pretrained(tmp_path / "saved")
        assert type(other) is other_kind
        assert torch.equal(other.unet.conv_in.weight, pipeline.unet.conv_in.weight)
