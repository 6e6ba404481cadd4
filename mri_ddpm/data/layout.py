"""What the folders that files lie in mean: parts and classes.

A file's class is the folder it lies in, its part "training" or "testing" (the published layout
`Training/CLASS/*` + `Testing/CLASS/*`; everything is training where there are no such folders).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

PARTS = {"training": "training", "train": "training", "testing": "testing", "test": "testing"}


@dataclass(frozen=True)
class ScanFile:
    """One file of a source, not yet read. `read` returns its bytes or raises `BadImageError` or `OSError`."""

    path: str  # relative to the source, with forward slashes
    part: str  # "training" or "testing"
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
    """Give every file its part and class by the folders it lies in; see the module's docstring."""
    readers = dict(sorted(readers.items(), key=lambda item: str(item[0])))
    top = _enclosing_folder([path.parts[:-1] for path in readers], may_be_class=may_be_class)
    inner = {path: path.parts[len(top) :] for path in readers}
    has_parts = any(len(parts) > 1 and parts[0].lower() in PARTS for parts in inner.values())
    depth = 1 if has_parts else 0  # how deep the class folders lie
    has_classes = any(len(parts) > depth + 1 for parts in inner.values())
    files = []
    for path, parts in inner.items():
        part = PARTS.get(parts[0].lower()) if has_parts and len(parts) > 1 else None
        class_name = parts[depth] if len(parts) > depth + 1 else None
        flaw = None
        if has_parts and part is None:
            flaw = "lies outside the training and testing folders"
        elif has_classes and class_name is None:
            flaw = "lies outside the class folders"
        files.append(ScanFile("/".join(parts), part or "training", class_name, readers[path], flaw))
    return tuple(files), ()


def _enclosing_folder(folders: list[tuple[str, ...]], may_be_class: bool) -> tuple[str, ...]:
    """The folders that enclose everything and mean nothing, as a packed or cloned data set often has them.

    A single folder with files directly in it is a class in a folder, and an enclosing folder in a .zip.
    """
    top: tuple[str, ...] = ()
    while len({folder[: len(top) + 1] for folder in folders}) == 1:
        shortest = min(map(len, folders))
        if shortest <= len(top) + may_be_class or folders[0][len(top)].lower() in PARTS:
            break
        top = folders[0][: len(top) + 1]
    return top
