"""The command line and the ``--config`` file of a training.

The flags are the names of the fields of `TrainingConfig`. A value comes from the flag, else from the file, else from the preset, else from
the field's default.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import yaml

from mri_ddpm.config import TrainingConfig, put_over
from mri_ddpm.errors import InputError
from mri_ddpm.fields import FlagParser
from mri_ddpm.presets import PRESETS

OF_DIFFUSERS = {  # flags of its train_unconditional.py that are called otherwise here, or not needed
    "num_epochs": "here it is --num_train_epochs",
    "save_images_epochs": "here it is --sample_epochs",
    "save_model_epochs": "here it is --checkpointing_steps",
    "eval_batch_size": "here it is --num_samples",
    "ddpm_num_steps": "here it is --num_train_timesteps",
    "ddpm_num_inference_steps": "here it is --num_inference_steps",
    "ddpm_beta_schedule": "the betas are linear here, from --beta_start to --beta_end",
    "center_crop": "here it is --fit crop",
    "use_ema": "the weights are always averaged here; leave it out",
    "ema_inv_gamma": "only --ema_power and --ema_max_decay can be chosen here",
    "logger": "here it is --report_to",
    "hub_private_repo": "a repository is private here unless --hub_public is given; leave it out",
    "overwrite_output_dir": "no run is overwritten here; name another --output_dir",
    "enable_xformers_memory_efficient_attention": "attention is as sparing of memory without it; leave it out",
}


def parse_config(args: list[str] | None = None) -> TrainingConfig:
    """Read the command line (``sys.argv`` when ``args`` is None) into a ``TrainingConfig``.

    Raises:
        InputError: for an unknown preset, an unreadable ``--config`` file or an unknown key in it, a bad number.
    """
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--preset")
    first_look.add_argument("--config")
    first_look.add_argument("--hub_token")
    given, _ = first_look.parse_known_args(args)
    if given.hub_token:  # the parser below would repeat it in its error
        raise InputError(
            "--hub_token is not taken, for a command line is seen by others; log in with 'hf auth login' or set HF_TOKEN."
        )
    for word in sys.argv[1:] if args is None else args:
        name = word.split("=")[0].removeprefix("--")
        if word.startswith("--") and name in OF_DIFFUSERS:
            raise InputError(f"--{name} is a flag of diffusers' own script: {OF_DIFFUSERS[name]}.")
    from_file = read_config_file(given.config) if given.config else {}
    preset = given.preset or from_file.get("preset") or TrainingConfig.preset
    if preset not in PRESETS:
        raise InputError(f"--preset {preset} is unknown; the presets are: {', '.join(PRESETS)}.")

    parser = FlagParser(
        TrainingConfig,
        description="Train a diffusion model on brain MRI slices. Without scans it trains on a built-in phantom.",
        prog="mri-ddpm train",
        usage="mri-ddpm train [--train_data_dir DIR] [--preset NAME] [--config FILE.yaml] [--FLAG VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", help="YAML or JSON file of flags; what the command line gives overrides it."
    )
    parser.set_defaults(**{**PRESETS[preset], "preset": preset})  # for --help

    def read(flags: list[str]) -> dict:
        """What the flags give, without the defaults of those that are not among them."""
        untouched = argparse.Namespace(**{f.name: UNSAID for f in dataclasses.fields(TrainingConfig)})
        found = vars(parser.parse_args(flags, untouched))
        return {name: value for name, value in found.items() if value is not UNSAID and name != "config"}

    by_file = {name: value for name, value in from_file.items() if value in (None, [])}
    by_file |= read(as_flags(from_file))
    return TrainingConfig(**put_over(by_file, read(sys.argv[1:] if args is None else args)))


UNSAID = object()


def as_flags(values: dict) -> list[str]:
    """Write values as flags, so that one parser checks all; None and [] have no flag."""
    flags = []
    for name, value in values.items():
        entries = value if isinstance(value, list) else [value]
        if value is not None and entries:
            flags += [f"--{name}", *map(str, entries)]
    return flags


def read_config_file(path: str) -> dict:
    """Read ``--config``: field names to words as they are written, lists of them, and None for null.

    Of the words the flags' parser makes numbers; YAML would make False of a class that is called no, and 1 of 01.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}; name a YAML file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of lists within lists without end
        raise InputError(f"--config {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path} holds no keys; write lines such as 'resolution: 44'.")
    if values.get("mixed_precision") is False:
        values["mixed_precision"] = "no"  # as YAML reads an unquoted no
    known = [f.name for f in dataclasses.fields(TrainingConfig)]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise InputError(
            f"--config {path} has unknown keys: {', '.join(unknown)}; 'mri-ddpm train --help' lists them all."
        )
    for f in dataclasses.fields(TrainingConfig):
        value, takes_list = values.get(f.name), f.default_factory is not dataclasses.MISSING
        if value in ("null", "~") or (value == "" and not isinstance(f.default, str)):
            if f.default is not None:
                raise InputError(
                    f"--config {path} gives {f.name} no value; write one, or leave the line out."
                )
            values[f.name] = None
        entries = value if isinstance(value, list) and takes_list else [value]
        if any(isinstance(entry, (dict, list)) or str(entry).startswith("--") for entry in entries):
            raise InputError(
                f"--config {path} gives {f.name} {str(value):.60}; write a number or a word, or several for a list."
            )
    return values
