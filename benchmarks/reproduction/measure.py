"""What came of one run, in one line of JSON: its losses by epoch, and what is measured of its samples."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.reproduction.runs import Run
from mri_ddpm.data import to_model_range
from mri_ddpm.evaluation.estimates import mean
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.likelihood import bits_per_dimension, denoising_curves
from mri_ddpm.evaluation.quality import kid, ssim_to_nearest
from mri_ddpm.evaluation.subject import RealScans, class_counts, load_real_scans
from mri_ddpm.files import read_json, read_json_lines
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling import SamplingOptions, sample_arrays

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FINISHED = "finished"  # else what ended a run: its loss ran away
SMOOTH_STEPS = 10
IMAGES_PER_TIMESTEP = 4
BLUR_SHARE = 1 / 22  # of the side: the deviation of a Gaussian that leaves a head's outline and no more


def result_of(run: Run, ended: str) -> dict:
    """The run's line in ``runs.jsonl``."""
    config = run.config
    found = losses_of(read_json_lines(run.folder / "metrics.jsonl"), config.train_batch_size)
    if found["evaluations"]:
        last = found["evaluations"][-1]
        found["kid"] = {"value": last["kid"], "interval": last["kid_interval"], "n": config.evaluate_images}
        found |= {name: last[name] for name in ("flagged_share", "detail_ratio")}
    return {
        "name": run.name,
        "part": run.part,
        "variant": run.variant,
        "seed": config.seed,
        "resolution": config.resolution,
        "batch_size": config.train_batch_size,
        "learning_rate": config.learning_rate,
        "ended": ended,
        "gmac_per_image": run.gmac,
        **found,
        **(measured(run) if ended == FINISHED else {}),
        "command": run.command,
        "environment": read_json(run.folder / "environment.json"),
    }


def losses_of(rows: Sequence[dict], batch_size: int) -> dict:
    """What the rows of ``metrics.jsonl`` say of a run that validates once an epoch.

    Losses by epoch are of whole epochs: means over the steps, and those of validation at the end, of raw and averaged
    weights. ``least_loss`` and ``last_loss`` are of means over ten steps in a row. JSON knows no NaN, so it is left out.
    """
    steps = [row for row in rows if "loss" in row]
    sizes = Counter(row["epoch"] for row in steps)
    whole = sum(size == sizes[0] for size in sizes.values())
    epochs = [[row["loss"] for row in group] for _, group in groupby(steps, key=lambda row: row["epoch"])]
    validations = [row for row in rows if "validation_loss" in row][:whole]
    window = min(SMOOTH_STEPS, len(steps))
    smooth = np.convolve([row["loss"] for row in steps], np.full(window, 1 / window), mode="valid")
    seconds = sum(batch_size / row["images_per_second"] for row in steps)
    return {
        "epochs": whole,
        "images_seen": len(steps) * batch_size,
        "training_loss": finite([np.mean(losses) for losses in epochs[:whole]]),
        "validation_loss": finite([row["validation_loss"] for row in validations]),
        "validation_loss_ema": finite([row["validation_loss_ema"] for row in validations]),
        "least_loss": min(finite(smooth), default=None),
        "last_loss": next(iter(finite(smooth[-1:])), None),
        "evaluations": [row for row in rows if "kid" in row],
        "surges": [row["surge_at_step"] for row in rows if "surge_at_step" in row],
        "training_seconds": round(seconds, 1),  # of the steps alone
    }


def finite(losses: Sequence[float]) -> list[float]:
    """Those that are numbers."""
    return [float(loss) for loss in losses if np.isfinite(loss)]


def measured(run: Run) -> dict:
    """Bits per dimension of validation scans, which compare across losses and timesteps, and SSIM to them where it is planned.

    Beside the samples' SSIM stands what as many training scans score.
    """
    pipeline, real = load_pipeline(str(run.folder), DEVICE), real_scans(run)
    batch = real.batch("validation", range(len(real.validation[0])), DEVICE)
    given = (to_model_range(batch["pixel_values"]), pipeline.unet.conditioning_of(batch))
    kind = {"images_per_timestep": IMAGES_PER_TIMESTEP, "loss_type": "l2"}  # whose loss is not used
    curves = denoising_curves(pipeline.unet, pipeline.scheduler, *given, **kind)
    found = {"bits_per_dimension": bits_per_dimension(curves).as_dict()}
    if run.ssim_images:
        counts = class_counts(real.training[1], max(1, len(pipeline.class_names)), run.ssim_images)
        options = SamplingOptions(num_inference_steps=run.config.num_inference_steps)
        samples, _ = sample_arrays(pipeline, counts, options)
        chosen = np.random.default_rng(0).permutation(len(real.training[0]))[: run.ssim_images]
        scans = real.training[0][chosen]
        for name, compared in {"ssim": samples, "ssim_of_training_scans": scans}.items():
            found[name] = mean(ssim_to_nearest(compared, real.validation[0])).as_dict()
    return found


def real_scans(run: Run) -> RealScans:
    """The scans that a run was trained on, and those that validate."""
    where = {"train_data_dir": run.config.train_data_dir}
    return load_real_scans(load_record(str(run.folder)), where, run.config.resolution)


def kid_of_blurred_scans(run: Run) -> float:
    """KID of validation scans that are blurred until only the head's outline is left: what is worse shows no brain."""
    real = real_scans(run)
    extractor = make_extractor("in_domain", *real.training, real.class_names, DEVICE)
    sigma = BLUR_SHARE * run.config.resolution
    blurred = gaussian_filter(np.asarray(real.validation[0]), (0, 0, sigma, sigma))
    return kid(extractor(real.training[0][extractor.reference]), extractor(blurred)).value
