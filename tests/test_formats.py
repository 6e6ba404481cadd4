"""Samples as NIfTI and DICOM: the same pictures as in PNG, marked as synthetic, and never to be taken for a volume."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from mri_ddpm.pipelines.pipeline_mri_ddpm import as_array
from PIL import Image

from mri_ddpm import MRIDDPMPipeline, commands
from mri_ddpm.data.intensity import to_uint16
from mri_ddpm.data.reading.marks import dicom_is_synthetic, nifti_is_synthetic
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.sampling.dicom import save_dicom
from mri_ddpm.sampling.formats import geometry_of_manifest
from mri_ddpm.sampling.nifti import save_nifti

nibabel = pytest.importorskip("nibabel")
pydicom = pytest.importorskip("pydicom")

NAMES = ("glioma_tumor", "no_tumor")
HEADERS = ("nifti", "dicom")
SUFFIXES = {"png": ".png", "nifti": ".nii.gz", "dicom": ".dcm"}
SAVERS = {"nifti": save_nifti, "dicom": save_dicom}
FACTS = {
    "synthetic": "yes",
    "model": "m",
    "revision": "r",
    "class": "a",
    "seed": 19,
    "index": 2,
    "strength": None,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder of an untrained model, with a manifest that says nothing of geometry."""
    from conftest import build_unet

    folder = tmp_path_factory.mktemp("formats") / "run"
    unet = build_unet(num_class_embeds=2, class_names=NAMES)
    MRIDDPMPipeline(unet, make_noise_scheduler()).save_pretrained(folder / "pipeline")
    (folder / "config.json").write_text("{}")
    (folder / "manifest.json").write_text("{}")
    return folder


def sample(model, output_dir, format, *flags):
    command = ["sample", model, "--output_dir", output_dir, "--format", format, "--num_inference_steps", 2]
    commands.main([str(part) for part in (*command, "--batch_size", 2, *flags)])


