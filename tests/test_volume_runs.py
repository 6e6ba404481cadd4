"""Whole runs on volumes: nothing of a person leaves, a model is evaluated on the same slices, and damage ends in sentences."""

import json
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import shorten, tiny, train_alone
from damage import damage_bytes, limits, refused_or_fine
from volume_sets import head, mask, nifti, series, write

from mri_ddpm import commands
from mri_ddpm.data import account_of, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.evaluate import fit_copy_detectors
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.runs import load_pipeline, load_record

PERSONS = [
    f"{name}_{year}"
    for name, year in zip(
        ("MUSTER_ERIKA", "MUSTER_HANS", "MUSTER_EVA", "MUSTER_KAI", "MUSTER_UWE"),
        (19700101, 19710402, 19661224, 19820606, 19500303),
        strict=True,
    )
]
# Of names, numbers and tags; see `dicom_files.SECRETS`
SECRETS = ("MUSTER", "ERIKA", "4711", "19700101", "19640812", "CHARITE", "BRINKMANN", "20240229")


def dicom():
    return {k: v for p, name in enumerate(PERSONS) for k, v in series(p, f"4711{p}", f"{name}/").items()}


def named_nifti():
    return {
        f"{name}/{name}_{c}.nii.gz": nifti(head(10 * p + i))
        for p, name in enumerate(PERSONS)
        for i, c in enumerate(("t1", "t2"))
    }


def told(folder, but=()):
    """The secrets that stand in a folder's files, also packed, and in their names."""
    found = {}
    for file in Path(folder).rglob("*"):
        content = file.read_bytes() if file.is_file() and file.name not in but else b""
        if zipfile.is_zipfile(file):  # of torch
            with zipfile.ZipFile(file) as archive:
                content += b"".join(archive.read(name) for name in archive.namelist())
        content = re.sub(rb"[0-9a-f]{32,}", b"", content)  # of a hash, which may hold a number by chance
        for secret in SECRETS:
            if (
                secret in str(file.relative_to(folder))
                or secret.encode() in content
                or secret.encode("utf-16-le") in content
            ):
                found.setdefault(file.name, []).append(secret)
    return found


