"""Every scan of a source looked at: hashed, decoded, and what is known of it."""

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass, field

import datasets
import numpy as np
from datasets.table import Table, concat_tables

from mri_ddpm.config import ScanOptions
from mri_ddpm.errors import InputError

from .cache import cache_folder, decoded
from .index import Index
from .layout import ScanFile
from .reading.pictures import BadImageError
from .sources import Source
from .split import ScanRecord
from .volume_cache import CUTTING, DecodedVolume, decoded_volumes
from .volume_files import VolumeFile

FACTS = [
    "sha256",
    "flaw",
    "width",
    "height",
    "brightest",
    "kind",
    "lowest",
    "highest",
    "picture_hash",
    "mirrored_hash",
]
OF_SLICES = ["plane", "index", "position_mm", "width", "height", "brightest"]


@dataclass(frozen=True)
class Examined:
    """What was found of scans: a record each, and the row of the table that has its pixels (-1 where there are none).

    hashes: {sha256: the `picture_hashes` of the picture and of its mirror image}.
    volumes: the facts of each, see `volume_cache.DecodedVolume`.
    """

    records: list[ScanRecord]
    rows: np.ndarray
    hashes: dict[str, tuple[bytes, bytes]]
    table: Table | None
    volume: dict | None = None
    volumes: list[dict] = field(default_factory=list)


def examine(source: Source, resolution: int | None, options: ScanOptions) -> Examined:
    """Hash every file, decode every content, and note what is known of each scan; raises if none can be used."""
    volumes = [file for file in source.files if isinstance(file.content, VolumeFile)]
    _refuse_options_of_volumes(source, options, bool(volumes))
    pictures = [file for file in source.files if not isinstance(file.content, VolumeFile)]
    found = [
        _examine_pictures(pictures, resolution, options),
        *_examine_volumes(volumes, source.index, resolution, options),
    ]
    records = [record for part in found for record in part.records]
    if not records:
        left_out = Counter()
        for part in found:
            left_out.update(part.volume["left_out"] if part.volume else {})
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{source.name} holds no slice that is asked for: {reasons}; ask for others.")
    if all(record.flaw for record in records):
        others = f", and so on for all {len(source.files)} files" if len(source.files) > 1 else ""
        raise InputError(
            f"{source.name} holds no scans that can be used: {records[0].path} {records[0].flaw}{others}; give a folder"
            f" with others.{also_found(source)}"
        )
    starts = np.cumsum([0, *(0 if part.table is None else len(part.table) for part in found)])
    rows = [
        np.where(part.rows < 0, -1, part.rows + start) for part, start in zip(found, starts, strict=False)
    ]
    tables = [part.table for part in found if part.table is not None]
    return Examined(
        records,
        np.concatenate(rows),
        {sha256: pair for part in found for sha256, pair in part.hashes.items()},
        # Its fingerprint, for which all would be pickled, nobody asks for
        datasets.Dataset(concat_tables(tables), fingerprint="scans") if tables else None,
        volumes=[part.volume for part in found if part.volume],
    )


def _examine_pictures(files: list[ScanFile], resolution: int | None, options: ScanOptions) -> Examined:
    """Pictures, of which those of one content share a row of one table."""
    records, readers = [], {}
    for file in files:
        sha256, flaw = None, file.flaw
        try:
            content = file.content.read()
            sha256 = hashlib.sha256(content).hexdigest()
        except BadImageError as error:
            flaw = flaw or str(error)
        except OSError as error:
            flaw = flaw or f"cannot be read ({error.strerror or error})"
        records.append(
            ScanRecord(file.path, file.part, file.class_name, sha256, flaw, file.patient, file.contrast)
        )
        if not flaw:
            readers[sha256] = file.content.read
    if not readers:
        return Examined(records, np.full(len(records), -1), {}, None)
    table = decoded(readers, resolution, options.fit, options.cache_dir)
    known = {row["sha256"]: row for row in table.select_columns(FACTS).to_list()}
    for record in records:
        if not record.flaw:
            row = known[record.sha256]
            record.flaw, record.width, record.height = row["flaw"], row["width"], row["height"]
            record.brightest = row["brightest"]
            record.extent = row["kind"], row["lowest"], row["highest"]
    place = {sha256: number for number, sha256 in enumerate(known)}
    rows = np.array([-1 if record.flaw else place[record.sha256] for record in records])
    hashes = {
        s: (row["picture_hash"], row["mirrored_hash"]) for s, row in known.items() if row["flaw"] is None
    }
    return Examined(records, rows, hashes, table.data.select(["pixels"]) if resolution else None)


