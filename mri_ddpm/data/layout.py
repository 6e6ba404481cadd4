"""What the names of files and folders mean: parts, classes, patients and masks; and what was found, in words.

A file's class is the folder it lies in, its part "training", "validation" or "testing": `Training/CLASS/*` beside
`Testing/CLASS/*`, or `CLASS/train/*` beside `CLASS/val/*`. Without such folders everything is training.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

from .contents import Content
from .masks import PART_OF, PLAIN, Masks, is_mask_name, words_of
from .metadata import USUAL_LABEL, Metadata
from .patients import folder_of_patients, named_like_patients, patients_by_name, patients_by_pattern
from .reading.contrasts import contrast_of_name
from .volume_files import DicomPicture, VolumeFile

PARTS = ("training", "validation", "testing")  # a picture of one is a leak in those after it

NO_PATIENTS = "no patient is known, so scans of one patient may be in both train and validation, and numbers on validation too good"


@dataclass(frozen=True)
class ScanFile:
    """One picture or volume of a source, not yet read."""

    path: str  # relative to the source, with forward slashes
    part: str  # of PARTS
    class_name: str | None
    content: Content | DicomPicture | VolumeFile
    flaw: str | None = None  # why it cannot be used, where its place already says so
    patient: str | None = None  # as the table or the names have it
    contrast: str | None = None
    mask: Content | VolumeFile | None = None
    mask_path: str | None = None  # where that lies, as `path`
    planes: dict[str, Content | VolumeFile] = field(
        default_factory=dict
    )  # of several, in order; see `aligning`
    paths: dict[str, str] = field(default_factory=dict)  # of these planes, as `path`


@dataclass(frozen=True)
class Finding:
    """What was found, or left out and why, in words; `path` names examples, and with them perhaps patients."""

    words: str
    path: str | None = None


class Arranged(NamedTuple):
    """The scans among files, what was found of parts and classes, what says the patients, and what was left out."""

    files: tuple[ScanFile, ...]
    findings: tuple[Finding, ...]
    patients_by: str | None
    left_out: tuple[Finding, ...]


def arrange(
    contents: dict[PurePosixPath, Content | DicomPicture | VolumeFile],
    may_be_class: bool,
    metadata: Metadata,
    options: ScanOptions,
) -> Arranged:
    """Give every file its part, class, patient and mask, leave out masks, and say what was found.

    The table beside the files counts before the folders that they lie in.
    may_be_class: whether a single folder is a class, and not one that encloses all.
    Raises `InputError` for a `--label_column` that no table has, a split that is no part, and a class called as a patient is.
    """
    masks = Masks(contents)
    paths = sorted(contents.keys() - set(masks.paths), key=str)
    top = _enclosing_folder([path.parts[:-1] for path in paths], may_be_class)
    inner = {path: path.parts[len(top) :] for path in paths}
    depth = _depth_of_parts([names[:-1] for names in inner.values()])
    places = {path: _place(names[:-1], depth) for path, names in inner.items()}
    parts = {path: _part(path, places[path][0], depth, metadata) for path in paths}
    asked = {*options.channels, *options.condition_on}
    folders = {
        path: None if contrast_of_name(str(name)) in asked else name for path, (_, name) in places.items()
    }
    scans = {path: contents[path] for path in paths}
    patients, source = _patients(scans, inner, depth, metadata, options)
    sharers: dict[PurePosixPath, set] = defaultdict(set)  # of a folder
    for path in paths:
        sharers[path.parent].add(patients.get(path))
    labels, kind = _labels(folders, patients, metadata, options)
    class_names = {label for label in labels.values() if label}
    if named := class_names & set(patients.values()):
        raise InputError(
            f"{min(named)} is the name of a class and of a patient; patients are no classes: name the column of classes by --label_column."
        )
    files = []
    for path in paths:
        flaw = getattr(contents[path], "flaw", None)
        if flaw:
            pass
        elif parts[path] is None:
            flaw = "lies outside the training, validation and testing folders"
        elif metadata.about_files and str(path) not in metadata.of_file:
            flaw = f"has no line in {metadata.names[0]}"
        elif class_names and labels[path] is None:
            flaw = f"has no {options.label_column}" if kind != "folders" else "lies outside the class folders"
        patient, content = patients.get(path), contents[path]
        is_volume = isinstance(content, VolumeFile)
        mask_path = masks.of(path, is_alone=is_volume and len(sharers[path.parent]) == 1)
        mask = contents.get(mask_path)
        mask = mask if isinstance(mask, VolumeFile) == is_volume else None
        mask_name = mask and "/".join(mask_path.parts[len(top) :])
        if is_volume and options.volume_index is not None:
            content = content.only(options.volume_index)
        contrast = metadata.value(str(path), patient, "contrast")
        contrast = named_contrast(contrast) if contrast else getattr(content, "contrast", None)
        name, part = "/".join(inner[path]), parts[path] or "training"
        files.append(ScanFile(name, part, labels[path], content, flaw, patient, contrast, mask, mask_name))
    said = [_part_name(path, places[path][0], metadata) for path in paths if parts[path]]
    counts = Counter(name or "training" for name in said) if any(said) else {}
    findings = [*parts_found(counts), classes_found(class_names, kind)]
    left_out = []
    if source == TAGS and (count := sum(getattr(scan, "patient_is_study", False) for scan in scans.values())):
        left_out.append(Finding(f"{count} DICOM series without a PatientID: each study counts as a patient"))
    if masks.paths and not any(map(is_mask_name, asked)):
        words = f"left out: {len(masks.paths)} mask{'s' * (len(masks.paths) > 1)}, by name"
        left_out.append(Finding(words, None if patients else str(masks.paths[0])))
    return Arranged(tuple(files), tuple(findings), source, tuple(left_out))


def named_contrast(word: str) -> str:
    """A contrast as it is called here, or as somebody calls another."""
    return contrast_of_name(word) or word


def _part(path: PurePosixPath, folder: str | None, depth: int | None, metadata: Metadata) -> str | None:
    """The part by the table, or else by the folder; None where others lie in folders of parts, and this does not."""
    split = metadata.value(str(path), None, "split")
    if split and not part_of(split):
        raise InputError(
            f"{metadata.names[0]} has the split {split}; the splits are train, validation and test."
        )
    if split or folder:
        return part_of(split or folder)
    return "training" if depth is None else None


def _part_name(path: PurePosixPath, folder: str | None, metadata: Metadata) -> str | None:
    """What the part of a file is called, by the table or else by the folder; None where nothing says it."""
    return metadata.value(str(path), None, "split") or (folder and f"{folder}/")


def _labels(
    folders: dict[PurePosixPath, str | None],
    patients: dict[PurePosixPath, str],
    metadata: Metadata,
    options: ScanOptions,
) -> tuple[dict[PurePosixPath, str | None], str]:
    """The class of each file, and what says it: a column, or else the folders, if they are not patients'."""
    column = options.label_column
    if column and column.lower() in metadata.columns:
        table = f"labels in the column {column} of {metadata.names[0]}"
        return {path: metadata.value(str(path), patients.get(path), column) for path in folders}, table
    if column.lower() not in ("", USUAL_LABEL):
        there = (
            ", ".join(sorted(metadata.columns)) or "none, for there is no metadata.csv or participants.tsv"
        )
        raise InputError(f"--label_column {column} is in no table of the scans; the columns are: {there}.")
    names = {name for name in folders.values() if name}
    if column == "" or named_like_patients(names) or (patients and _are_patients(folders, patients)):
        return dict.fromkeys(folders), "folders"
    return folders, "folders"


