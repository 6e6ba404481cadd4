"""Pictures and data sets with masks and contrasts beside them."""

import io
import re

import datasets
import numpy as np
import pytest
from aligned_sets import NAME, brats, by_path, drawn, grey, labels, nearest, picture, planes_of
from conftest import tiny, train_alone
from PIL import Image
from volume_sets import head, nifti, write

from mri_ddpm import commands
from mri_ddpm.data import format_account, load_scans, slices
from mri_ddpm.data.reading.nifti import read_nifti
from mri_ddpm.data.reading.pictures import fit_square
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.runs import load_pipeline, load_record


def beside(value=1) -> dict:
    files = {f"{c}/{p}.png": picture(grey(p)) for p, c in zip(range(8), "aabbaabb", strict=True)}
    return files | {f"{name[:-4]}_seg.png": picture(drawn(int(name[2]), value)) for name in files}


def apart(images: str, masks: str) -> dict:
    files = {images.format(p=p, c="ab"[p % 2]): picture(grey(p)) for p in range(8)}
    return files | {masks.format(p=p, c="ab"[p % 2]): picture(drawn(p)) for p in range(8)}


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (beside(), 2),
        (apart("images/{p}.png", "masks/{p}.png"), 0),
        (apart("imagesTr/{p}.png", "labelsTr/{p}.png"), 0),
        (apart("imagesTr/c_{p:03d}_0000.png", "labelsTr/c_{p:03d}.png"), 0),
        (apart("{c}/images/{p}.png", "{c}/masks/{p}.png"), 2),
        (apart("images/{c}/{p}.png", "masks/{c}/{p}.png"), 2),
        (apart("train_images/{c}/{p}.png", "train_masks/{c}/{p}_mask.png"), 2),
    ],
    ids=["beside", "folders", "labelsTr", "nnunet", "in classes", "around classes", "parts"],
)
def test_the_masks_of_pictures(load_files, files, classes):
    scans = load_files(files, condition_on=["seg"])
    assert len(scans.class_names) == classes
    assert scans.channels.mask_labels == {"seg": ("1", "2")}
    assert "the image, seg of 8 heads, of 8 of unknown contrast and 8 masks" in format_account(scans.manifest)
    found = by_path(scans)
    assert len(found) == 8
    for path, planes in found.items():
        number = int(re.findall(r"\d+", path)[0])
        expected = fit_square(grey(number) / np.float32(255), 16, "pad")
        np.testing.assert_allclose(planes[0], expected, atol=1e-5)
        for plane, label in zip(planes[1:], (1, 2), strict=True):
            np.testing.assert_array_equal(plane, nearest(drawn(number), 16) == label)


def test_contrasts_of_pictures_and_their_mask(load_files):
    files = {f"{p}_{c}.png": picture(grey(10 * p + i)) for p in range(4) for i, c in enumerate(("t1", "t2"))}
    files |= {f"{p}_seg.png": picture(drawn(p)) for p in range(3)}
    scans = load_files(files, channels=["t2", "t1"], condition_on=["seg"], resolution=24)
    assert (
        "t2, t1, seg of 3 heads, of 4 t1, 4 t2 and 3 masks; left out: 1 head, 1 without seg"
        in format_account(scans.manifest)
    )
    for path, planes in by_path(scans).items():
        for plane, number in zip(planes, (1, 0), strict=False):
            expected = fit_square(grey(10 * int(path[0]) + number) / np.float32(255), 24, "pad")
            np.testing.assert_allclose(plane, expected, atol=1e-5)
    scans = load_files(condition_on=["t1"])  # what is drawn is the other one
    assert all("_t2" in path for path in by_path(scans))
    folders = {f"{c.upper()}/{p}.png": files[f"{p}_{c}.png"] for p in range(4) for c in ("t1", "t2")}
    assert load_files(folders, where="folders", channels=["t2", "t1"]).class_names == ()


