"""``mri-ddpm push RUN REPO``: a run or a pipeline to the Hub."""

import argparse
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mri_ddpm.commands import parser_of
from mri_ddpm.errors import InputError
from mri_ddpm.hub import export_repository, push_run
from mri_ddpm.runs.faults import hub_sentence


def main(args: list[str] | None = None) -> None:
    """Read the flags and push."""
    parser = parser_of("push")
    parser.add_argument("source", type=Path, help="run folder, such as runs/a, or a saved pipeline")
    parser.add_argument(
        "hub_model_id", help="repository, such as me/brain-mri-ddpm; created if it does not exist"
    )
    parser.add_argument(
        "--hub_public", action="store_true", help="make the repository public; private without it"
    )
    parser.add_argument(
        "--hub_license",
        help="licence of the weights for the model card, as the Hub writes it: cc-by-4.0, ...",
    )
    parser.add_argument(
        "--dry_run",
        type=Path,
        metavar="DIR",
        help="write the repository to DIR and list it; nothing leaves the machine",
    )
    push(parser.parse_args(args))


def push(args: argparse.Namespace) -> None:
    """Push, or write what would be pushed and list it."""
    if not args.dry_run:
        print(push_run(args.source, args.hub_model_id, public=args.hub_public, license=args.hub_license))
        return
    try:
        validate_repo_id(args.hub_model_id)
    except HFValidationError as error:
        raise InputError(hub_sentence(error, args.hub_model_id)) from error
    for path in export_repository(args.source, args.dry_run, args.hub_model_id, args.hub_license):
        print(f"{(args.dry_run / path).stat().st_size:>12,}  {path}")
    print(f"written: {args.dry_run}; nothing was sent")
