"""Who goes where: train, validation and test scans, so that no picture and no patient is on two sides.

A group holds all files of one picture (`repeats.py`). A unit holds groups and patients that belong together: all scans of a
patient, and of every patient that shares pictures with one. It never straddles the split. A blank picture, which is of one
value, as a black slice is, says nothing of whose it is: it joins nobody.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from mri_ddpm.errors import InputError

from .layout import PARTS
from .repeats import components, group_near_identical, hashes_of_blanks, near_pairs

SHARED = 0.5  # of the pictures of the smaller of two patients: if as many are near-identical, both are one
ORDER = ("train", "validation", "test")  # a picture of one is a leak in those after it


@dataclass
class ScanRecord:
    """What is known of one scan, and in the end where it goes. Sizes in pixels."""

    path: str
    part: str  # "training", "validation" or "testing"
    class_name: str | None
    sha256: str | None  # of the file; None where it could not be read
    flaw: str | None  # why it cannot be used
    patient: str | None = None  # as the table or the names have it
    contrast: str | None = None
    volume: str | None = None  # hash of the voxels, where it is a slice of a volume
    plane: str | None = None
    index: int | None = None  # along the plane's axis
    position_mm: float | None = None
    width: int = 0
    height: int = 0
    brightest: float = 1.0  # of 0..1, before any resizing
    extent: tuple[str | None, float, float] = (None, 0.0, 1.0)  # see `intensity.Samples`
    group: int | None = None
    unit: int | None = None
    facing: int | None = None  # shared by those of the group that are joined without mirroring
    repeat: str | None = None  # "byte-identical", "near-identical" or "mirrored" to files before it
    split: str = "bad"  # "train", "validation", "test", "repeat", "leak" or "bad"
    paths: dict[str, str] = field(default_factory=dict)  # of its planes, where it has several

    @property
    def complaint(self) -> str:
        """Its path and why it cannot be used, with the path of the plane that is at fault: for the user's eyes alone."""
        name = next((name for name in self.paths if self.flaw.startswith(f"has a {name} ")), None)
        if name is None:
            return f"{self.path} {self.flaw}"
        begin = f"has a {name}"
        return f"{self.path} {begin}, {self.paths[name]},{self.flaw.removeprefix(begin)}"


def group_records(
    records: list[ScanRecord],
    hashes: dict[str, tuple[bytes, bytes]],
    run: Callable = lambda search, *of: search(*of),
) -> list[tuple[str, str]]:
    """Set `group`, `facing` and `unit` of every record without a flaw, in place.

    hashes: {sha256: the `picture_hashes` of the picture and of its mirror image}.
    run: calls a search of `repeats` with its arguments, or remembers what it found.

    Near-identical pictures are of one group. Of a patient's own pictures only byte-identical ones are, for its neighbouring
    slices look alike. Two patients are joined by one byte-identical file that is not blank, or where near-identical pictures are
    half or more of the pictures of one of them. Fewer may be chance. Returns these, as pairs of sha256: they are to be on one
    side, too.
    """
    good = [record for record in records if not record.flaw]
    contents = list(hashes)
    row_of = {sha256: row for row, sha256 in enumerate(contents)}
    rows = np.array([row_of[record.sha256] for record in good])
    blank = np.array([pair in hashes_of_blanks() for pair in hashes.values()])
    owners = _owners(good, rows, blank)
    pictures, mirrored = map(list, zip(*hashes.values(), strict=True))
    if (owners < 0).all():
        facing, groups = run(group_near_identical, pictures, mirrored)
        chance = np.zeros((2, 0), dtype=int)
    else:
        same, across = run(near_pairs, pictures, mirrored, owners)
        sure = [_is_sure(pairs, owners, same, across) for pairs in (same, across)]
        facing = components(same[:, sure[0]], len(contents))
        groups = components(np.concatenate([same[:, sure[0]], across[:, sure[1]]], axis=1), len(contents))
        chance = np.concatenate([same[:, ~sure[0]], across[:, ~sure[1]]], axis=1)
    facing, groups = facing[rows], groups[rows]
    numbers: dict[int, int] = {}  # numbered in the order of the files, so that the manifest reads well
    units = _units(good, groups, blank[rows])
    for record, face, group, unit in zip(good, facing.tolist(), groups.tolist(), units, strict=True):
        record.facing, record.group, record.unit = face, numbers.setdefault(group, len(numbers)), unit
    return [(contents[i], contents[j]) for i, j in chance.T]


