"""The ``mri-ddpm`` command: a file for each of its commands, imported when it is called for."""

import argparse
import importlib
import sys

from mri_ddpm import __version__
from mri_ddpm.errors import InputError, exit_on_input_error

COMMANDS = {
    "train": "train a model, alone or under accelerate launch",
    "sample": "sample images with a trained pipeline",
    "data": "count, check and split a folder of scans; trains nothing",
    "evaluate": "measure a model: quality, usefulness, and whether it copies patients",
    "push": "publish a run, or a saved pipeline, on the Hugging Face Hub",
    "demo": "see a model in a browser: sample, watch, edit, compare",
}


def main(args: list[str] | None = None) -> None:
    """Run ``mri-ddpm``; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="mri-ddpm",
        description="Synthetic brain MRI with diffusion models.",
        epilog="'mri-ddpm COMMAND --help' lists the flags of a command.",
    )
    parser.add_argument("--version", action="version", version=f"mri-ddpm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose)
    args = sys.argv[1:] if args is None else args
    with exit_on_input_error():
        if args[:1] == ["reproduce"]:
            raise InputError(
                "reproduce is no command of the package; run python -m benchmarks.reproduction in a clone of the repository."
            )
        if args[:1] and args[0] in COMMANDS:
            importlib.import_module(f"mri_ddpm.commands.{args[0]}").main(args[1:])
        else:
            parser.parse_args(args)


def parser_of(command: str) -> argparse.ArgumentParser:
    """A parser for the flags of one command, to be filled."""
    return argparse.ArgumentParser(
        prog=f"mri-ddpm {command}", description=COMMANDS[command].capitalize() + "."
    )
