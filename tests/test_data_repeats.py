"""Mirrored copies: found, told from the other copies, and no reason to join what is merely symmetric."""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from mri_ddpm.data import draw_phantoms, format_account, load_scans
from mri_ddpm.data.repeats import group_near_identical, picture_hashes

HEADS = [np.round(head * 255).astype(np.uint8) for head in draw_phantoms(60, 96, seed=2)[0]]


def encoded(pixels, format="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def mirrored(pixels):
    return np.ascontiguousarray(pixels[:, ::-1])


def hashes_of(pictures):
    """Of each picture the hash as it is, and mirrored."""
    return zip(*(picture_hashes(picture.astype(np.float32) / 255) for picture in pictures), strict=True)


@pytest.mark.parametrize("shape", [(2, 3), (16, 17), (40, 97), (64, 64), (96, 128), (155, 240), (243, 301)])
def test_hashes_are_those_of_the_picture_and_of_its_mirror_image(shape):
    """Though it is mirrored when it is small: against imagehash, with whole pictures, and with lit ones that have no margin."""
    rng = np.random.default_rng(0)
    for smooth in (0, 1, 4):
        image = rng.random([max(size >> smooth, 1) for size in shape])
        image = Image.fromarray((image * 155 + 100).astype(np.uint8)).resize(shape[::-1])
        unit = np.asarray(image).astype(np.float32) / np.asarray(image).max()
        for hashed, turned in zip(picture_hashes(unit), (unit, unit[:, ::-1]), strict=True):
            bright = Image.fromarray(np.round(turned * 255).astype(np.uint8))
            bits = [h(bright, hash_size=16).hash.ravel() for h in (imagehash.phash, imagehash.dhash)]
            assert hashed == np.packbits(np.concatenate(bits * 2)).tobytes()


CHANGES = {
    "none": lambda pixels: pixels,
    "jpeg": lambda pixels: np.asarray(Image.open(io.BytesIO(encoded(pixels, "JPEG", quality=75)))),
    "half": lambda pixels: np.asarray(Image.fromarray(pixels).resize((48, 48), Image.Resampling.LANCZOS)),
    "brighter": lambda pixels: np.clip(pixels * 1.15, 0, 255).astype(np.uint8),
    "margin": lambda pixels: np.pad(pixels, ((9, 0), (0, 14))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_mirrored_copies_are_found_where_copies_are(change):
    """Both joined with their pictures and with nothing else; a new margin hides 3 of 60 either way."""
    copies, mirror_images = ([CHANGES[change](turn(head)) for head in HEADS] for turn in (np.copy, mirrored))
    _, expected = group_near_identical(*hashes_of(HEADS + copies))
    facing, groups = group_near_identical(*hashes_of(HEADS + mirror_images))
    np.testing.assert_array_equal(groups, expected)
    assert len(set(groups[:60])) == 60
    assert (groups[60:] == groups[:60]).sum() == (57 if change == "margin" else 60)
    assert len(set(facing)) == 120


def test_symmetric_pictures_are_joined_with_nothing_but_their_copies():
    """A picture that is its own mirror image is as far from another's mirror image as from the other."""
    symmetric = [((head.astype(int) + head[:, ::-1]) // 2).astype(np.uint8) for head in HEADS]
    almost = [np.clip(head + np.eye(96, dtype=np.uint8) * 9, 0, 255).astype(np.uint8) for head in symmetric]
    for pictures in (symmetric, almost):
        facing, groups = group_near_identical(*hashes_of(pictures))
        assert len(set(groups)) == len(set(facing)) == 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 training heads of two classes; 12 mirrored among them, 10 mirrored and 1 of these again in testing."""
    files = {f"Training/{'ab'[i % 2]}/{i:02d}.png": encoded(HEADS[i]) for i in range(40)}
    files |= {f"Testing/{'ab'[i % 2]}/{i:02d}.png": encoded(HEADS[i]) for i in range(40, 46)}
    files |= {f"Training/{'ab'[i % 2]}/m{i:02d}.png": encoded(mirrored(HEADS[i])) for i in range(6)}
    files |= {
        f"Training/{'ab'[i % 2]}/m{i:02d}.jpg": encoded(mirrored(HEADS[i]), "JPEG") for i in range(6, 12)
    }
    files |= {f"Testing/{'ab'[i % 2]}/m{i:02d}.png": encoded(mirrored(HEADS[i])) for i in range(20, 25)}
    files |= {
        f"Testing/{'ab'[i % 2]}/m{i:02d}.jpg": encoded(mirrored(HEADS[i]), "JPEG") for i in range(25, 30)
    }
    files["Testing/b/m29 again.png"] = encoded(mirrored(HEADS[29]))
    root = tmp_path_factory.mktemp("mirrored")
    for path, content in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return str(root)


@pytest.mark.parametrize("keep_repeats", [False, True])
def test_no_mirrored_copy_is_on_another_side(folder, tmp_path, keep_repeats):
    for seed in range(3):
        files = load_scans(
            resolution=32,
            train_data_dir=folder,
            validation_share=0.3,
            keep_repeats=keep_repeats,
            seed=seed,
            cache_dir=str(tmp_path),
        ).manifest["files"]
        sides = {}
        for row in files:
            number = int(row["path"].split("/")[-1].lstrip("m")[:2])
            sides.setdefault(number, set()).add(row["split"])
        assert len({row["group"] for row in files}) == len(sides) == 46
        for number, found in sides.items():
            assert len(found & {"train", "validation", "test"}) == 1
            assert ("leak" in found) == (20 <= number < 30)
            assert ("repeat" in found) == (number < 12 and not keep_repeats)


def test_the_account_says_what_is_joined_by_mirroring_alone(folder, tmp_path):
    manifest = load_scans(resolution=32, train_data_dir=folder, cache_dir=str(tmp_path)).manifest
    repeats = manifest["repeats"]
    assert repeats["mirrored"] == {
        "total": 22,
        "within_training": 12,
        "within_validation": 0,
        "within_testing": 0,
        "across_parts": 10,
    }
    assert repeats["near_identical"]["total"] == 1  # one mirrored leak is a near copy of the one before it
    # ... but of the training part both are mirrored
    assert manifest["leaks"] == {
        "total": 11,
        "byte_identical": 0,
        "near_identical": 0,
        "mirrored": 11,
        "of_patients": 0,
    }
    kinds = {row["path"]: row["repeat"] for row in manifest["files"]}
    assert kinds["Training/a/m00.png"] == "mirrored"
    assert kinds["Training/a/00.png"] is None
    text = format_account(manifest)
    assert "mirrored copies beyond that: 22 (12 within training, 0 within testing, 10 across)" in text
    assert "11 (0 byte-identical, 0 near-identical, 11 mirrored, 0 other" in text
