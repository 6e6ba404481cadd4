"""A made data set with planted copies, leaks and broken files: found, counted, split, cached and fed."""

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import time
import unicodedata
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from mri_ddpm.data import account_of, draw_phantoms, format_account, load_phantoms, load_scans
from mri_ddpm.data.contents import _member_name
from mri_ddpm.data.reading import pictures
from mri_ddpm.data.repeats import group_near_identical, picture_hashes
from mri_ddpm.errors import InputError

SIDE = 96
HEADS = [np.round(head * 255).astype(np.uint8) for head in draw_phantoms(40, SIDE, seed=1)[0]]
TRAINING = {f"Training/{name}/{i:02d}.png": i for i in range(24) for name in ["abc"[i % 3]]}
TESTING = {f"Testing/{name}/{i:02d}.png": i for i in range(24, 33) for name in ["abc"[i % 3]]}


def encoded(pixels, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def brighter(pixels, factor):
    return np.clip(pixels * factor, 0, 255).astype(np.uint8)


def planted():
    """{path: content}: 24 + 9 distinct heads, 6 copies and 5 leaks planted among them."""
    files = {path: encoded(HEADS[i]) for path, i in (TRAINING | TESTING).items()}
    half = np.asarray(Image.fromarray(HEADS[3]).resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS))
    files |= {
        "Training/a/99 bytes.png": files["Training/a/00.png"],
        "Training/a/99 jpeg.jpg": encoded(HEADS[0], "JPEG", quality=80),
        "Training/a/99 half.png": encoded(half),
        "Training/b/99 brighter.png": encoded(brighter(HEADS[1], 1.15)),
        "Training/c/99 margin.png": encoded(np.pad(HEADS[2], ((9, 0), (0, 14)))),
        "Training/c/99 other class.png": files["Training/b/04.png"],
        "Testing/a/99 leak.png": files["Training/a/06.png"],
        "Testing/b/99 leak.png": files["Training/b/07.png"],
        "Testing/b/99 leak again.png": files["Training/b/07.png"],
        "Testing/c/99 near leak.jpg": encoded(HEADS[5], "JPEG", quality=80),
        "Testing/a/99 darker leak.png": encoded(brighter(HEADS[9], 0.85)),
        "Testing/a/98 twice.png": files["Testing/a/24.png"],
        ".DS_Store": b"litter",
        "Training/a/Thumbs.db": b"litter",
        "__MACOSX/Training/a/._00.png": b"litter",
    }
    return files


BROKEN = {
    "Training/a/broken.png": (encoded(HEADS[39])[:2000], "cannot be decoded"),
    "Training/b/empty.png": (b"", "is empty"),
    "Testing/c/notes.png": (b"not an image", "is not an image"),
    "Training/stray.png": (encoded(HEADS[38]), "lies outside the class folders"),
    "stray.png": (encoded(HEADS[38]), "lies outside the training, validation and testing folders"),
}


def write_folder(root, files):
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return str(root)


def write_zip(path, files, top=""):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return str(path)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("made"), planted())


@pytest.fixture(scope="module")
def scans(folder, cache_dir):
    return load_scans(resolution=32, train_data_dir=folder, cache_dir=cache_dir)


def paths(manifest, split):
    return [row["path"] for row in manifest["files"] if row["split"] == split]


def images_of(dataset):
    return dataset.batch(range(len(dataset)))["pixel_values"]


