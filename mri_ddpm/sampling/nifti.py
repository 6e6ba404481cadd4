"""A sample as a NIfTI file, a slice or a volume, marked as synthetic."""

import gzip
from pathlib import Path

import numpy as np
from PIL import Image

from mri_ddpm.data.intensity import to_uint16
from mri_ddpm.data.reading.marks import MARK
from mri_ddpm.errors import import_extra
from mri_ddpm.pipelines.pipeline_mri_ddpm import as_array
from mri_ddpm.sampling.provenance import json_text

# Where a picture's left-to-right, its bottom-to-top and the third axis lead, in NIfTI's axes (right, anterior, superior).
# Radiological display: the patient's right is on the left; in a sagittal slice the nose is.
DIRECTIONS = {
    "axial": ((-1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, 1), (1, 0, 0)),
}
ALIGNED = 2  # of sform_code and qform_code: axes as of other scans; the position of a slice means nothing
COMMENT = 6  # code of an extension


def save_nifti(
    path: Path,
    image: Image.Image | np.ndarray,
    facts: dict,
    *,
    spacing_mm: float | None = None,
    plane: str | None = None,
    affine: np.ndarray | None = None,
) -> None:
    """Write a grey image ``(H, W)`` as uint16 ``(W, H, 1)``, gzipped; the same arguments give the same bytes.

    Rows are stored from the bottom up, as other tools store axial slices. ``np.asarray(volume.dataobj)[..., 0].T[::-1]``
    is the image again. Geometry that is not known is not claimed. Without a plane both orientation codes are 0, and
    viewers show the stored order, which is the image. Without a spacing pixels have size 1 of an unknown unit. The third
    size repeats the first, for one slice has no thickness. A volume is stored as it is.

    Args:
        path: of the ``.nii.gz`` file.
        image: of 8 or 16 bits, or floats in [0, 1]; a mask, with a palette, is written in values of labels. With ``affine`` it
            is a volume ``(X, Y, Z)``: floats in [0, 1], or a mask as whole numbers.
        facts: written as JSON into a comment extension; those that are ``None`` are left out.
        spacing_mm: side of a pixel.
        plane: ``"axial"``, ``"coronal"`` or ``"sagittal"``, in radiological display.
        affine: of a volume, from voxel indices to mm, ``(4, 4)``.

    Raises:
        InputError: when nibabel is missing.
    """
    nibabel = import_extra("nibabel", "volumes")
    if affine is not None:
        is_mask = image.dtype.kind == "u"
        stored = image.astype(np.uint16) if is_mask else to_uint16(image)
    else:
        is_mask = isinstance(image, Image.Image) and image.mode == "P"  # whose pixels are values of labels
        levels = np.asarray(image).astype(np.uint16) if is_mask else to_uint16(as_array(image, "image"))
        stored = levels[::-1].T[..., None]  # (W, H, 1)
    volume = nibabel.Nifti1Image(stored, None)
    header, size = volume.header, spacing_mm or 1.0
    header.set_zooms((size, size, size))
    header.set_xyzt_units("unknown" if affine is None and not spacing_mm else "mm")
    if plane:
        affine = np.eye(4)
        affine[:3, :3] = np.transpose(DIRECTIONS[plane]) * size
        affine[:3, 3] = -affine[:3, :3] @ (np.array(stored.shape) - 1) / 2  # the image's centre is at 0
    if affine is not None:
        volume.set_sform(affine, ALIGNED)
        volume.set_qform(affine, ALIGNED)
    header["descrip"] = f"{MARK} {facts.get('Software', 'mri-ddpm')}, not for diagnosis"[:79].encode(
        "ascii", "replace"
    )
    header["intent_name"] = MARK.encode()
    if not is_mask:
        header["cal_min"], header["cal_max"] = 0, np.iinfo(np.uint16).max  # black and white of viewers
    header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, json_text(facts).encode()))
    Path(path).write_bytes(gzip.compress(volume.to_bytes(), mtime=0))
