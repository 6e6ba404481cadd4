"""What several test files share: one thread, a Hub, a tiny real U-Net, tiny runs, a process that has imported nothing."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hub_server import TOKEN, HubServer
from PIL import Image

REPOSITORY = Path(__file__).parents[1]
REFERENCE_SET = REPOSITORY.parent / "shared/data/brain_tumor_mri"

# The only Hub that tests know, on loopback. The client reads most of this when it is imported, hence here.
HUB = HubServer()
HOME = tempfile.TemporaryDirectory(prefix="mri-ddpm-tests-")
os.environ.update(
    HF_ENDPOINT=HUB.url, HF_TOKEN=TOKEN, HF_HOME=HOME.name, HF_HUB_DISABLE_XET="1", HF_HUB_DOWNLOAD_TIMEOUT="3"
)  # fmt: skip

import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from volume_sets import nifti, write

from mri_ddpm import AttentionUNet2DModel
from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import Scans, draw_phantoms, load_scans
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.evaluation import classifier, parts, two_sample
from mri_ddpm.files import read_json_lines
from mri_ddpm.runs import Base
from mri_ddpm.runs.record import WEIGHTS
from mri_ddpm.training import loop, state, train

# Networks this small lose more by sharing out their work than they win: five times the time on two busy cores.
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
# Bars that are drawn all the time fill the pipe of a process that nobody reads yet, and it waits for ever.
os.environ["TQDM_MININTERVAL"] = "10"
# A port for the launchers of each process of pytest
os.environ["PET_MASTER_PORT"] = str(29510 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]))
torch.set_num_threads(1)

TINY = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_types": ("linear", "full"),
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}


def noise(*shape, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    """The same normal numbers for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module, every parameter normal noise: a fresh one is the identity, or outputs 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


def build_unet(seed: int = 0, **config) -> AttentionUNet2DModel:
    """Build a tiny U-Net in eval mode; noise on every parameter, because a fresh one outputs nothing but 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = AttentionUNet2DModel(**{**TINY, **config}).eval()
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return unet


def shorten(patch: pytest.MonkeyPatch) -> None:
    """Have evaluations measure everything, if not as well."""
    patch.setattr(classifier, "STEPS", 8)
    patch.setattr(two_sample, "STEPS", 8)
    patch.setattr(parts, "IMAGES_PER_TIMESTEP", 2)


OLD = ("glioma", "meningioma")  # the classes of a base


def write_scans(folder: Path, side: int = 16, seed: int = 0, **classes: int) -> Path:
    """A folder of phantoms in class folders, so many of each; of no class where its name is ''."""
    images, labels = draw_phantoms(4 * max(classes.values()), side, seed)
    for number, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images[labels == number][:count]):
            Image.fromarray((image * 255).astype(np.uint8)).save(folder / name / f"{number}{i:03d}.png")
    return folder


def base_in_memory(class_names: tuple[str, ...], **changes) -> Base:
    """A base whose weights, all of them, are random numbers."""
    unet = state.build_unet(tiny("nowhere", **changes), class_names).eval()
    with torch.no_grad():
        for tensor in unet.state_dict().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    config = json.loads(unet.to_json_string())
    scheduler = json.loads(make_noise_scheduler().to_json_string())
    return Base("base", None, "", config, scheduler, dict.fromkeys(class_names, 30), "", unet)


def begun(folder: Path, base: Path | str, **changes) -> Path:
    changes = {"max_train_steps": 4, "validation_steps": 4, "checkpointing_steps": 2, **changes}
    return train_alone(tiny(folder, pretrained_model_name_or_path=str(base), **changes))


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pipeline" / WEIGHTS)


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


DRAWN = {}  # phantoms by side and seed, as many as were asked for


def phantom_images(count: int, side: int, seed: int = 0) -> np.ndarray:
    """The first phantoms of a seed, (N, 1, H, W), drawn once in a session: drawing takes longer than most tests."""
    if len(DRAWN.get((side, seed), ())) < count:
        DRAWN[side, seed] = draw_phantoms(count, side, seed)[0][:, None]
    return DRAWN[side, seed][:count].copy()


def tiny(output_dir, **changes) -> TrainingConfig:
    return TrainingConfig(**{"preset": "tiny", "output_dir": str(output_dir), **changes})


def forget_accelerator() -> None:
    """As in a fresh process: accelerate keeps its state for the life of one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def train_alone(config: TrainingConfig) -> Path:
    """Train as in a fresh process."""
    forget_accelerator()
    return train(config)


