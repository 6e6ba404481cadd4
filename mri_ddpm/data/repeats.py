"""Which scans repeat one another: one picture re-encoded, resized, brighter, mirrored, or with other black margins.

N: number of distinct pictures.
"""

import imagehash
import numpy as np
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIZE = 16  # 256 bits each for the perceptual (DCT) and the difference hash

# Two pictures are near-identical if at most this many of 512 hash bits differ, either over the whole picture
# or within its black margins. Chosen on the 2870 distinct files of the reference set by looking at pairs: up
# to 31 bits (whole) and 33 (within) all show one and the same picture, from 33 and 38 bits on come slices
# that are merely neighbours in one head. Re-encoding (JPEG quality 75), halving the size and 20 % of
# brightness change 3 to 5 bits in the middle of 120 scans, and at most 24. The same limit holds for a picture
# and the mirror image of another: copies mirrored and changed in these ways differ in at most 16. Brains are
# nearly symmetric, but these hashes go by what is not: the nearest two of the set differ in 74 bits and show
# different slices, and a scan differs from its own mirror image in at least 135.
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


def near_pairs(
    hashes: list[bytes], mirrored: list[bytes], owners: np.ndarray | None = None, block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of near-identical pictures by `picture_hash`, of each as it is and of its mirror image.

    owners: int (N,), among whose own pictures no pairs are looked for; below 0 for those of nobody.
    Returns same, across: int (2, pairs) each, i < j; in `across` the picture i is near to the mirror image of j.
    Compares all pairs, `block` rows at a time, so memory grows with N and not with its square.
    """
    if not hashes:
        return np.zeros((2, 0), dtype=int), np.zeros((2, 0), dtype=int)
    signs = _signs(hashes)
    found = []
    for others in (signs, _signs(mirrored)):
        i, j = _near_pairs(signs, others, block)
        keep = i < j
        if owners is not None:
            keep &= (owners[i] != owners[j]) | (owners[i] < 0)
        found.append(np.stack([i[keep], j[keep]]))
    return found[0], found[1]


def group_near_identical(
    hashes: list[bytes], mirrored: list[bytes], block: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """Group pictures by `picture_hash`, of each as it is and of its mirror image.

    Returns facing, groups: int (N,) each, equal where a chain of near-identical pictures joins two; in `groups`
    a picture is also joined to the mirror image of another, so what faces the same way is a part of a group.
    """
    same, across = near_pairs(hashes, mirrored, block=block)
    return components(same, len(hashes)), components(np.concatenate([same, across], axis=1), len(hashes))


def _signs(hashes: list[bytes]) -> np.ndarray:
    """The bits as -1 and 1: float32 (2, N, 512), of whole pictures and within their margins."""
    bits = np.unpackbits(np.frombuffer(b"".join(hashes), dtype=np.uint8)).reshape(len(hashes), 2, -1)
    return np.moveaxis(bits.astype(np.float32) * 2 - 1, 1, 0)


def _near_pairs(signs: np.ndarray, others: np.ndarray, block: int) -> np.ndarray:
    """Which of one are near-identical to which of the others: int (2, pairs)."""
    enough = signs.shape[2] - 2 * MAX_DIFFERING_BITS  # of a dot product, which is bits that agree less others
    pairs = []
    for start in range(0, signs.shape[1], block):
        near = [a[start : start + block] @ b.T >= enough for a, b in zip(signs, others, strict=True)]
        pairs.append(np.stack(np.nonzero(near[0] | near[1])) + [[start], [0]])
    return np.concatenate(pairs, axis=1)


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the sets that pairs, int (2, pairs), join `count` things into: int (count,)."""
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
