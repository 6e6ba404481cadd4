"""Images that are read where they are looked at: 100,000 scans of 256 pixels would fill 26 GB."""

from collections.abc import Callable, Iterator

import numpy as np

BLOCK, BLOCK_PIXELS = 128, 2**20  # images and pixels read at a time, at most


class LazyImages:
    """Images ``(N, C, H, W)`` float32, of which rows, slices and masks give a view, unread; ``np.asarray`` reads.

    Args:
        read: takes rows, int64 ``(B,)``, and gives their images ``(B, C, H, W)``.
        shape: of one image, ``(C, H, W)``.
        rows: which of them are shown, and in which order.
    """

    ndim = 4

    def __init__(
        self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], rows: np.ndarray | int
    ):
        self._read, self._rows = read, np.arange(rows) if isinstance(rows, int) else rows
        self.shape = (len(self._rows), *shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        rows = self._rows[index]
        if np.ndim(rows) == 0:  # one image
            return self._read(np.array([rows]))[0]
        return LazyImages(self._read, self.shape[1:], rows)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._read(self._rows).astype(dtype or np.float32, copy=False)


Images = np.ndarray | LazyImages


def view(images: Images) -> LazyImages:
    """The same images, of which rows are no copy."""
    return LazyImages(lambda rows: np.asarray(images[rows]), images.shape[1:], len(images))


def joined(*parts: Images) -> LazyImages:
    """Several sets of images of one size, one after another."""
    starts = np.cumsum([0, *map(len, parts)])

    def read(rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *parts[0].shape[1:]), np.float32)
        for start, part in zip(starts, parts, strict=False):
            here = (rows >= start) & (rows < start + len(part))
            if here.any():
                found[here] = np.asarray(part[rows[here] - start])
        return found

    return LazyImages(read, parts[0].shape[1:], int(starts[-1]))


def stacked(*parts: Images) -> Images:
    """The same images of several channels, ``(N, C, H, W)`` each, as images of all channels."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(part.shape[1] for part in parts), *parts[0].shape[2:])

    def read(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(part[rows]) for part in parts], axis=1)

    return LazyImages(read, shape, len(parts[0]))


def plane(images: Images, index: int) -> Images:
    """One channel of images ``(N, C, H, W)``, as ``(N, 1, H, W)``."""
    if images.shape[1] == 1:
        return images
    if isinstance(images, np.ndarray):
        return images[:, index : index + 1]
    return LazyImages(
        lambda rows: np.asarray(images[rows])[:, index : index + 1], (1, *images.shape[2:]), len(images)
    )


def turned(images: Images) -> LazyImages:
    """All images as they are, then all turned by 90, 180 and 270 degrees: four times as many."""

    def read(rows: np.ndarray) -> np.ndarray:
        upright = np.asarray(images[rows % len(images)])
        turns = rows // len(images)
        return np.stack([np.rot90(image, k, (1, 2)) for image, k in zip(upright, turns, strict=True)])

    return LazyImages(read, images.shape[1:], 4 * len(images))


def blocks(images: Images, size: int = BLOCK) -> Iterator[np.ndarray]:
    """The images as arrays of at most ``size`` each, fewer where they are large."""
    size = max(1, min(size, BLOCK_PIXELS // int(np.prod(images.shape[1:]))))
    return (np.asarray(images[start : start + size]) for start in range(0, len(images), size))
