"""How fast does the network train, beside diffusers', lucidrains' and MONAI's as wide, and how near the peak?

Measures all of them in turn in one run, in float32 and in bfloat16 (autocast), with random weights and no classes, and
prints training images/s, the forward pass, peak memory, and operations a second as a share of what a plain matrix
product reaches here in that precision.

    pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch monai
    python benchmarks/training.py --output training.json

Around every network a step is the same: x_t in, forward, Huber loss in float32, backward, Adam. Each is first tried in
several modes in each precision, and measured in the fastest: memory format, fused Adam, and with --compile torch.compile. A
GPU tries them with the whole batch, a CPU with at most 16 images of it. On a CPU malloc keeps freed memory for all of
them, as our trainer has it. Memory is that of a process of its own: the most resident (CPU, on Linux alone) or allocated
(GPU) in a step, less what was there before the network. Speeds are medians, and ratios are medians over the repeats of
what was timed in the same one, so that another program on the machine slows both. Equal widths are not equal work, so
operations are counted too.
"""

import argparse
import functools
import gc
import itertools
import json
import math
import multiprocessing
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peers import (
    DEFAULT,
    DIFFUSERS,
    FORMATS,
    LINEAR,
    LUCIDRAINS,
    MONAI,
    check_flags,
    count_flops,
    describe_machine,
    diffusers_unet,
    import_lucidrains,
    least_seconds,
    lucidrains_unet,
    make_parser,
    monai_unet,
    our_unet,
    randomize_zeros,
    seconds_of,
)
from torch import nn

from mri_ddpm.training.device import keep_freed_memory

FAMILIES = (LINEAR, DEFAULT, DIFFUSERS, LUCIDRAINS, MONAI)
PEERS = {DIFFUSERS: "diffusers", LUCIDRAINS: "lucidrains", MONAI: "MONAI"}  # as the table has them
MATRIX_SIZES = {"cpu": (1024, 2048, 4096), "cuda": (4096, 8192, 16384)}
T = 300  # timesteps
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Mode:
    """One way to run a training step of a network that itself stays as it is."""

    memory_format: str = "contiguous"
    fused_adam: bool = False
    precision: str = "float32"
    compiled: bool = False

    def __str__(self) -> str:
        words = {"fused Adam": self.fused_adam, "compiled": self.compiled}
        return ", ".join([self.memory_format, *(word for word, on in words.items() if on)])


class Trainee:
    """A network with its optimizer and a batch; `step` trains, `forward` is a pass without gradients."""

    def __init__(self, network: nn.Module, mode: Mode, batch_size: int, args: argparse.Namespace):
        shape = (batch_size, 1, args.resolution, args.resolution)
        self.x_t, self.target = (torch.randn(shape, device=args.device) for _ in range(2))
        self.timesteps = torch.randint(0, T, (batch_size,), device=args.device)
        self.device, self.bfloat16 = args.device, mode.precision == "bfloat16"
        network.to(memory_format=FORMATS[mode.memory_format])
        self.network = torch.compile(network, dynamic=False) if mode.compiled else network
        # Not fused, it is left to torch, which takes the fastest of its others.
        self.optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=mode.fused_adam or None)
        for parameter in network.parameters():  # an empty step, after which Adam's averages are there
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def predict(self) -> torch.Tensor:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            prediction = self.network(self.x_t, self.timesteps)
        return getattr(prediction, "sample", prediction)  # (B, 1, H, W)

    def step(self) -> None:
        F.huber_loss(self.predict().float(), self.target).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    @torch.no_grad()
    def forward(self) -> None:
        self.predict()  # as in training: nothing here has dropout or running statistics


def build_network(name: str, args: argparse.Namespace) -> nn.Module | None:
    """A network ready to train; ``None``, with a sentence, for a peer that is not installed."""
    widths = args.block_out_channels
    if name == DIFFUSERS:
        network = diffusers_unet(args.resolution, widths)
    elif name == LUCIDRAINS:
        library = import_lucidrains()
        network = library and lucidrains_unet(library, widths, args.device)
    elif name == MONAI:
        network = monai_unet(widths)
    else:
        network = our_unet(name, args.resolution, widths)
    if network:
        network.to(args.device).train()
        randomize_zeros(network)
    return network


def matrix_product_peak(args: argparse.Namespace) -> dict[str, float]:
    """FLOP/s of the best of several sizes of square matrix product, by the median of 5, for each precision."""
    peak = {}
    for precision in PRECISIONS:
        speeds, dtype = [], getattr(torch, precision)
        for n in MATRIX_SIZES[args.device]:
            a, b = (torch.randn(n, n, device=args.device, dtype=dtype) for _ in range(2))
            out = torch.empty_like(a)
            multiply = functools.partial(torch.matmul, a, b, out=out)
            multiply()  # warm up
            seconds = statistics.median(seconds_of(multiply, args.device) for _ in range(5))
            speeds.append(2 * n**3 / seconds)
        peak[precision] = max(speeds)
    return peak


