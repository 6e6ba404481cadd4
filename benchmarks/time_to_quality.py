"""How soon does our recipe make samples as good as those of the peers' own recipes?

Trains each on the same scans, as wide, with the same batch size and for the same seconds of training, and samples from it
at a fifth, three fifths and the whole of that time, by its own DDIM sampler with 25 calls of the network. The images are
compared with the training scans by KID in wavelet features, which sees anatomy before brightness, and by KID in the features of a
classifier that was trained on these scans.

    pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch monai
    python benchmarks/time_to_quality.py --train_data_dir DIR --output_dir runs/time_to_quality

`ours` is `train_ddpm.py` with the defaults of `TrainingConfig`, classes included, and `ours-in-a-fifth` the same with a
schedule that ends at a fifth of the time. The peers' recipes, which know no classes, are written out in `recipes.py`:

- diffusers: its example `train_unconditional.py`.
- denoising-diffusion-pytorch: its `Trainer`. That itself reads folders of images through torchvision.
- monai: its tutorial `2d_ddpm_tutorial`, intensities in [0, 1] and small affine changes included.

Their learning rates (1e-4, 1e-4 and 2.5e-5) are made for many hours of a GPU. So that minutes are enough, every family
gets one and the same peak rate, and rises to it in the first 5 % of its time, also where a recipe has no warm-up.
Peers get the faster of two memory formats. Loading, validating, saving and sampling do not count as training.

All are trained before any is sampled from. What is there is not made again; a peer's training that was cut short begins
anew, and ours goes on. Several processes can share the work by --families, and with none named after it there are only
the table and the plot of what was sampled so far.
"""

import argparse
import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from peers import (
    FORMATS,
    describe_machine,
    least_seconds,
)
from recipes import NUM_INFERENCE_STEPS, PEERS
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm.auto import tqdm
from trained import averaged

from mri_ddpm.data import load_scans
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.quality import detail_ratio, kid
from mri_ddpm.evaluation.subject import as_arrays, class_counts
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import read_json_lines, write_json
from mri_ddpm.runs import load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.sampling.sheets import sheet

OURS = {"ours": 1.0, "ours-in-a-fifth": 0.2}  # the share of the time at which the schedule ends
SHARES = (0.2, 0.6, 1.0)  # of the time, where images are sampled
WARMUP = 0.05  # share of a schedule
DRAWING_ORDER = (100, 20, 60)  # percent of the time: what the question is about comes first
TIMED_STEPS = 12  # of ours, to know how many fit into the time
SAMPLED_AT_ONCE = 32
REPOSITORY = Path(__file__).parents[1]


FAMILIES = [*OURS, *PEERS]
METRICS = {
    "wavelet_kid": "wavelet KID",
    "in_domain_kid": "in-domain KID",
    "detail_ratio": "fine detail, share of real",
}


def batches(images: torch.Tensor, batch_size: int) -> Iterator[torch.Tensor]:
    """Whole batches of one epoch after another, each in an order of its own."""
    while True:
        order = torch.randperm(len(images)).split(batch_size)
        yield from (images[rows] for rows in order if len(rows) == batch_size)


def rate(progress: float, cosine: bool) -> float:
    """Share of the peak learning rate, at a share of the time."""
    if progress < WARMUP:
        return progress / WARMUP
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) if cosine else 1.0


def faster_format(name: str, images: torch.Tensor, args: argparse.Namespace) -> str:
    """The memory format in which a peer trains faster here."""

    def seconds(mode: str) -> float:
        recipe = PEERS[name](args, FORMATS[mode])
        recipe.step(images, args.learning_rate)
        start = time.perf_counter()
        recipe.step(images, args.learning_rate)
        return time.perf_counter() - start

    times = least_seconds(FORMATS, seconds, rounds=2)
    return min(times, key=times.get)


