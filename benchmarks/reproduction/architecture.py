"""Figure 4: the U-Net drawn from the module itself, by what its layers give out when a sample goes through.

Nothing is computed for it: the network lives on PyTorch's "meta" device, which knows shapes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from matplotlib.axes import Axes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mri_ddpm.config import TrainingConfig
from mri_ddpm.models.modeling_attention_unet import AttentionBlock, ConvNextBlock, ResnetBlock
from mri_ddpm.training.preparation import build_unet

BLOCK_NAMES = {ResnetBlock: "ResNet", ConvNextBlock: "ConvNeXt"}
COLOURS = {"convolution": "#d9d9d9", "blocks": "#9ecae1", "middle": "#fdae6b"}


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

    def note_shape(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        shapes[module] = tuple(output.shape[1:])

    for module in unet.modules():
        if module is not unet:
            module.register_forward_hook(note_shape)
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
    counted: list[list] = []
    for layer in layers:
        if isinstance(layer, AttentionBlock):
            name = f"{layer.kind} attention"
        elif isinstance(layer, nn.Conv2d):
            name = f"{layer.kernel_size[0]}×{layer.kernel_size[1]} convolution"
        else:
            name = BLOCK_NAMES.get(type(layer))  # None of the identity where there is no attention
        if counted and counted[-1][0] == name:
            counted[-1][1] += 1
        elif name:
            counted.append([name, 1])
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in counted)


def draw_architecture(axes: Axes, architecture: Architecture, title: str) -> None:
    """Draw the U: down on the left, up on the right, skip connections across, each box with its layers and shape."""
    levels = len(architecture.down)
    axes.set(xlim=(0, 10), ylim=(-levels - 0.9, 1.5))
    axes.axis("off")
    axes.set_title(
        f"{title}\n{architecture.parameters / 1e6:.2f} M parameters, {architecture.gmac:.3g} GMAC a sample",
        fontsize=9,
    )
    box(axes, 2.2, 1, architecture.conv_in, "convolution")
    box(axes, 7.8, 1, architecture.conv_out, "convolution")
    for i, (down, up) in enumerate(zip(architecture.down, reversed(architecture.up), strict=True)):
        box(axes, 2.2, -i, down, "blocks")
        box(axes, 7.8, -i, up, "blocks")
        skip = {"arrowstyle": "->", "linestyle": "--", "color": "gray"}
        axes.annotate("", (5.9, -i), (4.1, -i), arrowprops=skip)
        arrow(axes, (2.2, -i + 0.68), (2.2, -i + 0.36))
        arrow(axes, (7.8, -i + 0.36), (7.8, -i + 0.68))
    box(axes, 5, -levels - 0.2, architecture.middle, "middle")
    arrow(axes, (2.2, -levels + 0.62), (3.2, -levels + 0.1))
    arrow(axes, (6.8, -levels + 0.1), (7.8, -levels + 0.62))


def box(axes: Axes, x: float, y: float, stage: Stage, kind: str) -> None:
    """One stage: its layers, and under them channels × height × width."""
    words = f"{stage.layers}\n{' × '.join(map(str, stage.shape))}"
    look = {"boxstyle": "round,pad=0.35", "facecolor": COLOURS[kind], "edgecolor": "none"}
    axes.text(x, y, words, ha="center", va="center", fontsize=6, bbox=look)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """From one stage to the next."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "black"})
