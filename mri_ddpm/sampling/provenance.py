"""Where a synthetic image came from, written into the image itself."""

import hashlib
import inspect
import json
import re
from importlib.metadata import version
from pathlib import Path

import safetensors.torch
from diffusers import SchedulerMixin
from PIL.PngImagePlugin import PngInfo

from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline

SCHEDULER_SETTINGS = (
    "algorithm_type", "solver_order", "variance_type", "final_sigmas_type", "timestep_spacing", "use_karras_sigmas",
    "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "thresholding",
)  # fmt: skip
OF_RUN = ("pipeline", "best", "adapter")  # folders in that of a run
USUAL = {"variance_type": "fixed_small", "timestep_spacing": "trailing"}  # in our pipelines


def provenance(pipeline: MRIDDPMBasePipeline) -> dict[str, str]:
    """Facts that all images of a loaded pipeline share: that they are synthetic, the model, its revision, the scheduler.

    The revision of a model from the Hub is its commit. For a model on disk it is the SHA-256 of its weights' file.
    """
    name, weights = pipeline.config.get("_name_or_path", ""), pipeline.unet.config.get("_name_or_path", "")
    commit = re.search(r"snapshots/([0-9a-f]{40})/", Path(weights).as_posix())
    if commit:
        revision = commit[1]
    else:
        folder = Path(name).absolute()  # a path of this machine stays here: the run's name says as much
        name = folder.parent.name if folder.name in OF_RUN else folder.name
        tensors = {name: tensor.cpu().contiguous() for name, tensor in pipeline.unet.state_dict().items()}
        # The bytes of the file it was loaded from
        saved = safetensors.torch.save(tensors, metadata={"format": "pt"})
        revision = f"sha256:{hashlib.sha256(saved).hexdigest()}"
    return {
        "synthetic": "yes: sampled from a diffusion model, not for diagnosis",
        "model": name,
        "revision": revision,
        "scheduler": scheduler_name(pipeline.scheduler),
        "Software": f"mri-ddpm {version('mri-ddpm')}",
    }


def scheduler_name(scheduler: SchedulerMixin) -> str:
    """The scheduler's class, and those of its settings that change an image and are not usual."""
    parameters = inspect.signature(type(scheduler).__init__).parameters
    told = []
    for name in SCHEDULER_SETTINGS:
        usual = (parameters[name].default if name in parameters else None, USUAL.get(name))
        if name in parameters and scheduler.config[name] not in usual:
            told.append(f"{name}={scheduler.config[name]}")
    return " ".join([type(scheduler).__name__, *told])


def png_text(facts: dict) -> PngInfo:
    """Text for ``Image.save(..., pnginfo=...)``; facts that are ``None`` are left out."""
    info = PngInfo()
    for key, value in facts.items():
        if value is not None:
            info.add_text(key, str(value))
    return info


def json_text(facts: dict) -> str:
    """Facts as ASCII text, for fields that hold one; facts that are ``None`` are left out."""
    return json.dumps({key: value for key, value in facts.items() if value is not None}, default=str)
