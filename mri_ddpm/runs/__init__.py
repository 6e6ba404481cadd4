"""The run folder: the one room that knows its files, and opens models by a run's name."""

from mri_ddpm.runs.adapters import merged, merged_weights, save_adapter, with_new_inputs
from mri_ddpm.runs.base import Base, base_of, take_over
from mri_ddpm.runs.folder import LATEST, RunFolder
from mri_ddpm.runs.opening import load_pipeline, load_record, read_raw_weights
from mri_ddpm.runs.record import Record

__all__ = [
    "LATEST",
    "Base",
    "Record",
    "RunFolder",
    "base_of",
    "load_pipeline",
    "load_record",
    "merged",
    "merged_weights",
    "read_raw_weights",
    "save_adapter",
    "take_over",
    "with_new_inputs",
]
