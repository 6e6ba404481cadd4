"""One run after another, each in its own folder, and what came of it in one line of JSON.

Started by accelerate in several processes, each takes one run after another and trains it by itself.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from benchmarks.reproduction.curves import Curves
from benchmarks.reproduction.measure import measure
from benchmarks.reproduction.plan import Run
from mri_ddpm.errors import SurgeError
from mri_ddpm.files import read_json, write_json, write_json_lines
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


def leave_the_group() -> int:
    """This process's number among those that a launcher started; from now on it trains alone, on its own GPU.

    A network of this size gains nothing from several GPUs, and a sweep gains all of them.
    """
    rank = int(os.environ.get("RANK", 0))
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    for name in LAUNCHED:
        os.environ.pop(name, None)
    return rank


def result_file(run: Run) -> Path:
    """What came of a run; it is there when the run is over."""
    return run.folder / "result.json"


def run_all(plan: Sequence[Run], lines: Path, first: bool = True) -> list[dict]:
    """Train what is not trained yet, and return the results in the plan's order.

    Every process goes through all runs, the costliest first, and takes those that no other has begun.

    Args:
        plan: all runs.
        lines: file of one JSON line a finished run, kept by the first process.
        first: whether this is the first process, which shows the progress, and waits for the others.
    """
    with progress_of(plan, shown=first) as bar:
        for run in sorted(plan, key=lambda run: run.cost, reverse=True):
            with taken(run) as mine:
                if mine and not result_file(run).exists():
                    bar.set_postfix_str(run.name)
                    write_json(result_file(run), result_of(run, quiet=not first))
            if first:
                write_json_lines(lines, finished(plan))
        while first and not all(result_file(run).exists() for run in plan):
            time.sleep(POLL_SECONDS)
    results = finished(plan)
    if first:
        write_json_lines(lines, results)
    return results


@contextlib.contextmanager
def taken(run: Run) -> Iterator[bool]:
    """Keep other processes from a run; false where another has it. A process that is killed lets go of what it had."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    file = beside(run, ".lock")
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        file.unlink(missing_ok=True)
        lock.release()


def beside(run: Run, ending: str) -> Path:
    """A file that belongs to a run and is not in its folder."""
    return run.folder.with_name(run.name + ending)


def finished(plan: Sequence[Run]) -> list[dict]:
    """What came of the runs that are over, in the plan's order."""
    return [read_json(result_file(run)) for run in plan if result_file(run).exists()]


@contextlib.contextmanager
def progress_of(plan: Sequence[Run], shown: bool) -> Iterator[tqdm]:
    """One bar over all runs, which moves whichever process ends one, also while this one trains."""
    stopped = threading.Event()

    def count() -> int:
        return sum(result_file(run).exists() for run in plan)

    def watch() -> None:
        last = False
        while not last:
            last = stopped.wait(POLL_SECONDS)
            if count() != bar.n:
                bar.n = count()
                bar.refresh()

    look = {"desc": "runs", "unit": "run", "dynamic_ncols": True}
    with tqdm(total=len(plan), initial=count(), disable=not shown, **look) as bar:
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield bar
        finally:
            stopped.set()
            watcher.join()


def result_of(run: Run, quiet: bool) -> dict:
    """Train one run, or go on with it, and say in JSON what came of it; its checkpoints go when it is over."""
    ended, measured = FINISHED, {}
    with output_to(beside(run, ".log"), quiet):
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
        "training_loss": finite(curves.training),
        "validation_loss": finite(curves.validation),
        "validation_loss_ema": finite(curves.validation_ema),
        "least_loss": float(np.nanmin(curves.smooth)),
        "last_loss": next(iter(finite(curves.smooth[-1:])), None),
        "evaluations": curves.evaluations,
        "surges": [row["surge_at_step"] for row in curves.surges],
        **measured,
        "training_seconds": round(curves.seconds(run.config.train_batch_size), 1),
        "command": run.command,
        "environment": read_json(run.folder / "environment.json"),
    }


def finite(losses: np.ndarray) -> list[float]:
    """Those that are numbers: JSON knows no NaN."""
    return losses[np.isfinite(losses)].tolist()


@contextlib.contextmanager
def output_to(log: Path, quiet: bool) -> Iterator[None]:
    """Send what a run says to its log, and of a quiet process the progress bars too."""
    with log.open("a", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(file))
        if quiet:
            stack.enter_context(contextlib.redirect_stderr(file))
        yield
