"""What there is to say of a set of scans, as JSON: files, patients, volumes, copies and the split; and who is who, for this machine alone."""

import csv
import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

import numpy as np

from mri_ddpm.files import whole_file
from mri_ddpm.scan_options import ScanOptions

from .channels import Channels
from .intensity import Scale, common_scale
from .layout import PARTS, Finding
from .split import ORDER, ScanRecord

MANIFEST_VERSION = 2
DARK = 1 / 8  # of the full range; 12 bits in a 16-bit file reach a sixteenth of it
NUMBER = re.compile(r"\d+")
SPLITS = (*ORDER, "repeat", "leak", "bad")
# Of the options, what says where scans lie, and not how they are read
PLACES = (
    "train_data_dir",
    "dataset_name",
    "dataset_config_name",
    "image_column",
    "cache_dir",
    "on_bad_image",
)


def make_manifest(
    source: str,
    records: list[ScanRecord],
    class_names: tuple[str, ...],
    options: ScanOptions,
    findings: tuple[Finding, ...] = (),
    volumes: list[dict] | None = None,
    channels: Channels | None = None,
    grouped: bool = True,
    decoded: bool = True,
) -> tuple[dict, dict[str, str]]:
    """Everything there is to say about the records after `assign_split`, ready for `json.dump`; and where the files lie.

    The second, {name in the manifest: path}, stays on the machine: names and folders may say who a patient is. A scan of a
    known patient is called `patient 3/0007` in the manifest, one of another `unknown/0001`, and no word of a person is in it.

    `content_sha256` identifies files, classes, patients and split; it depends neither on where the source lies nor on
    the resolution. `volumes` are the facts of each, see `volume_cache.DecodedVolume`. `grouped` is False for scans among which nobody looked for repeats (the phantom), `decoded` for an account
    without pixels.
    """
    numbers = _number_patients(records)
    names = _names(records, numbers)
    files = [
        {
            "path": name,
            "part": record.part,
            "class": record.class_name,
            "sha256": record.sha256,
            "width": record.width,
            "height": record.height,
            "group": record.group,
            "repeat": record.repeat,
            "split": record.split,
        }
        | ({"patient": numbers[record.patient]} if record.patient in numbers else {})
        | _place(record)
        for record, name in zip(records, names, strict=True)
    ]
    identity = json.dumps([class_names, files], sort_keys=True)
    good = [record for record in records if record.flaw is None]
    scale = common_scale(record.extent for record in good)
    about_volumes = (
        _volumes(volumes, sum(record.plane is not None for record in records)) if volumes else None
    )
    manifest = {
        "manifest_version": MANIFEST_VERSION,
        "source": source,
        "findings": [asdict(finding) for finding in (*findings, *_intensities(records, names, scale))],
        "settings": _settings(options, decoded),
        "intensity_scale": {kind: list(ends) for kind, ends in scale.items()},
        "class_names": list(class_names),
        "mask_labels": channels.values_by_label if channels else {},
        "patients": _patients(records),
        "plane": options.plane if volumes and options.plane != "all" else None,
        "spacing_mm": about_volumes
        and about_volumes["pixel_mm"],  # of the model's pixels, where all have one
        "volumes": about_volumes,
        "parts": _count_by_class(
            records,
            class_names,
            lambda record: record.part,
            sorted({record.part for record in records}, key=PARTS.index),
        ),
        "sizes": _sizes(good),
        "unreadable": [
            {"path": name, "reason": record.flaw}
            for record, name in zip(records, names, strict=True)
            if record.flaw is not None
        ],
        "dark": sum(record.brightest < DARK for record in good),
        "repeats": _repeats(good) if grouped else None,
        "leaks": _leaks(good),
        "split": _count_by_class(records, class_names, lambda record: record.split, SPLITS),
        "content_sha256": hashlib.sha256(identity.encode()).hexdigest(),
        "files": files,
    }
    return manifest, {name: record.path for name, record in zip(names, records, strict=True)}


def write_sources(file: Path, paths: dict[str, str]) -> None:
    """Write which file each name of a manifest stands for, as CSV that nobody but the user may read."""
    with whole_file(file) as unfinished:
        unfinished.touch(mode=0o600)
        as_named = sys.getfilesystemencodeerrors()  # of names that are no UTF-8, the same bytes
        with unfinished.open("w", encoding="utf-8", errors=as_named, newline="") as text:
            table = csv.writer(text)
            table.writerow(("name", "path"))
            table.writerows(paths.items())