def count_operations(network: nn.Module, args: argparse.Namespace) -> dict:
    """The network's size, and its operations on one image: forward, and forward and backward."""
    trainee, flops = Trainee(network, Mode(), 1, args), {}
    for name, work in (
        ("forward", trainee.forward),
        ("training", lambda: trainee.predict().sum().backward()),
    ):
        with count_flops() as counter:
            work()
        flops[name] = counter.get_total_flops()
    trainee.optimizer.zero_grad()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "parameters": parameters,
        "gmac_per_image": flops["forward"] / 2e9,
        "training_gflop_per_image": flops["training"] / 1e9,
    }


def choose_mode(network: nn.Module, precision: str, args: argparse.Namespace) -> tuple[Mode, list[dict]]:
    """The fastest mode in a precision, and every one that was tried with its milliseconds a step, or why it failed."""
    on_gpu, tried, errors = args.device == "cuda", {}, {}
    batch_size, steps = (args.batch_size, 5) if on_gpu else (min(16, args.batch_size), 1)

    @functools.cache
    def trainee(mode):
        return Trainee(network, mode, batch_size, args)

    def seconds(mode):
        try:
            network.to(memory_format=FORMATS[mode.memory_format])
            return math.inf if mode in errors else seconds_of(trainee(mode).step, args.device, steps)
        except Exception as error:  # a compiler's are of every kind, and the next mode may do
            errors[mode] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            return math.inf

    def best():
        return min(tried, key=tried.get)

    modes = [Mode(name, precision=precision) for name in FORMATS]
    tried |= least_seconds(modes, seconds, rounds=2)  # the first round warms up
    tried |= least_seconds([best(), replace(best(), fused_adam=True)], seconds, rounds=2)
    if args.compile:
        tried |= least_seconds([best(), replace(best(), compiled=True)], seconds, rounds=2)
    if math.isinf(tried[best()]):
        raise SystemExit(f"{type(network).__name__} takes no step: {errors[best()]}")
    rows = [
        {**asdict(mode), "batch_size": batch_size, "error": errors.get(mode)}
        | {"milliseconds_per_step": None if mode in errors else 1e3 * tried[mode]}
        for mode in tried
    ]
    return best(), rows


def peak_resident() -> int | None:
    """Bytes this process has had resident at most; ``None`` where there is no /proc.

    Not `ru_maxrss`, in which Linux lets a child start from the most its parent has had.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def step_memory(name: str, mode: Mode, args: argparse.Namespace) -> float | None:
    """Peak memory of a training step in GiB over what was there before the network; for a fresh process."""
    prepare_torch(args)
    small = argparse.Namespace(**{**vars(args), "resolution": 16, "block_out_channels": [8, 16]})
    Trainee(build_network(name, small), mode, 1, small).step()  # loads what every library loads late
    gc.collect()
    if args.device == "cuda":
        peak, before = torch.cuda.max_memory_allocated, torch.cuda.memory_allocated()
    else:
        peak, before = peak_resident, peak_resident()
    Trainee(build_network(name, args), mode, args.batch_size, args).step()
    return None if before is None else (peak() - before) / 2**30


def step_memory_apart(name: str, mode: Mode, args: argparse.Namespace) -> float | None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(step_memory, name, mode, args).result()
        except RuntimeError as error:  # out of memory, or ended for want of it
            print(f"The memory of {name} is not measured: {error}", file=sys.stderr)
            return None


def time_in_turn(trainees: dict[tuple, Trainee], modes: dict[tuple, Mode], args: argparse.Namespace) -> dict:
    """Seconds of each ``(family, precision, "step" or "forward")``, every one in turn before any is repeated."""
    work = {(*key, kind): getattr(it, kind) for key, it in trainees.items() for kind in ("step", "forward")}
    for (*key, _), call in work.items():
        if args.device == "cuda" or modes[tuple(key)].compiled:
            seconds_of(call, args.device, 3)  # warm up; on a CPU, trying the modes has done so
    seconds = {key: [] for key in work}
    for repeat in range(args.repeats):
        for key, call in work.items():
            seconds[key].append(seconds_of(call, args.device, args.steps))
        total = args.steps * sum(times[-1] for times in seconds.values())
        print(f"repeat {repeat + 1} of {args.repeats}: {total:.0f} s", file=sys.stderr, flush=True)
    return seconds


def make_rows(facts: dict, modes: dict, seconds: dict, peak: dict, args: argparse.Namespace) -> list[dict]:
    """A row for each network and precision: the medians, the least and the most, and its speed over each peer's."""
    rows = []
    for name, precision in sorted(facts, key=lambda key: PRECISIONS.index(key[1])):
        step, forward = seconds[name, precision, "step"], seconds[name, precision, "forward"]
        known = facts[name, precision]
        operations = 1e9 * known["training_gflop_per_image"] * args.batch_size / statistics.median(step)
        row = {
            "network": name,
            "precision": precision,
            "mode": str(modes[name, precision]),
            **known,
            "images_per_second": args.batch_size / statistics.median(step),
            "images_per_second_min": args.batch_size / max(step),
            "images_per_second_max": args.batch_size / min(step),
            "forward_ms": 1e3 * statistics.median(forward),  # of a batch
            "forward_ms_min": 1e3 * min(forward),
            "forward_ms_max": 1e3 * max(forward),
            "training_gflop_per_second": operations / 1e9,
            "share_of_peak": operations / peak[precision],
        }
        for peer in PEERS:
            theirs = seconds.get((peer, precision, "step"))
            ratios = theirs and [their / own for their, own in zip(theirs, step, strict=True)]
            row[f"ratio_to_{peer}"] = ratios and statistics.median(ratios)
        rows.append(row)
    return rows


