"""The paper, run again, as titled paragraphs: scans, sweep, claims, report."""

import dataclasses
import shlex
import sys
import time
from pathlib import Path

from benchmarks.reproduction import paper
from benchmarks.reproduction.budgets import BUDGETS, Budget
from benchmarks.reproduction.claim_items import claim_items
from benchmarks.reproduction.claims import all_claims
from benchmarks.reproduction.items import (
    Material,
    all_losses_item,
    large_item,
    loss_items,
    network_item,
    noise_item,
    ours_item,
    sample_items,
    scans_item,
    table_1_item,
)
from benchmarks.reproduction.measure import kid_of_blurred_scans
from benchmarks.reproduction.plan import Run, make_plan, size_and_batch
from benchmarks.reproduction.report import Section, write_report
from benchmarks.reproduction.results import Results
from benchmarks.reproduction.sweep import POLL_SECONDS, leave_the_group, run_all
from mri_ddpm.data import Scans, load_phantoms, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.memorisation import MIN_HELD_OUT, MIN_TRAINING
from mri_ddpm.files import read_json, write_json, writing_to
from mri_ddpm.hub.record import LOCAL_PATHS

PLAN_FILE = "plan.json"


def reproduce(
    output_dir: Path, *, data: str | None = None, budget: str = "hour", with_scans: bool = True
) -> None:
    """Run the paper's experiments, or go on with them, and report them beside the paper.

    Args:
        output_dir: new or empty, or that of the same reproduction: ``runs/``, ``runs.jsonl``, ``figures/``, ``report.html``,
            ``report.md``.
        data: folder or .zip of scans; the phantom when ``None``.
        budget: a name of ``BUDGETS``.
        with_scans: whether the report may show scans; if not, it shows phantoms where the paper shows scans.

    Raises:
        InputError: for what cannot be run, before the first training.
    """
    # Refuse what can be refused before any work
    chosen = BUDGETS[budget]
    rank = leave_the_group()
    if rank == 0:
        refuse_other_folder(output_dir)
    scans = load(chosen, data)
    refuse_few_scans(chosen, scans)
    plan = make_plan(chosen, output_dir / "runs", data, scans.class_names, len(scans.train))
    note = {"budget": budget, "content_sha256": scans.manifest["content_sha256"], "runs": settings_of(plan)}
    if rank == 0:
        refuse_other_plan(output_dir, note)
        with writing_to(output_dir, "name another folder.", "--output_dir "):
            (output_dir / "figures").mkdir(parents=True, exist_ok=True)
            write_json(output_dir / PLAN_FILE, note)
    else:
        wait_for(output_dir / PLAN_FILE, note)

    # The sweep
    with writing_to(output_dir, "the same command goes on when it can be.", "--output_dir "):
        try:
            rows = run_all(plan, output_dir / "runs.jsonl", first=rank == 0)
        except (KeyboardInterrupt, SystemExit):
            if rank == 0:
                print("\nStopped. The same command goes on.", file=sys.stderr)
            raise
    if rank > 0:
        return

    # The claims
    results = Results(rows)
    long = next(run for run in plan if run.variant == size_and_batch(chosen.long) and run.part == "paper")
    kid_of_blurred = kid_of_blurred_scans(long)
    claims = all_claims(results, chosen, kid_of_blurred)

    # The report
    material = Material(chosen, plan, results, scans, output_dir / "figures", with_scans)
    sections = [
        Section(
            "The scans and the network", [scans_item(material), noise_item(material), network_item(material)]
        ),
        Section("Losses", [table_1_item(material), all_losses_item(material), *loss_items(material)]),
        Section("Samples over training", sample_items(material)),
        Section("The claims", claim_items(material, claims, kid_of_blurred)),
        Section("Beyond the paper", [ours_item(material), large_item(material)]),
    ]
    write_report(sections, facts(material, output_dir, data), output_dir)
    for claim in claims:
        print(f"Claim {claim.number}: {claim.answer}. {claim.says}")
    print(f"Report: {output_dir / 'report.html'}   numbers: {output_dir / 'runs.jsonl'}")


def load(budget: Budget, data: str | None) -> Scans:
    """The scans in the size of the best setting, for their account and the first figures."""
    resolution = budget.best.resolution
    if data is None:
        return load_phantoms(num_images=budget.phantom_images, resolution=resolution)
    return load_scans(train_data_dir=data, resolution=resolution)


def refuse_few_scans(budget: Budget, scans: Scans) -> None:
    """Refuse a set in which the largest batch or the search for copies would find too little."""
    least = {"training": max(MIN_TRAINING, *budget.batch_sizes), "held-out": MIN_HELD_OUT}
    found = {"training": len(scans.train), "held-out": len(scans.validation)}
    for part, number in least.items():
        if found[part] < number:
            raise InputError(
                f"--train_data_dir has {found[part]} {part} scans after copies are folded; --budget {budget.name} needs {number}."
            )


def settings_of(plan: list[Run]) -> dict:
    """What every run is, wherever its files lie."""
    return {
        run.name: {
            name: value for name, value in dataclasses.asdict(run.config).items() if name not in LOCAL_PATHS
        }
        for run in plan
    }


def refuse_other_folder(output_dir: Path) -> None:
    """Refuse a folder that holds anything but a reproduction."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"--output_dir {output_dir} is a file; name a folder.")
    if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / PLAN_FILE).exists():
        raise InputError(
            f"--output_dir {output_dir} is not empty and holds no reproduction; name a new folder."
        )


def refuse_other_plan(output_dir: Path, note: dict) -> None:
    """Refuse to go on with a reproduction of another budget, on other scans, or by another version's plan."""
    if not (output_dir / PLAN_FILE).exists():
        return
    before = read_json(output_dir / PLAN_FILE)
    words = {
        "budget": "of another budget",
        "content_sha256": "on other scans",
        "runs": "by the plan of another version",
    }
    for key, what in words.items():
        if before.get(key) != note[key]:
            raise InputError(f"--output_dir {output_dir} holds a reproduction {what}; name a new folder.")


def wait_for(plan_file: Path, note: dict) -> None:
    """Let the first process decide; when it refuses, its launcher ends the others."""
    while not plan_file.exists() or read_json(plan_file) != note:
        time.sleep(POLL_SECONDS)


def facts(material: Material, output_dir: Path, data: str | None) -> dict:
    """What the head of the report says."""
    budget, rows = material.budget, material.results.rows
    command = ["python", "-m", "benchmarks.reproduction", *(["--data", data] if data else [])]
    command += ["--output_dir", str(output_dir)]
    command += ["--budget", budget.name, *([] if material.with_scans else ["--without_scans"])]
    packages = rows[0]["environment"]["packages"]
    devices = ", ".join(sorted({row["environment"]["device"] for row in rows}))
    return {
        "budget": budget.name,
        "source": f"{len(material.scans.train)} training and {len(material.scans.validation)} held-out images of {data or 'the phantom'}",
        "runs": len(rows),
        "hours": sum(row["training_seconds"] for row in rows) / 3600,
        "scaled_down": budget.summary,
        "assumed": paper.ASSUMED,
        "command": shlex.join(command),
        "machine": f"{devices}, torch {packages['torch']}, diffusers {packages['diffusers']}, mri-ddpm {packages['mri-ddpm']}",
    }
