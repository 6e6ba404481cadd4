"""Memory: scans that do not fit into it, and batches that do."""

import json

import datasets
import numpy as np
import psutil
import pytest
import torch
from conftest import losses, tiny, train_alone

from mri_ddpm.data import ScanDataset, load_phantoms
from mri_ddpm.data.cache import DEPTH
from mri_ddpm.errors import InputError

SIDE, SCANS = 256, 1000  # 131 MB on disk, twice that as float32

WITH_LITTLE_MEMORY = """
import resource, sys
import datasets, numpy as np, torch
from mri_ddpm.data import ScanDataset

table = datasets.Dataset.from_file(sys.argv[1])
data = ScanDataset(table, np.arange(len(table)), np.zeros(len(table), dtype=np.int64))
assert data.nbytes > 200e6
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 100 * 2**20,) * 2)  # all but what is mapped from files
try:
    data.hold("cpu")
except (MemoryError, RuntimeError):
    pass
else:
    raise AssertionError("the limit is no limit")
total = 0.0
for batch in torch.utils.data.DataLoader(data, batch_size=20, shuffle=True):
    total += ((batch["pixel_values"] + 1) / 2).mean(dtype=torch.float64).item()

"""


def write_table(path, scans: int) -> float:
    """An Arrow file of noise as the cache writes it; returns the mean intensity."""
    pixels = datasets.Sequence(datasets.Value("uint16"), length=SIDE**2)
    rng, total = np.random.default_rng(0), 0.0
    with datasets.arrow_writer.ArrowWriter(
        path=str(path), features=datasets.Features({"pixels": pixels}), writer_batch_size=100
    ) as writer:
        for _ in range(scans):
            image = rng.integers(0, DEPTH, SIDE**2, dtype=np.uint16)
            total += image.mean() / DEPTH
            writer.write({"pixels": image})
        writer.finalize()
    return total / scans


def test_scans_larger_than_memory_come_from_disk(tmp_path, run_fresh):
    """A process that may take 100 MiB beyond its imports reads 131 MB of scans in random order."""
    mean = write_table(tmp_path / "scans.arrow", SCANS)
    source = WITH_LITTLE_MEMORY + f"assert abs(total / (len(data) / 20) - {mean}) < 1e-6"
    run_fresh(source, tmp_path / "scans.arrow")


def test_held_scans_are_the_same_to_the_bit():
    scans = load_phantoms(num_images=24, resolution=16).train
    rows = [5, 0, 5, len(scans) - 1]
    from_disk = scans.batch(rows)
    item = scans[3]
    scans.hold("cpu")
    for held, before in zip(scans.batch(np.array(rows)), from_disk, strict=True):
        assert torch.equal(held, before)
        assert held.dtype == before.dtype
    assert torch.equal(scans[3]["pixel_values"], item["pixel_values"])
    assert scans[3]["class_labels"] == item["class_labels"]
    assert scans.nbytes == scans.batch(range(len(scans)))[0].nbytes


def test_a_run_from_disk_is_the_same_to_the_bit(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(ScanDataset, "nbytes", property(lambda self: psutil.virtual_memory().total))
    assert losses(train_alone(tiny(tmp_path / "run", dataloader_num_workers=1))) == losses(unbroken)


def test_a_batch_size_is_found_kept_and_recorded(tmp_path):
    run_dir = train_alone(tiny(tmp_path / "run", train_batch_size="auto", max_train_steps=10))
    found = json.loads((run_dir / "config.json").read_text())["train_batch_size"]
    assert found == 56  # all of the training scans: under the 64 that are of use on a CPU
    resumed = tiny(run_dir, train_batch_size="auto", max_train_steps=12, resume_from_checkpoint="latest")
    assert json.loads((train_alone(resumed) / "config.json").read_text())["train_batch_size"] == found


def test_a_batch_size_is_one_that_the_memory_allows(tmp_path, monkeypatch):
    """With 64 MiB said to be free, of which half is taken, at 64 px and 8 and 16 channels a batch is of a few scans."""
    memory = psutil.virtual_memory()._replace(available=64 * 2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    run_dir = train_alone(
        tiny(
            tmp_path / "run", train_batch_size="auto", resolution=64, max_train_steps=1, checkpointing_steps=1
        )
    )
    found = json.loads((run_dir / "config.json").read_text())["train_batch_size"]
    assert 1 <= found < 32


def test_a_batch_size_that_is_no_number(tmp_path):
    with pytest.raises(InputError, match="--train_batch_size is 0"):
        tiny(tmp_path / "run", train_batch_size=0)
