"""Where scans come from: a folder, a .zip or a Hub data set becomes one sorted list of files.

What the names of files and folders mean is in `layout.py`.
"""

import contextlib
import os
import unicodedata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import datasets

from mri_ddpm.config import ScanOptions
from mri_ddpm.errors import InputError

from .layout import PARTS, Finding, ScanFile, arrange, classes_found, part_of, parts_found, patients_found
from .metadata import PATIENTS, read_metadata
from .patients import named_like_patients
from .reading import BadImageError, has_image_suffix, kind_of_file, opens

MAX_FILE_BYTES = 2**29  # a zip member of a few kilobytes can claim to unpack to terabytes
MOST_SUFFIXES = 6  # that are named
_LITTER = {"thumbs.db", "desktop.ini", "__macosx"}


@dataclass(frozen=True)
class Source:
    """All files of a source, sorted by path. `name` is what the user called it."""

    name: str
    files: tuple[ScanFile, ...]
    findings: tuple[Finding, ...]  # what was found, what was left out and why


def find_source(options: ScanOptions) -> Source:
    """Open the one source that was given; raises `InputError` if none is, or it holds no files."""
    if options.train_data_dir:
        return _open_path(options)
    if options.dataset_name:
        return _open_hub(options)
    raise InputError("No scans were given: pass --train_data_dir (a folder or a .zip) or --dataset_name.")


def _open_path(options: ScanOptions) -> Source:
    """A folder or a .zip."""
    train_data_dir = options.train_data_dir
    root = Path(train_data_dir).expanduser()
    if root.is_dir():
        readers, kind = _folder_readers(root), "folder"
    elif zipfile.is_zipfile(root):
        readers, kind = _zip_readers(root), "zip file"
    elif root.is_file():
        raise InputError(
            f"--train_data_dir {train_data_dir} is neither a folder nor a readable .zip: give one of those"
            " (a damaged .zip has to be downloaded again)."
        )
    else:
        raise InputError(
            f"--train_data_dir {train_data_dir} does not exist: give a folder or a .zip of scans."
        )
    if not readers:
        raise InputError(f"The {kind} {train_data_dir} holds no images: give --train_data_dir one that does.")
    metadata = read_metadata(readers)
    others = {path: read for path, read in readers.items() if str(path) not in metadata.names}
    images, passed_over = _pass_over(f"The {kind} {train_data_dir}", others)
    files, findings = arrange(images, root.is_dir(), metadata, options)
    if not files:
        raise InputError(
            f"The {kind} {train_data_dir} holds masks alone, by their names ({findings[-1].path}): give the scans."
        )
    return Source(train_data_dir, files, (*findings, *passed_over))


def _folder_readers(root: Path) -> dict[PurePosixPath, Callable[[], bytes]]:
    """Every file below a folder; links are followed, but into no folder twice, for they can lead in circles."""
    readers: dict[PurePosixPath, Callable[[], bytes]] = {}
    seen = {_identity(root)}
    for folder, subfolders, names in os.walk(root, followlinks=True):
        # A folder itself before a link to it
        subfolders.sort(key=lambda name: (Path(folder, name).is_symlink(), name))
        there = {name: _identity(Path(folder, name)) for name in subfolders}
        subfolders[:] = [name for name in subfolders if there[name] not in seen]
        seen |= set(there.values())
        for name in names:
            file = Path(folder, name)
            _add(readers, file.relative_to(root).as_posix(), partial(_read_file, file))
    return readers


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _add(readers: dict, name: str, read: Callable[[], bytes]) -> None:
    """Add a file by its name in composed Unicode (NFC), the one in which a class will be asked for; litter is left out."""
    path = PurePosixPath(unicodedata.normalize("NFC", name))
    while path in readers:  # two forms of one name
        path = path.with_name(f"_{path.name}")
    if not _is_litter(path):
        readers[path] = read


def _read_file(file: Path) -> bytes:
    if file.stat().st_size > MAX_FILE_BYTES:
        raise BadImageError(f"is larger than {MAX_FILE_BYTES // 2**20} MiB")
    return file.read_bytes()


