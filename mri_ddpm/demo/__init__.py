"""A page in the browser for one model: sample, watch, edit, compare."""

from mri_ddpm.demo.serving import serve

__all__ = ["serve"]
