"""What several test files share: one thread, a tiny real U-Net, and a process that has imported nothing yet."""

import os
import subprocess
import sys

import pytest
import torch

from mri_ddpm import AttentionUNet2DModel

# Networks this small lose more by sharing out their work than they win: five times the time on two busy cores.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)

TINY = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_types": ("linear", "full"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def build_unet(seed: int = 0, **config) -> AttentionUNet2DModel:
    """Build a tiny U-Net in eval mode; noise on every parameter, because a fresh one outputs nothing but 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = AttentionUNet2DModel(**{**TINY, **config}).eval()
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return unet


@pytest.fixture
def make_unet():
    return build_unet


@pytest.fixture
def run_fresh(tmp_path):
    """Return a function that runs Python source in a process of its own, with arguments in ``sys.argv[1:]``."""

    def run(source: str, *arguments) -> None:
        command = [sys.executable, "-c", source, *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    return run