def _are_patients(folders: dict[PurePosixPath, str | None], patients: dict[PurePosixPath, str]) -> bool:
    """Whether folders bear the names of patients, or most hold all scans of one: a class holds several."""
    pairs = {(folder, patients[path]) for path, folder in folders.items() if folder and path in patients}
    counts = Counter(folder for folder, _ in pairs)
    alone = sum(count == 1 for count in counts.values())
    return not counts.keys().isdisjoint(patients.values()) or (len(counts) > 1 and 2 * alone > len(counts))


def _patients(
    contents: dict[PurePosixPath, Content | DicomPicture | VolumeFile],
    inner: dict[PurePosixPath, tuple[str, ...]],
    depth: int | None,
    metadata: Metadata,
    options: ScanOptions,
) -> tuple[dict[PurePosixPath, str], str | None]:
    """The patient of each file, and what says it: the first that answers for all of them; see `patients`."""
    by_table = {path: metadata.patient(str(path)) for path in inner}
    if any(by_table.values()):
        missing = [
            path for path, patient in by_table.items() if patient is None and str(path) in metadata.of_file
        ]
        if missing:
            raise InputError(
                f"{metadata.names[0]} has no patient for {missing[0]}, but for others; give each its own."
            )
        return {path: patient for path, patient in by_table.items() if patient}, metadata.names[0]
    names = {path: "/".join(parts) for path, parts in inner.items()}
    if options.patient_pattern:
        found = patients_by_pattern(names.values(), options.patient_pattern)
        return {path: found[name] for path, name in names.items()}, "--patient_pattern"
    tags = {path: content.patient for path, content in contents.items() if getattr(content, "patient", None)}
    damaged = {path for path, content in contents.items() if getattr(content, "flaw", None)}
    if tags and not contents.keys() - tags.keys() - damaged:
        return tags, TAGS
    if known := patients_by_name(names.values()):
        return {path: known[0][name] for path, name in names.items()}, known[1]
    folders = {path: _without_part(parts[:-1], depth) for path, parts in inner.items()}
    at = folder_of_patients(folders)
    if at is not None:
        return {path: names[at] for path, names in folders.items()}, "folders"
    volumes = {path: content for path, content in contents.items() if isinstance(content, VolumeFile)}
    unsaid = volumes.keys() - tags.keys()
    if len(unsaid) == len(contents) and (found := _patients_by_contrast(folders, volumes)):
        return found, "folders, none of which holds two volumes of one contrast"
    if len(unsaid) == len(contents) and (found := _patients_of_few(folders)):
        return found, "folders, which hold too few volumes to be classes"
    return {**{path: str(path) for path in unsaid}, **tags}, VOLUME_EACH if unsaid else tags and TAGS or None


