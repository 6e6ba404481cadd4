"""The parts of an evaluation: what each compares, which pictures it leaves, and that each is written down as it comes."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler

from mri_ddpm.data import to_model_range
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import likelihood, pictures
from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.copies import ChannelDetectors, audit_in_all
from mri_ddpm.evaluation.features import Extractor
from mri_ddpm.evaluation.fidelity import fidelity, refuse_few
from mri_ddpm.evaluation.lazy import Images, plane, stacked
from mri_ddpm.evaluation.memorisation import CopyDetector, Examination, audit, worst_pairs_picture
from mri_ddpm.evaluation.quality import intensity_histogram, power_spectrum
from mri_ddpm.evaluation.report import verdicts, write_report
from mri_ddpm.evaluation.scores import METRICS, TWO_SAMPLE, score_all, score_mask, two_sample
from mri_ddpm.evaluation.subject import RealScans, raw_unet
from mri_ddpm.evaluation.usefulness import usefulness
from mri_ddpm.files import read_json, write_json
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs import Record
from mri_ddpm.sampling.sheets import sheet

QUALITY = (*METRICS, TWO_SAMPLE)
CHOICES = (*QUALITY, "fidelity", "likelihood", "usefulness", "memorisation")  # of --metrics
CHANNELS = "channels"  # the folder of what is shown of each of several channels
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
    synthetic: dict[str, Labelled],
    features: dict[str, Extractor],
    output_dir: Path,
    *,
    settings: dict,
    metrics: Collection[str] = CHOICES,
    device: str = "cpu",
    denoise: Callable[[], dict] | None = None,
    followed: tuple[dict[str, Images], np.ndarray] | None = None,
    seconds: dict[str, float] | None = None,
) -> dict:
    """Measure part by part. ``metrics.json`` and ``report.html`` are written after each, so that no later failure loses it.

    What they have of the same images by now, and is not asked for again, stays.

    Args:
        real: scans to compare with.
        synthetic: images, and their classes, by the name of the channel; one contrast may have "".
        features: what makes the features of distances, for each contrast.
        output_dir: where numbers, report and pictures go; it is there.
        settings: what the images come from, for the report.
        metrics: what is asked for, of ``CHOICES``.
        device: where classifiers are trained.
        denoise: gives the losses and the likelihood of the network that made the images; ``None`` where there is none.
        followed: samples by channel that were given what belongs to validation scans, and the rows of these scans; ``None``
            for a model without a condition.
        seconds: what earlier steps took.

    Returns:
        What is in ``metrics.json``. What was not measured is in ``not_measured``, with the reason. Where there is more than one
        contrast, what is measured of one channel is in ``channels``, by its name.
    """
    subject = Subject(real, synthetic, features, output_dir, device)
    found: dict = {"settings": settings, **subject.extractors()}
    found |= {"images": image_counts(real, next(iter(synthetic.values())))}
    found |= {"caution": real.caution, "not_measured": {}, "seconds": dict(seconds or {})}
    scores = [name for name in QUALITY if name in metrics]
    join(found, before := measured_before(found, {*metrics, *(["quality"] if scores else [])}, output_dir))
    parts = {
        "quality": bool(scores) and (lambda: subject.quality(scores)),
        "fidelity": "fidelity" in metrics and followed and (lambda: subject.fidelity(*followed)),
        "likelihood": "likelihood" in metrics and denoise,
        "usefulness": "usefulness" in metrics and subject.usefulness,
        "memorisation": "memorisation" in metrics and subject.memorisation,
    }
    if not followed:
        del parts["fidelity"]  # nobody asks what there is to follow
    for name, part in parts.items():
        if part:
            with timed(found["seconds"], name):
                try:
                    measured = part()
                except InputError as error:
                    measured = {"not_measured": {name: str(error)}}
        elif name in before.get("seconds", {}):
            continue
        else:
            reason = "there is no network, but images alone." if part is None else "it was not asked for."
            measured = {"not_measured": {name: reason}}
        join(found, measured)
        found["verdicts"] = verdicts(found)
        write_json(output_dir / "metrics.json", found)
        write_report(found, output_dir)
    return found


def join(found: dict, measured: dict) -> None:
    """Add what a part has measured to what is there, also within the same table."""
    for name, value in measured.items():
        if isinstance(value, dict) and isinstance(found.get(name), dict):
            join(found[name], value)
        else:
            found[name] = value


def measured_before(found: dict, asked: Collection[str], output_dir: Path) -> dict:
    """What an earlier evaluation of the same images measured, less its reasons why what is asked for now was not."""
    file = output_dir / "metrics.json"
    try:
        before = read_json(file) if file.exists() else {}
    except InputError:  # damaged: all of it is lost
        return {}
    extractors = [
        [of.get("extractor"), *(channel.get("extractor") for channel in of.get("channels", {}).values())]
        for of in (before, found)
    ]
    if extractors[0] != extractors[1] or any(before.get(key) != found[key] for key in ("settings", "images")):
        return {}
    for of in (before, *before.get("channels", {}).values()):
        reasons = of.get("not_measured", {})
        for name in [
            name for name in reasons if name.split(" of ")[0] in asked
        ]:  # "kid of validation, glioma" too
            del reasons[name]
    return before


@dataclass(frozen=True)
class Subject:
    """What is measured: arguments as of `measure`. Each part gives what it adds to ``metrics.json``, and leaves its pictures."""

    real: RealScans
    synthetic: dict[str, Labelled]
    features: dict[str, Extractor]
    output_dir: Path
    device: str

    @property
    def together(self) -> Labelled:
        """The images with all contrasts as their channels, as in the real scans; of masks alone their labels."""
        chosen = [self.synthetic[name] for name in self.features or self.synthetic]
        return stacked(*(images for images, _ in chosen)), chosen[0][1]

    def each(self, part: str, measure: Callable[[str, Path], dict]) -> dict:
        """What ``measure`` finds of each channel by its name and folder; one that cannot be measured has a reason instead."""
        if self.synthetic.keys() == self.features.keys() and len(self.features) == 1:
            return measure(next(iter(self.features)), self.output_dir)
        found = {}
        for name in self.synthetic:
            folder = self.output_dir / CHANNELS / name
            folder.mkdir(parents=True, exist_ok=True)
            try:
                found[name] = measure(name, folder)
            except InputError as error:
                found[name] = {"not_measured": {part: str(error)}}
        return {"channels": found}

    def extractors(self) -> dict:
        """The names of what makes the features."""
        return self.each(
            "extractor",
            lambda name, _: {"extractor": self.features[name].name} if name in self.features else {},
        )

    def quality(self, scores: Collection[str]) -> dict:
        """Each channel beside that of real scans, and whether several contrasts fit one another."""
        labels = self.real.channels.mask_labels

        def of(name: str, folder: Path) -> dict:
            real, synthetic = self.real.of(name), self.synthetic[name]
            if name not in labels:
                return compare(real, synthetic, self.features[name], scores, folder)
            pictures.save_side_by_side(real, synthetic, folder)
            return score_mask(real, synthetic, labels[name])

        found = self.each("quality", of)
        if len(self.features) > 1 and TWO_SAMPLE in scores:
            try:
                found["quality"] = {TWO_SAMPLE: two_sample(self.real, self.together, self.device)}
            except InputError as error:
                found["not_measured"] = {TWO_SAMPLE: str(error)}
        return found

    def fidelity(self, samples: dict[str, Images], rows: np.ndarray) -> dict:
        """How like its scan each sample is that was given what belongs to a validation scan."""
        refuse_few(len(rows))
        labels = self.real.validation[1][rows]

        def of(name: str, folder: Path) -> dict:
            scans = self.real.of(name).validation[0][rows]
            mask_labels = self.real.channels.mask_labels.get(name, ())
            found = fidelity(samples[name], scans, labels, mask_labels)
            pictures.save_followed(samples[name], scans, folder)
            return {"fidelity": found}

        return self.each("fidelity", of)

    def usefulness(self) -> dict:
        """What synthetic scans add to real ones, judged by those that nobody trained on; a classifier sees all contrasts."""
        real = self.real
        found = usefulness(
            real.training, self.together, real.unseen, real.class_names, device=self.device, progress=True
        )
        return {"usefulness": found}

    def memorisation(self) -> dict:
        """The audit of each contrast and of all together, with the worst pairs of each as a picture."""
        images, embeds = self.together[0], list(self.features.values())
        detectors = ChannelDetectors.fit(self.real.training[0], self.real.validation[0], embeds)
        examined = detectors.examine(images)
        at = {name: i for i, name in enumerate(self.features)}

        def of(name: str, folder: Path) -> dict:
            if name not in at:
                return {}
            i = at[name]
            return audit_of(detectors.channels[i], examined.channels[i], plane(images, i), folder)

        found = self.each("memorisation", of)
        if "channels" in found:
            found["memorisation"] = audit_in_all(detectors, examined)
        if detectors.joint:
            joint = audit_of(detectors.joint, examined.joint, images, self.output_dir)
            found["memorisation"]["joint"] = joint["memorisation"]
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
    """Scores of one contrast beside that of real scans, with spectra, histograms and examples side by side as pictures."""
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
    unit = (estimates.clamp(-1, 1) / 2 + 0.5).cpu()  # (K, B, C, H, W)
    titles = ["scan", *(f"t = {t}" for t in timesteps)]
    shown = torch.cat([batch["pixel_values"].cpu()[None], unit])[:, :, real.channels.contrast_channels or [0]]
    sheet(shown.flatten(1, 2)[:, :, None].numpy(), titles).save(output_dir / "progressive.png")


def audit_of(detector: CopyDetector, examined: Examination, images: Images, folder: Path) -> dict:
    """The audit, and its worst pairs as a picture."""
    worst_pairs_picture(detector, examined, images).save(folder / "worst_pairs.png")
    return {"memorisation": audit(detector, images, examined)}
