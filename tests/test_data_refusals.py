"""What cannot be used as scans is refused in one sentence that names it and the way out."""

import io
import json
import os
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image

from mri_ddpm.data import account_of, draw_phantoms, load_phantoms, load_scans
from mri_ddpm.errors import InputError


def png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


HEADS = [png(np.round(head * 255).astype(np.uint8)) for head in draw_phantoms(8, 48, seed=2)[0]]


@pytest.fixture
def make_folder(tmp_path):
    def make(files):
        for path, content in files.items():
            file = tmp_path / "scans" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        return str(tmp_path / "scans")

    return make


@pytest.fixture
def refusal(tmp_path):
    """The one sentence with which `load_scans` refuses."""

    def refuse(**arguments):
        with pytest.raises(InputError) as caught:
            load_scans(**{"resolution": 16, "cache_dir": str(tmp_path / "cache")} | arguments)
        message = str(caught.value)
        assert "\n" not in message
        return message

    return refuse


@pytest.fixture
def good(make_folder):
    return make_folder({f"{i}.png": head for i, head in enumerate(HEADS)})


def test_arguments_out_of_range(refusal, good):
    assert "--resolution is 15; take 16 or more" in refusal(train_data_dir=good, resolution=15)
    assert "one of: pad, crop, stretch" in refusal(train_data_dir=good, fit="squash")
    assert "one of: error, skip" in refusal(train_data_dir=good, on_bad_image="ignore")
    for share in (0, 1, -0.1, 1.5, float("nan")):
        assert f"--validation_share is {share}; " in refusal(train_data_dir=good, validation_share=share)


def test_one_source_is_needed(refusal, good):
    assert "pass --train_data_dir" in refusal()
    assert "--train_data_dir and --dataset_name are both given" in refusal(
        train_data_dir=good, dataset_name="somebody/scans"
    )


def test_missing_and_empty(refusal, tmp_path, make_folder):
    missing = str(tmp_path / "nowhere")
    assert f"{missing} does not exist" in refusal(train_data_dir=missing)
    empty = make_folder({".hidden": b"x"})
    assert f"{empty} holds no images" in refusal(train_data_dir=empty)
    texts = make_folder({"a/notes.txt": b"x", "b/more.txt": b"y"})
    assert "holds 2 files that are no images (.txt), and nothing else" in refusal(
        train_data_dir=texts, on_bad_image="skip"
    )
    with pytest.raises(InputError, match="2 files that are no images"):
        account_of(texts, cache_dir=str(tmp_path / "cache"))


def test_a_folder_that_cannot_be_read(refusal, make_folder, monkeypatch):
    """As one of another user: a class must not go missing in silence."""
    folder = make_folder({f"{'abc'[i % 3]}/{i}.png": head for i, head in enumerate(HEADS)})
    scandir = os.scandir

    def denied(path):
        if str(path) == f"{folder}/c":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    words = f"{folder}/c cannot be read (Permission denied): make it readable, or move it away."
    assert refusal(train_data_dir=folder) == words


def test_a_broken_zip(refusal, tmp_path):
    archive = tmp_path / "scans.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for i, head in enumerate(HEADS):
            file.writestr(f"{i}.png", head)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    assert "scans.zip is neither a folder nor a readable .zip" in refusal(train_data_dir=str(archive))
    spoilt = bytearray(whole)
    spoilt[200] ^= 255  # within the first member
    archive.write_bytes(spoilt)
    assert "0.png cannot be unpacked (Bad CRC-32" in refusal(train_data_dir=str(archive))


def test_a_zip_bomb_is_not_unpacked(refusal, tmp_path):
    archive = tmp_path / "scans.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("good.png", HEADS[0])
        with file.open("bomb.png", "w") as member:
            for _ in range(33):
                member.write(bytes(2**24))
    assert archive.stat().st_size < 2**20
    assert "bomb.png unpacks to more than 512 MiB" in refusal(train_data_dir=str(archive))


def test_bad_images_are_listed(refusal, make_folder):
    bomb = io.BytesIO()
    Image.new("1", (10000, 10000)).save(bomb, "PNG")
    files = {f"{i}.png": head for i, head in enumerate(HEADS)}
    files |= {
        "bomb.png": bomb.getvalue(),
        "cut.png": HEADS[0][:500],
        "empty.png": b"",
        "notes.png": b"# notes",
    }
    message = refusal(train_data_dir=make_folder(files))
    assert message.startswith("4 of 12 files")
    for part in (
        "bomb.png has more than 89478485 pixels",
        "cut.png cannot be decoded",
        "empty.png is empty",
        "notes.png is not an image",
        "--on_bad_image skip",
    ):
        assert part in message
    many = make_folder(files | {f"zz{i:02d}.png": b"" for i in range(20)})
    assert "and 14 more" in refusal(train_data_dir=many)


def test_a_class_without_training_scans(refusal, make_folder):
    files = {f"Training/a/{i}.png": head for i, head in enumerate(HEADS)} | {"Testing/rare/0.png": HEADS[0]}
    assert "the class rare has images in the testing part only" in refusal(train_data_dir=make_folder(files))


