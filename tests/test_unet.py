"""The U-Net as a whole: shapes, timesteps and classes, training, compilation, saving, refusals."""

import json
import math

import pytest
import torch
from conftest import noise
from safetensors.torch import load_file
from torch import nn

from mri_ddpm import AttentionUNet2DModel
from mri_ddpm.config import TrainingConfig
from mri_ddpm.models.modeling_attention_unet import (
    AttentionBlock,
    ConvNextBlock,
    ResnetBlock,
    ScaledGroupNorm,
    norm_scale_shift,
)

SIZES = [(16, 16), (42, 42), (44, 44), (45, 61), (72, 72), (17, 33)]


# Shapes


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
@pytest.mark.parametrize("size", SIZES)
def test_output_has_the_size_of_the_input(make_unet, block_type, size):
    unet = make_unet(
        block_type=block_type,
        block_out_channels=(8, 8, 16),
        attention_types=("linear", None, "full"),
        layers_per_block=2,
    )
    sample = noise(2, 1, *size)
    with torch.no_grad():
        prediction = unet(sample, 7).sample
        shifted = unet(sample + 0.1, 7).sample
    assert prediction.shape == sample.shape
    assert prediction.isfinite().all()
    assert prediction.std() > 1e-3
    assert not torch.allclose(prediction, shifted)


def test_every_level_halves_the_size_rounding_up(make_unet):
    unet = make_unet(block_out_channels=(8, 8, 8), attention_types=(None, None, None))
    seen = []
    for blocks in [level["blocks"] for level in unet.down] + [level["blocks"] for level in unet.up]:
        blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape[-2:])))
    with torch.no_grad():
        unet(noise(1, 1, 45, 61), 0)
    assert seen == [(45, 61), (23, 31), (12, 16), (12, 16), (23, 31), (45, 61)]


@pytest.mark.parametrize("kinds", [("linear",) * 3, ("full",) * 3, (None,) * 3, (None, "linear", "full")])
def test_attention_stands_where_it_was_asked_for(make_unet, kinds):
    unet = make_unet(block_out_channels=(8, 8, 8), attention_types=kinds)
    for levels in (unet.down, list(unet.up)[::-1]):
        assert [getattr(level["attention"], "kind", None) for level in levels] == list(kinds)
    assert unet.mid_attention.kind == "full"
    with torch.no_grad():
        assert unet(noise(1, 1, 17, 19), 3).sample.std() > 1e-3


def test_in_and_out_channels_and_the_tuple(make_unet):
    unet = make_unet(in_channels=2, out_channels=3)
    with torch.no_grad():
        (prediction,) = unet(noise(1, 2, 18, 20), 1, return_dict=False)
        assert torch.equal(prediction, unet(noise(1, 2, 18, 20), 1).sample)
    assert prediction.shape == (1, 3, 18, 20)


@pytest.mark.slow
def test_the_reference_figure_runs_forward_once():
    config = TrainingConfig(preset="mridiff-figure4")
    unet = AttentionUNet2DModel(
        sample_size=config.resolution,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        block_type=config.block_type,
        attention_types=tuple(None if kind == "none" else kind for kind in config.attention_types),
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
    )
    torch.nn.init.normal_(unet.conv_out.weight)
    bottleneck = []
    unet.mid_block2.register_forward_hook(lambda module, inputs, y: bottleneck.append(tuple(y.shape)))
    unet.to(memory_format=torch.channels_last)
    with torch.no_grad():
        prediction = unet(noise(1, 1, 388, 388), 150).sample
    assert prediction.shape == (1, 1, 388, 388)
    assert bottleneck == [(1, 1024, 25, 25)]
    assert prediction.isfinite().all()
    assert prediction.std() > 0


# Timesteps, classes and the batch


def test_timestep_as_int_scalar_and_vector_agree_and_matters(make_unet):
    unet, sample = make_unet(), noise(3, 1, 16, 20)
    with torch.no_grad():
        outputs = [
            unet(sample, t).sample for t in (5, torch.tensor(5), torch.tensor([5]), torch.full((3,), 5))
        ]
        other = unet(sample, 250).sample
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])
    assert (other - outputs[0]).abs().max() > 1e-3


def test_time_embedding_starts_from_the_closed_form(make_unet):
    timesteps = torch.tensor([0, 1, 42, 299])
    frequencies = torch.exp(-math.log(10_000) * torch.arange(4, dtype=torch.float64) / 4)
    angles = timesteps.double()[:, None] * frequencies
    torch.testing.assert_close(
        make_unet().time_proj(timesteps).double(),
        torch.cat([angles.cos(), angles.sin()], dim=1),
        rtol=0,
        atol=1e-4,
    )


