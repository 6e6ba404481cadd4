"""``mri-ddpm train``: what ``train_ddpm.py`` does, from wherever the package is installed."""

from mri_ddpm.flags import parse_config


def main(args: list[str] | None = None) -> None:
    """Train by the flags of the command line, which are the fields of ``TrainingConfig``."""
    config = parse_config(args)
    from mri_ddpm.training import train  # after the flags, so that --help and a wrong flag answer at once

    train(config)
