"""Which of a source's files are volumes: NIfTI files, and DICOM files by the series that they belong to."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath

from mri_ddpm.config import ScanOptions

from .contents import MAX_VOLUME_BYTES, Content, Contents
from .contrasts import contrast_of_name
from .dicom import DicomHeader, is_dicom, read_header
from .index import Index
from .nifti import image_names, is_nifti, read_nifti
from .reading import BadImageError
from .series import Series, group_series, read_series
from .volumes import Volume


@dataclass(frozen=True)
class VolumeFile:
    """One volume of a source, not yet read.

    contents: of a NIfTI file, or of a header and its image, or {name: file} of a DICOM series.
    patient: a word that stands for what the tags of DICOM files say.
    """

    contents: tuple[Content, ...]
    contrast: str | None = None
    patient: str | None = None
    series: Series | None = None  # its members are called by their places in `contents`
    channels: tuple[str, ...] = ()  # the contrasts of its volumes, if it has several

    def open(self, options: ScanOptions) -> Volume:
        """Read it. Raises `BadImageError` for what is no volume, `OSError`, and `InputError` where a library is missing."""
        if self.series:
            volume = read_series(self.series, lambda name: self.contents[int(name)].read(MAX_VOLUME_BYTES))
        else:
            index = options.volume_index
            if self.channels and index is None and self.contrast in self.channels:
                index = self.channels.index(self.contrast)
            contents = [content.read(MAX_VOLUME_BYTES) for content in self.contents]
            volume = read_nifti(*contents, volume_index=index, assume_orientation=options.assume_orientation)
        return replace(volume, contrast=self.contrast)

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

    left_out: number of DICOM files by the reason in words.
    """

    volumes: dict[PurePosixPath, VolumeFile]
    images: Contents
    others: dict[PurePosixPath, Content]
    left_out: dict[str, int]


def sort_out(contents: Contents, index: Index, is_image: Callable[[PurePosixPath, Content], bool]) -> Found:
    """Tell volumes, images and other files apart by what they hold; a file that cannot be read counts as an image, which is named later.

    is_image: whether a file that is no volume is an image, or is called one.
    """
    nifti, dicom, images, others = {}, {}, {}, {}
    for path, content in sorted(contents.items(), key=lambda pair: str(pair[0])):
        try:
            head = content.head()
        except (OSError, BadImageError):
            head = b""
        if is_nifti(head):
            nifti[path] = content
        elif is_dicom(head):
            dicom[path] = content
        elif is_image(path, content):
            images[path] = content
        else:
            others[path] = content
    volumes = _nifti_volumes(nifti, others)
    series, pictures, left_out = _series(dicom, index)
    return Found({**volumes, **series}, {**images, **pictures}, others, left_out)


def _nifti_volumes(nifti: Contents, others: Contents) -> dict[PurePosixPath, VolumeFile]:
    """One volume a file; the image of a header is taken out of the other files."""
    channels = _channels(others)
    volumes = {}
    for path, content in nifti.items():
        names = [path.with_name(name) for name in image_names(path.name)]
        image = next((name for name in names if name in others), None)
        parts = (content,) if image is None else (content, others.pop(image))
        contrast = contrast_of_name(path.name, dict(enumerate_names(channels)) or None)
        volumes[path] = VolumeFile(parts, contrast, channels=channels)
    return volumes


def enumerate_names(channels: tuple[str, ...]) -> list[tuple[str, str]]:
    """The endings that nnU-Net gives the files of each channel: ("0000", "t1"), ..."""
    return [(f"{number:04d}", name) for number, name in enumerate(channels)]


def _channels(others: Contents) -> tuple[str, ...]:
    """The contrasts of `dataset.json`, as Decathlon and nnU-Net have it, in their order; () where there is none."""
    for path, content in others.items():
        if path.name == "dataset.json":
            try:
                found = json.loads(content.read())
                names = found.get("channel_names") or found.get("modality") or {}
                return tuple(
                    contrast_of_name(str(names[key])) or str(names[key]) for key in sorted(names, key=int)
                )
            except (OSError, BadImageError, ValueError, TypeError, AttributeError, RecursionError):
                return ()
    return ()


def _series(
    dicom: Contents, index: Index
) -> tuple[dict[PurePosixPath, VolumeFile], Contents, dict[str, int]]:
    """DICOM files as series, those that hold plain pictures, and the number of the others by the reason."""
    headers, pictures = {}, {}
    left_out: Counter = Counter()
    for path, content in dicom.items():
        try:
            header = _header(content, index)
        except (OSError, BadImageError):
            pictures[path] = content  # is read again, and named
            continue
        if header.left_out:
            left_out[header.left_out] += 1
        elif header.slices:
            headers[str(path)] = header
        else:
            pictures[path] = content
    found, reasons = group_series(headers)
    left_out.update(reasons)
    volumes: dict[PurePosixPath, VolumeFile] = {}
    counts: Counter = Counter()
    for series in found:
        names = list(dict.fromkeys(name for name, _ in series.pictures))
        number = {name: str(position) for position, name in enumerate(names)}
        numbered = replace(series, pictures=tuple((number[name], frame) for name, frame in series.pictures))
        folder = PurePosixPath(names[0]).parent
        counts[folder] += 1
        volumes[folder / f"series {counts[folder]}"] = VolumeFile(
            tuple(dicom[PurePosixPath(name)] for name in names),
            series.contrast,
            series.patient or None,
            numbered,
        )
    return volumes, pictures, dict(left_out)


def _header(content: Content, index: Index) -> DicomHeader:
    """The header of a file, with words in the place of whom it is of; remembered while the file stays as it is."""
    stamp = content.stamp()
    known = index.get("header", stamp)
    if known is None:
        header = read_header(content.read(MAX_VOLUME_BYTES))
        secret = {
            name: index.hidden(getattr(header, name)) if getattr(header, name) else ""
            for name in ("patient", "series")
        }
        known = asdict(replace(header, **secret))
        index.put("header", stamp, known)
    return DicomHeader.from_json(json.loads(json.dumps(known)))
