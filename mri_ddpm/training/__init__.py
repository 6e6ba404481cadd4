"""Training: the loop, what it draws, what it keeps and what it shows."""

from mri_ddpm.training.entry import train

__all__ = ["train"]
