"""DICOM files made for tests, of a small head in a known place."""

import io
import struct

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid

MR, ENHANCED_MR, CAPTURE = (f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("4", "4.1", "7"))
STUDY, SERIES = (generate_uid(entropy_srcs=[name]) for name in ("study", "series"))
# What must not come out of a file; the patient's number and the UIDs alone may, in fields of their own
SECRETS = {
    "PatientName": "MUSTER^ERIKA",
    "PatientBirthDate": "19640812",
    "AccessionNumber": "ACC4711",
    "InstitutionName": "CHARITE",
    "ReferringPhysicianName": "BRINKMANN^KLAUS",
    "StudyDate": "20240229",
    "StudyID": "STUDY4711",
    "StationName": "STATION4711",
    "PatientComments": "COMMENT4711",
}
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def head(shape=(12, 14, 9), seed=0) -> np.ndarray:
    """Voxels (I, J, K) of a brighter ellipsoid in noise, int16."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    noise = np.random.default_rng(seed).integers(0, 100, shape)
    return (noise + 800 * ((grid**2).sum(0) < 0.7)).astype(np.int16)


def affine(*, turns=(0.0, 0.0, 0.0), spacing=(0.9, 1.1, 3.0), order="ijk", flips=(1, 1, 1)) -> np.ndarray:
    """From voxels to mm to the right, anterior and superior; turned by degrees about its axes."""
    turned = np.eye(3)
    for axis, degrees in enumerate(turns):
        a, b = [other for other in range(3) if other != axis]
        turn, angle = np.eye(3), np.deg2rad(degrees)
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        turned = turned @ turn
    directions = turned[:, ["ijk".index(letter) for letter in order]] * flips
    matrix = np.eye(4)
    matrix[:3, :3] = directions * spacing
    matrix[:3, 3] = (-31.5, 17.25, 40.125)
    return matrix


def slice_place(matrix: np.ndarray, k: int) -> dict:
    """Where DICOM says that slice k of voxels (I, J, K) lies, whose rows are along J and columns along I."""
    lps = TO_LPS @ matrix
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    across, down = (lps[:3, :2] / spacing[:2]).T
    return {
        "ImageOrientationPatient": [f"{value:.10f}" for value in (*across, *down)],
        "ImagePositionPatient": [f"{value:.6f}" for value in lps[:3, :3] @ (0, 0, k) + lps[:3, 3]],
        "PixelSpacing": [f"{spacing[1]:.6f}", f"{spacing[0]:.6f}"],
    }


def dataset(pixels: np.ndarray, **values) -> FileDataset:
    """A file of one picture (H, W), colours (H, W, 3), or pictures (n, H, W)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = values.get("SOPClassUID", MR)
    meta.MediaStorageSOPInstanceUID = generate_uid()
    made = FileDataset(None, Dataset(), file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.shape[-1] == 3
    frames = pixels.reshape(-1, *(pixels.shape[-3:] if colour else pixels.shape[-2:]))
    bits = 8 * pixels.itemsize
    for name, value in {
        "SOPClassUID": MR,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": "MR",
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "PatientID": "4711",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": SERIES,
        "SeriesDescription": "T1_MPRAGE_sag",
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "SamplesPerPixel": 3 if colour else 1,
        "Rows": frames.shape[1],
        "Columns": frames.shape[2],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        **({"NumberOfFrames": len(frames)} if len(frames) > 1 else {}),
        **({"PlanarConfiguration": 0} if colour else {}),
        **SECRETS,
        **values,
    }.items():
        setattr(made, name, value)
    made.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    made["PixelData"].VR = "OW" if bits > 8 else "OB"
    return made


def content(made: Dataset, *, rle=False) -> bytes:
    """The bytes of the file."""
    if rle:
        made.compress(RLELossless, generate_instance_uid=False)
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def slices_of(
    voxels: np.ndarray, matrix: np.ndarray, seed=0, *, rle=(), each=None, **values
) -> dict[str, bytes]:
    """A file for each slice k of voxels (I, J, K), with shuffled names and numbers.

    rle: the slices to compress. each: gives more tags for slice k. values: tags of all.
    """
    count = voxels.shape[2]
    rng = np.random.default_rng(seed)
    names, numbers = rng.permutation(count), rng.permutation(count)
    return {
        f"IM{names[k]:04d}": content(
            dataset(
                np.ascontiguousarray(voxels[:, :, k].T),
                InstanceNumber=int(numbers[k]),
                **{**slice_place(matrix, k), **values, **(each(k) if each else {})},
            ),
            rle=k in rle,
        )
        for k in range(count)
    }


def csa(count: int, normal) -> bytes:
    """Siemens' private header of a mosaic of so many slices, as nibabel.nicom.csareader reads it."""

    def tag(name: str, vr: str, items: list[str]) -> bytes:
        rows = [
            name.encode().ljust(64, b"\0"),
            struct.pack("<i4siii", len(items), vr.encode(), 0, len(items), 77),
        ]
        for item in items:
            text = item.encode() + b"\0"
            rows += [struct.pack("<4i", len(text), len(text), 77, len(text)), text + b"\0" * (-len(text) % 4)]
        return b"".join(rows)

    tags = [
        tag("NumberOfImagesInMosaic", "US", [str(count)]),
        tag("SliceNormalVector", "FD", [f"{value:.8f}" for value in normal]),
    ]
    return b"SV10\4\3\2\1" + struct.pack("<2I", len(tags), 77) + b"".join(tags)


def mosaic(voxels: np.ndarray, matrix: np.ndarray, **values) -> bytes:
    """All slices of voxels (I, J, K) as tiles of one picture."""
    columns, rows, count = voxels.shape
    side = int(np.ceil(np.sqrt(count)))
    picture = np.zeros((side * rows, side * columns), dtype=voxels.dtype)
    for k in range(count):
        top, left = k // side * rows, k % side * columns
        picture[top : top + rows, left : left + columns] = voxels[:, :, k].T
    place = slice_place(matrix, 0)
    across, down = np.reshape([float(value) for value in place["ImageOrientationPatient"]], (2, 3))
    # Siemens gives the place that the picture would have if it were one slice with the same centre
    shift = (
        (side - 1)
        / 2
        * (across * columns * float(place["PixelSpacing"][1]) + down * rows * float(place["PixelSpacing"][0]))
    )
    place["ImagePositionPatient"] = [
        f"{value:.6f}" for value in np.array(place["ImagePositionPatient"], dtype=float) - shift
    ]
    step = (TO_LPS @ matrix)[:3, 2]
    made = dataset(
        picture,
        ImageType=["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"],
        SpacingBetweenSlices=f"{np.linalg.norm(step):.6f}",
        **{**place, **values},
    )
    block = made.private_block(0x29, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", csa(count, step / np.linalg.norm(step)))
    return content(made)


def sequence(**values) -> list[Dataset]:
    """A group of values, as Enhanced files hold them."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return [item]


def enhanced(frames: list[tuple[np.ndarray, dict]], **values) -> bytes:
    """One file of pictures (H, W), each with its groups by name; their orientation and pixel spacing are one for all."""
    place = frames[0][1]
    shared = {
        "PlaneOrientationSequence": sequence(ImageOrientationPatient=place["ImageOrientationPatient"]),
        "PixelMeasuresSequence": sequence(PixelSpacing=place["PixelSpacing"]),
    }
    own = []
    for _, tags in frames:
        groups = {
            "PlanePositionSequence": sequence(ImagePositionPatient=tags["ImagePositionPatient"]),
            "MREchoSequence": sequence(EffectiveEchoTime=float(tags.get("echo", 10))),
            "MRImageFrameTypeSequence": sequence(
                FrameType=["ORIGINAL", "PRIMARY", "T1", "NONE"],
                ComplexImageComponent=tags.get("component", "MAGNITUDE"),
            ),
            "PixelValueTransformationSequence": sequence(
                RescaleSlope=tags.get("slope", 1), RescaleIntercept=tags.get("intercept", 0), RescaleType="US"
            ),
        }
        own += sequence(**groups)
    made = dataset(
        np.stack([picture for picture, _ in frames]),
        SOPClassUID=ENHANCED_MR,
        SharedFunctionalGroupsSequence=sequence(**shared),
        PerFrameFunctionalGroupsSequence=own,
        **values,
    )
    return content(made)
