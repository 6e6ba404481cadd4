"""The search for near-identical pictures finds what comparing every pair finds, and stays small."""

import tracemalloc

import numpy as np
import pytest
from scipy.sparse.csgraph import connected_components

from benchmarks.near_copies import make_hashes
from mri_ddpm.data.repeats import MAX_DIFFERING_BITS, group_near_identical, near_pairs


def random_hashes(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 128), dtype=np.uint8)


def flipped(hashes, counts, rng):
    """Copies of which `counts` bits of each half differ, for pairs on both sides of the limit."""
    copies = hashes.copy()
    for row, count in zip(copies, counts, strict=True):
        for half in range(2):
            for bit in rng.choice(512, count, replace=False):
                row[64 * half + bit // 8] ^= 1 << bit % 8
    return copies


def clustered(count, seed):
    """Hashes of pictures and of mirror images: chains of copies, some mirrored, around the limit, on few live bits."""
    rng = np.random.default_rng(seed)
    live = np.packbits(rng.random(1024) < 0.6)  # the others are 0, as margins are
    hashes, mirrored = random_hashes(count, seed) & live, random_hashes(count, seed + 1) & live
    for target, source in ((hashes, hashes), (mirrored, mirrored), (hashes, mirrored)):
        rows, origins = rng.integers(0, count, (2, count // 2))
        for row, origin in zip(rows, origins, strict=True):
            differing = rng.integers(0, MAX_DIFFERING_BITS + 10, 1)
            target[row] = flipped(source[origin][None], differing, rng)[0]
    return hashes, mirrored


def near(a, b):
    """By definition: bool (N, M), whether at most the limit's bits differ, over the whole or within margins."""
    a, b = (np.unpackbits(x, axis=1).reshape(-1, 1, 2, 512) for x in (a, b))
    return ((a != b.swapaxes(0, 1)).sum(axis=-1) <= MAX_DIFFERING_BITS).any(axis=-1)


def as_bytes(*arrays):
    return [[row.tobytes() for row in array] for array in arrays]


def assert_all_found(hashes, mirrored, owners=None):
    same, across = near_pairs(*as_bytes(hashes, mirrored), owners)
    others = ~np.eye(len(hashes), dtype=bool) if owners is None else owners[:, None] != owners
    np.testing.assert_array_equal(same, np.nonzero(np.triu(near(hashes, hashes) & others)))
    np.testing.assert_array_equal(across, np.nonzero(near(hashes, mirrored) & others))
    return same, across


@pytest.mark.parametrize("seed", range(6))
def test_finds_what_comparing_every_pair_finds(seed):
    hashes, mirrored = clustered(200, seed)
    same, across = assert_all_found(hashes, mirrored)
    assert min(same.shape[1], across.shape[1]) > 20
    owners = np.random.default_rng(seed).integers(0, 3, 200)
    kept, _ = assert_all_found(hashes, mirrored, owners)
    assert 0 < kept.shape[1] < same.shape[1]
    assert_all_found(hashes, mirrored, np.array(["a", "b", "c"])[owners])


def test_finds_all_pairs_in_runs_of_slices():
    """Hashes with the skew of real ones: of phantoms in wide and narrow margins, with their neighbours and copies."""
    hashes, mirrored, heads = make_hashes(400, seed=0)
    same, across = assert_all_found(hashes, mirrored, heads)
    assert min(same.shape[1], across.shape[1]) > 5
    assert assert_all_found(hashes, mirrored)[0].shape[1] > 1000


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_the_chains_of_these_pairs(seed):
    hashes, mirrored = clustered(200, seed)
    hashes[150:], mirrored[150:] = hashes[:50], mirrored[:50]
    same, across = near(hashes, hashes), near(hashes, mirrored)
    facing, groups = group_near_identical(*as_bytes(hashes, mirrored))
    np.testing.assert_array_equal(facing, connected_components(same, directed=False)[1])
    np.testing.assert_array_equal(groups, connected_components(same | across, directed=False)[1])
    assert len(set(groups)) < len(set(facing)) < 150


@pytest.mark.parametrize("spread", [1, 2, 16, 512])
def test_no_way_to_spread_30_differing_bits_hides_a_pair(spread):
    """All in one run, every other, scattered: 30 are found and 31 are not, in either half and however bits are dealt."""
    base = random_hashes(400)
    for half in range(2):
        for count in (MAX_DIFFERING_BITS, MAX_DIFFERING_BITS + 1):
            bits = np.unpackbits(base, axis=1).reshape(-1, 2, 512)
            bits[:, 1 - half] = np.random.default_rng(1).integers(0, 2, (400, 512))
            places = np.arange(count) * spread % 511 + np.arange(400)[:, None]
            bits[np.arange(400)[:, None], half, places % 512] ^= 1
            copies = np.packbits(bits.reshape(400, -1), axis=1)
            hashes, mirrored = np.concatenate([base, copies]), random_hashes(800, seed=2)
            same, across = near_pairs(*as_bytes(hashes, mirrored))
            assert same.shape[1] == (400 if count == MAX_DIFFERING_BITS else 0)
            np.testing.assert_array_equal(same[0] + 400, same[1])
            assert across.shape[1] == 0


def test_every_word_and_byte_is_looked_at():
    """30 bits that leave one word equal, or two words with a bit each in one byte: no other key finds these pairs."""
    word, byte = np.arange(512) % 16, np.arange(512) // 16 % 4  # as bits are dealt that part evenly alike
    two_each = (np.arange(512) < 32).astype(np.uint8)
    spared = [two_each * (word != w) for w in range(16)]
    for b in range(4):
        for pair in ((0, 1), (7, 12)):
            first = (np.arange(512) // 64 == 0) & (byte == b) & np.isin(word, pair)
            spared.append(np.where(np.isin(word, pair), first, two_each))
    flips = np.packbits(np.array(spared, dtype=np.uint8), axis=1)
    assert (np.unpackbits(flips, axis=1).sum(axis=1) == MAX_DIFFERING_BITS).all()
    for half in range(2):
        base = random_hashes(len(flips))
        copies = random_hashes(len(flips), seed=1)
        part = slice(64 * half, 64 * half + 64)
        copies[:, part] = base[:, part] ^ flips
        hashes = np.concatenate([base, copies, ~base, ~copies])  # with their opposites, all bits part evenly
        same, _ = near_pairs(*as_bytes(hashes, hashes))
        assert same.shape[1] == 2 * len(flips)
        np.testing.assert_array_equal(same[1] - same[0], len(flips))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_pictures(count):
    hashes = np.zeros((count, 128), dtype=np.uint8)  # each its own mirror image, which makes no pair
    same, across = assert_all_found(hashes, hashes)
    assert (same.shape, across.shape) == ((2, count // 2), (2, count // 2 * 2))
    assert near_pairs(*as_bytes(hashes, hashes), np.zeros(count))[1].shape == (2, 0)
    for labels in group_near_identical(*as_bytes(hashes, hashes)):
        np.testing.assert_array_equal(labels, np.zeros(count))


def test_memory_grows_with_the_number_of_pictures_and_not_with_its_square():
    peaks = []
    for count in (4000, 16000):
        hashes = as_bytes(random_hashes(count), random_hashes(count, seed=1))
        tracemalloc.start()
        near_pairs(*hashes)
        peaks.append(tracemalloc.get_traced_memory()[1] / count)
        tracemalloc.stop()
    assert max(peaks) < 4000  # bytes a picture, of which its bits and those of its mirror image take 2048
    assert peaks[1] < 1.2 * peaks[0]


def test_thousands_of_equal_pictures_are_joined_at_once():
    """A comparison of every pair of these would take gigabytes."""
    hashes, mirrored = random_hashes(30000), random_hashes(30000, seed=1)
    hashes[100:], mirrored[100:] = hashes[0], mirrored[0]
    for labels in group_near_identical(*as_bytes(hashes, mirrored)):
        np.testing.assert_array_equal(labels[:100], range(100))
        assert not labels[100:].any()