def _zip_readers(root: Path) -> dict[PurePosixPath, Callable[[], bytes]]:
    """Members are read straight from the archive; nothing is unpacked, so their names can lead nowhere."""
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, OSError) as error:
        raise InputError(f"The zip file {root} is broken ({error}): download or pack it again.") from None
    readers: dict[PurePosixPath, Callable[[], bytes]] = {}
    for name, member in {_member_name(member): member for member in archive.infolist()}.items():
        if not name.endswith("/"):
            _add(readers, name, partial(_read_member, archive, member))
    return readers


def _member_name(member: zipfile.ZipInfo) -> str:
    """Its name with forward slashes, which some programs on Windows do not write, and read as UTF-8 where it can be.

    Of names without the mark of UTF-8 Python takes DOS's code page 437; many programs write UTF-8 without it.
    """
    name = member.filename
    if not member.flag_bits & 0x800:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.file_size > MAX_FILE_BYTES:
        raise BadImageError(f"unpacks to more than {MAX_FILE_BYTES // 2**20} MiB")
    try:
        return archive.read(member)  # never more than the size declared above
    # A broken or encrypted member raises nearly anything: zlib.error, EOFError, ...
    except Exception as error:
        raise BadImageError(f"cannot be unpacked ({error})") from None


def _pass_over(
    title: str, readers: dict[PurePosixPath, Callable[[], bytes]]
) -> tuple[dict[PurePosixPath, Callable[[], bytes]], tuple[Finding, ...]]:
    """Take out what is no image and is not called one, such as a README or a table; refuse if nothing is left.

    A file that is called an image stays, for if it is none it is damaged.
    """
    others: dict[PurePosixPath, str | None] = {}  # what each is, where that is known
    for path, read in readers.items():
        if not has_image_suffix(path.name):
            try:
                content = read()
            except BadImageError:
                others[path] = None
            except OSError:
                continue  # read again and named later
            else:
                if not opens(content):
                    others[path] = kind_of_file(content)
    suffixes = sorted({path.suffix.lower() or "without a suffix" for path in others})
    suffixes = ", ".join(suffixes[:MOST_SUFFIXES] + ["..."] * (len(suffixes) > MOST_SUFFIXES))
    counted = "1 file that is no image" if len(others) == 1 else f"{len(others)} files that are no images"
    if len(others) < len(readers):
        images = {path: read for path, read in readers.items() if path not in others}
        return images, (Finding(f"passed over: {counted}", suffixes),) if others else ()
    known = next((f"{path} {words}" for path, words in sorted(others.items()) if words), None)
    if known:
        raise InputError(f"{title} holds no images: {known}.")
    raise InputError(
        f"{title} holds {counted} ({suffixes}), and nothing else: give --train_data_dir one that holds images."
    )


def _is_litter(path: PurePosixPath) -> bool:
    """Hidden files and what file managers leave behind."""
    return any(part.startswith(".") or part.lower() in _LITTER for part in path.parts)


