"""The paper's experiments, figures and claims, from the repository's root.

    python -m benchmarks.reproduction --data DIR --budget hour
    torchrun --nproc_per_node 2 -m benchmarks.reproduction --data DIR --budget hour

The same command resumes a reproduction that was stopped. ``docs/results/reproduction.md`` says how it is read.
"""

import argparse
import shlex
import sys
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from benchmarks.reproduction.budgets import BUDGETS, Budget
from benchmarks.reproduction.measure import kid_of_blurred_scans
from benchmarks.reproduction.report import write_report
from benchmarks.reproduction.runs import make_plan
from benchmarks.reproduction.study import Study
from benchmarks.reproduction.sweep import POLL_SECONDS, leave_the_group, run_all
from mri_ddpm.data import Scans, load_phantoms, load_scans
from mri_ddpm.errors import InputError, exit_on_input_error
from mri_ddpm.evaluation.memorisation import MIN_TRAINING, MIN_VALIDATION
from mri_ddpm.files import read_json, write_json, writing_to
from mri_ddpm.runs.record import LOCAL_PATHS

PLAN_FILE = "plan.json"
OTHERS = {"budget": "of another budget", "content_sha256": "on other scans", "runs": "by the plan of another version"}  # fmt: skip


def main(flags: list[str] | None = None) -> None:
    """``python -m benchmarks.reproduction``; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reproduction",
        description="Run the paper's experiments again and report them beside the paper's own.",
    )
    add = parser.add_argument
    add("--train_data_dir", "--data", metavar="DIR", help="folder or .zip of scans; the built-in phantom when not given")  # fmt: skip
    add("--budget", choices=BUDGETS, default="hour", help="tiny: minutes; hour: of two CPU cores; full: the paper's")  # fmt: skip
    add("--without_scans", action="store_true", help="show phantoms in place of patients' scans, so that the report can be published")  # fmt: skip
    add("--output_dir", type=Path, default=Path("runs/reproduction"), help="folder for the runs and the report: new, empty, or a matching reproduction, which is resumed; runs/reproduction when not given")  # fmt: skip
    given = parser.parse_args(flags)
    with exit_on_input_error():
        reproduce(BUDGETS[given.budget], given.output_dir, given.train_data_dir, not given.without_scans)


def reproduce(budget: Budget, output_dir: Path, data: str | None = None, with_scans: bool = True) -> None:
    """Train what is not trained yet, and report it beside the paper.

    Args:
        budget: how much is run.
        output_dir: new or empty, or a matching reproduction: ``runs/``, ``runs.jsonl``, ``figures/``, ``report.html``,
            ``report.md``.
        data: folder or .zip of scans; the phantom when ``None``.
        with_scans: whether the report may show scans; if not, it shows phantoms where the paper shows scans.

    Raises:
        InputError: for what cannot be run, before the first training.
    """
    # Refuse what can be refused before any work
    if find_spec("markdown") is None:
        raise InputError("the report needs the package markdown; run pip install markdown.")
    first = leave_the_group() == 0
    if first:
        refuse_other_folder(output_dir)
    resolution = budget.best.resolution  # for the account of the scans and the first figures
    if data is None:
        scans = load_phantoms(num_images=budget.phantom_images, resolution=resolution)
    else:
        scans = load_scans(train_data_dir=data, resolution=resolution)
    refuse_few_scans(budget, scans)
    plan = make_plan(budget, output_dir / "runs", data, scans.class_names, len(scans.train))
    settings = {run.name: {k: v for k, v in asdict(run.config).items() if k not in LOCAL_PATHS} for run in plan}  # fmt: skip
    note = {"budget": budget.name, "content_sha256": scans.manifest["content_sha256"], "runs": settings}
    begin_or_join(output_dir / PLAN_FILE, note, first)

    # The sweep
    with writing_to(output_dir, "the same command resumes it.", "--output_dir "):
        try:
            rows = run_all(plan, output_dir / "runs.jsonl", first)
        except (KeyboardInterrupt, SystemExit):
            if first:
                print("\nStopped. The same command resumes it.", file=sys.stderr)
            raise
    if not first:
        return

    # The report
    long = next(run for run in plan if (run.part, run.variant) == ("paper", budget.long.name))
    study = Study(budget, rows, output_dir / "runs", scans, with_scans, kid_of_blurred_scans(long))
    flags = [*(["--data", data] if data else []), "--output_dir", str(output_dir), "--budget", budget.name]
    flags += [] if with_scans else ["--without_scans"]
    with writing_to(output_dir, "the same command writes the report.", "--output_dir "):
        items = write_report(
            study,
            output_dir,
            source=f"{len(scans.train)} training and {len(scans.validation)} validation images of {data or 'the phantom'}",
            command=shlex.join(["python", "-m", "benchmarks.reproduction", *flags]),
        )
    for item in items:
        if item.answer:
            print(f"{item.title}: {item.answer}. {item.paper}")
    print(f"Report: {output_dir / 'report.html'}   numbers: {output_dir / 'runs.jsonl'}")


def refuse_few_scans(budget: Budget, scans: Scans) -> None:
    """Refuse a set in which the largest batch or the search for copies would find too little."""
    for part, there, least in (
        ("training", len(scans.train), max(MIN_TRAINING, *budget.batch_sizes)),
        ("validation", len(scans.validation), MIN_VALIDATION),
    ):
        if there < least:
            raise InputError(
                f"--train_data_dir has {there} {part} scans after copies are folded; --budget {budget.name} needs {least}."
            )


def refuse_other_folder(output_dir: Path) -> None:
    """Refuse a folder that holds anything but a reproduction."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; name a folder.")
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / PLAN_FILE).exists():
        raise InputError(
            f"--output_dir {output_dir} is not empty and holds no reproduction; name a new folder."
        )


def begin_or_join(file: Path, note: dict, first: bool) -> None:
    """Write down what is to be run, or see that it is what a stopped reproduction ran; other processes wait for that.

    Raises:
        InputError: for a reproduction of another budget, on other scans, or by another version's plan. It ends the first
            process alone, and its launcher the others.
    """
    while not first and not (file.exists() and read_json(file) == note):
        time.sleep(POLL_SECONDS)
    before = read_json(file) if file.exists() else note
    for key, what in OTHERS.items():
        if before.get(key) != note[key]:
            raise InputError(f"--output_dir {file.parent} holds a reproduction {what}; name a new folder.")
    if first:
        with writing_to(file.parent, "name another folder.", "--output_dir "):
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, note)


if __name__ == "__main__":
    main()
