"""From a source of scans to training, validation and test data sets: find, read, check, group, split.

Files of one content are decoded once and share a row of the cached table; which file goes where is decided
anew at every start, from that table.
"""

import dataclasses
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from functools import partial

import datasets
import numpy as np
from datasets.table import Table, concat_tables

from mri_ddpm.config import ScanOptions
from mri_ddpm.errors import InputError

from .account import make_manifest
from .cache import DEPTH, cache_folder, decoded, kept
from .channels import Channels
from .dataset import ScanDataset
from .index import Index
from .layout import PARTS, ScanFile
from .phantom import CLASS_NAMES, CONTRASTS, MASK_LABELS, draw_phantom_planes
from .reading.pictures import BadImageError
from .sources import Source, find_source
from .split import ScanRecord, assign_split, group_records
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
_MOST_NAMED = 10


@dataclass(frozen=True)
class Scans:
    """The split scans, and the account of where they come from.

    test: the published testing part less what leaks from training; None where there is no such part.
    class_names: sorted; () for scans without classes, whose class_labels are all 0.
    channels: what each scan's planes are.
    manifest: JSON-able, see `account.make_manifest`.
    paths: where the files of the manifest lie, by the names that they have there; where no patient is known the
        names are the paths.
    """

    train: ScanDataset
    validation: ScanDataset
    test: ScanDataset | None
    class_names: tuple[str, ...]
    manifest: dict
    paths: dict[str, str]
    channels: Channels = Channels()


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


