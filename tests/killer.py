"""Kills a training run again and again, and looks at what every kill leaves: ``python tests/killer.py FOLDER KILLS SEED``.

After each kill the run is resumed, and at the end it goes on, over two epochs at least, to its own end. Everything is imported
once: each attempt is a fork. Prints JSON: the number of steps, and how many kills fell where.
"""

import json
import mmap
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from mri_ddpm import MRIDDPMPipeline, files
from mri_ddpm.config import TrainingConfig
from mri_ddpm.files import read_json_lines
from mri_ddpm.runs import LATEST, RunFolder, folder
from mri_ddpm.training import checkpoints, entry, loop

INTERVAL = 2  # steps from one checkpoint to the next, so that writing them is a good part of the time
DRAWS = {"lr_scheduler": "constant", "dropout": 0.1, "random_flip": True}
WRITES = {
    "checkpointing_steps": INTERVAL, "checkpoints_total_limit": 2, "logging_steps": 1, "validation_steps": 12,
    "sample_epochs": [0, 2], "max_train_steps": 100_000, "resume_from_checkpoint": "latest",
}  # fmt: skip
PLACES = {  # the functions that are at work there
    "start": (),
    "between steps": ((loop.TrainingLoop, "train"),),
    "step": ((loop, "take_step"),),
    "metrics": ((entry.Metrics, "append"), (entry.Metrics, "__init__")),
    "validation": ((loop.TrainingLoop, "validate"),),
    "samples": ((loop.TrainingLoop, "sample"),),
    "checkpoint": ((loop, "save_checkpoint"),),
    "pipeline": ((loop.TrainingLoop, "save_pipeline"),),
    "rename": ((checkpoints, "replace_folder"), (files, "replace_folder")),
    "rotation": ((folder, "remove_folder"),),
}
AT_FILES = {
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
}  # of Python's audit events; and "open", to write
PLACE, STEP = mmap.mmap(-1, mmap.PAGESIZE), mmap.mmap(-1, mmap.PAGESIZE)  # of the child, and they outlive it


def watch(function, number: int, counts_steps: bool):
    """Have a function say when it is at work."""

    def watched(*args, **kwargs):
        before, PLACE[0] = PLACE[0], number
        result = function(*args, **kwargs)
        PLACE[0] = before
        if counts_steps:
            STEP[:4] = (args[0].progress.step + 1).to_bytes(4, "little")
        return result

    return watched


def die_at_file(count: int) -> None:
    """Kill this process at the count-th file that Python opens to write, makes, renames or removes."""
    left = count

    def hook(event, args):
        nonlocal left
        if event in AT_FILES or (event == "open" and set(str(args[1])) & set("wax")):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def start(config: TrainingConfig, log: Path, dies_at: int | None = None) -> int:
    """Fork a process that trains."""
    PLACE[0] = 0
    pid = os.fork()
    if pid:
        return pid
    try:
        for stream in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        for number, functions in enumerate(PLACES.values()):
            for owner, name in functions:
                setattr(owner, name, watch(getattr(owner, name), number, name == "take_step"))
        if dies_at:
            die_at_file(dies_at)
        entry.train(config)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill_once(config: TrainingConfig, log: Path, rng: random.Random) -> str:
    """Start the run and kill it: at its start, at any moment of training, or at one of its files; returns where."""
    how = rng.choices(("start", "moment", "file"), (1, 5, 4))[0]
    pid = start(config, log, dies_at=rng.randrange(1, 150) if how == "file" else None)
    seconds = rng.uniform(0, 0.5)
    deadline = time.monotonic() + 30
    while how != "start" and PLACE[0] == 0 and not has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    if how != "file":
        time.sleep(seconds)
    while how == "file" and not has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), log.read_text()
    return list(PLACES)[PLACE[0]]


def look(run_dir: Path, steps: int) -> int:
    """Every checkpoint in sight loads, so does the pipeline, and at most an interval of ``steps`` is lost; the latest's."""
    run = RunFolder(run_dir)
    for checkpoint in run.checkpoints():
        load_file(checkpoint / "model.safetensors")
        names = ("optimizer.bin", "random_states_0.pkl", *(f"custom_checkpoint_{i}.pkl" for i in range(3)))
        state = [torch.load(checkpoint / name, weights_only=name[0] != "r") for name in names]
        assert checkpoint.name == f"step-{state[2]['step']:06d}"
    if run.pipeline.exists():
        MRIDDPMPipeline.from_pretrained(run.pipeline)
    read_json_lines(run.metrics)
    latest = run.find_checkpoint(LATEST)
    step = int(latest.name[5:]) if latest else 0
    assert steps - step <= INTERVAL, (steps, step)
    return step


def main(run_dir: Path, kills: int, seed: int) -> None:
    config = TrainingConfig(preset="tiny", output_dir=str(run_dir), **DRAWS, **WRITES)
    rng, places, log, step = random.Random(seed), Counter(), run_dir.with_name("log.txt"), 0
    for _ in range(kills):
        places[kill_once(config, log, rng)] += 1
        found = look(run_dir, int.from_bytes(STEP[:4], "little"))
        assert found >= step
        step = found
    steps = max(step, 15) + 5
    pid = start(replace(config, max_train_steps=steps), log)
    assert os.waitpid(pid, 0)[1] == 0, log.read_text()
    look(run_dir, steps)
    print(json.dumps({"steps": steps, "places": places}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Progress bars share a lock with forked processes, which a killed one may hold for ever
    tqdm.set_lock(threading.RLock())
    tqdm.monitor_interval = 0
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
