"""What is measured of a finished run beyond what its training measures: likelihood, and SSIM to unseen scans."""

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from benchmarks.reproduction.plan import Run
from mri_ddpm.data import to_model_range
from mri_ddpm.evaluation.estimates import mean
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.likelihood import bits_per_dimension, denoising_curves
from mri_ddpm.evaluation.quality import kid, ssim_to_nearest
from mri_ddpm.evaluation.subject import RealScans, class_counts, draw, load_real_scans
from mri_ddpm.hub import load_pipeline, load_record
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IMAGES_PER_TIMESTEP = 4
BATCH_SIZE = 64
BLUR_SHARE = 1 / 22  # of the side: the deviation of a Gaussian that leaves a head's outline and no more


def measure(run: Run) -> dict:
    """Bits per dimension of held-out scans, which compare across losses and timesteps, and SSIM where the plan asks for it."""
    pipeline, real = load_pipeline(str(run.folder), DEVICE), real_scans(run)
    return {
        "bits_per_dimension": bits(pipeline, real),
        **(ssim(pipeline, real, run) if run.ssim_images else {}),
    }


def real_scans(run: Run) -> RealScans:
    """The scans that a run was trained on, and those held out of them."""
    config = run.config
    return load_real_scans(
        load_record(str(run.folder)), {"train_data_dir": config.train_data_dir}, config.resolution
    )


def bits(pipeline: MRIDDPMPipeline, real: RealScans) -> dict:
    """The variational bound on held-out scans."""
    images, labels = real.held_out
    x_0 = torch.from_numpy(to_model_range(np.asarray(images))).to(DEVICE)
    known = torch.from_numpy(labels).to(DEVICE) if pipeline.class_names else None
    curves = denoising_curves(
        pipeline.unet,
        pipeline.scheduler,
        x_0,
        known,
        images_per_timestep=IMAGES_PER_TIMESTEP,
        loss_type="l2",  # of which nothing is used
    )
    return bits_per_dimension(curves).as_dict()


def ssim(pipeline: MRIDDPMPipeline, real: RealScans, run: Run) -> dict:
    """SSIM of samples to the nearest held-out scan, and what as many training scans score."""
    counts = class_counts(real.training[1], max(1, len(pipeline.class_names)), run.ssim_images)
    steps = run.config.num_inference_steps
    drawn, _ = draw(
        pipeline, counts, num_inference_steps=steps, guidance_scale=1.0, batch_size=BATCH_SIZE, seed=0
    )
    chosen = np.random.default_rng(0).permutation(len(real.training[0]))[: run.ssim_images]
    parts = {"ssim": drawn, "ssim_of_training_scans": real.training[0][chosen]}
    return {name: mean(ssim_to_nearest(images, real.held_out[0])).as_dict() for name, images in parts.items()}


def kid_of_blurred_scans(run: Run) -> float:
    """KID of held-out scans that are blurred until only the head's outline is left: what is worse shows no brain."""
    real = real_scans(run)
    extractor = make_extractor("in_domain", *real.training, real.class_names, DEVICE)
    sigma = BLUR_SHARE * run.config.resolution
    blurred = gaussian_filter(np.asarray(real.held_out[0]), (0, 0, sigma, sigma))
    return kid(extractor(real.training[0][extractor.reference]), extractor(blurred)).value
