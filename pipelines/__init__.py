"""Diffusers pipelines, installed as ``mri_ddpm.pipelines``."""