def _open_hub(options: ScanOptions) -> Source:
    """A data set that `datasets.load_dataset` opens: its train split, and those for validation and testing if it has them."""
    name, config = options.dataset_name, options.dataset_config_name
    if options.patient_pattern:
        raise InputError(
            "--patient_pattern is for files in folders; of --dataset_name the column patient_id says the patients."
        )
    try:
        splits = _load_splits(name, config)
    except Exception as error:  # not found, no network, gated, no such configuration, a broken file within
        lines = (str(error).strip() or type(error).__name__).splitlines()
        if lines[0].startswith("Config name is missing"):
            raise InputError(
                f"--dataset_name {name} has several configurations: choose one by --dataset_config_name"
                f" ({', '.join(datasets.get_dataset_config_names(name))})."
            ) from None
        reason = lines[0]
        raise InputError(
            f"--dataset_name {name} cannot be loaded ({reason}): check the name, --dataset_config_name, the login, the net."
        ) from None
    used = sorted(filter(part_of, splits), key=lambda split: PARTS.index(part_of(split)))
    if "training" not in map(part_of, used):
        raise InputError(
            f'--dataset_name {name} has no "train" split, only {", ".join(splits)}: it cannot be used.'
        )
    files: list[ScanFile] = []
    for split in used:
        files += _hub_files(options, split, part_of(split), splits[split])
    if not files:
        raise InputError(f"--dataset_name {name} holds no images: give one that does.")
    labels = {file.class_name for file in files} - {None}
    patients, source = {file.path: file.patient for file in files if file.patient}, "the column of patients"
    if named_like_patients(labels):  # which are no classes
        patients, source = {file.path: file.class_name for file in files if file.class_name}, "labels"
        files = [replace(file, class_name=None, flaw=None, patient=file.class_name) for file in files]
        labels = set()
    findings = parts_found({split: len(splits[split]) for split in used})
    findings.append(classes_found(labels, f"labels in the column {options.label_column}"))
    findings.append(patients_found(patients, source))
    if others := [f"{split}: {len(splits[split])}" for split in splits if split not in used]:
        findings.append(Finding("left out: splits that are no part by their names", ", ".join(others)))
    return Source(name, tuple(files), tuple(findings))


def _load_splits(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    """By `load_dataset`, or what `save_to_disk` wrote, which that refuses."""
    if any(Path(name, file).is_file() for file in ("dataset_dict.json", "state.json")):
        saved = datasets.load_from_disk(name)
        return saved if isinstance(saved, dict) else {"train": saved}
    return datasets.load_dataset(name, config)


def _hub_files(options: ScanOptions, split: str, part: str, rows: datasets.Dataset) -> list[ScanFile]:
    name, image_column, label_column = options.dataset_name, options.image_column, options.label_column
    columns = ", ".join(rows.column_names)
    if image_column not in rows.column_names:
        raise InputError(f"--image_column {image_column} is not a column of {name}, which has: {columns}.")
    if label_column and label_column not in rows.column_names:
        raise InputError(
            f"--label_column {label_column} is not a column of {name}, which has: {columns}"
            ' (give --label_column "" for scans without classes).'
        )
    try:
        images = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    except Exception:
        raise InputError(
            f"--image_column {image_column} of {name} does not hold images: {columns} are there."
        ) from None
    if label_column and not isinstance(rows.features[label_column], (datasets.ClassLabel, datasets.Value)):
        raise InputError(
            f"--label_column {label_column} of {name} holds a {type(rows.features[label_column]).__name__} and no single label"
            ' a scan: name another column, or give --label_column "" for scans without classes.'
        )
    labels = _hub_labels(rows, label_column) if label_column else [None] * len(rows)
    flaws = ["has no label" if label_column and label is None else None for label in labels]
    column = next((column for column in PATIENTS if column in rows.column_names), None)
    patients = (
        [None if value is None else str(value) for value in rows[column]] if column else [None] * len(rows)
    )
    width = len(str(len(rows)))  # so that names sort as the rows do
    return [
        ScanFile(
            f"{split}/{row:0{width}d}",
            part,
            labels[row],
            partial(_read_row, images, row, image_column),
            flaws[row],
            patients[row],
        )
        for row in range(len(rows))
    ]


def _hub_labels(rows: datasets.Dataset, label_column: str) -> list[str | None]:
    """Labels as names; None where there is none (a hidden test split has -1)."""
    feature, labels = rows.features[label_column], rows[label_column][:]
    if isinstance(feature, datasets.ClassLabel):
        labels = [feature.int2str(label) if label is not None and label >= 0 else None for label in labels]
    return [unicodedata.normalize("NFC", str(label)) if label is not None else None for label in labels]


def _read_row(images: datasets.Dataset, row: int, image_column: str) -> bytes:
    image = images[row][image_column]
    if image is None:
        raise BadImageError("is empty")
    return image["bytes"] if image["bytes"] is not None else _read_file(Path(image["path"]))
