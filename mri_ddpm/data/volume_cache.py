"""Volumes decoded once: for every volume and setting an Arrow file, with a row for each slice that was chosen.

Volumes that are one scan, such as the contrasts of a head and its mask, share a file: each slice has a row for each.

A new volume is decoded alone, and an interrupted pass is resumed. One volume a thread is in memory at a time.
"""

import contextlib
import hashlib
import importlib
import json
import os
import struct
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from uuid import uuid4

import datasets
import numpy as np
import pyarrow as pa
from datasets.table import MemoryMappedTable
from filelock import FileLock
from PIL import Image

from mri_ddpm.errors import InputError
from mri_ddpm.files import sync
from mri_ddpm.scan_options import ScanOptions

from .cache import cache_folder, fitted, writing_cache
from .masks import is_mask_name
from .reading.labels import MOST_LABEL, labels_of
from .reading.pictures import BadImageError, PassingError
from .reading.volumes import SAME_MM, Slice, Slices, Volume, black_and_white, slices
from .repeats import picture_hashes
from .volume_files import VolumeFile

CACHE_VERSION = 4  # raise it when reading, slicing, fitting or hashing changes
MOST_THREADS = 8  # each holds a volume of some hundred megabytes
# That threads use: where two import one at once, both may find a half of it, as of pydicom by way of nibabel
LIBRARIES = ("nibabel", "pydicom", "scipy.fftpack")
SEAL = struct.Struct("<Q16s")  # at the end of a file: how many bytes are sealed, and their digest
ARROW_END = 8  # bytes after the pixels
# Of the options, those that the slices of a volume depend on
CUTTING = (
    "plane", "slices", "slice_range", "slice_step_mm", "min_head", "max_spacing_mm", "field_of_view_mm", "intensity",
    "volume_index", "assume_orientation",
)  # fmt: skip


@dataclass(frozen=True)
class Aligned:
    """Volumes on one grid that are cut at the same places; or one alone.

    files: by name, see `Channels.planes`; of one alone the name is "".
    hashes: of the contents of each.
    leader: the name of the one by which slices are chosen.
    marks: the mask of `--slices` and its hash.
    """

    files: dict[str, VolumeFile]
    hashes: tuple[str, ...]
    leader: str = ""
    marks: tuple[VolumeFile, str] | None = None

    @property
    def identity(self) -> str:
        """What is another as soon as anything else would be cut."""
        parts = []
        for (name, file), sha256 in zip(self.files.items(), self.hashes, strict=True):
            # One file may hold several series, and several contrasts
            part = file.series.pictures if file.series else file.contrast if file.channels else ""
            called = f"{name}\n" if name else ""  # facts are kept by name
            parts.append(f"{called}{sha256}\n{part}")
        return "\n".join([*parts, str(self.marks and self.marks[1])])


@dataclass(frozen=True)
class DecodedVolume:
    """The slices of a volume, or of volumes on one grid, and what is known of it.

    table: for each slice a row for each volume, in their order. Columns: plane, index, position_mm, width, height (pixels, of
        squares in the plane), brightest (0..1), picture_hash, mirrored_hash (bytes; of the leader alone) and, unless they were
        not asked for, pixels: uint16 (resolution**2,), 0..65535, of a mask the numbers of its labels.
    facts: flaw (None if usable), notes, sha256 (of the voxels), left_out ({reason: slices}), spacing_mm, extent_mm (three each), oblique,
        pixel_mm (of the pixels of the table; None where they differ); of several also volumes (their number, without masks) and
        labels ({mask: {number of a label: slices that show it}}).
    """

    table: MemoryMappedTable | pa.Table
    facts: dict


def decoded_volumes(
    scans: Sequence[Aligned], options: ScanOptions, resolution: int | None
) -> list[DecodedVolume]:
    """The slices of all volumes, decoded now unless the cache has them.

    Of processes that ask for it at once one decodes, and the others wait for its files however long that takes.

    Args:
        scans: what to decode.
        options: how they are cut; `cache_dir` says where they are kept.
        resolution: pixels a side, or None for an account without pixels.

    Raises `InputError` if the cache folder cannot be written, or a file went away.
    """
    folder = cache_folder(options.cache_dir)
    cutting = {name: value for name, value in asdict(options).items() if name in CUTTING}
    settings = json.dumps(
        [CACHE_VERSION, resolution, options.fit if resolution else None, cutting], sort_keys=True
    )
    names = [hashlib.sha256(f"{settings}\n{scan.identity}".encode()).hexdigest()[:32] for scan in scans]
    kept = [folder / f"{name}.arrow" for name in names]
    found = [_opened(path) for path in kept]
    if any(volume is None for volume in found):
        lock = (
            folder / f"{hashlib.sha256(' '.join(path.name for path in kept).encode()).hexdigest()[:32]}.lock"
        )
        with writing_cache(folder), FileLock(lock):
            unread = _write_missing(kept, scans, options, resolution)
            with contextlib.suppress(OSError):
                lock.unlink()
        found = [
            volume or unread.get(path) or _opened(path) for volume, path in zip(found, kept, strict=True)
        ]
    return found


