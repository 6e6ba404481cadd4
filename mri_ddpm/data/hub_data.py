"""Data sets of the Hub, and those on disk that the datasets library wrote."""

import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import datasets

from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

from .aligning import leader_of
from .channels import Channels
from .contents import Content, HubCell
from .layout import (
    PARTS,
    VOLUME_EACH,
    Finding,
    ScanFile,
    classes_found,
    named_contrast,
    part_of,
    parts_found,
    patients_found,
)
from .masks import is_mask_name
from .metadata import PATIENTS, word_in
from .patients import named_like_patients
from .volume_files import VolumeFile, require_libraries


def open_hub(options: ScanOptions) -> tuple[tuple[ScanFile, ...], tuple[Finding, ...]]:
    """A data set that `datasets.load_dataset` opens: its train split, and those for validation and testing if it has them."""
    name, config = options.dataset_name, options.dataset_config_name
    if options.patient_pattern:
        raise InputError(
            "--patient_pattern is for files in folders; of --dataset_name the column patient_id says the patients."
        )
    if config and _is_saved(name):
        raise InputError(
            f"--dataset_name {name} was written by save_to_disk and has no configurations: leave out"
            f" --dataset_config_name {config}."
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
    source = "the column of patients"
    if named_like_patients(labels):  # which are no classes
        source = "labels"
        files = [replace(file, class_name=None, flaw=None, patient=file.class_name) for file in files]
        labels = set()
    if alone := [file.path for file in files if isinstance(file.content, VolumeFile) and not file.patient]:
        require_libraries(name, {"NIfTI": len(alone)})
        files = [
            replace(file, patient=file.patient or file.path) if isinstance(file.content, VolumeFile) else file
            for file in files
        ]
        source = VOLUME_EACH
    findings = parts_found({split: len(splits[split]) for split in used})
    findings.append(classes_found(labels, f"labels in the column {options.label_column}"))
    findings.append(patients_found(files, source))
    if others := [f"{split}: {len(splits[split])}" for split in splits if split not in used]:
        findings.append(Finding("left out: splits that are no part by their names", ", ".join(others)))
    return tuple(files), tuple(findings)


def _load_splits(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    """By `load_dataset`, or what `save_to_disk` wrote, which that refuses."""
    if _is_saved(name):
        saved = datasets.load_from_disk(name)
        return saved if isinstance(saved, dict) else {"train": saved}
    return datasets.load_dataset(name, config)


def _is_saved(name: str) -> bool:
    """Whether a data set is what `save_to_disk` wrote."""
    return any(Path(name, file).is_file() for file in ("dataset_dict.json", "state.json"))


def _hub_files(options: ScanOptions, split: str, part: str, rows: datasets.Dataset) -> list[ScanFile]:
    name, image_column, label_column = options.dataset_name, options.image_column, options.label_column
    columns, planes = ", ".join(rows.column_names), Channels.of(options).planes
    cells = {plane: _cells(rows, plane, options) for plane in planes}
    if label_column and label_column not in rows.column_names:
        raise InputError(
            f"--label_column {label_column} is not a column of {name}, which has: {columns}"
            ' (give --label_column "" for scans without classes).'
        )
    if len({volumes for _, volumes in cells.values()}) > 1:
        raise InputError(
            f"{name} has pictures and volumes in the columns {', '.join(p or image_column for p in planes)}."
        )
    leader = leader_of(planes)
    if label_column and not isinstance(rows.features[label_column], (datasets.ClassLabel, datasets.Value)):
        raise InputError(
            f"--label_column {label_column} of {name} holds a {type(rows.features[label_column]).__name__} and no single label"
            ' a scan: name another column, or give --label_column "" for scans without classes.'
        )
    labels = _hub_labels(rows, label_column) if label_column else [None] * len(rows)
    flaws = ["has no label" if label_column and label is None else None for label in labels]
    of_patients = next((column for column in PATIENTS if column in rows.column_names), None)
    patients, contrasts = (
        [word_in(column, value) for value in rows[column]]
        if column in rows.column_names
        else [None] * len(rows)
        for column in (of_patients, "contrast")
    )
    width = len(str(len(rows)))  # so that names sort as the rows do
    files = []
    for row in range(len(rows)):
        there = {plane: content(row) for plane, (content, _) in cells.items()}
        mask = next((found for plane, found in there.items() if is_mask_name(plane)), None)
        files.append(
            ScanFile(
                f"{split}/{row:0{width}d}",
                part,
                labels[row],
                there[leader],
                flaws[row],
                patients[row],
                leader or (contrasts[row] and named_contrast(contrasts[row])),
                mask,
                planes=there if len(there) > 1 else {},
            )
        )
    return files


def _cells(
    rows: datasets.Dataset, plane: str, options: ScanOptions
) -> tuple[Callable[[int], Content | VolumeFile], bool]:
    """What gives the content of each row of a plane's column, and whether these are volumes."""
    column, name, columns = plane or options.image_column, options.dataset_name, ", ".join(rows.column_names)
    flag = "image_column" if not plane else "channels" if plane in options.channels else "condition_on"
    if column not in rows.column_names:
        raise InputError(f"--{flag} {column} is not a column of {name}, which has: {columns}.")
    are_volumes = isinstance(rows.features[column], getattr(datasets, "Nifti", ()))  # of newer versions
    kind = datasets.Nifti if are_volumes else datasets.Image
    try:
        images = rows.select_columns([column]).cast_column(column, kind(decode=False))
    except Exception:
        raise InputError(f"--{flag} {column} of {name} does not hold images: {columns} are there.") from None

    def content(row: int) -> Content | VolumeFile:
        cell = HubCell(images, row, column)
        return VolumeFile((cell,)) if are_volumes else cell

    return content, are_volumes


def _hub_labels(rows: datasets.Dataset, label_column: str) -> list[str | None]:
    """Labels as names; None where there is none (a hidden test split has -1)."""
    feature, labels = rows.features[label_column], rows[label_column][:]
    if isinstance(feature, datasets.ClassLabel):
        labels = [feature.int2str(label) if label is not None and label >= 0 else None for label in labels]
    return [unicodedata.normalize("NFC", str(label)) if label is not None else None for label in labels]
