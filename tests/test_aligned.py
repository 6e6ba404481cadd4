"""Several contrasts of one head and its mask, as volumes: found together, on one grid, cut alike, in the layouts people have."""

import itertools
import json

import nibabel
import numpy as np
import pytest
from aligned_sets import BRATS, NAME, brats, by_path, grey, labels, nearest, picture
from volume_sets import AFFINE, SHAPE, head, nifti, series

from mri_ddpm.data import account_of, format_account, slices
from mri_ddpm.data.reading.labels import labels_of
from mri_ddpm.data.reading.nifti import read_nifti
from mri_ddpm.data.reading.pictures import fit_square
from mri_ddpm.errors import InputError


def test_four_contrasts_and_a_mask_are_cut_alike_to_the_bit(load_files):
    files = brats()
    scans = load_files(files, channels=BRATS, condition_on=["seg"])
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


def test_the_first_of_all_that_is_no_mask_leads(load_files):
    files = brats()
    one = by_path(load_files(files, channels=["seg", "flair"], condition_on=["t2"]))
    two = by_path(load_files(channels=["flair"], condition_on=["t2", "seg"]))
    assert all("_flair" in path for path in one)
    assert one.keys() == two.keys()
    for path, planes in one.items():
        np.testing.assert_array_equal(planes, two[path][[2, 3, 4, 0, 1]])


def test_one_contrast_alone_is_as_without_a_name(load_files):
    scans, plain = load_files(brats(), channels=["flair"]), load_files(contrast="flair")
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


def test_grids_that_differ_by_rounding_pass_and_others_are_refused(load_files):
    files = brats() | {NAME.format(2, "t2"): nifti(head(22), moved(5e-4))}
    assert len(load_files(files, channels=["t1", "t2"]).train)
    shifted = {NAME.format(2, "t2"): nifti(head(22), moved(0.01))}
    with pytest.raises(InputError, match=r"_002_t1\.nii\.gz has a t2, \S+002_t2\.nii\.gz, that is 24x28x20 and not on the grid of its other contrast, "
                       r"24x28x20, for their affines differ by 0\.01: register them first"):  # fmt: skip
        load_files(shifted, channels=["t1", "t2"])
    smaller = {NAME.format(2, "seg"): labels(2)[:, :, :-1]}
    with pytest.raises(
        InputError,
        match=r"_t1\.nii\.gz has a seg, \S+_002_seg\.nii\.gz, that is 24x28x19 and not on the grid of its other contrast, 24x28x20: reg",
    ):
        load_files(smaller, condition_on=["seg"], contrast="t1")
    scans = load_files(channels=["t1", "t2"], on_bad_image="skip")
    assert len(scans.manifest["unreadable"]) == 1
    assert "BraTS" not in json.dumps(scans.manifest["unreadable"])


def test_incomplete_heads_are_left_out_and_counted(load_files):
    files = brats(range(1, 6))
    del files[NAME.format(1, "t2")], files[NAME.format(2, "seg")], files[NAME.format(2, "t2")]
    text = format_account(load_files(files, channels=["t1", "t2"], condition_on=["seg"]).manifest)
    assert "t1, t2, seg of 3 heads, of 5 flair, 5 t1, 5 t1ce, 3 t2 and 4 masks" in text
    assert "left out: 2 heads, 1 without t2, 1 without t2 and seg" in text
    assert "patients: 3 by BraTS names" in text


def test_where_no_head_is_complete_it_says_what_each_lacks(load_files):
    files = {path: v for p, c in ((1, "t1"), (2, "t1"), (3, "t2")) for path, v in brats([p], [c]).items()}
    with pytest.raises(
        InputError,
        match="no head with all of t1, t2, but 2 t1, 1 t2 and 3 masks; left out: 2 without t2, 1 without t1",
    ):
        load_files(files, channels=["t1", "t2"])


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
def test_what_is_not_there_is_said_in_a_sentence(load_files, options, words):
    with pytest.raises(InputError, match=words):
        load_files(brats(), **options)


def test_masks_that_are_none_are_refused(load_files):
    with pytest.raises(
        InputError,
        match=r"_001_t1\.nii\.gz has a seg, \S+_001_seg\.nii\.gz, that holds values such as 0\.5, and a mask has a whole",
    ):
        load_files(
            brats() | {NAME.format(1, "seg"): labels(1) / np.float32(2)},
            channels=["t1"],
            condition_on=["seg"],
        )
    with pytest.raises(
        InputError, match=r"seg of .*scans holds \d{3} values, too many for labels \(at most 200\)"
    ):
        load_files({NAME.format(1, "seg"): head(3)}, channels=["t1"], condition_on=["seg"])
    empty = {NAME.format(p, "seg"): np.zeros(SHAPE, np.uint8) for p in range(1, 5)}
    with pytest.raises(InputError, match="seg of .*scans is empty in every scan"):
        load_files(empty, channels=["t1"], condition_on=["seg"])


