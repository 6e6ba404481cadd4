import json

import diffusers
import numpy as np
import pytest
import torch
from mri_ddpm.pipelines.pipeline_mri_ddpm import spaced_timesteps, to_images
from PIL import Image

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.commands.sample import named_class
from mri_ddpm.diffusion import make_noise_scheduler

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor")
T = 300
BETAS = (1e-4 * 1000 / T, 0.02 * 1000 / T)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def make_pipeline(make_unet):
    def make(prediction_type: str = "v_prediction", **config) -> MRIDDPMPipeline:
        config = {"num_class_embeds": 3, "class_names": CLASSES, **config}
        pipeline = MRIDDPMPipeline(
            make_unet(**config), make_noise_scheduler(T, *BETAS, prediction_type=prediction_type)
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return make


def watch(pipeline: MRIDDPMPipeline) -> list[tuple[float, int]]:
    """Record the timestep and the batch of every call of the network."""
    calls = []
    pipeline.unet.register_forward_pre_hook(
        lambda module, inputs: calls.append((float(inputs[1]), len(inputs[0])))
    )
    return calls


def assert_varied(images: np.ndarray) -> None:
    """Neither constant nor all clipped: a comparison of such images would say nothing."""
    assert images.std() > 0.02
    assert ((images > 0) & (images < 1)).mean() > 0.3


# The reverse process, written out again


def reference_images(pipeline, prediction_type, labels, guidance_scale, timesteps, seed) -> np.ndarray:
    """Algorithm 2 in float64, step by step, with x_0 clipped and the classes combined by hand."""
    alpha_bar = np.cumprod(1 - np.linspace(*BETAS, T))
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), 1, 16, 16)
    x = torch.randn(shape, generator=generator).double().numpy()
    labels = torch.tensor(labels)

    def predict(x, t, labels):
        with torch.no_grad():
            return pipeline.unet(torch.from_numpy(x).float(), t, class_labels=labels).sample.double().numpy()

    for t, t_next in zip(timesteps, [*timesteps[1:], -1], strict=True):
        now, later = alpha_bar[t], alpha_bar[t_next] if t_next >= 0 else 1.0
        prediction = predict(x, t, labels)
        if guidance_scale != 1:
            prediction = guidance_scale * prediction + (1 - guidance_scale) * predict(x, t, None)
        if prediction_type == "epsilon":
            x_0 = (x - np.sqrt(1 - now) * prediction) / np.sqrt(now)
        else:
            x_0 = np.sqrt(now) * x - np.sqrt(1 - now) * prediction
        x_0 = np.clip(x_0, -1, 1)
        alpha = now / later
        # DDPM, equation 7
        x = (np.sqrt(later) * (1 - alpha) * x_0 + np.sqrt(alpha) * (1 - later) * x) / (1 - now)
        if t > 0:
            z = torch.randn(shape, generator=generator).double().numpy()
            x = x + np.sqrt((1 - later) / (1 - now) * (1 - alpha)) * z
    return np.clip((x[:, 0] + 1) / 2, 0, 1)


def test_default_is_the_whole_chain_of_algorithm_2(make_pipeline):
    pipeline = make_pipeline()
    expected = reference_images(pipeline, "v_prediction", [0, 2], 1.0, range(T - 1, -1, -1), seed=5)
    calls = watch(pipeline)
    images = pipeline([0, 2], 2, generator=generators(5)[0], output_type="np").images
    assert calls == [(t, 2) for t in range(T - 1, -1, -1)]
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert_varied(images)


def test_a_short_chain_of_a_network_that_predicts_the_noise(make_pipeline):
    pipeline = make_pipeline("epsilon")
    expected = reference_images(pipeline, "epsilon", [0, 2], 1.0, spaced_timesteps(T, 3), seed=5)
    images = pipeline([0, 2], 2, 3, generator=generators(5)[0], output_type="np").images
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert_varied(images)


@pytest.mark.parametrize("guidance_scale", [0.0, 1.0, 3.0])
def test_guidance_combines_with_and_without_the_class(make_pipeline, guidance_scale):
    pipeline = make_pipeline()
    arguments = {"num_images": 2, "num_inference_steps": 3, "output_type": "np"}
    expected = reference_images(
        pipeline, "v_prediction", [0, 2], guidance_scale, spaced_timesteps(T, 3), seed=1
    )
    images = pipeline([0, 2], generator=generators(1)[0], guidance_scale=guidance_scale, **arguments).images
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert_varied(images)
    unguided = pipeline([0, 2], generator=generators(1)[0], **arguments).images
    assert (np.abs(images - unguided).max() > 0.01) == (guidance_scale != 1.0)


