"""Which scans repeat one another: one picture re-encoded, resized, brighter, mirrored, or with other black margins.

N: number of distinct pictures.
"""

from collections.abc import Callable, Iterator
from functools import cache

import imagehash
import numpy as np
from PIL import Image, ImageOps
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

HASH_SIZE = 16  # 256 bits each for the perceptual (DCT) and the difference hash
# What each of them makes of a picture first, width by height
_SMALL = {imagehash.phash: (4 * HASH_SIZE, 4 * HASH_SIZE), imagehash.dhash: (HASH_SIZE + 1, HASH_SIZE)}

# Two pictures are near-identical if at most this many of 512 hash bits differ, either over the whole picture
# or within its black margins. Chosen on the 2870 distinct files of the reference set by looking at pairs: up
# to 31 bits (whole) and 33 (within) all show one and the same picture, from 33 and 38 bits on come slices
# that are merely neighbours in one head. Re-encoding (JPEG quality 75), halving the size and 20 % of
# brightness change 3 to 5 bits in the middle of 120 scans, and at most 24. The same limit holds for a picture
# and the mirror image of another: copies mirrored and changed in these ways differ in at most 16. Brains are
# nearly symmetric, but these hashes go by what is not: the nearest two of the set differ in 74 bits and show
# different slices, and a scan differs from its own mirror image in at least 135.
MAX_DIFFERING_BITS = 30  # no more than 31, or `_nearly_equal` misses pairs


def picture_hashes(unit: np.ndarray) -> tuple[bytes, bytes]:
    """The hashes of a grey image (H, W) in [0, 1] and of its mirror image, at any brightness: 512 bits whole, 512 within margins.

    Small pictures are mirrored, as most of the time goes into making them small, and Lanczos weights are symmetric.
    """
    bright = Image.fromarray(np.round(unit * (255 / max(float(unit.max()), 1e-6))).astype(np.uint8))
    pictures = (bright, bright.crop(_within_margins(np.asarray(bright))))
    small = [(h, p.resize(size, Image.Resampling.LANCZOS)) for p in pictures for h, size in _SMALL.items()]
    return _bits(small), _bits([(h, ImageOps.mirror(p)) for h, p in small])


@cache
def hashes_of_blanks() -> frozenset[tuple[bytes, bytes]]:
    """The `picture_hashes` of all pictures of one value: black, or of one brightness, which does not count."""
    return frozenset(picture_hashes(np.full((1, 1), value)) for value in (0.0, 1.0))


def _bits(pictures: list[tuple[Callable, Image.Image]]) -> bytes:
    """The hash of each picture by the function beside it, one after the other."""
    hashes = [h(picture, hash_size=HASH_SIZE).hash for h, picture in pictures]
    return np.packbits(np.concatenate(hashes, axis=None)).tobytes()


def _within_margins(picture: np.ndarray) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) of rows and columns of which more than 3 % are not nearly black."""
    lit = picture > 30
    rows, columns = (
        np.flatnonzero(lit.sum(axis, dtype=np.int32) / lit.shape[axis] > 0.03) for axis in (1, 0)
    )
    if not len(rows) or not len(columns):
        return (0, 0, picture.shape[1], picture.shape[0])
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def near_pairs(
    hashes: list[bytes], mirrored: list[bytes], owners: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of near-identical pictures, by `picture_hashes` of each as it is and of its mirror image.

    Returns same, across: int (2, pairs), in rising order. In `same`, i < j are near-identical as they are. In
    `across`, i is near-identical to the mirror image of j. Owners (N,), such as patients, leave out the pairs of
    one owner; by default each picture is its own. Memory grows with N and with the pairs, not with N squared.
    """
    count = len(hashes)
    owners = np.arange(count) if owners is None else np.asarray(owners)
    found = np.zeros(0, dtype=np.int64)  # 2 N i + j, for an order
    for i, j in _search(hashes, mirrored, owners):
        found = np.sort(np.concatenate([found, 2 * count * i + j]))
        found = found[np.diff(found, prepend=-1) > 0]  # np.unique of numpy 2.3 is slow on numbers like these
    i, j = np.divmod(found, max(2 * count, 1))
    return np.stack([i, j])[:, j < count], np.stack([i, j - count])[:, j >= count]


