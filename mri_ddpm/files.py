"""Files that are whole or not there: JSON, lines of JSON, folders; and what the system has against writing them."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from mri_ddpm.errors import InputError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, renamed when whole, so that a reader never finds half of a file."""
    unfinished = hidden(path, "unfinished")
    try:
        yield unfinished
        sync(unfinished)
        os.replace(unfinished, path)
        sync(path.parent)
    except Exception:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: dict) -> None:
    """Write JSON, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_json_lines(path: Path, rows: list[dict]) -> None:
    """Write one row a line, whole or not at all."""
    with whole_file(path) as unfinished:
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        InputError: when the file holds anything else.
    """
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{path} holds no JSON object ({error}); mend it or move it away.") from error


def read_json_lines(path: Path) -> list[dict]:
    """Read one row a line; a last line that a kill cut short is left out. No file, no rows.

    Raises:
        InputError: when a whole line holds anything but a row.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        return [dict(json.loads(line)) for line in lines[:-1]]  # a whole line ends in a newline
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} does not hold a JSON object a line ({error}); mend it or move it away."
        ) from error


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, which takes the target's place when whole; when writing fails it goes."""
    unfinished = hidden(target, "unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a kill
    try:
        yield unfinished
        replace_folder(unfinished, target)
    except Exception:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def replace_folder(new: Path, target: Path) -> None:
    """Put a finished folder in place of another, which is moved out of the way first and then deleted."""
    for folder, _, names in os.walk(new):
        sync(*(Path(folder, name) for name in names), Path(folder))
    old = hidden(target, "old")
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.replace(target, old)
    os.replace(new, target)
    sync(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Delete a folder under a hidden name, so that half of it never looks like the whole."""
    old = hidden(folder, "old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(folder, old)
    shutil.rmtree(old)


def hidden(path: Path, state: str) -> Path:
    """The name beside ``path`` that a part of it bears: ``.step-000010.unfinished``."""
    return path.with_name(f".{path.name}.{state}")


def sync(*paths: Path) -> None:
    """Bring files, or the names in folders, from memory to the disk: a machine that loses power keeps nothing else."""
    if os.name != "posix":
        return  # folders cannot be opened there
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # some mounted drives cannot
                raise
        finally:
            os.close(descriptor)


TORCH_WRITER = ("inline_container", "PytorchStreamWriter", "Parent directory")  # in the errors of torch.save


@contextmanager
def writing_to(folder: Path, way_out: str, flag: str = "") -> Iterator[None]:
    """Say in one sentence what the system has against writing into a folder, and the way out.

    Raises:
        InputError: in place of the system's error, of safetensors' and of torch's, which is a bare ``RuntimeError``.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and not any(words in str(error) for words in TORCH_WRITER):
            raise
        raise InputError(f"{flag}{folder} cannot be written: {reason(error, folder)}; {way_out}") from error


def reason(error: Exception, folder: Path) -> str:
    """The system's words for why writing failed; where a library hides them, a file of 1 MiB is tried."""
    try:
        if not isinstance(error, OSError):
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".trial-") as trial:
                trial.write(bytes(2**20))
                trial.flush()
    except OSError as of_system:
        error = of_system
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    path = getattr(error, "filename", None)
    return f"{words} ({path})" if path and str(path) != str(folder) else words