def refusal(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as end:
        sample(*arguments)
    assert end.value.code == 2
    return capsys.readouterr().err.split("error: ")[-1].strip()


def files(folder) -> dict[str, bytes]:
    return {path.name.split(".")[0]: path.read_bytes() for path in sorted(folder.glob("[!.]*"))}


def read(path) -> np.ndarray:
    """The levels (H, W) as the format's own library gives them."""
    if path.suffix == ".dcm":
        return pydicom.dcmread(path).pixel_array
    if path.suffix == ".png":
        return np.asarray(Image.open(path))
    return np.asarray(nibabel.load(path).dataobj)[..., 0].T[::-1]


# The picture


@pytest.mark.parametrize("format", HEADERS)
def test_a_picture_is_that_of_the_16_bit_png_to_the_bit(run, tmp_path, format):
    sample(run, tmp_path / "png", "png", "--num_images", 3, "--bit_depth", 16)
    sample(run, tmp_path / "out", format, "--num_images", 3)
    written = sorted(path.name for path in (tmp_path / "out").glob("[!.]*"))
    names = ["glioma_tumor-00000", "glioma_tumor-00002", "no_tumor-00001"]
    assert written == [f"{name}{SUFFIXES[format]}" for name in names]
    for name in names:
        levels = read(tmp_path / "out" / f"{name}{SUFFIXES[format]}")
        assert levels.dtype == np.uint16
        assert len(np.unique(levels)) > 100
        np.testing.assert_array_equal(levels, read(tmp_path / "png" / f"{name}.png"))


def test_16_bits_survive_the_unit_range():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(to_uint16(as_array(Image.fromarray(levels), "image")), levels)


@pytest.mark.parametrize("format", HEADERS)
def test_images_of_8_bits_and_floats_keep_black_and_white(tmp_path, format):
    levels = np.array([[0, 51, 255], [255, 102, 0]], np.uint8)
    for number, image in enumerate((Image.fromarray(levels), levels, levels / 255)):
        path = tmp_path / f"{number}{SUFFIXES[format]}"
        SAVERS[format](path, image, {})
        np.testing.assert_array_equal(read(path), levels.astype(int) * 257)


# The marks


def test_a_nifti_file_says_that_it_is_synthetic(run, tmp_path):
    sample(run, tmp_path / "out", "nifti", "--num_images", 2, "--seed", 17)
    header = nibabel.load(tmp_path / "out" / "no_tumor-00001.nii.gz").header
    assert bytes(header["descrip"].item()).startswith(b"SYNTHETIC mri-ddpm 0.")
    assert header["intent_name"] == b"SYNTHETIC"
    (comment,) = header.extensions
    assert comment.get_code() == 6
    facts = json.loads(bytes(comment.get_content()).rstrip(b"\0"))
    assert (facts["class"], facts["seed"], facts["index"]) == ("no_tumor", 18, 1)
    sample(run, tmp_path / "png", "png", "--num_images", 2, "--seed", 17)
    text = Image.open(tmp_path / "png" / "no_tumor-00001.png").text
    assert {key: str(value) for key, value in facts.items()} == text
    assert nifti_is_synthetic(header)


def test_a_dicom_file_says_that_it_is_synthetic(run, tmp_path):
    sample(run, tmp_path / "out", "dicom", "--num_images", 2, "--seed", 17)
    dataset = pydicom.dcmread(tmp_path / "out" / "no_tumor-00001.dcm")
    assert dataset[0x0008, 0x001C].value == "YES"
    assert dataset.ImageType == ["DERIVED", "SECONDARY", "OTHER"]
    assert dataset.SOPClassUID == "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
    assert (dataset.ConversionType, dataset.BurnedInAnnotation) == ("WSD", "NO")
    assert dataset.PatientID == "SYNTHETIC-000017"
    assert dataset.StudyDescription == "SYNTHETIC - NOT FOR DIAGNOSIS"
    assert dataset.SeriesDescription == "SYNTHETIC - NOT FOR DIAGNOSIS: no_tumor"
    assert "sampled from a diffusion model" in dataset.DerivationDescription
    equipment = dataset.ContributingEquipmentSequence[0]
    purpose = equipment.PurposeOfReferenceCodeSequence[0]
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert purpose.CodeMeaning == "Synthesizing Equipment"
    assert equipment.SoftwareVersions.startswith("mri-ddpm 0.")
    assert json.loads(dataset.ImageComments)["seed"] == 18
    assert dataset.InstanceNumber == 1
    for absent in ("Laterality", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        assert absent not in dataset
    assert not dataset.StudyDate
    assert not dataset.PatientBirthDate


def test_an_edited_scan_is_marked_and_said_to_be_one(run, tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(tmp_path / "scan.png")
    edit = ("--image", tmp_path / "scan.png", "--class_label", "no_tumor", "--strength", 1, "--num_images", 1)
    sample(run, tmp_path / "out", "dicom", *edit)
    dataset = pydicom.dcmread(tmp_path / "out" / "no_tumor-00000.dcm")
    assert dataset.SyntheticData == "YES"
    assert "in part: a given scan, changed" in dataset.DerivationDescription
    assert len(json.loads(dataset.ImageComments)["image_sha256"]) == 64


def test_one_mark_of_several_is_enough_and_a_scan_has_none(tmp_path):
    save_dicom(tmp_path / "a.dcm", np.eye(4), FACTS)
    save_nifti(tmp_path / "a.nii.gz", np.eye(4), FACTS)
    stripped = pydicom.dcmread(tmp_path / "a.dcm")
    for name in (
        "SyntheticData", "PatientID", "PatientName", "StudyDescription", "SeriesDescription", "DerivationDescription",
    ):  # fmt: skip
        assert dicom_is_synthetic(stripped)
        delattr(stripped, name)
    assert not dicom_is_synthetic(stripped)
    for name, value in (("SyntheticData", "YES"), ("PatientID", "SYNTHETIC-000017")):
        one = pydicom.Dataset()
        setattr(one, name, value)
        assert dicom_is_synthetic(one)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    for field in ("descrip", "intent_name"):
        assert nifti_is_synthetic(header)
        header[field] = ""
    assert not nifti_is_synthetic(header)
    assert not nifti_is_synthetic(nibabel.AnalyzeHeader())
    scan = pydicom.dcmread(pydicom.data.get_testdata_file("MR_small.dcm"))
    scan.SeriesDescription = "SYNTHETIC T1"  # as scanners call what they compute from maps of a patient
    assert not dicom_is_synthetic(scan)


# Who is who


def test_images_are_series_of_one_study_and_other_samplings_are_others(run, tmp_path):
    def identities(name, *flags) -> list[tuple]:
        sample(run, tmp_path / name, "dicom", *flags)
        found = [pydicom.dcmread(path) for path in sorted((tmp_path / name).glob("*.dcm"))]
        return [(d.PatientID, d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID) for d in found]

    first = identities("first", "--num_images", 4)
    assert all(pydicom.uid.UID(uid).is_valid for row in first for uid in row[1:])
    assert len({row[:2] for row in first}) == 1
    # dcm2niix and others stack what is of one series
    assert len({row[2] for row in first}) == len({row[3] for row in first}) == 4
    assert first == identities("again", "--num_images", 4)
    for name, flags in (("seed", ("--seed", 1)), ("solver", ("--scheduler", "ddim"))):
        other = identities(name, "--num_images", 4, *flags)
        assert not {uid for row in first for uid in row[1:]} & {uid for row in other for uid in row[1:]}


def test_one_image_has_another_identity_when_a_pixel_differs(tmp_path):
    image = np.zeros((4, 4), np.uint16)
    save_dicom(tmp_path / "a.dcm", image, FACTS)
    image[1, 2] = 1
    save_dicom(tmp_path / "b.dcm", image, FACTS)
    a, b = (pydicom.dcmread(tmp_path / f"{name}.dcm") for name in "ab")
    assert a.StudyInstanceUID == b.StudyInstanceUID
    assert a.SOPInstanceUID != b.SOPInstanceUID
    assert a.SeriesInstanceUID != b.SeriesInstanceUID


@pytest.mark.parametrize("format", HEADERS)
def test_names_that_come_with_a_model_cannot_break_a_file(tmp_path, format):
    names = ("a\\b\\c", "x\n\0y", "Gehirn – 脑", "n" * 3000, "\ud800", "", "=^^")
    for number, name in enumerate(names):
        path = tmp_path / f"{number}{SUFFIXES[format]}"
        SAVERS[format](path, np.eye(4), {**FACTS, "class": name, "model": name, "synthetic": name})
        np.testing.assert_array_equal(read(path), np.eye(4) * 65535)
        if format == "dicom":
            dataset = pydicom.dcmread(path)
            assert dataset.SeriesDescription.startswith("SYNTHETIC - NOT FOR DIAGNOSIS")
            assert json.loads(dataset.ImageComments)["class"] == name or len(name) == 3000


# Where it lies


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_a_slice_lies_in_space_as_it_was_displayed(tmp_path, plane, axis):
    """Slices of a volume in RAS, displayed with the patient's right or the nose on the left, come back as they were."""
    volume = np.random.default_rng(0).integers(0, 2**16, (5, 6, 7), dtype=np.uint16)
    displayed = np.flip(np.take(volume, 3, axis), (0, 1)).T
    save_nifti(tmp_path / "a.nii.gz", displayed, FACTS, spacing_mm=0.75, plane=plane)
    loaded = nibabel.load(tmp_path / "a.nii.gz")
    back = nibabel.as_closest_canonical(loaded)
    np.testing.assert_array_equal(np.take(np.asarray(back.dataobj), 0, axis), np.take(volume, 3, axis))
    np.testing.assert_allclose(loaded.header.get_sform(), loaded.header.get_qform(), atol=1e-5)
    np.testing.assert_allclose(loaded.header.get_zooms(), 0.75)
    assert (loaded.header["sform_code"], loaded.header.get_xyzt_units()[0]) == (2, "mm")
    centre = loaded.affine @ [*(np.array(loaded.shape) - 1) / 2, 1]
    np.testing.assert_allclose(centre, [0, 0, 0, 1], atol=1e-5)

    save_dicom(tmp_path / "a.dcm", displayed, FACTS, spacing_mm=0.75, plane=plane)
    dataset = pydicom.dcmread(tmp_path / "a.dcm")
    assert dataset.PixelSpacing == [0.75, 0.75]
    right_of, below = {"axial": "LP", "coronal": "LF", "sagittal": "PF"}[plane]
    assert dataset.PatientOrientation == [right_of, below]


@pytest.mark.parametrize("spacing", [None, 0.9])
def test_no_geometry_is_claimed_that_is_not_known(tmp_path, spacing):
    save_nifti(tmp_path / "a.nii.gz", np.eye(4), FACTS, spacing_mm=spacing)
    header = nibabel.load(tmp_path / "a.nii.gz").header
    assert (header["sform_code"], header["qform_code"]) == (0, 0)
    np.testing.assert_allclose(header.get_zooms(), spacing or 1)
    assert header.get_xyzt_units()[0] == ("mm" if spacing else "unknown")


def test_the_spacing_is_that_of_the_run(run, tmp_path, capsys):
    known = shutil.copytree(run, tmp_path / "run")
    (known / "manifest.json").write_text('{"spacing_mm": 3.75, "plane": "axial"}')
    for format in HEADERS:
        sample(known, tmp_path / format, format, "--num_images", 1)
    zooms = nibabel.load(tmp_path / "nifti" / "glioma_tumor-00000.nii.gz").header.get_zooms()
    np.testing.assert_allclose(zooms, 3.75)
    dataset = pydicom.dcmread(tmp_path / "dicom" / "glioma_tumor-00000.dcm")
    assert (dataset.PixelSpacing, dataset.PatientOrientation) == ([3.75, 3.75], ["L", "P"])
    assert "holds images of spacing_mm 3.75, not None" in refusal(capsys, run, tmp_path / "dicom", "dicom")


@pytest.mark.parametrize(
    "spacing", [None, 0, -1, float("nan"), float("inf"), 1e300, 1e-300, 10**400, True, "1", [1], {"mm": 1}]
)
def test_a_spacing_counts_only_as_a_plausible_number(spacing):
    assert geometry_of_manifest({"spacing_mm": spacing, "plane": ["axial"]}) == {}
    assert geometry_of_manifest([spacing]) == geometry_of_manifest(None) == {}
    assert geometry_of_manifest({"spacing_mm": 1, "plane": "oblique"}) == {"spacing_mm": 1.0}


# The folder


@pytest.mark.parametrize("format", HEADERS)
def test_the_same_request_gives_the_same_bytes_resumed_or_not(run, tmp_path, format):
    sample(run, tmp_path / "whole", format, "--num_images", 5)
    sample(run, tmp_path / "out", format, "--num_images", 2)
    sample(run, tmp_path / "out", format, "--num_images", 5)
    whole = files(tmp_path / "whole")
    assert len(whole) == 5
    assert files(tmp_path / "out") == whole
    lost = tmp_path / "out" / f"glioma_tumor-00002{SUFFIXES[format]}"
    kept = tmp_path / "out" / f"glioma_tumor-00004{SUFFIXES[format]}"
    lost.unlink()
    kept.write_bytes(b"mine")
    sample(run, tmp_path / "out", format, "--num_images", 5)
    assert files(tmp_path / "out") == {**whole, "glioma_tumor-00004": b"mine"}
    if format == "nifti":
        assert whole["glioma_tumor-00002"][3:8] == bytes(5)  # no name and no time in gzip's header


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_folder_holds_one_format(run, tmp_path, capsys, format):
    sample(run, tmp_path / "out", format, "--num_images", 1)
    before = files(tmp_path / "out")
    for other in set(SUFFIXES) - {format}:
        words = f"holds images of format {format}, not {other}; name a new folder."
        assert words in refusal(capsys, run, tmp_path / "out", other)
    assert files(tmp_path / "out") == before


def test_a_folder_of_before_there_were_formats_is_resumed(run, tmp_path):
    sample(run, tmp_path / "out", "png", "--num_images", 2)
    request = tmp_path / "out" / ".sampling.json"
    found = json.loads(request.read_text())
    assert found["request"].pop("format") == "png"
    request.write_text(json.dumps(found))
    sample(run, tmp_path / "out", "png", "--num_images", 3)
    assert len(files(tmp_path / "out")) == 3


def test_a_film_stands_beside_any_format(run, tmp_path):
    sample(run, tmp_path / "out", "nifti", "--num_images", 1, "--film")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-film.gif", "out-film.png"]
    assert list(files(tmp_path / "out")) == ["glioma_tumor-00000"]


@pytest.mark.parametrize("format", HEADERS)
def test_what_cannot_be_written_is_refused_before_anything_is_sampled(
    run, tmp_path, capsys, monkeypatch, format
):
    words = f"--bit_depth is of PNG files; --format {format} has 16 bits"
    assert words in refusal(capsys, run, tmp_path / "out", format, "--bit_depth", 8)
    package = {"nifti": "nibabel", "dicom": "pydicom"}[format]
    monkeypatch.setitem(sys.modules, package, None)  # as when it is not installed
    sentence = refusal(capsys, tmp_path / "no model", tmp_path / "out", format)
    assert sentence.startswith(f"{package} cannot be imported")
    assert sentence.endswith('; pip install -e ".[volumes]" in the clone brings it.')
    assert not (tmp_path / "out").exists()


# What others' tools say


def ask(tool: str, *arguments) -> str:
    if not shutil.which(tool):
        pytest.skip(f"{tool} is not here")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


@pytest.mark.parametrize("geometry", [{}, {"spacing_mm": 0.9}, {"spacing_mm": 0.9, "plane": "sagittal"}])
def test_nifti_tool_finds_the_header_good(tmp_path, geometry):
    save_nifti(tmp_path / "a.nii.gz", np.eye(16), FACTS, **geometry)
    said = ask("nifti_tool", "-check_hdr", "-check_nim", "-infiles", tmp_path / "a.nii.gz")
    assert said.count("IS GOOD") == 2
    shown = ask("nifti_tool", "-disp_exts", "-infiles", tmp_path / "a.nii.gz")
    assert '"synthetic": "yes"' in shown


@pytest.mark.parametrize("geometry", [{}, {"spacing_mm": 0.9, "plane": "axial"}])
def test_dciodvfy_misses_nothing_and_knows_all_but_the_youngest_attribute(tmp_path, geometry):
    save_dicom(tmp_path / "a.dcm", np.eye(16), FACTS, **geometry)
    said = ask("dciodvfy", tmp_path / "a.dcm").splitlines()
    assert "SCImage" in said
    assert all("(0x0008,0x001c)" in line for line in said if line.startswith("Error"))


def test_dcm2niix_makes_no_volume_of_the_slices(run, tmp_path):
    sample(run, tmp_path / "out", "dicom", "--num_images", 6, "--class_label", "no_tumor")
    (tmp_path / "volumes").mkdir()
    ask("dcm2niix", "-o", tmp_path / "volumes", tmp_path / "out")
    shapes = [nibabel.load(path).shape for path in (tmp_path / "volumes").glob("*.nii")]
    assert shapes == [(16, 16)] * 6 or shapes == [(16, 16, 1)] * 6
