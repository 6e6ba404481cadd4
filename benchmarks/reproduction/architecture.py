"""Figure 4: the U-Net shown from the module itself, by what its layers give out when a sample goes through.

Nothing is computed for it: the network lives on PyTorch's "meta" device, which knows shapes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from matplotlib.axes import Axes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mri_ddpm.config import TrainingConfig
from mri_ddpm.models.modeling_attention_unet import AttentionBlock, ConvNextBlock, ResnetBlock
from mri_ddpm.training.state import build_unet

BLOCK_NAMES = {ResnetBlock: "ResNet", ConvNextBlock: "ConvNeXt"}
CONVOLUTION, BLOCKS, MIDDLE = "#d9d9d9", "#9ecae1", "#fdae6b"  # colours of the boxes


@dataclass(frozen=True)
class Stage:
    """Layers of one size: what they are, and the channels, height and width of what they give out."""

    layers: str
    shape: tuple[int, int, int]


@dataclass(frozen=True)
class Architecture:
    """A network as it runs: its stages from the first convolution to the last, its parameters and its cost.

    gmac: of one forward pass of one sample, 10^9 multiplications with addition.
    """

    conv_in: Stage
    down: list[Stage]
    middle: Stage
    up: list[Stage]
    conv_out: Stage
    parameters: int
    gmac: float


def read_architecture(config: TrainingConfig, class_names: Sequence[str]) -> Architecture:
    """Send one sample through the network of a configuration and write down what each of its stages gives out."""
    with torch.device("meta"):
        unet = build_unet(config, tuple(class_names)).eval()
        sample, timestep = torch.empty(1, 1, config.resolution, config.resolution), torch.zeros(1)
    shapes: dict[nn.Module, tuple] = {}
    for module in list(unet.modules())[1:]:  # the first is the U-Net itself
        module.register_forward_hook(lambda m, _, output: shapes.update({m: tuple(output.shape[1:])}))
    with torch.no_grad(), FlopCounterMode(display=False) as flops:
        unet(sample, timestep)

    def stage(*layers: nn.Module) -> Stage:
        return Stage(words_of(layers), shapes[layers[-1]])

    return Architecture(
        conv_in=stage(unet.conv_in),
        down=[stage(*level["blocks"], level["attention"]) for level in unet.down],
        middle=stage(unet.mid_block1, unet.mid_attention, unet.mid_block2),
        up=[stage(*level["blocks"], level["attention"]) for level in unet.up],
        conv_out=stage(unet.last_block, unet.conv_out),
        parameters=sum(p.numel() for p in unet.parameters()),
        gmac=flops.get_total_flops() / 2e9,
    )


def words_of(layers: Sequence[nn.Module]) -> str:
    """Name layers in their order, equal neighbours counted: "2 ResNet, linear attention"."""

    def name(layer: nn.Module) -> str | None:
        if isinstance(layer, AttentionBlock):
            return f"{layer.kind} attention"
        if isinstance(layer, nn.Conv2d):
            return f"{layer.kernel_size[0]}×{layer.kernel_size[1]} convolution"
        return BLOCK_NAMES.get(type(layer))  # None of the identity where there is no attention

    counted = [(name, len(list(group))) for name, group in groupby(map(name, layers)) if name]
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counted)


def draw_architecture(axes: Axes, architecture: Architecture, title: str) -> None:
    """Show the U: down on the left, up on the right, skip connections across, each box with its layers and shape."""

    def box(x: float, y: float, stage: Stage, colour: str) -> None:
        words = f"{stage.layers}\n{' × '.join(map(str, stage.shape))}"
        look = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "none"}
        axes.text(x, y, words, ha="center", va="center", fontsize=6, bbox=look)

    def arrow(start: tuple[float, float], end: tuple[float, float], **look) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "->", **look})

    levels = len(architecture.down)
    size = f"{architecture.parameters / 1e6:.2f} M parameters, {architecture.gmac:.3g} GMAC a sample"
    axes.set(xlim=(0, 10), ylim=(-levels - 0.9, 1.5))
    axes.set_title(f"{title}\n{size}", fontsize=9)
    box(2.2, 1, architecture.conv_in, CONVOLUTION)
    box(7.8, 1, architecture.conv_out, CONVOLUTION)
    for i, (down, up) in enumerate(zip(architecture.down, reversed(architecture.up), strict=True)):
        box(2.2, -i, down, BLOCKS)
        box(7.8, -i, up, BLOCKS)
        arrow((4.1, -i), (5.9, -i), linestyle="--", color="gray")
        arrow((2.2, -i + 0.68), (2.2, -i + 0.36))
        arrow((7.8, -i + 0.36), (7.8, -i + 0.68))
    box(5, -levels - 0.2, architecture.middle, MIDDLE)
    arrow((2.2, -levels + 0.62), (3.2, -levels + 0.1))
    arrow((6.8, -levels + 0.1), (7.8, -levels + 0.62))
