"""Two processes on gloo: that one may take its time alone, and that they take the steps of one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import REPOSITORY
from PIL import Image

pytestmark = pytest.mark.slow

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
TIMEOUT_SECONDS = 5  # of a collective
LOAD = f"""
import sys
from datetime import timedelta
from accelerate import Accelerator, InitProcessGroupKwargs
from mri_ddpm.config import TrainingConfig
from mri_ddpm.training import preparation
accelerator = Accelerator(cpu=True, kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds={TIMEOUT_SECONDS}))])
accelerator.wait_for_everyone()
folder = sys.argv[1]
config = TrainingConfig(preset="tiny", train_data_dir=folder + "/scans", cache_dir=folder + "/cache")
scans = preparation.load_training_scans(accelerator, config)
accelerator.wait_for_everyone()
accelerator.print(accelerator.num_processes, "processes,", len(scans.train), "scans")
"""


def start_two(script: Path, *arguments) -> subprocess.Popen:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, *TORCHRUN, script, *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_first_decode_may_take_longer_than_the_processes_wait_for_each_other(tmp_path):
    """The process that decodes is stopped for longer than a collective lasts."""
    generator = np.random.default_rng(0)
    for index in range(200):
        path = tmp_path / "scans" / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (200, 200), dtype=np.uint8)).save(path)
    (tmp_path / "load.py").write_text(LOAD)
    process = start_two(tmp_path / "load.py", tmp_path)

    def decoding() -> psutil.Process | None:
        workers = psutil.Process(process.pid).children()
        return next((w for w in workers for file in w.open_files() if file.path.endswith(".tmp")), None)

    while not (worker := decoding()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(TIMEOUT_SECONDS + 2)
    worker.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "2 processes, 180 scans" in output
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 1


ACCUMULATE = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from accelerate.utils import gather
from mri_ddpm.config import TrainingConfig
from mri_ddpm.training import preparation
from mri_ddpm.runs import RunFolder
from mri_ddpm.training.state import prepare
from mri_ddpm.training.step import batch_loss, rest_of_epoch, take_step

accelerator = Accelerator(cpu=True)
config = TrainingConfig(
    preset="tiny", output_dir=sys.argv[1], gradient_accumulation_steps=2, train_batch_size=4, max_train_steps=None,
    num_train_epochs=2, max_grad_norm=0.0, surge_guard=False, lr_warmup_steps=0,
)
scans = preparation.load_training_scans(accelerator, config)
run = prepare(accelerator, config, scans, RunFolder(Path(sys.argv[1])))
run.unet.train()
parameters = list(run.raw_unet.parameters())
twin = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
adam = torch.optim.Adam(twin)
sizes = []
while run.progress.step < run.max_steps:
    for batches in rest_of_epoch(run):
        # The large batch: both processes' scans of all micro-batches, without DDP
        wrapped, run.unet = run.unet, run.raw_unet
        large = torch.stack([batch_loss(run, index, batch) for index, batch in batches]).mean()
        gradients = [gather(g[None].contiguous()).mean(dim=0) for g in torch.autograd.grad(large, parameters)]
        run.unet = wrapped
        row = take_step(run, batches)
        run.progress.step += 1
        sizes.append(len(batches))
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        torch.testing.assert_close(row["grad_norm"], norm, rtol=1e-4, atol=0)
        for parameter, gradient in zip(twin, gradients, strict=True):
            parameter.grad = gradient
        adam.param_groups[0]["lr"] = row["learning_rate"]
        adam.step()
        for parameter, expected in zip(parameters, twin, strict=True):
            torch.testing.assert_close(parameter.detach(), expected.detach(), rtol=1e-3, atol=1e-5)
            expected.data.copy_(parameter.data)  # what rounding makes of a gradient near 0 does not add up
assert accelerator.num_processes == 2
assert sizes == [2, 2, 2, 1] * 2, sizes  # 7 global batches an epoch
accelerator.print("the same at", len(sizes), "steps")
"""


def test_accumulated_batches_of_two_processes_give_the_step_of_one_large_batch(tmp_path):
    """Two epochs of 7 batches in twos: each step is Adam's of the mean over both processes' batches, also the last."""
    (tmp_path / "accumulate.py").write_text(ACCUMULATE)
    process = start_two(tmp_path / "accumulate.py", tmp_path / "run")
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "the same at 8 steps" in output
