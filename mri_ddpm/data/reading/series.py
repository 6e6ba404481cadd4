"""DICOM slices become volumes: grouped by series, sorted by place, stacked; never resampled.

Positions in headers are in mm to the left, posterior and superior; a volume's are to the right, anterior and superior.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mri_ddpm.errors import InputError

from .decoding import Decoder, Pictures
from .dicom import HEAD_BYTES, MAX_PIXELS, SAME_DIRECTION, DicomHeader, Slice, is_dicom, read_header
from .nifti import LEAST_SLICES
from .pictures import BadImageError
from .volumes import Volume

SAME_PLACE_MM = 0.01  # along the normal; slices that are closer are at one place
UNEVEN = 0.05  # share of the usual distance of slices by which another one differs
SHIFTED = 0.5  # of a pixel, by which a slice may lie beside the line through the others
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
REPEATED = "at the place of another, as later times are"
SHORT = f"in a series of fewer than {LEAST_SLICES} slices"
BESIDE = "in a series of slices that do not lie behind one another"


@dataclass(frozen=True)
class Series:
    """Pictures that lie behind one another.

    pictures: file and number in it, in order along the normal.
    affine: from column, row and number of the picture to mm to the right, anterior and superior; 4 rows of 4.
    centres: of the pictures, in the same mm, where their distances are uneven; the affine has the usual distance then.
    repeated: how many others were at the same places, and are left out.
    """

    pictures: tuple[tuple[str, int], ...]
    patient: str
    patient_is_study: bool
    study: str
    contrast: str | None
    size: tuple[int, int]  # rows, columns
    affine: tuple[tuple[float, ...], ...]
    centres: tuple[tuple[float, ...], ...] | None = None
    repeated: int = 0


def group_series(headers: Mapping[str, DicomHeader]) -> tuple[list[Series], dict[str, int]]:
    """The series among files, by name, and how many pictures are left out, by the reason.

    - Echoes, b-values, stacks, kinds and orientations of one series become series of their own.
    - Pictures are sorted along the normal of the slices. Of several at one place the first in time is taken.

    A file without pictures, or left out as a whole, counts as one. Files of plain pictures are neither grouped nor counted.
    """
    left_out = Counter(header.left_out for header in headers.values() if header.left_out)
    stacks: dict[tuple, list[tuple[str, Slice]]] = {}
    for name in sorted(headers):
        header = headers[name]
        for picture in header.slices:
            if picture.left_out:
                left_out[picture.left_out] += 1
            else:
                # A number that was made anew for a whole study holds several contrasts
                key = (header.patient, header.series, header.contrast, header.size, picture.stack)
                stacks.setdefault(key, []).append((name, picture))
    found = []
    for members in stacks.values():
        for parallel in _parallel(members):
            places = _places(parallel)
            repeated = len(parallel) - len(places)
            left_out[REPEATED] += repeated
            header = headers[places[0][0]]
            series = _series(places, header, repeated)
            if isinstance(series, Series):
                found.append(series)
            else:
                left_out[series] += len(places)
    return found, {reason: number for reason, number in left_out.items() if number}


def _parallel(members: Iterable[tuple[str, Slice]]) -> list[list[tuple[str, Slice]]]:
    """Groups of one orientation and pixel spacing, which scanners write with small differences."""
    groups: list[tuple[tuple[float, ...], list[tuple[str, Slice]]]] = []
    for name, picture in members:
        grid = (*picture.orientation, *picture.spacing)
        for first, group in groups:
            if all(abs(a - b) < SAME_DIRECTION for a, b in zip(first, grid, strict=True)):
                group.append((name, picture))
                break
        else:
            groups.append((grid, [(name, picture)]))
    return [group for _, group in groups]


def _places(members: list[tuple[str, Slice]]) -> list[tuple[str, Slice]]:
    """One picture for each place, in order along the normal; the first in time of several."""
    across, down = np.reshape(members[0][1].orientation, (2, 3))
    heights = np.array([picture.position for _, picture in members]) @ np.cross(across, down)
    places: list[tuple[float, list[tuple[str, Slice]]]] = []
    for index in np.argsort(heights, kind="stable"):
        if not places or heights[index] - places[-1][0] > SAME_PLACE_MM:
            places.append((heights[index], []))
        places[-1][1].append(members[index])
    return [min(here, key=lambda member: (member[1].order, member[0])) for _, here in places]


def _series(places: list[tuple[str, Slice]], header: DicomHeader, repeated: int) -> Series | str:
    """The geometry of pictures in order; or why they are left out."""
    if len(places) < LEAST_SLICES:
        return SHORT
    first = places[0][1]
    across, down = np.reshape(first.orientation, (2, 3)) * np.array(first.spacing[::-1])[:, None]
    positions = np.array([picture.position for _, picture in places])  # (n, 3)
    heights = (positions - positions[0]) @ np.cross(*np.reshape(first.orientation, (2, 3)))  # (n,)
    line = (positions[-1] - positions[0]) / heights[-1]  # along which slices follow one another
    beside = np.linalg.norm(positions - positions[0] - heights[:, None] * line, axis=1).max()
    if beside > SHIFTED * min(first.spacing):
        return BESIDE
    distances = np.diff(heights)
    usual = float(np.median(distances))
    uneven = np.abs(distances - usual).max() > UNEVEN * usual
    step = line * (usual if uneven else heights[-1] / (len(places) - 1))
    affine = np.eye(4)
    affine[:3] = np.column_stack([across, down, step, positions[0]])
    rows, columns = header.size
    centres = positions + across * (columns - 1) / 2 + down * (rows - 1) / 2
    return Series(
        pictures=tuple((name, picture.frame) for name, picture in places),
        patient=header.patient,
        patient_is_study=header.patient_is_study,
        study=header.study,
        contrast=header.contrast,
        size=header.size,
        affine=_rows(TO_RAS @ affine),
        centres=_rows(centres @ TO_RAS[:3, :3]) if uneven else None,
        repeated=repeated,
    )


def _rows(matrix: np.ndarray) -> tuple[tuple[float, ...], ...]:
    return tuple(map(tuple, matrix.tolist()))


def read_series(series: Series, read: Callable[[str], bytes], decoder: Decoder | None = None) -> Volume:
    """Stack the pictures of a series, each rescaled as its file says.

    Axes are swapped and flipped to the nearest of right, anterior and superior. The middle slice's window is kept.

    Args:
        series: of `group_series`.
        read: gives a file's content by its name; each is read once.
        decoder: for compressed files, of several series; otherwise one is started if need be.

    Raises `BadImageError` for a slice that cannot be used, and names its file; `InputError` without pydicom.
    """
    if decoder is None:
        with Decoder() as decoder:
            return read_series(series, read, decoder)
    from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

    count, (rows, columns) = len(series.pictures), series.size
    if count * rows * columns > MAX_PIXELS:
        raise BadImageError(f"has {count} slices of {columns}x{rows} pixels, more than {MAX_PIXELS} in all")
    voxels = np.empty((count, rows, columns), dtype=np.float32)
    numbers: dict[str, list[tuple[int, int]]] = {}
    for place, (name, number) in enumerate(series.pictures):
        numbers.setdefault(name, []).append((place, number))
    for name, wanted in numbers.items():
        try:
            pictures = Pictures(read(name), decoder)
            for place, number in wanted:
                if number >= len(pictures) or pictures.header.size != series.size:
                    raise BadImageError("has changed since it was found")
                picture = pictures[number]
                with np.errstate(over="ignore"):  # which `Volume` refuses
                    voxels[place] = picture.values
                if place == count // 2:
                    window, white_is_zero = picture.window, picture.white_is_zero
        except BadImageError as error:
            raise type(error)(f"has a slice in {name}, which {error}") from None
    voxels, affine = voxels.T, np.array(series.affine)  # (columns, rows, count)
    turn = io_orientation(affine)
    axis, flipped = int(turn[2, 0]), turn[2, 1] < 0
    positions = None if series.centres is None else np.array(series.centres)[:, axis]
    note = (
        f"has {series.repeated} more slices at the places of others, as later times are: the first are taken"
    )
    return Volume(
        apply_orientation(voxels, turn),
        affine @ inv_ornt_aff(turn, voxels.shape),
        contrast=series.contrast,
        acquired_axis=axis,
        positions_mm=positions[::-1] if positions is not None and flipped else positions,
        window=window,
        white_is_zero=white_is_zero,
        notes=(note,) if series.repeated else (),
    )


def read_dicom_folder(path: str | Path) -> Iterator[Volume]:
    """The volumes of the DICOM files in a folder and below it, one after the other.

    Raises `InputError` for a folder without a series, and for a file that cannot be used.
    """
    files = [file for file in sorted(Path(path).expanduser().rglob("*")) if file.is_file()]
    headers = {}
    for file in files:
        with file.open("rb") as opened:
            if not is_dicom(opened.read(HEAD_BYTES)):
                continue
        try:
            headers[str(file)] = read_header(file.read_bytes())
        except BadImageError as error:
            raise InputError(f"{file} {error}.") from None
    found, left_out = group_series(headers)
    if not found:
        counts = "".join(f", {number} {reason}" for reason, number in left_out.items())
        raise InputError(f"{path} holds no series of DICOM slices: {len(headers)} DICOM files{counts}.")
    with Decoder() as decoder:
        for series in found:
            try:
                yield read_series(series, lambda name: Path(name).read_bytes(), decoder)
            except BadImageError as error:
                raise InputError(f"{path} {error}.") from None
