"""What the names of files and folders mean: parts, classes, patients and masks; and what was found, in words.

A file's class is the folder it lies in, its part "training", "validation" or "testing" (the published layout
`Training/CLASS/*` + `Testing/CLASS/*`, or `CLASS/train/*` + ...; everything is training where there are no such folders).
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

PARTS = ("training", "validation", "testing")  # a picture of one is a leak in those after it
_PART_OF = {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}
_PART_OF |= {part: part for part in PARTS}
_PLAIN = {
    "image",
    "images",
    "img",
    "imgs",
    "scan",
    "scans",
    "slice",
    "slices",
    "data",
    "dataset",
    "set",
    "split",
}
_MASK = re.compile(r".*[ _.-]masks?([ _-]?\d+)?", re.IGNORECASE)  # `..._mask`, `..._mask_1`
_PATIENT = re.compile(r"(patient|pat|pt|case|subject|subj|sub|id)[ _-]?\d+.*", re.IGNORECASE)
_NUMBERED = re.compile(r".*\d{3}.*")


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


def part_of(name: str) -> str | None:
    """The part that a folder or a split is named after, as `Training`, `val` or `train_images`; else None."""
    words = re.findall(r"[^\W_]+", name.casefold())
    named = [word for word in words if word in _PART_OF]
    return (
        _PART_OF[named[0]] if len(named) == 1 and all(w in _PLAIN for w in words if w != named[0]) else None
    )


def arrange(
    readers: dict[PurePosixPath, Callable[[], bytes]], may_be_class: bool
) -> tuple[tuple[ScanFile, ...], tuple[Finding, ...]]:
    """Give every file its part and class by the folders it lies in, leave out masks, and say what was found.

    may_be_class: whether a single folder is a class, and not one that encloses all.
    """
    masks = sorted(map(str, filter(_is_mask, readers)))
    readers = {
        path: read for path, read in sorted(readers.items(), key=lambda i: str(i[0])) if not _is_mask(path)
    }
    top = _enclosing_folder([path.parts[:-1] for path in readers], may_be_class)
    inner = {path: path.parts[len(top) :] for path in readers}
    depth = _depth_of_parts([parts[:-1] for parts in inner.values()])
    places = {
        path: _place(parts[:-1], depth) for path, parts in inner.items()
    }  # folder of the part, of the class
    folders = sorted({folder for _, folder in places.values() if folder is not None})
    patients = _are_patients(folders)
    files = []
    for path, (part_folder, class_name) in places.items():
        flaw = None
        if depth is not None and part_folder is None:
            flaw = "lies outside the training and testing folders"
        elif folders and class_name is None and not patients:
            flaw = "lies outside the class folders"
        part = part_of(part_folder) if part_folder else "training"
        files.append(
            ScanFile("/".join(inner[path]), part, None if patients else class_name, readers[path], flaw)
        )
    found = Counter(folder for folder, _ in places.values() if folder)
    return tuple(files), (
        *parts_found({f"{folder}/": count for folder, count in found.items()}),
        *_classes_found(folders, patients),
        *([Finding(f"left out: {len(masks)} masks, by their names", masks[0])] if masks else []),
    )


def parts_found(counts: dict[str, int]) -> list[Finding]:
    """What was found by the parts, {folder or split: number of files}."""
    if not counts:
        return [Finding("no folders of parts: all files are for training")]
    counts = dict(sorted(counts.items(), key=lambda item: PARTS.index(part_of(item[0]))))
    found = [Finding("parts: " + ", ".join(f"{count} in {name}" for name, count in counts.items()))]
    if given := [name for name in counts if part_of(name) == "validation"]:
        found.append(Finding(f"validation is by {', '.join(given)}, and --validation_share is not used"))
    return found


def _classes_found(folders: list[str], patients: bool) -> list[Finding]:
    if patients:
        return [
            Finding(
                f"{len(folders)} folders are named like patients and not like classes: no classes; a patient's scans may be in"
                " both training and validation",
                folders[0],
            )
        ]
    return [Finding(f"{len(folders)} class folders" if folders else "no class folders: no classes")]


def _is_mask(path: PurePosixPath) -> bool:
    """A segmentation, which shows where something is: it is named so, or its folder is."""
    return bool(_MASK.fullmatch(path.stem)) or any(f.casefold() in ("mask", "masks") for f in path.parts[:-1])


def _depth_of_parts(folders: list[tuple[str, ...]]) -> int | None:
    """How deep the folders of parts lie: outside the classes, or within every one; None where there are none."""
    if any(part_of(names[0]) for names in folders if names):
        return 0
    return 1 if folders and all(len(names) > 1 and part_of(names[1]) for names in folders) else None


def _place(folders: tuple[str, ...], depth: int | None) -> tuple[str | None, str | None]:
    """The folder of a file's part and that of its class; a folder that is called images says nothing."""
    part = None
    if depth is not None and len(folders) > depth and part_of(folders[depth]):
        part, folders = folders[depth], folders[:depth] + folders[depth + 1 :]
    return part, next((name for name in folders if name.casefold() not in _PLAIN), None)


def _are_patients(folders: list[str]) -> bool:
    """Whether folders are named like patients: `case 7`, or each with a number of its own of three digits or more."""
    numbers = {tuple(re.findall(r"\d+", name)) for name in folders}
    return bool(folders) and (
        all(_PATIENT.fullmatch(name) for name in folders)
        or (len(numbers) == len(folders) and all(_NUMBERED.fullmatch(name) for name in folders))
    )


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
