"""How fast are many volumes read, in how much memory, and how fast does a training start that finds them decoded?

Makes NIfTI volumes of noisy heads, 240x240x155 voxels of int16, which pack to 2 to 3 MB as heads without skulls do. Fresh
processes read them on one core and on all. What 1000 take is extrapolated from a few.

A second start depends on how many slices there are, and not on their voxels. So it is measured in earnest on 1000 volumes
of 48x48x155 voxels, which give as many slices as large ones and as large a cache: these are decoded once, and found again
by a process that then writes the manifest and loads batches.

    python benchmarks/volumes.py --num_volumes 20 --num_small 1000 --output volumes.json

Seconds of the processor are of the process alone; beside other work, only they mean anything.
"""

import argparse
import json
import multiprocessing
import os
import pickle
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import psutil
import torch
from scipy.ndimage import zoom

from mri_ddpm.data import load_scans, scans
from mri_ddpm.files import write_json

LARGE, SMALL = (240, 240, 155), (48, 48, 155)  # voxels of 1 mm, and of 5x5x1 mm
MANY = 1000  # volumes that the goals are of
STAGES = (
    "find_source",
    "examine",
    "kept",
    "_split",
    "make_manifest",
    "_scans",
)  # the third is within the fourth
GOALS = {  # of issues and of the specification
    "seconds of the processor for a volume, one core": 0.6,
    "MiB at most, one core": 1024,
    "seconds of the processor for a second start": 3,
    "seconds of the processor for the search for near-copies": 60,
}


