"""Every scan of a source looked at: hashed, decoded, and what is known of it."""

import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import datasets
import numpy as np
from datasets.table import Table, concat_tables

from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

from .aligning import leader_of
from .cache import cache_folder, decoded
from .channels import Channels
from .contents import Content
from .index import Index
from .layout import ScanFile
from .masks import is_mask_name
from .reading.pictures import BadImageError
from .sources import Source
from .split import ScanRecord
from .volume_cache import CUTTING, Aligned, DecodedVolume, decoded_volumes
from .volume_files import VolumeFile

OF_SLICES = ["plane", "index", "position_mm", "width", "height", "brightest"]


@dataclass(frozen=True)
class Examined:
    """What was found of N scans of P planes: a record each, and where in the table its planes are.

    rows: int (N, P), -1 where there are none.
    hashes: {sha256: the `picture_hashes` of the picture and of its mirror image}.
    volumes: the facts of each, see `volume_cache.DecodedVolume`.
    labels: {mask: {value of a label: number of scans that show it}}, of all that its masks hold.
    """

    records: list[ScanRecord]
    rows: np.ndarray
    hashes: dict[str, tuple[bytes, bytes]]
    table: Table | None
    volumes: list[dict] = field(default_factory=list)
    labels: dict[str, Counter[int]] = field(default_factory=dict)


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
    facts = [row for part in found for row in part.volumes]
    if not records:
        left_out = Counter()
        for row in facts:
            left_out.update(row["left_out"])
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise InputError(f"{source.name} holds no slice that is asked for: {reasons}; ask for others.")
    if all(record.flaw for record in records):
        others = f", and so on for all {len(source.files)} files" if len(source.files) > 1 else ""
        raise InputError(
            f"{source.name} holds no scans that can be used: {records[0].complaint}{others}; give a folder"
            f" with others.{also_found(source)}"
        )
    starts = np.cumsum([0, *(0 if part.table is None else len(part.table) for part in found)])
    rows = [
        np.where(part.rows < 0, -1, part.rows + start) for part, start in zip(found, starts, strict=False)
    ]
    tables = [part.table for part in found if part.table is not None]
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    for part in found:
        for name, counts in part.labels.items():
            labels[name].update(counts)
    return Examined(
        records,
        np.concatenate(rows),
        {sha256: pair for part in found for sha256, pair in part.hashes.items()},
        # Its fingerprint, for which all would be pickled, nobody asks for
        datasets.Dataset(concat_tables(tables), fingerprint="scans") if tables else None,
        facts,
        dict(labels),
    )


def _examine_pictures(files: list[ScanFile], resolution: int | None, options: ScanOptions) -> Examined:
    """Pictures, of which those of one content share a row of one table; masks have a table of their own."""
    names = Channels.of(options).planes
    leader = names.index(leader_of(names))
    records, hashes_of, readers = [], [], {False: {}, True: {}}
    for file in files:
        hashes, flaw = (), file.flaw
        planes = file.planes or {"": file.content}
        try:
            hashes = _hashed(planes, lambda content: hashlib.sha256(content.read()).hexdigest())
        except BadImageError as error:
            flaw = flaw or str(error)
        except OSError as error:
            flaw = flaw or f"cannot be read ({error.strerror or error})"
        who = {"patient": file.patient, "contrast": file.contrast, "paths": file.paths}
        records.append(ScanRecord(file.path, file.part, file.class_name, _joined(hashes), flaw, **who))
        hashes_of.append(hashes)
        if not flaw:
            for (name, content), sha256 in zip(planes.items(), hashes, strict=True):
                readers[is_mask_name(name)][sha256] = content.read
    nowhere = np.full((len(records), len(names)), -1)
    if not readers[False]:
        return Examined(records, nowhere, {}, None)
    how = resolution, options.fit, options.cache_dir
    tables = [decoded(readers[False], *how), *([decoded(readers[True], *how, True)] if readers[True] else [])]
    facts = [table.remove_columns("pixels") if resolution else table for table in tables]
    known = [{row["sha256"]: {**row, "at": at} for at, row in enumerate(fact)} for fact in facts]
    rows, hashes, labels = nowhere, {}, defaultdict(Counter)
    for number, (record, own) in enumerate(zip(records, hashes_of, strict=True)):
        if record.flaw:
            continue
        found = [known[is_mask_name(name)][sha256] for name, sha256 in zip(names, own, strict=True)]
        first = found[leader]
        record.width, record.height, record.brightest = first["width"], first["height"], first["brightest"]
        record.extent = first["kind"], first["lowest"], first["highest"]
        unlike = (_unlike(first, *pair) for pair in zip(names, found, strict=True))
        record.flaw = first["flaw"] or next(filter(None, unlike), None)
        if record.flaw:
            continue
        rows[number] = [
            row["at"] + is_mask_name(n) * len(tables[0]) for n, row in zip(names, found, strict=True)
        ]
        hashes[record.sha256] = first["picture_hash"], first["mirrored_hash"]
        for name, row in zip(names, found, strict=True):
            labels[name].update(row.get("labels", ()))
    masks = {name: counts for name, counts in labels.items() if is_mask_name(name)}
    pixels = concat_tables([t.data.select(["pixels"]) for t in tables]) if resolution else None
    return Examined(records, rows, hashes, pixels, labels=masks)


