"""``mri-ddpm data DIR``: the account of a data set."""

import argparse
import dataclasses
import json
from pathlib import Path

from mri_ddpm.commands import COMMANDS
from mri_ddpm.data import account_of, format_account, write_sources
from mri_ddpm.data.cache import cache_folder, prune_cache
from mri_ddpm.errors import InputError
from mri_ddpm.fields import FlagParser
from mri_ddpm.files import write_json, writing_to
from mri_ddpm.scan_options import ScanOptions


def main(args: list[str] | None = None) -> None:
    """Read the flags, which are those that tell a training which scans and how they are read, and give the account."""
    parser = FlagParser(
        ScanOptions,
        prog="mri-ddpm data",
        usage="mri-ddpm data DIR [--FLAG VALUE ...]",
        description=COMMANDS["data"].capitalize() + ".",
        allow_abbrev=False,
    )
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder or .zip of scans")
    parser.add_argument("--data", dest="train_data_dir", metavar="DIR", help="short for --train_data_dir")
    parser.add_argument(
        "--output", type=Path, default=Path("manifest.json"), help="JSON file for the whole account"
    )
    parser.add_argument(
        "--prune_cache",
        action="store_true",
        help="delete all decoded scans that are kept, and say how many bytes that was",
    )
    args = parser.parse_args(args)
    if args.prune_cache:
        count, size = prune_cache(args.cache_dir)
        print(f"deleted: {count} files of {size / 1e6:.1f} MB in {cache_folder(args.cache_dir)}")
    if args.folder or args.train_data_dir or args.dataset_name or not args.prune_cache:
        data(args)


def is_manifest(file: Path) -> bool:
    """Whether a file is what this command wrote before, which a newer account replaces."""
    try:
        return "manifest_version" in json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def data(args: argparse.Namespace) -> None:
    """Print the account and write it, with every file's hash and split, as JSON; and who is who, for this machine alone."""
    if args.output.exists() and not is_manifest(args.output):
        raise InputError(
            f"--output {args.output} exists, and is no manifest; name another file, or remove it."
        )
    sources = args.output.with_name(f"{args.output.stem}-sources.csv")
    if sources.exists() and not args.output.exists():
        raise InputError(
            f"--output {args.output} would write {sources} beside it, which exists; name another file."
        )
    with writing_to(args.output.parent, "name another file.", "--output "):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.folder and args.train_data_dir:
        raise InputError(
            f"{args.folder} and --train_data_dir {args.train_data_dir} are both given; give one of them."
        )
    args.train_data_dir = args.train_data_dir or args.folder
    manifest, paths = account_of(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ScanOptions)})
    print(format_account(manifest, paths=paths))
    with writing_to(args.output.parent, "name another file.", "--output "):
        write_json(args.output, manifest)
        print(f"written: {args.output}")
        if manifest["patients"]:
            write_sources(sources, paths)
            print(f"which file each name stands for, for your eyes alone: {sources}")
