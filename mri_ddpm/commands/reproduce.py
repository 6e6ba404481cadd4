"""``mri-ddpm reproduce --output_dir DIR``: the paper's experiments, figures and claims."""

import argparse
from pathlib import Path

from mri_ddpm.commands import parser_of
from mri_ddpm.reproduction.budgets import BUDGETS
from mri_ddpm.reproduction.reproduce import reproduce


def main(args: list[str] | None = None) -> None:
    """Read the flags and reproduce."""
    parser = parser_of("reproduce")
    parser.add_argument(
        "--train_data_dir",
        "--data",
        metavar="DIR",
        help="folder or .zip of scans; the built-in phantom when not given",
    )
    parser.add_argument(
        "--budget",
        choices=BUDGETS,
        default="hour",
        help="tiny: minutes; hour: of two CPU cores; full: the paper's",
    )
    parser.add_argument(
        "--without_scans",
        action="store_true",
        help="show phantoms where the report would show patients' scans, so that it can be published",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the runs and the report; new, empty, or that of the same reproduction, which is gone on with",
    )
    reproduce_paper(parser.parse_args(args))


def reproduce_paper(args: argparse.Namespace) -> None:
    """Run what is not run yet, and write the report."""
    reproduce(
        args.output_dir, data=args.train_data_dir, budget=args.budget, with_scans=not args.without_scans
    )
