"""``mri-ddpm data DIR``: the account of a data set."""

import argparse
from pathlib import Path

from mri_ddpm.commands import parser_of
from mri_ddpm.commands.flags import add_scans, where
from mri_ddpm.data import account_of, format_account
from mri_ddpm.errors import InputError
from mri_ddpm.files import write_json, writing_to


def main(args: list[str] | None = None) -> None:
    """Read the flags and give the account."""
    parser = parser_of("data")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder or .zip of scans")
    add_scans(parser, "same as DIR")
    parser.add_argument(
        "--validation_share", type=float, default=0.1, help="share of train that becomes validation"
    )
    parser.add_argument("--keep_repeats", action="store_true", help="keep copies in train")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument(
        "--output", type=Path, default=Path("manifest.json"), help="JSON file for the whole account"
    )
    data(parser.parse_args(args))


def data(args: argparse.Namespace) -> None:
    """Print the account and write it, with every file's hash and split, as JSON."""
    if args.output.exists():
        raise InputError(f"--output {args.output} exists; name another file, or remove it.")
    with writing_to(args.output.parent, "name another file.", "--output "):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.folder and args.train_data_dir:
        raise InputError(
            f"{args.folder} and --train_data_dir {args.train_data_dir} are both given; give one of them."
        )
    args.train_data_dir = args.train_data_dir or args.folder
    manifest = account_of(
        **{name: value for name, value in where(args).items() if value is not None},
        validation_share=args.validation_share,
        keep_repeats=args.keep_repeats,
        seed=args.seed,
    )
    print(format_account(manifest))
    with writing_to(args.output.parent, "name another file.", "--output "):
        write_json(args.output, manifest)
    print(f"written: {args.output}")