def test_the_numbers_in_pictures_of_masks(load_files):
    scans = load_files(beside(255), condition_on=["seg"])
    assert scans.manifest["mask_labels"] == {"seg": {"1": 255}}
    assert set(np.unique(planes_of(scans.train)[:, 1])) == {0, 1}
    palette = Image.fromarray(drawn(1), "P")
    palette.putpalette([0, 0, 0, 255, 9, 9, 9, 255, 9])
    file = io.BytesIO()
    palette.save(file, "PNG")
    opaque = np.stack([drawn(5)] * 3 + [np.full((20, 24), 255, np.uint8)], axis=-1)
    others = {"a/1_seg.png": file.getvalue(), "a/4_seg.tif": picture(drawn(4).astype(np.uint16), "TIFF")}
    others |= {"a/5_seg.png": picture(opaque), "b/6_seg.png": picture(drawn(6) > 0)}
    found = {path: v for path, v in beside().items() if path != "a/4_seg.png"} | others
    scans = load_files(found, where="kinds", condition_on=["seg"], resolution=24)
    assert scans.manifest["mask_labels"] == {"seg": {"1": 1, "2": 2}}
    by_number = {int(path[2]): planes for path, planes in by_path(scans).items()}
    for number, planes in by_number.items():
        expected = drawn(number) > 0 if number == 6 else drawn(number)
        np.testing.assert_array_equal(planes[1] + 2 * planes[2], nearest(expected, 24))


def test_pictures_that_do_not_go_together_are_named(load_files):
    files = beside() | {"a/0_seg.png": picture(drawn(0, shape=(24, 20)))}
    with pytest.raises(
        InputError,
        match=r"a/0\.png has a seg, a/0_seg\.png, of 20x24 pixels, and is 24x20 itself: bring them to one grid",
    ):
        load_files(files, condition_on=["seg"])
    colours = np.random.default_rng(0).integers(0, 9, (20, 24, 3)).astype(np.uint8)
    with pytest.raises(InputError, match=r"a/0\.png has a seg, a/0_seg\.png, that has colours"):
        load_files({"a/0_seg.png": picture(colours)}, condition_on=["seg"])
    with pytest.raises(InputError, match=r"a/0\.png has a seg, a/0_seg\.png, that is not an image"):
        load_files({"a/0_seg.png": b"nothing"}, condition_on=["seg"])
    lossy = {path: v for path, v in beside().items() if "seg" not in path}
    lossy |= {path.replace(".png", "_seg.jpg"): picture(drawn(int(path[2])), "JPEG") for path in lossy}
    with pytest.raises(
        InputError, match=r"a/0_seg\.jpg, that is JPEG, which makes up values of labels: save"
    ):
        load_files(lossy, where="lossy", condition_on=["seg"])
    shades = np.arange(480).reshape(20, 24) % 220
    with pytest.raises(InputError, match=r"seg of .* holds 219 values, too many for labels"):
        load_files({"a/0_seg.png": picture(shades.astype(np.uint8))}, condition_on=["seg"])


# The Hub


def saved(folder, kind, columns: dict[str, list[bytes | None]]) -> str:
    """A data set on disk with these columns of files."""
    rows = {
        name: [{"bytes": b, "path": None} if b else None for b in files] for name, files in columns.items()
    }
    features = datasets.Features({name: kind() for name in columns})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder)
    return str(folder)


