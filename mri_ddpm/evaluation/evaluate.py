"""The whole evaluation, as titled paragraphs: sample, compare, ask what it is good for, look for copies, report."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler

from mri_ddpm.data import to_model_range
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import likelihood, pictures
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.features import EXTRACTORS, Extractor, make_extractor
from mri_ddpm.evaluation.memorisation import CopyDetector, audit, worst_pairs_picture
from mri_ddpm.evaluation.quality import intensity_histogram, power_spectrum
from mri_ddpm.evaluation.report import verdicts, write_report
from mri_ddpm.evaluation.scores import score_all
from mri_ddpm.evaluation.subject import RealScans, class_counts, draw, load_real_scans, raw_unet
from mri_ddpm.evaluation.usefulness import usefulness
from mri_ddpm.files import read_json, write_json
from mri_ddpm.hub import Record, load_pipeline, load_record, provenance
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.sampling import check_sampling, set_scheduler
from mri_ddpm.sampling.sheets import sheet

FEWEST_IMAGES = 100  # below it every interval is too wide to say anything
IMAGES_PER_TIMESTEP = 8  # of T timesteps, for two networks and two parts: the longest wait after sampling
MOST_SCANS = 10_000  # for losses and likelihood, which hold them in memory; more are no use to 8 a timestep
CHAIN = ("num_inference_steps", "guidance_scale", "guidance_start", "guidance_end", "seed")
SAMPLES = "samples.npz"
UNFINISHED, PROGRESS = ".samples.unfinished.npy", ".samples.unfinished.json"  # each image is written once
PROGRESSIVE_SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.99)  # of T, where the strip shows the x_0 estimate


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
    if num_images < FEWEST_IMAGES:
        raise InputError(f"--num_images is {num_images}; take {FEWEST_IMAGES} or more, fewer say nothing.")
    if extractor not in EXTRACTORS:
        raise InputError(f"--extractor {extractor} is unknown; take one of {', '.join(EXTRACTORS)}.")
    seconds: dict[str, float] = {}
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
    with timed(seconds, "sampling"):
        synthetic = samples(pipeline, real, output_dir, settings, batch_size)

    # Measure part by part, and write down each as it comes: what has too few scans is left out by name
    metrics = {"settings": settings, "extractor": features.name, "images": image_counts(real, synthetic)}
    metrics |= {"not_measured": {}, "seconds": seconds}
    parts = {
        "quality": lambda: compare(real, synthetic, features, output_dir),
        "likelihood": lambda: denoising(pipeline, noise_scheduler, record, real, output_dir),
        "usefulness": lambda: {"usefulness": usefulness_of(real, synthetic, device)},
        "memorisation": lambda: {"memorisation": memorisation(real, synthetic, features, output_dir)},
    }
    for part, measure in parts.items():
        with timed(seconds, part):
            try:
                found = measure()
            except InputError as error:
                found = {"not_measured": {part: str(error)}}
        metrics["not_measured"] |= found.pop("not_measured", {})
        metrics |= found
        metrics["verdicts"] = verdicts(metrics)
        write_json(output_dir / "metrics.json", metrics)
        write_report(metrics, output_dir)
    return metrics


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block took."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


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


def image_counts(real: RealScans, synthetic: Labelled) -> dict:
    """How many images of each class there are in each part."""
    parts = {"synthetic": synthetic, "training": real.training, **real.unseen}
    names = real.class_names or ("",)
    return {
        part: {"total": len(y), **{name: int((y == c).sum()) for c, name in enumerate(names) if name}}
        for part, (_, y) in parts.items()
    }


def compare(real: RealScans, synthetic: Labelled, features: Extractor, output_dir: Path) -> dict:
    """Every score beside that of real scans, with spectra, histograms and examples side by side as pictures."""
    curves = {"synthetic": synthetic[0], "training": real.training[0], "held out": real.held_out[0]}
    pictures.plot_spectra({key: power_spectrum(x) for key, x in curves.items()}, output_dir)
    pictures.plot_histograms({key: intensity_histogram(x) for key, x in curves.items()}, output_dir)
    pictures.save_side_by_side(real, synthetic, output_dir)
    return score_all(real, synthetic, features)


def denoising(
    pipeline: MRIDDPMPipeline,
    noise_scheduler: DDPMScheduler,
    record: Record,
    real: RealScans,
    output_dir: Path,
) -> dict:
    """Losses by timestep, raw and EMA weights, on training and held-out scans; bits per dimension; rate and distortion."""
    pipeline.scheduler = noise_scheduler  # losses and bounds are of the chain it was trained for
    config = record.config or {}
    loss = {"loss_type": config.get("loss_type", "huber"), "huber_delta": config.get("huber_delta", 1.0)}
    networks = {"ema": pipeline.unet, "raw": raw_unet(pipeline, record)}
    parts = {"training": real.training, "held_out": real.held_out}
    curves, losses = {}, {}
    for weights, unet in networks.items():
        for part, (images, labels) in parts.items():
            if unet is None:
                continue
            rows = np.linspace(0, len(labels) - 1, min(len(labels), MOST_SCANS)).astype(int)
            x_0, y = on_device(pipeline, images[rows], labels[rows], real.class_names)
            curves[weights, part] = likelihood.denoising_curves(
                unet, pipeline.scheduler, x_0, y, images_per_timestep=IMAGES_PER_TIMESTEP, progress=True, **loss
            )  # fmt: skip
            losses.setdefault(weights, {})[part] = [
                estimate.as_dict() for estimate in likelihood.loss_by_quartile(curves[weights, part])
            ]
    held_out = curves["ema", "held_out"]
    rate, distortion = likelihood.rate_distortion(held_out)
    pictures.plot_losses(losses, output_dir)
    pictures.plot_bits({part: likelihood.bits_by_term(curves["ema", part]) for part in parts}, output_dir)
    pictures.plot_rate_distortion(rate, distortion, output_dir)
    progressive_strip(pipeline, real, output_dir)
    return {
        "loss_by_timestep_quartile": losses,
        "bits_per_dimension": {
            part: likelihood.bits_per_dimension(curves["ema", part]).as_dict() for part in parts
        },
        "rate_distortion": {"rate_bits_per_dimension": rate.tolist(), "distortion_rmse": distortion.tolist()},
    }


def on_device(pipeline: MRIDDPMPipeline, images: np.ndarray, labels: np.ndarray, class_names: tuple) -> tuple:
    """Scans and classes as the network takes them."""
    x_0 = torch.from_numpy(to_model_range(np.asarray(images))).to(pipeline.device)
    known = bool(class_names) and bool(pipeline.unet.config.num_class_embeds)
    return x_0, torch.from_numpy(labels).to(pipeline.device) if known else None


def progressive_strip(pipeline: MRIDDPMPipeline, real: RealScans, output_dir: Path) -> None:
    """One held-out scan a class, beside what the model makes of it after more and more noise (DDPM, section 4.3)."""
    images, labels = real.held_out
    rows = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)]
    x_0, y = on_device(pipeline, images[rows], labels[rows], real.class_names)
    last = pipeline.scheduler.config.num_train_timesteps - 1
    timesteps = [round(share * last) for share in PROGRESSIVE_SHARES]
    estimates = likelihood.progressive_estimates(pipeline.unet, pipeline.scheduler, x_0, y, timesteps)
    unit = (estimates.clamp(-1, 1) / 2 + 0.5).cpu().numpy()  # (K, B, 1, H, W)
    titles = ["scan", *(f"t = {t}" for t in timesteps)]
    sheet(np.concatenate([np.asarray(images[rows])[None], unit]), titles).save(output_dir / "progressive.png")


def fit_copy_detector(pipeline: MRIDDPMPipeline, name: str, **where: str | None) -> CopyDetector:
    """A detector of copies of the scans that a loaded model was trained on; arguments and errors as of ``evaluate``."""
    real = load_real_scans(load_record(name), where, pipeline.unet.config.sample_size)
    features = make_extractor("in_domain", *real.training, real.class_names, str(pipeline.device))
    return CopyDetector.fit(real.training[0], real.held_out[0], features)


def usefulness_of(real: RealScans, synthetic: Labelled, device: str) -> dict:
    """What synthetic scans add to real ones, judged by those that nobody trained on."""
    return usefulness(real.training, synthetic, real.unseen, real.class_names, device=device, progress=True)


def memorisation(real: RealScans, synthetic: Labelled, features: Extractor, output_dir: Path) -> dict:
    """The audit, and its worst pairs as a picture."""
    detector = CopyDetector.fit(real.training[0], real.held_out[0], features)
    examination = detector.examine(synthetic[0])
    worst_pairs_picture(detector, examination, synthetic[0]).save(output_dir / "worst_pairs.png")
    return audit(detector, synthetic[0], examination)
