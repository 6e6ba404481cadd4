"""Drawing: which scheduler, how many at once, into which folder, and what it looks like on the way."""

from mri_ddpm.sampling.batches import activation_bytes, batch_size_that_fits, check_sampling, draw_batches
from mri_ddpm.sampling.schedulers import SCHEDULERS, set_scheduler

__all__ = [
    "SCHEDULERS",
    "activation_bytes",
    "batch_size_that_fits",
    "check_sampling",
    "draw_batches",
    "set_scheduler",
]
