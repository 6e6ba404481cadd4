"""The paper's experiments, figures and claims, from the repository's root.

    python -m benchmarks.reproduction --data DIR --output_dir repro --budget hour
    torchrun --nproc_per_node 2 -m benchmarks.reproduction --data DIR --output_dir repro

The same command resumes a reproduction that was stopped. ``docs/reproduction.md`` says how it is read.
"""

import argparse
from pathlib import Path

from benchmarks.reproduction.budgets import BUDGETS
from benchmarks.reproduction.reproduce import reproduce
from mri_ddpm.errors import exit_on_input_error


def main(flags: list[str] | None = None) -> None:
    """Train what is not trained yet, and write the report; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduction",
        description="Run the paper's experiments again and report them beside the paper's own.",
    )
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
        help="folder for the runs and the report: new, empty, or a matching reproduction, which is resumed",
    )
    given = parser.parse_args(flags)
    with exit_on_input_error():
        reproduce(
            given.output_dir,
            data=given.train_data_dir,
            budget=given.budget,
            with_scans=not given.without_scans,
        )


if __name__ == "__main__":
    main()
