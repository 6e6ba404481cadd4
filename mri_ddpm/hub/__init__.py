"""What a Hub repository holds, and how it gets there: export, model card, push."""

from mri_ddpm.hub.background import BackgroundPush
from mri_ddpm.hub.export import export_repository
from mri_ddpm.hub.opening import load_pipeline, load_record, read_raw_weights
from mri_ddpm.hub.provenance import png_text, provenance
from mri_ddpm.hub.push import push_run
from mri_ddpm.hub.record import Record

__all__ = [
    "Record",
    "BackgroundPush",
    "export_repository",
    "load_pipeline",
    "load_record",
    "png_text",
    "provenance",
    "push_run",
    "read_raw_weights",
]
