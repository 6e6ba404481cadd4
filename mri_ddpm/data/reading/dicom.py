"""What a DICOM file says of itself, tag by tag from a list; nothing else of a header is kept.

Positions and directions are in mm, in the patient's axes of DICOM: to the left, posterior and superior.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from mri_ddpm.errors import import_extra

from .contrasts import contrast_of_name
from .dicom_tags import (
    numbers,
    open_dataset,
    pydicom_quiet,
    tag_of,
    text_of,
    texts,
    value_of,
    values_of_frame,
)
from .marks import dicom_is_synthetic
from .pictures import BadImageError

MAX_PIXELS = 2**28  # in one file or one series: 1 GiB as float32
HEAD_BYTES = 2048  # of a file that `is_dicom` wants to see
MAX_SIDE = 256  # tiles, of a mosaic
SAME_DIRECTION = 1e-3  # to which directions of one scan agree, as scanners write them
# What may be read of a header. Names, birth dates, numbers of orders, places and dates are not among it.
WHITELIST = (
    "ImageType", "SOPClassUID", "Modality", "SyntheticData", "SeriesDescription", "ProtocolName",
    "ComplexImageComponent", "PatientID", "StudyInstanceUID", "SeriesInstanceUID",
    "EchoNumbers", "EchoTime", "DiffusionBValue", "SpacingBetweenSlices", "SliceThickness",
    "TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
# Elements of makers: their group, the creator that has to be named there, and the element
B_VALUES = (
    (0x0019, "SIEMENS MR HEADER", 0x0C),
    (0x0043, "GEMS_PARM_01", 0x39),
    (0x2001, "Philips Imaging DD 001", 0x03),
)
SIEMENS_CSA = (0x0029, "SIEMENS CSA HEADER", 0x10)
PHASE = {"P", "PHASE", "PHASE MAP", "VELOCITY MAP", "I", "IMAGINARY"}
PROJECTION = {"PROJECTION IMAGE", "MIP", "MAX_IP", "MNIP", "MIN_IP", "MINIP"}
LOCALIZER = re.compile(r"(?<![a-z])(locali[sz]er|scout|survey)", re.IGNORECASE)
SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"


@dataclass(frozen=True)
class Slice:
    """One picture with a place.

    stack: what sets it apart from other pictures of the series: echo, b-value, part of the image type.
    order: the time of its acquisition among those at its place, as numbers to compare.
    """

    frame: int  # of the file
    position: tuple[float, float, float]  # of the centre of the first pixel
    orientation: tuple[float, ...]  # the directions in which columns and rows are counted, 3 numbers each
    spacing: tuple[float, float]  # from row to row, from column to column
    stack: str = ""
    order: tuple[float, ...] = ()
    left_out: str | None = None


@dataclass(frozen=True)
class DicomHeader:
    """What is needed of one file; of numbers and texts alone, so that it can be kept as JSON.

    A file whose `left_out` is None, and that has no `slices`, holds plain pictures without a place.
    """

    patient: str  # PatientID, or StudyInstanceUID if that is empty; a secret, as study and series are
    patient_is_study: bool
    study: str  # StudyInstanceUID
    series: str  # SeriesInstanceUID
    contrast: str | None
    left_out: str | None  # the reason, where it cannot be a scan: "localizer", "not MR: CT", ...
    size: tuple[int, int]  # rows and columns of a picture
    frames: int
    tiles: int  # a side, of a Siemens mosaic; 1 otherwise
    transfer_syntax: str
    decoded_bytes: int
    slices: tuple[Slice, ...]

    @classmethod
    def from_json(cls, values: dict) -> "DicomHeader":
        """From `dataclasses.asdict`, by way of JSON, which has lists for tuples."""
        slices = ({key: _frozen(value) for key, value in row.items()} for row in values["slices"])
        return cls(
            **{**values, "size": tuple(values["size"]), "slices": tuple(Slice(**row) for row in slices)}
        )


def is_dicom(content: bytes) -> bool:
    """Whether a file is DICOM, by its first bytes; older ones have no mark at byte 128."""
    if content[128:132] == b"DICM":
        return True
    first = _element(content, 0)
    second = first and _element(content, first[1])
    return bool(
        second and first[0][0] in (2, 8) and first[0] < second[0] and second[0][0] in (2, 8, 16, 24, 32)
    )


def _element(content: bytes, at: int) -> tuple[tuple[int, int], int] | None:
    """Group and element at a place of a little-endian file, and where the next one begins; None if it is none."""
    head = content[at : at + 12]
    if len(head) < 12:
        return None
    group, element = int.from_bytes(head[:2], "little"), int.from_bytes(head[2:4], "little")
    if head[4:6] in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
        start, length = 12, int.from_bytes(head[8:12], "little")
    elif re.fullmatch(b"AE|AS|AT|CS|DA|DS|DT|FD|FL|IS|LO|LT|PN|SH|SL|SS|ST|TM|UI|UL|US", head[4:6]):
        start, length = 8, int.from_bytes(head[6:8], "little")
    else:
        start, length = 8, int.from_bytes(head[4:8], "little")
    if length > 1024 or length % 2:
        return None
    return (group, element), at + start + length


@cache
def _whitelisted() -> tuple:
    from pydicom.tag import Tag

    tags = [tag_of(name) for name in WHITELIST]
    for group, _, element in (*B_VALUES, SIEMENS_CSA):
        for block in (0x10, 0x11, 0x12):  # which of them is a maker's, its creator element says
            tags += [Tag(group, block), Tag(group, block << 8 | element)]
    return tuple(tags)


def read_header(content: bytes) -> DicomHeader:
    """What a DICOM file says of itself, without its pixels.

    Raises `BadImageError` for a damaged file and for one that claims more pixels than are read, and `InputError` without
    pydicom.
    """
    with pydicom_quiet():
        dataset = open_dataset(content, _whitelisted())
        image_type = tuple(texts(value_of(dataset, "ImageType")))
        description = text_of(dataset, "SeriesDescription") or text_of(dataset, "ProtocolName")
        patient, study = text_of(dataset, "PatientID"), text_of(dataset, "StudyInstanceUID")
        left_out = _left_out(dataset, image_type, description)
        frames, rows, columns, size = (0, 0, 0, 0) if left_out else claimed_size(dataset)
        slices, tiles = ((), 1) if left_out else _slices(dataset, image_type, frames)
        if slices and all(s.left_out for s in slices):
            left_out, slices = slices[0].left_out, ()
        return DicomHeader(
            patient=patient or study,
            patient_is_study=not patient,
            study=study,
            series=text_of(dataset, "SeriesInstanceUID"),
            contrast=contrast_of_name(description) if description else None,
            left_out=left_out,
            size=(rows // tiles, columns // tiles),
            frames=frames,
            tiles=tiles,
            transfer_syntax=str(dataset.file_meta.get("TransferSyntaxUID", "")),
            decoded_bytes=size,
            slices=slices,
        )


def claimed_size(dataset) -> tuple[int, int, int, int]:
    """Frames, rows, columns and bytes of the decoded pixels, as a header claims. Raises `BadImageError` if it is too much."""
    names = ("NumberOfFrames", "Rows", "Columns", "SamplesPerPixel", "BitsAllocated")
    frames, rows, columns, samples, bits = (
        int(value_of(dataset, name) or usual) for name, usual in zip(names, (1, 0, 0, 1, 16), strict=True)
    )
    if min(frames, rows, columns) < 1 or samples not in (1, 3) or not 1 <= bits <= 64:
        raise BadImageError(
            f"claims {frames} pictures of {columns}x{rows} pixels, {samples} samples of {bits} bits each"
        )
    if rows * columns > Image.MAX_IMAGE_PIXELS or frames * rows * columns * samples > MAX_PIXELS:
        raise BadImageError(
            f"claims {frames} pictures of {columns}x{rows} pixels, more than the {MAX_PIXELS} pixels that are read"
        )
    return frames, rows, columns, frames * rows * columns * samples * -(-bits // 8)


def _left_out(dataset, image_type: tuple[str, ...], description: str) -> str | None:
    """Why a file is no scan; None for one that may be."""
    modality = text_of(dataset, "Modality")
    has_pixels = all(value_of(dataset, name) for name in ("Rows", "Columns"))
    if not has_pixels or text_of(dataset, "SOPClassUID") == SPECTROSCOPY:
        return "no image"  # a directory, a report, a spectrum
    if dicom_is_synthetic(dataset):
        return "synthetic"
    if modality not in ("MR", ""):
        return f"not MR: {modality[:16]}"
    if "MOSAIC" in image_type and not _has_csa(dataset):
        return "mosaic without its private header"
    if "LOCALIZER" in image_type or LOCALIZER.search(description):
        return "localizer"
    return _kind_left_out(image_type, text_of(dataset, "ComplexImageComponent"))


def _kind_left_out(image_type: tuple[str, ...], component: str) -> str | None:
    """Why pictures of a kind are no scans; the first two parts of a type say how they came about."""
    kinds = {*image_type[2:], component}
    if kinds & PHASE:
        return "phase"
    return "projection" if kinds & PROJECTION else None


def _slices(dataset, image_type: tuple[str, ...], frames: int) -> tuple[tuple[Slice, ...], int]:
    """The pictures of a file that have a place, and the tiles a side of a mosaic."""
    if "MOSAIC" in image_type:
        return _mosaic(dataset, image_type)
    own = dataset.get("PerFrameFunctionalGroupsSequence")
    if frames > 1 and len(own or ()) != frames:
        return (), 1
    b_value = _b_value(dataset)
    found = [_slice(values_of_frame(dataset, n), n, image_type, b_value) for n in range(frames)]
    return (tuple(found) if all(found) else ()), 1


def _slice(get: Callable, number: int, image_type: tuple[str, ...], b_value: float | None) -> Slice | None:
    """A picture with its place, or None if that is not given or cannot be: it is never invented."""
    position, orientation, spacing = (
        numbers(get(name), count)
        for name, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))
    )
    if not (position and orientation and spacing) or min(spacing) <= 0:
        return None
    directions = np.reshape(orientation, (2, 3))
    if np.abs(directions @ directions.T - np.eye(2)).max() > 10 * SAME_DIRECTION:
        return None
    kind = tuple(texts(get("FrameType"))) or image_type
    component = str(get("ComplexImageComponent") or "")
    echo = get("EchoNumbers") or get("EffectiveEchoTime") or get("EchoTime")
    weighting = get("DiffusionBValue")
    apart = (kind[2:3], component, echo, b_value if weighting is None else weighting, get("StackID"))
    times = ("TemporalPositionIndex", "TemporalPositionIdentifier", "AcquisitionNumber", "InstanceNumber")
    order = tuple((numbers(get(name), 1) or (0.0,))[0] for name in times)
    photometric = str(get("PhotometricInterpretation"))
    left_out = _kind_left_out(kind, component) or (None if "MONOCHROME" in photometric else "coloured")
    stack = " ".join(map(str, (*apart, photometric)))
    return Slice(number, position, orientation, spacing, stack, order, left_out)


def _mosaic(dataset, image_type: tuple[str, ...]) -> tuple[tuple[Slice, ...], int]:
    """The tiles of a Siemens mosaic; their places follow from its private header, which nibabel reads."""
    wrappers = import_extra("nibabel.nicom.dicomwrappers", "volumes")
    try:
        wrapper = wrappers.MosaicWrapper(dataset)
        affine = np.asarray(wrapper.affine, dtype=np.float64)  # of row, column and tile
    except Exception:  # nearly anything, where the private header is missing or damaged
        raise BadImageError("is a Siemens mosaic without the header that says how to take it apart") from None
    number, side = wrapper.n_mosaic, wrapper.mosaic_size
    if not 1 <= side <= min(dataset.Rows, dataset.Columns, MAX_SIDE):
        raise BadImageError(f"is a Siemens mosaic that claims {number} slices")
    first = _slice(values_of_frame(dataset, 0), 0, image_type, _b_value(dataset))
    if not first:
        return (), side
    places = affine[:3, 3] + np.arange(number)[:, None] * affine[:3, 2]  # (n, 3)
    return tuple(
        replace(first, frame=n, position=tuple(place)) for n, place in enumerate(places.tolist())
    ), side


def _has_csa(dataset) -> bool:
    group, creator, element = SIEMENS_CSA
    try:
        return element in dataset.private_block(group, creator)
    except KeyError:
        return False


def _b_value(dataset) -> float | None:
    """Diffusion weighting as makers' own elements say it; GE adds a thousand million."""
    for group, creator, element in B_VALUES:
        try:
            value = dataset.private_block(group, creator)[element].value
        except KeyError:
            continue
        number = numbers(value.decode("ascii", "replace").split("\\") if isinstance(value, bytes) else value)
        if number:
            return number[0] % 1e9
    return None


def _frozen(value):
    return tuple(value) if isinstance(value, list) else value