def test_the_network_sees_each_image_once_a_step_unless_guided(make_pipeline):
    pipeline = make_pipeline()
    calls = watch(pipeline)
    pipeline("no_tumor", 2, num_inference_steps=2, guidance_scale=1.0)
    assert calls == [(299, 2), (105, 2)]
    calls.clear()
    pipeline("no_tumor", 2, num_inference_steps=2, guidance_scale=2.0)
    assert calls == [(299, 4), (105, 4)]
    calls.clear()
    with pytest.raises(ValueError, match="guidance_scale is 2.0 without class_labels to follow"):
        pipeline(None, 2, num_inference_steps=2, guidance_scale=2.0)
    assert calls == []


@pytest.mark.parametrize("scheduler", ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.parametrize("num_inference_steps", [1, 7, 28])
def test_as_many_steps_as_asked_for_and_none_before_the_first_timestep(
    make_pipeline, scheduler, num_inference_steps
):
    """At T = 300, 7 and 28 are among the numbers whose "trailing" timesteps run on to -1 by rounding."""
    pipeline = make_pipeline()
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    calls = watch(pipeline)
    pipeline(num_inference_steps=num_inference_steps)
    assert len(calls) == num_inference_steps
    assert calls[0][0] == T - 1
    assert all(t >= 0 for t, _ in calls)


def test_7_steps_follow_algorithm_2_to_the_end(make_pipeline):
    pipeline = make_pipeline()
    expected = reference_images(pipeline, "v_prediction", [1], 1.0, spaced_timesteps(T, 7), seed=2)
    images = pipeline(1, 1, num_inference_steps=7, generator=generators(2)[0], output_type="np").images
    np.testing.assert_allclose(images, expected, atol=1e-4)
    assert_varied(images)


# Classes, generators and sizes


def test_a_class_by_name_by_index_and_one_an_image_agree(make_pipeline):
    pipeline = make_pipeline()
    assert pipeline.class_names == CLASSES

    def draw(class_labels):
        return pipeline(class_labels, 2, 4, generator=generators(0)[0], output_type="np").images

    asked = draw("no_tumor")
    for same in (2, ["no_tumor", "no_tumor"], [2, 2], ("no_tumor", 2)):
        np.testing.assert_array_equal(draw(same), asked)
    mixed = draw(["glioma_tumor", "no_tumor"])
    np.testing.assert_allclose(mixed[1], asked[1], atol=1e-5)
    assert np.abs(mixed[0] - asked[0]).max() > 0.01
    without = draw(None)
    assert all(np.abs(without - draw(index)).max() > 0.01 for index in range(3))


def test_an_image_of_its_own_generator_does_not_depend_on_its_batch_or_place(make_pipeline):
    pipeline = make_pipeline()

    def draw(labels, seeds):
        return pipeline(labels, len(seeds), 10, generator=generators(*seeds), output_type="np").images

    together = draw([0, 1, 2], [10, 11, 12])
    assert_varied(together)
    np.testing.assert_allclose(draw([2, 0, 1], [12, 10, 11]), together[[2, 0, 1]], atol=1e-5)
    for i in range(3):
        np.testing.assert_allclose(draw([i], [10 + i])[0], together[i], atol=1e-5)
        assert np.abs(draw([i], [20 + i])[0] - together[i]).max() > 0.1


def test_one_seed_gives_the_same_images_and_another_gives_others(make_pipeline):
    pipeline = make_pipeline()
    first, again, other = (
        pipeline(0, 2, 5, generator=generators(seed)[0], output_type="np").images for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert np.abs(first[0] - first[1]).max() > 0.1


@pytest.mark.parametrize(
    "sizes", [({}, (18, 18)), ({"height": 17, "width": 25}, (17, 25)), ({"width": 20}, (18, 20))]
)
def test_height_and_width(make_pipeline, sizes):
    arguments, expected = sizes
    pipeline = make_pipeline(sample_size=18)
    assert pipeline(num_inference_steps=2, output_type="np", **arguments).images.shape == (1, *expected)
    assert pipeline(num_inference_steps=2, **arguments).images[0].size == expected[::-1]


# What comes back


def test_output_types(make_pipeline):
    pipeline = make_pipeline(sample_size=18)
    pil, array, tensor = (
        pipeline(0, 3, 5, generator=generators(0)[0], width=20, output_type=output_type).images
        for output_type in ("pil", "np", "pt")
    )
    assert array.shape == (3, 18, 20)
    assert array.dtype == np.float32
    assert 0 <= array.min() < array.max() <= 1
    assert_varied(array)
    assert tensor.shape == (3, 1, 18, 20)
    assert tensor.dtype == torch.float32
    np.testing.assert_array_equal(tensor[:, 0].numpy(), array)
    assert len(pil) == 3
    for image, values in zip(pil, array, strict=True):
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size) == ("L", (20, 18))
        assert np.abs(np.asarray(image) / 255 - values).max() <= 0.5 / 255 + 1e-6


def test_images_are_rounded_to_the_nearest_of_256_or_65536_levels():
    unit = torch.tensor([0, 0.25, 0.5, 0.75, 1]).reshape(1, 1, 1, 5)
    assert to_images(unit, "pt") is unit
    assert to_images(unit, "np").ravel().tolist() == [0, 0.25, 0.5, 0.75, 1]
    for output_type, mode, levels in (
        ("pil", "L", [0, 64, 128, 191, 255]),
        ("pil16", "I;16", [0, 16384, 32768, 49151, 65535]),
    ):
        (image,) = to_images(unit, output_type)
        assert image.mode == mode
        assert np.asarray(image).ravel().tolist() == levels


def test_a_tuple_when_asked_for(make_pipeline):
    pipeline = make_pipeline()
    (images,) = pipeline(0, 1, 2, generator=generators(0)[0], output_type="np", return_dict=False)
    output = pipeline(0, 1, 2, generator=generators(0)[0], output_type="np")
    np.testing.assert_array_equal(images, output.images)


def test_a_model_without_classes_draws(make_pipeline):
    pipeline = make_pipeline(num_class_embeds=None, class_names=None)
    assert pipeline.class_names == ()
    assert_varied(pipeline(num_images=2, num_inference_steps=5, output_type="np").images)


# Other schedulers


@pytest.mark.parametrize(
    "scheduler",
    [
        "DDIMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_another_scheduler_made_from_the_config_draws_in_5_steps(make_pipeline, scheduler):
    pipeline = make_pipeline()
    pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    calls = watch(pipeline)
    images, again = (
        pipeline([0, 1], 2, 5, guidance_scale=1.5, generator=generators(4)[0], output_type="np").images
        for _ in range(2)
    )
    assert calls[0] == (299, 4)
    assert np.isfinite(images).all()
    assert_varied(images)
    np.testing.assert_array_equal(images, again)


# Saving


@pytest.mark.slow
def test_a_fresh_process_draws_the_same_images_to_the_bit(make_pipeline, run_fresh, tmp_path):
    pipeline = make_pipeline()
    pipeline.save_pretrained(tmp_path / "pipeline")
    names = {
        path.relative_to(tmp_path / "pipeline").as_posix() for path in (tmp_path / "pipeline").rglob("*.*")
    }
    assert names == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "pipeline_mri_ddpm.py",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/modeling_attention_unet.py",
    }
    index = json.loads((tmp_path / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline_mri_ddpm", "MRIDDPMPipeline"]
    run_fresh(
        "import numpy as np, torch\n"
        "from mri_ddpm import AttentionUNet2DModel, MRIDDPMPipeline\n"
        "pipeline = MRIDDPMPipeline.from_pretrained('pipeline')\n"
        "assert type(pipeline) is MRIDDPMPipeline\n"
        "assert type(pipeline.unet) is AttentionUNet2DModel\n"
        "g = torch.Generator().manual_seed(8)\n"
        "images = pipeline(class_labels='glioma_tumor', num_images=2, num_inference_steps=20, guidance_scale=2.0,\n"
        "                  generator=g, output_type='np').images\n"
        "np.save('images.npy', images)\n"
    )
    images = pipeline("glioma_tumor", 2, 20, 2.0, generators(8)[0], output_type="np").images
    assert_varied(images)
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), images)


# Refusals


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"class_labels": "stroke"},
            f"class 'stroke' is not in the model; its classes are: {', '.join(CLASSES)}.",
        ),
        ({"class_labels": 3}, "class 3 is not in the model; its classes are: glioma_tumor"),
        ({"class_labels": -1}, "class -1 is not in the model"),
        ({"class_labels": ["no_tumor", "stroke"], "num_images": 2}, "class 'stroke' is not in the model"),
        ({"class_labels": ["no_tumor"], "num_images": 2}, "1 class labels were given for 2 images"),
        (
            {"num_inference_steps": 301},
            "num_inference_steps is 301, but the model was trained with 300 timesteps",
        ),
        (
            {"num_inference_steps": 0},
            "num_inference_steps is 0, but the model was trained with 300 timesteps",
        ),
        ({"num_images": 0}, "num_images is 0; ask for at least 1"),
        ({"num_images": 3, "generator": generators(0, 1)}, "2 generators were given for 3 images"),
        ({"output_type": "jpeg"}, "output_type 'jpeg' is unknown; take one of 'pil', 'pil16', 'np', 'pt'"),
        ({"height": 15}, r"\(15, 16\) pixels is too small; the least is 16"),
    ],
)
def test_refuses_what_cannot_be_sampled(make_pipeline, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_pipeline()(**{"num_inference_steps": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"class_labels": "no_tumor"}, "trained without classes; leave them out"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0, but the model has no classes"),
    ],
)
def test_refuses_classes_and_guidance_without_classes(make_pipeline, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_pipeline(num_class_embeds=None, class_names=None)(num_inference_steps=2, **arguments)


def test_an_unknown_class_of_a_model_without_names_lists_the_indices(make_pipeline):
    with pytest.raises(ValueError, match="class 'stroke' is not in the model; its classes are: 0 to 2"):
        make_pipeline(class_names=None)("stroke")


def test_class_labels_may_be_an_array_or_a_tensor(make_pipeline):
    pipeline = make_pipeline()
    expected = pipeline.class_indices([0, 2], 2)
    for labels in (np.array([0, 2]), torch.tensor([0, 2]), ["glioma_tumor", "no_tumor"]):
        assert torch.equal(pipeline.class_indices(labels, 2), expected)
    assert pipeline.class_indices(np.int64(2), 3).tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"class 0\.5 is not in the model"):
        pipeline.class_indices([0.5], 1)


