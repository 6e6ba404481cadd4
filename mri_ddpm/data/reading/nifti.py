"""NIfTI files become volumes: NIfTI-1 and -2, `.nii`, `.nii.gz` and `.hdr` with `.img`, of either byte order.

The file format: https://nifti.nimh.nih.gov/nifti-1
"""

import logging
import zlib
from math import prod

import numpy as np

from mri_ddpm.errors import InputError, import_extra

from .marks import MARK, nifti_is_synthetic
from .pictures import BadImageError, failed
from .volumes import Volume

HEAD_BYTES = 4096  # of a file, packed or not, that `is_nifti` wants to see
MAX_VOXELS = 512**3  # 0.5 GiB in float32; a header of 348 bytes can claim any number
MAX_UNPACKED_BYTES = 2**33  # that are passed over in a .nii.gz, on the way to a late volume
LEAST_SLICES = 4  # of a volume; fewer are localizers and test pictures
_GZIP = b"\x1f\x8b"
_HEADER_SIZE = (b"\x5c\1\0\0", b"\0\0\1\x5c")  # 348, with which Analyze begins too
_CHUNK_BYTES = 2**26
_SILENT = logging.Logger("nibabel", logging.CRITICAL + 1)  # for nibabel names small faults that it mends
# The class of nibabel, the bytes of a header, and whether voxels follow it, by where its magic stands and what it is
_MAGIC = {
    (344, b"n+1\0"): ("Nifti1Header", 348, True),
    (344, b"ni1\0"): ("Nifti1Header", 348, False),
    (4, b"n+2\0"): ("Nifti2Header", 540, True),
    (4, b"ni2\0"): ("Nifti2Header", 540, False),
}


def image_names(name: str) -> tuple[str, ...]:
    """What the file with the voxels may be called, beside a header of this name; nothing for one that holds both."""
    stem = name.removesuffix(".gz")
    return (f"{stem[:-4]}.img", f"{stem[:-4]}.img.gz") if stem.endswith(".hdr") else ()


def is_nifti(head: bytes) -> bool:
    """Whether a file begins as NIfTI does, packed or not, given its first `HEAD_BYTES`."""
    try:
        return _magic(head) is not None
    except zlib.error:
        return False


def is_analyze(head: bytes) -> bool:
    """Whether a file begins as the header of an Analyze volume does, which is refused in a sentence."""
    return head[:4] in _HEADER_SIZE and len(head) >= 348


def is_synthetic(head: bytes) -> bool:
    """Whether a NIfTI file is marked as a sample of a model, given its first `HEAD_BYTES`."""
    try:
        magic, header = _magic(head), _span(head, 0, 540)
        if magic is None or MARK.encode() not in header:
            return False
        kind = getattr(import_extra("nibabel", "volumes"), magic[0])
        return nifti_is_synthetic(kind(header[: magic[1]], check=False))
    except (
        InputError,
        ValueError,
        zlib.error,
    ):  # nibabel is missing, or the file is damaged, as is said later
        return False


def read_nifti(
    content: bytes,
    image: bytes | None = None,
    *,
    volume_index: int | None = None,
    assume_orientation: str | None = None,
    least_slices: int = LEAST_SLICES,
) -> Volume:
    """Decode a NIfTI file; axes are swapped and flipped to the nearest of right, anterior, superior, and not resampled.

    - The orientation is that of sform, or else that of qform.
    - Values are scaled by scl_slope and scl_inter. Those that are no finite numbers become the lowest, with a note.
    - cal_min and cal_max become the window.
    - Of several volumes the first is taken, with a note.

    Args:
        content: the file, packed or not.
        image: the `.img`, packed or not, where `content` is a `.hdr`.
        volume_index: which one of several volumes to take, from 0.
        assume_orientation: "RAS" for a file that says nothing of its orientation.
        least_slices: each way; 1 takes a single picture too, as a volume of one slice.

    Raises `BadImageError` for what is damaged, not a volume, enormous, coloured or complex; `InputError` without nibabel.
    """
    nibabel = import_extra("nibabel", "volumes")
    if assume_orientation not in (None, "RAS"):
        raise InputError(f"--assume_orientation {assume_orientation} is unknown: only RAS can be assumed.")
    try:
        magic = _magic(content)
        if magic is None:
            raise BadImageError(_other(content))
        kind, size, is_whole = magic
        if not is_whole and image is None:
            raise BadImageError("is a header alone: put its .img beside it")
        header = getattr(nibabel, kind)(_span(content, 0, size), check=False)
        header.check_fix(_SILENT)
        start = max(header.get_data_offset(), size + 4) if is_whole else header.get_data_offset()
        voxels, notes = _voxels(header, content if is_whole else image, start, volume_index, least_slices)
        file_affine = _affine(header, assume_orientation, voxels.shape)
        turn = nibabel.io_orientation(file_affine)
        affine = file_affine @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape)
        low, high = float(header["cal_min"]), float(header["cal_max"])
        return Volume(
            nibabel.apply_orientation(voxels, turn),
            affine,
            file_affine=file_affine,
            window=(low, high) if -np.inf < low < high < np.inf else None,
            notes=notes,
        )
    except BadImageError:
        raise
    except Exception as error:  # a damaged header makes nibabel raise nearly anything
        raise failed(f"cannot be read as NIfTI ({str(error) or type(error).__name__})", error) from None


