"""DICOM files become the volumes that they were made of, voxel for voxel, and tell nothing else of the patient."""

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys

import damage
import dicom_files as made
import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mri_ddpm.data import read_volume
from mri_ddpm.data.reading import decoding
from mri_ddpm.data.reading.decoding import Decoder, read_frames
from mri_ddpm.data.reading.dicom import DicomHeader, is_dicom, read_header
from mri_ddpm.data.reading.pictures import BadImageError, PassingError, read_scan
from mri_ddpm.data.reading.series import BESIDE, REPEATED, SHORT, group_series, read_dicom_folder, read_series
from mri_ddpm.errors import InputError

AFFINES = {
    "axial": made.affine(),
    "descending": made.affine(flips=(1, 1, -1)),
    "from below": made.affine(
        flips=(1, -1, 1)
    ),  # rows and columns are counted so that the normal points down
    "sagittal": made.affine(order="jki", flips=(-1, -1, 1)),
    "coronal": made.affine(order="ikj", flips=(-1, -1, -1)),
    "oblique": made.affine(turns=(20, -12, 8), flips=(-1, -1, 1)),
}


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


def read(files):
    """Headers of files by name, through JSON as a cache would have them, to series, and how many were left out."""
    headers = {name: read_header(content) for name, content in files.items()}
    kept = {name: json.loads(json.dumps(dataclasses.asdict(header))) for name, header in headers.items()}
    assert {name: DicomHeader.from_json(values) for name, values in kept.items()} == headers
    return group_series(headers)


def volumes(files, decoder=None):
    return [read_series(series, files.__getitem__, decoder) for series in read(files)[0]]


def canonical(voxels, affine):
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine))
    return np.asarray(image.dataobj), image.affine


def same(volume, voxels, affine):
    expected, place = canonical(voxels, affine)
    assert volume.voxels.dtype == np.float32
    np.testing.assert_array_equal(volume.voxels, expected.astype(np.float32))
    np.testing.assert_allclose(volume.affine, place, rtol=0, atol=1e-3)


@pytest.mark.parametrize("plane", AFFINES)
def test_a_series_comes_back_voxel_for_voxel(plane, decoder):
    """With shuffled names and numbers, a third of it compressed."""
    voxels, affine = made.head(), AFFINES[plane]
    files = made.slices_of(voxels, affine, rle=range(0, 9, 3), WindowCenter="300", WindowWidth="401")
    found, left_out = read(files)
    assert (len(found), left_out) == (1, {})
    volume = read_series(found[0], files.__getitem__, decoder)
    same(volume, voxels, affine)
    acquired = int(np.argmax(np.abs(affine[:3, 2])))
    assert (volume.acquired_axis, volume.positions_mm, volume.notes) == (acquired, None, ())
    assert (volume.window, volume.white_is_zero, volume.contrast) == ((99.5, 499.5), False, "t1")


def test_each_slice_is_rescaled_by_its_own_numbers():
    voxels, affine = made.head(), AFFINES["oblique"]
    files = made.slices_of(
        voxels,
        affine,
        each=lambda k: {
            "RescaleSlope": str(1 + k / 4),
            "RescaleIntercept": str(-k),
            "WindowWidth": 9,
            "WindowCenter": k,
        },
    )
    (volume,) = volumes(files)
    k = np.arange(9)
    same(volume, voxels * (1 + k / 4) - k, affine)
    assert volume.window == (-0.5, 7.5)  # of the middle one, k = 4


def test_black_and_white_the_other_way_round_is_said_and_not_undone():
    voxels, affine = made.head(), AFFINES["axial"]
    (volume,) = volumes(made.slices_of(voxels, affine, PhotometricInterpretation="MONOCHROME1"))
    same(volume, voxels, affine)
    assert volume.white_is_zero


@pytest.mark.parametrize("plane", ["oblique", "descending", "from below"])
def test_gaps_are_kept_as_positions(plane):
    voxels, affine = made.head((6, 8, 12)), AFFINES[plane]
    gone = (3, 4, 8)
    files = made.slices_of(voxels, affine)
    positions = {tuple(read_header(content).slices[0].position): name for name, content in files.items()}
    lps = made.TO_LPS @ affine
    for k in gone:
        place = np.array(list(positions)) - (lps[:3, :3] @ (0, 0, k) + lps[:3, 3])
        del files[list(positions.values())[int(np.linalg.norm(place, axis=1).argmin())]]
    (volume,) = volumes(files)
    left = [k for k in range(12) if k not in gone]
    np.testing.assert_array_equal(volume.voxels, canonical(voxels[:, :, left], affine)[0])
    centres = [(affine @ (2.5, 3.5, k, 1))[2] for k in left]
    np.testing.assert_allclose(volume.positions_mm, sorted(centres), atol=1e-3)
    np.testing.assert_allclose(volume.positions(2), volume.positions_mm)
    assert volume.spacing_mm[2] == pytest.approx(3, abs=1e-3)


def test_the_first_of_several_times_is_taken_and_said():
    first, second, affine = made.head(seed=1), made.head(seed=2), AFFINES["axial"]
    early = made.slices_of(first, affine, TemporalPositionIdentifier=1)
    late = made.slices_of(second, affine, seed=5, TemporalPositionIdentifier=2)
    files = {f"a{name}": content for name, content in late.items()} | {
        f"b{name}": c for name, c in early.items()
    }
    found, left_out = read(files)
    assert left_out == {REPEATED: 9}
    volume = read_series(found[0], files.__getitem__)
    same(volume, first, affine)
    assert volume.notes[0].startswith("has 9 more slices at the places of others")


def test_echoes_weightings_kinds_and_orientations_are_series_of_their_own():
    affine = AFFINES["axial"]
    apart = [
        {"EchoNumbers": 1},
        {"EchoNumbers": 2},
        {"EchoTime": "80"},
        {"DiffusionBValue": 1000.0},
        {"ImageType": ["ORIGINAL", "PRIMARY", "W", "ND"]},
        {"SeriesInstanceUID": "1.2.3"},
        {"PatientID": "4712"},
    ]
    expected = [made.head(seed=seed) for seed in range(len(apart) + 1)]
    files = {}
    for number, tags in enumerate(apart):
        files |= {
            f"{number}{name}": c for name, c in made.slices_of(expected[number], affine, **tags).items()
        }
    files |= {
        f"x{name}": c for name, c in made.slices_of(expected[-1], AFFINES["sagittal"], EchoNumbers=1).items()
    }
    found = sorted(volumes(files), key=lambda volume: volume.acquired_axis)
    assert len(found) == len(apart) + 1
    same(found[0], expected[-1], AFFINES["sagittal"])
    for voxels in expected[:-1]:
        assert sum(np.array_equal(volume.voxels, canonical(voxels, affine)[0]) for volume in found[1:]) == 1


def test_makers_own_elements_tell_the_diffusion_weighting():
    picture, stacks = np.zeros((8, 8), dtype=np.uint16), set()
    for group, creator, element, vr, value in (
        (0x19, "SIEMENS MR HEADER", 0x0C, "IS", "1000"),
        (0x43, "GEMS_PARM_01", 0x39, "IS", ["1000000800", "8", "0", "0"]),
        (0x2001, "Philips Imaging DD 001", 0x03, "FL", 600.0),
    ):
        file = made.dataset(picture, **made.slice_place(AFFINES["axial"], 0))
        file.private_block(group, creator, create=True).add_new(element, vr, value)
        stacks.add(read_header(made.content(file)).slices[0].stack)
    assert sorted(stack.split()[-3] for stack in stacks) == ["1000.0", "600.0", "800.0"]