def test_columns_of_a_data_set_are_channels_and_conditions(tmp_path):
    columns = {"image": [picture(grey(p)) for p in range(6)], "t2": [picture(grey(10 + p)) for p in range(6)]}
    columns["seg"] = [picture(drawn(p)) for p in range(5)] + [None]
    options = {"resolution": 24, "label_column": "", "cache_dir": str(tmp_path / "cache")}
    options["dataset_name"] = saved(tmp_path / "pictures", datasets.Image, columns)
    with pytest.raises(InputError, match="1 of 6 files .* train/5 has a seg that is empty"):
        load_scans(condition_on=["seg"], **options)
    scans = load_scans(condition_on=["seg", "t2"], on_bad_image="skip", **options)
    found = by_path(scans)
    assert len(found) == 5
    for path, planes in found.items():
        number = int(path[-1])
        np.testing.assert_array_equal(planes[1] + 2 * planes[2], nearest(drawn(number), 24))
        for plane, seed in ((planes[0], number), (planes[3], 10 + number)):
            np.testing.assert_allclose(plane, fit_square(grey(seed) / np.float32(255), 24, "pad"), atol=1e-5)
    for flags, words in (
        ({"channels": ["t1"]}, "channels t1"),
        ({"condition_on": ["mask"]}, "condition_on mask"),
    ):
        with pytest.raises(InputError, match=f"--{words} is not a column of .*, which has: image, t2, seg"):
            load_scans(**flags, **options)


def test_volumes_in_columns(tmp_path):
    columns = {name: [nifti(head(10 * p + i)) for p in range(4)] for i, name in enumerate(("t1", "flair"))}
    columns["seg"] = [nifti(labels(p)) for p in range(1, 5)]
    where = saved(tmp_path / "volumes", datasets.Nifti, columns)
    scans = load_scans(dataset_name=where, label_column="", channels=["flair"], condition_on=["seg"], resolution=16,
                       slices="with_mask", cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert scans.channels.mask_labels == {"seg": ("1", "2", "4")}
    assert "patients: 4 by the volumes" in format_account(scans.manifest)
    files = {p: (head(10 * p + 1), labels(p + 1)) for p in range(4)}
    for path, planes in by_path(scans).items():
        name, _, place = path.rpartition("/")
        scan, mask = files[int(name[-1])]
        cut = {f"{c.plane} {c.index:03d}": c.image for c in slices(read_nifti(nifti(scan)))}[place]
        np.testing.assert_allclose(planes[0], fit_square(cut, 16, "pad"), atol=1e-5)
        shown = np.flip(mask[:, :, int(place[-3:])], (0, 1)).T
        np.testing.assert_array_equal(planes[2], nearest(shown, 16) == 2)


# A run


@pytest.mark.slow
def test_a_run_on_contrasts_and_a_mask_and_what_comes_after(tmp_path):
    write(tmp_path / "scans", {path: nifti(voxels) for path, voxels in brats(range(1, 6)).items()})
    flags = {"train_data_dir": str(tmp_path / "scans"), "cache_dir": str(tmp_path / "cache")}
    run = train_alone(
        tiny(tmp_path / "run", channels=["t1", "flair"], condition_on=["seg"], max_train_steps=3, **flags)
    )
    pipeline = load_pipeline(str(run), "cpu")
    assert pipeline.mask_labels == {"seg": ("1", "2", "4")}
    assert pipeline.channel_names == ("t1", "flair")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 4:9] = 4
    Image.fromarray(mask).save(tmp_path / "mask.png")
    commands.main(["sample", str(run), "--num_images", "2", "--condition", f"seg={tmp_path / 'mask.png'}",
                   "--output_dir", str(tmp_path / "out")])  # fmt: skip
    assert len(list((tmp_path / "out").rglob("*.png"))) >= 4
    record = load_record(str(run))
    real = load_real_scans(record, {"train_data_dir": flags["train_data_dir"]}, 16, flags["cache_dir"])
    assert len(real.scans["training"]) == record.manifest["split"]["train"]["total"]
    assert real.batch("training", [0], "cpu")["condition"].shape == (1, 3, 16, 16)
    other = np.where(labels(4) == 4, 3, labels(4)).astype(np.uint8)
    write(tmp_path / "scans", {NAME.format(9, c): nifti(head(90 + i)) for i, c in enumerate(("t1", "flair"))})
    write(tmp_path / "scans", {NAME.format(9, "seg"): nifti(other)})
    with pytest.raises(
        InputError, match="has the labels seg 1 2 3 4, and the model was trained on seg 1 2 4"
    ):
        load_real_scans(record, {"train_data_dir": flags["train_data_dir"]}, 16, flags["cache_dir"])
