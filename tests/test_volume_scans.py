"""Volumes as scans: in every layout that people have, cut as asked for, and no patient on two sides."""

import gzip
import itertools
import json
import shutil
from io import BytesIO

import datasets
import nibabel
import numpy as np
import pytest
from dicom_files import content, dataset
from PIL import Image
from volume_sets import AFFINE, head, mask, nifti, pair, series, write, write_zip

from mri_ddpm.data import account_of, format_account, format_findings, load_scans, read_volume, slices
from mri_ddpm.data.reading.nifti import read_nifti
from mri_ddpm.data.reading.pictures import fit_square
from mri_ddpm.data.reading.series import read_dicom_folder
from mri_ddpm.errors import InputError

BRATS = ("t1", "t1ce", "t2", "flair")
SIDES = ("train", "validation", "test")


@pytest.fixture
def load(tmp_path):
    """The scans of a folder, or of a .zip, with these files."""

    def make(files=None, archive=None, **options):
        """Of no files: those of the last time."""
        if files is not None:
            made = {path: nifti(v) if isinstance(v, np.ndarray) else v for path, v in files.items()}
            shutil.rmtree(tmp_path / "scans", ignore_errors=True)
            write_zip(tmp_path / "scans.zip", made, archive) if archive else write(tmp_path / "scans", made)
        where = str(tmp_path / ("scans.zip" if archive else "scans"))
        return load_scans(train_data_dir=where, resolution=16, cache_dir=str(tmp_path / "cache"), **options)

    return make


def brats(patients=range(1, 5), contrasts=BRATS):
    stem = "BraTS20_Training_{0:03d}/BraTS20_Training_{0:03d}_{1}.nii.gz"
    volumes = {stem.format(p, c): head(10 * p + BRATS.index(c)) for p in patients for c in contrasts}
    return volumes | {stem.format(p, "seg"): mask() for p in patients}


def bids(patients=range(1, 5), visits=("1",)):
    name = "sub-{0:02d}/ses-{1}/anat/sub-{0:02d}_ses-{1}_T1w"
    volumes = {
        f"{name.format(p, v)}.nii.gz": head(10 * p + i) for p in patients for i, v in enumerate(visits)
    }
    return (
        volumes
        | {path.replace(".nii.gz", ".json"): b"{}" for path in volumes}
        | {"dataset_description.json": b"{}"}
    )


def nnunet(patients=range(1, 5)):
    volumes = {f"imagesTr/case_{p:03d}_{c:04d}.nii.gz": head(10 * p + c) for p in patients for c in range(2)}
    volumes |= {f"labelsTr/case_{p:03d}.nii.gz": mask() for p in patients}
    return volumes | {"dataset.json": json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}).encode()}


def decathlon(patients=range(1, 5)):
    both = {p: np.stack([head(10 * p + c) for c in range(2)], axis=-1) for p in patients}
    volumes = {f"imagesTr/HEAD_{p:03d}.nii.gz": voxels for p, voxels in both.items()}
    volumes |= {f"labelsTr/HEAD_{p:03d}.nii.gz": mask() for p in patients}
    return volumes | {"dataset.json": json.dumps({"modality": {"0": "FLAIR", "1": "T1w"}}).encode()}


def dicom(patients=range(4), folder="MUSTER_ERIKA_{}/"):
    return {k: v for p in patients for k, v in series(p, f"P{p}", folder.format(p)).items()}


def rows_of(scans, *splits):
    return [row for row in scans.manifest["files"] if row["split"] in splits]


def sides(scans, of):
    """{what `of` makes of a path: the sides it is on}."""
    found = {}
    for row in rows_of(scans, *SIDES):
        found.setdefault(of(scans.paths[row["path"]]), set()).add(row["split"])
    return found


