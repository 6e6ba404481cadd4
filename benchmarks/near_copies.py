"""How long does it take to find near-identical pictures among many, beside comparing every pair?

Makes hashes as volumes give them. Each head is a phantom, every other one in wide black margins. It has a run of slices,
each a few bits from the one before. Some slices are copies of another head's, half of them mirrored. Searches them with
the heads as owners and without, and groups them. Every pair of some rows is compared with all, as was done before, for the
time of all rows, and to see that nothing is missed.

    python -m benchmarks.near_copies --num_images 3000 30000 100000 --output near_copies.json
"""

import argparse
import json
import os
import platform
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mri_ddpm.data import draw_phantoms
from mri_ddpm.data.repeats import MAX_DIFFERING_BITS, group_near_identical, near_pairs, picture_hashes

SLICES, STEP_BITS, COPIES = 50, 8, 0.02  # of a head; of 1024 from slice to slice; share of all
PREDICTED = {  # seconds at 100,000, written down before the measurement
    "near_pairs": "5, from 0.4 at 17,000 slices of warped heads",
    "every_pair": "490, from 0.4 for the 2870 files of the reference set, growing with the square",
}


def make_hashes(num_images: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hashes and those of the mirror images, uint8 (N, 128), and the head of each, int (N,)."""
    rng = np.random.default_rng(seed)
    heads = draw_phantoms(-(-num_images // SLICES), 48, seed)[0]
    heads = [np.pad(head, 20 * (i % 2)) for i, head in enumerate(heads)]
    first = b"".join(of_one for head in heads for of_one in picture_hashes(head))
    first = np.frombuffer(first, dtype=np.uint8).reshape(-1, 1, 2, 128)
    steps = rng.random((len(heads), SLICES, 2, 1024), dtype=np.float32) < STEP_BITS / 1024
    hashes = first ^ np.bitwise_xor.accumulate(np.packbits(steps, axis=-1), axis=1)
    hashes = hashes.reshape(-1, 2, 128)[:num_images]
    rows, originals = rng.integers(0, num_images, (2, int(COPIES * num_images)))
    hashes[rows] = hashes[originals] ^ np.packbits(rng.random((len(rows), 2, 1024)) < 0.01, axis=-1)
    hashes[rows[::2]] = hashes[rows[::2], ::-1]  # mirrored
    return hashes[:, 0], hashes[:, 1], np.arange(num_images) // SLICES


def timed(search: Callable, hashes: np.ndarray, mirrored: np.ndarray, *owners: np.ndarray) -> tuple:
    """Both arrays that a search gives, seconds of processor time, and in a second search the peak of memory."""
    given = [[row.tobytes() for row in side] for side in (hashes, mirrored)]
    start = time.process_time()
    found = search(*given, *owners)
    seconds = time.process_time() - start
    tracemalloc.start()
    search(*given, *owners)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return *found, {"seconds": round(seconds, 2), "peak_mib": round(peak / 2**20)}


def compare_every(hashes: np.ndarray, mirrored: np.ndarray, rows: int) -> tuple[list, float]:
    """All pairs of the first rows with all by matrix products, and the seconds that all rows would take."""
    start = time.process_time()
    sides = [np.unpackbits(side, axis=1).astype(np.float32) * 2 - 1 for side in (hashes, mirrored)]
    spent, start = time.process_time() - start, time.process_time()
    found = []
    for side in sides:
        products = [sides[0][:rows, half] @ side[:, half].T for half in (slice(512), slice(512, None))]
        near = np.maximum(*products) >= 512 - 2 * MAX_DIFFERING_BITS
        found.append(np.stack(np.nonzero(near)))
    spent += (time.process_time() - start) * len(hashes) / rows
    found[0] = found[0][:, found[0][0] < found[0][1]]
    found[1] = found[1][:, found[1][0] != found[1][1]]
    return found, spent


def measure(num_images: int, rows: int, seed: int) -> dict:
    hashes, mirrored, heads = make_hashes(num_images, seed)
    every, seconds = compare_every(hashes, mirrored, rows)
    result = {"num_images": num_images, "every_pair": {"rows": rows, "seconds_for_all": round(seconds, 1)}}
    for name, owners in (("near_pairs", []), ("near_pairs of different heads", [heads])):
        *pairs, cost = timed(near_pairs, hashes, mirrored, *owners)
        result[name] = {"pairs": pairs[0].shape[1], "mirrored_pairs": pairs[1].shape[1], **cost}
        for found, expected in zip(pairs, every, strict=True):
            if owners:
                expected = expected[:, np.not_equal(*heads[expected])]
            if not np.array_equal(found[:, found[0] < rows], expected):
                raise SystemExit(
                    f"At {num_images} images, {name} found other pairs than comparing every one."
                )
    facing, groups, cost = timed(group_near_identical, hashes, mirrored)
    result["group_near_identical"] = {"facing": len(set(facing)), "groups": len(set(groups)), **cost}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--num_images", type=int, nargs="+", default=[3000, 30000, 100000])
    add("--rows", type=int, default=1000, help="rows of which every pair is compared (1000)")
    add("--seed", type=int, default=0)
    add("--output", type=Path, default=Path("near_copies.json"))
    args = parser.parse_args()
    if args.rows < 1 or min(args.num_images) < max(args.rows, SLICES):
        parser.error(f"--num_images is --rows or more, and at least {SLICES}; --rows is 1 or more.")
    machine = f"{os.cpu_count()} virtual cores, {platform.machine()}, numpy {np.__version__}"
    result = {"machine": machine, "threads": os.environ.get("OMP_NUM_THREADS", "all"), "predicted": PREDICTED}
    result["measured"] = [measure(num_images, args.rows, args.seed) for num_images in args.num_images]
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["measured"], indent=2))


if __name__ == "__main__":
    main()
