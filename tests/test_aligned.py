"""Several contrasts of one head and its mask, from disk: found together, on one grid, cut alike, and trained on."""

import io
import itertools
import json
import re

import datasets
import nibabel
import numpy as np
import pytest
from conftest import tiny, train_alone
from PIL import Image
from volume_sets import AFFINE, SHAPE, head, nifti, series, write

from mri_ddpm import commands
from mri_ddpm.data import account_of, format_account, load_scans, slices
from mri_ddpm.data.reading.labels import labels_of
from mri_ddpm.data.reading.nifti import read_nifti
from mri_ddpm.data.reading.pictures import fit_square
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.runs import load_pipeline, load_record

BRATS = ("t1", "t1ce", "t2", "flair")
NAME = "BraTS20_Training_{0:03d}/BraTS20_Training_{0:03d}_{1}.nii.gz"


@pytest.fixture
def load(tmp_path):
    """The scans of a folder with these files, written beside those that are there."""

    def make(files=None, where="scans", **options):
        made = {path: nifti(v) if isinstance(v, np.ndarray) else v for path, v in (files or {}).items()}
        write(tmp_path / where, made)
        options = {"resolution": 16, "cache_dir": str(tmp_path / "cache")} | options
        return load_scans(train_data_dir=str(tmp_path / where), **options)

    return make


