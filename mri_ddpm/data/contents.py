"""Files as they lie: in a folder, in a .zip, in a cell of a Hub data set. Each is read where it is asked for, in any process."""

import contextlib
import os
import unicodedata
import zipfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import datasets

from mri_ddpm.errors import InputError

from .reading.pictures import BadImageError, failed

MAX_IMAGE_BYTES = 2**29  # a zip member of a few kilobytes can claim to unpack to terabytes
MAX_VOLUME_BYTES = 2**32
HEAD_BYTES = 4096  # that tell what a file is
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class StoredFile:
    """A file of a folder."""

    path: Path

    def read(self, most_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """All of it. Raises `BadImageError` for more bytes, and `OSError`."""
        if self.path.stat().st_size > most_bytes:
            raise BadImageError(f"is larger than {most_bytes // 2**20} MiB")
        return self.path.read_bytes()

    def head(self) -> bytes:
        """Its first bytes. Raises `OSError`."""
        with self.path.open("rb") as file:
            return file.read(HEAD_BYTES)

    def stamp(self) -> str:
        """What is another as soon as the file is written anew. Raises `OSError`."""
        status = self.path.stat()
        return f"{self.path.absolute()} {status.st_ino} {status.st_size} {status.st_mtime_ns}"


@dataclass(frozen=True)
class ZipMember:
    """A member of a .zip, read straight from the archive; nothing is unpacked, so its name can lead nowhere."""

    archive: Path
    position: int  # in the list of members, for two can have one name

    def read(self, most_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """All of it. Raises `BadImageError` for more bytes, and where it cannot be unpacked."""
        if self._member.file_size > most_bytes:
            raise BadImageError(f"unpacks to more than {most_bytes // 2**20} MiB")
        return self._read(None)

    def head(self) -> bytes:
        """Its first bytes; raises as `read`."""
        return self._read(HEAD_BYTES)

    def stamp(self) -> str:
        """What is another as soon as the archive is written anew. Raises `OSError`."""
        return f"{StoredFile(self.archive).stamp()} {self.position}"

    @property
    def _member(self) -> zipfile.ZipInfo:
        return _opened(self.archive).infolist()[self.position]

    def _read(self, count: int | None) -> bytes:
        try:
            with _opened(self.archive).open(
                self._member
            ) as file:  # which never gives more than the size declared above
                return file.read(count)
        # A broken or encrypted member raises nearly anything: zlib.error, EOFError, ...
        except Exception as error:
            raise failed(f"cannot be unpacked ({error})", error) from None


@dataclass(frozen=True)
class HubCell:
    """One file in a column of a data set, which has {"bytes", "path"} for each row."""

    rows: datasets.Dataset
    row: int
    column: str

    def read(self, most_bytes: int = MAX_IMAGE_BYTES) -> bytes:
        """All of it. Raises `BadImageError` where it is empty, and `OSError`."""
        cell = self.rows[self.row][self.column]
        if cell is None:
            raise BadImageError("is empty")
        return cell["bytes"] if cell["bytes"] is not None else StoredFile(Path(cell["path"])).read(most_bytes)

    def head(self) -> bytes:
        """Its first bytes; raises as `read`."""
        return self.read()[:HEAD_BYTES]

    def stamp(self) -> None:
        """Nothing is kept of it: a data set has its own cache."""
        return


Content = StoredFile | ZipMember | HubCell
Contents = dict[PurePosixPath, Content]


def contents_of_folder(root: Path) -> Contents:
    """Every file below a folder; links are followed, but into no folder twice, for they can lead in circles.

    Raises `InputError` for a folder below that cannot be read.
    """
    try:
        return _walked(root)
    except OSError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}): make it readable, or move it away."
        ) from None


def _walked(root: Path) -> Contents:
    contents: Contents = {}
    seen = {_identity(root)}
    for folder, subfolders, names in os.walk(root, onerror=_raised, followlinks=True):
        # A folder itself before a link to it
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        there = {name: _identity(Path(folder, name)) for name in subfolders}
        subfolders[:] = [name for name in subfolders if there[name] not in seen]
        seen |= set(there.values())
        for name in names:
            file = Path(folder, name)
            if not file.is_file() and file.exists():
                continue  # a pipe or a device, which may have no end; a link to nowhere is named later
            _add(contents, file.relative_to(root).as_posix(), StoredFile(file))
    return contents


def _raised(error: OSError) -> None:
    raise error  # which `os.walk` would pass over


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _add(contents: Contents, name: str, content: Content) -> None:
    """Add a file by its name in composed Unicode (NFC), the one in which a class will be asked for; litter is left out."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    while path in contents:  # two forms of one name
        path = path.with_name(f"_{path.name}")
    if not _is_litter(path):
        contents[path] = content


def _is_litter(path: PurePosixPath) -> bool:
    """Hidden files and what file managers leave behind."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in path.parts)


def contents_of_zip(root: Path) -> Contents:
    """Every member of a .zip. Raises `InputError` for one that is broken."""
    try:
        archive = _opened(root)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"The zip file {root} is broken ({error}): download or pack it again.") from None
    contents: Contents = {}
    last = {_member_name(member): position for position, member in enumerate(archive.infolist())}
    for name, position in last.items():
        if not name.endswith("/"):
            _add(contents, name, ZipMember(root, position))
    return contents


def _opened(root: Path) -> zipfile.ZipFile:
    return _opened_as(root, StoredFile(root).stamp())


@lru_cache(maxsize=8)
def _opened_as(root: Path, stamp: str) -> zipfile.ZipFile:
    """Opened once for all members, as long as the archive stays as it is."""
    return zipfile.ZipFile(root)


def _member_name(member: zipfile.ZipInfo) -> str:
    """Its name with forward slashes, which some programs on Windows do not write, and read as UTF-8 where it can be.

    Of names without the mark of UTF-8 Python takes DOS's code page 437; many programs write UTF-8 without it.
    """
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")
