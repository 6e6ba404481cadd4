"""What is evaluated: a pipeline, the scans it was trained on, and those that it never saw."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mri_ddpm.data import NO_PATIENTS, PLACES, Channels, ScanDataset, Scans, load_phantoms, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.lazy import BLOCK, Images, LazyImages, stacked
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs import Record, merged_weights, read_raw_weights
from mri_ddpm.scan_options import ScanOptions

HUB_FLAGS = ("dataset_name", "dataset_config_name", "image_column", "label_column")  # as of `load_scans`

CAUTION = f"{NO_PATIENTS[0].upper()}{NO_PATIENTS[1:]}."


@dataclass(frozen=True)
class RealScans:
    """Real scans at the model's size: what it was trained on, the validation share of that, and the published test part.

    Images are ``(N, C, H, W)``, of the contrasts that the model draws; `of` has those of one channel. ``scans`` are the data sets
    by the same names, from which `batch` takes them with their conditions.
    ``numbers`` are the model's own of these classes, where it has others before them.
    """

    training: Labelled
    validation: Labelled
    test: Labelled | None
    class_names: tuple[str, ...]
    scans: dict[str, ScanDataset]
    caution: str | None = None  # where nobody knows the patients: what that does to the numbers
    numbers: tuple[int, ...] = ()

    @property
    def channels(self) -> Channels:
        """What is drawn and given."""
        return self.scans["training"].channels

    def of(self, name: str) -> "RealScans":
        """The same scans in one channel: images ``(N, 1, H, W)`` of a contrast, and ``(N, labels, H, W)`` of a mask."""
        parts = {part: (images_of(scans, name), getattr(self, part)[1]) for part, scans in self.scans.items()}
        return dataclasses.replace(self, **parts)

    @property
    def unseen(self) -> dict[str, Labelled]:
        """The parts that the model never saw, by name."""
        parts = {"validation": self.validation, "test": self.test}
        return {name: part for name, part in parts.items() if part is not None and len(part[1])}

    def batch(self, part: str, rows: Sequence[int], device: torch.device | str) -> dict[str, torch.Tensor]:
        """Scans of "training" or "validation" as a batch of the training; without classes where there are none."""
        batch = self.scans[part].batch(rows)
        if self.numbers:
            batch["class_labels"] = torch.tensor(self.numbers)[batch["class_labels"].cpu()]
        names = batch.keys() - (() if self.class_names else {"class_labels"})
        return {name: batch[name].to(device) for name in names}

    def numbered_by(self, class_names: tuple[str, ...]) -> "RealScans":
        """The same for a model with these classes, among which are those of the scans."""
        return dataclasses.replace(self, numbers=tuple(map(class_names.index, self.class_names)))

    def without_classes(self) -> "RealScans":
        """The same as one class, for a model that knows none: its images have no class to be compared by."""
        parts = {"training": self.training, "validation": self.validation, "test": self.test}
        merged = {name: part and (part[0], np.zeros_like(part[1])) for name, part in parts.items()}
        return dataclasses.replace(self, **merged, class_names=())


def load_real_scans(
    record: Record, where: dict[str, str | None], resolution: int, cache_dir: str | None = None
) -> RealScans:
    """Load the scans that a model was trained on, split as they were then.

    Args:
        record: the run's papers; its manifest knows the settings and every file's hash.
        where: ``train_data_dir``, or ``dataset_name`` and what belongs to it, as of `load_scans`. Of a model of the phantom,
            or of a data set on the Hub, nothing is needed.
        resolution: pixels a side of the model.
        cache_dir: where decoded scans are kept.

    Raises:
        InputError: when there is no manifest, or the scans are not those of the manifest, so that nobody could say which
            of them the model has seen.
    """
    manifest = record.manifest
    if manifest is None:
        raise InputError(
            f"{record.pipeline_dir} comes without the manifest of its training, so nobody can say which scans it has "
            "seen; evaluate the run folder, or a repository that 'mri-ddpm push' made."
        )
    known = {f.name for f in dataclasses.fields(ScanOptions)}
    settings = {name: value for name, value in manifest["settings"].items() if name in known - set(PLACES)}
    settings["resolution"] = resolution
    if manifest["source"] == "phantom":
        named = ("resolution", "validation_share", "seed", "channels", "condition_on")
        settings = {name: settings[name] for name in named if name in settings}
        scans = load_phantoms(num_images=len(manifest["files"]), **settings)
    else:
        found = where_scans_are(record, where)
        scans = load_scans(**{**settings, **found}, on_bad_image="skip", cache_dir=cache_dir)
    refuse_other_scans(manifest, scans.manifest)
    return real_scans(scans)


def real_scans(scans: Scans) -> RealScans:
    """The parts of a data set as arrays."""
    parts = {"training": scans.train, "validation": scans.validation, "test": scans.test}
    arrays = {name: None if part is None else as_arrays(part) for name, part in parts.items()}
    batches = {name: part for name, part in parts.items() if part is not None}
    is_known = scans.manifest["patients"] or scans.manifest["source"] == "phantom"
    caution = None if is_known else CAUTION
    return RealScans(**arrays, class_names=scans.class_names, scans=batches, caution=caution)


def where_scans_are(record: Record, where: dict[str, str | None]) -> dict[str, str]:
    """What `load_scans` is to be given: what the user says, and of a data set on the Hub what the run's papers say.

    Raises:
        InputError: where neither says it.
    """
    given = {name: value for name, value in where.items() if value is not None}
    if given.get("train_data_dir"):
        return given
    config = record.config or {}
    found = {name: config[name] for name in HUB_FLAGS if config.get(name) is not None} | given
    if "/" not in found.get("dataset_name", ""):  # of a folder the papers keep the name, but not its place
        found.pop("dataset_name", None)
        found |= given
    if "dataset_name" not in found:
        raise InputError(
            f"the model was trained on {record.manifest['source']}; give the folder of these scans by --train_data_dir, or "
            "the data set by --dataset_name."
        )
    return found


def refuse_other_scans(trained: dict, found: dict) -> None:
    """Refuse scans in other classes, of which the model has seen some that would count as unseen, or that lack what it was trained on."""

    def hashes(manifest: dict, *splits: str) -> set[str]:
        return {file["sha256"] for file in manifest["files"] if file["split"] in splits}

    known = trained.get("mask_labels", found["mask_labels"])
    if known != found["mask_labels"]:
        now, was = (
            ", ".join(f"{mask} {' '.join(values)}" for mask, values in m.items())
            for m in (found["mask_labels"], known)
        )
        raise InputError(
            f"{found['source']} has the labels {now}, and the model was trained on {was}; give the data set that it was trained on."
        )
    seen = hashes(trained, "train")
    leaked = seen & hashes(found, "validation", "test")
    if leaked:
        raise InputError(
            f"the model was trained on {len(leaked)} of the scans that {found['source']} would be tested on; give the data set that it "
            "was trained on, unchanged."
        )
    missing = seen - hashes(found, "train")
    if missing:
        raise InputError(
            f"{found['source']} lacks {len(missing)} of the {len(seen)} scans that the model was trained on, so copies "
            "of them could not be found; give the data set that it was trained on."
        )
    was, now = (", ".join(manifest["class_names"]) or "none" for manifest in (trained, found))
    if was != now:
        raise InputError(
            f"{found['source']} has the classes {now}, and the model was trained on {was}; give the data set, and the --label_column, "
            "that it was trained on, or train anew."
        )


def as_arrays(part: ScanDataset) -> Labelled:
    """A data set as arrays: images ``(N, C, H, W)`` of the contrasts that are drawn, or of masks where these are all, and classes."""
    channels = part.channels
    names = channels.contrasts or channels.drawn
    return stacked(*(images_of(part, name) for name in names)), part.class_labels


def images_of(part: ScanDataset, name: str) -> Images:
    """One channel of a data set: in [0, 1], of 256 levels as synthetic images, read where they are used; of a mask 0 and 1, a channel a label."""
    alone = part.only(name)

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = alone.batch(rows)["pixel_values"].numpy()
        return (np.round(pixels * 255) / 255).astype(np.float32)

    shape = (alone.channels.width(alone.channels.planes), alone.side, alone.side)
    return LazyImages(read, shape, len(alone))


def class_counts(labels: np.ndarray, num_classes: int, total: int) -> np.ndarray:
    """``total`` shared out over the classes as ``labels`` are, largest remainders first."""
    exact = np.bincount(labels, minlength=num_classes) * total / len(labels)
    counts = np.floor(exact).astype(int)
    counts[np.argsort(counts - exact)[: total - counts.sum()]] += 1
    return counts


def rows_alike(scans: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Scans chosen at random, one of the class for each label ``(N,)``: their rows ``(N,)``; ``scans`` are the classes of all."""
    choose = np.random.default_rng(seed)
    of_class = {label: np.flatnonzero(scans == label) for label in np.unique(labels)}
    return np.array([choose.choice(of_class[label]) for label in labels])


