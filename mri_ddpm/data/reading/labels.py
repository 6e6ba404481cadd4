"""Masks: whole numbers for labels, 0 for none; as volumes and as pictures. They are never interpolated."""

import io
from dataclasses import replace

import numpy as np
import tifffile
from PIL import Image, ImageOps

from .dicom import is_dicom
from .pictures import BadImageError, is_tiff, telling_faults
from .volumes import Volume

MOST_LABEL = 65535
NEARLY = 1e-3  # by which a number that was scaled may miss a whole one
NEAREST = Image.Resampling.NEAREST


def as_labels(values: np.ndarray) -> np.ndarray:
    """Whole numbers from 0 to `MOST_LABEL`, of the same shape and kind. Raises `BadImageError` for others."""
    labels = np.rint(values)
    odd = (np.abs(values - labels) > NEARLY) | (labels < 0) | (labels > MOST_LABEL)
    if odd.any():
        raise BadImageError(
            f"holds values such as {values[odd][0]:g}, and a mask has a whole number up to {MOST_LABEL} for each label"
        )
    return labels


def labels_of(mask: Volume) -> tuple[Volume, list[int]]:
    """A mask with its labels as whole numbers, and which there are, without 0. Raises `BadImageError` for other values."""
    found: set[int] = set()
    voxels = np.empty_like(mask.voxels)
    for layer, values in zip(voxels, mask.voxels, strict=True):  # as a whole they would need more memory
        layer[:] = as_labels(values)
        found.update(np.flatnonzero(np.bincount(layer.ravel().astype(np.intp))).tolist())
    return replace(mask, voxels=voxels), sorted(found - {0})


def read_labels(content: bytes) -> np.ndarray:
    """Decode the file of a mask to the numbers that it holds, float32 (H, W); of a palette the numbers, not the colours.

    Raises `BadImageError` for colours and JPEG, and as `pictures.read_samples`.
    """
    if is_dicom(content):
        raise BadImageError("is DICOM, which is not read as a mask: save it as PNG")
    with telling_faults(content):
        if is_tiff(content):
            values = tifffile.imread(io.BytesIO(content))
        else:
            with Image.open(io.BytesIO(content)) as image:
                if image.format == "JPEG":
                    raise BadImageError("is JPEG, which makes up values of labels: save masks as PNG")
                values = np.asarray(ImageOps.exif_transpose(image))
    if values.ndim == 3 and values.shape[2] in (2, 4) and (values[..., -1] == values[..., -1].max()).all():
        values = values[..., :-1]  # opaque
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2:
        raise BadImageError(
            "has colours, and a mask a number for each label: save it in grey, or with a palette"
        )
    return as_labels(values.astype(np.float32))
