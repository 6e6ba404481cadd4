"""Diffusers pipelines, installed as ``mri_ddpm.pipelines``; the network comes along, for they load it by its name."""

from mri_ddpm.models import modeling_attention_unet  # noqa: F401