def assert_pixels(scans, volume_of, resolution=16, fit="pad", **cutting):
    """The data sets hold what `slices` cuts out of the volume of each path, and nothing else of it."""
    cut = {}
    for split, part in (("train", scans.train), ("validation", scans.validation)):
        rows = rows_of(scans, split)
        assert len(rows) == len(part) > 0
        pixels = part.batch(range(len(part)))["pixel_values"].numpy()[:, 0]
        for row, image in zip(rows, pixels, strict=True):
            path, _, place = scans.paths[row["path"]].rpartition("/")
            if path not in cut:
                cut[path] = {f"{s.plane} {s.index:03d}": s for s in slices(volume_of(path), **cutting)}
            expected = cut[path].pop(place)
            unit = fit_square(expected.image, resolution, fit)
            np.testing.assert_array_equal(
                image, (np.round(unit * 65535) / np.float32(65535)).astype(np.float32)
            )
            assert row["position_mm"] == round(expected.position_mm, 2)
            assert (row["height"], row["width"]) == expected.image.shape
    assert not any(cut.values())


# Layouts


@pytest.mark.parametrize("archive", [None, "/", "\\"])
@pytest.mark.parametrize(
    ("files", "options", "source"),
    [
        (bids(), {}, "4 by BIDS names"),
        (brats(), {"contrast": "flair"}, "4 by BraTS names"),
        (nnunet(), {"contrast": "flair"}, "by the volumes"),
        ({f"{i}.nii.gz": head(i) for i in range(4)}, {}, "4 by the volumes"),
    ],
    ids=["bids", "brats", "nnunet", "plain"],
)
def test_layouts(load, tmp_path, files, options, source, archive):
    scans = load(files, archive, **options)
    told = {"total": 4, "train": 3, "validation": 1, "test": 0, "scans_without": 0}
    assert scans.manifest["patients"] == told
    assert source in format_findings(scans.manifest)
    assert scans.class_names == ()
    write(tmp_path / "loose", {path: nifti(v) for path, v in files.items() if isinstance(v, np.ndarray)})
    assert_pixels(scans, lambda path: read_volume(next((tmp_path / "loose").rglob(path.rpartition("/")[2]))))
    assert all(len(found) == 1 for found in sides(scans, lambda path: path.rpartition("/")[0]).values())
    contrasts = {row["contrast"] for row in scans.manifest["files"]}
    assert contrasts == {options.get("contrast", "t1" if "BIDS" in source else None)}


def test_a_set_of_several_contrasts_asks_which(load):
    with pytest.raises(
        InputError,
        match=r"holds 4 flair, 4 t1, 4 t1ce, 4 t2: choose by --contrast, or several by --channels\.",
    ):
        load(brats())
    with pytest.raises(
        InputError, match="--contrast pd is not in .*, which holds 4 flair, 4 t1, 4 t1ce, 4 t2"
    ):
        load(brats(), contrast="pd")
    # What nothing says the contrast of can be named in a table
    files = {f"{i}_{'t1' if i % 2 else 'odd'}.nii.gz": head(i) for i in range(8)}
    with pytest.raises(InputError, match="holds 4 of unknown contrast, 4 t1: choose by --contrast"):
        load(files)
    table = "file_name,contrast\n" + "".join(
        f"{path},{'T1w' if i % 2 else 'MT'}\n" for i, path in enumerate(files)
    )
    scans = load({**files, "metadata.csv": table.encode()}, contrast="MT")
    assert {scans.paths[row["path"]][1:9] for row in rows_of(scans, *SIDES)} == {"_odd.nii"}
    assert len(load({**files, "metadata.csv": table.encode()}, contrast="t1").train) > 0