def draw_head(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """An ellipsoid of coarse texture and noise in black air; int16 of the shape."""
    rng = np.random.default_rng(seed)
    places = np.meshgrid(
        *(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True
    )
    radii = rng.uniform([0.52, 0.66, 0.8], [0.6, 0.74, 0.9])
    inside = sum((place / radius) ** 2 for place, radius in zip(places, radii, strict=True)) < 1
    coarse = rng.normal(size=[n // 10 + 2 for n in shape]).astype(np.float32)
    texture = zoom(coarse, [n / c for n, c in zip(shape, coarse.shape, strict=True)], order=1)
    noise = rng.standard_normal(shape, dtype=np.float32)
    return np.where(inside, 500 + 150 * texture + 25 * noise, 0).clip(0).astype(np.int16)


def write_heads(folder: Path, count: int, shape: tuple[int, int, int]) -> float:
    """A folder of heads, a patient each; returns the mean size of a file in MB."""
    folder.mkdir()
    spacing = [240 / shape[0], 240 / shape[1], 155 / shape[2]]
    for number in range(count):
        file = folder / f"sub-{number:04d}_T1w.nii.gz"
        head = nibabel.Nifti1Image(
            draw_head(shape, number), np.diag([-spacing[0], -spacing[1], spacing[2], 1])
        )
        nibabel.save(head, file)
    return float(np.mean([file.stat().st_size for file in folder.iterdir()])) / 1e6


def fresh(task: Callable, *arguments) -> dict:
    """What a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(task, *arguments).result()


def start(folder: Path, cache: Path, cores: int, share: float) -> dict:
    """Load the scans on some cores: what it takes beyond imports, in all and by stages."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    stages: dict[str, float] = {}

    def timed(name: str, function: Callable) -> Callable:
        def run(*arguments, **options):
            began = time.process_time()
            result = function(*arguments, **options)
            stages[name] = time.process_time() - began
            return result

        return run

    for name in STAGES:
        setattr(scans, name, timed(name, getattr(scans, name)))
    imported, wall, processor = peak_mib(), time.perf_counter(), time.process_time()
    loaded = load_scans(train_data_dir=str(folder), cache_dir=str(cache), validation_share=share)
    found = {
        "slices": len(loaded.manifest["files"]),
        "seconds": time.perf_counter() - wall,
        "processor seconds": time.process_time() - processor,
        "processor seconds by stage": stages,
        "MiB at most": peak_mib(),
        "MiB of imports": imported,
        "content_sha256": loaded.manifest["content_sha256"],
    }
    return found if share > 0.1 else {**found, **use(loaded, cache)}


def use(loaded: scans.Scans, cache: Path) -> dict:
    """What a training does with many scans next: write the manifest, start two loader processes, and draw batches."""
    began = time.process_time()
    write_json(cache / "manifest.json", loaded.manifest)
    found = {"processor seconds to write the manifest": time.process_time() - began}
    found["MB of the manifest"] = (cache / "manifest.json").stat().st_size / 1e6
    began = time.process_time()
    pickled = pickle.dumps(loaded.train)
    pickle.loads(pickled)
    found |= {
        "processor seconds to pickle and open again": time.process_time() - began,
        "MB pickled": len(pickled) / 1e6,
    }
    rng, began = np.random.default_rng(0), time.process_time()
    for _ in range(200):
        loaded.train.batch(rng.integers(0, len(loaded.train), 64))
    found["images per processor second, batches of 64"] = 200 * 64 / (time.process_time() - began)
    began = time.perf_counter()
    fork = multiprocessing.get_context("fork")  # as a training does, where this process has been spawned
    loader = torch.utils.data.DataLoader(
        loaded.train, 64, shuffle=True, num_workers=2, multiprocessing_context=fork
    )
    batches = iter(loader)
    next(batches)
    found["seconds to the first batch of two workers"] = time.perf_counter() - began
    for _ in range(min(100, len(loader) // 2)):
        next(batches)
    memory = [process.memory_full_info() for process in psutil.Process().children()]
    found["MiB of a worker"] = max(m.rss for m in memory) / 2**20
    found["MiB of a worker that are its own"] = max(m.uss for m in memory) / 2**20
    return found


def peak_mib() -> float:
    """The most memory that this process ever had, files that it maps included."""
    status = Path("/proc/self/status").read_text()  # getrusage would give the parent's
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def machine() -> str:
    flags = Path("/proc/cpuinfo").read_text()
    return f"{os.cpu_count()} virtual cores, {'AMX' if 'amx_tile' in flags else 'no AMX'}"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num_volumes", type=int, default=20, help="volumes of 240x240x155 voxels (20)")
    parser.add_argument("--num_small", type=int, default=MANY, help="volumes of 48x48x155 voxels (1000)")
    parser.add_argument("--output", type=Path, default=Path("volumes.json"), help="JSON file (volumes.json)")
    args = parser.parse_args()
    if args.num_volumes < 4 or args.num_small < 20:
        parser.error("--num_volumes is 4 or more, and --num_small 20 or more.")
    return args


def main() -> None:
    args = parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    measured: dict = {"machine": machine(), "load average before": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured["MB a volume, packed"] = write_heads(folder / "large", args.num_volumes, LARGE)
        few = folder / "few"
        few.mkdir()
        for file in sorted((folder / "large").iterdir())[:4]:
            (few / file.name).symlink_to(file)
        measured["4 volumes, 1 core"] = fresh(start, few, folder / "a", 1, 0.5)
        cores = os.cpu_count() or 1
        for number in sorted({1, cores}):
            result = fresh(start, folder / "large", folder / f"b{number}", number, 0.5)
            measured[f"{args.num_volumes} volumes, {number} core{'s' * (number > 1)}"] = result
        write_heads(folder / "small", args.num_small, SMALL)
        measured[f"{args.num_small} small volumes, first start"] = fresh(
            start, folder / "small", folder / "c", cores, 0.5
        )
        measured[f"{args.num_small} small volumes, second start"] = fresh(
            start, folder / "small", folder / "c", cores, 0.1
        )
    measured["load average after"] = os.getloadavg()[0]
    first, again = (measured[f"{args.num_small} small volumes, {n} start"] for n in ("first", "second"))
    each = measured[f"{args.num_volumes} volumes, 1 core"]
    reached = {
        "seconds of the processor for a volume, one core": each["processor seconds"] / args.num_volumes,
        "MiB at most, one core": each["MiB at most"],
        "seconds of the processor for a second start": again["processor seconds"],
        "seconds of the processor for the search for near-copies": first["processor seconds by stage"][
            "kept"
        ],
    }
    minutes = reached["seconds of the processor for a volume, one core"] * MANY / 60
    result = {
        "goals": GOALS,
        "reached": reached,
        "minutes for 1000 volumes, extrapolated": minutes,
        "measured": measured,
    }
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print("| | goal | reached |\n| --- | ---: | ---: |")
    for name, goal in GOALS.items():
        print(f"| {name} | {goal:g} | {reached[name]:.3g} |")
    print(
        f"\n1000 volumes on one core: {minutes:.1f} minutes of the processor, extrapolated from {args.num_volumes}."
    )


if __name__ == "__main__":
    main()
