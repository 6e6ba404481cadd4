"""Which of a source's files are volumes: NIfTI files, and DICOM files by the series that they belong to."""

import contextlib
import hashlib
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath

from mri_ddpm.errors import InputError, with_extra
from mri_ddpm.scan_options import ScanOptions

from .contents import MAX_VOLUME_BYTES, Content, Contents
from .index import Index
from .reading.contrasts import contrast_of_name
from .reading.dicom import DicomHeader, is_dicom, read_header
from .reading.nifti import image_names, is_analyze, is_nifti, is_synthetic, read_nifti
from .reading.pictures import BadImageError
from .reading.series import Series, group_series, read_series
from .reading.volumes import Volume

HEADER_VERSION = 2  # raise it when `DicomHeader`, or what is read into it, changes
LIBRARIES = {"NIfTI": ("nibabel",), "DICOM": ("pydicom", "nibabel")}  # that read each kind


@dataclass(frozen=True)
class DicomPicture:
    """A DICOM file of plain pictures without a place, or a damaged one.

    patient: as of `VolumeFile`.
    flaw: why it cannot be used.
    """

    content: Content
    patient: str | None = None
    flaw: str | None = None

    def read(self) -> bytes:
        """All of it. Raises `BadImageError` and `OSError`."""
        return self.content.read(MAX_VOLUME_BYTES)


@dataclass(frozen=True)
class VolumeFile:
    """One volume of a source, not yet read.

    contents: of a NIfTI file, or of a header and its image, or the files of a DICOM series.
    patient: a word that stands for what the tags of DICOM files say.
    patient_is_study: whether that is the study alone, for they name no patient.
    """

    contents: tuple[Content, ...]
    contrast: str | None = None
    patient: str | None = None
    patient_is_study: bool = False
    series: Series | None = None  # its members are called as in `series_files`
    channels: tuple[str, ...] = ()  # the contrasts of its volumes, if it has several

    def open(self, options: ScanOptions) -> Volume:
        """Read it. Raises `BadImageError` for what is no volume, `OSError`, and `InputError` where a library is missing."""
        if self.series:
            files = dict(self.series_files)
            volume = read_series(self.series, lambda name: files[name].read(MAX_VOLUME_BYTES))
        else:
            index = options.volume_index
            if index is None and self.contrast in self.channels:
                index = self.channels.index(self.contrast)
            contents = [content.read(MAX_VOLUME_BYTES) for content in self.contents]
            volume = read_nifti(*contents, volume_index=index, assume_orientation=options.assume_orientation)
        return replace(volume, contrast=self.contrast)

    def only(self, volume_index: int) -> "VolumeFile":
        """The same for one of its named volumes."""
        named = dict(enumerate(self.channels)).get(volume_index)
        return replace(self, contrast=named, channels=()) if self.channels else self

    @property
    def series_files(self) -> list[tuple[str, Content]]:
        """The files of a series by what they are called in words, which say nothing of whom they are."""
        return [(_nth(number, len(self.contents)), content) for number, content in enumerate(self.contents)]

    def sha256(self, index: Index) -> str:
        """The hash of all its files, remembered while they stay as they are. Raises as `open`."""
        digest = hashlib.sha256()
        for content in self.contents:
            stamp = content.stamp()
            known = index.get("sha256", stamp)
            if known is None:
                known = hashlib.sha256(content.read(MAX_VOLUME_BYTES)).hexdigest()
                index.put("sha256", stamp, known)
            digest.update(bytes.fromhex(known))
        return digest.hexdigest()


@dataclass(frozen=True)
class Found:
    """What lies in a source, by its contents.

    label_names: of the values of masks, as `dataset.json` has them.
    left_out: number of files by the kind and the reason in words.
    """

    volumes: dict[PurePosixPath, VolumeFile]
    images: dict[PurePosixPath, Content | DicomPicture]
    others: Contents
    left_out: dict[tuple[str, str], int]
    label_names: dict[int, str]


def sort_out(
    contents: Contents, index: Index, is_image: Callable[[PurePosixPath, Content], bool], name: str
) -> Found:
    """Tell volumes, images and other files apart by what they hold; a file that cannot be read counts as an image, which is named later.

    is_image: whether a file that is no volume is an image, or is called one.
    name: of the source.
    Raises `InputError` where volumes are there, and the libraries are not that read them.
    """
    nifti, dicom, images, others = {}, {}, {}, {}
    left_out: Counter = Counter()
    for path, content in sorted(contents.items(), key=lambda pair: str(pair[0])):
        try:
            head = content.head()
        except (OSError, BadImageError):
            head = b""
        if is_synthetic(head):
            left_out["NIfTI", "synthetic"] += 1
        elif is_nifti(head) or is_analyze(head) or (_is_called_nifti(path) and not is_dicom(head)):
            nifti[path] = content
        elif is_dicom(head):
            dicom[path] = content
        elif is_image(path, content):
            images[path] = content
        else:
            others[path] = content
    require_libraries(name, {"NIfTI": len(nifti), "DICOM": len(dicom)})
    described = _description(others)
    volumes = _nifti_volumes(nifti, others, _channels(described))
    series, pictures, reasons = _series(dicom, index)
    left_out.update({("DICOM", reason): count for reason, count in reasons.items()})
    found = {**volumes, **series}, {**images, **pictures}
    return Found(*found, others, dict(left_out), _label_names(described))