def _hashed(planes: dict[str, Content | VolumeFile], hash_of: Callable[..., str]) -> tuple[str, ...]:
    """The hash of each plane. Raises `BadImageError` that names the plane, if it is not the first to be looked at, and `OSError`."""
    hashes, leader = [], leader_of(planes)
    for name, content in planes.items():
        try:
            hashes.append(hash_of(content))
        except BadImageError as error:
            raise BadImageError(str(error) if name == leader else f"has a {name} that {error}") from None
    return tuple(hashes)


def _joined(hashes: tuple[str, ...]) -> str | None:
    """One hash for all planes of a scan."""
    if len(hashes) < 2:
        return hashes[0] if hashes else None
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _unlike(first: dict, name: str, row: dict) -> str | None:
    """Why a plane does not go with the first one."""
    if row["flaw"]:
        return f"has a {name} that {row['flaw']}"
    size, own = (f"{found['width']}x{found['height']}" for found in (row, first))
    return (
        f"has a {name} of {size} pixels, and is {own} itself: bring them to one grid" if size != own else None
    )


def _examine_volumes(
    files: list[ScanFile], index: Index | None, resolution: int | None, options: ScanOptions
) -> list[Examined]:
    """Volumes, each with a table of its own; one that cannot be used is one record."""
    index = index or Index(cache_folder(options.cache_dir))
    usable, scans, flaws = [], [], {}
    for file in files:
        try:
            if file.flaw:
                raise BadImageError(file.flaw)
            planes = file.planes or {"": file.content}
            hashes = _hashed(planes, lambda content: content.sha256(index))
            marks = (file.mask, file.mask.sha256(index)) if file.mask and options.slices != "all" else None
        except BadImageError as error:
            flaws[file.path] = str(error)
        except OSError as error:
            flaws[file.path] = f"cannot be read ({error.strerror or error})"
        else:
            usable.append(file)
            scans.append(Aligned(planes, hashes, leader_of(planes), marks))
    index.save()
    found = dict(zip((f.path for f in usable), decoded_volumes(scans, options, resolution), strict=True))
    names = Channels.of(options).planes
    return [
        _examine_volume(file, found.get(file.path), flaws.get(file.path), resolution, names) for file in files
    ]


def _examine_volume(
    file: ScanFile,
    volume: DecodedVolume | None,
    flaw: str | None,
    resolution: int | None,
    names: tuple[str, ...],
) -> Examined:
    """The slices of one volume, or of several on one grid, which are known by the hash of all voxels and their place."""
    who = {"patient": file.patient, "contrast": file.contrast, "paths": file.paths}
    if volume is None or volume.facts["flaw"]:
        flaw = flaw or volume.facts["flaw"]
        record = ScanRecord(file.path, file.part, file.class_name, None, flaw, **who)
        return Examined([record], np.full((1, len(names)), -1), {}, None)
    facts, records, hashes = volume.facts, [], {}
    columns = volume.table.select([*OF_SLICES, "picture_hash", "mirrored_hash"]).to_pydict()
    of_leader = (column[names.index(leader_of(names)) :: len(names)] for column in columns.values())
    for plane, index, position_mm, width, height, brightest, *pair in zip(*of_leader, strict=True):
        of_slice = f"{facts['sha256']} {plane} {index}"
        record = ScanRecord(
            f"{file.path}/{plane} {index:03d}",
            file.part,
            file.class_name,
            hashlib.sha256(of_slice.encode()).hexdigest(),
            None,
            **who,
            volume=facts["sha256"],
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
    rows = np.arange(len(records) * len(names)).reshape(-1, len(names))
    counts = {name: {int(k): n for k, n in found.items()} for name, found in facts.get("labels", {}).items()}
    return Examined(records, rows, hashes, table, [facts], {name: Counter(c) for name, c in counts.items()})


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