def start(
    *flags,
    launcher=("-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"),
    **environment,
):
    command = [sys.executable, *launcher, "train_ddpm.py", "--preset", "tiny", *map(str, flags)]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, start_new_session=True,
    )  # fmt: skip


def losses(run_dir: Path) -> list[float]:
    return [row["loss"] for row in read_json_lines(run_dir / "metrics.jsonl") if "loss" in row]


def state_of(run_dir: Path, step: int = 20) -> dict:
    """Weights, EMA, optimizer, step and guard of a checkpoint, flat."""
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    state = {"weights": load_file(folder / "model.safetensors")}
    for name in ("optimizer.bin", *(f"custom_checkpoint_{i}.pkl" for i in range(3))):
        state[name] = torch.load(folder / name, weights_only=True)
    return state


def assert_same_to_the_bit(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_to_the_bit(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same_to_the_bit(x, y)
    else:
        assert a == b


@pytest.fixture
def at_step(monkeypatch):
    """Return a function that has something done after a number of steps."""

    def plan(steps, action):
        take_step = loop.take_step

        def step(state, batches):
            result = take_step(state, batches)
            if state.progress.step + 1 == steps:
                action()
            return result

        monkeypatch.setattr(loop, "take_step", step)
        return lambda: monkeypatch.setattr(loop, "take_step", take_step)

    return plan


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory) -> Path:
    """The whole run of ``tiny``, 20 steps, to look at and to hold others against; nobody writes into it."""
    return train_alone(tiny(tmp_path_factory.mktemp("unbroken") / "run"))


@pytest.fixture(scope="session")
def old_scans(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("old") / "scans", glioma=40, meningioma=40)


@pytest.fixture(scope="session")
def base(old_scans) -> Path:
    """A run of two classes, which trainings begin from; nobody writes into it."""
    return train_alone(tiny(old_scans.parent / "base", train_data_dir=str(old_scans)))


@pytest.fixture(scope="session")
def new_scans(tmp_path_factory) -> Path:
    """One class that is new and stands before the old ones in the alphabet, and one that is old."""
    return write_scans(tmp_path_factory.mktemp("new") / "scans", seed=1, abscess=30, meningioma=20)


@pytest.fixture(scope="session")
def reference_scans(tmp_path_factory):
    """Return a function that gives the published reference set at a resolution, each decoded once in a session."""
    if not REFERENCE_SET.is_dir():
        pytest.skip("the reference set is not here")
    cache_dir = str(tmp_path_factory.mktemp("reference"))

    @functools.cache
    def load(resolution: int) -> Scans:
        return load_scans(resolution=resolution, train_data_dir=str(REFERENCE_SET), cache_dir=cache_dir)

    return load


@pytest.fixture
def load_files(tmp_path):
    """The scans of a folder with these files, written beside those that are there."""

    def make(files=None, where="scans", **options):
        made = {path: nifti(v) if isinstance(v, np.ndarray) else v for path, v in (files or {}).items()}
        write(tmp_path / where, made)
        options = {"resolution": 16, "cache_dir": str(tmp_path / "cache")} | options
        return load_scans(train_data_dir=str(tmp_path / where), **options)

    return make


@pytest.fixture
def hub():
    """The Hub that ``HF_ENDPOINT`` names, empty and without faults."""
    HUB.reset()
    return HUB
