"""From a source of scans to training, validation and test data sets: find, read, check, group, split.

Files of one content are decoded once and share a row of the cached table; which file goes where is decided
anew at every start, from that table.
"""

import hashlib
from dataclasses import dataclass

import datasets
import numpy as np

from mri_ddpm.config import MIN_RESOLUTION
from mri_ddpm.errors import InputError

from .account import make_manifest
from .cache import DEPTH, decoded
from .dataset import ScanDataset
from .layout import PARTS
from .phantom import CLASS_NAMES, draw_phantoms
from .reading import FITS, BadImageError
from .repeats import group_near_identical
from .sources import Source, find_source
from .split import ScanRecord, assign_split

ON_BAD_IMAGE = ("error", "skip")
FACTS = ["sha256", "flaw", "width", "height", "brightest", "kind", "lowest", "highest"]
_MOST_NAMED = 10


@dataclass(frozen=True)
class Scans:
    """The split scans, and the account of where they come from.

    test: the published testing part less what leaks from training; None where there is no such part.
    class_names: sorted; () for scans without classes, whose class_labels are all 0.
    manifest: JSON-able, see `account.make_manifest`.
    """

    train: ScanDataset
    validation: ScanDataset
    test: ScanDataset | None
    class_names: tuple[str, ...]
    manifest: dict


def load_scans(
    *,
    resolution: int,
    train_data_dir: str | None = None,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    fit: str = "pad",
    validation_share: float = 0.1,
    keep_repeats: bool = False,
    on_bad_image: str = "error",
    seed: int = 0,
    cache_dir: str | None = None,
) -> Scans:
    """Load the scans of a folder, a .zip or a Hub data set as (resolution, resolution) images.

    train_data_dir: class folders, `Training/` + `Testing/` of these, images alone, or a .zip of any of them.
    dataset_name, dataset_config_name, image_column, label_column: what `datasets.load_dataset` takes, and the
        columns; an empty `label_column` means scans without classes.
    fit: "pad", "crop" or "stretch" to a square (`reading.fit_square`).
    validation_share: above 0 and below 1, taken from the training part by picture and class.
    keep_repeats: whether copies of a picture stay beside it.
    on_bad_image: "error", or "skip" to leave unreadable files out and list them in the manifest.
    cache_dir: where decoded scans are kept, by default in the cache of `datasets`.

    Raises `InputError` for anything of this that cannot be used.
    """
    _check(fit, validation_share, on_bad_image, resolution)
    source = find_source(train_data_dir, dataset_name, dataset_config_name, image_column, label_column)
    table, records = _examine(source, resolution, fit, cache_dir)
    bad = [record for record in records if record.flaw]
    if bad and on_bad_image == "error":
        named = "; ".join(f"{record.path} {record.flaw}" for record in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise InputError(
            f"{len(bad)} of {len(records)} files in {source.name} cannot be used: {named}{more}"
            " (mend or remove them, or leave them out by --on_bad_image skip)."
        )
    class_names = _split(source, table, records, validation_share, keep_repeats, seed)
    _refuse_empty_classes(source, records, class_names)
    settings = _settings(resolution, fit, validation_share, keep_repeats, seed)
    return _scans(
        table,
        records,
        class_names,
        make_manifest(source.name, records, class_names, settings, source.findings),
    )


def account_of(
    train_data_dir: str | None = None,
    *,
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    image_column: str = "image",
    label_column: str = "label",
    validation_share: float = 0.1,
    keep_repeats: bool = False,
    seed: int = 0,
    cache_dir: str | None = None,
) -> dict:
    """The manifest that `load_scans` would give, with unreadable files listed and none of the pixels kept.

    `content_sha256` is that of `load_scans` with the same arguments; `resolution` and `fit` are None.
    """
    _check(FITS[0], validation_share, ON_BAD_IMAGE[0], MIN_RESOLUTION)
    source = find_source(train_data_dir, dataset_name, dataset_config_name, image_column, label_column)
    table, records = _examine(source, None, FITS[0], cache_dir)
    class_names = _split(source, table, records, validation_share, keep_repeats, seed)
    settings = _settings(None, None, validation_share, keep_repeats, seed)
    return make_manifest(source.name, records, class_names, settings, source.findings)


def load_phantoms(*, num_images: int, resolution: int, validation_share: float = 0.1, seed: int = 0) -> Scans:
    """Draw `num_images` phantom heads of all classes and split them; there is no test part."""
    _check(FITS[0], validation_share, ON_BAD_IMAGE[0], resolution)
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
        )
        for index, (image, label) in enumerate(zip(stored, labels, strict=True))
    ]
    assign_split(records, validation_share, keep_repeats=False, seed=seed)
    settings = _settings(resolution, None, validation_share, False, seed)
    manifest = make_manifest("phantom", records, tuple(CLASS_NAMES), settings, grouped=False)
    return _scans(table, records, tuple(CLASS_NAMES), manifest, rows=np.arange(num_images))


def _check(fit: str, validation_share: float, on_bad_image: str, resolution: int) -> None:
    if resolution < MIN_RESOLUTION:
        raise InputError(f"--resolution {resolution} is too small: give at least {MIN_RESOLUTION} pixels.")
    if fit not in FITS:
        raise InputError(f"--fit {fit} is not known: give one of {', '.join(FITS)}.")
    if on_bad_image not in ON_BAD_IMAGE:
        raise InputError(
            f"--on_bad_image {on_bad_image} is not known: give one of {', '.join(ON_BAD_IMAGE)}."
        )
    if not 0 < validation_share < 1:
        raise InputError(
            f"--validation_share {validation_share} is out of range: give a share above 0 and below 1,"
            " such as 0.1, for some scans always validate."
        )


def _settings(resolution, fit, validation_share: float, keep_repeats: bool, seed: int) -> dict:
    return {
        "resolution": resolution,
        "fit": fit,
        "validation_share": validation_share,
        "keep_repeats": keep_repeats,
        "seed": seed,
    }


def _examine(
    source: Source, resolution: int | None, fit: str, cache_dir: str | None
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
        records.append(ScanRecord(file.path, file.part, file.class_name, sha256, flaw))
        if not flaw:
            readers[sha256] = file.read
    table = decoded(readers, resolution, fit, cache_dir)
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
    validation_share: float,
    keep_repeats: bool,
    seed: int,
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
    rows = [row for row in rows if row["flaw"] is None]
    found = group_near_identical(
        [row["picture_hash"] for row in rows], [row["mirrored_hash"] for row in rows]
    )
    group_of = {row["sha256"]: pair for row, pair in zip(rows, np.stack(found, 1).tolist(), strict=True)}
    numbers: dict[int, int] = {}  # numbered in the order of the files, so that the manifest reads well
    for record in good:
        record.facing, group = group_of[record.sha256]
        record.group = numbers.setdefault(group, len(numbers))
    assign_split(records, validation_share, keep_repeats, seed)
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
    )