def test_channels_of_one_file(load):
    """Decathlon keeps contrasts as volumes of one file; `dataset.json` names them."""
    files = decathlon()
    with pytest.raises(InputError, match="holds 4 flair, 4 t1: choose by --contrast"):
        load(files)
    chosen = load(files, contrast="t1")
    assert_pixels(chosen, lambda path: read_nifti(nifti(files[path]), volume_index=1))
    by_number = load(files, volume_index=0)
    assert {row["contrast"] for row in by_number.manifest["files"]} == {"flair"}
    assert_pixels(by_number, lambda path: read_nifti(nifti(files[path]), volume_index=0))
    # The masks are one volume, whichever is chosen
    for options in ({"contrast": "t1"}, {"volume_index": 1}):
        marked = load(files, slices="with_mask", **options)
        assert {row["path"][-3:] for row in marked.manifest["files"]} == {"008", "009", "010", "011"}
    with pytest.raises(InputError, match="HEAD_001.nii.gz holds 2 volumes, counted from 0: --volume_index 5"):
        load(files, volume_index=5)
    plain = {f"{p}.nii.gz": voxels for p, voxels in enumerate(files[path] for path in list(files)[:4])}
    scans = load(plain)
    assert (
        "4 volumes: holds 2 volumes, of which the first is taken: choose by --volume_index"
        in format_account(scans.manifest)
    )


def test_a_set_of_one_channel_needs_no_choice(load):
    files = {f"imagesTr/x_{p:03d}_0000.nii.gz": head(p) for p in range(4)}
    scans = load({**files, "dataset.json": b'{"channel_names": {"0": "T1"}}'})
    assert {row["contrast"] for row in scans.manifest["files"]} == {"t1"}


def test_class_folders(load):
    files = {f"{kind}/{kind}{i}.nii.gz": head(10 * j + i) for j, kind in enumerate("ab") for i in range(4)}
    scans = load(files)
    assert scans.class_names == ("a", "b")
    assert scans.manifest["patients"]["validation"] == 2
    assert all(row["class"] == scans.paths[row["path"]][0] for row in scans.manifest["files"])
    assert_pixels(scans, lambda path: read_nifti(nifti(files[path])))


def test_folders_of_few_volumes_are_patients(load):
    """Two visits of each person, called by name: no classes, and no name in the manifest."""
    files = {
        f"{name}/visit{i}.nii.gz": head(10 * j + i)
        for j, name in enumerate(("Meier_Hans", "Muster_Erika", "Bauer_Ute"))
        for i in range(2)
    }
    scans = load(files)
    assert scans.class_names == ()
    assert scans.manifest["patients"]["total"] == 3
    assert "folders, which hold too few volumes to be classes" in format_findings(scans.manifest)
    assert not any(name in json.dumps(scans.manifest["files"]) for name in ("Meier", "Muster", "Bauer"))


@pytest.mark.parametrize("ending", ["lesion", "ROI", "label"])
def test_what_is_drawn_in_a_scan_is_a_mask(load, ending):
    files = {
        f"{name}{i}{end}.nii.gz": head(i)
        for i in range(4)
        for name in ("Bauer",)
        for end in ("", f"_{ending}")
    }
    scans = load(files)
    assert scans.manifest["volumes"]["total"] == 4
    assert "left out: 4 masks, by name" in format_findings(scans.manifest)


def test_dicom_series(load, tmp_path):
    scans = load(dicom())
    assert "patients: 4 by DICOM tags; contrast: 4 t1" in format_findings(scans.manifest)
    assert scans.class_names == ()
    read = {p: next(read_dicom_folder(tmp_path / "scans" / f"MUSTER_ERIKA_{p}")) for p in range(4)}
    assert_pixels(scans, lambda path: read[int(path.split("/")[0][-1])])
    np.testing.assert_array_equal(read[2].voxels, head(2))
    # The same files in one folder, in a .zip, in folders of other names are the same scans
    flat = {path.replace("/", "_"): content for path, content in dicom().items()}
    for files, archive in ((flat, None), (dicom(), "\\"), (dicom(folder="x/{}/"), "/")):
        other = load({f"other{archive}/{path}": v for path, v in files.items()}, archive)
        assert {row["sha256"] for row in rows_of(other, "train")} >= {
            r["sha256"] for r in rows_of(scans, "train")
        }