def test_what_is_no_scan_is_left_out_and_counted():
    voxels, affine = made.head(), AFFINES["axial"]
    files = made.slices_of(voxels, affine)
    picture, place = voxels[:, :, 0].T.copy(), made.slice_place(affine, 20)
    for reason, tags in {
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "localizer 2": {"SeriesDescription": "AAHead_Scout"},
        "phase": {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]},
        "projection": {"ImageType": ["DERIVED", "PRIMARY", "PROJECTION IMAGE", "COLLAPSE"]},
        "not MR: CT": {"Modality": "CT"},
        "synthetic": {"SyntheticData": "YES"},
        "synthetic 2": {"PatientID": "SYNTHETIC-000017"},
        "coloured": {"PhotometricInterpretation": "PALETTE COLOR"},
    }.items():
        files[reason] = made.content(made.dataset(picture, **{**place, **tags}))
    report = made.dataset(picture, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR")
    del report.Rows, report.Columns, report.PixelData
    files["report"] = made.content(report)
    files["plain"] = made.content(made.dataset(picture))
    files["lone"] = made.content(made.dataset(picture, SeriesInstanceUID="1.2.3", **place))
    askew = made.affine(spacing=(1, 1, 4))
    for k in range(5):
        beside = {**made.slice_place(askew, k), "SeriesInstanceUID": "1.2.4"}
        beside["ImagePositionPatient"] = [str(9.0 * (k == 2)), "0", str(4.0 * k)]
        files[f"beside {k}"] = made.content(made.dataset(picture, **beside))
    found, left_out = read(files)
    assert left_out == {
        "localizer": 2, "phase": 1, "projection": 1, "not MR: CT": 1, "synthetic": 2, "coloured": 1, "no image": 1,
        SHORT: 1, BESIDE: 5,
    }  # fmt: skip
    assert len(found) == 1
    same(read_series(found[0], files.__getitem__), voxels, affine)


def test_real_directories_and_reports_hold_no_image():
    for name in ("DICOMDIR", "reportsi.dcm", "rtplan.dcm", "waveform_ecg.dcm"):
        with open(get_testdata_file(name), "rb") as file:
            content = file.read()
        assert is_dicom(content)
        assert read_header(content).left_out == "no image"


def test_nothing_else_is_told_of_a_patient():
    voxels, affine = made.head(), AFFINES["axial"]
    files = made.slices_of(voxels, affine, SeriesDescription="t2 of Erika Muster")
    found, _ = read(files)
    headers = [read_header(content) for content in files.values()]
    volume = read_series(found[0], files.__getitem__)
    told = repr([headers, found, volume])
    assert "t2" in told
    for secret in (*made.SECRETS.values(), "MUSTER", "ERIKA", "Muster", "Erika"):
        assert secret not in told
    assert {header.patient for header in headers} == {"4711"}
    without = (
        [repr(dataclasses.replace(header, patient="", study="", series="")) for header in headers]
        + [repr(dataclasses.replace(series, patient="", study="")) for series in found]
        + [repr(volume)]
    )
    assert "4711" not in "".join(without)
    assert made.STUDY not in "".join(without)


def test_without_a_patient_the_study_is_the_patient():
    (header,) = (read_header(made.content(made.dataset(np.zeros((4, 4), np.uint8), PatientID=" "))),)
    assert (header.patient, header.patient_is_study) == (made.STUDY, True)


def test_a_mosaic_is_taken_apart(decoder):
    for plane, count in (("axial", 9), ("oblique", 7), ("coronal", 5), ("descending", 4)):
        voxels, affine = made.head((12, 14, count)), AFFINES[plane]
        files = {"mosaic": made.mosaic(voxels, affine, RescaleSlope="0.5", RescaleIntercept="3")}
        (volume,) = volumes(files, decoder)
        same(volume, voxels * 0.5 + 3, affine)
        assert len(read_frames(files["mosaic"], decoder)) == count
    bare = made.dataset(voxels[:, :, 0].T.copy(), ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"])
    assert read_header(made.content(bare)).left_out == "mosaic without its private header"


def test_frames_of_an_enhanced_file_are_sorted_and_told_apart(decoder):
    affine = AFFINES["oblique"]
    short, long = made.head(seed=1), made.head(seed=2)
    frames = [
        (
            voxels[:, :, k].T.copy(),
            {**made.slice_place(affine, k), "echo": echo, "slope": 1 + k, "intercept": -k, "component": part},
        )
        for voxels, echo, part in ((short, 10, "MAGNITUDE"), (long, 90, "MAGNITUDE"), (long, 90, "PHASE"))
        for k in range(9)
    ]
    frames = [frames[n] for n in np.random.default_rng(0).permutation(27)]
    files = {"all": made.enhanced(frames)}
    found, left_out = read(files)
    assert (len(found), left_out) == (2, {"phase": 9})
    k = np.arange(9)
    expected = [voxels * np.float64(1 + k) - k for voxels in (short, long)]
    found = sorted(volumes(files, decoder), key=lambda volume: volume.voxels.sum() != expected[0].sum())
    for volume, voxels in zip(found, expected, strict=True):
        same(volume, voxels, affine)


def test_dcm2niix_reads_the_same(tmp_path):
    """An independent reader, where it is installed."""
    program = shutil.which("dcm2niix")
    if not program:
        pytest.skip("dcm2niix is not installed")
    voxels, affine = made.head(), AFFINES["oblique"]
    files = made.slices_of(voxels, affine, rle=(2, 5))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    subprocess.run([program, "-f", "out", "-b", "n", tmp_path], check=True, capture_output=True)
    image = nibabel.as_closest_canonical(nibabel.load(tmp_path / "out.nii"))
    (volume,) = read_dicom_folder(tmp_path)
    np.testing.assert_array_equal(volume.voxels, image.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, image.affine, rtol=0, atol=1e-3)


def test_a_folder_holds_volumes_or_says_what_it_holds(tmp_path):
    files = made.slices_of(made.head(), AFFINES["axial"])
    (tmp_path / "deep").mkdir()
    for name, content in files.items():
        (tmp_path / "deep" / name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("no DICOM")
    same(read_volume(tmp_path), made.head(), AFFINES["axial"])
    for name, content in made.slices_of(made.head(), AFFINES["oblique"]).items():
        (tmp_path / f"other {name}").write_bytes(content)
    assert len(list(read_dicom_folder(tmp_path))) == 2
    with pytest.raises(InputError, match="holds several series; name the folder of one"):
        read_volume(tmp_path)
    for name in files:
        (tmp_path / f"other {name}").unlink()
    for name in list(files)[2:]:
        (tmp_path / "deep" / name).unlink()
    with pytest.raises(
        InputError, match="holds no series of DICOM slices: 2 DICOM files, 2 in a series of fewer than 4"
    ):
        list(read_dicom_folder(tmp_path))


def test_dicom_is_known_by_its_content(decoder):
    file = made.dataset(np.zeros((4, 4), np.uint16))
    whole = made.content(file)
    assert is_dicom(whole)
    assert is_dicom(b"II*\0" + whole[4:])  # as some files are also TIFF
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        file.file_meta.TransferSyntaxUID = syntax
        bare = made.content(file)[132:]
        without_meta = bare[12 + int.from_bytes(bare[8:12], "little") :]
        assert (bare[:2], without_meta[:2]) == (b"\x02\0", b"\x08\0")
        for content in (bare, without_meta):
            assert is_dicom(content)
            assert read_header(content).size == (4, 4)
            assert read_frames(content, decoder)[0].values.shape == (4, 4)
    picture = io.BytesIO()
    Image.new("L", (9, 9)).save(picture, "TIFF")
    others = [
        b"",
        b"\x08\0\x05\0",
        bytes(4096),
        b"\x08" * 4096,
        picture.getvalue(),
        nibabel.Nifti1Image(made.head(), np.eye(4)).to_bytes(),
    ]
    others += [np.random.default_rng(seed).bytes(4096) for seed in range(200)]
    assert not any(map(is_dicom, others))


def test_pictures_without_a_place_are_plain_and_no_volume(decoder):
    grey = np.random.default_rng(0).integers(0, 256, (20, 31), dtype=np.uint8)
    capture = {"SOPClassUID": made.CAPTURE, "ImageType": ["DERIVED", "SECONDARY", "OTHER"]}
    colours = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    file = made.content(made.dataset(colours, **capture))
    header = read_header(file)
    assert (header.left_out, header.slices) == (None, ())
    assert group_series({"a": header}) == ([], {})
    for pixels in (colours, np.repeat(grey[..., None], 3, axis=2)):
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        (samples,) = read_frames(made.content(made.dataset(pixels, **capture)), decoder)
        assert samples.kind is None
        np.testing.assert_allclose(samples.values, read_scan(png.getvalue()), atol=1e-6)
    for tags, expected in (
        ({}, grey / 255),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 1 - grey / 255),
        ({"WindowCenter": 100.5, "WindowWidth": 101}, ((grey - 50.0) / 100).clip(0, 1)),
        (
            {"WindowCenter": 100, "WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"},
            ((grey - 50.0) / 100).clip(0, 1),
        ),
    ):
        (samples,) = read_frames(made.content(made.dataset(grey, **capture, **tags)), decoder)
        assert samples.kind is None
        np.testing.assert_allclose(samples.values, expected, atol=1e-6)
    deep = np.arange(24, dtype=np.uint16).reshape(2, 3, 4) * 100
    for tags, kind, expected in (
        ({}, "integer", deep),
        ({"RescaleSlope": "2", "RescaleIntercept": "-7"}, "integer", deep * 2 - 7.0),
        ({"RescaleSlope": "0.25", "RescaleIntercept": "0.1"}, "float", deep * 0.25 + 0.1),
    ):
        file = made.content(made.dataset(deep, PhotometricInterpretation="MONOCHROME1", **capture, **tags))
        found = read_frames(file, decoder)
        assert [(samples.kind, samples.white_is_zero) for samples in found] == [(kind, True)] * 2
        np.testing.assert_allclose([samples.values for samples in found], expected)


def test_tables_rescale_and_give_the_window(decoder):
    stored = np.arange(64, dtype=np.uint8).reshape(8, 8)
    table = np.arange(64, dtype=np.uint16)[::-1] * 11
    modality = made.sequence(LUTDescriptor=[64, 0, 16], LUTData=table.tobytes(), ModalityLUTType="US")
    shown = made.sequence(LUTDescriptor=[101, 50, 16], LUTData=np.arange(101, dtype=np.uint16).tobytes())
    for items in (modality, shown):
        items[0]["LUTDescriptor"].VR, items[0]["LUTData"].VR = "US", "OW"
    file = made.content(made.dataset(stored, ModalityLUTSequence=modality, VOILUTSequence=shown))
    picture = decoding.Pictures(file, decoder)[0]
    np.testing.assert_array_equal(picture.values, table[stored])
    assert picture.window == (50, 150)


def test_a_place_that_cannot_be_is_none():
    place, picture = made.slice_place(AFFINES["axial"], 0), np.zeros((4, 4), np.uint16)
    for odd in (
        {"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]},
        {"ImageOrientationPatient": ["0"] * 6},
        {"PixelSpacing": ["0", "1"]},
        {"ImagePositionPatient": ["1", "2"]},
        {"ImagePositionPatient": None},
    ):
        header = read_header(made.content(made.dataset(picture, **{**place, **odd})))
        assert (header.left_out, header.slices) == (None, ())
    several = read_header(made.content(made.dataset(np.zeros((3, 4, 4), np.uint16), **place)))
    assert (several.frames, several.slices) == (3, ())


def test_every_compression_gives_the_same_pixels(decoder):
    def pixels(name):
        with open(get_testdata_file(name), "rb") as file:
            return decoding.Pictures(file.read(), decoder)[0].values

    plain = pixels("MR_small.dcm")
    assert plain.std() > 100
    for kind in ("RLE", "bigendian", "implicit", "jp2klossless", "jpeg_ls_lossless"):
        np.testing.assert_array_equal(pixels(f"MR_small_{kind}.dcm"), plain, err_msg=kind)


def test_what_cannot_be_decoded_names_its_compression(decoder):
    with open(get_testdata_file("JPGExtended.dcm"), "rb") as file:
        content = file.read().replace(b"CS\x02\0NM", b"CS\x02\0MR")
    with pytest.raises(PassingError, match=r"JPEG Extended .* pip install it \(licence GPL-3\)"):
        read_frames(content, decoder)
    with open(get_testdata_file("MR_small_jp2klossless.dcm"), "rb") as file:
        content = file.read()
    with pytest.raises(BadImageError, match="compressed as JPEG 2000 .*cannot be decoded"):
        read_frames(content[:-3000] + bytes(3000), decoder)


def test_a_decoder_that_dies_takes_nothing_with_it(monkeypatch):
    with open(get_testdata_file("MR_small_RLE.dcm"), "rb") as file:
        content = file.read()
    with Decoder() as decoder:
        expected = read_frames(content, decoder)[0].values
        decoder._process.kill()
        with pytest.raises(PassingError, match="compressed as RLE Lossless, and its decoder crashed"):
            read_frames(content, decoder)
        np.testing.assert_array_equal(read_frames(content, decoder)[0].values, expected)
        decoder._process.send_signal(signal.SIGSTOP)  # it neither answers nor ends
        monkeypatch.setattr(decoding, "SECONDS", 0.2)
        with pytest.raises(PassingError, match="its decoder took more than 0 seconds"):
            read_frames(content, decoder)
        assert decoder._process is None
    files = made.slices_of(made.head(), AFFINES["axial"], rle=(4,))
    (series,) = read(files)[0]
    with pytest.raises(PassingError, match="has a slice in IM000., which is compressed as RLE"):
        read_series(series, files.__getitem__)


def test_a_file_that_changed_is_refused():
    files = made.slices_of(made.head(), AFFINES["axial"])
    (series,) = read(files)[0]
    for other, reason in (
        (made.content(made.dataset(np.zeros((5, 5), np.uint16))), "has changed since it was found"),
        (b"", "is DICOM, but no scan"),
    ):
        with pytest.raises(BadImageError, match=f"has a slice in IM000., which {reason}"):
            read_series(series, lambda _, other=other: other)
    huge = made.slices_of(made.head(), AFFINES["axial"], RescaleSlope="1e300")
    with pytest.raises(BadImageError, match="which no scan has"):
        read_series(series, huge.__getitem__)


def test_lying_headers_cost_no_memory(decoder):
    picture, place = np.zeros((8, 8), np.uint16), made.slice_place(AFFINES["axial"], 0)
    with damage.limits():
        for lie in (
            {"Rows": 65535, "Columns": 65535},
            {"NumberOfFrames": 2**31 - 1},
            {"NumberOfFrames": 4_000_000},
            {"Rows": 8000, "Columns": 8000},
            {"BitsAllocated": 64},
            {"BitsAllocated": 0},
            {"Columns": 9},
            {"NumberOfFrames": -3},
            {"SamplesPerPixel": 1000},
        ):
            for rle in (False, True):
                file = made.dataset(picture, **place)
                if rle:
                    file.compress(made.RLELossless, generate_instance_uid=False)
                for name, value in lie.items():
                    setattr(file, name, value)
                case = made.content(file)
                with pytest.raises(BadImageError) as refused:
                    read_frames(case, decoder)
                assert len(str(refused.value)) < 400
        long = made.content(made.dataset(picture, **place, EchoTime=["1"] * 3000))
        with pytest.raises(BadImageError, match="EchoTime takes"):
            read_header(long)


def test_damaged_files_end_in_sentences(decoder):
    voxels, affine = made.head((8, 8, 5)), AFFINES["oblique"]
    places = [made.slice_place(affine, k) for k in range(5)]
    kinds = {
        "plain": list(made.slices_of(voxels, affine, PatientID="1").values())[0],
        "rle": list(made.slices_of(voxels, affine, rle=range(5)).values())[0],
        "mosaic": made.mosaic(voxels, affine),
        "enhanced": made.enhanced([(voxels[:, :, k].T.copy(), places[k]) for k in range(5)]),
    }
    outcomes = {"read": 0, "refused": 0}
    with damage.limits():
        for kind, content in kinds.items():
            for seed, case in damage.random_damage(kind, content, 25):
                with damage.refused_or_fine(f"{kind} {seed}", "", kinds=(BadImageError,)):
                    outcomes["refused"] += 1
                    headers = {"a": read_header(case)}
                    for series in group_series(headers)[0]:
                        read_series(series, lambda _, case=case: case, decoder)
                    if not headers["a"].left_out:
                        read_frames(case, decoder)
                    outcomes["refused"] -= 1
                    outcomes["read"] += 1
    assert min(outcomes.values()) > 10


def test_a_missing_library_is_named(monkeypatch):
    file = made.content(made.dataset(np.zeros((4, 4), np.uint16)))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[volumes\]"'):
        read_header(file)
