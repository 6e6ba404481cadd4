"""Scans decoded once: an Arrow file with one row for every distinct content, named by what it holds.

The key is the set of contents with resolution, fit and version, so renaming, moving or packing the files
finds it again, and a changed file does not. U: number of distinct contents.
"""

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock

from mri_ddpm.errors import InputError
from mri_ddpm.files import sync, whole_file

from .intensity import USUAL_SCALE, Scale, common_scale, from_samples
from .reading.decoding import read_picture
from .reading.labels import NEAREST, read_labels
from .reading.pictures import BadImageError, PassingError, fit_square
from .repeats import picture_hashes

CACHE_VERSION = 6  # raise it when reading, fitting or hashing changes
DEPTH = 65535  # pixels are kept as uint16: 16-bit scans keep their depth at half the size of float32
ROWS_PER_BATCH = 256
FEW = 5000  # pictures, of which near-identical ones are found faster than a file is read
KEEP_DAYS = 90  # that nobody has used a table for
OURS = re.compile(r"[0-9a-f]{32}(\.[0-9a-f]{32}\.tmp|\.arrow|\.lock|\.npz)|index\.sqlite")


def decoded(
    contents: dict[str, Callable[[], bytes]],
    resolution: int | None,
    fit: str,
    cache_dir: str | None,
    are_masks: bool = False,
) -> datasets.Dataset:
    """The memory-mapped table of all contents (sha256 -> reader), decoded now unless the cache has it whole.

    Of processes that ask for it at once one decodes, and the others wait for its file however long that takes: a
    collective, in which they could wait too, gives up after minutes.

    U rows, sorted by sha256. Columns: sha256, flaw (None if usable), passes (whether the flaw is tried again at the next start),
    width, height (pixels), brightest (0..1), kind, lowest, highest (`Samples.extent`), picture_hash, mirrored_hash (bytes, the
    latter of the mirror image) and, unless `resolution` is None, pixels: uint16 (resolution**2,), 0..65535, zeros for a flaw.
    Masks have no hashes; their pixels are the numbers of their labels, and `labels` says which they hold, without 0.
    Raises `InputError` if the cache folder cannot be written.
    """
    folder = cache_folder(cache_dir)
    kind = f"{CACHE_VERSION} {resolution} {fit if resolution else ''}{' masks' * are_masks}"
    identity = "\n".join([kind, *sorted(contents)])
    file = folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.arrow"
    features, row_of = _features(resolution, are_masks), _mask_row if are_masks else _row
    if (table := _newest_table(file, contents, features, row_of)) is not None:
        return table
    lock = file.with_suffix(".lock")
    with writing_cache(folder), FileLock(lock):  # of a process that dies the system lets go
        if _newest_table(file, contents, features, row_of) is None:
            _write(file, features, contents, row_of, resolution, fit)
        with contextlib.suppress(OSError):  # who waits for it finds the table, whoever holds the next one
            lock.unlink()
    return datasets.Dataset.from_file(str(file))


def cache_folder(cache_dir: str | None) -> Path:
    """Where decoded scans are kept."""
    return Path(cache_dir).expanduser() if cache_dir else Path(datasets.config.HF_DATASETS_CACHE, "mri_ddpm")


