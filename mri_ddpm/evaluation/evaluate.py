"""The evaluation's doors: a model, which draws its images first, or anybody's images. What is measured is in `parts`."""

import json
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path

import numpy as np

from mri_ddpm.data import load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.features import EXTRACTORS, make_extractor
from mri_ddpm.evaluation.given import labels_of, read_images
from mri_ddpm.evaluation.memorisation import CopyDetector
from mri_ddpm.evaluation.parts import CHOICES, check_metrics, denoising, measure, timed
from mri_ddpm.evaluation.subject import RealScans, class_counts, draw, load_real_scans, real_scans
from mri_ddpm.files import read_json, write_json
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling import check_sampling, set_scheduler
from mri_ddpm.sampling.provenance import provenance

FEWEST_IMAGES = 100  # below it every interval is too wide to say anything
CHAIN = ("num_inference_steps", "guidance_scale", "guidance_start", "guidance_end", "seed")
SAMPLES = "samples.npz"
UNFINISHED, PROGRESS = ".samples.unfinished.npy", ".samples.unfinished.json"  # each image is written once


def evaluate(
    name: str,
    output_dir: Path,
    *,
    num_images: int = 2000,
    scheduler: str | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float = 1.0,
    guidance_start: float = 0.0,
    guidance_end: float = 1.0,
    extractor: str = "in_domain",
    metrics: Collection[str] = CHOICES,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "cpu",
    cache_dir: str | None = None,
    **where: str | None,
) -> dict:
    """Measure a model: quality, losses and likelihood, usefulness, memorisation.

    Args:
        name: run folder, saved pipeline or repository on the Hub; with the manifest of its training.
        output_dir: for ``metrics.json``, ``report.html``, pictures and ``samples.npz``; new or empty, or one that holds the
            samples of the same evaluation, whole or cut short, which are taken up again.
        num_images: how many to draw, in the classes' training proportions.
        scheduler: a name of ``SCHEDULERS``; that of the training when ``None``.
        num_inference_steps: steps of the reverse chain; all when ``None``.
        guidance_scale: 1 is none.
        guidance_start: share of the chain after which guidance sets in.
        guidance_end: and after which it ends.
        extractor: ``"in_domain"``, ``"dinov2"`` or ``"inception"``.
        metrics: what to measure, of ``CHOICES``; all by default.
        batch_size: images at once while sampling.
        seed: of the first image.
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
    pipeline, record = load_pipeline(name, device), load_record(name)
    noise_scheduler = pipeline.scheduler
    if scheduler is not None:
        set_scheduler(pipeline, scheduler)
    guidance = {
        "guidance_scale": guidance_scale,
        "guidance_start": guidance_start,
        "guidance_end": guidance_end,
    }
    chain = {"num_inference_steps": num_inference_steps, "seed": seed, **guidance}
    any_class = pipeline.class_names[0] if pipeline.class_names else None
    check_sampling(pipeline, any_class, num_images=num_images, batch_size=batch_size, **chain)
    settings = {
        **provenance(pipeline),
        "num_images": num_images,
        "num_inference_steps": num_inference_steps or pipeline.scheduler.config.num_train_timesteps,
        **guidance,
        "seed": seed,
    }
    refuse_other_folder(output_dir, settings)
    real = load_real_scans(record, where, pipeline.unet.config.sample_size, cache_dir)
    features = make_extractor(extractor, *real.training, real.class_names, device, cache_dir)
    real = real if pipeline.class_names else real.without_classes()
    output_dir.mkdir(parents=True, exist_ok=True)

    # Sample
    seconds: dict[str, float] = {}
    with timed(seconds, "sampling"):
        synthetic = samples(pipeline, real, output_dir, settings, batch_size)

    # Measure
    return measure(
        real,
        synthetic,
        features,
        output_dir,
        settings=settings,
        metrics=metrics,
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

    Held-out scans are a share of the real ones. If the images' generator was trained on those too, then what is measured
    against them says too much good of it: nobody can tell from images alone.

    Args:
        images: folder of images of one size: class folders, or images alone, whose classes are in the PNG's text where
            `mri-ddpm sample` drew them.
        output_dir: for ``metrics.json``, ``report.html`` and pictures; new or empty.
        metrics: what to measure, of ``CHOICES``; all but the likelihood, which takes a network, by default.
        extractor: ``"in_domain"``, ``"dinov2"`` or ``"inception"``.
        validation_share: of the real scans, held out.
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
    if set(metrics) == {"likelihood"}:
        raise InputError("--metrics likelihood takes a network; of --images alone it cannot be measured.")
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
    features = make_extractor(extractor, *real.training, real.class_names, device, cache_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    settings = {"images": images.name, "num_images": len(pictures), "seed": seed}
    settings |= {"model": images.name, "Software": f"mri-ddpm {version('mri-ddpm')}"}
    return measure(real, (pictures, labels), features, output_dir, settings=settings, metrics=metrics)


def refuse_other_folder(output_dir: Path, settings: dict) -> None:
    """Refuse a folder that holds anything but an evaluation with the same settings."""
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return
    if (output_dir / SAMPLES).is_file():
        before = json.loads(str(np.load(output_dir / SAMPLES)["settings"]))
    elif (output_dir / PROGRESS).is_file():
        before = read_json(output_dir / PROGRESS)["settings"]
    else:
        raise InputError(f"--output_dir {output_dir} is not an empty folder; name a new one.")
    other = [key for key in settings if before.get(key) != settings[key]]
    if other:
        raise InputError(
            f"--output_dir {output_dir} holds an evaluation with {other[0]} {before.get(other[0])}, not "
            f"{settings[other[0]]}; name a new folder."
        )


def samples(
    pipeline: MRIDDPMPipeline, real: RealScans, output_dir: Path, settings: dict, batch_size: int
) -> Labelled:
    """The synthetic images: those of ``samples.npz``, or drawn now, from where an earlier start stopped, and kept there."""
    file, unfinished, progress = (output_dir / name for name in (SAMPLES, UNFINISHED, PROGRESS))
    counts = class_counts(real.training[1], max(1, len(real.class_names)), settings["num_images"])
    labels = np.repeat(np.arange(len(counts)), counts)
    if not file.is_file():
        done = read_json(progress)["done"] if progress.is_file() and unfinished.is_file() else 0
        shape = (len(labels), *2 * (pipeline.unet.config.sample_size,))
        levels = np.lib.format.open_memmap(unfinished, "r+" if done else "w+", np.uint8, shape)

        def keep(count: int) -> None:
            levels.flush()
            write_json(progress, {"settings": settings, "done": count})

        keep(done)
        chain = {key: settings[key] for key in CHAIN}
        draw(pipeline, counts, levels, done, keep, batch_size=batch_size, **chain)
        writing = output_dir / ".writing.npz"
        np.savez_compressed(writing, images=levels, labels=labels, settings=json.dumps(settings))
        writing.replace(file)
        unfinished.unlink()
        progress.unlink()
    return np.load(file)["images"][:, None].astype(np.float32) / 255, labels


def fit_copy_detector(pipeline: MRIDDPMPipeline, name: str, **where: str | None) -> CopyDetector:
    """A detector of copies of the scans that a loaded model was trained on; arguments and errors as of ``evaluate``."""
    real = load_real_scans(load_record(name), where, pipeline.unet.config.sample_size)
    features = make_extractor("in_domain", *real.training, real.class_names, str(pipeline.device))
    return CopyDetector.fit(real.training[0], real.held_out[0], features)
