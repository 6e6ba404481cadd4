"""From a source of scans to training, validation and test data sets: find, read, check, group, split.

Files of one content are decoded once and share a row of the cached table; which file goes where is decided
anew at every start, from that table.
"""

import hashlib
from dataclasses import dataclass

import datasets
import numpy as np

from mri_ddpm.config import ScanOptions
from mri_ddpm.errors import InputError

from .account import make_manifest
from .cache import DEPTH, decoded
from .dataset import ScanDataset
from .layout import PARTS
from .phantom import CLASS_NAMES, draw_phantoms
from .reading import BadImageError
from .sources import Source, find_source
from .split import ScanRecord, assign_split, group_records

FACTS = ["sha256", "flaw", "width", "height", "brightest", "kind", "lowest", "highest"]
_MOST_NAMED = 10


@dataclass(frozen=True)
class Scans:
    """The split scans, and the account of where they come from.

    test: the published testing part less what leaks from training; None where there is no such part.
    class_names: sorted; () for scans without classes, whose class_labels are all 0.
    manifest: JSON-able, see `account.make_manifest`.
    paths: where the files of the manifest lie, by the names that they have there; of files without a known patient
        the names are the paths.
    """

    train: ScanDataset
    validation: ScanDataset
    test: ScanDataset | None
    class_names: tuple[str, ...]
    manifest: dict
    paths: dict[str, str]


def load_scans(**options) -> Scans:
    """Load the scans of a folder, a .zip or a Hub data set as (resolution, resolution) images.

    options: the fields of `config.ScanOptions`: `train_data_dir` or `dataset_name`, `resolution` and so on.

    Raises `InputError` for anything of this that cannot be used.
    """
    options = ScanOptions(**options)
    source = find_source(options)
    table, records = _examine(source, options.resolution, options)
    bad = [record for record in records if record.flaw]
    if bad and options.on_bad_image == "error":
        named = "; ".join(f"{record.path} {record.flaw}" for record in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise InputError(
            f"{len(bad)} of {len(records)} files in {source.name} cannot be used: {named}{more}"
            " (mend or remove them, or leave them out by --on_bad_image skip)."
        )
    class_names = _split(source, table, records, options)
    _refuse_empty_classes(source, records, class_names)
    manifest, paths = make_manifest(source.name, records, class_names, options, source.findings)
    return _scans(table, records, class_names, manifest, paths)


def account_of(train_data_dir: str | None = None, **options) -> tuple[dict, dict]:
    """The manifest and the paths that `load_scans` would give, with unreadable files listed and none of the pixels kept.

    `content_sha256` is that of `load_scans` with the same options; `resolution` and `fit` are None.
    """
    options = ScanOptions(train_data_dir=train_data_dir, **options)
    source = find_source(options)
    table, records = _examine(source, None, options)
    class_names = _split(source, table, records, options)
    return make_manifest(source.name, records, class_names, options, source.findings, decoded=False)


def load_phantoms(*, num_images: int, resolution: int, validation_share: float = 0.1, seed: int = 0) -> Scans:
    """Draw `num_images` phantom heads of all classes and split them; there is no test part."""
    options = ScanOptions(resolution=resolution, validation_share=validation_share, seed=seed)
    images, labels = draw_phantoms(num_images, resolution, seed)  # (N, H, W) in [0, 1], (N,)
    stored = np.round(images * DEPTH).astype(np.uint16).reshape(num_images, resolution**2)
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
        for index, (image, label) in enumerate(zip(stored, labels, strict=True))
    ]
    assign_split(records, validation_share, keep_repeats=False, seed=seed)
    manifest, paths = make_manifest("phantom", records, tuple(CLASS_NAMES), options, grouped=False)
    return _scans(table, records, tuple(CLASS_NAMES), manifest, paths, rows=np.arange(num_images))


def _examine(
    source: Source, resolution: int | None, options: ScanOptions
) -> tuple[datasets.Dataset, list[ScanRecord]]:
    """Hash every file, decode every content, and note what is known of each; raises if none is an image."""
    records, readers = [], {}
    for file in source.files:
        sha256, flaw = None, file.flaw
        try:
            content = file.read()
            sha256 = hashlib.sha256(content).hexdigest()
        except BadImageError as error:
            flaw = flaw or str(error)
        except OSError as error:
            flaw = flaw or f"cannot be read ({error.strerror or error})"
        records.append(ScanRecord(file.path, file.part, file.class_name, sha256, flaw, file.patient))
        if not flaw:
            readers[sha256] = file.read
    table = decoded(readers, resolution, options.fit, options.cache_dir)
    known = {row["sha256"]: row for row in table.select_columns(FACTS).to_list()}
    for record in records:
        if not record.flaw:
            row = known[record.sha256]
            record.flaw, record.width, record.height = row["flaw"], row["width"], row["height"]
            record.brightest = row["brightest"]
            record.extent = row["kind"], row["lowest"], row["highest"]
    if all(record.flaw for record in records):
        raise InputError(
            f"{source.name} holds no images that can be used: {records[0].path} {records[0].flaw}, and so on"
            f" for all {len(records)} files: give --train_data_dir or --dataset_name with scans."
        )
    return table, records


def _split(
    source: Source,
    table: datasets.Dataset,
    records: list[ScanRecord],
    options: ScanOptions,
) -> tuple[str, ...]:
    """Group the usable records, send each where it goes, and return the class names."""
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
                " training part, or take the class out."
            )
    rows = table.select_columns(["sha256", "flaw", "picture_hash", "mirrored_hash"]).to_list()
    hashes = {
        row["sha256"]: (row["picture_hash"], row["mirrored_hash"]) for row in rows if row["flaw"] is None
    }
    near = group_records(records, hashes)
    assign_split(records, options.validation_share, options.keep_repeats, options.seed, near)
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
    rows: np.ndarray | None = None,
) -> Scans:
    """The data sets of each split; `rows`: where each record's pixels are, by default found by its sha256."""
    if rows is None:
        row_of = {sha256: row for row, sha256 in enumerate(table["sha256"])}
        rows = np.array([row_of.get(record.sha256, -1) for record in records])
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of.get(record.class_name, 0) for record in records])
    where = {
        name: np.array([record.split == name for record in records])
        for name in ("train", "validation", "test")
    }
    splits = {name: ScanDataset(table, rows[mask], labels[mask]) for name, mask in where.items()}
    has_test_part = any(record.part == "testing" for record in records)
    return Scans(
        splits["train"],
        splits["validation"],
        splits["test"] if has_test_part else None,
        class_names,
        manifest,
        paths,
    )
