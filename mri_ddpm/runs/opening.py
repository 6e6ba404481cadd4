"""Open a model by the name a user gives: a run folder, a saved pipeline, or a repository on the Hub."""

from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs.adapters import adapted
from mri_ddpm.runs.faults import http_response, hub_sentence, is_network_fault
from mri_ddpm.runs.folder import RunFolder
from mri_ddpm.runs.record import (
    BASE_FLAG,
    PAPERS,
    Record,
    is_adapter,
    read_record,
    weights_sha256,
    without_pipeline,
)


def load_pipeline(name: str, device: str, revision: str | None = None) -> MRIDDPMPipeline:
    """Load a pipeline from its folder, a run folder, an adapter's folder, or the Hub, there of a revision, on to a device.

    Raises:
        InputError: when there is none, or no such device.
    """
    if not Path(name).exists() and name.count("/") != 1:  # not owner/name either
        raise InputError(f"no pipeline could be loaded from {name}: there is no such folder.")
    run = RunFolder(Path(name))
    name = str(run.pipeline) if run.has_pipeline else name
    if is_adapter(Path(name)):
        return on(device, load_adapted(Path(name)))
    if Path(name).is_dir() and not (Path(name) / "model_index.json").is_file():
        raise InputError(f"no pipeline could be loaded from {name}: it {without_pipeline(Path(name))}.")
    try:
        pipeline = MRIDDPMPipeline.from_pretrained(name, revision=revision)
    except Exception as error:  # of the folder, or of the Hub through one of several HTTP libraries
        reason = " ".join(str(error).split())
        if http_response(error) is not None or is_network_fault(error):
            reason = f"it is no folder here; {hub_sentence(error, name)}"
        elif not Path(name).exists() and not isinstance(error, ValueError):
            reason = "there is no such folder, and the Hub did not give a repository of that name."
        raise InputError(f"no pipeline could be loaded from {name}: {reason}") from error
    return on(device, pipeline)


def on(device: str, pipeline: MRIDDPMPipeline) -> MRIDDPMPipeline:
    """Bring a pipeline to a device, or say why it cannot be used."""
    try:
        return pipeline.to(device)
    except (RuntimeError, AssertionError) as error:  # the latter of a torch that was built without CUDA
        raise InputError(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def load_adapted(folder: Path) -> MRIDDPMPipeline:
    """Load the pipeline of an adapter: the model that its ``base.json`` names, with its differences merged into it.

    Raises:
        InputError: when that model is not there or has other weights by now, or a file does not fit it.
    """
    told = read_json(RunFolder(folder).base)
    name, revision = str(told.get(BASE_FLAG)), told.get("revision")
    base = load_pipeline(name, "cpu", revision)
    if weights_sha256(load_record(name, revision).pipeline_dir) != told.get("sha256"):
        raise InputError(
            f"{folder} is an adapter for other weights than {name} has (SHA-256 {str(told.get('sha256')):.12}...); put those there, or "
            f"name them in {RunFolder(folder).base}."
        )
    pipeline = MRIDDPMPipeline(adapted(base.unet, folder), base.scheduler)
    pipeline.register_to_config(_name_or_path=str(folder))
    return pipeline


def load_record(name: str, revision: str | None = None) -> Record:
    """What the run of a model wrote about itself, wherever the model is; on the Hub, of a revision.

    Of an adapter it is what lies around it: its run, or nothing.

    Raises:
        InputError: when the name leads to no model.
    """
    if is_adapter(Path(name)):
        run = RunFolder(Path(name).absolute().parent)
        return read_record(run.path) if run.has_pipeline else Record(Path(name))
    if Path(name).exists():
        return read_record(Path(name))
    try:
        patterns = ["model_index.json", f"{PAPERS}/*.json*"]
        return read_record(Path(snapshot_download(name, revision=revision, allow_patterns=patterns)))
    except Exception as error:  # of several HTTP libraries
        raise InputError(f"{name} is no folder here; {hub_sentence(error, name)}") from error


def read_raw_weights(file: Path) -> dict[str, torch.Tensor]:
    """The weights in a training checkpoint, by their bare names, without what DDP and torch.compile put before them.

    Raises:
        ValueError: when a number of them is not finite.
        Exception: of nearly any kind when the file is damaged.
    """
    weights = load_file(file)
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds numbers that are not finite")
    return {
        name.removeprefix("module.").removeprefix("_orig_mod."): tensor for name, tensor in weights.items()
    }