def test_pairs_and_odd_names(load):
    """A header beside its image, suffixes in capitals, and none at all."""
    files = {}
    for i in range(3):
        files[f"{i}_T1.hdr"], files[f"{i}_T1.img"] = pair(head(i))
        files[f"{i + 3}_T1.HDR"], files[f"{i + 3}_T1.IMG"] = pair(head(i + 3))
    files |= {
        "6_T1.NII.GZ": head(6),
        "7_T1.gz": head(7),
        "8_T1": nifti(head(8), packed=False),
        "8_T1_SEG.NII.GZ": mask(),
    }
    scans = load(files)
    assert scans.manifest["volumes"]["total"] == 9
    assert "left out: 1 mask, by name" in format_findings(scans.manifest)
    assert "passed over" not in format_findings(scans.manifest)
    assert_pixels(scans, lambda path: read_nifti(nifti(head(int(path[0])))))


def test_a_saved_data_set_of_the_hub(tmp_path):
    column = datasets.Features({"scan": datasets.Nifti(), "contrast": datasets.Value("string")})

    def rows(seeds):
        return datasets.Dataset.from_dict(
            {
                "scan": [{"bytes": nifti(head(i)), "path": f"{i}.nii.gz"} for i in seeds],
                "contrast": ["T1w"] * len(seeds),
            },
            features=column,
        )

    saved = tmp_path / "saved"
    datasets.DatasetDict({"train": rows(range(5)), "validation": rows(range(4, 8))}).save_to_disk(saved)
    options = {
        "dataset_name": str(saved),
        "image_column": "scan",
        "label_column": "",
        "cache_dir": str(tmp_path / "cache"),
    }
    scans = load_scans(resolution=16, **options)
    assert "patients: 9 by the volumes" in format_findings(scans.manifest)
    assert "validation is by validation" in format_findings(scans.manifest)
    assert {row["contrast"] for row in scans.manifest["files"]} == {"t1"}
    # Volume 4 is in both
    assert {scans.paths[row["path"]].split("/")[1] for row in rows_of(scans, "leak")} == {"0"}
    assert_pixels(
        scans, lambda path: read_nifti(nifti(head({"t": 0, "v": 4}[path[0]] + int(path.split("/")[1]))))
    )


def test_pictures_and_volumes_together(load):
    def png(voxels):
        file = BytesIO()
        Image.fromarray((voxels[:, :, 10] / 6).astype(np.uint8)).save(file, "PNG")
        return file.getvalue()

    files = {f"{i}.nii.gz": head(i) for i in range(4)} | {f"{i}.png": png(head(i)) for i in range(10, 20)}
    scans = load(files)
    assert scans.manifest["volumes"]["total"] == 4
    assert (
        format_account(scans.manifest).split(": ")[1].split("\n")[0] == "4 volumes, 48 slices, 10 other files"
    )
    assert scans.manifest["patients"]["scans_without"] == 10
    assert {row["path"].split("/")[0] for row in scans.manifest["files"]} == {
        "unknown",
        *(f"patient {i}" for i in range(1, 5)),
    }
    assert len(scans.train) + len(scans.validation) == 58


def test_series_without_a_number_are_told_apart_by_their_folders(load):
    """As some anonymisers leave them, with the place of every head nearly the same."""
    files = {k: v for p in range(4) for k, v in series(p, "ANON", f"{p}/", study=False).items()}
    scans = load(files, patient_pattern=r"^(\d)/")
    assert scans.manifest["volumes"]["total"] == 4
    assert scans.manifest["patients"]["total"] == 4
    assert not any(row["volume"] is None for row in scans.manifest["files"])


# Whose a volume is


