"""One run after another, each in its own folder, and what came of it in one line of JSON.

Started by accelerate in several processes, each takes its share of the runs and trains them by itself.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from mri_ddpm.errors import SurgeError
from mri_ddpm.files import read_json, write_json, write_json_lines
from mri_ddpm.reproduction.curves import Curves
from mri_ddpm.reproduction.measure import measure
from mri_ddpm.reproduction.plan import Run
from mri_ddpm.training import train

LAUNCHED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "TORCHELASTIC_RESTART_COUNT",
)
POLL_SECONDS = 1.0
FINISHED = "finished"  # else what ended a run: its loss ran away


def leave_the_group() -> tuple[int, int]:
    """This process's number and how many a launcher started; from now on it trains alone, on its own GPU.

    A network of this size gains nothing from several GPUs, and a sweep gains all of them.
    """
    rank, count = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    for name in LAUNCHED:
        os.environ.pop(name, None)
    return rank, count


def result_file(run: Run) -> Path:
    """What came of a run; it is there when the run is over."""
    return run.folder / "result.json"


def run_all(plan: Sequence[Run], lines: Path, rank: int = 0, count: int = 1) -> list[dict]:
    """Train what is not trained yet, and return the results in the plan's order.

    Args:
        plan: all runs.
        lines: file of one JSON line a finished run, kept by the first process.
        rank: which share this process takes; the first one shows the progress and waits for the others.
        count: into how many shares the runs are divided.
    """

    def finished() -> list[dict]:
        return [read_json(result_file(run)) for run in plan if result_file(run).exists()]

    def show() -> None:
        results = finished()
        bar.n = len(results)
        bar.refresh()
        if rank == 0:
            write_json_lines(lines, results)

    with tqdm(total=len(plan), desc="runs", unit="run", disable=rank > 0, dynamic_ncols=True) as bar:
        show()
        for run in share_of(plan, rank, count):
            if not result_file(run).exists():
                bar.set_postfix_str(run.name)
                write_json(result_file(run), result_of(run, quiet=rank > 0))
                show()
        while rank == 0 and len(finished()) < len(plan):
            show()
            time.sleep(POLL_SECONDS)
        show()
    return finished()


def share_of(plan: Sequence[Run], rank: int, count: int) -> list[Run]:
    """One process's runs, the costliest first; each goes to the process that has the least to do so far."""
    loads, mine = [0.0] * count, []
    for run in sorted(plan, key=lambda run: run.cost, reverse=True):
        taker = loads.index(min(loads))
        loads[taker] += run.cost
        if taker == rank:
            mine.append(run)
    return mine


def result_of(run: Run, quiet: bool) -> dict:
    """Train one run, or go on with it, and say in JSON what came of it; its checkpoints go when it is over."""
    ended, measured = FINISHED, {}
    with output_to(run.folder.with_suffix(".log"), quiet):
        try:
            for config in run.phases:
                train(config)
            measured = measure(run)
        except SurgeError as error:
            ended = str(error)
    curves = Curves.read(run.folder)
    if curves.evaluations:
        row = curves.evaluations[-1]
        measured |= {
            "kid": {"value": row["kid"], "interval": row["kid_interval"], "n": run.config.evaluate_images}
        }
        measured |= {name: row[name] for name in ("flagged_share", "detail_ratio")}
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return {
        "name": run.name,
        "part": run.part,
        "variant": run.variant,
        "seed": run.config.seed,
        "resolution": run.config.resolution,
        "batch_size": run.config.train_batch_size,
        "learning_rate": run.config.learning_rate,
        "ended": ended,
        "epochs": len(curves.training),
        "images_seen": len(curves.loss) * run.config.train_batch_size,
        "gmac_per_image": run.gmac,
        "training_loss": curves.training.tolist(),
        "validation_loss": curves.validation.tolist(),
        "validation_loss_ema": curves.validation_ema.tolist(),
        "least_loss": float(np.nanmin(curves.smooth)),
        "last_loss": float(curves.smooth[-1]),
        "evaluations": curves.evaluations,
        "surges": [row["surge_at_step"] for row in curves.surges],
        **measured,
        "training_seconds": round(curves.seconds(run.config.train_batch_size), 1),
        "command": run.command,
        "environment": read_json(run.folder / "environment.json"),
    }


@contextlib.contextmanager
def output_to(log: Path, quiet: bool) -> Iterator[None]:
    """Send what a run says to its log, and of a quiet process the progress bars too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(file))
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(file))
        yield
