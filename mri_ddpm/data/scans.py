"""From a source of scans to training, validation and test data sets: find, read, check, group, split.

Files of one content are decoded once and share a row of the cached table; which file goes where is decided
anew at every start, from that table.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

import datasets
import numpy as np

from mri_ddpm.errors import InputError
from mri_ddpm.scan_options import ScanOptions

from .cache import DEPTH, cache_folder, kept
from .channels import Channels
from .dataset import ScanDataset
from .examination import Examined, also_found, examine
from .layout import PARTS, Finding
from .manifest import make_manifest
from .masks import named_labels
from .phantom import CLASS_NAMES, CONTRASTS, MASK_LABELS, draw_phantom_planes
from .sources import Source, find_source
from .split import ScanRecord, assign_split, group_records

_MOST_NAMED = 10


@dataclass(frozen=True)
class Scans:
    """The split scans, and the account of where they come from.

    test: the published testing part less what leaks from training; None where there is no such part.
    class_names: sorted; () for scans without classes, whose class_labels are all 0.
    channels: what each scan's planes are.
    manifest: JSON-able, see `manifest.make_manifest`.
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


def load_scans(**options) -> Scans:
    """Load the scans of a folder, a .zip or a Hub data set as (resolution, resolution) images.

    options: the fields of `config.ScanOptions`: `train_data_dir` or `dataset_name`, `resolution` and so on.

    Raises `InputError` for anything of this that cannot be used.
    """
    options = ScanOptions(**options)
    source = find_source(options)
    examined = examine(source, options.resolution, options)
    records = examined.records
    bad = [record for record in records if record.flaw]
    if bad and options.on_bad_image == "error":
        named = "; ".join(record.complaint for record in bad[:_MOST_NAMED])
        more = f"; and {len(bad) - _MOST_NAMED} more" if len(bad) > _MOST_NAMED else ""
        raise InputError(
            f"{len(bad)} of {len(records)} files in {source.name} cannot be used: {named}{more}"
            " (mend or remove them, or leave them out by --on_bad_image skip)."
        )
    class_names = _split(source, examined, options)
    _refuse_empty_classes(source, records, class_names)
    channels, findings = _channels(source, examined, options)
    manifest, paths = make_manifest(
        source.name, records, class_names, options, findings, examined.volumes, channels
    )
    return _scans(examined.table, records, class_names, manifest, paths, examined.rows, channels)


def account_of(train_data_dir: str | None = None, **options) -> tuple[dict, dict]:
    """The manifest and the paths that `load_scans` would give, with unreadable files listed and none of the pixels kept.

    `content_sha256` is that of `load_scans` with the same options; `resolution` and `fit` are None.
    """
    options = ScanOptions(train_data_dir=train_data_dir, **options)
    source = find_source(options)
    examined = examine(source, None, options)
    class_names = _split(source, examined, options)
    channels, findings = _channels(source, examined, options)
    return make_manifest(
        source.name,
        examined.records,
        class_names,
        options,
        findings,
        examined.volumes,
        channels,
        decoded=False,
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
            if name in channels.planes and name not in (*CONTRASTS, *MASK_LABELS):
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
    manifest, paths = make_manifest(
        "phantom", records, tuple(CLASS_NAMES), options, channels=channels, grouped=False
    )
    rows = np.arange(len(stored)).reshape(num_images, len(planes))
    return _scans(table, records, tuple(CLASS_NAMES), manifest, paths, rows, channels)


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
        raise InputError(f"{error}{also_found(source)}") from None
    return tuple(sorted(class_names["training"] - {None}))


def _channels(
    source: Source, examined: Examined, options: ScanOptions
) -> tuple[Channels, tuple[Finding, ...]]:
    """What a scan's planes are, with the labels of masks, and what was found."""
    labels = named_labels(examined.labels, source.label_names, source.name)
    findings = []
    for mask, values in labels.items():
        shown = [f"{name} in {examined.labels[mask][value]}" for name, value in values.items()]
        more = f", and {len(shown) - _MOST_NAMED} labels more" if len(shown) > _MOST_NAMED else ""
        findings.append(Finding(f"labels of {mask}: {', '.join(shown[:_MOST_NAMED])} scans{more}"))
    channels = Channels.of(
        options,
        {mask: tuple(values) for mask, values in labels.items()},
        {mask: tuple(values.values()) for mask, values in labels.items()},
    )
    return channels, (*source.findings, *findings)


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
    channels: Channels,
) -> Scans:
    """The data sets of each split; `rows`: where each record's planes are."""
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