def _examine_volumes(
    files: list[ScanFile], index: Index | None, resolution: int | None, options: ScanOptions
) -> list[Examined]:
    """Volumes, each with a table of its own; one that cannot be used is one record."""
    index = index or Index(cache_folder(options.cache_dir))
    usable, hashes, masks, flaws = [], [], [], {}
    for file in files:
        try:
            if file.flaw:
                raise BadImageError(file.flaw)
            sha256 = file.content.sha256(index)
            mask = (file.mask, file.mask.sha256(index)) if file.mask and options.slices != "all" else None
        except BadImageError as error:
            flaws[file.path] = str(error)
        except OSError as error:
            flaws[file.path] = f"cannot be read ({error.strerror or error})"
        else:
            usable.append(file)
            hashes.append(sha256)
            masks.append(mask)
    index.save()
    volumes = decoded_volumes([file.content for file in usable], hashes, masks, options, resolution)
    found = {file.path: volume for file, volume in zip(usable, volumes, strict=True)}
    return [_examine_volume(file, found.get(file.path), flaws.get(file.path), resolution) for file in files]


def _examine_volume(
    file: ScanFile, volume: DecodedVolume | None, flaw: str | None, resolution: int | None
) -> Examined:
    """The slices of one volume, which are known by the hash of its voxels and their place."""
    who = {"patient": file.patient, "contrast": file.contrast}
    if volume is None or volume.facts["flaw"]:
        flaw = flaw or volume.facts["flaw"]
        return Examined(
            [ScanRecord(file.path, file.part, file.class_name, None, flaw, **who)], np.array([-1]), {}, None
        )
    records, hashes = [], {}
    columns = volume.table.select([*OF_SLICES, "picture_hash", "mirrored_hash"]).to_pydict()
    for plane, index, position_mm, width, height, brightest, *pair in zip(*columns.values(), strict=True):
        of_slice = f"{volume.facts['sha256']} {plane} {index}"
        record = ScanRecord(
            f"{file.path}/{plane} {index:03d}",
            file.part,
            file.class_name,
            hashlib.sha256(of_slice.encode()).hexdigest(),
            None,
            **who,
            volume=volume.facts["sha256"],
            plane=plane,
            index=index,
            position_mm=round(position_mm, 2),
            width=width,
            height=height,
            brightest=brightest,
        )
        records.append(record)
        hashes[record.sha256] = tuple(pair)
    table = volume.table.select(["pixels"]) if resolution and records else None
    return Examined(records, np.arange(len(records)), hashes, table, volume.facts)


def _refuse_options_of_volumes(source: Source, options: ScanOptions, has_volumes: bool) -> None:
    """What is asked of volumes does nothing to pictures, and masks are needed to go by them."""
    asked = [f.name for f in dataclasses.fields(ScanOptions) if f.name in CUTTING]
    asked = [name for name in asked if getattr(options, name) != getattr(ScanOptions(), name)]
    if asked and not has_volumes:
        raise InputError(f"--{asked[0]} is for volumes, and {source.name} holds none: leave it out.")
    if options.slices != "all":
        without = [
            file.path for file in source.files if isinstance(file.content, VolumeFile) and not file.mask
        ]
        if without:
            raise InputError(
                f"--slices {options.slices} needs a mask for each volume, and {without[0]} has none: put it beside the volume, as"
                " NAME_seg.nii.gz, or take --slices all."
            )


def also_found(source: Source) -> str:
    """A sentence on what else was found in a source that cannot be used as it is."""
    return f" Found: {'; '.join(finding.words for finding in source.findings)}." if source.findings else ""