def test_the_account_finds_what_was_planted(scans):
    manifest = scans.manifest
    repeats = manifest["repeats"]
    # twice 00, 04 and 24; leaks 06, 07 and 07
    assert repeats["byte_identical"] == {
        "total": 6,
        "within_training": 2,
        "within_validation": 0,
        "within_testing": 1,
        "across_parts": 3,
    }
    # jpeg of 00, half of 03, brighter 01, margin of 02; leaks of 05 and 09
    assert repeats["near_identical"] == {
        "total": 6,
        "within_training": 4,
        "within_validation": 0,
        "within_testing": 0,
        "across_parts": 2,
    }
    assert repeats["groups"] == 33
    assert repeats["label_conflicts"] == 1
    assert manifest["leaks"] == {
        "total": 5,
        "byte_identical": 3,
        "near_identical": 2,
        "mirrored": 0,
        "of_patients": 0,
    }
    assert paths(manifest, "leak") == sorted(p for p in planted() if "leak" in p)
    assert paths(manifest, "repeat") == sorted(p for p in planted() if "/9" in p and "leak" not in p)
    assert paths(manifest, "test") == sorted(p for p in TESTING)
    assert sorted(paths(manifest, "train") + paths(manifest, "validation")) == sorted(TRAINING)
    assert manifest["parts"]["training"] == {"total": 30, "classes": {"a": 11, "b": 9, "c": 10}}
    assert manifest["sizes"]["width"] == {"min": SIDE // 2, "median": SIDE, "max": SIDE + 14}
    assert json.loads(json.dumps(manifest)) == manifest


def test_the_account_reads_well(scans):
    text = format_account(scans.manifest)
    for line in (
        "byte-identical copies: 6 (2 within training, 1 within testing, 3 across)",
        "near-identical copies beyond that: 6 (4 within training, 0 within testing, 2 across)",
        "earlier part (left out): 5 (3 byte-identical, 2 near-identical, 0 mirrored, 0 other",
        scans.manifest["content_sha256"],
    ):
        assert line in text


def test_account_of_agrees_with_load_scans(scans, folder, cache_dir):
    account = account_of(folder, cache_dir=cache_dir)[0]
    assert account["content_sha256"] == scans.manifest["content_sha256"]
    assert account["files"] == scans.manifest["files"]
    assert account["settings"]["resolution"] is None


def test_items_are_the_pictures_with_their_labels(scans):
    assert scans.class_names == ("a", "b", "c")
    for name in ("train", "validation", "test"):
        dataset = getattr(scans, name)
        listed = paths(scans.manifest, name)
        assert len(dataset) == len(listed) == len(dataset.class_labels)
        assert dataset.class_labels.dtype == np.int64
        for index, path in enumerate(listed):
            item = dataset[index]
            assert item["class_labels"] == dataset.class_labels[index] == "abc".index(path.split("/")[1])
            picture = Image.fromarray(HEADS[(TRAINING | TESTING)[path]].astype(np.float32) / 255)
            expected = np.asarray(picture.resize((32, 32), Image.Resampling.LANCZOS)).clip(0, 1)
            np.testing.assert_allclose(item["pixel_values"].numpy()[0], expected, atol=1e-5)


def test_a_data_loader_feeds_batches(scans):
    batch = next(iter(torch.utils.data.DataLoader(scans.train, batch_size=8)))
    assert batch["pixel_values"].shape == (8, 1, 32, 32)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["class_labels"].dtype == torch.int64
    torch.testing.assert_close(
        batch["pixel_values"], scans.train.batch(range(8))["pixel_values"], rtol=0, atol=0
    )
    again = pickle.loads(pickle.dumps(scans.train))  # as a worker process gets it
    torch.testing.assert_close(images_of(again), images_of(scans.train), rtol=0, atol=0)


def test_validation_is_a_share_of_every_class(folder, cache_dir):
    for share, expected in ((0.01, 1), (0.25, 2), (0.5, 4), (0.99, 7)):
        load = load_scans(resolution=32, train_data_dir=folder, validation_share=share, cache_dir=cache_dir)
        assert np.bincount(load.validation.class_labels).tolist() == [expected] * 3
        assert np.bincount(load.train.class_labels).tolist() == [8 - expected] * 3


@pytest.mark.parametrize("keep_repeats", [False, True])
def test_no_picture_is_on_two_sides(folder, cache_dir, keep_repeats):
    validation = set()
    for seed in range(8):
        manifest = load_scans(
            resolution=32,
            train_data_dir=folder,
            validation_share=0.3,
            keep_repeats=keep_repeats,
            seed=seed,
            cache_dir=cache_dir,
        ).manifest
        sides = {}
        for row in manifest["files"]:
            if row["split"] in ("train", "validation", "test"):
                sides.setdefault(row["group"], set()).add(row["split"])
        assert all(len(side) == 1 for side in sides.values())
        assert len(sides) == 33
        validation.add(tuple(paths(manifest, "validation")))
        if keep_repeats:  # all but the one whose class contradicts
            assert paths(manifest, "repeat") == ["Training/c/99 other class.png"]
    assert len(validation) > 1  # the seed matters


def test_split_is_the_same_wherever_the_files_lie(scans, tmp_path, cache_dir):
    manifest = scans.manifest
    backwards = write_folder(tmp_path / "backwards", dict(reversed(planted().items())))
    sources = [
        backwards,
        write_zip(tmp_path / "plain.zip", planted()),
        write_zip(tmp_path / "enclosed.zip", planted(), top="brain_scans/v1/"),
    ]
    for source in sources:
        other = load_scans(resolution=32, train_data_dir=source, cache_dir=cache_dir)
        assert other.manifest["files"] == manifest["files"]
        assert other.manifest["content_sha256"] == manifest["content_sha256"]
        torch.testing.assert_close(images_of(other.train), images_of(scans.train), rtol=0, atol=0)
    changed = write_folder(tmp_path / "changed", planted() | {"Testing/a/24.png": encoded(HEADS[35])})
    assert account_of(changed, cache_dir=cache_dir)[0]["content_sha256"] != manifest["content_sha256"]


def test_broken_files_are_skipped_and_counted(scans, tmp_path, cache_dir):
    broken = {path: content for path, (content, _) in BROKEN.items()}
    folder = write_folder(tmp_path, planted() | broken)
    skipped = load_scans(resolution=32, train_data_dir=folder, on_bad_image="skip", cache_dir=cache_dir)
    reasons = {row["path"]: row["reason"] for row in skipped.manifest["unreadable"]}
    assert reasons.keys() == BROKEN.keys()
    assert all(reason in reasons[path] for path, (_, reason) in BROKEN.items())
    assert paths(skipped.manifest, "bad") == sorted(BROKEN)
    torch.testing.assert_close(images_of(skipped.train), images_of(scans.train), rtol=0, atol=0)
    account = account_of(folder, cache_dir=cache_dir)[0]  # never stops at them
    assert account["unreadable"] == skipped.manifest["unreadable"]
    assert "unreadable files: 5" in format_account(account)


OTHERS = {
    "README.md": b"# Scans",
    "Training/a/labels.csv": b"file,class\n00.png,a\n",
    "Testing/more.csv": b"",
    "licence": b"Do as you like.",
    "volume.h5": b"\x89HDF\r\n\x1a\n" + bytes(300),
}


@pytest.mark.parametrize("packed", [False, True])
def test_files_that_are_no_images_are_passed_over_and_counted(scans, tmp_path, cache_dir, packed):
    files = {f"brain/{path}": content for path, content in planted().items()} | OTHERS
    source = write_zip(tmp_path / "a.zip", files) if packed else write_folder(tmp_path / "a", files)
    other = load_scans(resolution=32, train_data_dir=source, cache_dir=cache_dir)
    assert other.manifest["files"] == scans.manifest["files"]
    assert other.manifest["content_sha256"] == scans.manifest["content_sha256"]
    counted = "passed over: 5 files that are no images (.csv, .h5, .md, without a suffix)"
    assert counted in format_account(other.manifest)


def test_an_image_may_be_called_anything(scans, tmp_path, cache_dir):
    files = {path.replace(".png", ""): content for path, content in planted().items()}
    other = load_scans(resolution=32, train_data_dir=write_folder(tmp_path, files), cache_dir=cache_dir)
    torch.testing.assert_close(images_of(other.train), images_of(scans.train), rtol=0, atol=0)


def test_a_folder_without_classes(tmp_path, cache_dir):
    flat = {f"{i:02d}.png": encoded(HEADS[i]) for i in range(12)}
    for source in (
        write_folder(tmp_path / "flat", flat),
        write_zip(tmp_path / "flat.zip", flat),
        write_zip(tmp_path / "enclosed.zip", flat, top="scans/"),
        write_folder(tmp_path / "parts", {f"train/{path}": c for path, c in flat.items()}),
    ):
        scans = load_scans(resolution=16, train_data_dir=source, cache_dir=cache_dir)
        assert scans.class_names == ()
        assert scans.test is None
        assert (len(scans.train), len(scans.validation)) == (11, 1)
        assert scans.train.class_labels.tolist() == [0] * 11
        assert "total" in format_account(scans.manifest)


def test_links_in_a_circle_are_followed_once(scans, tmp_path, cache_dir):
    folder = Path(write_folder(tmp_path / "made", planted()))
    for link in ("Training/a/up", "Training/b/up", "again", "Testing/again"):
        (folder / link).symlink_to(folder, target_is_directory=True)
    (folder / "Training/a/elsewhere").symlink_to(folder / "Training/b", target_is_directory=True)
    other = load_scans(resolution=32, train_data_dir=str(folder), cache_dir=cache_dir)
    assert other.manifest["files"] == scans.manifest["files"]


def test_a_link_to_scans_elsewhere_is_followed(scans, tmp_path, cache_dir):
    write_folder(tmp_path / "elsewhere", planted())
    (tmp_path / "made").mkdir()
    for part in ("Training", "Testing"):
        (tmp_path / "made" / part).symlink_to(tmp_path / "elsewhere" / part, target_is_directory=True)
    other = load_scans(resolution=32, train_data_dir=str(tmp_path / "made"), cache_dir=cache_dir)
    assert other.manifest["files"] == scans.manifest["files"]


def test_a_zip_made_on_windows_has_the_same_classes(scans, tmp_path, cache_dir):
    path = tmp_path / "windows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {"Training\\a\\": b"", **planted()}.items():
            member = zipfile.ZipInfo("x")
            member.filename = name.replace("/", "\\")
            archive.writestr(member, content)
    other = load_scans(resolution=32, train_data_dir=str(path), cache_dir=cache_dir)
    assert other.manifest["files"] == scans.manifest["files"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_class_has_one_name_in_whichever_form_of_unicode(tmp_path, cache_dir, packed):
    composed, apart = (unicodedata.normalize(form, "rétro") for form in ("NFC", "NFD"))
    files = {f"{apart}/{i}.png": encoded(HEADS[i]) for i in range(3)}
    files |= {f"{composed}/{i % 3}.png": encoded(HEADS[i]) for i in range(3, 6)}
    files |= {f"other/{i}.png": encoded(HEADS[i]) for i in range(6, 9)}
    source = write_zip(tmp_path / "a.zip", files) if packed else write_folder(tmp_path / "a", files)
    manifest = account_of(source, cache_dir=cache_dir)[0]
    assert manifest["class_names"] == ["other", composed]
    assert manifest["parts"]["training"]["classes"] == {"other": 3, composed: 6}


def test_names_in_a_zip_without_the_mark_of_utf_8(tmp_path, cache_dir):
    """As some programs write them: the bytes are UTF-8, and nothing says so."""
    path = write_zip(
        tmp_path / "a.zip",
        {f"rétro/{i}.png": encoded(HEADS[i]) for i in range(3)} | {"b/0.png": encoded(HEADS[3])},
    )
    with zipfile.ZipFile(path) as archive:
        names = {m.filename: m for m in archive.infolist()}
        member = names["rétro/0.png"]
        member.flag_bits &= ~0x800
        member.filename = "rétro/0.png".encode().decode("cp437")
        assert _member_name(member) == "rétro/0.png"
        member.filename = "r\x82tro/0.png".encode("latin-1").decode("cp437")
        assert _member_name(member) == "rétro/0.png"  # of DOS, as it says


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:40] + bytes(400) + b[440:]]
)
def test_a_damaged_table_is_decoded_again(folder, scans, tmp_path, damage):
    load_scans(resolution=32, train_data_dir=folder, cache_dir=str(tmp_path))
    (table,) = tmp_path.iterdir()
    whole = table.read_bytes()
    table.write_bytes(damage(whole))
    again = load_scans(resolution=32, train_data_dir=folder, cache_dir=str(tmp_path))
    torch.testing.assert_close(images_of(again.train), images_of(scans.train), rtol=0, atol=0)
    assert table.stat().st_size == len(whole)


