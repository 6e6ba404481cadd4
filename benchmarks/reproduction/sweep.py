"""One run after another, each in its own folder.

Started by a launcher in several processes, each takes one run after another and trains it by itself.
"""

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from benchmarks.reproduction.measure import FINISHED, result_of
from benchmarks.reproduction.runs import Run
from mri_ddpm.errors import SurgeError
from mri_ddpm.files import read_json, write_json, write_json_lines
from mri_ddpm.training import train

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")  # fmt: skip
POLL_SECONDS = 1.0


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


def run_all(plan: Sequence[Run], lines: Path, first: bool = True) -> list[dict]:
    """Train what is not trained yet, and return the results in the plan's order.

    Every process goes through all runs, the costliest first, and takes those that no other has begun.

    Args:
        plan: all runs.
        lines: file of one JSON line a finished run, kept by the first process.
        first: whether this is the first process, which shows the progress, and waits for the others.
    """

    def finished() -> list[dict]:
        found = [read_json(result_file(run)) for run in plan if result_file(run).exists()]
        if first:
            write_json_lines(lines, found)
            bar.n = len(found)
            bar.refresh()
        return found

    with tqdm(total=len(plan), desc="runs", unit="run", disable=not first) as bar:
        for run in sorted(plan, key=lambda run: run.cost, reverse=True):
            with taken(run) as mine:
                if mine and not result_file(run).exists():
                    bar.set_postfix_str(run.name)
                    write_json(result_file(run), train_one(run, quiet=not first))
                    finished()
        while len(finished()) < len(plan) and first:
            time.sleep(POLL_SECONDS)
        return finished()


def result_file(run: Run) -> Path:
    """What came of a run; it is there when the run is over."""
    return run.folder / "result.json"


@contextlib.contextmanager
def taken(run: Run) -> Iterator[bool]:
    """Keep other processes from a run; false where another has it. A process that is killed lets go of what it had."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    file = run.folder.with_name(f"{run.name}.lock")
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


def train_one(run: Run, quiet: bool) -> dict:
    """Train one run, or resume it, and measure it; what it says goes to its log, and its checkpoints go when it is over."""
    ended, log = FINISHED, run.folder.with_name(f"{run.name}.log")
    with log.open("a", encoding="utf-8") as file, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(file))
        if quiet:  # its progress bars too
            stack.enter_context(contextlib.redirect_stderr(file))
        try:
            for config in run.phases:
                train(config)
        except SurgeError as error:
            ended = str(error)
        result = result_of(run, ended)
    shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
    return result
