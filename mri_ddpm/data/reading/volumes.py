"""A volume of a head, and the slices that are cut out of it for training.

X, Y, Z: voxels to the right, anterior and superior. H, W: height and width of a slice in pixels.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from PIL import Image

from mri_ddpm.errors import InputError

from .pictures import BadImageError, square_in

AXES = {
    "axial": 2,
    "coronal": 1,
    "sagittal": 0,
}  # of voxels, along which the slices of a plane follow one another
INTENSITIES = ("percentiles", "window", "full_range")
CHOICES = ("all", "with_mask", "without_mask")
HEAD = 0.1  # of the way from the lower percentile to the upper one; what is brighter is head
FRAMED = 0.1  # of a volume's largest slice; where less of it is head, noise may be what is bright
SAME_MM = 1e-3  # affines and spacings that differ by less are equal
_UNEVEN = "across unevenly spaced slices"
SPACINGS_MM = (0.01, 100.0)  # beyond them a header is damaged
LARGEST = 1e30  # intensity; float32 can still subtract such ones


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan in three dimensions, as it was measured: axes may have been swapped and flipped, never resampled.

    Raises `BadImageError` for voxels that are no finite numbers, and for an affine that no scanner has.
    """

    voxels: np.ndarray  # float32 (X, Y, Z), of any range
    affine: np.ndarray  # float64 (4, 4), from voxel indices to mm to the right, anterior and superior
    file_affine: np.ndarray | None = None  # the same of a file whose axes may have another order
    contrast: str | None = None  # of `contrasts.CONTRASTS`
    acquired_axis: int | None = None  # of voxels, along which slices were acquired, where that is known
    positions_mm: np.ndarray | None = None  # of slices along acquired_axis, where they are unevenly spaced
    window: tuple[float, float] | None = None  # what the file wants shown as black and as white
    white_is_zero: bool = False  # whether the file has black and white the other way round
    notes: tuple[str, ...] = ()  # what was decided in reading: predicates, as in `BadImageError`

    def __post_init__(self) -> None:
        low, high = self.extent
        if not -LARGEST <= low <= high <= LARGEST:  # not of NaN either
            raise BadImageError(f"holds values from {low:g} to {high:g}, which no scan has: is it damaged?")
        least, most = SPACINGS_MM
        if not (np.isfinite(self.affine).all() and all(least <= mm <= most for mm in self.spacing_mm)):
            sizes = "x".join(f"{mm:.3g}" for mm in self.spacing_mm)
            raise BadImageError(f"has voxels of {sizes} mm, which no scan has: is its header damaged?")

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """From one voxel to the next, along each axis of `voxels`."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The lowest and the highest value."""
        return float(self.voxels.min()), float(self.voxels.max())

    @cached_property
    def percentiles(self) -> tuple[float, float]:
        """The 0.5th percentile of all values, and the 99.5th of those above the lowest one.

        The background, which may be most of a volume, so has no say in what is white.
        Where both are equal, nearly all voxels have one value; then it is the lowest and the highest.
        """
        lowest, highest = self.extent
        turned = tuple(slice(None, None, -1 if step < 0 else 1) for step in self.voxels.strides)
        values = self.voxels[turned].ravel(order="K")  # as they lie in memory, so that nothing is copied
        above = values > lowest
        count = np.count_nonzero(above)
        # Without looking at all of them, if so many share the lowest value that it is the percentile
        many = len(values) - count > 0.005 * (len(values) - 1) + 1
        low = lowest if many else float(np.percentile(values, 0.5))
        high = float(np.percentile(values[above], 99.5, overwrite_input=True)) if count else lowest
        return (low, high) if low < high else (lowest, highest)

    def positions(self, axis: int) -> np.ndarray:
        """Where the centres of the slices lie along the axis, in mm to the right, anterior or superior; float64."""
        if self.positions_mm is not None and axis == self.acquired_axis:
            return np.asarray(self.positions_mm, dtype=np.float64)
        centres = np.tile((np.array(self.voxels.shape) - 1) / 2, (self.voxels.shape[axis], 1))  # (n, 3)
        centres[:, axis] = np.arange(len(centres))
        return centres @ self.affine[axis, :3] + self.affine[axis, 3]

    def same_grid(self, other: "Volume") -> bool:
        """Whether the voxels of both lie at the same places."""
        return self.voxels.shape == other.voxels.shape and np.allclose(
            self.affine, other.affine, rtol=0, atol=SAME_MM
        )


@dataclass(frozen=True, eq=False)
class Slice:
    """One picture out of a volume, as radiologists look at it."""

    plane: str  # of `AXES`
    index: int  # along the plane's axis of `Volume.voxels`
    position_mm: float  # of its centre, to the right, anterior or superior
    image: np.ndarray  # float32 (H, W) in [0, 1], of square pixels
    spacing_mm: float  # from one pixel to the next


@dataclass(frozen=True, eq=False)
class Slices(Sequence):
    """The slices of a volume that were chosen, each cut when it is asked for; and how many were left out, and why."""

    volume: Volume
    places: tuple[tuple[str, int], ...]  # plane and index of each slice
    left_out: dict[str, int]  # number of slices by the reason in words
    black: float  # value of the file, and below `white` even if the file has white as zero
    white: float
    centre: tuple[float, float, float]  # of the head, in voxels
    field_of_view_mm: float | None = None
    resampling: Image.Resampling = Image.Resampling.LANCZOS

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Slice:
        plane, index = self.places[number]
        axis = AXES[plane]
        unit = _unit(_displayed(self.volume.voxels, axis, index), self.black, self.white)
        unit = 1 - unit if self.volume.white_is_zero else unit
        pixel, _, sizes = self._pixels(plane)
        image = _square_pixels(unit, *sizes, self.resampling)
        if self.field_of_view_mm:
            image = _framed(image, *self._frame(plane))
        return Slice(plane, index, float(self.volume.positions(axis)[index]), image, pixel)

    def put_back(
        self,
        squares: Sequence[np.ndarray],
        fit: str,
        resampling: Image.Resampling = Image.Resampling.BICUBIC,
    ) -> np.ndarray:
        """The voxels (X, Y, Z) whose slices became these squares by `pictures.fit_square`; 0 where no square reaches."""
        found = np.zeros(self.volume.voxels.shape, dtype=squares[0].dtype)
        for (plane, index), square in zip(self.places, squares, strict=True):
            layer = np.moveaxis(found, AXES[plane], 0)[index]  # a view
            picture, box = Image.fromarray(square.astype(np.float32)), self._box(plane, fit, len(square))
            shown = picture.transform(layer.shape, Image.Transform.EXTENT, box, resampling)
            layer[:] = np.flip(np.asarray(shown).T, (0, 1))
        return found

    def _pixels(self, plane: str) -> tuple[float, tuple[int, int], tuple[float, float]]:
        """Of the slices of a plane: mm of a square pixel; how many rows and columns voxels have; and mm of each."""
        across, up = _in_plane(AXES[plane])
        spacing, shape = self.volume.spacing_mm, self.volume.voxels.shape
        return min(spacing[across], spacing[up]), (shape[up], shape[across]), (spacing[up], spacing[across])

    def _frame(self, plane: str) -> tuple[int, int, int]:
        """The first row and column, in square pixels, and the side of the frame that slices of a plane are cut to."""
        pixel, counts, sizes = self._pixels(plane)
        side = max(1, round(self.field_of_view_mm / pixel))
        across, up = _in_plane(AXES[plane])
        centre = self.centre[up], self.centre[across]
        middle = [(n - 0.5 - c) * mm / pixel for n, c, mm in zip(counts, centre, sizes, strict=True)]
        return round(middle[0] - side / 2), round(middle[1] - side / 2), side

    def _box(self, plane: str, fit: str, resolution: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a slice as voxels have it, in pixels of its square."""
        pixel, counts, sizes = self._pixels(plane)
        rows, columns = (n * mm / pixel for n, mm in zip(counts, sizes, strict=True))
        if self.field_of_view_mm:
            top, left, height = self._frame(plane)
            width = height
        else:
            top, left, height, width = 0, 0, int(rows + SAME_MM), int(columns + SAME_MM)
        row, column, height, width = square_in(height, width, fit)
        top, left = -(top + row), -(left + column)  # of the slice, in the square before it is resized
        x, y = resolution / width, resolution / height
        return left * x, top * y, (left + columns) * x, (top + rows) * y

    def of(self, other: Volume, black: float, white: float) -> "Slices":
        """The same places and frame in another volume on the same grid: another contrast.

        Raises `BadImageError` for a volume on another grid.
        """
        if not self.volume.same_grid(other):
            apart = np.abs(self.volume.affine - other.affine).max()
            raise BadImageError(
                f"is {_size(other)} and not on the grid of its other contrast, {_size(self.volume)}"
                + (f", for their affines differ by {apart:.2g}" if apart > SAME_MM else "")
            )
        return replace(self, volume=other, black=black, white=white)

    def of_mask(self, mask: Volume, most: int) -> "Slices":
        """The same of a mask, of whole numbers up to `most`, which is 1 in the images; nothing is interpolated."""
        return replace(self.of(mask, 0, most), resampling=Image.Resampling.NEAREST)


def slices(
    volume: Volume,
    plane: str = "axial",
    *,
    min_head: float = 0.5,
    slice_range: tuple[float, float] = (0.0, 1.0),
    slice_step_mm: float | None = None,
    max_spacing_mm: float | None = None,
    field_of_view_mm: float | None = None,
    intensity: str = "percentiles",
    slices: str = "all",
    mask: Volume | None = None,
) -> Slices:
    """Choose slices of a volume; each is oriented, made of square pixels and scaled to [0, 1] when it is asked for.

    Anterior or superior is up and the patient's right on the left; in sagittal slices anterior is on the left.

    Args:
        volume: the scan; one scale of intensity holds for all its slices.
        plane: "axial", "coronal", "sagittal", or "all" for the three.
        min_head: the least area of head in a slice, as a share of the largest area in the plane's slices.
        slice_range: from where to where along the plane's axis, as shares of the volume, beginning at its left,
            posterior or inferior end.
        slice_step_mm: the least distance of slices.
        max_spacing_mm: a plane of coarser pixels is left out, for it was reformatted from thicker slices. The plane
            that was acquired stays, which is the finest where the file does not say.
        field_of_view_mm: the side of every slice, cropped or padded with black around the head's centre.
        intensity: what is black and white: "percentiles", the file's "window", or its "full_range".
        slices: "all", only those "with_mask", or only those "without_mask".
        mask: on the same grid; what is not 0 is marked.

    Raises `BadImageError` for a volume of one value alone, without the window that is asked for, of another grid than its
    mask, and for other planes than the acquired one where slices are unevenly spaced; `InputError` for an unknown choice.
    """
    _check("plane", plane, (*AXES, "all"))
    _check("slices", slices, CHOICES)
    if slices != "all" and mask is None:
        raise InputError(f"--slices {slices} needs masks, and there are none: choose --slices all.")
    if mask is not None and not volume.same_grid(mask):
        raise BadImageError(f"is {_size(volume)}, and its mask {_size(mask)} on another grid")
    black, white = black_and_white(volume, intensity)
    head = head_of(volume)
    areas = [head.sum(_in_plane(axis), dtype=np.int32) for axis in range(3)]
    places, left_out = [], Counter()
    for name in AXES if plane == "all" else (plane,):
        axis = AXES[name]
        area, place = areas[axis], (np.arange(len(areas[axis])) + 0.5) / len(areas[axis])
        rules = {
            "reformatted from slices thicker than --max_spacing_mm": _is_fine(volume, axis, max_spacing_mm),
            _UNEVEN: volume.positions_mm is None or axis == volume.acquired_axis,
            "outside --slice_range": (place >= slice_range[0]) & (place <= slice_range[1]),
            "with too little head": area >= min_head * area.max(),
        }
        if slices != "all":
            marked = (mask.voxels != 0).any(_in_plane(axis))
            rules["without a mask" if slices == "with_mask" else "with a mask"] = marked == (
                slices == "with_mask"
            )
        keep = np.ones(len(area), dtype=bool)
        for reason, passes in rules.items():
            left_out[reason] += int(np.count_nonzero(keep & np.logical_not(passes)))
            keep &= passes
        chosen = _spread(np.flatnonzero(keep), volume.positions(axis), slice_step_mm)
        left_out["closer than --slice_step_mm"] += int(np.count_nonzero(keep)) - len(chosen)
        places += [(name, index) for index in chosen]
    if left_out[_UNEVEN] and not places:
        raise BadImageError(
            "has unevenly spaced slices, which can be cut only as they were acquired: "
            f"choose --plane {_plane_of(volume.acquired_axis)}"
        )
    return Slices(volume, tuple(places), dict(+left_out), black, white, _centre(areas), field_of_view_mm)


def black_and_white(volume: Volume, intensity: str = "percentiles") -> tuple[float, float]:
    """The one scale for all slices of a volume: its values from ... to ..., see `slices`; the second is the higher."""
    _check("intensity", intensity, INTENSITIES)
    low, high = volume.extent
    if low == high:
        raise BadImageError(f"holds one value alone, {low:g}")
    if intensity == "window":
        if not (volume.window and volume.window[0] < volume.window[1]):
            raise BadImageError("names no window of intensities: choose --intensity percentiles")
        return volume.window
    return volume.percentiles if intensity == "percentiles" else (low, high)


def head_of(volume: Volume) -> np.ndarray:
    """Which voxels are bright enough to be head; bool (X, Y, Z)."""
    black, white = volume.percentiles
    if volume.white_is_zero:
        return volume.voxels < white - HEAD * (white - black)
    return volume.voxels > black + HEAD * (white - black)


def _check(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"--{name} {value} is unknown: choose one of {', '.join(choices)}.")


def _in_plane(axis: int) -> tuple[int, int]:
    """The axes across and up the slices that follow one another along an axis."""
    across, up = (other for other in range(3) if other != axis)
    return across, up


def _plane_of(axis: int) -> str:
    return next(plane for plane, along in AXES.items() if along == axis)


def _size(volume: Volume) -> str:
    return "x".join(map(str, volume.voxels.shape))


def _is_fine(volume: Volume, axis: int, max_spacing_mm: float | None) -> bool:
    """Whether a plane's pixels are as fine as is asked for, or as those of the plane that was acquired."""
    coarsest = [max(volume.spacing_mm[other] for other in _in_plane(along)) for along in range(3)]
    acquired = min(coarsest) if volume.acquired_axis is None else coarsest[volume.acquired_axis]
    return max_spacing_mm is None or coarsest[axis] <= max(max_spacing_mm, acquired) + SAME_MM


def _spread(indices: np.ndarray, position: np.ndarray, step_mm: float | None) -> list[int]:
    """As many of the slices as are at least a step apart, from the first on."""
    chosen: list[int] = []
    for index in indices.tolist():
        if not (chosen and step_mm) or abs(position[index] - position[chosen[-1]]) >= step_mm - SAME_MM:
            chosen.append(index)
    return chosen


def _centre(areas: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The middle, in voxels, of the box around the head, given the head's area in the slices along each axis."""
    within = [np.flatnonzero(area >= max(1, FRAMED * area.max())) for area in areas]
    x, y, z = ((found[0] + found[-1]) / 2 for found in within)
    return float(x), float(y), float(z)


def _displayed(voxels: np.ndarray, axis: int, index: int) -> np.ndarray:
    """A slice (H, W) as radiologists look at it."""
    return np.flip(np.moveaxis(voxels, axis, 0)[index], (0, 1)).T


def _unit(values: np.ndarray, black: float, white: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinitely far above white is white
        return ((values - np.float32(black)) / np.float32(white - black)).clip(0, 1)


def _square_pixels(
    image: np.ndarray, row_mm: float, column_mm: float, resampling: Image.Resampling
) -> np.ndarray:
    """Resample (H, W) so that rows and columns are as close as the closer ones; up to a pixel may be lost at the end."""
    pixel = min(row_mm, column_mm)
    if max(row_mm, column_mm) - pixel < SAME_MM * pixel:
        return np.ascontiguousarray(image)
    height, width = (
        int(size * mm / pixel + SAME_MM) for size, mm in zip(image.shape, (row_mm, column_mm), strict=True)
    )
    if height * width > Image.MAX_IMAGE_PIXELS:
        raise BadImageError(f"has voxels too far from cubes to be cut ({row_mm:.3g} by {column_mm:.3g} mm)")
    box = (0, 0, min(width * pixel / column_mm, image.shape[1]), min(height * pixel / row_mm, image.shape[0]))
    picture = Image.fromarray(np.ascontiguousarray(image))
    resized = picture.resize((width, height), resampling, box)
    return np.clip(np.asarray(resized), 0, 1)  # Lanczos overshoots at sharp edges


def _framed(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """The square of an image (H, W) from a pixel on; black where the image ends."""
    if side**2 > Image.MAX_IMAGE_PIXELS:
        raise BadImageError(f"would have {side}x{side} pixels: choose a smaller --field_of_view_mm")
    part = image[max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)]
    frame = np.zeros((side, side), dtype=image.dtype)
    frame[max(-top, 0) :, max(-left, 0) :][: part.shape[0], : part.shape[1]] = part
    return frame
