"""Sampling: the request, the schedulers, the batches, the folder, and pictures of the process."""

from mri_ddpm.sampling.batches import activation_bytes, sample_arrays, sample_batches
from mri_ddpm.sampling.dicom import save_dicom
from mri_ddpm.sampling.nifti import save_nifti
from mri_ddpm.sampling.options import SamplingOptions
from mri_ddpm.sampling.schedulers import SCHEDULERS, set_scheduler
from mri_ddpm.sampling.volumes import sample_volume

__all__ = [
    "SCHEDULERS",
    "SamplingOptions",
    "activation_bytes",
    "sample_arrays",
    "sample_batches",
    "sample_volume",
    "save_dicom",
    "save_nifti",
    "set_scheduler",
]
