"""The parts of an evaluation: what each compares, which pictures it leaves, and that each is written down as it comes."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler

from mri_ddpm.data import to_model_range
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import likelihood, pictures
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.features import Extractor
from mri_ddpm.evaluation.memorisation import CopyDetector, audit, worst_pairs_picture
from mri_ddpm.evaluation.quality import intensity_histogram, power_spectrum
from mri_ddpm.evaluation.report import verdicts, write_report
from mri_ddpm.evaluation.scores import METRICS, TWO_SAMPLE, score_all
from mri_ddpm.evaluation.subject import RealScans, raw_unet
from mri_ddpm.evaluation.usefulness import usefulness
from mri_ddpm.files import write_json
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs import Record
from mri_ddpm.sampling.sheets import sheet

QUALITY = (*METRICS, TWO_SAMPLE)
CHOICES = (*QUALITY, "likelihood", "usefulness", "memorisation")  # of --metrics
IMAGES_PER_TIMESTEP = 8  # of T timesteps, for two networks and two parts: the longest wait after sampling
MOST_SCANS = 10_000  # for losses and likelihood, which hold them in memory; more are no use to 8 a timestep
PROGRESSIVE_SHARES = (0.1, 0.3, 0.5, 0.7, 0.85, 0.99)  # of T, where the strip shows the x_0 estimate


def check_metrics(metrics: Collection[str]) -> None:
    """Raise an ``InputError`` for names that are none of ``CHOICES``."""
    for name in metrics:
        if name not in CHOICES:
            raise InputError(f"--metrics {name} is unknown; take some of {', '.join(CHOICES)}.")


def measure(
    real: RealScans,
    synthetic: Labelled,
    features: Extractor,
    output_dir: Path,
    *,
    settings: dict,
    metrics: Collection[str] = CHOICES,
    denoise: Callable[[], dict] | None = None,
    seconds: dict[str, float] | None = None,
) -> dict:
    """Measure part by part. ``metrics.json`` and ``report.html`` are written after each, so that no later failure loses it.

    Args:
        real: scans to compare with.
        synthetic: images, and their classes.
        features: what makes the features of distances.
        output_dir: where numbers, report and pictures go; it is there.
        settings: what the images come from, for the report.
        metrics: what is asked for, of ``CHOICES``.
        denoise: gives the losses and the likelihood of the network that made the images; ``None`` where there is none.
        seconds: what earlier steps took.

    Returns:
        What is in ``metrics.json``. What was not measured is in ``not_measured``, with the reason.
    """
    found = {"settings": settings, "extractor": features.name, "images": image_counts(real, synthetic)}
    found |= {"caution": real.caution, "not_measured": {}, "seconds": dict(seconds or {})}
    scores = [name for name in QUALITY if name in metrics]
    parts = {
        "quality": bool(scores) and (lambda: compare(real, synthetic, features, scores, output_dir)),
        "likelihood": "likelihood" in metrics and denoise,
        "usefulness": "usefulness" in metrics and (lambda: usefulness_of(real, synthetic, features.device)),
        "memorisation": "memorisation" in metrics
        and (lambda: memorisation(real, synthetic, features, output_dir)),
    }
    for name, part in parts.items():
        if part:
            with timed(found["seconds"], name):
                try:
                    measured = part()
                except InputError as error:
                    measured = {"not_measured": {name: str(error)}}
        else:
            reason = "there is no network, but images alone." if part is None else "it was not asked for."
            measured = {"not_measured": {name: reason}}
        found["not_measured"] |= measured.pop("not_measured", {})
        found |= measured
        found["verdicts"] = verdicts(found)
        write_json(output_dir / "metrics.json", found)
        write_report(found, output_dir)
    return found


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note how long a block took."""
    start = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - start, 1)


def image_counts(real: RealScans, synthetic: Labelled) -> dict:
    """How many images of each class there are in each part."""
    parts = {"synthetic": synthetic, "training": real.training, **real.unseen}
    names = real.class_names or ("",)
    return {
        part: {"total": len(y), **{name: int((y == c).sum()) for c, name in enumerate(names) if name}}
        for part, (_, y) in parts.items()
    }


