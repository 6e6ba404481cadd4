"""Where scans come from: a folder, a .zip or a Hub data set becomes one sorted list of scans.

What the names of files and folders mean is in `layout.py`, what files hold in `volume_files.py` and `reading.py`.
"""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

from .aligning import choose, choose_contrast
from .cache import cache_folder
from .contents import Content, Contents, contents_of_folder, contents_of_zip
from .hub_data import open_hub
from .index import Index
from .layout import Finding, ScanFile, arrange, patients_found
from .metadata import read_metadata
from .reading.pictures import BadImageError, has_image_suffix, kind_of_file, opens
from .volume_files import sort_out

MOST_SUFFIXES = 6  # that are named


@dataclass(frozen=True)
class Source:
    """All scans of a source, sorted by path. `name` is what the user called it."""

    name: str
    files: tuple[ScanFile, ...]
    findings: tuple[Finding, ...]  # what was found, what was left out and why
    index: Index | None = None  # of the files' hashes
    label_names: dict[int, str] = field(default_factory=dict)  # of the values of masks, where they are known


def find_source(options: ScanOptions) -> Source:
    """Open the one source that was given; raises `InputError` if none is, or it holds no scans."""
    if options.train_data_dir:
        return _open_path(options)
    if options.dataset_name:
        files, findings = open_hub(options)
        files, contrasts = choose_contrast(files, options.contrast, options.dataset_name)
        return Source(options.dataset_name, files, (*findings, *contrasts))
    raise InputError("No scans were given: pass --train_data_dir (a folder or a .zip) or --dataset_name.")


def _open_path(options: ScanOptions) -> Source:
    """A folder or a .zip."""
    name = options.train_data_dir
    root = Path(name).expanduser()
    if root.is_dir():
        contents, kind = contents_of_folder(root), "folder"
    elif zipfile.is_zipfile(root):
        contents, kind = contents_of_zip(root), "zip file"
    elif root.is_file():
        raise InputError(
            f"--train_data_dir {name} is neither a folder nor a readable .zip: give one of those"
            " (a damaged .zip has to be downloaded again)."
        )
    else:
        raise InputError(f"--train_data_dir {name} does not exist: give a folder or a .zip of scans.")
    if not contents:
        raise InputError(f"The {kind} {name} holds no images: give --train_data_dir one that does.")
    metadata = read_metadata(contents)
    contents = {path: content for path, content in contents.items() if str(path) not in metadata.names}
    index = Index(cache_folder(options.cache_dir))
    found = sort_out(contents, index, _is_image, name)
    index.save()
    if not found.volumes and not found.images:
        raise InputError(_no_scans(f"The {kind} {name}", found.others, found.left_out))
    arranged = arrange({**found.images, **found.volumes}, root.is_dir(), metadata, options)
    if not arranged.files:
        raise InputError(
            f"The {kind} {name} holds masks alone, by their names ({min(map(str, contents))}): give the scans."
        )
    files, contrasts = choose(arranged.files, options, name)
    findings = (
        *arranged.findings,
        patients_found(files, arranged.patients_by),
        *arranged.left_out,
        *contrasts,
        *(Finding(f"left out: {words}") for words in _left_out(found.left_out)),
        *_passed_over(found.others),
    )
    return Source(name, files, findings, index, found.label_names)


def _is_image(path: PurePosixPath, content: Content) -> bool:
    """Whether a file is an image, or is called one: then it is damaged if it is none."""
    if has_image_suffix(path.name):
        return True
    try:
        return opens(content.read())
    except BadImageError:
        return False
    except OSError:
        return True  # is read again and named later


def _passed_over(others: Contents) -> tuple[Finding, ...]:
    """What is no scan and is not called one, such as a README or a table."""
    counted, suffixes = _counted(others)
    return (Finding(f"passed over: {counted}", suffixes),) if others else ()


def _counted(others: Contents) -> tuple[str, str]:
    suffixes = sorted({path.suffix.lower() or "without a suffix" for path in others})
    suffixes = ", ".join(suffixes[:MOST_SUFFIXES] + ["..."] * (len(suffixes) > MOST_SUFFIXES))
    counted = "1 file that is no image" if len(others) == 1 else f"{len(others)} files that are no images"
    return counted, suffixes


def _left_out(counts: dict[tuple[str, str], int]) -> list[str]:
    """What is left out for what it is, in words."""
    return [f"{n} {kind} file{'s' * (n > 1)}, {reason}" for (kind, reason), n in counts.items()]


def _no_scans(title: str, others: Contents, left_out: dict[tuple[str, str], int]) -> str:
    """Why nothing is there to train on."""
    for path, content in others.items():
        try:
            known = kind_of_file(content.read())
        except (OSError, BadImageError):
            continue
        if known:
            return f"{title} holds no images: {path} {known}."
    if left_out:
        return f"{title} holds no scans; left out: {'; '.join(_left_out(left_out))}."
    counted, suffixes = _counted(others)
    return f"{title} holds {counted} ({suffixes}), and nothing else: give --train_data_dir one that holds images."
