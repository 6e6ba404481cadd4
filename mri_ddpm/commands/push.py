"""``mri-ddpm push RUN REPO``: a run or a pipeline to the Hub, and a page for it."""

import argparse
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from mri_ddpm.commands import parser_of
from mri_ddpm.errors import InputError
from mri_ddpm.hub import export_repository, export_space, push_run
from mri_ddpm.hub.export import must_be_empty
from mri_ddpm.runs.faults import hub_sentence

BOTH_PRIVATE = "Both are private: give the Space a secret HF_TOKEN that may read the model (its page, Settings, Variables and secrets)."


def main(args: list[str] | None = None) -> None:
    """Read the flags and push."""
    parser = parser_of("push")
    parser.add_argument("source", type=Path, help="run folder, such as runs/a, or a saved pipeline")
    parser.add_argument(
        "hub_model_id", help="repository, such as me/brain-mri-ddpm; created if it does not exist"
    )
    parser.add_argument(
        "--space",
        metavar="REPO",
        help="also push a Space, such as me/brain-mri-demo: the page of 'mri-ddpm demo', run by the Hub",
    )
    parser.add_argument(
        "--hub_public",
        action="store_true",
        help="make the repository and the Space public; private without it",
    )
    parser.add_argument(
        "--hub_license",
        help="licence of the weights for the model card, as the Hub writes it: cc-by-4.0, ...",
    )
    parser.add_argument(
        "--dry_run",
        type=Path,
        metavar="DIR",
        help="write the repository to DIR and list it; nothing leaves the machine. With --space to DIR/model and DIR/space",
    )
    args = parser.parse_args(args)
    for name in filter(None, (args.hub_model_id, args.space)):
        check_name(name, whole=bool(args.dry_run and args.space))
    if args.dry_run:
        write(args)
    else:
        push(args)


def check_name(name: str, whole: bool) -> None:
    """Refuse what can be no repository's name, before anything is read.

    Raises:
        InputError: for such a name, or one without its owner where it has to be ``whole``.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(hub_sentence(error, name)) from error
    if whole and "/" not in name:
        raise InputError(
            f"{name} has no owner; --dry_run cannot ask the Hub who you are, so say owner/{name}."
        )


def push(args: argparse.Namespace) -> None:
    """Push, and say what was sent."""
    print(
        push_run(
            args.source, args.hub_model_id, public=args.hub_public, license=args.hub_license, space_id=args.space
        )
    )  # fmt: skip
    if args.space and not args.hub_public:
        print(BOTH_PRIVATE)


def write(args: argparse.Namespace) -> None:
    """Write what would be pushed, and list it."""
    folder, repo_id = args.dry_run, args.hub_model_id
    must_be_empty(folder)
    model = folder / "model" if args.space else folder
    written = [
        model / path
        for path in export_repository(args.source, model, repo_id, args.hub_license, space_id=args.space)
    ]
    if args.space:
        space = folder / "space"
        written += [space / path for path in export_space(space, args.space, repo_id)]
    for path in written:
        print(f"{path.stat().st_size:>12,}  {path.relative_to(folder)}")
    print(f"written: {folder}; nothing was sent")
