"""How many images a second does each scheduler make, beside diffusers' and lucidrains' pipelines as wide?

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
import json
import statistics
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler
from peers import (
    DEFAULT,
    DIFFUSERS,
    FORMATS,
    LINEAR,
    LUCIDRAINS,
    check_flags,
    count_flops,
    describe_machine,
    diffusers_unet,
    import_lucidrains,
    least_seconds,
    lucidrains_unet,
    make_parser,
    our_unet,
    randomize_zeros,
    seconds_of,
)
from torch import nn

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.config import TrainingConfig
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.presets import MRIDIFF
from mri_ddpm.sampling import SCHEDULERS, set_scheduler

T = 300  # timesteps of every chain
SOLVERS = [name for name in SCHEDULERS if name != "ddpm"]
OUR_CHAINS = [("ddpm", T), *((solver, steps) for solver in SOLVERS for steps in (10, 20, 50))]
PEER_CHAINS = [("ddpm", T), ("ddim", 50)]


@dataclass
class Family:
    """A network and what samples with it: ``sampler(solver, steps)`` makes a ``sample(n, generator)``."""

    network: nn.Module
    sampler: Callable[[str, int], Callable]
    chains: list[tuple[str, int]]
    bfloat16: bool = False
    mode: str = "channels_last"  # which our pipeline sets itself


def ours(args: argparse.Namespace, name: str, recipe: dict) -> Family:
    names = ("beta_start", "beta_end", "prediction_type")
    noise_scheduler = make_noise_scheduler(T, **{name: recipe[name] for name in names})
    unet = our_unet(name, args.resolution, args.block_out_channels)

    def sampler(solver, steps):
        pipeline = MRIDDPMPipeline(unet, noise_scheduler)
        pipeline.set_progress_bar_config(disable=True)
        set_scheduler(pipeline, solver)
        return lambda n, generator: pipeline(None, n, steps, generator=generator, output_type="pt")

    return Family(unet, sampler, OUR_CHAINS)


def of_diffusers(args: argparse.Namespace) -> Family:
    unet = diffusers_unet(args.resolution, args.block_out_channels)

    def sampler(solver, steps):
        pipeline_class = {"ddpm": DDPMPipeline, "ddim": DDIMPipeline}[solver]
        pipeline = pipeline_class(unet, DDPMScheduler(T))
        pipeline.set_progress_bar_config(disable=True)
        return lambda n, generator: pipeline(n, generator, num_inference_steps=steps, output_type="pt")

    return Family(unet, sampler, PEER_CHAINS)


def of_lucidrains(args: argparse.Namespace, library: types.ModuleType) -> Family:
    unet = lucidrains_unet(library, args.block_out_channels, args.device)

    def sampler(solver, steps):
        chain = {"timesteps": steps} if solver == "ddpm" else {"timesteps": T, "sampling_timesteps": steps}
        diffusion = library.GaussianDiffusion(unet, image_size=args.resolution, **chain).to(args.device)
        return lambda n, generator: diffusion.sample(n)  # it takes no generator, and draws on the device

    return Family(unet, sampler, PEER_CHAINS)


def make_families(args: argparse.Namespace) -> dict[str, Family]:
    """Every network in float32, and on a GPU each once more in bfloat16 (autocast) and compiled."""
    families, library = {}, import_lucidrains()
    for suffix in ("", ", bfloat16 and compiled") if args.device == "cuda" else ("",):
        made = {
            LINEAR: ours(args, LINEAR, MRIDIFF),
            DEFAULT: ours(args, DEFAULT, vars(TrainingConfig(preset="mri-ddpm-64"))),
            DIFFUSERS: of_diffusers(args),
        }
        if library:
            made[LUCIDRAINS] = of_lucidrains(args, library)
        for name, family in made.items():
            families[name + suffix], family.bfloat16 = family, bool(suffix)
            family.network.to(args.device).eval()
            randomize_zeros(family.network)
    return families


def sample_all(family: Family, sample: Callable, args: argparse.Namespace) -> float:
    """Sample all images in batches; returns the seconds. The generator is on the device: no noise is copied."""
    generator = torch.Generator(args.device).manual_seed(0)
    batches = args.num_images // args.batch_size
    with torch.no_grad(), torch.autocast(args.device, torch.bfloat16, enabled=family.bfloat16):
        return batches * seconds_of(lambda: sample(args.batch_size, generator), args.device, batches)


@torch.no_grad()
def inspect_family(family: Family, args: argparse.Namespace) -> tuple[dict, dict]:
    """The network's size, and the calls of each chain, whole and as timed, counted on an idle network."""
    image, t = torch.zeros(1, 1, args.resolution, args.resolution), torch.zeros(1, dtype=torch.long)
    with count_flops() as flops:
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
    t = torch.full((args.batch_size,), T // 2, device=args.device)

    def seconds(name):
        family.network.to(memory_format=FORMATS[name])
        return min(sample_all(family, lambda *_: family.network(image, t), args) for _ in range(2))

    tried = least_seconds(FORMATS, seconds, rounds=3)
    family.mode = min(tried, key=tried.get)
    family.network.to(memory_format=FORMATS[family.mode])


def time_chains(families: dict[str, Family], args: argparse.Namespace) -> dict[tuple, list[float]]:
    """Seconds of each ``(family, solver, timed steps)``, every one in turn before any is repeated."""
    samples = {}
    for name, family in families.items():
        for solver, steps in family.chains:
            timed = min(steps, args.timed_steps)
            samples[name, solver, timed] = family.sampler(solver, timed)
            sample_all(family, family.sampler(solver, min(2, timed)), args)  # warm up
    seconds = {key: [] for key in samples}
    for repeat in range(args.repeats):
        for key, sample in samples.items():
            seconds[key].append(sample_all(families[key[0]], sample, args))
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


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, 16, "sampling.json")
    add = functools.partial(parser.add_argument, type=int)
    add("--num_images", help="images of one timing (one batch)")
    add("--repeats", default=3, help="timings of each, of which the median counts (3)")
    add("--timed_steps", default=10, help="steps timed of a longer chain (10)")
    parser.add_argument("--whole_chains", action="store_true", help="time every step, which takes hours")
    args = parser.parse_args()
    args.num_images = args.num_images or args.batch_size
    args.timed_steps = T if args.whole_chains else args.timed_steps
    if min(args.batch_size, args.repeats, args.timed_steps) < 1 or args.num_images % args.batch_size:
        parser.error("--num_images is no multiple of --batch_size, or a number is under 1.")
    check_flags(parser, args)
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
    machine = describe_machine(args.device, DIFFUSERS, LUCIDRAINS)
    result = {"machine": machine, "settings": settings, "networks": networks, "chains": rows}
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(machine))
    for name, facts in networks.items():
        gmac = f"{facts['gmac_per_image']:.3g} GMAC an image"
        print(f"{name}: {facts['parameters']:,} parameters, {gmac}, {facts['memory_format']}")
    print("\n" + as_table(rows))


if __name__ == "__main__":
    main()