def test_a_class_of_which_nothing_is_left_to_train_on(refusal, make_folder):
    """As the same pictures packed twice: yes/ and no/ beside brain_tumor_dataset/{yes,no}/."""
    files = {f"{'yes' if i % 2 else 'no'}/{i}.png": head for i, head in enumerate(HEADS)}
    files |= {f"brain_tumor_dataset/{path}": head for path, head in files.items()}
    message = refusal(train_data_dir=make_folder(files))
    assert "the class no has no scan left to train on" in message
    assert "no/0.png of brain_tumor_dataset/no/0.png" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(128) + b"DICM" + bytes(300), "holds no scans; left out: 2 DICOM files, no image"),
        (bytes(344) + b"n+1\0" + bytes(300), "cannot be read as NIfTI"),
        (b"\x1f\x8b" + bytes(300), "is compressed, and no .nii.gz"),
        (b"PAR1" + bytes(300), "by --dataset_name"),
        (b"\xff\xff\xff\xff" + bytes(300), "by --dataset_name"),
        (b"MATLAB 5.0 MAT-file" + bytes(300), "is a MATLAB file"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".bin", ".png"])
def test_files_of_another_kind_are_named(refusal, make_folder, content, words, suffix):
    files = {f"a/0{suffix}": content, f"a/1{suffix}": content, "README.md": b"# Scans"}
    assert words in refusal(train_data_dir=make_folder(files))


def test_a_data_set_of_the_hub_given_as_a_folder(refusal, tmp_path):
    rows = datasets.Dataset.from_dict({"image": HEADS, "label": [0] * 8})
    rows.to_parquet(tmp_path / "parquet/train.parquet")
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict({"train": rows}).save_to_disk(tmp_path / "dict")
    for name, kind in (("parquet", "parquet"), ("saved", "Arrow"), ("dict", "Arrow")):
        message = refusal(train_data_dir=str(tmp_path / name))
        assert f"is an {kind} table: give" in message or f"is a {kind} table: give" in message
        assert "by --dataset_name" in message


def test_a_data_set_with_several_configurations(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    rows = datasets.Dataset.from_dict({"image": HEADS, "label": ["x", "y"] * 4})
    configs = [{"config_name": name, "data_files": f"{name}/train.parquet"} for name in ("axial", "coronal")]
    for row in configs:
        rows.to_parquet(tmp_path / "set" / row["data_files"])
    (tmp_path / "set/README.md").write_text(
        "---\n" + json.dumps({"configs": configs}) + "\n---\n", encoding="utf-8"
    )
    name = str(tmp_path / "set")
    message = refusal(dataset_name=name)
    assert "has several configurations: choose one by --dataset_config_name (axial, coronal)" in message
    message = refusal(dataset_name=name, dataset_config_name="sagittal")
    assert "['axial', 'coronal']" in message
    chosen = account_of(dataset_name=name, dataset_config_name="axial", cache_dir=str(tmp_path / "cache"))[0]
    assert chosen["class_names"] == ["x", "y"]


def test_testing_alone(refusal, make_folder):
    files = {f"Testing/a/{i}.png": head for i, head in enumerate(HEADS)}
    assert "training scans are needed" in refusal(train_data_dir=make_folder(files))


def test_too_few_to_split(refusal, make_folder):
    assert "too few to split" in refusal(
        train_data_dir=make_folder({"a/0.png": HEADS[0], "b/0.png": HEADS[1]})
    )
    with pytest.raises(InputError, match="too few to split"):
        load_phantoms(num_images=3, resolution=16)


def test_an_unwritable_cache(refusal, good, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    assert "name another by --cache_dir" in refusal(train_data_dir=good, cache_dir=str(tmp_path / "file"))


def test_columns_and_names_of_hub_data_sets(refusal, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    (tmp_path / "set").mkdir()
    rows = datasets.Dataset.from_dict({"scan": HEADS, "kind": ["x", "y"] * 4, "age": list(range(8))})
    rows.to_parquet(tmp_path / "set/train.parquet")
    name = str(tmp_path / "set")
    assert "--image_column image is not a column" in refusal(dataset_name=name)
    message = refusal(dataset_name=name, image_column="scan")
    assert "--label_column label is not a column" in message
    assert "scan, kind, age" in message
    assert "does not hold images" in refusal(dataset_name=name, image_column="age", label_column="kind")
    assert "cannot be loaded" in refusal(dataset_name=str(tmp_path / "nothing"))
    saved = str(tmp_path / "saved")
    rows.save_to_disk(saved)
    assert "--image_column image is not a column" in refusal(dataset_name=saved)
    assert refusal(dataset_name=saved, dataset_config_name="axial") == (
        f"--dataset_name {saved} was written by save_to_disk and has no configurations: leave out --dataset_config_name axial."
    )
    (tmp_path / "set/train.parquet").rename(tmp_path / "set/test.parquet")
    assert 'has no "train" split' in refusal(dataset_name=name, image_column="scan", label_column="kind")


@pytest.mark.parametrize(
    ("label", "feature"),
    [
        ([0, 1], datasets.Sequence(datasets.ClassLabel(names=["x", "y"]))),
        (["x"], datasets.Sequence(datasets.Value("string"))),
        (HEADS[0], datasets.Image()),
    ],
)
def test_a_label_column_of_no_single_labels(refusal, tmp_path, label, feature):
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = datasets.Dataset.from_dict({"image": HEADS, "label": [label] * 8}, features=features)
    name = str(tmp_path / "saved")
    rows.save_to_disk(name)
    assert refusal(dataset_name=name) == (
        f"--label_column label of {name} holds a {type(feature).__name__} and no single label a scan: name another column,"
        ' or give --label_column "" for scans without classes.'
    )