def labels(patient: int) -> np.ndarray:
    """A mask uint8 of whole blocks of 1, 2 and, of the last patient, 4, a different one for each."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[6:14, 8:16, 6:14] = 1
    voxels[9:13, 10 : 13 + patient, 8:12] = 2
    if patient == 4:
        voxels[10:12, 11:13, 9:11] = 4
    return voxels


def brats(patients=range(1, 5), contrasts=BRATS) -> dict[str, np.ndarray]:
    volumes = {NAME.format(p, c): head(10 * p + BRATS.index(c)) for p in patients for c in contrasts}
    return volumes | {NAME.format(p, "seg"): labels(p) for p in patients}


def planes_of(part) -> np.ndarray:
    """All that a data set holds of its scans, (N, C + K, H, W)."""
    batch = part.batch(range(len(part)))
    return np.concatenate([batch[name].numpy() for name in ("pixel_values", "condition") if name in batch], 1)


def by_path(scans) -> dict[str, np.ndarray]:
    """{path of the slice: its planes}."""
    found = {}
    for split, part in (("train", scans.train), ("validation", scans.validation)):
        rows = [row for row in scans.manifest["files"] if row["split"] == split]
        found |= dict(zip((scans.paths[row["path"]] for row in rows), planes_of(part), strict=True))
    return found


def nearest(image: np.ndarray, side: int) -> np.ndarray:
    """A padded square of labels, each pixel that of the place where its centre lies."""
    size = max(image.shape)
    square = np.zeros((size, size))
    top, left = ((size - n) // 2 for n in image.shape)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    at = ((np.arange(side) + 0.5) * size / side).astype(int)
    return square[np.ix_(at, at)]


def test_four_contrasts_and_a_mask_are_cut_alike_to_the_bit(load):
    files = brats()
    scans = load(files, channels=BRATS, condition_on=["seg"])
    assert scans.channels.mask_labels == {"seg": ("1", "2", "4")}
    assert scans.manifest["mask_labels"] == {"seg": {"1": 1, "2": 2, "4": 4}}
    found = by_path(scans)
    assert len(found) == len(scans.train) + len(scans.validation) > 30
    for path, planes in found.items():
        name, _, place = path.rpartition("/")
        chosen = slices(read_nifti(nifti(files[name])))  # by the first, t1
        number = [f"{plane} {index:03d}" for plane, index in chosen.places].index(place)
        for plane, contrast in zip(planes, BRATS, strict=False):
            own = read_nifti(nifti(files[name.replace("_t1.", f"_{contrast}.")]))
            cut = chosen.of(own, *own.percentiles)[number].image
            expected = np.round(fit_square(cut, 16, "pad") * 65535) / np.float32(65535)
            np.testing.assert_array_equal(plane, expected.astype(np.float32))
        index = int(place.split()[1])
        mask = np.flip(files[name.replace("_t1.", "_seg.")][:, :, index], (0, 1)).T
        for plane, label in zip(planes[4:], (1, 2, 4), strict=True):
            np.testing.assert_array_equal(plane, nearest(mask, 16) == label)
    assert "labels of seg: 1 in 32, 2 in 16, 4 in 2 scans" in format_account(scans.manifest)


def test_the_first_of_all_that_is_no_mask_leads(load):
    files = brats()
    one = by_path(load(files, channels=["seg", "flair"], condition_on=["t2"]))
    two = by_path(load(channels=["flair"], condition_on=["t2", "seg"]))
    assert all("_flair" in path for path in one)
    assert one.keys() == two.keys()
    for path, planes in one.items():
        np.testing.assert_array_equal(planes, two[path][[2, 3, 4, 0, 1]])


def test_one_contrast_alone_is_as_without_a_name(load):
    scans, plain = load(brats(), channels=["flair"]), load(contrast="flair")
    assert scans.manifest["content_sha256"] == plain.manifest["content_sha256"]
    for path, planes in by_path(scans).items():
        np.testing.assert_array_equal(planes, by_path(plain)[path])


@pytest.mark.parametrize(("resolution", "fit"), [(16, "pad"), (37, "crop"), (40, "stretch")])
def test_no_label_is_made_up_and_every_orientation_gives_the_same(resolution, fit):
    affine = AFFINE.copy()
    affine[:3, 0] *= 1.3  # pixels that are no squares
    volume, mask = (nibabel.Nifti1Image(voxels, affine) for voxels in (head(1), labels(4)))
    turned = np.array([(0, -1), (1, 1), (2, -1)])
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            turn = np.array(list(zip(order, signs, strict=True)))
            other = turned if len(found) % 2 else turn
            scan, seg = (
                read_nifti(v.as_reoriented(t).to_bytes()) for v, t in ((volume, turn), (mask, other))
            )
            chosen = slices(scan, "all", field_of_view_mm=260.0)
            cuts = chosen.of_mask(labels_of(seg)[0], 65535)
            squares = [fit_square(cut.image, resolution, fit, cuts.resampling) for cut in cuts]
            found.append(np.array(squares) * 65535)
    assert len(found) == 48
    assert set(np.unique(found[0])) == {0, 1, 2, 4}
    for planes in found:
        np.testing.assert_array_equal(planes, found[0])


def moved(by: float) -> np.ndarray:
    affine = AFFINE.copy()
    affine[0, 3] += by
    return affine


def test_grids_that_differ_by_rounding_pass_and_others_are_refused(load):
    files = brats() | {NAME.format(2, "t2"): nifti(head(22), moved(5e-4))}
    assert len(load(files, channels=["t1", "t2"]).train)
    shifted = {NAME.format(2, "t2"): nifti(head(22), moved(0.01))}
    with pytest.raises(InputError, match=r"_002_t1\.nii\.gz has a t2, \S+002_t2\.nii\.gz, that is 24x28x20 and not on the grid of its other contrast, "
                       r"24x28x20, for their affines differ by 0\.01: register them first"):  # fmt: skip
        load(shifted, channels=["t1", "t2"])
    smaller = {NAME.format(2, "seg"): labels(2)[:, :, :-1]}
    with pytest.raises(
        InputError,
        match=r"_t1\.nii\.gz has a seg, \S+_002_seg\.nii\.gz, that is 24x28x19 and not on the grid of its other contrast, 24x28x20: reg",
    ):
        load(smaller, condition_on=["seg"], contrast="t1")
    scans = load(channels=["t1", "t2"], on_bad_image="skip")
    assert len(scans.manifest["unreadable"]) == 1
    assert "BraTS" not in json.dumps(scans.manifest["unreadable"])


def test_incomplete_heads_are_left_out_and_counted(load):
    files = brats(range(1, 6))
    del files[NAME.format(1, "t2")], files[NAME.format(2, "seg")], files[NAME.format(2, "t2")]
    text = format_account(load(files, channels=["t1", "t2"], condition_on=["seg"]).manifest)
    assert "t1, t2, seg of 3 heads, of 5 flair, 5 t1, 5 t1ce, 3 t2 and 4 masks" in text
    assert "left out: 2 heads, 1 without t2, 1 without t2 and seg" in text
    assert "patients: 3 by BraTS names" in text


def test_where_no_head_is_complete_it_says_what_each_lacks(load):
    files = {path: v for p, c in ((1, "t1"), (2, "t1"), (3, "t2")) for path, v in brats([p], [c]).items()}
    with pytest.raises(
        InputError,
        match="no head with all of t1, t2, but 2 t1, 1 t2 and 3 masks; left out: 2 without t2, 1 without t1",
    ):
        load(files, channels=["t1", "t2"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": ["pd"]}, "--channels pd is not in .*scans, which holds 4 flair, 4 t1, 4 t1ce, 4 t2 and 4 masks"),
        ({"channels": ["t1"], "condition_on": ["dwi"]}, "--condition_on dwi is not in"),
        ({"channels": ["seg"]}, "--channels names masks alone"),
        ({"condition_on": ["seg"]}, "holds 4 flair, .* 4 masks: name what is drawn by --contrast, or by --channels"),
        ({"condition_on": ["seg"], "contrast": "pd"}, "--contrast pd is not in"),
        ({"channels": ["t1"], "condition_on": ["seg", "mask"]}, "name the masks seg and mask, and in files a head has one"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_in_a_sentence(load, options, words):
    with pytest.raises(InputError, match=words):
        load(brats(), **options)


def test_masks_that_are_none_are_refused(load):
    with pytest.raises(
        InputError,
        match=r"_001_t1\.nii\.gz has a seg, \S+_001_seg\.nii\.gz, that holds values such as 0\.5, and a mask has a whole",
    ):
        load(
            brats() | {NAME.format(1, "seg"): labels(1) / np.float32(2)},
            channels=["t1"],
            condition_on=["seg"],
        )
    with pytest.raises(
        InputError, match=r"seg of .*scans holds \d{3} values, too many for labels \(at most 200\)"
    ):
        load({NAME.format(1, "seg"): head(3)}, channels=["t1"], condition_on=["seg"])
    empty = {NAME.format(p, "seg"): np.zeros(SHAPE, np.uint8) for p in range(1, 5)}
    with pytest.raises(InputError, match="seg of .*scans is empty in every scan"):
        load(empty, channels=["t1"], condition_on=["seg"])


def test_slices_by_the_mask_go_on_working(load):
    scans = load(brats(), channels=["t1", "t2"], condition_on=["seg"], slices="with_mask", min_head=0.0)
    assert len(scans.train) + len(scans.validation) == 32
    assert by_path(scans)[next(iter(by_path(scans)))][2:].any()


# Layouts


def decathlon() -> dict:
    both = {p: np.stack([head(10 * p + c) for c in range(2)], axis=-1) for p in range(1, 5)}
    volumes = {f"imagesTr/HEAD_{p:03d}.nii.gz": voxels for p, voxels in both.items()}
    names = {
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "oedema", "2": "big core", "3": "c"},
    }
    return (
        volumes
        | {f"labelsTr/HEAD_{p:03d}.nii.gz": np.minimum(labels(p), 3) for p in both}
        | {"dataset.json": json.dumps(names).encode()}
    )


def nnunet() -> dict:
    volumes = {
        f"imagesTr/case_{p:03d}_{c:04d}.nii.gz": head(10 * p + c) for p in range(1, 5) for c in range(2)
    }
    volumes |= {f"labelsTr/case_{p:03d}.nii.gz": labels(p) for p in range(1, 5)}
    names = {
        "channel_names": {"0": "FLAIR", "1": "T1"},
        "labels": {"background": 0, "oedema": 1, "big core": 2, "c": 4},
    }
    return volumes | {"dataset.json": json.dumps(names).encode()}


def bids() -> dict:
    name = "sub-{0:02d}/ses-{1}/anat/sub-{0:02d}_ses-{1}_"
    volumes = {}
    for p, visit in itertools.product(range(1, 4), (1, 2)):
        seed = 20 * p + 10 * visit
        volumes[f"{name.format(p, visit)}acq-mprage_T1w.nii.gz"] = head(seed + 1)
        volumes[f"{name.format(p, visit)}FLAIR.nii.gz"] = head(seed)
        volumes[f"{name.format(p, visit)}dseg.nii.gz"] = labels(p + visit - 1)
    return volumes


def ixi() -> dict:
    files = {
        f"IXI-{c}/IXI{p:03d}-Guys-0{p}-{c}.nii.gz": head(10 * p + i)
        for p in range(1, 5)
        for i, c in enumerate(("FLAIR", "T1"))
    }
    return files | {f"masks/IXI{p:03d}-Guys-0{p}_seg.nii.gz": labels(p) for p in range(1, 5)}


def flat() -> dict:
    files = {f"{p}_{c}.nii.gz": head(10 * p + i) for p in range(1, 5) for i, c in enumerate(("flair", "t1"))}
    return files | {f"{p}_seg.nii.gz": labels(p) for p in range(1, 5)}


@pytest.mark.parametrize(
    ("files", "heads", "patients", "names"),
    [
        (decathlon(), 4, "4 by the volumes", {"oedema": 1, "big_core": 2, "c": 3}),
        (nnunet(), 4, "4 by the volumes", {"1": 1, "2": 2, "4": 4}),  # names may be for 1, 2, 3 alone
        (ixi(), 4, "4 by IXI names", {"1": 1, "2": 2, "4": 4}),
        (bids(), 6, "3 by BIDS names", {"1": 1, "2": 2, "4": 4}),
        (flat(), 4, "4 by the volumes", {"1": 1, "2": 2, "4": 4}),
    ],
    ids=["decathlon", "nnunet", "ixi", "bids", "flat"],
)  # fmt: skip
def test_layouts(load, files, heads, patients, names):
    scans = load(files, channels=["flair", "t1"], condition_on=["seg"])
    text = format_account(scans.manifest)
    assert f"flair, t1, seg of {heads} heads" in text
    assert f"patients: {patients}" in text
    assert scans.manifest["mask_labels"] == {"seg": names}
    assert scans.class_names == ()
    assert scans.manifest["volumes"]["total"] == 2 * heads


def test_the_folders_of_contrasts_are_no_classes(load):
    files = ixi()
    scans = load({path: v for path, v in files.items() if "mask" not in path}, channels=["t1", "flair"])
    assert scans.class_names == ()
    assert "t1, flair of 4 heads" in format_account(scans.manifest)


def test_dicom_series_of_a_study_are_one_head(load):
    files = {}
    for p in range(3):
        for i, contrast in enumerate(("T1 tse", "T2 tse")):
            files |= series(
                10 * p + i, f"P{p}", f"{p}/{i}/", SeriesDescription=contrast, StudyInstanceUID=f"1.2.{p}"
            )
    scans = load(files, channels=["t2", "t1"])
    assert "t2, t1 of 3 heads" in format_account(scans.manifest)


def test_dicom_series_with_one_number_for_all_are_told_by_their_contrast(load):
    files, others = {}, {}
    for p in range(3):
        for i, contrast in enumerate(("T1 tse", "T2 tse")):
            tags = {"SeriesDescription": contrast, "StudyInstanceUID": f"1.2.{p}", "SeriesNumber": "3"}
            files |= series(10 * p + i, f"P{p}", f"{p}/{i}/", **tags)
            others |= series(10 * p + i, f"P{p}", f"{p}/{i}/", **tags, SeriesInstanceUID=f"1.3.{p}")
    one, two = load(files, channels=["t2", "t1"]), load(others, where="others", channels=["t2", "t1"])
    assert "t2, t1 of 3 heads" in format_account(two.manifest)
    assert one.manifest["content_sha256"] == two.manifest["content_sha256"]


def test_any_name_of_a_contrast_may_be_asked_for_and_a_table_tells_the_others(load):
    scans = load(
        {f"{p}_{c}.png": picture(grey(10 * p + i)) for p in range(4) for i, c in enumerate(("CBV", "T2"))},
        where="named",
        channels=["cbv", "t2"],
    )
    assert "cbv, t2 of 4 heads" in format_account(scans.manifest)
    files = {f"{p}_000{i}.png": picture(grey(10 * p + i)) for p in range(4) for i in (0, 1)}
    with pytest.raises(
        InputError, match=r"--channels adc is not in .* give 0_0000\.png and the like theirs in the column"
    ):
        load(files, channels=["adc", "t2"])
    rows = "".join(f"{path},{'adc' if '_0000' in path else 't2'}\n" for path in files)
    scans = load({"metadata.csv": f"file_name,contrast\n{rows}".encode()}, channels=["adc", "t2"])
    assert "adc, t2 of 4 heads" in format_account(scans.manifest)


# What is kept


def test_another_mask_is_another_scan(load):
    first = load(brats(), channels=["t1"], condition_on=["seg"]).manifest
    again = load(channels=["t1"], condition_on=["seg"]).manifest
    assert again["content_sha256"] == first["content_sha256"]
    changed = labels(1)
    changed[7, 9, 10] = 2
    other = load({NAME.format(1, "seg"): changed}, channels=["t1"], condition_on=["seg"]).manifest
    before, after = ({row["sha256"] for row in m["files"]} for m in (first, other))
    assert len(before & after) == len(before) * 3 / 4  # of the other patients
    assert load(contrast="t1").manifest["content_sha256"] != first["content_sha256"]


def test_labels_go_by_the_name_that_their_mask_is_asked_for_by(load):
    """The cache keeps labels by name: of `mask` it once gave those of `seg`, and the mask was taken for a contrast."""
    load(brats(), channels=["t1"], condition_on=["seg"])
    scans = load(channels=["t1"], condition_on=["mask"])
    assert scans.channels.mask_labels == {"mask": ("1", "2", "4")}
    assert scans.channels.width(("mask",)) == 3


def test_the_account_is_that_of_the_training(load, tmp_path):
    options = {"channels": ["t1", "t2"], "condition_on": ["seg"], "cache_dir": str(tmp_path / "cache")}
    manifest = load(brats(), **options).manifest
    found, _ = account_of(str(tmp_path / "scans"), **options)
    for name in ("content_sha256", "mask_labels", "findings", "split"):
        assert found[name] == manifest[name]
    assert found["settings"]["channels"] == ["t1", "t2"]


# Pictures


def picture(values: np.ndarray, mode: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, mode, **options)
    return file.getvalue()


def grey(seed: int, shape: tuple[int, int] = (20, 24)) -> np.ndarray:
    return (head(seed, (*shape, 8))[..., 4] / 6).astype(np.uint8)


def drawn(seed: int, value: int = 1, shape: tuple[int, int] = (20, 24)) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    values[4 + seed % 3 : 14, 6:15] = value
    values[8:12, 8:12] = 2 * value if value == 1 else value
    return values


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
def test_the_masks_of_pictures(load, files, classes):
    scans = load(files, condition_on=["seg"])
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


def test_contrasts_of_pictures_and_their_mask(load):
    files = {f"{p}_{c}.png": picture(grey(10 * p + i)) for p in range(4) for i, c in enumerate(("t1", "t2"))}
    files |= {f"{p}_seg.png": picture(drawn(p)) for p in range(3)}
    scans = load(files, channels=["t2", "t1"], condition_on=["seg"], resolution=24)
    assert (
        "t2, t1, seg of 3 heads, of 4 t1, 4 t2 and 3 masks; left out: 1 head, 1 without seg"
        in format_account(scans.manifest)
    )
    for path, planes in by_path(scans).items():
        for plane, number in zip(planes, (1, 0), strict=False):
            expected = fit_square(grey(10 * int(path[0]) + number) / np.float32(255), 24, "pad")
            np.testing.assert_allclose(plane, expected, atol=1e-5)
    scans = load(condition_on=["t1"])  # what is drawn is the other one
    assert all("_t2" in path for path in by_path(scans))
    folders = {f"{c.upper()}/{p}.png": files[f"{p}_{c}.png"] for p in range(4) for c in ("t1", "t2")}
    assert load(folders, where="folders", channels=["t2", "t1"]).class_names == ()


def test_the_numbers_in_pictures_of_masks(load):
    scans = load(beside(255), condition_on=["seg"])
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
    scans = load(found, where="kinds", condition_on=["seg"], resolution=24)
    assert scans.manifest["mask_labels"] == {"seg": {"1": 1, "2": 2}}
    by_number = {int(path[2]): planes for path, planes in by_path(scans).items()}
    for number, planes in by_number.items():
        expected = drawn(number) > 0 if number == 6 else drawn(number)
        np.testing.assert_array_equal(planes[1] + 2 * planes[2], nearest(expected, 24))


def test_pictures_that_do_not_go_together_are_named(load):
    files = beside() | {"a/0_seg.png": picture(drawn(0, shape=(24, 20)))}
    with pytest.raises(
        InputError,
        match=r"a/0\.png has a seg, a/0_seg\.png, of 20x24 pixels, and is 24x20 itself: bring them to one grid",
    ):
        load(files, condition_on=["seg"])
    colours = np.random.default_rng(0).integers(0, 9, (20, 24, 3)).astype(np.uint8)
    with pytest.raises(InputError, match=r"a/0\.png has a seg, a/0_seg\.png, that has colours"):
        load({"a/0_seg.png": picture(colours)}, condition_on=["seg"])
    with pytest.raises(InputError, match=r"a/0\.png has a seg, a/0_seg\.png, that is not an image"):
        load({"a/0_seg.png": b"nothing"}, condition_on=["seg"])
    lossy = {path: v for path, v in beside().items() if "seg" not in path}
    lossy |= {path.replace(".png", "_seg.jpg"): picture(drawn(int(path[2])), "JPEG") for path in lossy}
    with pytest.raises(
        InputError, match=r"a/0_seg\.jpg, that is JPEG, which makes up values of labels: save"
    ):
        load(lossy, where="lossy", condition_on=["seg"])
    shades = np.arange(480).reshape(20, 24) % 220
    with pytest.raises(InputError, match=r"seg of .* holds 219 values, too many for labels"):
        load({"a/0_seg.png": picture(shades.astype(np.uint8))}, condition_on=["seg"])


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
