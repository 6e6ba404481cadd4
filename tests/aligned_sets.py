"""Heads of several contrasts with masks made for tests, as volumes and as pictures, and what a training is to see of them."""

import io

import numpy as np
from PIL import Image
from volume_sets import SHAPE, head

BRATS = ("t1", "t1ce", "t2", "flair")
NAME = "BraTS20_Training_{0:03d}/BraTS20_Training_{0:03d}_{1}.nii.gz"


def labels(patient: int) -> np.ndarray:
    """A mask uint8 of whole blocks of 1, 2 and, of the last patient, 4, a different one for each."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[6:14, 8:16, 6:14] = 1
    voxels[9:13, 10 : 13 + patient, 8:12] = 2
    if patient == 4:
        voxels[10:12, 11:13, 9:11] = 4
    return voxels


def brats(patients=range(1, 5), contrasts=BRATS) -> dict[str, np.ndarray]:
    volumes = {NAME.format(p, c): head(10 * p + BRATS.index(c)) for p in patients for c in contrasts}
    return volumes | {NAME.format(p, "seg"): labels(p) for p in patients}


def planes_of(part) -> np.ndarray:
    """All that a data set holds of its scans, (N, C + K, H, W)."""
    batch = part.batch(range(len(part)))
    return np.concatenate([batch[name].numpy() for name in ("pixel_values", "condition") if name in batch], 1)


def by_path(scans) -> dict[str, np.ndarray]:
    """{path of the slice: its planes}."""
    found = {}
    for split, part in (("train", scans.train), ("validation", scans.validation)):
        rows = [row for row in scans.manifest["files"] if row["split"] == split]
        found |= dict(zip((scans.paths[row["path"]] for row in rows), planes_of(part), strict=True))
    return found


def nearest(image: np.ndarray, side: int) -> np.ndarray:
    """A padded square of labels, each pixel that of the place where its centre lies."""
    size = max(image.shape)
    square = np.zeros((size, size))
    top, left = ((size - n) // 2 for n in image.shape)
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    at = ((np.arange(side) + 0.5) * size / side).astype(int)
    return square[np.ix_(at, at)]


def picture(values: np.ndarray, mode: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, mode, **options)
    return file.getvalue()


def grey(seed: int, shape: tuple[int, int] = (20, 24)) -> np.ndarray:
    return (head(seed, (*shape, 8))[..., 4] / 6).astype(np.uint8)


def drawn(seed: int, value: int = 1, shape: tuple[int, int] = (20, 24)) -> np.ndarray:
    values = np.zeros(shape, np.uint8)
    values[4 + seed % 3 : 14, 6:15] = value
    values[8:12, 8:12] = 2 * value if value == 1 else value
    return values