def _units(records: list[ScanRecord], groups: np.ndarray, blank: np.ndarray) -> list[int]:
    """What belongs together of each record: the groups that patients join, and the patients that groups of pictures join.

    Blank pictures, bool (records,), are one group, but each goes with its patient alone.
    """
    names = dict.fromkeys(record.patient for record in records if record.patient is not None)
    count = int(groups.max()) + 1
    node = {name: count + number for number, name in enumerate(names)}
    places = [
        node.get(record.patient, group) if alone else group
        for record, group, alone in zip(records, groups.tolist(), blank.tolist(), strict=True)
    ]
    links = [(place, node[r.patient]) for place, r in zip(places, records, strict=True) if r.patient in node]
    return components(np.array(links, dtype=int).reshape(-1, 2).T, count + len(node))[places].tolist()


def _owners(records: list[ScanRecord], rows: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """The patient of each content as a number, int (contents,); a number below 0 of its own where there is none, or several.

    Of a blank content, bool (contents,), nobody is the owner.
    """
    names: dict[int, str | None] = {}
    for record, row in zip(records, rows.tolist(), strict=True):
        if names.setdefault(row, record.patient) != record.patient:
            names[row] = None
    numbers: dict[str, int] = {}
    owners = -1 - np.arange(len(blank))
    for row, name in names.items():
        if name is not None and not blank[row]:
            owners[row] = numbers.setdefault(name, len(numbers))
    return owners


def _is_sure(pairs: np.ndarray, owners: np.ndarray, same: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Which pairs, int (2, pairs), are of pictures of nobody, or of two patients that share enough: bool (pairs,)."""
    sure = (owners[pairs] < 0).any(axis=0)
    if sure.all():
        return sure
    total = np.bincount(owners[owners >= 0])
    both = np.concatenate([same, across], axis=1)
    both = np.concatenate([both, both[::-1]], axis=1)
    both = both[:, (owners[both] >= 0).all(axis=0)]
    # Of every ordered two patients the pictures of the first that the second has as well
    of_two = np.unique(np.stack([*owners[both], both[0]]), axis=1)
    two, shared = np.unique(of_two[:2], axis=1, return_counts=True)
    share = dict(zip(map(tuple, two.T.tolist()), (shared / total[two[0]]).tolist(), strict=True))
    enough = {key for key, value in share.items() if max(value, share[key[::-1]]) >= SHARED}
    return sure | np.array([tuple(two) in enough for two in owners[pairs].T.tolist()], dtype=bool)


def assign_split(
    records: list[ScanRecord],
    validation_share: float,
    keep_repeats: bool,
    seed: int,
    near: Iterable[tuple[str, str]] = (),
) -> None:
    """Set `repeat` and `split` of every record that has a group, in place.

    A scan whose unit or picture is in a part before its own (`PARTS`) is a leak; of the rest of a group the first file
    (by part, then by path) and others of its patient stand for it. The others are repeats, which `keep_repeats` lets
    through where their class is the same, and their unit, as it is of all but blank pictures. A validation part is what
    validates; where there is none, a share of the train part validates. Which units these are depends on contents, classes,
    patients and seed alone, not on names or order.
    near: pairs of contents that do not join their units, but of which no two may be on two sides: the later one is a leak.
    Raises `InputError` if nothing is left for train or validation.
    """
    groups: dict[int, list[ScanRecord]] = defaultdict(list)
    units: dict[int, list[ScanRecord]] = defaultdict(list)
    for record in sorted(records, key=lambda r: (PARTS.index(r.part), r.path)):
        if record.group is not None:
            groups[record.group].append(record)
            units[record.unit].append(record)
    stands = {id(record) for group in groups.values() for record in _mark_repeats(group)}

    has_part = any(record.part == "validation" for record in records)
    held = {
        number: {record.class_name for record in unit if record.part == "training" and id(record) in stands}
        for number, unit in units.items()
    }
    validation = set() if has_part else _validation_units(units, held, validation_share, seed)
    for number, unit in units.items():
        for record in unit:
            first = groups[record.group][0]
            is_like = (record.class_name, record.unit) == (first.class_name, first.unit)
            if not record.part == unit[0].part == first.part:
                record.split = "leak"
            elif id(record) not in stands and not (keep_repeats and is_like):
                record.split = "repeat"
            elif record.part == "training":
                record.split = "validation" if number in validation else "train"
            else:
                record.split = "validation" if record.part == "validation" else "test"
    _mark_leaks(records, near)
    if not any(record.split == "validation" for record in records):
        raise InputError(
            "No scan of the validation part is left, for each is unreadable or in train too: take that part out, and a share"
            " of the train part validates."
        )


def _mark_repeats(group: list[ScanRecord]) -> list[ScanRecord]:
    """Say of each record of a picture, but the first, how it repeats those before it; return those that do not."""
    if len(group) == 1:  # as most are
        return group
    stands = []
    contents: set[str | None] = set()
    facing: set[int | None] = set()
    for record in group:
        own = record.patient is not None and (record.patient, record.part) == (
            group[0].patient,
            group[0].part,
        )
        if record.sha256 in contents:
            record.repeat = "byte-identical"
        elif not contents or own:
            stands.append(record)
        elif record.facing in facing:
            record.repeat = "near-identical"
        else:
            record.repeat = "mirrored"
        contents.add(record.sha256)
        facing.add(record.facing)
    return stands


def _mark_leaks(records: list[ScanRecord], near: Iterable[tuple[str, str]]) -> None:
    """Of two near-identical pictures on two sides, the later one is a leak."""
    near = list(near)
    used: dict[str | None, list[ScanRecord]] = {sha256: [] for pair in near for sha256 in pair}
    for record in records:
        if record.sha256 in used and record.split in ORDER:
            used[record.sha256].append(record)
    for pair in near:
        there = [record for sha256 in pair for record in used[sha256] if record.split in ORDER]
        first = min((ORDER.index(record.split) for record in there), default=0)
        for record in there:
            if ORDER.index(record.split) > first:
                record.split, record.repeat = "leak", "near-identical"


def _validation_units(
    units: dict[int, list[ScanRecord]], held: dict[int, set[str | None]], validation_share: float, seed: int
) -> set[int]:
    """The units for validation: of every class the share asked for, at least one where a class has two.

    held: the classes of which a unit brings scans to the train part. None is taken that is the last to hold one.
    """
    by_class: dict[str | None, list[int]] = defaultdict(list)
    for number in filter(held.get, units):
        by_class[units[number][0].class_name].append(number)
    left = Counter(name for names in held.values() for name in names)
    validation: set[int] = set()
    for numbers in by_class.values():
        # A lot drawn from seed and content stays the same when files are renamed, moved or packed.
        numbers.sort(key=lambda n: _lot(seed, min(record.sha256 for record in units[n])))
        count = min(max(round(validation_share * len(numbers)), 1), len(numbers) - 1)
        for number in numbers:
            if count > 0 and all(left[name] > 1 for name in held[number]):
                left.subtract(held[number])
                validation.add(number)
                count -= 1
    if not validation:
        total = len(by_class)  # one of each, or else
        if any(len(numbers) > 1 for numbers in by_class.values()):
            raise InputError(
                "No patient can be spared for validation, as each is the last with some class: give scans of more patients, or"
                " leave classes out by --label_column ''."
            )
        if any(record.patient is not None for unit in units.values() for record in unit):
            raise InputError(
                f"{total} patient(s), one a class, are too few to split off a validation share: give scans of at least two patients"
                " of one class, tell patients apart by --patient_pattern or metadata.csv, or leave classes out by --label_column ''."
            )
        raise InputError(
            f"{total} distinct training scan(s), one a class, are too few to split off a validation share:"
            " give at least two of one class."
        )
    return validation


def _lot(seed: int, content: str) -> bytes:
    return hashlib.sha256(f"{seed}:{content}".encode()).digest()
