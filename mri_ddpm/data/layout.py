"""What the names of files and folders mean: parts, classes, patients and masks; and what was found, in words.

A file's class is the folder it lies in, its part "training", "validation" or "testing": `Training/CLASS/*` beside
`Testing/CLASS/*`, or `CLASS/train/*` beside `CLASS/val/*`. Without such folders everything is training.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath

PARTS = ("training", "validation", "testing")  # a picture of one is a leak in those after it
_PART_OF = {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}
_PART_OF |= {part: part for part in PARTS}
_PLAIN = {"image", "images", "img", "imgs", "scan", "scans", "slice", "slices", "data", "dataset", "set"}
_MASKS = {"mask", "masks", "seg", "segmentation", "segmentations"}
_PATIENT = re.compile(r"(patient|pat|pt|case|subject|subj|sub|id)[ _-]?\d+.*", re.IGNORECASE)


@dataclass(frozen=True)
class ScanFile:
    """One file of a source, not yet read. `read` returns its bytes or raises `BadImageError` or `OSError`."""

    path: str  # relative to the source, with forward slashes
    part: str  # of PARTS
    class_name: str | None
    read: Callable[[], bytes]
    flaw: str | None = None  # why it cannot be used, where its place already says so


@dataclass(frozen=True)
class Finding:
    """What was found, or left out and why, in words; `path` names examples, and with them perhaps patients."""

    words: str
    path: str | None = None


def arrange(
    readers: dict[PurePosixPath, Callable[[], bytes]], may_be_class: bool
) -> tuple[tuple[ScanFile, ...], tuple[Finding, ...]]:
    """Give every file its part and class by the folders it lies in, leave out masks, and say what was found.

    may_be_class: whether a single folder is a class, and not one that encloses all.
    """
    masks = sorted(filter(_is_mask, readers), key=str)
    paths = sorted(readers.keys() - set(masks), key=str)
    top = _enclosing_folder([path.parts[:-1] for path in paths], may_be_class)
    inner = {path: path.parts[len(top) :] for path in paths}
    depth = _depth_of_parts([names[:-1] for names in inner.values()])
    places = {path: _place(names[:-1], depth) for path, names in inner.items()}
    folders = {name for _, name in places.values() if name}
    class_names = set() if named_like_patients(folders) else folders
    files = []
    for path, (part_folder, class_name) in places.items():
        flaw = None
        if depth is not None and part_folder is None:
            flaw = "lies outside the training, validation and testing folders"
        elif class_names and class_name is None:
            flaw = "lies outside the class folders"
        part = part_of(part_folder) if part_folder else "training"
        class_name = class_name if class_names else None
        files.append(ScanFile("/".join(inner[path]), part, class_name, readers[path], flaw))
    counts = Counter(f"{part_folder}/" for part_folder, _ in places.values() if part_folder)
    findings = [*parts_found(counts), classes_found(folders, "folders")]
    if masks:
        findings.append(
            Finding(f"left out: {len(masks)} mask{'s' * (len(masks) > 1)}, by name", str(masks[0]))
        )
    return tuple(files), tuple(findings)


def part_of(name: str) -> str | None:
    """The part that a folder or a split is named after, as `Training`, `val`, `train_images` or `val2017`; else None."""
    telling = set(_words(name)) - _PLAIN
    return _PART_OF.get(telling.pop()) if len(telling) == 1 else None


def named_like_patients(names: Collection[str]) -> bool:
    """Whether all are like `case 7`, or each has a number of its own of three digits or more."""
    if all(_PATIENT.fullmatch(name) for name in names):
        return bool(names)
    numbers = {tuple(re.findall(r"\d+", name)) for name in names}
    return len(numbers) == len(names) and all(re.search(r"\d{3}", name) for name in names)


def parts_found(counts: dict[str, int]) -> list[Finding]:
    """What to say of the parts, given as {name of a folder or split: number of files}."""
    if not counts:
        return [Finding("parts: none, all files are for training")]
    names = sorted(counts, key=lambda name: PARTS.index(part_of(name)))
    findings = [Finding("parts: " + ", ".join(f"{counts[name]} in {name}" for name in names))]
    if given := [name for name in names if part_of(name) == "validation"]:
        findings.append(Finding(f"validation is by {', '.join(given)}, and --validation_share is not used"))
    return findings


def classes_found(names: Collection[str], kind: str) -> Finding:
    """What to say of the classes, or of names that are none; `kind` says what bears the names."""
    if not named_like_patients(names):
        return Finding(f"classes: {len(names)} {kind}" if names else "classes: none")
    words = f"classes: none, for all {len(names)} {kind} are named like patients"
    return Finding(f"{words}, whose scans may be in both training and validation", min(names))


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+", name.casefold())


def _is_mask(path: PurePosixPath) -> bool:
    """A segmentation: the last word of its name says so, as in `7_mask.png`, or a folder of it, as `train_masks`."""
    folders = (set(_words(folder)) - _PLAIN - _PART_OF.keys() for folder in path.parts[:-1])
    return not _MASKS.isdisjoint(_words(path.stem)[-1:]) or any(
        words and words <= _MASKS for words in folders
    )


def _depth_of_parts(folders: list[tuple[str, ...]]) -> int | None:
    """How deep the folders of parts lie: 0 outside the classes, 1 within them; None where there are none."""
    return next(
        (i for i in (0, 1) if any(part_of(name) for names in folders for name in names[i : i + 1])), None
    )


def _place(folders: tuple[str, ...], depth: int | None) -> tuple[str | None, str | None]:
    """The folder of a file's part and that of its class; a folder that is called images says nothing."""
    part = None
    if depth is not None and len(folders) > depth and part_of(folders[depth]):
        part, folders = folders[depth], folders[:depth] + folders[depth + 1 :]
    return part, next((name for name in folders if name.casefold() not in _PLAIN), None)


def _enclosing_folder(folders: list[tuple[str, ...]], may_be_class: bool) -> tuple[str, ...]:
    """The folders that enclose everything and mean nothing, as a packed or cloned data set often has them.

    A single folder with files directly in it is a class in a folder, and an enclosing folder in a .zip.
    """
    top: tuple[str, ...] = ()
    while folders and len({folder[: len(top) + 1] for folder in folders}) == 1:
        shortest = min(map(len, folders))
        if shortest <= len(top) + may_be_class or part_of(folders[0][len(top)]):
            break
        top = folders[0][: len(top) + 1]
    return top
