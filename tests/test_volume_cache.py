"""Volumes are decoded once: what is kept of them, when it is used again, and what becomes of it when it is damaged."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, start
from damage import damage_bytes
from dicom_files import enhanced, slice_place
from volume_sets import AFFINE, SHAPE, head, nifti, series, write, write_zip

from mri_ddpm import commands
from mri_ddpm.data import load_scans
from mri_ddpm.data.reading.pictures import PassingError
from mri_ddpm.errors import InputError

LOAD = (
    "import sys, json, datasets\n"
    "from mri_ddpm.data import load_scans\n"
    "print('imported', flush=True)\n"
    "scans = load_scans(train_data_dir=sys.argv[1], cache_dir=sys.argv[2], resolution=16)\n"
    "print(scans.manifest['content_sha256'])\n"
)


@pytest.fixture
def folder(tmp_path):
    files = {f"sub-{p:02d}_T1w.nii.gz": nifti(head(p)) for p in range(3)} | series(3, "P3", "sub-03/")
    return write(tmp_path / "scans", files)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def load(folder, cache):
    def make(where=folder, **options):
        return load_scans(
            **{"train_data_dir": str(where), "cache_dir": str(cache), "resolution": 16, **options}
        )

    return make


def images(scans):
    return torch.cat(
        [part.batch(range(len(part)))["pixel_values"] for part in (scans.train, scans.validation)]
    )


def stamps(cache):
    """{name: when it was written} of the decoded volumes."""
    return {file.name: (file.stat().st_mtime_ns, file.stat().st_ino) for file in cache.glob("*.arrow")}


def replace(file, content):
    """Another file by the same name; the one before may be mapped into memory."""
    file.unlink()
    file.write_bytes(content)


def assert_same(a, b):
    assert a.manifest["files"] == b.manifest["files"]
    torch.testing.assert_close(images(a), images(b), rtol=0, atol=0)


def test_a_file_a_volume_and_nothing_else(load, cache):
    first = load()
    assert len(list(cache.glob("*.arrow"))) == 4
    assert {file.suffix for file in cache.iterdir()} == {".arrow", ".sqlite"}
    before = stamps(cache)
    assert_same(load(), first)
    assert stamps(cache) == before


def test_a_moved_or_packed_folder_is_not_decoded_again(load, folder, cache, tmp_path):
    first = load()
    before = stamps(cache)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "sub-01_T1w.nii.gz").rename(tmp_path / "elsewhere" / "sub-09_T1w.nii.gz")
    assert load(moved).manifest["split"] == first.manifest["split"]
    packed = {str(p.relative_to(moved)): p.read_bytes() for p in moved.rglob("*") if p.is_file()}
    torch.testing.assert_close(
        images(load(write_zip(tmp_path / "scans.zip", packed))), images(load(moved)), rtol=0, atol=0
    )
    assert stamps(cache) == before


def test_a_changed_file_is_decoded_alone(load, folder, cache):
    load()
    before = stamps(cache)
    write(folder_path := cache.parent / "scans", {"sub-01_T1w.nii.gz": nifti(head(9))})
    assert str(folder_path) == folder
    scans = load()
    now = stamps(cache)
    assert now.items() > before.items()
    assert len(now) == 5
    shutil.rmtree(cache)
    assert_same(load(), scans)


def test_a_second_start_reads_no_voxels(load, folder, cache):
    """All but the first bytes of each file are written over behind its back, and nobody notices."""
    first = load()
    for file in (cache.parent / "scans").rglob("*"):
        if file.is_file():
            status, content = file.stat(), file.read_bytes()
            with file.open("r+b") as out:  # the same inode
                out.write(content[:4096].ljust(len(content), b"\0"))
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert_same(load(), first)
    os.utime(cache.parent / "scans" / "sub-01_T1w.nii.gz")  # now it is as new
    with pytest.raises(InputError, match="sub-01_T1w.nii.gz cannot be read as NIfTI|is truncated"):
        load()


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped", "longer", "without its end"])
def test_a_damaged_file_of_the_cache_is_built_anew(load, cache, damage):
    first = load()
    file = sorted(cache.glob("*.arrow"))[1]
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[700] ^= 4
    damaged = {
        "truncated": whole[: len(whole) // 2], "empty": b"", "text": b"hello\n" * 100, "flipped": bytes(flipped),
        "longer": whole[:300] + b"x" + whole[300:], "without its end": whole[:-9],
    }[damage]  # fmt: skip
    others = {name: stamp for name, stamp in stamps(cache).items() if name != file.name}
    replace(file, damaged)
    assert_same(load(), first)
    assert file.read_bytes() == whole
    assert stamps(cache).items() > others.items()


def test_no_damage_of_the_cache_crashes_or_lies(load, cache):
    """Bits of lengths and places are read as they are by Arrow, which then crashes; all but pixels are sealed."""
    first = load()
    files = sorted(cache.glob("*.arrow"))
    for seed in range(60):
        file, rng = files[seed % len(files)], np.random.default_rng(seed)
        whole = file.read_bytes()
        replace(file, damage_bytes(rng, whole))
        assert load().manifest == first.manifest, seed
        replace(file, whole)


@pytest.mark.parametrize("content", [b"", b"hello\n" * 1000, None])
def test_a_damaged_index_is_no_hindrance(load, cache, content):
    first = load()
    index = cache / "index.sqlite"
    damaged = bytearray(index.read_bytes())
    damaged[:200] = b"\xff" * 200
    index.write_bytes(bytes(damaged) if content is None else content)
    assert_same(load(), first)
    index.unlink()
    index.mkdir()
    assert_same(load(), first)


def test_an_index_of_another_version_is_not_believed(load, cache):
    """What it has of a DICOM file may lack what is needed of it today."""
    import sqlite3

    load()
    with sqlite3.connect(cache / "index.sqlite") as table:
        table.execute("UPDATE known SET value = ? WHERE value LIKE '{%'", ['{"patient": "x"}'])
    assert load().manifest["volumes"]["total"] == 4


def test_an_interrupted_pass_is_resumed(tmp_path, load, cache):
    """Killed at any moment: what was decoded stays, and what is left over goes at the next start or does no harm."""
    where = write(tmp_path / "many", {f"sub-{p:03d}_T1w.nii.gz": nifti(head(p)) for p in range(40)})
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            load(where)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 60
    while len(list(cache.glob("*.arrow"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    before = stamps(cache)
    assert 3 <= len(before) < 40
    scans = load(where)
    assert stamps(cache).items() > before.items()
    assert len(stamps(cache)) == 40
    fresh = load(where, cache_dir=str(tmp_path / "fresh"))
    assert_same(scans, fresh)


def test_a_file_that_fails_does_not_lose_the_others(load, cache, tmp_path):
    """The libraries of one file may fail in a way that ends the pass; what was decoded is kept."""
    files = {f"{p}.nii.gz": nifti(head(p)) for p in range(8)} | {"8.nii.gz": nifti(head(8))[:-50]}
    where = write(tmp_path / "broken", files)
    with pytest.raises(
        InputError, match="1 of 97 files in .* cannot be used: 8.nii.gz cannot be read|is truncated"
    ):
        load(where)
    before = stamps(cache)
    assert len(before) == 9
    write(tmp_path / "broken", {"8.nii.gz": nifti(head(8))})
    load(where)
    assert stamps(cache).items() > before.items()


@pytest.mark.parametrize(
    ("where", "error", "words", "kept"),
    [
        ("nifti._voxels", MemoryError(), r"3 of 15 files .* sub-00_T1w.nii.gz .*\(MemoryError\)", 1),
        (
            "series.Pictures",
            PassingError("is odd"),
            "1 of .* has a slice in file 1 of 20 by place, which is odd",
            3,
        ),
    ],
)
def test_a_failure_that_passes_is_not_kept(load, cache, monkeypatch, where, error, words, kept):
    """Memory that was short, or a decoder that was missing: said now, and tried again at the next start."""
    with monkeypatch.context() as patch:
        patch.setattr(f"mri_ddpm.data.reading.{where}", Mock(side_effect=error))
        with pytest.raises(InputError, match=words):
            load()
        assert len(stamps(cache)) == kept
    assert load().manifest["unreadable"] == []
    assert len(stamps(cache)) == 4


def test_two_at_once_do_no_harm(load, cache):
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: load(), range(2))
    assert_same(one, two)
    assert len(stamps(cache)) == 4
    assert not [*cache.glob("*.tmp"), *cache.glob("*.lock")]


@pytest.mark.slow
def test_two_processes_at_once_do_no_harm(folder, cache):
    command = [sys.executable, "-c", LOAD, folder, str(cache)]
    pair = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for _ in range(2)]
    said = {process.communicate(timeout=120)[0] for process in pair}
    assert len(said) == 1
    assert len(stamps(cache)) == 4


@pytest.mark.slow
def test_two_processes_of_a_launch_train_on_volumes(folder, cache, tmp_path):
    launcher = (
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        "accelerate_config.yaml",
        "--num_processes",
        "2",
    )
    process = start(
        "--train_data_dir", folder, "--cache_dir", cache, "--output_dir", tmp_path / "run", "--max_train_steps", "2",
        launcher=launcher, ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert (tmp_path / "run" / "pipeline").is_dir()
    assert len(stamps(cache)) == 4


def test_a_cache_that_cannot_be_written(load, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(
        InputError, match="The cache folder .*/file/below cannot be written .*: name another by --cache_dir"
    ):
        load(cache_dir=str(tmp_path / "file" / "below"))


def test_what_nobody_uses_goes_and_what_is_asked_for_is_pruned(load, folder, cache, capsys):
    load()
    load(resolution=20)
    mine = cache / "mine.arrow"
    mine.write_text("x")
    old = sorted(cache.glob("[0-9a-f]*.arrow"))
    long_ago = time.time() - 91 * 86400
    for file in (*old, mine):
        os.utime(file, (long_ago, long_ago))
    load(resolution=20)  # which uses half of them
    load(resolution=24)
    assert len(set(old) & set(cache.iterdir())) == 4
    assert mine.exists()
    size = sum(file.stat().st_size for file in cache.iterdir()) - 1
    commands.main(["data", "--prune_cache", "--cache_dir", str(cache)])
    found = re.fullmatch(r"deleted: 9 files of ([\d.]+) MB in (.*)\n", capsys.readouterr().out)
    assert float(found[1]) == pytest.approx(size / 1e6, abs=0.06)
    assert found[2] == str(cache)
    assert list(cache.iterdir()) == [mine]
    load()


def test_two_series_of_one_file_are_kept_apart(load, cache, tmp_path):
    files = {}
    for p in range(3):
        frames = [
            (
                np.ascontiguousarray(head(10 * p + e)[:, :, k].T),
                slice_place(AFFINE, k) | {"echo": 10 * (e + 1)},
            )
            for e in range(2)
            for k in range(SHAPE[2])
        ]
        files[f"{p}.dcm"] = enhanced(frames, PatientID=f"P{p}")
    where = write(tmp_path / "echoes", files)
    first = load(where)
    assert len({row["volume"] for row in first.manifest["files"]}) == 6
    assert len(stamps(cache)) == 6
    assert_same(load(where), first)
