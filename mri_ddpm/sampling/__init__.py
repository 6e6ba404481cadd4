"""Sampling: what is asked for, by which scheduler, how many at once, into which folder, and what it looks like on the way."""

from mri_ddpm.sampling.batches import activation_bytes, sample_arrays, sample_batches
from mri_ddpm.sampling.options import SamplingOptions
from mri_ddpm.sampling.schedulers import SCHEDULERS, set_scheduler

__all__ = [
    "SCHEDULERS",
    "SamplingOptions",
    "activation_bytes",
    "sample_arrays",
    "sample_batches",
    "set_scheduler",
]
