"""What the benchmarks share: our networks, other libraries' as wide, and what is done to all of them alike.

    pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch monai

brings the peers without torchvision, which `pip install -e ".[benchmark]"` brings too. One that is not
installed is left out, with a sentence. diffusers' and MONAI's have attention where diffusers' tutorial "Train
a diffusion model" puts it, at the last level but one and in the middle; lucidrains' has its own defaults.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import sys
import time
import types
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel

DIFFUSERS, LUCIDRAINS, MONAI = "diffusers", "denoising-diffusion-pytorch", "monai"  # as PyPI has them
LINEAR, DEFAULT = "ours, linear attention", "ours, default attention"  # the reference recipe's, and ours
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def our_unet(name: str, resolution: int, block_out_channels: list[int]) -> AttentionUNet2DModel:
    """`AttentionUNet2DModel` without classes, its attention by `name`: LINEAR or DEFAULT."""
    levels = len(block_out_channels)
    attention_types = {LINEAR: ["linear"] * levels, DEFAULT: [*[None] * levels, "linear", "full"][-levels:]}
    return AttentionUNet2DModel(
        resolution,
        block_out_channels=block_out_channels,
        attention_types=attention_types[name],
        attention_head_dim=math.gcd(32, *block_out_channels),
    )


def diffusers_unet(resolution: int, block_out_channels: list[int]) -> UNet2DModel:
    attention = ["Attn" if i == len(block_out_channels) - 2 else "" for i in range(len(block_out_channels))]
    return UNet2DModel(
        resolution,
        in_channels=1,
        out_channels=1,
        down_block_types=[f"{name}DownBlock2D" for name in attention],
        up_block_types=[f"{name}UpBlock2D" for name in reversed(attention)],
        block_out_channels=block_out_channels,
        layers_per_block=2,
        norm_num_groups=math.gcd(32, *block_out_channels),
    )


def lucidrains_unet(library: types.ModuleType, block_out_channels: list[int], device: str) -> nn.Module:
    """`Unet` of the module that `import_lucidrains` returns; all channels are multiples of the first."""
    first = block_out_channels[0]
    multiples = [channels // first for channels in block_out_channels]
    flash = device == "cpu"  # as in its README, but on GPUs after the A100 that refuses float32
    return library.Unet(dim=first, dim_mults=multiples, channels=1, flash_attn=flash)


def monai_unet(block_out_channels: list[int]) -> nn.Module | None:
    """MONAI's `DiffusionModelUNet`; ``None``, with a sentence, when MONAI cannot be imported."""
    groups, levels = math.gcd(32, *block_out_channels), len(block_out_channels)
    try:
        networks = importlib.import_module("monai.networks.nets")
        return networks.DiffusionModelUNet(
            spatial_dims=2,
            in_channels=1,
            out_channels=1,
            num_res_blocks=2,
            channels=block_out_channels,
            attention_levels=[i == levels - 2 for i in range(levels)],
            norm_num_groups=groups,
            num_head_channels=groups,  # 32 at the usual widths, as ours
            use_flash_attention=True,  # torch's own attention
        )
    except ImportError as error:  # of einops too, which it looks for as it builds attention
        print(f"{MONAI} is not timed: {error}; run 'pip install --no-deps monai einops'.", file=sys.stderr)
        return None


def import_lucidrains() -> types.ModuleType | None:
    """The module with `Unet` and `GaussianDiffusion`; ``None``, with a sentence, when it cannot be imported.

    Only its trainer, which is not timed, uses torchvision, which we do not need: where that is not installed
    an empty module stands in for it while the import lasts.
    """
    absent = importlib.util.find_spec("torchvision") is None
    if absent:
        sys.modules["torchvision"] = types.ModuleType("torchvision")
        sys.modules["torchvision"].transforms = sys.modules["torchvision"].utils = None
    try:
        library = importlib.import_module("denoising_diffusion_pytorch.denoising_diffusion_pytorch")
    except ImportError as error:
        install = "pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch"
        print(f"{LUCIDRAINS} is not timed: {error}; run '{install}'.", file=sys.stderr)
        return None
    finally:
        if absent:
            del sys.modules["torchvision"]
    library.tqdm = functools.partial(library.tqdm, disable=True)
    return library


def randomize_zeros(network: nn.Module) -> None:
    """Randomize parameters that start as zeros: no training leaves such, and a GPU is faster with zeros."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)


def count_flops() -> FlopCounterMode:
    """Counts what runs inside ``with``; `get_total_flops()` is then twice the multiply-adds."""
    forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    attention = {  # by shapes; torch itself counts a GPU's alone
        forward: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        backward: lambda grad, q, k, v, *_, **__: 2 * sdpa_flop_count(q, k, v),  # less what it does again
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def seconds_of(work: Callable[[], None], device: str, times: int = 1) -> float:
    """Seconds of one of `times` calls in a row."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - start) / times


def least_seconds(options: Iterable, seconds: Callable[..., float], rounds: int) -> dict:
    """The least of `rounds` calls of ``seconds(option)`` for each, all in turn before any is repeated."""
    tried = {option: [] for option in options}
    for _ in range(rounds):
        for option, times in tried.items():
            times.append(seconds(option))
    return {option: min(times) for option, times in tried.items()}


def make_parser(doc: str, batch_size: int, output: str) -> argparse.ArgumentParser:
    """A parser with the flags that these benchmarks share, and their defaults."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = functools.partial(parser.add_argument, type=int)
    add("--resolution", default=44, help="pixels a side (44)")
    add("--block_out_channels", nargs="+", default=[64, 128, 256], help="channels of each level (64 128 256)")
    add("--batch_size", default=batch_size, help=f"images at once ({batch_size})")
    add("--threads", help="threads of torch (its own choice)")
    add("--device", type=str, choices=("cpu", "cuda"), default="cpu", help="where to work (cpu)")
    add("--output", type=Path, default=Path(output), help=f"the JSON file ({output})")
    return parser


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what the networks, this machine or the disk cannot take, before minutes are spent."""
    first, *others = args.block_out_channels
    if not others or first < 8 or first % 8 or any(c < 1 or c % first for c in others):
        parser.error("--block_out_channels are two or more multiples of the first, itself a multiple of 8.")
    if args.resolution < 16 or args.resolution % 2 ** len(others):
        parser.error(f"--resolution is under 16 or no multiple of {2 ** len(others)}, which the peers want.")
    if args.threads is not None and args.threads < 1:
        parser.error(f"--threads is {args.threads}; take 1 or more.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU.")
    if args.output.is_dir() or not args.output.resolve().parent.is_dir():
        parser.error(f"--output {args.output} is no file in a folder that exists.")


def describe_machine(device: str, *packages: str) -> dict:
    """Processor, cores, threads, GPU, and the versions of torch and of `packages` (``None`` when absent)."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    versions = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        **{name: versions.get(name) for name in ("torch", *packages)},
    }
