"""The evaluation's doors: a model, which is sampled first, or anybody's images. What is measured is in `parts`."""

from collections.abc import Collection
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mri_ddpm.data import load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.copies import ChannelDetectors
from mri_ddpm.evaluation.features import EXTRACTORS, Extractor, make_extractor
from mri_ddpm.evaluation.fidelity import FEWEST as FEWEST_FOLLOWED
from mri_ddpm.evaluation.given import images_of_files, labels_of, masks_of_files, read_images
from mri_ddpm.evaluation.lazy import Images
from mri_ddpm.evaluation.parts import CHOICES, check_metrics, denoising, measure, timed
from mri_ddpm.evaluation.subject import (
    RealScans,
    class_counts,
    conditions_of,
    load_real_scans,
    real_scans,
    rows_alike,
    rows_to_follow,
)
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline, factor_of, label_values
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling import SamplingOptions
from mri_ddpm.sampling.folder import SampleFolder
from mri_ddpm.sampling.provenance import provenance

FEWEST_IMAGES = 100  # below it every interval is too wide to say anything
SAMPLES = "samples"  # the folder of the images, beside the report
FOLLOWING = "samples_of_validation"  # those that are given what belongs to validation scans


def evaluate(
    name: str,
    output_dir: Path,
    *,
    num_images: int = 2000,
    options: SamplingOptions | None = None,
    extractor: str = "in_domain",
    metrics: Collection[str] = CHOICES,
    device: str = "cpu",
    cache_dir: str | None = None,
    **where: str | None,
) -> dict:
    """Measure a model: quality, fidelity to its condition, losses and likelihood, usefulness, memorisation.

    Args:
        name: run folder, saved pipeline or repository on the Hub; with the manifest of its training.
        output_dir: for ``metrics.json``, ``report.html``, pictures and ``samples/``; new or empty, or one that holds the
            samples of the same evaluation, whole or cut short, which is resumed.
        num_images: how many to sample, in the classes' training proportions. A model with a condition is given those of
            training scans of the class, chosen at random. For fidelity it is sampled once more for each validation scan, at most
            this often.
        options: how they are sampled; by all steps of the training's scheduler when ``None``.
        extractor: ``"in_domain"``, ``"dinov2"`` or ``"inception"``.
        metrics: what to measure, of ``CHOICES``; all by default.
        device: where to run.
        cache_dir: where decoded scans and classifiers are kept.
        where: ``train_data_dir``, folder or .zip of the scans it was trained on, or ``dataset_name``, ... as of `load_scans`; not
            needed for a model of the phantom, nor of a data set on the Hub.

    Returns:
        What is in ``metrics.json``.

    Raises:
        InputError: for what cannot be evaluated, before the long work starts.
    """
    # Refuse what can be refused before any work
    check_metrics(metrics)
    if num_images < FEWEST_IMAGES:
        raise InputError(f"--num_images is {num_images}; take {FEWEST_IMAGES} or more, fewer say nothing.")
    if extractor not in EXTRACTORS:
        raise InputError(f"--extractor {extractor} is unknown; take one of {', '.join(EXTRACTORS)}.")
    options = options or SamplingOptions()
    pipeline, record = load_pipeline(name, device), load_record(name)
    noise_scheduler = pipeline.scheduler
    if set(metrics) == {"fidelity"} and not pipeline.condition_names:
        raise InputError("--metrics fidelity is to a condition, and the model has none; ask for others.")
    # Each image gets a condition of its own, once the scans are there; until then all get a plain one
    size = pipeline.unet.config.sample_size
    plain = {
        name: np.full(
            [size // factor_of(name)] * 2, float(label_values(pipeline.mask_labels.get(name, ("",)))[0])
        )
        for name in pipeline.condition_names
    }
    replace(options, edit={"condition": plain} if plain else {}).prepare(
        pipeline, num_images, pipeline.class_names[0] if pipeline.class_names else None
    )
    facts = {**provenance(pipeline), **options.facts(pipeline)}
    settings = {**facts, "num_images": num_images, "seed": options.seed}
    refuse_other_folder(output_dir)
    SampleFolder(output_dir / SAMPLES, settings)  # refuses one of others
    real = load_real_scans(record, where, pipeline.unet.config.sample_size, cache_dir)
    features = extractors_of(real, extractor, device, cache_dir)
    known = pipeline.class_names
    real = real.numbered_by(known) if known else real.without_classes()
    output_dir.mkdir(parents=True, exist_ok=True)

    # Sample
    def sampled(name: str, labels: np.ndarray, part: str, rows: np.ndarray) -> dict[str, Images]:
        names = [real.class_names[label] for label in labels] if real.class_names else None
        folder, condition = SampleFolder(output_dir / name, settings), conditions_of(real.scans[part], rows)
        folder.fill(pipeline, names, len(labels), options, facts=facts, condition=condition)
        return images_by_channel(folder, pipeline, names or [None] * len(labels))

    seconds: dict[str, float] = {}
    counts = class_counts(real.training[1], max(1, len(real.class_names)), num_images)
    labels = np.repeat(np.arange(len(counts)), counts)
    followed = None
    with timed(seconds, "sampling"):
        images = sampled(SAMPLES, labels, "training", rows_alike(real.training[1], labels, options.seed))
        if pipeline.condition_names and "fidelity" in metrics:
            rows = rows_to_follow(real, pipeline, num_images)
            enough = len(rows) >= FEWEST_FOLLOWED
            followed = (
                (sampled(FOLLOWING, real.validation[1][rows], "validation", rows) if enough else {}),
                rows,
            )
    synthetic = {name: (of_channel, labels) for name, of_channel in images.items()}

    # Measure
    return measure(
        real,
        synthetic,
        features,
        output_dir,
        settings=settings,
        metrics=metrics,
        device=device,
        followed=followed,
        denoise=lambda: denoising(pipeline, noise_scheduler, record, real, output_dir),
        seconds=seconds,
    )


def evaluate_images(
    images: Path,
    output_dir: Path,
    *,
    metrics: Collection[str] = CHOICES,
    extractor: str = "in_domain",
    validation_share: float = 0.1,
    seed: int = 0,
    device: str = "cpu",
    cache_dir: str | None = None,
    **where: str | None,
) -> dict:
    """Measure anybody's synthetic images, such as a GAN's, against real scans.

    Validation scans are a share of the real ones. If the images' generator was trained on those too, then what is measured
    against them says too much good of it: nobody can tell from images alone.

    Args:
        images: folder of images of one size: class folders, or images alone, whose classes are in the PNG's text where
            `mri-ddpm sample` made them.
        output_dir: for ``metrics.json``, ``report.html`` and pictures; new or empty.
        metrics: what to measure, of ``CHOICES``; all but the likelihood, which takes a network, by default.
        extractor: ``"in_domain"``, ``"dinov2"`` or ``"inception"``.
        validation_share: of the real scans, which nothing is fitted to.
        seed: of that split.
        device: where to run.
        cache_dir: where decoded scans and classifiers are kept.
        where: ``train_data_dir``, or ``dataset_name``, ... as of `load_scans`: the real scans.

    Returns:
        What is in ``metrics.json``.

    Raises:
        InputError: for images or scans that cannot be compared, before the long work starts.
    """
    check_metrics(metrics)
    if len(metrics) == 1 and set(metrics) < {"likelihood", "fidelity"}:
        raise InputError(
            f"--metrics {next(iter(metrics))} takes a network; of --images alone it cannot be measured."
        )
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(f"--output_dir {output_dir} is not an empty folder; name a new one.")
    pictures, names = read_images(images)
    scans = load_scans(
        resolution=pictures.shape[2],
        validation_share=validation_share,
        seed=seed,
        on_bad_image="skip",
        cache_dir=cache_dir,
        **{name: value for name, value in where.items() if value is not None},
    )
    real = real_scans(scans)
    if any(name is None for name in names):
        real, labels = real.without_classes(), np.zeros(len(names), np.int64)
    else:
        labels = labels_of(names, real.class_names, images)
    features = extractors_of(real, extractor, device, cache_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {"images": images.name, "num_images": len(pictures), "seed": seed}
    settings |= {"model": images.name, "Software": f"mri-ddpm {version('mri-ddpm')}"}
    what = {"settings": settings, "metrics": metrics, "device": device}
    return measure(real, {"": (pictures, labels)}, features, output_dir, **what)


def extractors_of(
    real: RealScans, extractor: str, device: str, cache_dir: str | None = None
) -> dict[str, Extractor]:
    """What makes the features of each contrast, by its name; arguments as of `make_extractor`."""
    how = (real.class_names, device, cache_dir)
    return {
        name: make_extractor(extractor, *real.of(name).training, *how) for name in real.channels.contrasts
    }


def images_by_channel(
    folder: SampleFolder, pipeline: MRIDDPMPipeline, labels: list[str | None]
) -> dict[str, Images]:
    """The samples in a folder by the names of the model's channels: contrasts in [0, 1], masks as 0 and 1 a label."""
    channels, side = pipeline.channel_names or ("",), pipeline.unet.config.sample_size
    found = {}
    for name in channels:
        files = folder.files(labels, name if len(channels) > 1 else None)
        if name in pipeline.mask_labels:
            found[name] = masks_of_files(files, side, label_values(pipeline.mask_labels[name]))
        else:
            found[name] = images_of_files([file.read_bytes for file in files], side)
    return found


def refuse_other_folder(output_dir: Path) -> None:
    """Refuse a folder that holds anything but an evaluation; what its samples are, they know themselves."""
    is_other = output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir()))
    if is_other and not (output_dir / SAMPLES).is_dir():
        raise InputError(f"--output_dir {output_dir} is not an empty folder; name a new one.")


def fit_copy_detectors(pipeline: MRIDDPMPipeline, name: str, **where: str | None) -> ChannelDetectors:
    """Detectors of copies of the scans that a loaded model was trained on; arguments and errors as of ``evaluate``."""
    real = load_real_scans(load_record(name), where, pipeline.unet.config.sample_size)
    features = extractors_of(real, "in_domain", str(pipeline.device))
    return ChannelDetectors.fit(real.training[0], real.validation[0], list(features.values()))