def as_table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    titles = [
        "network",
        "precision",
        "mode",
        "training images/s (min to max)",
        "forward of a batch, ms",
        "memory, GiB",
    ]
    titles += ["GFLOP/s (of peak)", *(f"to {peer}" for peer in PEERS.values())]
    lines = [f"| {' | '.join(titles)} |", "| --- | --- | --- |" + " ---: |" * (len(titles) - 3)]
    for row in rows:
        speed, low, high = (f"{row[f'images_per_second{end}']:.3g}" for end in ("", "_min", "_max"))
        memory, ratios = row["peak_memory_gib"], [row[f"ratio_to_{peer}"] for peer in PEERS]
        cells = [*(row[key] for key in ("network", "precision", "mode")), f"{speed} ({low} to {high})"]
        cells += [f"{row['forward_ms']:.0f}"]
        cells += ["" if memory is None else f"{memory:.2f}"]
        cells += [f"{row['training_gflop_per_second']:.3g} ({row['share_of_peak']:.0%})"]
        cells += ["" if ratio is None else f"{ratio:.2f}x" for ratio in ratios]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def prepare_torch(args: argparse.Namespace) -> None:
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as convolutions are by default
    keep_freed_memory(torch.device(args.device))
    torch.manual_seed(0)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, 80, "training.json")
    add = functools.partial(parser.add_argument, type=int)
    add("--steps", help="steps of one timing (1 on a CPU, 20 on a GPU)")
    add("--repeats", default=3, help="timings of each, of which the median counts (3)")
    parser.add_argument("--compile", action="store_true", help="try torch.compile too: minutes a network")
    args = parser.parse_args()
    if args.steps is None:
        args.steps = 20 if args.device == "cuda" else 1
    if min(args.batch_size, args.steps, args.repeats) < 1:
        parser.error("--batch_size, --steps or --repeats is under 1.")
    check_flags(parser, args)
    return args


def main() -> None:
    args = parse_args()
    prepare_torch(args)
    peaks = [matrix_product_peak(args)]
    facts, modes, trainees = {}, {}, {}
    for key in itertools.product(FAMILIES, PRECISIONS):
        name, precision = key
        network = build_network(name, args)
        if network is None:
            continue
        facts[key] = count_operations(network, args)
        modes[key], facts[key]["modes_tried"] = choose_mode(network, precision, args)
        print(f"{name} in {precision}: {modes[key]} is the fastest", file=sys.stderr, flush=True)
        facts[key]["peak_memory_gib"] = step_memory_apart(name, modes[key], args)
        trainees[key] = Trainee(network, modes[key], args.batch_size, args)
    seconds = time_in_turn(trainees, modes, args)
    peaks.append(matrix_product_peak(args))
    peak = {precision: max(found[precision] for found in peaks) for precision in PRECISIONS}
    result = {
        "machine": describe_machine(args.device, *PEERS),
        "settings": {**vars(args), "output": str(args.output)},
        "matrix_product_gflop_per_second": {name: speed / 1e9 for name, speed in peak.items()},
        "networks": make_rows(facts, modes, seconds, peak, args),
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["machine"]))
    for precision, speed in peak.items():
        print(f"matrix product in {precision}: {speed / 1e9:.4g} GFLOP/s")
    for row in result["networks"][: len(facts) // len(PRECISIONS)]:
        work = (
            f"{row['gmac_per_image']:.3g} GMAC forward and {row['training_gflop_per_image']:.3g} GFLOP a step"
        )
        print(f"{row['network']}: {row['parameters']:,} parameters, {work} an image")
    print("\n" + as_table(result["networks"]))


if __name__ == "__main__":
    main()
