"""What the names of folders, files and splits mean: parts, classes, patients and masks, and that it is said."""

import io
from pathlib import PurePosixPath

import datasets
import numpy as np
import pytest
from PIL import Image

from mri_ddpm.data import NO_PATIENTS, account_of, draw_phantoms, format_account, format_findings, load_scans
from mri_ddpm.data.layout import part_of
from mri_ddpm.data.masks import Masks
from mri_ddpm.errors import InputError


def png(head):
    file = io.BytesIO()
    Image.fromarray(np.round(head * 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


HEADS = [png(head) for head in draw_phantoms(24, 48, seed=2)[0]]


@pytest.fixture
def account(tmp_path):
    """The account of a folder with one head a path."""

    def make(*paths, heads=HEADS):
        for path, head in zip(paths, heads, strict=False):
            file = tmp_path / "scans" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(head)
        return account_of(str(tmp_path / "scans"), cache_dir=str(tmp_path / "cache"))[0]

    return make


def said(manifest):
    """The paragraph that stands at the head of an account and of a training."""
    return format_account(manifest).splitlines()[1]


def split_of(manifest):
    return {row["path"]: row["split"] for row in manifest["files"]}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *(
            (n, "training")
            for n in ("train", "Training", "train_images", "images-train", "Train Set", "train1")
        ),
        *(
            (n, "validation")
            for n in ("val", "Valid", "validation", "val_images", "Validation data", "val2017")
        ),
        *((n, "testing") for n in ("test", "Testing", "test_images")),
        *((n, None) for n in ("glioma", "test_glioma", "trainee", "train_test", "images", "value", "7", "")),
    ],
)
def test_parts_by_name(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    "names",
    [
        ("train", "val", "test"),
        ("Training", "Validation", "Testing"),
        ("train_images", "val_images", "test_images"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_validation_part_validates(account, names, inside):
    """Whether the parts lie outside the classes or in each of them."""
    paths = [
        f"{c}/{p}/{i}.png" if inside else f"{p}/{c}/{i}.png" for p in names for c in "ab" for i in range(3)
    ]
    manifest = account(*paths)
    assert manifest["class_names"] == ["a", "b"]
    expected = dict(zip(names, ("train", "validation", "test"), strict=True))
    part = 1 if inside else 0
    assert split_of(manifest) == {path: expected[path.split("/")[part]] for path in paths}
    assert said(manifest) == (
        f"parts: 6 in {names[0]}/, 6 in {names[1]}/, 6 in {names[2]}/; "
        f"validation is by {names[1]}/, and --validation_share is not used; classes: 2 folders; {NO_PATIENTS}"
    )


@pytest.mark.parametrize(
    ("paths", "classes"), [(("a/0.png", "a/1.png", "b/2.png"), "2 folders"), (("0.png", "1.png"), "none")]
)
def test_that_there_are_no_parts_is_said(account, paths, classes):
    assert (
        said(account(*paths)) == f"parts: none, all files are for training; classes: {classes}; {NO_PATIENTS}"
    )


@pytest.mark.parametrize("stray", ["b/0.png", "b/x/0.png"])
def test_a_class_without_the_parts_of_the_others(account, stray):
    """Its files are for nobody knows what: named, and neither trained on nor taken for a class of its own."""
    manifest = account("a/train/0.png", "a/train/1.png", "a/val/2.png", stray, heads=[*HEADS[:3], HEADS[7]])
    reason = "lies outside the training, validation and testing folders"
    assert manifest["unreadable"] == [{"path": stray, "reason": reason}]
    assert manifest["class_names"] == ["a"]


def test_leaks_into_a_validation_part(account):
    paths = [*(f"train/{i}.png" for i in range(4)), *(f"val/{i}.png" for i in range(2)), "val/leak.png"]
    paths += ["test/of val.png", "test/of train.png", "test/own.png"]
    manifest = account(*paths, heads=[*HEADS[:6], HEADS[0], HEADS[4], HEADS[1], HEADS[7]])
    assert {path for path, split in split_of(manifest).items() if split == "leak"} == {
        "val/leak.png",
        "test/of val.png",
        "test/of train.png",
    }
    assert manifest["leaks"] == {
        "total": 3,
        "byte_identical": 3,
        "near_identical": 0,
        "mirrored": 0,
        "of_patients": 0,
    }
    assert manifest["repeats"]["byte_identical"]["across_parts"] == 3
    assert manifest["split"]["validation"]["total"] == 2


@pytest.mark.parametrize("head", [HEADS[0], b"\x89PNG"], ids=["leak", "damaged"])
def test_a_validation_part_of_which_nothing_is_left_is_refused(account, head):
    with pytest.raises(InputError, match="No scan of the validation part is left"):
        account("train/0.png", "train/1.png", "val/0.png", heads=[HEADS[0], HEADS[1], head])


def test_masks_are_left_out_and_patients_are_no_classes(account):
    """The layout of the LGG segmentation data set."""
    patients = [
        f"TCGA_{site}_{number}_1996{i}909"
        for i, (site, number) in enumerate([("CS", 4941), ("DU", 5849), ("HT", 7473)])
    ]
    paths = [f"kaggle_3m/{p}/{p}_{i}{mask}.png" for p in patients for i in range(4) for mask in ("", "_mask")]
    manifest = account(*paths, "kaggle_3m/README.md", "kaggle_3m/data.csv", heads=[*HEADS, b"# LGG", b"a,b"])
    assert manifest["class_names"] == []
    assert len(manifest["files"]) == 12
    assert not any("mask" in path for path in split_of(manifest))
    assert said(manifest) == (
        "parts: none, all files are for training; classes: none; patients: 3 by TCGA names; left out: 12 masks, by name;"
        " passed over: 2 files that are no images (.csv, .md)"
    )


@pytest.mark.parametrize("names", [("Patient 1", "patient 2"), ("sub-01", "sub-02"), ("1001", "1002")])
def test_names_of_patients(account, names):
    manifest = account(*(f"{name}/{i}.png" for name in names for i in range(3)))
    assert manifest["class_names"] == []
    assert manifest["parts"]["training"]["total"] == 6


@pytest.mark.parametrize(
    "names", [("0", "1"), ("grade_2", "grade_3"), ("a_2021", "b_2021"), ("casein", "idle"), ("T1", "T2")]
)
def test_names_of_classes(account, names):
    assert account(*(f"{name}/{i}.png" for name in names for i in range(3)))["class_names"] == list(names)


@pytest.mark.parametrize(
    "mask",
    [
        "masks/0.png",
        "train_masks/0.png",
        "a/7_mask.png",
        "a/7_mask_1.png",
        "a/7-Mask2.png",
        "a/mask.png",
        "a/7_seg.png",
    ],
)
def test_names_of_masks(account, mask):
    manifest = account("a/0.png", "a/1.png", "b/2.png", mask)
    assert sorted(split_of(manifest)) == ["a/0.png", "a/1.png", "b/2.png"]
    assert said(manifest).endswith(f"classes: 2 folders; {NO_PATIENTS}; left out: 1 mask, by name ({mask})")


@pytest.mark.parametrize("scan", ["no mask here/0.png", "masked/0.png", "a/mask_of_7.png", "a/damask.png"])
def test_names_that_are_none_of_masks(account, scan):
    assert scan in split_of(account("a/0.png", "a/1.png", "b/2.png", scan))


@pytest.mark.parametrize(
    ("mask", "scans", "others"),
    [
        ("s0_mask", "s0", "s0_2 s0-b s1"),
        ("s0_2_mask", "s0_2", "s0 s1"),
        ("s0_seg", "s0_t1 s0_t2 s0_adc", "s0_2_t1"),
        ("masks/s0", "images/s0_t1 images/s0_t2", "images/s0_2_t1 images/s1_t1"),
        ("sub-01_ses-1_seg", "sub-01_ses-1_T1w sub-01_ses-1_acq-hi_T2w", "sub-01_ses-2_T1w sub-01_ses-3_FLAIR"),
        ("sub-01_ses-1_space-T1w_seg", "sub-01_ses-1_T1w", "sub-01_ses-2_T1w"),
        ("sub-01_ses-1_seg", "sub-01_ses-1_run-1_T1w sub-01_ses-1_run-2_T1w", "sub-01_ses-2_run-1_T1w"),
        ("sub-01_seg", "sub-01_T1w sub-01_T2w", "sub-01_ses-2_T1w"),
        ("BraTS-GLI-00017-001-seg", "BraTS-GLI-00017-001-t1n BraTS-GLI-00017-001-t2f", "BraTS-GLI-00017-002-t1n"),
        ("head_seg", "head head_t1 head_flair", ""),
        ("brain_seg", "T1 FLAIR", ""),
        ("p1_T1w_lesion_seg", "p1_T1w p1_FLAIR", ""),
    ],
)  # fmt: skip
def test_a_mask_is_of_the_scans_that_are_called_most_alike(mask, scans, others):
    """Of one patient in one folder, such as several visits."""
    mask, *files = (PurePosixPath(f"{name}.nii") for name in [mask, *scans.split(), *others.split()])
    masks = Masks([mask, *files])
    assert masks.paths == [mask]
    assert [path.stem for path in files if masks.of(path, is_alone=True) == mask] == [
        name.rpartition("/")[2] for name in scans.split()
    ]


def test_folders_of_masks_beside_images(account):
    """The folder that is left encloses everything, and is no class."""
    manifest = account(*(f"{kind}/{i}.png" for kind in ("images", "masks") for i in range(4)))
    assert manifest["class_names"] == []
    assert sorted(split_of(manifest)) == ["images/0.png", "images/1.png", "images/2.png", "images/3.png"]
    assert said(manifest).endswith(f"classes: none; {NO_PATIENTS}; left out: 4 masks, by name (masks/0.png)")


def test_masks_alone_are_refused(account):
    with pytest.raises(InputError, match="holds masks alone"):
        account("a_mask.png", "b_mask_1.png")


def test_splits_of_a_hub_data_set(tmp_path):
    rows = [
        datasets.Dataset.from_dict({"image": HEADS[i : i + 6], "label": ["x", "y"] * 3})
        for i in (0, 6, 12, 18)
    ]
    names = ("Train", "valid", "test", "extra")
    datasets.DatasetDict(dict(zip(names, rows, strict=True))).save_to_disk(tmp_path / "saved")
    scans = load_scans(resolution=16, dataset_name=str(tmp_path / "saved"), cache_dir=str(tmp_path / "cache"))
    assert [len(part) for part in (scans.train, scans.validation, scans.test)] == [6, 6, 6]
    assert format_findings(scans.manifest) == (
        "parts: 6 in Train, 6 in valid, 6 in test; validation is by valid, and --validation_share is not used;"
        f" classes: 2 labels in the column label; {NO_PATIENTS}; left out: splits that are no part by their names (extra: 6)"
    )


def test_labels_of_a_hub_data_set_that_are_patients(tmp_path):
    """As `datasets` makes them of folders."""
    rows = datasets.Dataset.from_dict({"image": HEADS[:6], "label": ["sub-01", "sub-02", None] * 2})
    rows.save_to_disk(tmp_path / "saved")
    scans = load_scans(resolution=16, dataset_name=str(tmp_path / "saved"), cache_dir=str(tmp_path / "cache"))
    assert scans.class_names == ()
    assert len(scans.train) + len(scans.validation) == 6
    assert "classes: none; patients: 2 by labels" in format_findings(scans.manifest)