def _settings(options: ScanOptions, decoded: bool) -> dict:
    """How the scans are read and split, without where they lie."""
    settings = {name: value for name, value in asdict(options).items() if name not in PLACES}
    return settings if decoded else {**settings, "resolution": None, "fit": None}


def _number_patients(records: list[ScanRecord]) -> dict[str, int]:
    """{patient: number from 1}, in the order of the contents, which says nothing of names."""
    contents: dict[str, str] = {}
    for record in records:
        if record.patient is not None:
            contents[record.patient] = min(contents.get(record.patient, "g"), record.sha256 or "g")
    return {name: number for number, name in enumerate(sorted(contents, key=lambda n: (contents[n], n)), 1)}


def _names(records: list[ScanRecord], numbers: dict[str, int]) -> list[str]:
    """What each record is called in the manifest: `patient 3/0007`, of volumes `patient 3/t1/axial 042`; or its path.

    Where some patients are known and others not, nor are paths told of the others: they may bear the names of the first.
    """
    order: dict[tuple, dict] = defaultdict(
        dict
    )  # of a patient's pictures, and of the volumes of one contrast
    names = []
    for record in records:
        if record.patient is None:
            there = order[None]
            names.append(
                f"unknown/{there.setdefault(len(there), len(there) + 1):04d}" if numbers else record.path
            )
            continue
        patient, what = f"patient {numbers[record.patient]}", record.contrast or "volume"
        is_slice = record.plane is not None
        there = order[record.patient, what if is_slice else None]
        number = there.setdefault(record.path.rpartition("/")[0] if is_slice else len(there), len(there) + 1)
        if is_slice:
            names.append(
                f"{patient}/{what}{f' {number}' if number > 1 else ''}/{record.plane} {record.index:03d}"
            )
        else:
            names.append(f"{patient}/{number:04d}")
    return names


def _place(record: ScanRecord) -> dict:
    """Of a slice of a volume, where it lies."""
    if record.plane is None:
        return {} if record.contrast is None else {"contrast": record.contrast}
    return {
        "volume": record.volume,
        "contrast": record.contrast,
        "plane": record.plane,
        "position_mm": record.position_mm,
    }


def _volumes(facts: list[dict], kept: int) -> dict:
    """What the volumes have in common, and in what they differ."""
    left_out: Counter = Counter()
    alike: dict[str, list[str]] = defaultdict(list)  # notes, which differ in numbers
    for row in facts:
        left_out.update(row["left_out"])
        for note in row["notes"]:
            alike[NUMBER.sub("#", note)].append(note)
    spacings = [mm for row in facts for mm in row["spacing_mm"]]
    fields = [max(row["extent_mm"]) for row in facts]
    pixels = [row["pixel_mm"] for row in facts]
    is_one = all(pixels) and max(pixels) <= 1.01 * min(pixels)
    return {
        "total": sum(row.get("volumes", 1) for row in facts),
        "slices": kept,
        "left_out": dict(left_out),
        "notes": {_common(notes): len(notes) for notes in alike.values()},
        "spacing_mm": [min(spacings), max(spacings)],
        "field_of_view_mm": [min(fields), max(fields)],
        "oblique": sum(row["oblique"] for row in facts),
        "pixel_mm": float(np.median(pixels)) if is_one else None,
    }


def _common(notes: list[str]) -> str:
    """Notes that differ in numbers as one, with the lowest and the highest of each."""
    columns = zip(*(map(int, NUMBER.findall(note)) for note in notes), strict=True)
    ranges = iter([f"{min(c)} to {max(c)}" if min(c) < max(c) else f"{min(c)}" for c in columns])
    return NUMBER.sub(lambda _: next(ranges), notes[0])


def _patients(records: list[ScanRecord]) -> dict | None:
    """How many patients each split has; None where nobody knows any."""
    of_split = {
        split: {r.patient for r in records if r.split == split and r.patient is not None} for split in ORDER
    }
    total = len({record.patient for record in records} - {None})
    unknown = sum(record.patient is None for record in records)
    if not total:
        return None
    return {
        "total": total,
        **{split: len(names) for split, names in of_split.items()},
        "scans_without": unknown,
    }