@pytest.mark.parametrize(
    ("paths", "patients", "classes"),
    [
        (["{0}/t1.nii.gz", "{0}/t2.nii.gz"], 6, ()),
        (["{0}/a/t1.nii.gz", "{0}/b/t1.nii.gz"], 6, ()),  # visits
        (["x/{0}/t1.nii.gz", "x/{0}/t2.nii.gz"], 6, ()),
        (["{1}/{0}/t1.nii.gz", "{1}/{0}/t2.nii.gz"], 6, ("x", "y")),
        (["{0}_t1.nii.gz"], 6, ()),
    ],
)
def test_folders_of_persons_without_numbers(load, paths, patients, classes):
    """Nothing but the contrasts says that these folders are persons and no classes."""
    names = ["MUSTER_ERIKA", "MEIER_HANS", "ROTH_EVA", "BLAU_KARL", "LANG_ILSE", "KURZ_UWE"]
    files = {
        path.format(name, "xy"[p % 2]): head(10 * p + i)
        for p, name in enumerate(names)
        for i, path in enumerate(paths)
    }
    options = {"contrast": "t1"} if any("t2" in path for path in paths) else {}
    scans = load(files, **options)
    assert scans.class_names == classes
    assert scans.manifest["patients"]["total"] == patients
    found = sides(scans, lambda path: next(name for name in names if name in path))
    assert all(len(splits) == 1 for splits in found.values())
    assert not any(name in json.dumps({**scans.manifest, "source": ""}) for name in names)


def test_two_visits_of_one_patient(load):
    """Of six folders two are of one person: they are no classes, and the two stay together."""
    files = {
        k: v for p in range(6) for k, v in series(p, f"P{max(p - 1, 0)}", f"PERSON{'ABCDEF'[p]}/").items()
    }
    load(files)
    for seed in range(4):
        scans = load(seed=seed)
        assert scans.class_names == ()
        assert scans.manifest["patients"]["total"] == 5
        found = sides(scans, lambda path: path.split("/")[0])
        assert found["PERSONA"] == found["PERSONB"]
    found = sides(load(bids(visits=("1", "2"))), lambda path: path.split("/")[0])
    assert all(len(splits) == 1 for splits in found.values())