def compare(
    real: RealScans, synthetic: Labelled, features: Extractor, metrics: Collection[str], output_dir: Path
) -> dict:
    """Scores beside that of real scans, with spectra, histograms and examples side by side as pictures."""
    curves = {"synthetic": synthetic[0], "training": real.training[0], "validation": real.validation[0]}
    pictures.plot_spectra({key: power_spectrum(x) for key, x in curves.items()}, output_dir)
    pictures.plot_histograms({key: intensity_histogram(x) for key, x in curves.items()}, output_dir)
    pictures.save_side_by_side(real, synthetic, output_dir)
    return score_all(real, synthetic, features, metrics)


def denoising(
    pipeline: MRIDDPMPipeline,
    noise_scheduler: DDPMScheduler,
    record: Record,
    real: RealScans,
    output_dir: Path,
) -> dict:
    """Losses by timestep, raw and EMA weights, on training and validation scans; bits per dimension; rate and distortion."""
    pipeline.scheduler = noise_scheduler  # losses and bounds are of the chain it was trained for
    config = record.config or {}
    loss = {"loss_type": config.get("loss_type", "huber"), "huber_delta": config.get("huber_delta", 1.0)}
    networks = {"ema": pipeline.unet, "raw": raw_unet(pipeline, record)}
    parts = {"training": real.training, "validation": real.validation}
    curves, losses = {}, {}
    for weights, unet in networks.items():
        for part, (images, _) in parts.items():
            if unet is None:
                continue
            rows = np.linspace(0, len(images) - 1, min(len(images), MOST_SCANS)).astype(int)
            batch = real.batch(part, rows, pipeline.device)
            curves[weights, part] = likelihood.denoising_curves(
                unet, pipeline.scheduler, to_model_range(batch["pixel_values"]), unet.conditioning_of(batch),
                images_per_timestep=IMAGES_PER_TIMESTEP, progress=True, **loss,
            )  # fmt: skip
            losses.setdefault(weights, {})[part] = [
                estimate.as_dict() for estimate in likelihood.loss_by_quartile(curves[weights, part])
            ]
    validation = curves["ema", "validation"]
    rate, distortion = likelihood.rate_distortion(validation)
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


def progressive_strip(pipeline: MRIDDPMPipeline, real: RealScans, output_dir: Path) -> None:
    """One validation scan a class, beside what the model makes of it after more and more noise (DDPM, section 4.3)."""
    labels = real.validation[1]
    rows = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)]
    batch = real.batch("validation", rows, pipeline.device)
    last = pipeline.scheduler.config.num_train_timesteps - 1
    timesteps = [round(share * last) for share in PROGRESSIVE_SHARES]
    estimates = likelihood.progressive_estimates(
        pipeline.unet, pipeline.scheduler, to_model_range(batch["pixel_values"]),
        pipeline.unet.conditioning_of(batch), timesteps,
    )  # fmt: skip
    unit = (estimates.clamp(-1, 1) / 2 + 0.5).cpu()  # (K, B, 1, H, W)
    titles = ["scan", *(f"t = {t}" for t in timesteps)]
    shown = torch.cat([batch["pixel_values"].cpu()[None], unit])
    sheet(shown.numpy(), titles).save(output_dir / "progressive.png")


def usefulness_of(real: RealScans, synthetic: Labelled, device: str) -> dict:
    """What synthetic scans add to real ones, judged by those that nobody trained on."""
    return {
        "usefulness": usefulness(
            real.training, synthetic, real.unseen, real.class_names, device=device, progress=True
        )
    }


def memorisation(real: RealScans, synthetic: Labelled, features: Extractor, output_dir: Path) -> dict:
    """The audit, and its worst pairs as a picture."""
    detector = CopyDetector.fit(real.training[0], real.validation[0], features)
    examination = detector.examine(synthetic[0])
    worst_pairs_picture(detector, examination, synthetic[0]).save(output_dir / "worst_pairs.png")
    return {"memorisation": audit(detector, synthetic[0], examination)}
