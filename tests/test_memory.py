"""Memory: scans that do not fit into it, and batches that do."""

import json
import tracemalloc

import datasets
import numpy as np
import psutil
import pytest
import torch
from conftest import losses, tiny, train_alone

from mri_ddpm.data import ScanDataset, load_phantoms
from mri_ddpm.data.cache import DEPTH
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.lazy import joined, turned
from mri_ddpm.evaluation.quality import kid
from mri_ddpm.evaluation.subject import as_arrays

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
    total += batch["pixel_values"].mean(dtype=torch.float64).item()

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


@pytest.mark.slow
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
    for name, held in scans.batch(np.array(rows)).items():
        assert torch.equal(held, from_disk[name])
        assert held.dtype == from_disk[name].dtype
    assert torch.equal(scans[3]["pixel_values"], item["pixel_values"])
    assert scans[3]["class_labels"] == item["class_labels"]
    assert scans.nbytes == sum(tensor.nbytes for tensor in scans.batch(range(len(scans))).values())


HELD_ONCE = """
import resource, sys
import datasets, numpy as np
from mri_ddpm.data import ScanDataset

table = datasets.Dataset.from_file(sys.argv[1])
data = ScanDataset(table, np.arange(len(table)), np.zeros(len(table), dtype=np.int64))
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + data.nbytes + data.nbytes // 2,) * 2)
images = data.batch(range(600, 620))["pixel_values"]
data.hold("cpu")
assert (data.batch(range(600, 620))["pixel_values"] == images).all()
"""


def test_held_scans_are_in_memory_once(tmp_path, run_fresh):
    """The images, and little beside them while they are read."""
    write_table(tmp_path / "scans.arrow", SCANS)
    run_fresh(HELD_ONCE, tmp_path / "scans.arrow")


def test_a_run_from_disk_is_the_same_to_the_bit(unbroken, tmp_path, monkeypatch):
    monkeypatch.setattr(ScanDataset, "nbytes", property(lambda self: psutil.virtual_memory().total))
    assert losses(train_alone(tiny(tmp_path / "run", dataloader_num_workers=1))) == losses(unbroken)


def test_a_batch_size_is_found_kept_and_recorded(tmp_path):
    once = {"max_train_steps": 2, "lr_warmup_steps": 0}
    run_dir = train_alone(tiny(tmp_path / "run", train_batch_size="auto", **once))
    found = json.loads((run_dir / "config.json").read_text())["train_batch_size"]
    assert found == 56  # all of the training scans: under the 64 that are of use on a CPU
    again = {**once, "max_train_steps": 3, "resume_from_checkpoint": "latest"}
    resumed = tiny(run_dir, train_batch_size="auto", **again)
    assert json.loads((train_alone(resumed) / "config.json").read_text())["train_batch_size"] == found


def test_a_batch_size_is_one_that_the_memory_allows(tmp_path, monkeypatch):
    """With 16 MiB said to be free, of which half is taken, at 32 px and 8 and 16 channels a batch is of a few scans."""
    memory = psutil.virtual_memory()._replace(available=16 * 2**20)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    run_dir = train_alone(
        tiny(
            tmp_path / "run", train_batch_size="auto", resolution=32, max_train_steps=1, checkpointing_steps=1
        )
    )
    found = json.loads((run_dir / "config.json").read_text())["train_batch_size"]
    assert 1 <= found < 32


def test_a_batch_size_that_is_no_number(tmp_path):
    with pytest.raises(InputError, match="--train_batch_size is 0"):
        tiny(tmp_path / "run", train_batch_size=0)


MEASURED_WITH_LITTLE_MEMORY = """
import resource, sys
import datasets, numpy as np, torch
from mri_ddpm.data import ScanDataset
from mri_ddpm.evaluation.features import Extractor
from mri_ddpm.evaluation.lazy import joined, turned
from mri_ddpm.evaluation.memorisation import nearest_by_correlation
from mri_ddpm.evaluation.quality import detail_ratio, intensity_histogram, kid, power_spectrum
from mri_ddpm.evaluation.subject import as_arrays

table = datasets.Dataset.from_file(sys.argv[1])
images, _ = as_arrays(ScanDataset(table, np.arange(len(table)), np.zeros(len(table), dtype=np.int64)))
assert np.prod(images.shape) * 4 > 100e6
mean = lambda x: x.mean((2, 3))
extractor, few = Extractor("mean", mean, "cpu"), np.asarray(images[:60])
nearest_by_correlation(few[:2], few)  # threads and their buffers are there before the limit
used = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 96 * 2**20,) * 2)
try:
    np.asarray(images)
except MemoryError:
    pass
else:
    raise AssertionError("the limit is no limit")
assert detail_ratio(images, few).value > 0
assert power_spectrum(images)[1].min() > 0
assert np.isclose(intensity_histogram(images)[1].mean(), 1)
assert extractor(joined(images, few)).shape == (len(images) + 60, 1)
assert extractor(turned(images[::9])).shape == (len(images[::9]) * 4, 1)
assert (nearest_by_correlation(few[:2], images[:100]).index == [0, 1]).all()
"""


@pytest.mark.slow
def test_scans_larger_than_memory_are_measured(tmp_path, run_fresh):
    write_table(tmp_path / "scans.arrow", 400)
    run_fresh(MEASURED_WITH_LITTLE_MEMORY, tmp_path / "scans.arrow")


def test_the_kernel_of_kid_is_never_whole():
    """Of 3000 images it would fill 72 MB, three times over."""
    features = np.random.default_rng(0).normal(size=(3000, 8))
    tracemalloc.start()
    kid(features, features[:500])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 70e6  # of which 28 MB are the resamples


def test_images_on_disk_are_the_same_as_in_memory():
    scans = load_phantoms(num_images=24, resolution=16).train
    images, labels = as_arrays(scans)
    whole = np.asarray(images)
    assert whole.shape == images.shape == (len(scans), 1, 16, 16)
    np.testing.assert_array_equal(whole * 255, np.round(whole * 255))
    np.testing.assert_array_equal(np.asarray(images[labels == 1]), whole[labels == 1])
    np.testing.assert_array_equal(np.asarray(images[3:9][[2, 0]]), whole[[5, 3]])
    np.testing.assert_array_equal(images[4], whole[4])
    both = np.concatenate([whole, whole[:5]])
    np.testing.assert_array_equal(np.asarray(joined(images, whole[:5])[::-1]), both[::-1])
    turns = np.concatenate([np.rot90(whole, k, (2, 3)) for k in range(4)])
    np.testing.assert_array_equal(np.asarray(turned(images)), turns)
