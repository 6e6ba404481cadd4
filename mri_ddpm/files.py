"""Files that are whole or not there: JSON, lines of JSON, folders."""

import json
import os
import shutil
from pathlib import Path


def write_json(path: Path, value: dict) -> None:
    """Write JSON under a temporary name and rename it, so that a reader never finds half of it."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(value, indent=2) + "\n")
    os.replace(unfinished, path)


def write_json_lines(path: Path, rows: list[dict]) -> None:
    """Write one row a line, whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.replace(unfinished, path)


def read_json_lines(path: Path) -> list[dict]:
    """Read one row a line; a last line that a kill cut short is left out. No file, no rows."""
    lines = path.read_text().split("\n") if path.exists() else [""]
    return [json.loads(line) for line in lines[:-1]]  # a whole line ends in a newline


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in place of another, which is moved out of the way first and then deleted."""
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        os.replace(target, old)
    os.replace(new, target)
    shutil.rmtree(old, ignore_errors=True)
