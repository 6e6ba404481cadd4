"""Trainings of the benchmarks by `train_ddpm.py`, and the averaged weights of their checkpoints."""

import copy
import subprocess
import sys
from pathlib import Path

import torch

from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel

REPOSITORY = Path(__file__).parents[1]


def train(folder: Path, flags: dict) -> None:
    """Train into a folder, from where a training that was cut short left it; nothing where it has ended."""
    if (folder / "samples.png").exists():
        return
    command = [sys.executable, "train_ddpm.py"]
    for name, value in {**flags, "output_dir": folder, "resume_from_checkpoint": "latest"}.items():
        if isinstance(value, bool):
            command.append(f"--{name}" if value else f"--no_{name}")
        else:
            command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    subprocess.run(command, check=True, cwd=REPOSITORY)


def averaged(unet: AttentionUNet2DModel, checkpoint: Path) -> AttentionUNet2DModel:
    """A copy of a network with the EMA weights of a checkpoint."""
    weights = torch.load(checkpoint / "custom_checkpoint_1.pkl", weights_only=True)["shadow_params"]
    earlier = copy.deepcopy(unet)
    names = [name for name, _ in earlier.named_parameters()]
    earlier.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)
    return earlier