def test_class_labels_change_the_output_and_the_null_index_is_no_class(make_unet):
    unet, sample = make_unet(num_class_embeds=3), noise(1, 1, 16, 16).expand(4, 1, 16, 16)
    with torch.no_grad():
        by_class = unet(sample, 9, class_labels=torch.arange(4)).sample
        without = unet(sample, 9).sample
        null = unet(sample, 9, class_labels=torch.full((4,), 3)).sample
    for i in range(4):
        for j in range(i):
            assert (by_class[i] - by_class[j]).abs().max() > 1e-3
    assert torch.equal(without, null)
    torch.testing.assert_close(by_class[3], without[3])


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_a_sample_does_not_depend_on_the_rest_of_its_batch(make_unet, block_type):
    unet = make_unet(block_type=block_type, num_class_embeds=2).double()
    sample, timesteps, labels = (
        noise(3, 1, 17, 20).double(),
        torch.tensor([1, 100, 299]),
        torch.tensor([0, 1, 2]),
    )
    with torch.no_grad():
        together = unet(sample, timesteps, labels).sample
        alone = [unet(sample[i : i + 1], timesteps[i : i + 1], labels[i : i + 1]).sample for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-12)


# Training


def gradients(unet: AttentionUNet2DModel) -> dict[str, torch.Tensor]:
    unet.zero_grad()
    sample = noise(2, 1, 17, 20, dtype=torch.float64)
    unet(sample, torch.tensor([3, 200]), torch.tensor([0, 1])).sample.square().sum().backward()
    return {name: parameter.grad for name, parameter in unet.named_parameters()}


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_every_parameter_learns(make_unet, block_type):
    """Distributed training stops at a parameter without a gradient."""
    unet = make_unet(block_type=block_type, layers_per_block=2, num_class_embeds=2).double()
    for name, gradient in gradients(unet).items():
        assert gradient is not None, name
        assert gradient.abs().max() > 0, name


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_the_gradient_is_the_slope_of_the_loss(make_unet, block_type):
    """Along a random direction of all parameters, against a central difference in float64."""
    unet = make_unet(block_type=block_type, num_class_embeds=2).double()
    analytic = gradients(unet)
    direction = {name: noise(*g.shape, seed=i, dtype=g.dtype) for i, (name, g) in enumerate(analytic.items())}
    losses, h = [], 1e-6
    for side in (1, -2):  # to +h, then from there to -h
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                parameter.add_(side * h * direction[name])
            sample = noise(2, 1, 17, 20, dtype=torch.float64)
            prediction = unet(sample, torch.tensor([3, 200]), torch.tensor([0, 1])).sample
            losses.append(prediction.square().sum())
    slope = sum((analytic[name] * direction[name]).sum() for name in analytic)
    torch.testing.assert_close((losses[0] - losses[1]) / (2 * h), slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_gradient_checkpointing_recomputes_and_gives_the_same_gradients(make_unet, block_type):
    unet = make_unet(block_type=block_type, num_class_embeds=2).double().train()
    runs = []
    blocks = [m for m in unet.modules() if isinstance(m, (ResnetBlock, ConvNextBlock, AttentionBlock))]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, inputs: runs.append(module))
    plain = gradients(unet)
    assert sorted(map(id, runs)) == sorted(map(id, blocks))
    runs.clear()
    unet.enable_gradient_checkpointing()
    checkpointed = gradients(unet)
    assert sorted(map(id, runs)) == sorted(2 * [id(block) for block in blocks])
    for name in plain:
        torch.testing.assert_close(checkpointed[name], plain[name], rtol=1e-10, atol=1e-12, msg=name)


# Memory format and compilation


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_channels_last_stays_channels_last(make_unet, block_type):
    config = {
        "block_type": block_type,
        "block_out_channels": (8, 8, 16),
        "attention_types": ("linear", None, "full"),
    }
    plain, last = make_unet(**config), make_unet(**config).to(memory_format=torch.channels_last)
    strayed = {"plain": [], "last": []}

    def watch(key, name):
        def hook(module, inputs, output):
            if output.dim() == 4 and not output.is_contiguous(memory_format=torch.channels_last):
                strayed[key].append(name)

        return hook

    for key, unet in (("plain", plain), ("last", last)):
        for name, module in unet.named_modules():
            if name:
                module.register_forward_hook(watch(key, name))
    sample = noise(2, 1, 21, 18)
    with torch.no_grad():
        torch.testing.assert_close(last(sample, 5).sample, plain(sample, 5).sample, rtol=1e-4, atol=1e-5)
    assert strayed["last"] == []
    assert len(strayed["plain"]) > 10  # so the hooks can tell


@pytest.mark.parametrize("block_type", ["resnet", pytest.param("convnext", marks=pytest.mark.slow)])
def test_compiles_into_one_graph(make_unet, block_type):
    unet = make_unet(block_type=block_type, num_class_embeds=2)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(unet, fullgraph=True, backend=backend, dynamic=False)
    sample, timesteps, labels = noise(2, 1, 17, 20), torch.tensor([3, 200]), torch.tensor([0, 2])
    with torch.no_grad():
        actual = compiled(sample, timesteps, labels).sample
        torch.testing.assert_close(actual, unet(sample, timesteps, labels).sample)
    assert len(graphs) == 1


# Saving