def _intensities(records: list[ScanRecord], names: list[str], scales: Scale) -> list[Finding]:
    """What is black and white in samples whose files do not say it, and which scans decide that."""
    findings = []
    for kind, scale in scales.items():
        of_kind = [
            (r.extent, name)
            for r, name in zip(records, names, strict=True)
            if not r.flaw and r.extent[0] == kind
        ]
        if of_kind:
            words = f"TIFF with {kind} samples beyond 8 bits: {len(of_kind)}, in all {scale[0]:g} is black and {scale[1]:g} white"
            (lowest, of_lowest), (highest, of_highest) = (
                choose(of_kind, key=lambda found, i=i: found[0][i]) for i, choose in ((1, min), (2, max))
            )
            named = f"lowest {lowest[1]:g} in {of_lowest}, highest {highest[2]:g} in {of_highest}"
            findings.append(Finding(words, named))
    return findings


def _count_by_class(records: list[ScanRecord], class_names: tuple[str, ...], key, keys) -> dict:
    """{key: {"total": files, "classes": {class: files}}}; unusable files count in the total of their part."""
    counts: dict[str, Counter] = defaultdict(Counter)
    for record in records:
        counts[key(record)][record.class_name] += 1
    return {
        name: {
            "total": counts[name].total(),
            "classes": {class_name: counts[name][class_name] for class_name in class_names},
        }
        for name in keys
    }


def _sizes(records: list[ScanRecord]) -> dict:
    """Of the readable scans, in pixels: least, median and greatest; aspect is width / height."""
    columns = {
        "width": [record.width for record in records],
        "height": [record.height for record in records],
        "aspect": [record.width / record.height for record in records],
    }
    return {
        name: {"min": min(values), "median": float(np.median(values)), "max": max(values)}
        for name, values in columns.items()
    }


def _repeats(records: list[ScanRecord]) -> dict:
    """Of the files that repeat one before them: how exactly, and whether in one part or in both.

    "across_parts" are files whose like is in a part before theirs; "within" are all others of their part.
    """
    earliest = _earliest_part(records)
    repeats: dict = {
        kind: {"total": 0, **{f"within_{part}": 0 for part in PARTS}, "across_parts": 0}
        for kind in ("byte-identical", "near-identical", "mirrored")
    }
    for record in records:
        if record.repeat:
            across = record.part != earliest[record.group]
            repeats[record.repeat]["total"] += 1
            repeats[record.repeat]["across_parts" if across else f"within_{record.part}"] += 1
    sizes = Counter(record.group for record in records)
    classes = Counter(group for group, _ in {(record.group, record.class_name) for record in records})
    return {
        "byte_identical": repeats["byte-identical"],
        "near_identical": repeats["near-identical"],
        "mirrored": repeats["mirrored"],
        "groups": len(sizes),
        "groups_with_repeats": sum(size > 1 for size in sizes.values()),
        "label_conflicts": sum(count > 1 for count in classes.values()),
    }


def _leaks(records: list[ScanRecord]) -> dict:
    """Scans that show a picture of a part or split before their own, by how exactly, or that are of a patient who is in one.

    "mirrored" are those that show none the same way round.
    """
    earliest = _earliest_part(records)
    originals = [record for record in records if record.part == earliest.get(record.group)]
    hashes, facing = {record.sha256 for record in originals}, {record.facing for record in originals}
    kinds: Counter = Counter()
    for record in records:
        if record.split == "leak" and record.repeat is None:
            kinds["of_patients"] += 1
        elif (
            record.split == "leak" and record.part == earliest[record.group]
        ):  # of a patient with whom it shares little else
            kinds["near_identical"] += 1
        elif record.split == "leak":
            seen = "near_identical" if record.facing in facing else "mirrored"
            kinds["byte_identical" if record.sha256 in hashes else seen] += 1
    names = ("byte_identical", "near_identical", "mirrored", "of_patients")
    return {"total": kinds.total(), **{name: kinds[name] for name in names}}


def _earliest_part(records: list[ScanRecord]) -> dict:
    """{group: the first of the parts that it has files in}."""
    return {r.group: r.part for r in sorted(records, key=lambda r: PARTS.index(r.part), reverse=True)}