def _search(hashes: list[bytes], mirrored: list[bytes], owners: np.ndarray) -> Iterator[np.ndarray]:
    """Near-identical pairs i, j of different owners, int (2, pairs) a word; N + j is the mirror image of j.

    A pair may come several times. Whoever joins owners meanwhile is spared the pairs of these.
    """
    count = len(hashes)
    for half in range(2):
        words = _dealt_words([*hashes, *mirrored], half)  # (2N, 16)
        wide = words.view(np.uint64)  # (2N, 8)
        for word in range(words.shape[1]):
            near = [np.zeros((2, 0), dtype=np.int64)]
            for i, j in _nearly_equal(words[:, word], count):
                others = owners[i] != owners[j % count]
                i, j = i[others], j[others]
                differing = np.bitwise_count(wide[i] ^ wide[j]).sum(axis=1, dtype=np.uint16)
                near.append(np.stack([i, j])[:, differing <= MAX_DIFFERING_BITS])
            yield np.concatenate(near, axis=1)


def _dealt_words(hashes: list[bytes], half: int) -> np.ndarray:
    """The bits of whole pictures (0) or within their margins (1), in another order: uint32 (N, 16).

    Bits side by side depend on one another, and black margins leave whole runs of them at 0. So bits are dealt out
    to the words by how evenly they part these pictures, and each word, and each byte of it, tells as many apart.
    """
    packed = np.frombuffer(bytearray().join(hashes), dtype=np.uint8).reshape(len(hashes), 2, 64)[:, half]
    bits = np.unpackbits(packed, axis=1)  # (N, 512)
    uneven = np.abs(2 * bits.sum(axis=0, dtype=np.int64) - len(bits))
    order = np.argsort(uneven, kind="stable").reshape(8, 4, 16).T.ravel()
    return np.packbits(np.take(bits, order, axis=1), axis=1).view(np.uint32)


def _nearly_equal(word: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All rows i < `count` and j > i whose words, uint32 (M,), agree in three of four bytes; at most M at a time.

    Words that differ in one bit do. Of near-identical pictures one in 16 words does not differ in more, as all
    differ in 30 bits at most (the pigeonhole principle; Norouzi et al. 2012, "Fast Search in Hamming Space with
    Multi-Index Hashing"). So to look at these pairs is to look at all.
    """
    rows = np.arange(len(word), dtype=np.uint64)
    for byte in range(4):
        key = word & np.uint32(0xFFFFFFFF ^ 0xFF << 8 * byte)
        entries = np.sort(key.astype(np.uint64) << 32 | rows)  # equal keys stand side by side, rows rising
        key, row, step = entries >> 32, (entries & 0xFFFFFFFF).astype(np.int64), 1
        first = np.flatnonzero((key[:-1] == key[1:]) & (row[:-1] < count))
        while len(first):
            yield row[first], row[first + step]
            step += 1
            first = first[: np.searchsorted(first, len(key) - step)]
            first = first[key[first] == key[first + step]]


def group_near_identical(hashes: list[bytes], mirrored: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Group pictures by `picture_hashes`, of each as it is and of its mirror image.

    Returns facing, groups: int (N,) each, equal where a chain of near-identical pictures joins two; in `groups`
    a picture is also joined to the mirror image of another, so what faces the same way is a part of a group.
    Both are numbered from 0 in order of first appearance.
    """
    distinct: dict[tuple[bytes, bytes], int] = {}  # thousands may be equal, as blank slices are
    row = [distinct.setdefault(pair, len(distinct)) for pair in zip(hashes, mirrored, strict=True)]
    count = len(distinct)
    facing, across = np.arange(count), [np.zeros((2, 0), dtype=np.int64)]
    for pairs in _search([own for own, _ in distinct], [mirror for _, mirror in distinct], owners=facing):
        of_mirror = pairs[1] >= count
        facing[:] = components(facing[pairs[:, ~of_mirror]], count)[facing]
        across.append(pairs[:, of_mirror] % count)
    groups = components(facing[np.concatenate(across, axis=1)], count)[facing]
    return facing[row], groups[row]


def components(pairs: np.ndarray, count: int) -> np.ndarray:
    """Number the sets that pairs, int (2, pairs), join `count` things into: int (count,)."""
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