def _opened(path: Path) -> DecodedVolume | None:
    """What the cache has of a volume; None where it has nothing, or a damaged file."""
    # A damaged file makes its reader raise nearly anything, or crash: it is not given one whose seal is broken
    with contextlib.suppress(Exception):
        if not _is_sealed(path):
            return None
        table = MemoryMappedTable.from_file(str(path))
        facts = json.loads(table.schema.metadata[b"facts"])
        if table.num_rows == facts["rows"]:
            with contextlib.suppress(OSError):  # another's file
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
            return DecodedVolume(table, facts)
    return None


def _seal(path: Path, pixel_bytes: int) -> None:
    """Append a digest of an Arrow file, but for its pixels: they are most of it, come last, and crash no reader."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        before = max(0, size - pixel_bytes - ARROW_END)
        file.seek(0)
        digest = _digest(file.read(before), size)
        file.seek(size)
        file.write(SEAL.pack(before, digest))


def _is_sealed(path: Path) -> bool:
    """Whether a file is as it was written, but for its pixels."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END) - SEAL.size
        if size < 0:
            return False
        file.seek(size)
        before, digest = SEAL.unpack(file.read(SEAL.size))
        file.seek(0)
        return before <= size and _digest(file.read(before), size) == digest


def _digest(content: bytes, size: int) -> bytes:
    return hashlib.blake2b(content + str((len(content), size)).encode(), digest_size=16).digest()


def _write_missing(
    kept: Sequence[Path], scans: Sequence[Aligned], options: ScanOptions, resolution: int | None
) -> dict[Path, DecodedVolume]:
    """Decode what is missing, on all cores: the libraries that unpack, sort and resize let other threads run.

    Returns what is not kept, as it may be read another time, by where it would be.
    """
    tasks = {
        path: (path, scan, options, resolution)
        for path, scan in zip(kept, scans, strict=True)
        if _opened(path) is None
    }
    for library in LIBRARIES:
        with contextlib.suppress(ImportError):  # a sentence says so where it is needed
            importlib.import_module(library)
    with ThreadPoolExecutor(min(_cores(), MOST_THREADS)) as pool:
        results = {path: pool.submit(_write, *task) for path, task in tasks.items()}
        try:
            for result in datasets.utils.tqdm(results.values(), desc="Decoding volumes", unit="volume"):
                result.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {path: unread for path, result in results.items() if (unread := result.result())}