@pytest.mark.slow
def test_a_fresh_process_loads_it_and_gives_the_same_output_to_the_bit(make_unet, run_fresh, tmp_path):
    unet = make_unet(
        num_class_embeds=2, class_names=("glioma_tumor", "no_tumor"), attention_types=(None, "full")
    )
    unet.save_pretrained(tmp_path / "unet")
    assert sorted(path.name for path in (tmp_path / "unet").iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    saved = load_file(tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == unet.state_dict().keys()
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert config["attention_types"] == [None, "full"]
    assert config["class_names"] == ["glioma_tumor", "no_tumor"]

    inputs = (noise(2, 1, 17, 20), torch.tensor([3, 200]), torch.tensor([0, 1]))
    torch.save(inputs, tmp_path / "inputs.pt")
    run_fresh(
        "import sys, torch\n"
        "from mri_ddpm import AttentionUNet2DModel\n"
        "unet = AttentionUNet2DModel.from_pretrained('unet', use_safetensors=True)\n"
        "assert not unet.training\n"
        "with torch.no_grad():\n"
        "    torch.save(unet(*torch.load('inputs.pt')).sample, 'output.pt')\n"
    )
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "output.pt"), unet(*inputs).sample)


# Refusals


@pytest.mark.parametrize("size", [(15, 16), (16, 15), (8, 64)])
def test_refuses_a_size_under_16(make_unet, size):
    with pytest.raises(ValueError, match=rf"\({size[0]}, {size[1]}\) pixels is too small; the least is 16"):
        make_unet()(noise(1, 1, *size), 0)


def test_refuses_class_labels_on_an_unconditional_model(make_unet):
    with pytest.raises(ValueError, match="trained without classes"):
        make_unet()(noise(1, 1, 16, 16), 0, class_labels=torch.tensor([0]))


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"block_out_channels": (8, 18)}, "block_out_channels 18 is not a multiple of norm_num_groups 4"),
        ({"attention_head_dim": 3}, "block_out_channels 8 is not a multiple of attention_head_dim 3"),
        ({"norm_num_groups": 0}, "not a multiple of norm_num_groups 0"),
        ({"attention_types": ("full",)}, "attention_types has 1 entries for 2 levels"),
        ({"attention_types": ("full", "flash")}, "attention type 'flash' is unknown"),
        (
            {"block_type": "transformer"},
            "block_type 'transformer' is unknown; take one of 'resnet', 'convnext'",
        ),
        ({"block_out_channels": (), "attention_types": ()}, "block_out_channels is empty"),
    ],
)
def test_refuses_an_architecture_whose_numbers_do_not_fit(make_unet, config, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_unet(**config)


# bfloat16


def test_the_gradient_of_the_scaled_norm_is_that_of_its_forward():
    """Against finite differences in float64."""
    torch.manual_seed(0)
    shapes = ((3, 8, 4, 5), (8,), (8,), (3, 8), (3, 8))
    inputs = [(torch.randn(shape, dtype=torch.float64) + 1).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(lambda *tensors: ScaledGroupNorm.apply(*tensors, 4, 1e-5), inputs)


@pytest.mark.parametrize("channels", [64, 128])
def test_the_scaled_norm_in_bf16_is_as_exact_as_torchs_own(channels):
    """Both against float64, on inputs whose mean is as large as their spread; forward to the bit."""
    torch.manual_seed(0)
    norm = nn.GroupNorm(8, channels)
    x = torch.randn(4, channels, 22, 22).add(1).to(torch.bfloat16, memory_format=torch.channels_last)
    scale_shift, grad = torch.randn(4, 2 * channels).bfloat16(), torch.randn_like(x)

    def own(x, scale_shift):
        return norm_scale_shift(norm, x, scale_shift)

    def torchs(x, scale_shift):
        scale, shift = scale_shift[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift, norm(x), 1 + scale)

    def results(function, dtype):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, scale_shift)]
        norm.to(torch.float64 if dtype == torch.float64 else torch.float32)
        output = function(*inputs)
        return output, *torch.autograd.grad(output, [*inputs, norm.weight, norm.bias], grad.to(dtype))

    exact = results(torchs, torch.float64)
    ours, theirs = (results(function, torch.bfloat16) for function in (own, torchs))
    assert torch.equal(ours[0], theirs[0])
    for true, own_one, torchs_one in zip(exact, ours, theirs, strict=True):
        errors = [(found - true).norm() / true.norm() for found in (own_one, torchs_one)]
        assert errors[0] < max(2 * errors[1], 2**-8)  # the spacing of bf16


@pytest.mark.parametrize("block_type", ["resnet", "convnext"])
def test_gradients_in_bf16_are_those_of_float32_to_its_rounding(make_unet, block_type):
    unet = make_unet(block_type=block_type)
    x, t = noise(2, 1, 16, 16), torch.tensor([3, 200])

    def gradient(enabled):
        unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            unet(x, t).sample.float().square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])

    full, half = gradient(False), gradient(True)
    assert (half - full).norm() < 0.05 * full.norm()
