"""The U-Net's blocks: attention, residual and ConvNeXt blocks, up- and downsampling."""

import math

import pytest
import torch
from conftest import noise, randomise

from mri_ddpm import AttentionUNet2DModel
from mri_ddpm.models.modeling_attention_unet import (
    AttentionBlock,
    ConvNextBlock,
    ResnetBlock,
)


@pytest.mark.parametrize("block_class", [ResnetBlock, ConvNextBlock])
def test_a_fresh_block_is_the_identity_or_its_shortcut(block_class):
    x, embedding = noise(2, 8, 9, 7), noise(2, 32, seed=1)
    same, wider = block_class(8, 8, 32, 4, 0.0), block_class(8, 16, 32, 4, 0.0)
    with torch.no_grad():
        assert torch.equal(same(x, embedding), x)
        torch.testing.assert_close(wider(x, embedding), wider.shortcut(x), rtol=0, atol=0)
        assert not torch.allclose(randomise(same)(x, embedding), x)


@pytest.mark.parametrize("kind", ["linear", "full"])
def test_fresh_attention_is_the_identity(kind):
    block, x = AttentionBlock(kind, 8, 4, 4), noise(2, 8, 5, 3)
    with torch.no_grad():
        assert torch.equal(block(x), x)
        assert not torch.allclose(randomise(block)(x), x)


def test_a_fresh_network_predicts_zero():
    unet = AttentionUNet2DModel(block_out_channels=(8,), attention_types=("full",), attention_head_dim=8)
    assert torch.equal(unet(noise(1, 1, 16, 16), 3).sample, torch.zeros(1, 1, 16, 16))


def test_resnet_block_against_its_formula_written_out():
    block = randomise(ResnetBlock(4, 8, 6, 2, 0.0)).double()
    x, embedding = noise(2, 4, 5, 6, dtype=torch.float64), noise(2, 6, seed=1, dtype=torch.float64)

    def norm(x, module):  # two groups
        groups = x.reshape(2, 2, -1)
        variance = groups.var(-1, unbiased=False, keepdim=True)
        unit = ((groups - groups.mean(-1, keepdim=True)) / (variance + module.eps).sqrt()).reshape(x.shape)
        return unit * module.weight[None, :, None, None] + module.bias[None, :, None, None]

    def silu(x):
        return x / (1 + torch.exp(-x))

    with torch.no_grad():
        scale, shift = (embedding @ block.embed.weight.T + block.embed.bias).reshape(2, 2, 8, 1, 1).unbind(1)
        h = block.conv1(silu(norm(x, block.norm1)))
        h = block.conv2(silu(norm(h, block.norm2) * (1 + scale) + shift))
        torch.testing.assert_close(block(x, embedding), block.shortcut(x) + h, rtol=1e-10, atol=1e-10)


def attention_reference(block: AttentionBlock, x: torch.Tensor, kind: str) -> torch.Tensor:
    """Attention token by token and head by head; the linear one as the weights of Shen et al.'s equation 4."""
    batch, channels, height, width = x.shape
    d, n = block.head_dim, height * width
    mean = x.reshape(batch, 2, -1).mean(-1, keepdim=True)  # two groups
    std = (x.reshape(batch, 2, -1).var(-1, unbiased=False, keepdim=True) + block.norm.eps).sqrt()
    normed = ((x.reshape(batch, 2, -1) - mean) / std).reshape(batch, channels, n)
    tokens = normed * block.norm.weight[:, None] + block.norm.bias[:, None]
    w_q, w_k, w_v = block.to_qkv.weight.chunk(3)
    y = torch.zeros(batch, channels, n, dtype=x.dtype)
    for b in range(batch):
        for head in range(channels // d):
            rows = slice(head * d, (head + 1) * d)
            q, k, v = w_q[rows] @ tokens[b], w_k[rows] @ tokens[b], w_v[rows] @ tokens[b]  # (d, N) each
            for i in range(n):
                if kind == "full":
                    scores = torch.stack([(q[:, i] * k[:, j]).sum() / math.sqrt(d) for j in range(n)])
                    weights = scores.exp() / scores.exp().sum()
                else:
                    q_soft = q[:, i].exp() / q[:, i].exp().sum()
                    k_soft = k.exp() / k.exp().sum(dim=1, keepdim=True)
                    weights = torch.stack([(q_soft * k_soft[:, j]).sum() for j in range(n)])
                for j in range(n):
                    y[b, rows, i] += weights[j] * v[:, j]
        y[b] = block.to_out.weight @ y[b] + block.to_out.bias[:, None]
    return x + y.reshape(x.shape)


@pytest.mark.parametrize("kind", ["linear", "full"])
def test_attention_against_a_naive_loop_in_float64(kind):
    block, x = randomise(AttentionBlock(kind, 8, 4, 2)).double(), noise(2, 8, 3, 4, dtype=torch.float64)
    with torch.no_grad():
        expected = attention_reference(block, x, kind)
        assert (expected - x).abs().max() > 0.1
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
        other = attention_reference(block, x, {"linear": "full", "full": "linear"}[kind])
    assert (expected - other).abs().max() > 0.1


def test_any_condition_is_dropped_to_its_null(make_unet):
    """The classes' null has a name; a map of pixels or a number becomes 0."""
    unet, dropped = make_unet(num_class_embeds=3), torch.tensor([True, False])
    batch = {"pixel_values": noise(2, 1, 16, 16), "class_labels": torch.tensor([1, 2])}
    conditioning = unet.conditioning_of(batch) | {
        "mask": noise(2, 1, 16, 16),
        "age": torch.tensor([70.0, 71.0]),
    }
    found = unet.drop_conditioning(conditioning, dict.fromkeys(conditioning, dropped))
    assert found.keys() == conditioning.keys()
    assert found["class_labels"].tolist() == [3, 2]
    assert found["age"].tolist() == [0.0, 71.0]
    assert not found["mask"][0].any()
    assert torch.equal(found["mask"][1], conditioning["mask"][1])
    assert make_unet().conditioning_of(batch) == {}


def test_dropout_acts_in_training_only(make_unet):
    unet, sample = make_unet(dropout=0.5), noise(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(unet(sample, 3).sample, unet(sample, 3).sample)
        unet.train()
        assert not torch.equal(unet(sample, 3).sample, unet(sample, 3).sample)
