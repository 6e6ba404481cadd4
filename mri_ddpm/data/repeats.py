"""Which scans repeat one another: one picture re-encoded, resized, brighter, or with other black margins.

N: number of distinct pictures.
"""

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIZE = 16  # 256 bits each for the perceptual (DCT) and the difference hash
HASH_BITS = 4 * HASH_SIZE**2

# Two pictures are near-identical if at most this many of 512 hash bits differ, either over the whole picture
# or within its black margins. Chosen on the 2870 distinct files of the reference set by looking at pairs: up
# to 31 bits (whole) and 33 (within) all show one and the same picture, from 33 and 38 bits on come slices
# that are merely neighbours in one head. Re-encoding (JPEG quality 75), halving the size and 20 % of
# brightness change 3 to 5 bits in the middle of 120 scans, and at most 24.
MAX_DIFFERING_BITS = 30


def picture_hash(unit: np.ndarray) -> bytes:
    """The hash of a grey image (H, W) in [0, 1], at any brightness: 512 bits whole, 512 within margins."""
    bright = Image.fromarray(np.round(unit * (255 / max(float(unit.max()), 1e-6))).astype(np.uint8))
    pictures = (bright, bright.crop(_within_margins(np.asarray(bright))))
    hashes = [h(p, hash_size=HASH_SIZE).hash for p in pictures for h in (imagehash.phash, imagehash.dhash)]
    return np.packbits(np.concatenate(hashes, axis=None)).tobytes()


def _within_margins(picture: np.ndarray) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of rows and columns of which more than 3 % are not nearly black."""
    lit = picture > 30
    rows, columns = np.flatnonzero(lit.mean(axis=1) > 0.03), np.flatnonzero(lit.mean(axis=0) > 0.03)
    if not len(rows) or not len(columns):
        return (0, 0, picture.shape[1], picture.shape[0])
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def group_near_identical(hashes: list[bytes], block: int = 1024) -> np.ndarray:
    """Group pictures by `picture_hash`: int (N,), equal where a chain of near-identical pictures joins two.

    Compares all pairs, `block` rows at a time, so memory grows with N and not with its square.
    """
    if not hashes:
        return np.zeros(0, dtype=int)
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), dtype=np.uint8)).reshape(
        len(hashes), 2, HASH_BITS // 2
    )
    whole, within = np.moveaxis(bits.astype(np.float32) * 2 - 1, 1, 0)  # (N, 512) each, of -1 and 1
    enough = (
        HASH_BITS // 2 - 2 * MAX_DIFFERING_BITS
    )  # a dot product is bits that agree minus bits that differ
    pairs = []
    for start in range(0, len(hashes), block):
        rows = slice(start, start + block)
        near = (whole[rows] @ whole.T >= enough) | (within[rows] @ within.T >= enough)  # (block, N)
        row, column = np.nonzero(near)
        pairs.append((row + start, column))
    row, column = (np.concatenate(side) for side in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(row), dtype=bool), (row, column)), shape=(len(hashes), len(hashes)))
    return connected_components(graph, directed=False)[1]