def require_libraries(name: str, counts: dict[str, int]) -> None:
    """Raise an `InputError` where the libraries are missing that read so many files of each kind."""
    for kind, count in counts.items():
        try:
            for library in LIBRARIES[kind] if count else ():
                importlib.import_module(library)
        except ImportError:
            files = f"{count} {kind} file{'s' * (count > 1)}"
            raise InputError(
                f"{name} holds {files}: {with_extra('volumes')} brings what reads {'them' if count > 1 else 'it'}."
            ) from None


def _is_called_nifti(path: PurePosixPath) -> bool:
    """Whether a file is called what NIfTI files are called; then it is damaged if it is none."""
    return path.name.lower().endswith((".nii", ".nii.gz"))


def _nifti_volumes(
    nifti: Contents, others: Contents, channels: tuple[str, ...]
) -> dict[PurePosixPath, VolumeFile]:
    """One volume a file; the image of a header is taken out of the other files."""
    called = {str(path).lower(): path for path in others}
    volumes = {}
    for path, content in nifti.items():
        names = [str(path.with_name(name)) for name in image_names(path.name.lower())]
        image = next((called[name.lower()] for name in names if name.lower() in called), None)
        parts = (content,) if image is None else (content, others.pop(image))
        number = re.search(
            r"_(\d{4})(\.[A-Za-z]+)*$", path.name
        )  # as nnU-Net numbers the files of each channel
        volumes[path] = VolumeFile(parts, contrast_of_name(path.name), channels=channels)
        if number or len(channels) == 1:
            volumes[path] = volumes[path].only(int(number[1]) if number else 0)
    return volumes


def _description(others: Contents) -> dict:
    """What `dataset.json` says, as Decathlon and nnU-Net have it; {} where there is none, or a damaged one."""
    for path, content in others.items():
        if path.name == "dataset.json":
            with contextlib.suppress(OSError, BadImageError, ValueError, RecursionError):
                found = json.loads(content.read())
                return found if isinstance(found, dict) else {}
    return {}


def _channels(described: dict) -> tuple[str, ...]:
    """The contrasts of a file's volumes, in their order; () where nothing says them."""
    try:
        names = described.get("channel_names") or described.get("modality") or {}
        return tuple(contrast_of_name(str(names[key])) or str(names[key]) for key in sorted(names, key=int))
    except (ValueError, TypeError, AttributeError):
        return ()


def _label_names(described: dict) -> dict[int, str]:
    """{value: name} of a mask's labels, of which nnU-Net writes the name first, and others the value."""
    found = {}
    labels = described.get("labels")
    for pair in labels.items() if isinstance(labels, dict) else ():
        for value, name in (pair, pair[::-1]):
            if str(value).isdecimal() and isinstance(name, str) and not name.isdecimal():
                found[int(value)] = name
    return found


def _series(
    dicom: Contents, index: Index
) -> tuple[dict[PurePosixPath, VolumeFile], dict[PurePosixPath, DicomPicture], dict[str, int]]:
    """DICOM files as series, those that hold plain pictures, and the number of the others by the reason."""
    headers, pictures = {}, {}
    left_out: Counter = Counter()
    for path, content in dicom.items():
        try:
            header = _header(content, index)
        except BadImageError as error:
            pictures[path] = DicomPicture(content, flaw=str(error))
            continue
        except OSError as error:
            pictures[path] = DicomPicture(content, flaw=f"cannot be read ({error.strerror or error})")
            continue
        if header.left_out:
            left_out[header.left_out] += 1
        elif header.slices:
            headers[str(path)] = header if header.series else replace(header, series=str(path.parent))
        else:
            pictures[path] = DicomPicture(content, header.patient or None)
    found, reasons = group_series(headers)
    left_out.update(reasons)
    volumes: dict[PurePosixPath, VolumeFile] = {}
    counts: Counter = Counter()
    for series in found:
        names = list(dict.fromkeys(name for name, _ in series.pictures))
        called = {name: _nth(number, len(names)) for number, name in enumerate(names)}
        numbered = replace(series, pictures=tuple((called[name], frame) for name, frame in series.pictures))
        folder = PurePosixPath(names[0]).parent
        counts[folder] += 1
        volumes[folder / f"series {counts[folder]}"] = VolumeFile(
            tuple(dicom[PurePosixPath(name)] for name in names),
            series.contrast,
            series.patient or None,
            series.patient_is_study,
            numbered,
        )
    return volumes, pictures, dict(left_out)


def _nth(number: int, count: int) -> str:
    """What a file of a series is called, in order of place."""
    return f"file {number + 1} of {count} by place"


def _header(content: Content, index: Index) -> DicomHeader:
    """The header of a file, with words in the place of whom it is of; remembered while the file stays as it is."""
    stamp = content.stamp()
    kind = f"header {HEADER_VERSION}"
    if known := index.get(kind, stamp):
        with contextlib.suppress(AttributeError, KeyError, TypeError):  # it is damaged
            return DicomHeader.from_json(known)
    header = read_header(content.read(MAX_VOLUME_BYTES))
    secret = {
        name: index.hidden(getattr(header, name)) if getattr(header, name) else ""
        for name in ("patient", "study", "series")
    }
    header = replace(header, **secret)
    index.put(kind, stamp, asdict(header))
    return header