@pytest.mark.parametrize(
    ("files", "options"), [(dicom, []), (named_nifti, ["--contrast", "t1"])], ids=["dicom", "nifti"]
)
def test_nothing_of_a_person_leaves(tmp_path, capfd, caplog, files, options):
    where, cache = write(tmp_path / "scans", files()), str(tmp_path / "cache")
    shutil.copy(
        next(Path(where).rglob("*MUSTER*/*")), Path(where, "MUSTER_ERIKA_19700101", "MUSTER_copy.nii.gz")
    )
    flags = ["--train_data_dir", where, "--cache_dir", cache, *options]
    commands.main(["data", *flags, "--output", str(tmp_path / "account" / "manifest.json")])
    run = tmp_path / "run"
    commands.main(
        [
            "train",
            "--preset",
            "tiny",
            *flags,
            "--max_train_steps",
            "2",
            "--train_batch_size",
            "4",
            "--report_to",
            "none",
            "--output_dir",
            str(run),
        ]
    )
    commands.main(["push", str(run), "me/heads", "--dry_run", str(tmp_path / "export")])
    said = "".join(capfd.readouterr()) + caplog.text
    assert "patients: 5, 4 in train, 1 in validation" in said
    assert not [secret for secret in SECRETS if secret in said]
    assert told(tmp_path / "cache") == {}
    assert told(tmp_path / "export") == {}
    assert set(told(run)) == {"sources.csv"} == set(told(run)) | set(told(tmp_path / "export"))
    assert set(told(tmp_path / "account")) == {"manifest-sources.csv"}
    for file in (run / "sources.csv", tmp_path / "account" / "manifest-sources.csv"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not list((tmp_path / "export").rglob("*sources*"))
    manifest = json.loads((run / "manifest.json").read_text()) if (run / "manifest.json").is_file() else None
    assert manifest is None or manifest["class_names"] == []


def test_what_is_damaged_tells_no_name_to_the_manifest(tmp_path):
    files = {**named_nifti(), **dict(list(dicom().items())[:60])}
    damaged = {path: v[: len(v) // 2] for path, v in list(files.items())[::7]}
    where = write(
        tmp_path / "scans",
        {**files, **damaged, "MUSTER_ERIKA_19700101/empty_4711.nii.gz": b"", "x/y/MUSTER.dcm": b"MUSTER"},
    )
    manifest, _ = account_of(where, cache_dir=str(tmp_path / "cache"), contrast="t1")
    manifest["source"] = ""
    assert manifest["unreadable"]
    assert not [secret for secret in SECRETS if secret in json.dumps(manifest)]
    assert told(tmp_path / "cache") == {}


# Evaluation


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Ten steps on coronal slices without a mask, cut in an unusual way."""
    folder = tmp_path_factory.mktemp("volumes")
    files = {
        f"BraTS-GLI-{p:05d}-000/BraTS-GLI-{p:05d}-000-{c}.nii.gz": nifti(head(10 * p + i))
        for p in range(6)
        for i, c in enumerate(("t1n", "t2w"))
    }
    files |= {f"BraTS-GLI-{p:05d}-000/BraTS-GLI-{p:05d}-000-seg.nii.gz": nifti(mask()) for p in range(6)}
    write(folder / "scans", files)
    return train_alone(
        tiny(
            folder / "run", train_data_dir=str(folder / "scans"), cache_dir=str(folder / "cache"), max_train_steps=10,
            contrast="t2", plane="coronal", slices="without_mask", slice_range=[0.2, 0.9], slice_step_mm=16.0, min_head=0.6,
            field_of_view_mm=230.0, intensity="full_range", fit="crop", validation_share=0.3, seed=3,
        )
    )  # fmt: skip


def test_a_model_is_evaluated_on_the_slices_that_it_was_trained_on(run):
    record = load_record(run)
    settings = record.manifest["settings"]
    assert settings["plane"] == "coronal"
    assert settings["slice_range"] == [0.2, 0.9]
    where = {"train_data_dir": str(run.parent / "scans")}
    found = load_real_scans(record, where, 16, str(run.parent / "cache"))
    rows = [row for row in record.manifest["files"] if row["split"] == "train"]
    assert len(found.training[1]) == len(rows)
    own = dict(settings)
    scans = load_scans(**own, **where, cache_dir=str(run.parent / "cache"))
    kept = [
        {name: row[name] for name in ours}
        for row, ours in zip(scans.manifest["files"], record.manifest["files"], strict=True)
    ]
    assert kept == record.manifest["files"]
    pixels = scans.train.batch(range(len(rows)))["pixel_values"].numpy()
    np.testing.assert_allclose(
        np.asarray(found.training[0][np.arange(len(rows))]), pixels, atol=0.5 / 255 + 1e-6
    )
    shutil.copytree(run.parent / "scans", run.parent / "other")
    write(
        run.parent / "other",
        {
            "BraTS-GLI-00001-000/BraTS-GLI-00001-000-t2w.nii.gz": nifti(head(99)),
            "BraTS-GLI-00002-000/BraTS-GLI-00002-000-t2w.nii.gz": nifti(head(98)),
        },
    )
    with pytest.raises(
        InputError, match="lacks .* scans that the model was trained on|was trained on .* of the scans"
    ):
        load_real_scans(record, {"train_data_dir": str(run.parent / "other")}, 16, str(run.parent / "cache"))


@pytest.mark.slow
def test_evaluate_takes_a_model_of_volumes(run, tmp_path, monkeypatch):
    shorten(monkeypatch)
    flags = [
        "--train_data_dir",
        str(run.parent / "scans"),
        "--output_dir",
        str(tmp_path / "eval"),
        "--num_images",
        "100",
    ]
    commands.main(
        [
            "evaluate",
            str(run),
            *flags,
            "--num_inference_steps",
            "2",
            "--metrics",
            "detail_ratio",
            "wavelet_kid",
        ]
    )
    assert json.loads((tmp_path / "eval" / "metrics.json").read_text())["quality"].keys() == {
        "detail_ratio",
        "wavelet_kid",
    }


@pytest.mark.slow
def test_copies_of_slices_are_left_out(tmp_path, capsys, monkeypatch):
    shorten(monkeypatch)
    files = {f"sub-{p}/sub-{p}_T1w.nii.gz": nifti(head(p)) for p in range(8)}
    where, cache = write(tmp_path / "scans", files), {"cache_dir": str(tmp_path / "cache")}
    run = train_alone(
        tiny(
            tmp_path / "run", train_data_dir=where, **cache, plane="axial", slice_step_mm=8.0, min_head=0.1,
            validation_share=0.25, max_train_steps=2, lr_warmup_steps=1,
        )
    )  # fmt: skip
    flags = ["--train_data_dir", where, "--num_inference_steps", "2", "--num_images", "4"]
    commands.main(["sample", str(run), "--reject_copies", *flags, "--output_dir", str(tmp_path / "out")])
    assert "0 of 4 images came too close to a training scan" in capsys.readouterr().out  # they are noise
    assert len(list((tmp_path / "out").glob("*.png"))) == 4
    detectors = fit_copy_detectors(load_pipeline(str(run), "cpu"), str(run), train_data_dir=where)
    real = load_real_scans(load_record(str(run)), {"train_data_dir": where}, 16, **cache)
    assert len(real.training[1]) > 51
    assert detectors.examine(np.asarray(real.training[0])).flagged.mean() > 0.95
    assert detectors.examine(np.asarray(real.validation[0])).flagged.mean() < 0.1


# Damage


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Six good patients, 100 damaged NIfTI files and 100 damaged DICOM files, of which a few are still good."""
    files = {f"sub-{p:03d}/sub-{p:03d}_T1w.nii.gz": nifti(head(p)) for p in range(6)}
    slices = list(series(7, "P7").values())
    for seed in range(100):
        rng = np.random.default_rng(seed)
        files[f"sub-{seed + 100}/sub-{seed + 100}_T1w.nii{'.gz' * (seed % 2)}"] = damage_bytes(
            rng, nifti(head(8 + seed % 3), packed=bool(seed % 2))
        )
        files[f"sub-{seed + 300}/IM{seed}"] = damage_bytes(rng, slices[seed % 20])
    return write(tmp_path_factory.mktemp("damaged") / "scans", files)


def test_two_hundred_damaged_files_end_in_one_sentence(damaged, tmp_path):
    options = {"train_data_dir": damaged, "cache_dir": str(tmp_path / "cache"), "resolution": 16}
    with limits(), refused_or_fine("200 damaged files", "files in", kinds=(InputError,)):
        load_scans(**options, contrast="t1")
    with pytest.raises(InputError) as error:
        load_scans(**options, contrast="t1")
    words = str(error.value)
    bad = int(words.split()[0])
    assert 40 < bad <= 200
    assert words.count("sub-") >= 10
    assert f"; and {bad - 10} more (mend or remove them, or leave them out by --on_bad_image skip)." in words
    scans = load_scans(**options, contrast="t1", on_bad_image="skip")
    assert scans.manifest["split"]["bad"]["total"] == bad == len(scans.manifest["unreadable"])
    assert scans.manifest["patients"]["train"] >= 5
    assert len(scans.train) > 50
    assert all(row["reason"] and len(row["reason"]) < 250 for row in scans.manifest["unreadable"])
    assert np.isfinite(scans.train.batch(range(len(scans.train)))["pixel_values"].numpy()).all()


def test_odd_files_of_a_clumsy_user(tmp_path):
    """Links to nowhere and in circles, pipes, a claim of gigabytes, a directory file, folders called as files are."""
    where = Path(write(tmp_path / "scans", {f"sub-{p}/sub-{p}_T1w.nii.gz": nifti(head(p)) for p in range(4)}))
    (where / "sub-0" / "gone_T1w.nii.gz").symlink_to("nowhere.nii.gz")
    (where / "sub-1" / "loop").symlink_to(where)
    (where / "folder.nii.gz").mkdir()
    os.mkfifo(where / "sub-2" / "pipe")
    claim = bytearray(nifti(head(9), packed=False))
    claim[40:56] = np.array([3, 30000, 30000, 300, 1, 1, 1, 1], "<i2").tobytes()
    write(
        where,
        {
            "sub-2/big_T1w.nii": bytes(claim),
            "sub-3/empty_T1w.nii.gz": b"",
            "sub-3/DICOMDIR": bytes(128) + b"DICM" + bytes(400),
            "Thumbs.db": b"x",
        },
    )
    scans = load_scans(
        train_data_dir=str(where),
        cache_dir=str(tmp_path / "cache"),
        resolution=16,
        on_bad_image="skip",
        contrast="t1",
    )
    bad = {scans.paths[row["path"]]: row["reason"] for row in scans.manifest["unreadable"]}
    assert bad.pop("sub-0/gone_T1w.nii.gz") == "cannot be read (No such file or directory)"
    assert "30000x30000x300" in bad.pop("sub-2/big_T1w.nii")
    assert bad.pop("sub-3/empty_T1w.nii.gz") == "is not a NIfTI volume"
    assert bad == {}
    assert scans.manifest["volumes"]["total"] == 4
    words = [finding["words"] for finding in scans.manifest["findings"]]
    assert "left out: 1 DICOM file, no image" in words


# Libraries


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, *args):
        return None if name.split(".")[0] in ("nibabel", "pydicom") else super().find_spec(name, *args)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from pathlib import Path
import numpy as np
from PIL import Image
from mri_ddpm.data import load_scans
from mri_ddpm.errors import InputError

for folder, files in (("nifti", "12 NIfTI files"), ("dicom", "20 DICOM files")):
    try:
        load_scans(train_data_dir=folder, cache_dir="cache", resolution=16)
        raise SystemExit("nothing was refused")
    except InputError as error:
        assert str(error) == f'{folder} holds {files}: pip install -e ".[volumes]" in the clone brings what reads them.', error
assert not list(Path("cache").glob("*.arrow"))
Path("png").mkdir()
for i in range(12):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20), np.uint8)).save(f"png/{i}.png")
assert len(load_scans(train_data_dir="png", cache_dir="cache", resolution=16).train) == 11
assert not {"nibabel", "pydicom"} & {name.split(".")[0] for name in sys.modules}
"""


def test_missing_libraries_are_named_and_pictures_need_none(run_fresh, tmp_path):
    write(tmp_path / "nifti", {f"{p}.nii.gz": nifti(head(p)) for p in range(12)})
    write(tmp_path / "dicom", series(0, "P0"))
    run_fresh(WITHOUT)