def load_scans(**options) -> Scans:
    """Load the scans of a folder, a .zip or a Hub data set as (resolution, resolution) images.

    options: the fields of `config.ScanOptions`: `train_data_dir` or `dataset_name`, `resolution` and so on.

    Raises `InputError` for anything of this that cannot be used.
    """
    options = ScanOptions(**options)
    if options.channels or options.condition_on:
        raise InputError(
            f"--{'channels' if options.channels else 'condition_on'} is for the phantom so far, not for scans of a folder; leave it out."
        )
    source = find_source(options)
    examined = _examine(source, options.resolution, options)
    records = examined.records
    bad = [record for record in records if record.flaw]
    if bad and options.on_bad_image == "error":
        named = "; ".join(f"{record.path} {record.flaw}" for record in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise InputError(
            f"{len(bad)} of {len(records)} files in {source.name} cannot be used: {named}{more}"
            " (mend or remove them, or leave them out by --on_bad_image skip)."
        )
    class_names = _split(source, examined, options)
    _refuse_empty_classes(source, records, class_names)
    manifest, paths = make_manifest(
        source.name, records, class_names, options, source.findings, examined.volumes
    )
    return _scans(examined.table, records, class_names, manifest, paths, examined.rows)


def account_of(train_data_dir: str | None = None, **options) -> tuple[dict, dict]:
    """The manifest and the paths that `load_scans` would give, with unreadable files listed and none of the pixels kept.

    `content_sha256` is that of `load_scans` with the same options; `resolution` and `fit` are None.
    """
    options = ScanOptions(train_data_dir=train_data_dir, **options)
    source = find_source(options)
    examined = _examine(source, None, options)
    class_names = _split(source, examined, options)
    return make_manifest(
        source.name, examined.records, class_names, options, source.findings, examined.volumes, decoded=False
    )


def load_phantoms(*, num_images: int, **options) -> Scans:
    """Draw `num_images` phantom heads of all classes and split them; there is no test part.

    options: of `config.ScanOptions`: `resolution`, `validation_share`, `seed`, `channels` and `condition_on`.

    Raises `InputError` for a channel that the phantom does not have.
    """
    options = ScanOptions(**options)
    channels = Channels.of(options, MASK_LABELS)
    for flag in ("channels", "condition_on"):
        for name in getattr(options, flag):
            if name not in (*CONTRASTS, *MASK_LABELS):
                raise InputError(
                    f"--{flag} {name} is nothing that the phantom has; it has the contrasts {', '.join(CONTRASTS)} and the mask "
                    f"{', '.join(MASK_LABELS)}."
                )
    resolution, planes = options.resolution, channels.planes
    drawn, labels = draw_phantom_planes(num_images, resolution, options.seed, planes)
    stored = [
        drawn[name] if name in MASK_LABELS else np.round(drawn[name] * DEPTH).astype(np.uint16)
        for name in planes
    ]
    stored = np.stack(stored, axis=1).reshape(
        num_images * len(planes), resolution**2
    )  # a scan's planes in a row
    pixels = datasets.Sequence(datasets.Value("uint16"), length=resolution**2)
    table = datasets.Dataset.from_dict({"pixels": stored}, features=datasets.Features({"pixels": pixels}))
    records = [
        ScanRecord(
            path=f"phantom/{index:06d}",
            part="training",
            class_name=CLASS_NAMES[label],
            sha256=hashlib.sha256(image.tobytes()).hexdigest(),
            flaw=None,
            width=resolution,
            height=resolution,
            group=index,
            unit=index,
        )
        for index, (image, label) in enumerate(zip(np.split(stored, num_images), labels, strict=True))
    ]
    assign_split(records, options.validation_share, keep_repeats=False, seed=options.seed)
    manifest, paths = make_manifest("phantom", records, tuple(CLASS_NAMES), options, grouped=False)
    rows = np.arange(len(stored)).reshape(num_images, len(planes))
    return _scans(table, records, tuple(CLASS_NAMES), manifest, paths, rows, channels)


def _examine(source: Source, resolution: int | None, options: ScanOptions) -> Examined:
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
            f" with others.{_also(source)}"
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


def _also(source: Source) -> str:
    """A sentence on what else was found in a source that cannot be used as it is."""
    return f" Found: {'; '.join(finding.words for finding in source.findings)}." if source.findings else ""


def _split(
    source: Source,
    examined: Examined,
    options: ScanOptions,
) -> tuple[str, ...]:
    """Group the usable records, send each where it goes, and return the class names."""
    records = examined.records
    good = [record for record in records if not record.flaw]
    class_names = {part: {r.class_name for r in good if r.part == part} for part in PARTS}
    if not class_names["training"]:
        raise InputError(
            f"{source.name} holds images for testing or validation only: training scans are needed too."
        )
    for part in PARTS[1:]:
        if strangers := sorted(class_names[part] - class_names["training"], key=str):
            raise InputError(
                f"In {source.name} the class {strangers[0]} has images in the {part} part only: add some to the"
                " train split, or take the class out."
            )
    near = group_records(records, examined.hashes, partial(kept, folder=cache_folder(options.cache_dir)))
    try:
        assign_split(records, options.validation_share, options.keep_repeats, options.seed, near)
    except InputError as error:
        raise InputError(f"{error}{_also(source)}") from None
    return tuple(sorted(class_names["training"] - {None}))


def _refuse_empty_classes(source: Source, records: list[ScanRecord], class_names: tuple[str, ...]) -> None:
    """A class of which nothing is left to train on would be drawn all the same, from what it was initialized with."""
    for name in class_names:
        copies = [r for r in records if (r.class_name, r.part) == (name, "training") and not r.flaw]
        if any(record.split == "train" for record in copies):
            continue
        kept = {r.group: r for r in records if r.split in ("train", "validation")}
        like = kept[copies[0].group]
        raise InputError(
            f"In {source.name} the class {name} has no scan left to train on: each is a copy of one of another class, such as"
            f" {copies[0].path} of {like.path}; take out one of the two folders."
        )


def _scans(
    table: datasets.Dataset,
    records: list[ScanRecord],
    class_names: tuple[str, ...],
    manifest: dict,
    paths: dict[str, str],
    rows: np.ndarray,
    channels: Channels | None = None,
) -> Scans:
    """The data sets of each split; `rows`: where each record's pixels are."""
    channels = channels or Channels()
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(record.class_name, 0) for record in records])
    where = {
        name: np.array([record.split == name for record in records])
        for name in ("train", "validation", "test")
    }
    splits = {name: ScanDataset(table, rows[mask], labels[mask], channels) for name, mask in where.items()}
    has_test_part = any(record.part == "testing" for record in records)
    return Scans(
        splits["train"],
        splits["validation"],
        splits["test"] if has_test_part else None,
        class_names,
        manifest,
        paths,
        channels,
    )