@contextlib.contextmanager
def writing_cache(folder: Path) -> Iterator[None]:
    """Make the cache folder, delete what is old, and say in one sentence what is against writing there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_old(folder)
        yield
    except (OSError, NotImplementedError) as error:  # the latter of a drive without locks
        raise InputError(
            f"The cache folder {folder} cannot be written ({getattr(error, 'strerror', None) or error}):"
            " name another by --cache_dir."
        ) from None


def _newest_table(
    file: Path, contents: dict[str, Callable[[], bytes]], features: datasets.Features, row_of: Callable
) -> datasets.Dataset | None:
    """The table in the cache; None where there is none, or one that lacks what can be read by now."""
    table = _whole_table(file, contents, features)
    if table is None:
        return None
    unread = (sha256 for sha256, passes in zip(table["sha256"], table["passes"], strict=True) if passes)
    return table if all(_fails_again(contents[sha256], row_of) for sha256 in unread) else None


def _fails_again(read: Callable[[], bytes], row_of: Callable) -> bool:
    """Whether what was against reading a content is still there."""
    with contextlib.suppress(BadImageError):
        try:
            row_of(read(), None, "pad", USUAL_SCALE)
        except (PassingError, OSError):
            return True
    return False


def _whole_table(file: Path, contents: Iterable[str], features: datasets.Features) -> datasets.Dataset | None:
    """The table in the cache; None where there is none, or it is damaged or of other contents."""
    if not file.is_file():
        return None
    with contextlib.suppress(Exception):  # a damaged table makes its reader raise nearly anything
        table = datasets.Dataset.from_file(str(file))
        table.data.validate(full=True)  # or a damaged one may crash, where it is read
        found, wanted = table.data.schema, features.arrow_schema
        if found.names != wanted.names or found.types != wanted.types:
            return None
        if list(table["sha256"]) == sorted(contents):
            with contextlib.suppress(OSError):  # another's file
                os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
            return table
    return None


def kept(
    search: Callable, hashes: list[bytes], mirrored: list[bytes], *owners: np.ndarray, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """What a search of `repeats` finds among pictures, two arrays, looked for once for the same pictures and owners."""
    if len(hashes) < FEW:
        return search(hashes, mirrored, *owners)
    of_owners = [row.astype(np.int64).tobytes() for row in owners]
    digest = hashlib.sha256(b"".join([b"1 ", search.__name__.encode(), *hashes, *mirrored, *of_owners]))
    file = folder / f"{digest.hexdigest()[:32]}.npz"
    with contextlib.suppress(Exception), np.load(file) as there:  # a damaged file raises nearly anything
        return there["first"], there["second"]
    first, second = search(hashes, mirrored, *owners)
    with writing_cache(folder), whole_file(file) as unfinished, unfinished.open("wb") as out:
        np.savez(out, first=first, second=second)
    return first, second


def prune_cache(cache_dir: str | None) -> tuple[int, int]:
    """Delete all that the cache holds of ours. Returns how many files that was, and their bytes.

    Raises `InputError` for a folder that cannot be written.
    """
    count = size = 0
    folder = cache_folder(cache_dir)
    with writing_cache(folder):
        for file in folder.iterdir():
            if OURS.fullmatch(file.name):
                count, size = count + 1, size + file.stat().st_size
                file.unlink()
    return count, size


def _remove_old(folder: Path) -> None:
    """Delete tables, and drafts of killed processes, that have not been used for long."""
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process deletes it, or it is another's
            used = max(file.stat().st_atime, file.stat().st_mtime)
            if OURS.fullmatch(file.name) and time.time() - used > KEEP_DAYS * 86400:
                file.unlink()


def _features(resolution: int | None, are_masks: bool) -> datasets.Features:
    """The columns of a table."""
    features = {
        "sha256": datasets.Value("string"),
        "flaw": datasets.Value("string"),
        "passes": datasets.Value("bool"),
        "width": datasets.Value("int32"),
        "height": datasets.Value("int32"),
        "brightest": datasets.Value("float32"),
        "kind": datasets.Value("string"),
        "lowest": datasets.Value("float64"),
        "highest": datasets.Value("float64"),
        "picture_hash": datasets.Value("binary"),
        "mirrored_hash": datasets.Value("binary"),
    }
    if are_masks:
        features["labels"] = datasets.Sequence(datasets.Value("int32"))
    if resolution:
        features["pixels"] = datasets.Sequence(datasets.Value("uint16"), length=resolution**2)
    return datasets.Features(features)


def _write(
    file: Path,
    features: datasets.Features,
    contents: dict[str, Callable[[], bytes]],
    row_of: Callable[..., dict],
    resolution: int | None,
    fit: str,
) -> None:
    """Write beside the goal and move it there: whole or not at all, and two processes at once do no harm."""
    draft = str(file.with_suffix(f".{uuid4().hex}.tmp"))
    rest = row_of, resolution, fit
    try:
        scale = _write_draft(draft, features, contents, *rest, USUAL_SCALE)
        if scale != USUAL_SCALE:  # as is known only now
            _write_draft(draft, features, contents, *rest, scale)
        sync(Path(draft))
        os.replace(draft, file)
        sync(file.parent)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(draft)


def _write_draft(
    draft: str,
    features: datasets.Features,
    contents: dict[str, Callable[[], bytes]],
    row_of: Callable[..., dict],
    resolution: int | None,
    fit: str,
    scale: Scale,
) -> Scale:
    """Decode all contents on a scale, and return the one that they ask for."""
    extents = set()
    empty = {"flaw": None, "passes": False, "width": 0, "height": 0, "brightest": 0.0}
    empty |= {"picture_hash": b"", "mirrored_hash": b"", "kind": None, "lowest": 0.0, "highest": 0.0}
    empty |= {"labels": []} if "labels" in features else {}
    empty |= {"pixels": np.zeros(resolution**2, dtype=np.uint16)} if resolution else {}
    with ArrowWriter(path=draft, features=features, writer_batch_size=ROWS_PER_BATCH) as writer:
        for sha256 in datasets.utils.tqdm(sorted(contents), desc="Decoding scans", unit="scan"):
            try:
                found = row_of(contents[sha256](), resolution, fit, scale)
            except BadImageError as error:
                found = {"flaw": str(error), "passes": isinstance(error, PassingError)}
            except OSError as error:  # it could be read a moment ago, for its sha256
                raise InputError(
                    f"{error.filename} went away while it was read ({error.strerror}): start again."
                ) from None
            row = empty | found
            extents.add((row["kind"], row["lowest"], row["highest"]))
            writer.write({"sha256": sha256, **row})
        writer.finalize()
    return common_scale(extents)


def _row(content: bytes, resolution: int | None, fit: str, scale: Scale) -> dict:
    """A picture's facts and, if there is a resolution, pixels."""
    samples = read_picture(content)
    unit = np.clip(from_samples(samples, scale), 0, 1)
    row = fitted(unit, resolution, fit)
    row["picture_hash"], row["mirrored_hash"] = picture_hashes(unit)
    row["kind"], row["lowest"], row["highest"] = samples.extent
    return row


def _mask_row(content: bytes, resolution: int | None, fit: str, scale: Scale) -> dict:
    """The same of a mask, without hashes; nothing is interpolated."""
    labels = read_labels(content)
    row = fitted(labels / np.float32(DEPTH), resolution, fit, NEAREST)
    row["labels"] = np.unique(labels[labels > 0]).astype(int).tolist()
    return row


def fitted(unit: np.ndarray, resolution: int | None, fit: str, *resampling: int) -> dict:
    """What is known of any image (H, W) in [0, 1], and its pixels, if there is a resolution."""
    height, width = unit.shape
    row = {"height": height, "width": width, "brightest": float(unit.max())}
    if resolution:
        square = fit_square(unit, resolution, fit, *resampling)
        row["pixels"] = np.round(square * DEPTH).astype(np.uint16).reshape(-1)
    return row