def conditions_of(scans: ScanDataset, rows: Sequence[int]) -> dict[str, np.ndarray] | None:
    """What these scans give, as the pipeline takes it: ``(N, H, W)`` by name; ``None`` where nothing is given."""
    if not scans.channels.given:
        return None
    starts = range(0, len(rows), BLOCK)  # a mask of many labels takes many channels
    batches = [scans.batch(rows[start : start + BLOCK])["condition"].cpu().numpy() for start in starts]
    parts = [scans.channels.by_name(batch) for batch in batches]
    return {name: np.concatenate([part[name] for part in parts]) for name in scans.channels.given}


def rows_to_follow(real: RealScans, pipeline: MRIDDPMPipeline, most: int) -> np.ndarray:
    """Validation scans, at most so many, whose conditions the model takes: it refuses an empty mask where it knows none."""
    scans, labels = real.scans["validation"], real.validation[1]
    taken = np.ones(len(labels), dtype=bool)
    for mask, classes in (pipeline.unet.config.get("always_marked") or {}).items():
        of_scan = [
            {real.class_names[label]} if real.class_names else {*(pipeline.class_names or ("",))}
            for label in labels
        ]
        taken &= scans.marked()[mask] | [not of_one <= {*classes} for of_one in of_scan]
    rows = np.flatnonzero(taken)
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


def raw_unet(pipeline: MRIDDPMPipeline, record: Record) -> AttentionUNet2DModel | None:
    """The network with the weights of the newest checkpoint, before averaging; ``None`` where there is none."""
    if record.raw_weights is None:
        return None
    unet = AttentionUNet2DModel.from_config(pipeline.unet.config)
    try:
        unet.load_state_dict(merged_weights(read_raw_weights(record.raw_weights)))
    except Exception as error:  # a broken file makes its reader raise nearly anything
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{record.raw_weights} cannot be used: {reason:.200}; remove that checkpoint."
        ) from error
    return unet.eval().to(pipeline.device, memory_format=torch.channels_last)