def _cores() -> int:
    """How many cores this process may use, which on a shared machine are not all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, scan: Aligned, options: ScanOptions, resolution: int | None) -> DecodedVolume | None:
    """Decode a volume, or several on one grid, beside its place in the cache and move it there: whole or not at all.

    Returns one that may be read another time, without slices, and keeps nothing of it.
    """
    rows, facts = [], {"flaw": None, "notes": [], "sha256": None, "left_out": {}}
    facts |= {"spacing_mm": None, "extent_mm": None, "oblique": False, "pixel_mm": None}
    try:
        rows, found = _cut(scan, options, resolution)
        facts |= found
    except PassingError as error:
        return DecodedVolume(pa.table({}), facts | {"flaw": str(error)})
    except BadImageError as error:
        rows, facts["flaw"] = [], str(error)
    except OSError as error:  # it could be read a moment ago, for its hash
        raise InputError(
            f"{error.filename} went away while it was read ({error.strerror}): start again."
        ) from None
    fields = {
        "plane": pa.string(),
        "index": pa.int32(),
        "position_mm": pa.float32(),
        "width": pa.int32(),
        "height": pa.int32(),
    }
    fields |= {"brightest": pa.float32(), "picture_hash": pa.binary(), "mirrored_hash": pa.binary()}
    if resolution:
        fields["pixels"] = pa.list_(pa.uint16(), resolution**2)
    schema = pa.schema(fields, metadata={"facts": json.dumps(facts | {"rows": len(rows)})})
    columns = {name: [row[name] for row in rows] for name in fields if name != "pixels"}
    if resolution:
        pixels = np.concatenate([row["pixels"] for row in rows]) if rows else np.zeros(0, np.uint16)
        columns["pixels"] = pa.FixedSizeListArray.from_arrays(pa.array(pixels), resolution**2)
    draft = path.with_suffix(f".{uuid4().hex}.tmp")
    try:
        with pa.OSFile(str(draft), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
            writer.write_table(pa.table(columns, schema=schema))
        _seal(draft, columns["pixels"].values.nbytes if resolution else 0)
        sync(draft)
        os.replace(draft, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
    return None


def _cut(scan: Aligned, options: ScanOptions, resolution: int | None) -> tuple[list[dict], dict]:
    """The rows and facts of `DecodedVolume`. Beside the leader one volume at a time is in memory."""
    volume = scan.files[scan.leader].open(options)
    marks = scan.marks and _open_mask(scan.marks[0], options)
    chosen = slices(volume, mask=marks, **_cutting(options))
    facts = _facts(volume) | {"left_out": chosen.left_out}
    rows, sides = [], []
    for cut in chosen:
        rows.append(_row(cut, resolution, options.fit) | _hashes(cut.image))
        side = {"pad": max, "crop": min}.get(options.fit, max)(cut.image.shape)
        sides.append(cut.spacing_mm * side)
    if not rows:
        facts["notes"].append("has no slice that is asked for")
    if resolution and rows and max(sides) - min(sides) < SAME_MM:
        facts["pixel_mm"] = sides[0] / resolution
    if len(scan.files) == 1:
        return rows, facts
    columns, digests, facts["labels"] = {scan.leader: rows}, {scan.leader: facts["sha256"]}, {}
    for name in [name for name in scan.files if name != scan.leader]:
        cuts, counts = _follow(name, scan.files[name], chosen, options)
        columns[name] = [_row(cut, resolution, options.fit, cuts.resampling) for cut in cuts]
        if counts is not None:
            facts["labels"][name] = counts
        digests[name] = _voxels_sha256(cuts.volume)
        facts["notes"] += cuts.volume.notes
    together = "\n".join(f"{name} {digests[name]}" for name in scan.files)
    facts["volumes"] = sum(not is_mask_name(name) for name in scan.files)
    facts["sha256"] = hashlib.sha256(together.encode()).hexdigest()
    return [
        row for of_slice in zip(*(columns[name] for name in scan.files), strict=True) for row in of_slice
    ], facts


def _follow(
    name: str, file: VolumeFile, chosen: Slices, options: ScanOptions
) -> tuple[Slices, dict[int, int] | None]:
    """Another contrast or a mask cut as the first was; of a mask how many slices show each of its labels.

    Raises `BadImageError` about the volume that it belongs to.
    """
    try:
        if not is_mask_name(name):
            other = file.open(options)
            return chosen.of(other, *black_and_white(other, options.intensity)), None
        mask, labels = labels_of(file.open(replace(options, volume_index=None)))
        cuts = chosen.of_mask(mask, MOST_LABEL)
    except BadImageError as error:
        way_out = ": register them first" if "not on the grid" in str(error) else ""
        raise type(error)(f"has a {name} that {error}{way_out}") from None
    shown = Counter(label for cut in cuts for label in np.unique(np.rint(cut.image * MOST_LABEL)).tolist())
    return cuts, {label: shown[label] for label in labels}


def _open_mask(mask: VolumeFile, options: ScanOptions) -> Volume:
    """Read a mask, which is one volume beside several too. Raises `BadImageError` about the volume that it belongs to."""
    try:
        return mask.open(replace(options, volume_index=None))
    except BadImageError as error:
        raise type(error)(f"has a mask that {error}") from None


def _cutting(options: ScanOptions) -> dict:
    """The options as the names of `slices`."""
    apart = ("volume_index", "assume_orientation")
    return {name: getattr(options, name) for name in CUTTING if name not in apart}


def _facts(volume: Volume) -> dict:
    """What is known of a volume as a whole."""
    spacing = volume.spacing_mm
    directions = np.abs(volume.affine[:3, :3] / spacing)
    return {
        "notes": list(volume.notes),
        "sha256": _voxels_sha256(volume),
        "spacing_mm": [round(mm, 4) for mm in spacing],
        "extent_mm": [round(mm * size, 3) for mm, size in zip(spacing, volume.voxels.shape, strict=True)],
        "oblique": bool(directions.max(axis=0).min() < np.cos(np.radians(1))),  # by more than a degree
    }


def _voxels_sha256(volume: Volume) -> str:
    digest = hashlib.sha256()
    for layer in volume.voxels:  # as a whole they would have to be copied
        digest.update(np.ascontiguousarray(layer))
    digest.update(repr(volume.voxels.shape).encode())
    return digest.hexdigest()


def _row(cut: Slice, resolution: int | None, fit: str, *resampling: Image.Resampling) -> dict:
    """One slice's facts and, if there is a resolution, pixels."""
    place = {"plane": cut.plane, "index": cut.index, "position_mm": cut.position_mm}
    hashes = {"picture_hash": b"", "mirrored_hash": b""}
    return place | hashes | fitted(cut.image, resolution, fit, *resampling)


def _hashes(image: np.ndarray) -> dict[str, bytes]:
    return dict(zip(("picture_hash", "mirrored_hash"), picture_hashes(image), strict=True))