def _magic(content: bytes) -> tuple[str, int, bool] | None:
    """What `_MAGIC` says of a file."""
    head = _span(content, 0, 348)
    return next((kind for (at, magic), kind in _MAGIC.items() if head[at : at + 4] == magic), None)


def _other(content: bytes) -> str:
    """Why a file is not read that is no NIfTI."""
    if _span(content, 0, 348)[:4] in _HEADER_SIZE:
        return "is an Analyze volume, which says nothing of left and right: convert it to NIfTI"
    return "is not a NIfTI volume"


def _span(content: bytes, start: int, stop: int) -> bytes:
    """The bytes from start to stop of a file, unpacked if it is a .gz; fewer if it ends before.

    What is unpacked before start is thrown away. A checksum at stop is checked, and `zlib.error` raised if it is wrong.
    """
    if not content.startswith(_GZIP):
        return content[start:stop]
    kept, at = [], 0
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    while at <= stop:  # one byte more than is wanted, for the checksum
        chunk = stream.decompress(content, min(_CHUNK_BYTES, stop - at + 1))
        kept.append(chunk[max(start - at, 0) : stop - at])
        at += len(chunk)
        content = stream.unused_data if stream.eof else stream.unconsumed_tail
        if stream.eof and content.startswith(_GZIP):  # packed in several pieces
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
        elif stream.eof or not chunk:
            break
    return b"".join(kept)


def _voxels(
    header, content: bytes, start: int, volume_index: int | None, least_slices: int
) -> tuple[np.ndarray, tuple]:
    """One volume as the file has it, float32 of three axes, and what there is to say of it."""
    shape, count = _shape(header, least_slices)
    if not 0 <= (volume_index or 0) < count:
        raise BadImageError(
            f"holds {count} volume{'s' * (count > 1)}, counted from 0: --volume_index {volume_index} is not among them"
        )
    notes = []
    if count > 1 and volume_index is None:
        notes.append(f"holds {count} volumes, of which the first is taken: choose by --volume_index")
    dtype = _dtype(header)
    size = prod(shape) * dtype.itemsize
    start += size * (volume_index or 0)
    if not 0 <= start <= MAX_UNPACKED_BYTES:
        raise BadImageError(f"claims that its voxels begin at byte {start}: is its header damaged?")
    data = _span(content, start, start + size)
    if len(data) < size:
        raise BadImageError(f"is truncated: of {size} bytes of voxels it holds {len(data)}")
    values = np.frombuffer(data, dtype)
    slope, inter = header.get_slope_inter()
    with np.errstate(over="ignore", invalid="ignore"):  # seen to below
        if slope is not None and (slope, inter) != (1, 0):
            values = values.astype(np.float32 if dtype.itemsize <= 2 else np.float64) * slope + inter
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        odd = finite.size - np.count_nonzero(finite)
        if odd == finite.size:
            raise BadImageError("holds not one finite number")
        notes.append(f"holds values that are no finite numbers ({odd}): they are taken as its lowest")
        values[~finite] = values[finite].min()
    return values.reshape(shape, order="F"), tuple(notes)


def _shape(header, least_slices: int) -> tuple[tuple[int, int, int], int]:
    """The size of one volume, and how many there are; refused before any memory is taken for them."""
    dims = tuple(int(size) for size in header.get_data_shape())
    words = "x".join(map(str, dims))
    while dims[-1:] == (1,):
        dims = dims[:-1]
    if min(dims, default=0) < 1:
        raise BadImageError(f"claims to be {words or 'of no'} voxels: is its header damaged?")
    if len(dims) > 4:
        raise BadImageError(f"is {words}, of more axes than space and time: save each volume as a file")
    if len(dims) == 2 and least_slices == 1:
        dims = (*dims, 1)
    if len(dims) < 3:
        raise BadImageError(f"is {words} and no volume but a single picture: save it as 16-bit PNG")
    if min(dims[:3]) < least_slices:
        raise BadImageError(f"is {words}, and a volume has {least_slices} slices or more each way")
    if prod(dims[:3]) > MAX_VOXELS:
        raise BadImageError(f"is {words}, and no more than {MAX_VOXELS} voxels are read: resample it")
    return dims[:3], dims[3] if len(dims) == 4 else 1


def _dtype(header) -> np.dtype:
    """That of a voxel, a real number."""
    dtype = header.get_data_dtype()
    if dtype.kind == "V":
        raise BadImageError("holds colours, and a scan is grey: save it as one number a voxel")
    if dtype.kind == "c":
        raise BadImageError("holds complex numbers: save their magnitude")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise BadImageError(f"holds voxels of the kind {dtype}, which is not read: save it as float32")
    return dtype


def _affine(header, assume_orientation: str | None, shape: tuple[int, ...]) -> np.ndarray:
    """From voxel indices to mm to the right, anterior and superior; float64 (4, 4)."""
    for form in (header.get_sform, header.get_qform):
        affine, code = form(coded=True)
        if code:
            return affine.astype(np.float64)
    if not assume_orientation and 1 not in shape:
        raise BadImageError(
            "does not say how the head lies (its sform and qform codes are 0): if its axes run to the right, anterior"
            " and superior, give --assume_orientation RAS"
        )
    # A single picture is what viewers show, as of an axial slice: its first axis runs to the left
    sizes = [float(mm) for mm in (*header.get_zooms(), 1.0)[:3]]
    affine = np.diag([sizes[0] * (1 if assume_orientation else -1), *sizes[1:], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine
