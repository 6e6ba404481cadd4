"""A volume in gives a volume out: each slice of the given volumes is one image to the model, and is put back on their grid.

X, Y, Z: voxels. N: slices of the model's plane. R: the model's pixels a side.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mri_ddpm.data import Volume, read_volume, slices
from mri_ddpm.data.reading.labels import MOST_LABEL, NEAREST, as_labels
from mri_ddpm.data.reading.nifti import HEAD_BYTES, is_analyze, is_nifti
from mri_ddpm.data.reading.pictures import BadImageError, fit_square
from mri_ddpm.data.reading.volumes import AXES, Slices, black_and_white
from mri_ddpm.errors import InputError, import_extra
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline, factor_of, known_labels
from mri_ddpm.sampling.batches import sample_batches
from mri_ddpm.sampling.formats import geometry_of_manifest
from mri_ddpm.sampling.options import SamplingOptions
from mri_ddpm.scan_options import ScanOptions

READING = ("fit", "field_of_view_mm", "intensity", "assume_orientation")  # of a training's settings


@dataclass(frozen=True)
class GivenVolumes:
    """What a model is given for a whole volume, cut as its training cut volumes.

    slices: all slices of the plane, of one of the volumes; the others lie on its grid.
    fit: how a slice became square.
    condition: by name, as the pipeline takes it, ``(N, R, R)``.
    """

    slices: Slices
    fit: str
    condition: dict[str, np.ndarray]

    @property
    def affine(self) -> np.ndarray:
        """From voxel indices to mm, ``(4, 4)``, as in the file that was given."""
        volume = self.slices.volume
        return volume.affine if volume.file_affine is None else volume.file_affine

    def put_back(self, images: np.ndarray, is_mask: bool) -> np.ndarray:
        """Images ``(N, R, R)`` as voxels ``(X, Y, Z)``, axes in the order of the file that was given."""
        voxels = self.slices.put_back(images, self.fit, *([NEAREST] if is_mask else []))
        voxels, volume = voxels if is_mask else voxels.clip(0, 1), self.slices.volume  # bicubic overshoots
        if volume.file_affine is None:
            return voxels
        nibabel = import_extra("nibabel", "volumes")
        plain, turned = nibabel.io_orientation(np.eye(4)), nibabel.io_orientation(volume.file_affine)
        turn = nibabel.orientations.ornt_transform(plain, turned)
        return nibabel.apply_orientation(voxels, turn)


def sample_volume(
    pipeline: MRIDDPMBasePipeline,
    condition: dict[str, str | Path | Volume],
    manifest: dict | None,
    options: SamplingOptions | None = None,
    class_label: str | int | None = None,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Sample a volume that follows given ones: such as a T2 of the head of a T1.

    Args:
        pipeline: a model with a condition, trained on slices of one plane.
        condition: by name, each a NIfTI file, the folder of a DICOM series, or a ``Volume``; all on one grid.
        manifest: of the training, ``load_record(run).manifest``. It says how volumes are cut and scaled.
        options: how to sample.
        class_label: of all slices; ``None`` samples without a class.

    Returns:
        By channel the voxels ``(X, Y, Z)`` on the grid of the condition: in [0, 1], or of masks the values of labels. Then the
        affine of that grid, from voxel indices to mm to the right, anterior and superior, ``(4, 4)``. What lies outside of
        the model's squares is 0, and so are slices with an empty mask if no training scan of the class had one.

    Raises:
        InputError: for files that cannot be read, volumes on several grids, labels or names that the model does not know.
    """
    options, volumes = options or SamplingOptions(), {}
    for name, given in condition.items():
        volumes[name] = given if isinstance(given, Volume) else read_given(given, manifest)
    given = cut(pipeline, volumes, manifest)
    check(pipeline, given, options, 1, class_label)
    return draw(pipeline, given, options, class_label), given.affine


def is_volume(path: Path) -> bool:
    """Whether a file is NIfTI, or a folder, which may be a DICOM series."""
    if path.is_dir():
        return True
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return is_nifti(head) or is_analyze(head)


def read_given(path: str | Path, manifest: dict | None) -> Volume:
    """Read a volume, or a single slice of NIfTI as a volume of one, as the training did."""
    return read_volume(path, assume_orientation=settings_of(manifest).assume_orientation, least_slices=1)


def settings_of(manifest: dict | None) -> ScanOptions:
    """How the scans of a training were read, as far as it is known; anybody may have written the manifest."""
    settings = manifest.get("settings") if isinstance(manifest, dict) else None
    settings = settings if isinstance(settings, dict) else {}
    return ScanOptions(**{name: settings[name] for name in READING if settings.get(name) is not None})


def cut(pipeline: MRIDDPMBasePipeline, volumes: dict[str, Volume], manifest: dict | None) -> GivenVolumes:
    """Cut volumes by name into all slices of the model's plane, each fitted to the model's size.

    Raises:
        InputError: for volumes on several grids, labels that the model does not know, a model that knows no one plane.
    """
    masks, size, settings = pipeline.mask_labels, pipeline.unet.config.sample_size, settings_of(manifest)
    names = sorted(volumes, key=lambda name: name in masks)  # where the head is, a scan says better
    first, condition, chosen = volumes[names[0]], {}, None
    plane = plane_of(first, manifest)
    for name in names[1:]:
        if not first.same_grid(volumes[name]):
            sizes = ["x".join(map(str, volumes[n].voxels.shape)) for n in (name, names[0])]
            raise InputError(
                f"condition {name!r} has {sizes[0]} voxels and {names[0]!r} {sizes[1]}, on another grid; resample one to the other."
            )
    for name in names:
        volume, what = volumes[name], f"condition {name!r}"
        try:
            if name in masks:
                mask = replace(volume, voxels=known_labels(as_labels(volume.voxels), what, masks[name]))
                chosen = chosen or every_slice(mask, plane, settings.field_of_view_mm)
                cuts = chosen.of_mask(mask, MOST_LABEL)
                condition[name] = np.rint(MOST_LABEL * fitted(cuts, size, settings.fit))
            else:
                # Of a single slice the percentiles are not those of its volume
                is_single = volume.window and 1 in volume.voxels.shape
                ends = black_and_white(volume, "window" if is_single else settings.intensity)
                frame = {"min_head": 0.0, "field_of_view_mm": settings.field_of_view_mm}
                chosen = chosen or slices(volume, plane, **frame)
                cuts = chosen.of(volume, *ends)
                condition[name] = fitted(cuts, size // factor_of(name), settings.fit)
        except BadImageError as error:
            raise InputError(f"{what} {error}.") from None
        except ValueError as error:
            raise InputError(str(error)) from None
    return GivenVolumes(chosen, settings.fit, condition)


def fitted(cuts: Slices, size: int, fit: str) -> np.ndarray:
    """All slices as squares of that size, ``(N, size, size)``."""
    return np.stack([fit_square(one.image, size, fit, cuts.resampling) for one in cuts])


def plane_of(volume: Volume, manifest: dict | None) -> str:
    """The plane that the model was trained on; of a single slice its own."""
    single = next((plane for plane, axis in AXES.items() if volume.voxels.shape[axis] == 1), None)
    known = single or geometry_of_manifest(manifest).get("plane")
    if known is None:
        raise InputError(
            "the condition is a volume, and the model was not trained on slices of volumes in one plane; give single slices, as PNG "
            "or NIfTI."
        )
    return known


def every_slice(mask: Volume, plane: str, field_of_view_mm: float | None) -> Slices:
    """All slices of a mask, which does not say where the head is: it is taken to be in the middle."""
    places = tuple((plane, index) for index in range(mask.voxels.shape[AXES[plane]]))
    centre = tuple((n - 1) / 2 for n in mask.voxels.shape)
    return Slices(mask, places, {}, 0, MOST_LABEL, centre, field_of_view_mm)


def check(
    pipeline: MRIDDPMBasePipeline,
    given: GivenVolumes,
    options: SamplingOptions,
    num_volumes: int,
    class_label: str | int | None,
) -> None:
    """Give the pipeline its scheduler, and refuse what it cannot sample before long work starts.

    Raises:
        InputError: as of ``SamplingOptions.prepare``.
    """
    row = seen(pipeline, given, class_label)[0]
    first = {name: images[row] for name, images in given.condition.items()}
    replace(options, edit={"condition": first}).prepare(pipeline, num_volumes, class_label)


def seen(pipeline: MRIDDPMBasePipeline, given: GivenVolumes, class_label: str | int | None) -> np.ndarray:
    """The slices whose masks are not empty where the training knew no such scan; all where none is left, to be refused.

    Raises:
        InputError: for a class, or a condition, that does not fit the model.
    """
    count, size = len(given.slices), pipeline.unet.config.sample_size
    try:
        known = pipeline.read_planes(
            given.condition, pipeline.condition_names, "condition", (count, 1, size, size)
        )
        unseen = pipeline.without_marks(known, None if class_label is None else [class_label] * count)
    except ValueError as error:
        raise InputError(str(error)) from None
    return np.arange(count) if unseen.all() else np.flatnonzero(~unseen.numpy())


def draw(
    pipeline: MRIDDPMBasePipeline,
    given: GivenVolumes,
    options: SamplingOptions,
    class_label: str | int | None,
) -> dict[str, np.ndarray]:
    """Sample all slices in batches, with a progress bar; the voxels by channel, as of `sample_volume`."""
    rows = seen(pipeline, given, class_label)
    labels = None if class_label is None else [class_label] * len(rows)
    known = {name: images[rows] for name, images in given.condition.items()}
    batches = sample_batches(
        pipeline, labels, len(rows), options, output_type="np", condition=known, one_noise=True
    )
    outputs = [output.by_channel for _, output in batches]
    found = {}
    for name in outputs[0]:
        images = np.concatenate([output[name] for output in outputs])
        squares = np.zeros((len(given.slices), *images.shape[1:]), dtype=images.dtype)
        squares[rows] = images
        found[name] = given.put_back(squares, name in pipeline.mask_labels)
    return found