def test_classes_called_by_numbers_are_asked_for_by_their_names(make_pipeline):
    """A parquet file's labels 1, 2, 3: 1 is the class "1" at every door, and an index nowhere."""
    pipeline = make_pipeline(class_names=("1", "2", "3"))
    for labels in ([1, 2, 3], ["1", "2", "3"], np.array([1, 2, 3])):
        assert pipeline.class_indices(labels, 3).tolist() == [0, 1, 2]
    assert [named_class(label, pipeline) for label in "123"] == ["1", "2", "3"]
    with pytest.raises(ValueError, match="class 0 is not in the model; its classes are: 1, 2, 3"):
        pipeline.class_indices(0, 1)

    accented = make_pipeline(class_names=("rétro", "e\N{COMBINING ACUTE ACCENT}t", "b"))
    assert accented.class_indices(["re\N{COMBINING ACUTE ACCENT}tro", "ét", "b"], 3).tolist() == [0, 1, 2]
    named = make_pipeline()
    assert named.class_indices(["1", 1, "meningioma_tumor"], 3).tolist() == [1, 1, 1]
    assert named_class("1", named) == "meningioma_tumor"


def test_what_users_of_diffusers_switch_on_says_what_it_does(make_pipeline, caplog):
    pipeline = make_pipeline()
    pipeline.enable_attention_slicing()
    assert "not sliced" in caplog.text
    pipeline.enable_xformers_memory_efficient_attention()
    assert "xFormers is not used" in caplog.text
    caplog.clear()
    pipeline.disable_attention_slicing()
    assert not caplog.text


@pytest.mark.parametrize(
    ("arguments", "kind", "sentence"),
    [
        ({"batch_size": 4}, TypeError, "takes no batch_size; here it is num_images."),
        ({"num_images_per_prompt": 4}, TypeError, "takes no num_images_per_prompt; here it is num_images."),
        ({"colour": 4}, TypeError, "takes no colour."),
        ({"generator": 42}, ValueError, "generator is 42; give a torch.Generator"),
        ({"generator": [42]}, ValueError, "generator is 42; give a torch.Generator"),
    ],
)
def test_arguments_of_other_pipelines_are_told_what_they_are_called_here(
    make_pipeline, arguments, kind, sentence
):
    with pytest.raises(kind) as refusal:
        make_pipeline()(**arguments)
    assert sentence in str(refusal.value)