def train_peer(name: str, images: np.ndarray, folder: Path, args: argparse.Namespace) -> dict:
    """Train for the whole time, leaving the weights to sample with at each of `SHARES`; returns what is to be known."""
    images = torch.from_numpy(images)  # (N, 1, H, W) in [0, 1]
    mode = faster_format(name, images[: max(1, args.train_batch_size // 4)], args)
    torch.manual_seed(args.seed)
    recipe = PEERS[name](args, FORMATS[mode])
    scans, budget, points = batches(images, args.train_batch_size), 60 * args.budget_minutes, []
    steps, seconds, shares = 0, 0.0, list(SHARES)
    with tqdm(total=round(budget), desc=name, unit="s", file=sys.stderr) as bar:
        while shares:
            start = time.perf_counter()
            recipe.step(
                next(scans), args.learning_rate * rate(min(1.0, seconds / budget), recipe.cosine_rate)
            )
            seconds += time.perf_counter() - start
            steps += 1
            bar.update(min(round(seconds), bar.total) - bar.n)
            while shares and seconds >= shares[0] * budget:
                points.append(point(shares.pop(0), steps, seconds, args))
                weights = recipe.drawing_weights().items()
                state = {key: value.detach().contiguous() for key, value in weights}
                save_file(state, folder / f"weights-{points[-1]['percent']}.safetensors")
    return {"parameters": count(recipe.network), "memory_format": mode, "points": points}


def train_ours(name: str, folder: Path, args: argparse.Namespace) -> dict:
    """Run `train_ddpm.py` for as many steps as fit into the time; the seconds are those that it wrote down itself."""
    run_dir, share = folder / "run", OURS[name]
    if (run_dir / "config.json").exists():
        steps = json.loads((run_dir / "config.json").read_text())["max_train_steps"]
    else:
        images = 60 * args.budget_minutes * share * our_images_per_second(folder, args)
        steps = 5 * max(1, round(images / args.train_batch_size / 5))
    every = steps // 5  # checkpoints at all of SHARES
    launch(run_dir, steps, args, checkpointing_steps=every, checkpoints_total_limit=5)
    seconds = np.cumsum([args.train_batch_size / speed for speed in speeds(run_dir)])
    wanted = SHARES if share == 1 else (1.0,)
    points = [
        point(part * share, round(part * steps), seconds[round(part * steps) - 1], args) for part in wanted
    ]
    return {"parameters": count(load_pipeline(str(run_dir), "cpu").unet), "points": points}


def our_images_per_second(folder: Path, args: argparse.Namespace) -> float:
    """Training images a second, the median of a few steps after the first two."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        launch(Path(scratch), TIMED_STEPS, args, logging_steps=1)
        return statistics.median(speeds(Path(scratch))[2:])


def launch(run_dir: Path, steps: int, args: argparse.Namespace, **others: int) -> None:
    """Run `train_ddpm.py` as a user does, in its own process and with as many threads as the peers get."""
    levels = len(args.block_out_channels)
    flags = {
        "preset": "mri-ddpm-64",  # the defaults
        "train_data_dir": args.train_data_dir.resolve(),
        "output_dir": run_dir.resolve(),
        "resolution": args.resolution,
        "block_out_channels": args.block_out_channels,
        "attention_types": [*["none"] * levels, "linear", "full"][-levels:],
        "attention_head_dim": math.gcd(32, *args.block_out_channels),
        "train_batch_size": args.train_batch_size,
        "learning_rate": args.learning_rate,
        "mixed_precision": "no",  # as the peers
        "max_train_steps": steps,
        "lr_warmup_steps": max(1, round(WARMUP * steps)),
        "validation_steps": steps,  # once
        "num_samples": 1,
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "seed": args.seed,
        "resume_from_checkpoint": "latest",
        **others,
    }
    command = [sys.executable, "train_ddpm.py"]
    for name, value in flags.items():
        command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    subprocess.run(command, check=True, cwd=REPOSITORY, env=os.environ | threads, stdout=sys.stderr)


def speeds(run_dir: Path) -> list[float]:
    """Training images a second of every step of a run of ours."""
    rows = read_json_lines(run_dir / "metrics.jsonl")
    return [row["images_per_second"] for row in rows if "images_per_second" in row]


def point(share: float, steps: int, seconds: float, args: argparse.Namespace) -> dict:
    return {
        "percent": round(100 * share),  # of the time
        "steps": steps,
        "images_seen": steps * args.train_batch_size,
        "train_seconds": float(seconds),
    }


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def sample_peer(name: str, training: dict, weights: Path, args: argparse.Namespace) -> np.ndarray:
    recipe = PEERS[name](args, FORMATS[training["memory_format"]])
    recipe.network.load_state_dict(load_file(weights))
    recipe.network.eval()
    torch.manual_seed(args.seed)
    starts = tqdm(range(0, args.num_images, SAMPLED_AT_ONCE), desc=f"{name}, {weights.stem}", unit="batch")
    with torch.no_grad():
        sampled = [recipe.sample(min(SAMPLED_AT_ONCE, args.num_images - start)) for start in starts]
    return torch.cat(sampled).clamp(0, 1).numpy()


def sample_ours(run_dir: Path, step: int, class_labels: np.ndarray, args: argparse.Namespace) -> np.ndarray:
    """Images of the averaged weights in a checkpoint, in the classes' proportions and without guidance."""
    pipeline = load_pipeline(str(run_dir), "cpu")
    pipeline.unet = averaged(pipeline.unet, run_dir / "checkpoints" / f"step-{step:06d}")
    options = SamplingOptions(
        "ddim", num_inference_steps=NUM_INFERENCE_STEPS, seed=args.seed, batch_size=SAMPLED_AT_ONCE
    )
    options.prepare(pipeline, args.num_images, 0 if pipeline.class_names else None)
    counts = class_counts(class_labels, max(1, len(pipeline.class_names)), args.num_images)
    return sample_arrays(pipeline, counts, options)[0]


def train_family(name: str, images: np.ndarray, args: argparse.Namespace) -> None:
    """Train a family and leave `training.json`, unless that is there."""
    folder = args.output_dir / name
    folder.mkdir(exist_ok=True)
    if not (folder / "training.json").exists():
        made = train_ours(name, folder, args) if name in OURS else train_peer(name, images, folder, args)
        write_json(folder / "training.json", made)


def draw_family(name: str, percent: int, class_labels: np.ndarray, args: argparse.Namespace) -> None:
    """Sample a family's images at one point, and a grid of 64 of them, unless they are there."""
    folder = args.output_dir / name
    training = json.loads((folder / "training.json").read_text())
    file = folder / f"images-{percent}.npz"
    row = next((row for row in training["points"] if row["percent"] == percent), None)
    if row is None or file.exists():
        return
    if name in OURS:
        sampled = sample_ours(folder / "run", row["steps"], class_labels, args)
    else:
        sampled = sample_peer(name, training, folder / f"weights-{percent}.safetensors", args)
    spread = np.linspace(0, len(sampled) - 1, 64).round().astype(int)  # over all classes
    sheet(sampled[spread].reshape(8, 8, *sampled.shape[1:]), [""] * 8).save(file.with_suffix(".png"))
    np.savez_compressed(file, images=np.round(sampled * 255).astype(np.uint8))


def score(scans, args: argparse.Namespace) -> dict:
    """`METRICS` of all that was sampled so far, in this process or in others, and of the validation scans."""
    training, labels = (np.asarray(part) for part in as_arrays(scans.train))
    in_domain = make_extractor("in_domain", training, labels, scans.class_names)
    wavelets = WaveletFeatures.fit(training)
    of_wavelets, of_classifier = wavelets(training), in_domain(training[in_domain.reference])

    def measured(images: np.ndarray) -> dict:
        found = {
            "wavelet_kid": kid(of_wavelets, wavelets(images)),
            "in_domain_kid": kid(of_classifier, in_domain(images)),
            "detail_ratio": detail_ratio(training, images),
        }
        return {name: estimate.as_dict() for name, estimate in found.items()}

    families = {}
    for name in FAMILIES:
        folder = args.output_dir / name
        if not any(folder.glob("images-*.npz")):
            continue
        family = json.loads((folder / "training.json").read_text())
        files = {row["percent"]: folder / f"images-{row['percent']}.npz" for row in family["points"]}
        family["points"] = [row for row in family["points"] if files[row["percent"]].exists()]
        for row in family["points"]:
            images = np.load(files[row["percent"]])["images"].astype(np.float32) / 255
            row |= measured(images)
        families[name] = family
    return {"validation": measured(np.asarray(as_arrays(scans.validation)[0])), "families": families}


def compare(families: dict) -> dict:
    """Wavelet KID of ours at a fifth of the time, beside the best that a peer has at the end of it, as far as they are there.

    ``share_of_its_time`` is by the clock: our steps are planned from a timing, and may take more or less than a fifth.
    """
    rows = {(name, row["percent"]): row for name in families for row in families[name]["points"]}
    finals = {name: rows[name, 100] for name in PEERS if (name, 100) in rows}
    early = {name: rows[name, 20] for name in OURS if (name, 20) in rows}
    if not finals or not early:
        return {}
    best = min(finals, key=lambda name: finals[name]["wavelet_kid"]["value"])
    final = finals[best]
    ours = {
        name: {
            "wavelet_kid": row["wavelet_kid"],
            "share_of_its_time": row["train_seconds"] / final["train_seconds"],
            "reached": row["wavelet_kid"]["value"] <= final["wavelet_kid"]["value"],
        }
        for name, row in early.items()
    }
    return {"best_peer": best, "its_final_wavelet_kid": final["wavelet_kid"], "ours_at_a_fifth": ours}


def as_table(result: dict) -> str:
    lines = [f"| recipe | time | training seconds | steps | images seen | {' | '.join(METRICS.values())} |"]
    lines.append("| --- |" + " ---: |" * (4 + len(METRICS)))
    for name, family in result["families"].items():
        for row in family["points"]:
            cells = [
                name,
                f"{row['percent']} %",
                f"{row['train_seconds']:.0f}",
                row["steps"],
                row["images_seen"],
                *(in_words(row[metric]) for metric in METRICS),
            ]
            lines.append(f"| {' | '.join(map(str, cells))} |")
    cells = [in_words(result["validation"][metric]) for metric in METRICS]
    return "\n".join([*lines, f"| validation scans | | | | | {' | '.join(cells)} |"])


def in_words(estimate: dict) -> str:
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def plot(result: dict, path: Path) -> None:
    """Wavelet KID against seconds of training, a line a family."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, family in result["families"].items():
        seconds = [row["train_seconds"] for row in family["points"]]
        value = np.array([row["wavelet_kid"]["value"] for row in family["points"]])
        low, high = np.array([row["wavelet_kid"]["interval"] for row in family["points"]]).T
        error = np.maximum([value - low, high - value], 0)
        axes.errorbar(seconds, value, yerr=error, fmt="o-", capsize=3, markersize=4, label=name)
    axes.axhspan(
        *result["validation"]["wavelet_kid"]["interval"], color="gray", alpha=0.2, label="validation scans"
    )
    axes.set(xlabel="seconds of training", ylabel="wavelet KID to the training scans", xscale="log")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.set_ylim(bottom=-0.1)
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def parse_args() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    add = functools.partial(parser.add_argument, type=int)
    add("--train_data_dir", type=Path, required=True, help="folder of scans, as train_ddpm.py takes it")
    add("--output_dir", type=Path, default=Path("runs/time_to_quality"), help="(runs/time_to_quality)")
    add("--budget_minutes", type=float, default=12.0, help="training time of each family (12)")
    add("--resolution", default=44, help="pixels a side (44)")
    add("--block_out_channels", nargs="+", default=[32, 64, 96], help="channels of each level (32 64 96)")
    add("--train_batch_size", default=32, help="scans a step (32)")
    add("--learning_rate", type=float, default=1e-3, help="peak rate of all (1e-3)")
    add("--num_images", default=256, help="images sampled at each point (256)")
    add("--threads", help="threads of torch (its own choice)")
    add("--seed", default=0)
    add("--families", type=str, nargs="*", choices=FAMILIES, default=FAMILIES, help="only these")
    args = parser.parse_args()
    first, *others = args.block_out_channels
    if not others or first % 8 or any(c % first for c in others) or args.resolution % 2 ** len(others):
        parser.error(
            "--block_out_channels are multiples of the first, itself of 8, and halvings fit --resolution."
        )
    return args


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    names = ("budget_minutes", "resolution", "block_out_channels", "train_batch_size", "learning_rate",
             "num_images", "seed")  # fmt: skip
    settings = {"data": args.train_data_dir.name, **{name: getattr(args, name) for name in names}}
    file = args.output_dir / "settings.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{file} has other settings; name another --output_dir.")
    write_json(file, settings)

    scans = load_scans(resolution=args.resolution, train_data_dir=str(args.train_data_dir), seed=args.seed)
    images, class_labels = as_arrays(scans.train)
    images = np.asarray(images)
    for name in args.families:
        train_family(name, images, args)
    for percent in DRAWING_ORDER:
        for name in args.families:
            draw_family(name, percent, class_labels, args)
    result = {
        "environment": describe_machine("cpu", *PEERS),
        "settings": {
            **settings,
            "warmup_share": WARMUP,
            "num_inference_steps": NUM_INFERENCE_STEPS,
            "rates": "one peak rate and one warm-up for all; the peers' own rates are 1e-4, 1e-4 and 2.5e-5",
        },
        **score(scans, args),
    }
    result["comparison"] = compare(result["families"])
    write_json(args.output_dir / "time_to_quality.json", result)
    plot(result, args.output_dir / "time_to_quality.png")
    print(as_table(result) + f"\n\n{json.dumps(result['comparison'])}")


if __name__ == "__main__":
    main()
