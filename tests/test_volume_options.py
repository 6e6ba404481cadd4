"""What is asked of volumes: each flag, what is refused, and what the account says."""

import json
import re

import nibabel
import numpy as np
import pytest
from volume_sets import AFFINE, SHAPE, head, mask, nifti, series, write

from mri_ddpm import commands
from mri_ddpm.data import account_of, format_account, load_scans
from mri_ddpm.data.volume_cache import CUTTING
from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

FILES = {f"sub-{p:02d}/sub-{p:02d}_T1w.nii.gz": nifti(head(p)) for p in range(4)}
FILES |= {f"sub-{p:02d}/sub-{p:02d}_dseg.nii.gz": nifti(mask(8, 8 + p)) for p in range(4)}
# Of each option that cuts, a value that changes what is cut
OTHERS = {
    "plane": "coronal",
    "slices": "without_mask",
    "slice_range": [0.3, 0.6],
    "slice_step_mm": 17.0,
    "min_head": 0.9,
    "max_spacing_mm": 9.0,
    "field_of_view_mm": 300.0,
    "intensity": "full_range",
    "volume_index": 0,
    "assume_orientation": "RAS",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("options") / "scans", FILES)


@pytest.fixture(scope="module")
def load(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def make(where=folder, **options):
        return load_scans(**{"train_data_dir": where, "cache_dir": str(cache), "resolution": 16, **options})

    make.cache = cache
    return make


def places(scans):
    """{path of a volume: {plane: indices}} of all slices."""
    found = {}
    for row in scans.manifest["files"]:
        path, _, place = scans.paths[row["path"]].rpartition("/")
        plane, index = place.split()
        found.setdefault(path, {}).setdefault(plane, []).append(int(index))
    return found


def refused(load, **options):
    with pytest.raises(InputError) as error:
        load(**options)
    return str(error.value)


def test_every_option_is_another_cache_and_in_the_manifest(load):
    assert set(OTHERS) == set(CUTTING) <= set(ScanOptions.__dataclass_fields__)
    plain = load()
    kept = set(load.cache.glob("*.arrow"))
    for name, value in OTHERS.items():
        scans = load(**{name: value})
        now = set(load.cache.glob("*.arrow"))
        assert len(now - kept) == 4, name
        kept = now
        assert scans.manifest["settings"] == {**plain.manifest["settings"], name: value}
        again = load(**json.loads(json.dumps(scans.manifest["settings"])))
        assert again.manifest == scans.manifest
        assert set(load.cache.glob("*.arrow")) == kept
    for name, value in {"resolution": 20, "fit": "crop"}.items():
        load(**{name: value})
        assert len(set(load.cache.glob("*.arrow")) - kept) in (4, 8), name


def test_which_slices(load):
    usual = places(load())
    assert set(usual) == {path for path in FILES if "T1w" in path}
    assert all(found == {"axial": list(range(4, 16))} for found in usual.values())
    every = places(load(min_head=0))
    assert all(found == {"axial": list(range(20))} for found in every.values())
    assert all(
        found == {"axial": list(range(6, 12))} for found in places(load(slice_range=[0.3, 0.6])).values()
    )
    stepped = places(load(slice_step_mm=17.0))
    assert all(found == {"axial": [4, 7, 10, 13]} for found in stepped.values())
    planes = places(load(plane="all"))
    assert all(set(found) == {"axial", "coronal", "sagittal"} for found in planes.values())
    with_mask, without = places(load(slices="with_mask")), places(load(slices="without_mask"))
    assert sorted(found["axial"] for found in with_mask.values()) == [list(range(8, 9 + p)) for p in range(4)]
    for path, found in with_mask.items():
        assert sorted(found["axial"] + without[path]["axial"]) == list(range(4, 16))


def test_one_scale_of_all_heads(load, tmp_path):
    """Voxels of 8 and of 6 mm: with one field of view the heads show their true sizes."""
    fine = AFFINE @ np.diag([0.75, 0.75, 0.75, 1])
    files = {f"sub-{p:02d}_T1w.nii.gz": nifti(head(p), fine if p % 2 else AFFINE) for p in range(4)}
    where = write(tmp_path / "scales", files)
    plain = load(where)
    text = format_account(plain.manifest)
    assert "spacing: 6 to 8 mm; field of view: 168 to 224 mm" in text
    assert (
        "heads have several scales, as fields of view differ: give --field_of_view_mm 220 for one scale"
        in text
    )
    assert plain.manifest["spacing_mm"] is None
    scans = load(where, field_of_view_mm=240.0)
    assert scans.manifest["spacing_mm"] == pytest.approx(240 / 16)
    assert "heads have several scales" not in format_account(scans.manifest)
    assert {(row["width"], row["height"]) for row in scans.manifest["files"]} == {(40, 40), (30, 30)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"slice_range": [0.1, 0.2, 0.3]},
            "--slice_range is 0.1 0.2 0.3; take two numbers, the lower first",
        ),
        ({"slice_range": [0.8, 0.3]}, "--slice_range is 0.8 0.3; take two numbers"),
        ({"slice_range": [0.5]}, "--slice_range is 0.5; take two numbers"),
        ({"slice_range": [-0.1, 1.0]}, "--slice_range is -0.1; take a number from 0"),
        ({"plane": "oblique"}, "--plane oblique is unknown; take one of: axial, coronal, sagittal, all"),
        ({"slices": "some"}, "--slices some is unknown"),
        ({"intensity": "z"}, "--intensity z is unknown"),
        ({"min_head": 1.5}, "--min_head is 1.5"),
        ({"field_of_view_mm": 0.0}, "--field_of_view_mm is 0.0; take a number over 0"),
        ({"volume_index": -1}, "--volume_index is -1; take 0 or more"),
        ({"assume_orientation": "LPS"}, "--assume_orientation LPS is unknown; take one of: RAS"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(options, words):
    with pytest.raises(InputError, match=re.escape(words)):
        load_scans(train_data_dir="/nowhere", resolution=16, **options)


def test_slice_range_of_three_numbers_on_the_command_line(folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(
            ["data", folder, "--slice_range", "0.1", "0.2", "0.3", "--output", str(tmp_path / "m.json")]
        )
    assert end.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: --slice_range is 0.1 0.2 0.3; take two numbers, the lower first, such as 0.3 0.8.\n"
    )


@pytest.mark.parametrize("name", list(OTHERS))
def test_flags_of_volumes_are_refused_for_pictures(load, tmp_path, name):
    from PIL import Image

    for i in range(3):
        Image.fromarray(head(i)[:, :, 10].astype(np.uint8)).save(tmp_path / f"{i}.png")
    words = refused(load, where=str(tmp_path), **{name: OTHERS[name]})
    assert words == f"--{name} is for volumes, and {tmp_path} holds none: leave it out."


def test_masks_that_are_missing_or_wrong(load, tmp_path):
    loose = {f"P{p}_t1.nii.gz": nifti(head(p)) for p in range(4)} | {
        f"P{p}_seg.nii.gz": nifti(mask()) for p in range(3)
    }
    where = write(tmp_path / "scans", loose)
    assert (
        "needs a mask for each volume, and P3_t1.nii.gz has none: put it beside the volume, as NAME_seg.nii.gz"
        in refused(load, where=where, slices="with_mask")
    )
    write(tmp_path / "scans", {"P3_seg.nii.gz": nifti(mask()[:-1])})
    assert "P3_t1.nii.gz is 24x28x20, and its mask 23x28x20 on another grid" in refused(
        load, where=where, slices="with_mask"
    )
    write(tmp_path / "scans", {"P3_seg.nii.gz": nifti(mask(), packed=False)[:500]})
    assert "P3_t1.nii.gz has a mask that is truncated" in refused(load, where=where, slices="with_mask")
    assert len(load(where).train) > 0  # where masks are not asked for, they are not read
    # The masks of a flat folder are each of its own volume
    write(tmp_path / "scans", {f"P{p}_seg.nii.gz": nifti(mask(8, 8 + p)) for p in range(4)})
    scans = load(where, slices="with_mask")
    counts = {}
    for row in scans.manifest["files"]:
        name = scans.paths[row["path"]][:2]
        counts[name] = counts.get(name, 0) + 1
    assert counts == {f"P{p}": p + 1 for p in range(4)}


def test_a_patient_without_a_tumour_is_counted_and_no_error(load, tmp_path):
    files = {**FILES, "sub-00/sub-00_dseg.nii.gz": nifti(0 * mask())}
    where = write(tmp_path / "scans", files)
    scans = load(where, slices="with_mask")
    assert scans.manifest["volumes"]["notes"] == {"has no slice that is asked for": 1}
    assert scans.manifest["patients"]["total"] == 3
    assert "1 volume: has no slice that is asked for" in format_account(scans.manifest)
    words = refused(load, where=where, slice_range=[0.9, 1.0])
    assert (
        words
        == f"{where} holds no slice that is asked for: 72 outside --slice_range, 8 with too little head; ask for others."
    )


def test_orientation_that_is_not_said(load, tmp_path):
    files = {}
    for p in range(3):
        image = nibabel.Nifti1Image(head(p), None)
        image.header["pixdim"][1:4] = 8
        files[f"{p}.nii"] = image.to_bytes()
    where = write(tmp_path / "scans", files)
    words = refused(load, where=where)
    assert "0.nii does not say how the head lies" in words
    assert "give --assume_orientation RAS" in words
    scans = load(where, assume_orientation="RAS")
    assert scans.manifest["volumes"]["total"] == 3


def test_notes_are_counted_as_one_where_they_differ_in_numbers(load, tmp_path):
    files = {}
    for p in range(5):
        voxels = head(p).astype(np.float32)
        voxels[0, 0, :p] = np.nan
        files[f"{p}.nii.gz"] = nifti(voxels)
    turned = AFFINE.copy()
    turned[:2, :2] = 8 * np.array([[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]])
    files["5.nii.gz"] = nifti(head(5), turned)
    text = format_account(load(write(tmp_path / "scans", files)).manifest)
    assert "4 volumes: holds values that are no finite numbers (1 to 4): they are taken as its lowest" in text
    assert "volumes: 6, 1 oblique; axial: 120 slices, 72 kept, 48 with too little head" in text


def test_planes_that_were_reformatted(load, tmp_path):
    """Of slices 24 mm thick the plane that was acquired stays, whatever is asked for."""
    thick = AFFINE @ np.diag([1, 1, 3, 1])
    where = write(tmp_path / "scans", {f"{p}.nii.gz": nifti(head(p), thick) for p in range(3)})
    assert {
        plane for found in places(load(where, plane="all", max_spacing_mm=10.0)).values() for plane in found
    } == {"axial"}
    assert (
        len(
            {
                plane
                for found in places(load(where, plane="all", max_spacing_mm=24.0)).values()
                for plane in found
            }
        )
        == 3
    )


def test_uneven_slices_are_cut_as_acquired(load, tmp_path):
    """A series with a gap: axial slices are as they were, other planes are refused by name and left out of all."""
    files = {}
    for p in range(3):
        found = series(p, f"P{p}", f"{p}/")
        files |= found
        by_place = sorted(found, key=lambda path: place_of(found[path]))
        del files[by_place[9]]
    where = write(tmp_path / "scans", files)
    assert len(load(where).train) > 0
    assert "has unevenly spaced slices" in refused(load, where=where, plane="coronal")
    scans = load(where, plane="all")
    assert {plane for found in places(scans).values() for plane in found} == {"axial"}
    assert "across unevenly spaced slices" in format_account(scans.manifest)


def place_of(content):
    from io import BytesIO

    import pydicom

    return float(pydicom.dcmread(BytesIO(content)).ImagePositionPatient[2])


def test_sentences_of_the_account_are_short(load, tmp_path):
    """Each finding and note has 25 words at most."""
    files = {**FILES, "sub-00/x.txt": b"x", "sub-00/loc.dcm": b"\0" * 128 + b"DICM" + b"\0" * 400}
    manifest, _ = account_of(write(tmp_path / "scans", files), cache_dir=str(load.cache), slices="with_mask")
    text = format_account(manifest)
    sentences = [part for line in text.splitlines() for part in re.split(r"[;:] ", line)]
    assert max(len(sentence.split()) for sentence in sentences) <= 25, max(
        sentences, key=lambda s: len(s.split())
    )
    assert f"{SHAPE[2] * 4} slices" in text
