"""Who goes where: training, validation and test scans, so that no picture is on two sides.

A group holds all files of one picture (`repeats.py`). It never straddles the split.
"""

import hashlib
from collections import defaultdict
from dataclasses import dataclass

from mri_ddpm.errors import InputError

from .layout import PARTS


@dataclass
class ScanRecord:
    """What is known of one file, and in the end where it goes. Sizes in pixels."""

    path: str
    part: str  # "training", "validation" or "testing"
    class_name: str | None
    sha256: str | None  # of the file; None where it could not be read
    flaw: str | None  # why it cannot be used
    width: int = 0
    height: int = 0
    brightest: float = 1.0  # of 0..1, before any resizing
    extent: tuple[str | None, float, float] = (None, 0.0, 1.0)  # see `intensity.Samples`
    group: int | None = None
    facing: int | None = None  # shared by those of the group that are joined without mirroring
    repeat: str | None = None  # "byte-identical", "near-identical" or "mirrored" to files before it
    split: str = "bad"  # "train", "validation", "test", "repeat", "leak" or "bad"


def assign_split(records: list[ScanRecord], validation_share: float, keep_repeats: bool, seed: int) -> None:
    """Set `repeat` and `split` of every record that has a group, in place.

    A scan whose picture is in a part before its own (`PARTS`) is a leak; of the rest of a group the first file
    (by part, then by path) stands for it and the others are repeats, which `keep_repeats` lets through where
    their class is the same. A validation part is what validates; where there is none, a share of the training
    part validates. Which groups these are depends on contents, classes and seed alone, not on names or order.
    Raises `InputError` if nothing is left for training or validation.
    """
    groups: dict[int, list[ScanRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (PARTS.index(r.part), r.path)):
        if record.group is not None:
            groups[record.group].append(record)
    for group in groups.values():
        _mark_repeats(group)

    has_part = any(record.part == "validation" for record in records)
    validation = set() if has_part else _validation_groups(groups, validation_share, seed)
    for number, group in groups.items():
        first = group[0]
        for record in group:
            if record.part != first.part:
                record.split = "leak"
            elif record is not first and not (keep_repeats and record.class_name == first.class_name):
                record.split = "repeat"
            elif record.part == "training":
                record.split = "validation" if number in validation else "train"
            else:
                record.split = "validation" if record.part == "validation" else "test"
    if not any(record.split == "validation" for record in records):
        raise InputError(
            "No scan of the validation part is left, for each is unreadable or in training too: take that part out, and a share"
            " of the training part validates."
        )


def _mark_repeats(group: list[ScanRecord]) -> None:
    contents: set[str | None] = set()
    facing: set[int | None] = set()
    for record in group:
        if record.sha256 in contents:
            record.repeat = "byte-identical"
        elif record.facing in facing:
            record.repeat = "near-identical"
        elif contents:
            record.repeat = "mirrored"
        contents.add(record.sha256)
        facing.add(record.facing)


def _validation_groups(groups: dict[int, list[ScanRecord]], validation_share: float, seed: int) -> set[int]:
    """The groups for validation: of every class the share asked for, at least one where a class has two."""
    by_class: dict[str | None, list[int]] = defaultdict(list)
    for number, group in groups.items():
        if group[0].part == "training":
            by_class[group[0].class_name].append(number)
    validation: set[int] = set()
    for numbers in by_class.values():
        # A lot drawn from seed and content stays the same when files are renamed, moved or packed.
        numbers.sort(key=lambda n: _lot(seed, min(record.sha256 for record in groups[n])))
        count = min(max(round(validation_share * len(numbers)), 1), len(numbers) - 1)
        validation.update(numbers[:count])
    if not validation:
        total = len(by_class)  # one of each
        raise InputError(
            f"{total} distinct training scan(s), one a class, are too few to split off a validation share:"
            " give at least two of one class."
        )
    return validation


def _lot(seed: int, content: str) -> bytes:
    return hashlib.sha256(f"{seed}:{content}".encode()).digest()