def test_a_flipped_bit_in_a_table_crashes_nothing(folder, tmp_path):
    """Of lengths and places too, which are next to the ends."""
    load_scans(resolution=16, train_data_dir=folder, cache_dir=str(tmp_path))
    (table,) = tmp_path.iterdir()
    whole, rng = table.read_bytes(), np.random.default_rng(0)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from mri_ddpm.data.cache import _features, _whole_table\n"
        "assert _whole_table(Path(sys.argv[1]), sys.argv[3].split(), _features(16, False))\n"
        "for line in sys.stdin:\n"
        "    at, bit = map(int, line.split())\n"
        "    content = bytearray(Path(sys.argv[1]).read_bytes())\n"
        "    content[at] ^= 1 << bit\n"
        "    Path(sys.argv[2]).write_bytes(content)\n"
        "    found = _whole_table(Path(sys.argv[2]), sys.argv[3].split(), _features(16, False))\n"
        "    if found: found.remove_columns('pixels').to_list()\n"
    )
    places = "".join(f"{rng.integers(6000) - (i % 2) * 6000} {rng.integers(8)}\n" for i in range(300))
    known = " ".join(datasets.Dataset.from_file(str(table))["sha256"])
    done = subprocess.run(
        [sys.executable, "-c", code, table, tmp_path / "damaged.arrow", known],
        input=places, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert table.read_bytes() == whole


def test_tables_that_nobody_uses_go(folder, tmp_path):
    load_scans(resolution=16, train_data_dir=folder, cache_dir=str(tmp_path))
    (table,) = tmp_path.iterdir()
    mine = tmp_path / "mine.arrow"
    mine.write_bytes(b"x")
    long_ago = time.time() - 91 * 86400
    for file in (table, mine):
        os.utime(file, (long_ago, long_ago))
    load_scans(resolution=16, train_data_dir=folder, cache_dir=str(tmp_path))
    load_scans(resolution=17, train_data_dir=folder, cache_dir=str(tmp_path))
    assert table.exists()  # it was used just now
    os.utime(table, (long_ago, long_ago))
    load_scans(resolution=18, train_data_dir=folder, cache_dir=str(tmp_path))
    assert not table.exists()
    assert mine.exists()


def test_second_start_decodes_nothing(folder, scans, tmp_path):
    """A file in the cache is never touched again, and with it in place the decoder is not needed."""
    fresh = str(tmp_path / "fresh")
    load_scans(resolution=32, train_data_dir=folder, cache_dir=fresh)
    (table,) = Path(fresh).iterdir()  # whole, and no draft is left beside it
    stamp = table.stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        Image.init()
        for name in list(Image.OPEN):  # from here on Pillow can decode nothing
            patch.delitem(Image.OPEN, name)
        again = load_scans(resolution=32, train_data_dir=folder, cache_dir=fresh)
    assert again.manifest["content_sha256"] == scans.manifest["content_sha256"]
    assert table.stat().st_mtime_ns == stamp
    # another resolution or fit is another table
    load_scans(resolution=33, train_data_dir=folder, cache_dir=fresh)
    load_scans(resolution=32, train_data_dir=folder, fit="stretch", cache_dir=fresh)
    assert len(list(Path(fresh).iterdir())) == 3


@pytest.mark.parametrize("what", [MemoryError(), ValueError("<LZW: 5> requires the 'imagecodecs' package")])
def test_a_failure_that_passes_is_not_kept(folder, scans, tmp_path, monkeypatch, what):
    """As memory that was short, or a library that was missing: said now, and tried again at the next start."""
    frames, failing = pictures._frames, [encoded(HEADS[3]), encoded(HEADS[6])]

    def short(content):
        if content in failing:
            raise what
        return frames(content)

    monkeypatch.setattr(pictures, "_frames", short)
    options = {"resolution": 32, "train_data_dir": folder, "cache_dir": str(tmp_path)}
    with pytest.raises(InputError, match="3 of 45 files .* cannot be decoded .*(MemoryError|imagecodecs)"):
        load_scans(**options)
    skipped = load_scans(on_bad_image="skip", **options)
    assert len(skipped.manifest["unreadable"]) == 3
    (table,) = tmp_path.iterdir()
    before = table.stat().st_ino
    load_scans(on_bad_image="skip", **options)
    assert table.stat().st_ino == before  # what could be read is not decoded again
    failing.clear()
    whole = load_scans(**options)
    assert whole.manifest["files"] == scans.manifest["files"]
    torch.testing.assert_close(images_of(whole.train), images_of(scans.train), rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 1


def test_two_that_build_one_cache_do_no_harm(folder, scans, tmp_path):
    def load(_):
        return load_scans(resolution=32, train_data_dir=folder, cache_dir=str(tmp_path))

    with ThreadPoolExecutor(2) as pool:
        for other in pool.map(load, range(2)):
            torch.testing.assert_close(images_of(other.train), images_of(scans.train), rtol=0, atol=0)
    assert len(list(tmp_path.iterdir())) == 1


def test_hub_data_set_by_column_names(tmp_path, cache_dir, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    parts = {path.replace("Training", "train").replace("Testing", "test"): c for path, c in planted().items()}
    folder = write_folder(tmp_path / "imagefolder", {p: c for p, c in parts.items() if p.startswith("t")})
    (Path(folder) / "train/a/Thumbs.db").unlink()
    scans = load_scans(resolution=32, dataset_name=folder, cache_dir=cache_dir)
    assert scans.class_names == ("a", "b", "c")
    assert scans.manifest["leaks"] == {
        "total": 5,
        "byte_identical": 3,
        "near_identical": 2,
        "mirrored": 0,
        "of_patients": 0,
    }
    assert (len(scans.train) + len(scans.validation), len(scans.test)) == (24, 9)

    rows = {"scan": [encoded(head) for head in HEADS[:12]], "kind": ["ill", "well"] * 6}
    shutil.rmtree(folder)
    (tmp_path / "parquet").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "parquet/train.parquet")
    named = load_scans(
        resolution=32,
        dataset_name=str(tmp_path / "parquet"),
        image_column="scan",
        label_column="kind",
        cache_dir=cache_dir,
    )
    assert named.class_names == ("ill", "well")
    assert named.manifest["split"]["train"]["classes"] == {"ill": 5, "well": 5}
    assert named.test is None


def test_phantoms_are_split_and_named_phantoms(cache_dir):
    scans = load_phantoms(num_images=40, resolution=24, seed=3)
    images, labels = draw_phantoms(40, 24, seed=3)
    assert scans.manifest["source"] == "phantom"
    assert scans.manifest["repeats"] is None
    assert len(scans.class_names) == 4
    assert (len(scans.train), len(scans.validation), scans.test) == (36, 4, None)
    assert sorted(scans.validation.class_labels) == [0, 1, 2, 3]
    rows = [int(path.split("/")[1]) for path in paths(scans.manifest, "train")]
    np.testing.assert_array_equal(scans.train.class_labels, labels[rows])
    np.testing.assert_allclose(images_of(scans.train)[:, 0], images[rows], atol=1e-5)
    assert "40 files" in format_account(scans.manifest)


def test_copies_cut_or_mirrored_are_grouped_with_their_pictures():
    units = [head.astype(np.float32) / 255 for head in HEADS]
    units += [head[4:].astype(np.float32) / 300 for head in HEADS[::4]]
    units += [unit[:, ::-1] for unit in units[:40:5]]
    hashes = zip(*map(picture_hashes, units), strict=True)
    whole = group_near_identical(*hashes)
    for facing_or_group in whole:
        assert len(set(facing_or_group[:40])) == 40
        np.testing.assert_array_equal(facing_or_group[40:50], facing_or_group[:40:4])
    np.testing.assert_array_equal(whole[1][50:], whole[1][:40:5])
    assert not set(whole[0][50:]) & set(whole[0][:50])


def test_scans_that_fill_a_part_of_their_range_are_pointed_out(tmp_path):
    """12-bit values in a 16-bit PNG are nearly black to whoever divides by 65535."""
    for index in range(4):
        twelve_bit = np.random.default_rng(index).integers(0, 4096, (32, 32)).astype(np.uint16)
        full = twelve_bit if index % 2 else twelve_bit * 16
        path = tmp_path / "scans" / "a" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(full).save(path)
    manifest = account_of(str(tmp_path / "scans"), cache_dir=str(tmp_path / "cache"))[0]
    assert manifest["dark"] == 2
    assert "2 scans reach less than an eighth" in format_account(manifest)