def test_slices_by_the_mask_go_on_working(load_files):
    scans = load_files(brats(), channels=["t1", "t2"], condition_on=["seg"], slices="with_mask", min_head=0.0)
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
def test_layouts(load_files, files, heads, patients, names):
    scans = load_files(files, channels=["flair", "t1"], condition_on=["seg"])
    text = format_account(scans.manifest)
    assert f"flair, t1, seg of {heads} heads" in text
    assert f"patients: {patients}" in text
    assert scans.manifest["mask_labels"] == {"seg": names}
    assert scans.class_names == ()
    assert scans.manifest["volumes"]["total"] == 2 * heads


def test_the_folders_of_contrasts_are_no_classes(load_files):
    files = ixi()
    scans = load_files({path: v for path, v in files.items() if "mask" not in path}, channels=["t1", "flair"])
    assert scans.class_names == ()
    assert "t1, flair of 4 heads" in format_account(scans.manifest)


def test_dicom_series_of_a_study_are_one_head(load_files):
    files = {}
    for p in range(3):
        for i, contrast in enumerate(("T1 tse", "T2 tse")):
            files |= series(
                10 * p + i, f"P{p}", f"{p}/{i}/", SeriesDescription=contrast, StudyInstanceUID=f"1.2.{p}"
            )
    scans = load_files(files, channels=["t2", "t1"])
    assert "t2, t1 of 3 heads" in format_account(scans.manifest)


def test_dicom_series_with_one_number_for_all_are_told_by_their_contrast(load_files):
    files, others = {}, {}
    for p in range(3):
        for i, contrast in enumerate(("T1 tse", "T2 tse")):
            tags = {"SeriesDescription": contrast, "StudyInstanceUID": f"1.2.{p}", "SeriesNumber": "3"}
            files |= series(10 * p + i, f"P{p}", f"{p}/{i}/", **tags)
            others |= series(10 * p + i, f"P{p}", f"{p}/{i}/", **tags, SeriesInstanceUID=f"1.3.{p}")
    one, two = (
        load_files(files, channels=["t2", "t1"]),
        load_files(others, where="others", channels=["t2", "t1"]),
    )
    assert "t2, t1 of 3 heads" in format_account(two.manifest)
    assert one.manifest["content_sha256"] == two.manifest["content_sha256"]


def test_any_name_of_a_contrast_may_be_asked_for_and_a_table_tells_the_others(load_files):
    scans = load_files(
        {f"{p}_{c}.png": picture(grey(10 * p + i)) for p in range(4) for i, c in enumerate(("CBV", "T2"))},
        where="named",
        channels=["cbv", "t2"],
    )
    assert "cbv, t2 of 4 heads" in format_account(scans.manifest)
    files = {f"{p}_000{i}.png": picture(grey(10 * p + i)) for p in range(4) for i in (0, 1)}
    with pytest.raises(
        InputError, match=r"--channels adc is not in .* give 0_0000\.png and the like theirs in the column"
    ):
        load_files(files, channels=["adc", "t2"])
    rows = "".join(f"{path},{'adc' if '_0000' in path else 't2'}\n" for path in files)
    scans = load_files({"metadata.csv": f"file_name,contrast\n{rows}".encode()}, channels=["adc", "t2"])
    assert "adc, t2 of 4 heads" in format_account(scans.manifest)


# What is kept


def test_another_mask_is_another_scan(load_files):
    first = load_files(brats(), channels=["t1"], condition_on=["seg"]).manifest
    again = load_files(channels=["t1"], condition_on=["seg"]).manifest
    assert again["content_sha256"] == first["content_sha256"]
    changed = labels(1)
    changed[7, 9, 10] = 2
    other = load_files({NAME.format(1, "seg"): changed}, channels=["t1"], condition_on=["seg"]).manifest
    before, after = ({row["sha256"] for row in m["files"]} for m in (first, other))
    assert len(before & after) == len(before) * 3 / 4  # of the other patients
    assert load_files(contrast="t1").manifest["content_sha256"] != first["content_sha256"]


def test_labels_go_by_the_name_that_their_mask_is_asked_for_by(load_files):
    """The cache keeps labels by name: of `mask` it once gave those of `seg`, and the mask was taken for a contrast."""
    load_files(brats(), channels=["t1"], condition_on=["seg"])
    scans = load_files(channels=["t1"], condition_on=["mask"])
    assert scans.channels.mask_labels == {"mask": ("1", "2", "4")}
    assert scans.channels.width(("mask",)) == 3


def test_the_account_is_that_of_the_training(load_files, tmp_path):
    options = {"channels": ["t1", "t2"], "condition_on": ["seg"], "cache_dir": str(tmp_path / "cache")}
    manifest = load_files(brats(), **options).manifest
    found, _ = account_of(str(tmp_path / "scans"), **options)
    for name in ("content_sha256", "mask_labels", "findings", "split"):
        assert found[name] == manifest[name]
    assert found["settings"]["channels"] == ["t1", "t2"]