def test_a_damaged_file_does_not_take_the_patients_away(load):
    """The tags of all others still say who they are, and its name is not told."""
    files = {k: v for p in range(6) for k, v in series(p, f"P{p // 2}", f"{1000 + p}/").items()}
    good = load(files)
    assert good.manifest["patients"]["total"] == 3
    claims = content(dataset(np.zeros((4, 4), np.int16), Rows=60000, Columns=60000))
    broken = {**files, "1003/MUSTER_ERIKA": claims}
    with pytest.raises(InputError, match="1003/MUSTER_ERIKA claims 1 pictures of 60000x60000 pixels"):
        load(broken)
    scans = load(on_bad_image="skip")
    assert "patients: 3 by DICOM tags" in format_findings(scans.manifest)
    assert scans.manifest["unreadable"][0]["path"] == "unknown/0001"
    assert "MUSTER" not in json.dumps(scans.manifest)
    found = sides(scans, lambda path: int(path[:4]) // 2)
    assert all(len(splits) == 1 for splits in found.values())


@pytest.mark.parametrize(
    "files",
    [bids([1]), {k: v for p in range(4) for k, v in series(p, "ANON", f"{p}/").items()}],
    ids=["one", "all ANON"],
)
def test_one_patient_alone_is_told_the_way_out(load, files):
    with pytest.raises(
        InputError, match=r"1 patient\(s\).*tell patients apart by --patient_pattern or metadata.csv"
    ):
        load(files)


def test_a_series_without_a_patient_counts_by_its_study(load):
    files = {k: v for p in range(4) for k, v in series(p, "", f"{p}/").items()}
    scans = load(files)
    assert scans.manifest["patients"]["total"] == 4
    assert "4 DICOM series without a PatientID: each study counts as a patient" in format_findings(
        scans.manifest
    )


def test_voxel_identical_volumes_are_on_one_side(load):
    """Under other names, packed or not, as another kind of number, as DICOM: one patient by all that is known."""
    files = {f"sub-{p:02d}/sub-{p:02d}_T1w.nii.gz": head(p) for p in range(6)}
    files["sub-10/sub-10_T1w.nii"] = nifti(head(0), packed=False)
    files["sub-11/sub-11_T1w.nii.gz"] = head(1).astype(np.float32)
    load(files)
    for seed in range(4):
        scans = load(seed=seed, validation_share=0.3)
        found = sides(scans, lambda path: path.split("/")[0])
        # The later ones are repeats
        assert {"sub-10", "sub-11"}.isdisjoint(found)
        assert {row["repeat"] for row in rows_of(scans, "repeat")} == {"byte-identical"}
        kept = sides(
            load(seed=seed, validation_share=0.3, keep_repeats=True), lambda path: path.split("/")[0]
        )
        assert kept["sub-10"] == kept["sub-00"]
        assert kept["sub-11"] == kept["sub-01"]


def test_no_patient_and_no_volume_on_two_sides_of_a_hundred_layouts(tmp_path):
    """Made layouts of patients, visits, contrasts, planes and copies; the account splits as the training does."""
    cache, split_off = str(tmp_path / "cache"), 0
    small = (8, 9, 8)
    contents = {
        (i, packed): nifti(head(i, small), packed=packed) for i in range(40) for packed in (True, False)
    }
    for seed in range(100):
        rng = np.random.default_rng(seed)
        patients, visits, files, number = int(rng.integers(2, 7)), int(rng.integers(1, 3)), {}, {}
        layout = rng.choice(
            [
                "sub-{p:02d}/ses-{v}/sub-{p:02d}_{c}.nii",
                "{p}{p}{p}/{v}/{c}.nii",
                "case {p}/{c}-{v}.nii",
                "P{p}-{v}_{c}.nii",
            ]
        )
        for p, v, c in itertools.product(
            range(patients), range(visits), ("T1w", "T2w")[: rng.integers(1, 3)]
        ):
            path = layout.format(p=p, v=v, c=c)
            number[path], packed = int(rng.integers(40)), bool(rng.integers(2))
            files[path] = contents[number[path], packed]
        contrast = "t1" if any("T2w" in path for path in files) else None
        pattern = r"^P(\d+)-" if layout.startswith("P") else None
        where = write(tmp_path / str(seed), files)
        try:
            manifest, paths = account_of(
                where, cache_dir=cache, contrast=contrast, patient_pattern=pattern, seed=seed,
                plane=str(rng.choice(["axial", "sagittal", "all"])), validation_share=0.3, keep_repeats=bool(seed % 2), min_head=0.8,
            )  # fmt: skip
        except InputError:
            continue  # all joined into one
        split_off += 1
        of_patient, of_volume = {}, {}
        for row in manifest["files"]:
            if row["split"] in SIDES:
                path = paths[row["path"]].rpartition("/")[0]
                patient = next(
                    p
                    for p in range(patients)
                    if any(path == layout.format(p=p, v=v, c="T1w") for v in range(visits))
                )
                of_patient.setdefault(patient, set()).add(row["split"])
                of_volume.setdefault(number[path], set()).add(row["split"])
        assert all(len(found) == 1 for found in [*of_patient.values(), *of_volume.values()])
    assert split_off > 50


def test_samples_and_analyze_volumes_among_scans(load):
    """A sample of a model is left out and counted; Analyze, which says nothing of left and right, is named."""
    files = {f"sub-{p}/sub-{p}_T1w.nii.gz": head(p) for p in range(4)}
    image = nibabel.Nifti1Image(head(9), AFFINE)
    image.header["descrip"] = b"SYNTHETIC mri-ddpm"
    files["sub-5/sub-5_T1w.nii"] = image.to_bytes()
    files["sub-6/sub-6_T1w.nii.gz"] = gzip.compress(image.to_bytes())
    assert "left out: 2 NIfTI files, synthetic" in format_findings(load(files).manifest)
    files["sub-7/sub-7_T1w.hdr"] = nibabel.AnalyzeHeader().binaryblock
    files["sub-7/sub-7_T1w.img"] = bytes(1000)
    with pytest.raises(InputError, match="sub-7_T1w.hdr is an Analyze volume, .*convert it to NIfTI"):
        load(files)
    assert "passed over" not in format_findings(load(on_bad_image="skip").manifest)
