"""How many scans a second can the input path hand to the network, beside what the network can take?

Times the training loop's own DataLoader over scans held in memory, over the memory-mapped Arrow file that a cache of
scans is, and over that with two loader processes; and steps of training on the same machine, in one run. Loading is no
concern while it is 20 times as fast as training.

    python benchmarks/loading.py --num_images 3264 --output loading.json
"""

import argparse
import functools
import json
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import torch.nn.functional as F
from peers import DEFAULT, check_flags, describe_machine, make_parser, our_unet, seconds_of

from mri_ddpm.data import ScanDataset, load_phantoms

PASSES = 5


def loaded_per_second(scans: ScanDataset, batch_size: int, num_workers: int = 0) -> float:
    """Images a second in the best of some passes in random order, the start of loader processes left out."""
    loader = torch.utils.data.DataLoader(
        scans, batch_size, shuffle=True, drop_last=True, num_workers=num_workers
    )
    best = 0.0
    for _ in range(PASSES):
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        images = sum(len(batch["pixel_values"]) for batch in batches)
        best = max(best, images / (time.perf_counter() - start))
    return best


def on_disk(num_images: int, resolution: int, folder: Path) -> ScanDataset:
    """A few phantoms over and over in an Arrow file, mapped into memory as the cache of scans is."""
    few = load_phantoms(num_images=64, resolution=resolution).train
    images = few.batch(range(len(few)))["pixel_values"].mul(65535).round().numpy().astype(np.uint16)
    pixels = datasets.Sequence(datasets.Value("uint16"), length=resolution**2)
    file = folder / "scans.arrow"
    with datasets.arrow_writer.ArrowWriter(
        path=str(file), features=datasets.Features(pixels=pixels)
    ) as writer:
        for row in range(num_images):
            writer.write({"pixels": images[row % len(images)].ravel()})
        writer.finalize()
    labels = np.zeros(num_images, dtype=np.int64)
    return ScanDataset(datasets.Dataset.from_file(str(file)), np.arange(num_images), labels)


def trained_per_second(args: argparse.Namespace) -> float:
    """Images a second of training on one batch, the best of three steps."""
    unet = our_unet(DEFAULT, args.resolution, args.block_out_channels).to(args.device)
    unet.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(unet.parameters(), fused=True)
    x_t = torch.randn(args.batch_size, 1, args.resolution, args.resolution, device=args.device)
    t = torch.zeros(args.batch_size, device=args.device)

    def step() -> None:
        F.huber_loss(unet(x_t, t).sample, x_t).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return args.batch_size / min(seconds_of(step, args.device) for _ in range(3))


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__, 80, "loading.json")
    add = functools.partial(parser.add_argument, type=int)
    add("--num_images", default=3264, help="scans in the data set (3264)")
    args = parser.parse_args()
    check_flags(parser, args)
    if not 1 <= args.batch_size <= args.num_images // 2:
        parser.error("--batch_size is 1 to half of --num_images.")
    return args


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        scans = on_disk(args.num_images, args.resolution, Path(folder))
        speeds = {
            "mapped": loaded_per_second(scans, args.batch_size),
            "mapped, 2 workers": loaded_per_second(scans, args.batch_size, num_workers=2),
        }
        scans.hold(args.device)
        speeds["held in memory"] = loaded_per_second(scans, args.batch_size)
    speeds["training"] = trained_per_second(args)
    settings = {**vars(args), "output": str(args.output)}
    result = {"machine": describe_machine(args.device), "settings": settings, "images_per_second": speeds}
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    print("| | images/s | to training |\n| --- | ---: | ---: |")
    for name, speed in speeds.items():
        print(f"| {name} | {speed:,.0f} | {speed / speeds['training']:,.0f}x |")


if __name__ == "__main__":
    main()
