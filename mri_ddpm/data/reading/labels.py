"""Masks: whole numbers for labels, 0 for none; as volumes and as pictures. They are never interpolated."""

from dataclasses import replace

import numpy as np
from PIL import Image

from .pictures import BadImageError
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
