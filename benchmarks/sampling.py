"""How many images a second does each scheduler draw, beside diffusers' and lucidrains' pipelines as wide?

Times all of them in turn in one run, with random weights and no classes, and prints images/s and their ratio
to the peers' whole chain of 300 steps.

    pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch
    python benchmarks/sampling.py --output sampling.json

A chain's time is its network calls', so of a longer one --timed_steps steps are timed and scaled to all its
calls: "extrapolated" in the JSON, a * in the table. diffusers' UNet2DModel has attention where the tutorial
"Train a diffusion model" puts it: at the last level but one, and in the middle. Peers get the faster of two
memory formats. Equal widths are not equal work, so each network's multiply-adds (GMAC) are printed.
"""

import argparse
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, UNet2DModel
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.config import MRIDIFF, TrainingConfig
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.sampling import SCHEDULERS, set_scheduler

T = 300  # timesteps of every chain
SOLVERS = [name for name in SCHEDULERS if name != "ddpm"]
OUR_CHAINS = [("ddpm", T), *((solver, steps) for solver in SOLVERS for steps in (10, 20, 50))]
PEER_CHAINS = [("ddpm", T), ("ddim", 50)]
DIFFUSERS, LUCIDRAINS = "diffusers", "denoising-diffusion-pytorch"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass
class Family:
    """A network and what draws with it: ``sampler(solver, steps)`` makes a ``sample(n, generator)``."""

    network: nn.Module
    sampler: Callable[[str, int], Callable]
    chains: list[tuple[str, int]]
    bfloat16: bool = False
    mode: str = "channels_last"  # which our pipeline sets itself


def ours(args: argparse.Namespace, attention_types: list[str | None], recipe: dict) -> Family:
    widths, names = args.block_out_channels, ("beta_start", "beta_end", "prediction_type")
    noise_scheduler = make_noise_scheduler(T, **{name: recipe[name] for name in names})
    network = {"attention_types": attention_types, "attention_head_dim": math.gcd(32, *widths)}
    unet = AttentionUNet2DModel(args.resolution, block_out_channels=widths, **network)

    def sampler(solver, steps):
        pipeline = MRIDDPMPipeline(unet, noise_scheduler)
        pipeline.set_progress_bar_config(disable=True)
        set_scheduler(pipeline, solver)
        return lambda n, generator: pipeline(None, n, steps, generator=generator, output_type="pt")

    return Family(unet, sampler, OUR_CHAINS)


def of_diffusers(args: argparse.Namespace) -> Family:
    widths = args.block_out_channels
    attention = ["Attn" if i == len(widths) - 2 else "" for i in range(len(widths))]
    unet = UNet2DModel(
        args.resolution,
        in_channels=1,
        out_channels=1,
        down_block_types=[f"{name}DownBlock2D" for name in attention],
        up_block_types=[f"{name}UpBlock2D" for name in reversed(attention)],
        block_out_channels=widths,
        layers_per_block=2,
        norm_num_groups=math.gcd(32, *widths),
    )

    def sampler(solver, steps):
        pipeline_class = {"ddpm": DDPMPipeline, "ddim": DDIMPipeline}[solver]
        pipeline = pipeline_class(unet, DDPMScheduler(T))
        pipeline.set_progress_bar_config(disable=True)
        return lambda n, generator: pipeline(n, generator, num_inference_steps=steps, output_type="pt")

    return Family(unet, sampler, PEER_CHAINS)


