"""Flags that several commands have, declared once."""

import argparse
import dataclasses

import torch

from mri_ddpm.evaluation.subject import HUB_FLAGS
from mri_ddpm.fields import AUTO
from mri_ddpm.sampling import SCHEDULERS, SamplingOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PIPELINE = "run folder, such as runs/a, its pipeline folder, or a Hub repository"


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """How images are sampled: the fields of `SamplingOptions`, as ``sample`` and ``evaluate`` take them."""
    parser.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="solver from noise to image; that of the training when not given",
    )
    parser.add_argument(
        "--num_inference_steps", type=int, help="steps of the reverse chain; all when not given"
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=1.0,
        help="how closely an image follows its class and its condition; 1 is no guidance",
    )
    parser.add_argument(
        "--condition_guidance_scale",
        type=float,
        help="how closely it follows its condition, where that is not --guidance_scale",
    )
    parser.add_argument(
        "--guidance_start", type=float, default=0.0, help="share of the chain where guidance begins"
    )
    parser.add_argument(
        "--guidance_end", type=float, default=1.0, help="share of the chain where guidance ends"
    )
    parser.add_argument(
        "--dynamic_thresholding_ratio",
        type=float,
        help="scale estimates of x_0 down instead of clipping them; such as 0.995",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image i is sampled from seed + i, whatever its batch"
    )
    parser.add_argument(
        "--batch_size",
        type=auto_or_int,
        default=AUTO,
        help="images at once; 'auto' for what fits into memory",
    )


def auto_or_int(value: str) -> int | str:
    """``--batch_size``: a number or ``auto``."""
    if value != AUTO and not value.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{value!r} is neither a number nor 'auto'")
    return value if value == AUTO else int(value)


def sampling_options(args: argparse.Namespace, **more) -> SamplingOptions:
    """What `add_sampling` asked for."""
    names = [f.name for f in dataclasses.fields(SamplingOptions) if hasattr(args, f.name)]
    return SamplingOptions(**{name: getattr(args, name) for name in names}, **more)


def add_scans(parser: argparse.ArgumentParser, what: str) -> None:
    """Where real scans are, by the flags of the training."""
    hub = "needed only if the run does not record it"
    parser.add_argument("--train_data_dir", "--data", metavar="DIR", help=f"{what}: a folder or .zip")
    parser.add_argument(
        "--dataset_name", help=f"or a data set on the Hub, or a folder that save_to_disk wrote; {hub}"
    )
    parser.add_argument("--dataset_config_name", help="configuration of --dataset_name")
    parser.add_argument("--image_column", help="image column of --dataset_name")
    parser.add_argument("--label_column", help="class column of --dataset_name")


def where(args: argparse.Namespace) -> dict[str, str | None]:
    """What `add_scans` asked for; `None` where it was not given."""
    return {name: getattr(args, name) for name in ("train_data_dir", *HUB_FLAGS)}