def _patients_by_contrast(
    folders: dict[PurePosixPath, tuple[str, ...]], volumes: dict[PurePosixPath, VolumeFile]
) -> dict[PurePosixPath, str] | None:
    """The patients where each folder holds a volume a contrast at most; None where one holds more.

    The outermost folder is the patient. Where that holds more, its folders may be visits, of which a patient has few, or
    patients, of which a class has many.
    """
    if not all(folders.values()):
        return None
    outer = {path: names[0] for path, names in folders.items()}
    inner = {path: "/".join(names) for path, names in folders.items()}

    def is_of_patients(folder_of: dict[PurePosixPath, str]) -> bool:
        places = {(folder, volumes[path].contrast) for path, folder in folder_of.items()}
        return len(places) == len(folder_of) and len(set(folder_of.values())) > 1

    if is_of_patients(outer):
        return outer
    if not is_of_patients(inner):
        return None
    most = max(
        Counter(outer[path] for path in {name: path for path, name in inner.items()}.values()).values()
    )
    return outer if len(set(outer.values())) > most else inner


def _patients_of_few(folders: dict[PurePosixPath, tuple[str, ...]]) -> dict[PurePosixPath, str] | None:
    """The outermost folders as patients, if they hold no more volumes than visits of one; None where they hold more, or are missing."""
    if not all(folders.values()):
        return None
    outer = {path: names[0] for path, names in folders.items()}
    counts = Counter(outer.values())
    return outer if len(counts) > 1 and len(outer) <= MOST_VISITS * len(counts) else None


def part_of(name: str) -> str | None:
    """The part that a folder or a split is named after, as `Training`, `val`, `train_images` or `val2017`; else None."""
    telling = set(words_of(name)) - PLAIN
    return PART_OF.get(telling.pop()) if len(telling) == 1 else None


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
    """What to say of the classes; `kind` says what bears their names."""
    return Finding(f"classes: {len(names)} {kind}" if names else "classes: none")


TAGS = "DICOM tags"
MOST_VISITS = 3  # of a patient, in the mean
VOLUME_EACH = "the volumes, of each of which a patient is taken for granted, as nothing says whose they are"


def patients_found(files: Iterable[ScanFile], source: str | None) -> Finding:
    """What to say of the patients, and plainly where nobody knows them."""
    if patients := {file.patient for file in files} - {None}:
        return Finding(f"patients: {len(patients)} by {source}")
    return Finding(NO_PATIENTS)


def _depth_of_parts(folders: list[tuple[str, ...]]) -> int | None:
    """How deep the folders of parts lie: 0 outside the classes, 1 within them; None where there are none."""
    return next(
        (i for i in (0, 1) if any(part_of(name) for names in folders for name in names[i : i + 1])), None
    )


def _place(folders: tuple[str, ...], depth: int | None) -> tuple[str | None, str | None]:
    """The folder of a file's part and that of its class; a folder that is called images says nothing."""
    rest = _without_part(folders, depth)
    part = folders[depth] if len(rest) < len(folders) else None
    return part, next((name for name in rest if name.casefold() not in PLAIN), None)


def _without_part(folders: tuple[str, ...], depth: int | None) -> tuple[str, ...]:
    """The folders less that of the part, at the depth at which such folders lie."""
    if depth is not None and len(folders) > depth and part_of(folders[depth]):
        return folders[:depth] + folders[depth + 1 :]
    return folders


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