def of_lucidrains(args: argparse.Namespace, library: types.ModuleType) -> Family:
    first = args.block_out_channels[0]
    multiples = [channels // first for channels in args.block_out_channels]
    flash = args.device == "cpu"  # as in its README, but on GPUs after the A100 that refuses float32
    unet = library.Unet(dim=first, dim_mults=multiples, channels=1, flash_attn=flash)

    def sampler(solver, steps):
        chain = {"timesteps": steps} if solver == "ddpm" else {"timesteps": T, "sampling_timesteps": steps}
        diffusion = library.GaussianDiffusion(unet, image_size=args.resolution, **chain).to(args.device)
        return lambda n, generator: diffusion.sample(n)  # it takes no generator, and draws on the device

    return Family(unet, sampler, PEER_CHAINS)


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


def make_families(args: argparse.Namespace) -> dict[str, Family]:
    """Every network in float32, and on a GPU each once more in bfloat16 (autocast) and compiled."""
    families, levels, library = {}, len(args.block_out_channels), import_lucidrains()
    default_attention = [*[None] * levels, "linear", "full"][-levels:]
    for suffix in ("", ", bfloat16 and compiled") if args.device == "cuda" else ("",):
        made = {
            "ours, linear attention": ours(args, ["linear"] * levels, MRIDIFF),
            "ours, default attention": ours(args, default_attention, vars(TrainingConfig())),
            DIFFUSERS: of_diffusers(args),
        }
        if library:
            made[LUCIDRAINS] = of_lucidrains(args, library)
        for name, family in made.items():
            families[name + suffix], family.bfloat16 = family, bool(suffix)
            family.network.to(args.device).eval()
            for parameter in family.network.parameters():
                if not parameter.any():  # no training leaves such, and a GPU is faster with zeros
                    nn.init.normal_(parameter, std=0.02)
    return families


def draw(family: Family, sample: Callable, args: argparse.Namespace) -> float:
    """Draw all images in batches; returns the seconds. The generator is on the device: no noise is copied."""
    generator = torch.Generator(args.device).manual_seed(0)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=family.bfloat16):
        for _ in range(args.num_images // args.batch_size):
            sample(args.batch_size, generator)
    wait()
    return time.perf_counter() - start


@torch.no_grad()
def inspect_family(family: Family, args: argparse.Namespace) -> tuple[dict, dict]:
    """The network's size, and the calls of each chain, whole and as timed, counted on an idle network."""
    image, t = torch.zeros(1, 1, args.resolution, args.resolution), torch.zeros(1, dtype=torch.long)
    with (
        FlopCounterMode(display=False) as flops,
        sdpa_kernel(SDPBackend.MATH),
    ):  # no others are counted on a CPU
        answer = family.network(image.to(args.device), t.to(args.device))
    parameters = sum(parameter.numel() for parameter in family.network.parameters())
    calls = {}
    for solver, steps in family.chains:
        for n in (steps, min(steps, args.timed_steps)):
            with mock.patch.object(family.network, "forward", return_value=answer) as forward:
                family.sampler(solver, n)(1, torch.Generator(args.device))
            calls[solver, n] = forward.call_count
    return {"parameters": parameters, "gmac_per_image": flops.get_total_flops() / 2e9}, calls


def choose_format(family: Family, args: argparse.Namespace) -> None:
    """Leave a peer's network in the memory format in which it is faster here."""
    image = torch.randn(args.batch_size, 1, args.resolution, args.resolution, device=args.device)
    t, seconds = torch.full((args.batch_size,), T // 2, device=args.device), {name: [] for name in FORMATS}
    for name in [*FORMATS] * 3:
        family.network.to(memory_format=FORMATS[name])
        seconds[name].append(min(draw(family, lambda *_: family.network(image, t), args) for _ in range(2)))
    family.mode = min(FORMATS, key=lambda name: min(seconds[name]))
    family.network.to(memory_format=FORMATS[family.mode])


def time_chains(families: dict[str, Family], args: argparse.Namespace) -> dict[tuple, list[float]]:
    """Seconds of each ``(family, solver, timed steps)``, every one in turn before any is repeated."""
    samples = {}
    for name, family in families.items():
        for solver, steps in family.chains:
            timed = min(steps, args.timed_steps)
            samples[name, solver, timed] = family.sampler(solver, timed)
            draw(family, family.sampler(solver, min(2, timed)), args)  # warm up
    seconds = {key: [] for key in samples}
    for repeat in range(args.repeats):
        for key, sample in samples.items():
            seconds[key].append(draw(families[key[0]], sample, args))
        total = sum(times[-1] for times in seconds.values())
        print(f"repeat {repeat + 1} of {args.repeats}: {total:.0f} s", file=sys.stderr, flush=True)
    return seconds


def make_rows(families: dict, calls: dict, seconds: dict, args: argparse.Namespace) -> list[dict]:
    """A row for each whole chain: its speed by the median time, and the ratio to the peers' 300 steps."""
    rows, images = {}, args.num_images
    for name, solver, steps in [(n, *chain) for n, family in families.items() for chain in family.chains]:
        timed = min(steps, args.timed_steps)
        scale = calls[name][solver, steps] / calls[name][solver, timed]
        whole = [scale * s for s in seconds[name, solver, timed]]
        rows[name, solver, steps] = {
            "sampler": f"{name}: {solver}",
            "steps": steps,
            "network_calls_per_image": calls[name][solver, steps],
            "timed_steps": timed,
            "extrapolated": timed < steps,
            "seconds_per_step": statistics.median(whole) / steps / (images / args.batch_size),  # of a batch
            "images_per_second": images / statistics.median(whole),
            "images_per_second_min": images / max(whole),
            "images_per_second_max": images / min(whole),
        }
    for row in rows.values():
        for peer in (DIFFUSERS, LUCIDRAINS):
            base = rows.get((peer, "ddpm", T))
            row[f"ratio_to_{peer}"] = base and row["images_per_second"] / base["images_per_second"]
    return list(rows.values())


def as_table(rows: list[dict]) -> str:
    """The rows in Markdown; * marks what is scaled up from fewer steps."""
    peers = f"to {DIFFUSERS} {T} | to {LUCIDRAINS} {T}"
    lines = [f"| sampler | steps | network calls | images/s (min to max) | {peers} |"]
    lines.append("| --- |" + " ---: |" * 5)
    for row in rows:
        speed, low, high = (f"{row[f'images_per_second{end}']:.3g}" for end in ("", "_min", "_max"))
        ratios = [row[f"ratio_to_{peer}"] for peer in (DIFFUSERS, LUCIDRAINS)]
        cells = [row["sampler"], row["steps"], row["network_calls_per_image"]]
        cells.append(f"{speed}{'*' if row['extrapolated'] else ''} ({low} to {high})".replace("*", r"\*"))
        cells += ["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def describe_machine(args: argparse.Namespace) -> dict:
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    versions = {found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        **{name: versions.get(name) for name in ("torch", DIFFUSERS, LUCIDRAINS)},
    }


def parse_args() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = functools.partial(parser.add_argument, type=int)
    add("--resolution", default=44, help="pixels a side (44)")
    add("--block_out_channels", nargs="+", default=[64, 128, 256], help="channels of each level (64 128 256)")
    add("--batch_size", default=16, help="images at once (16)")
    add("--num_images", help="images of one timing (one batch)")
    add("--repeats", default=3, help="timings of each, of which the median counts (3)")
    add("--timed_steps", default=10, help="steps timed of a longer chain (10)")
    parser.add_argument("--whole_chains", action="store_true", help="time every step, which takes hours")
    add("--threads", help="threads of torch (its own choice)")
    add("--device", type=str, choices=("cpu", "cuda"), default="cpu", help="where to draw (cpu)")
    add("--output", type=Path, default=Path("sampling.json"), help="the JSON file (sampling.json)")
    args = parser.parse_args()
    args.num_images = args.num_images or args.batch_size
    args.timed_steps = T if args.whole_chains else args.timed_steps
    first, *others = args.block_out_channels
    if min(args.batch_size, args.repeats, args.timed_steps) < 1 or args.num_images % args.batch_size:
        parser.error("--num_images is no multiple of --batch_size, or a number is under 1.")
    if not others or first < 8 or first % 8 or any(c % first for c in others):
        parser.error("--block_out_channels are two or more multiples of the first, itself a multiple of 8.")
    if args.resolution < 16 or args.resolution % 2 ** len(others):
        parser.error(f"--resolution is under 16 or no multiple of {2 ** len(others)}, which the peers want.")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no GPU.")
    return args


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    families, networks, calls = make_families(args), {}, {}
    for name, family in families.items():
        networks[name], calls[name] = inspect_family(family, args)
        if family.chains is PEER_CHAINS:
            choose_format(family, args)
        if family.bfloat16:
            family.network.compile()
        networks[name]["memory_format"] = family.mode
    rows = make_rows(families, calls, time_chains(families, args), args)
    settings = {**vars(args), "output": str(args.output)}
    result = {"machine": describe_machine(args), "settings": settings, "networks": networks, "chains": rows}
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["machine"]))
    for name, facts in networks.items():
        gmac = f"{facts['gmac_per_image']:.3g} GMAC an image"
        print(f"{name}: {facts['parameters']:,} parameters, {gmac}, {facts['memory_format']}")
    print("\n" + as_table(rows))


if __name__ == "__main__":
    main()
