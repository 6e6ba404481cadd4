"""The one function that writes what a Hub repository holds."""

import dataclasses
import json
import shutil
from pathlib import Path

from mri_ddpm.errors import InputError
from mri_ddpm.files import write_json
from mri_ddpm.hub.card import make_model_card
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs.record import read_record, write_record

KEPT_STEPS = 4000  # of a run's steps, so that a long one sends 0.7 MB of them and not 45


def export_repository(
    source: Path,
    folder: Path,
    repo_id: str,
    license: str | None = None,
    pipeline: MRIDDPMPipeline | None = None,
    space_id: str | None = None,
) -> list[Path]:
    """Write the exact repository of a run or a pipeline: weights, code, model card, samples and the run's papers.

    ``pipeline_mri_ddpm.py`` and ``unet/modeling_attention_unet.py`` go with the weights, so that it opens with diffusers
    alone. Of the papers, in ``training/``, the places on this machine are left out. Nothing in it is pickled.

    Args:
        source: a run folder, a folder that ``save_pretrained`` wrote, or what this function wrote before.
        folder: where to; new or empty.
        repo_id: the name that the model card shows in its examples, ``owner/name``.
        license: licence of the weights for the card's metadata, as the Hub writes it (``"cc-by-4.0"``).
        pipeline: that of ``source``, where it is open already: loading in a thread would disturb others that build networks.
        space_id: a Space of the model, ``owner/name``, that the card names.

    Returns:
        The files written, relative to ``folder``.

    Raises:
        InputError: when there is no pipeline in ``source``, it cannot be loaded, or ``folder`` holds something.
    """
    must_be_empty(folder)
    record = read_record(source)
    try:
        pipeline = pipeline or MRIDDPMPipeline.from_pretrained(record.pipeline_dir)
        for path in variants(record.pipeline_dir / "unet"):
            AttentionUNet2DModel.from_pretrained(path.parent, variant=path.suffixes[0][1:])
    except (OSError, ValueError) as error:
        raise InputError(f"{record.pipeline_dir} cannot be pushed: {' '.join(str(error).split())}") from error

    try:
        card = str(make_model_card(record, pipeline, repo_id, license, space_id))
    except Exception as error:  # values of other types than a run writes break anything
        raise InputError(
            f"the papers of {source} (config.json, manifest.json, metrics.jsonl, ...) are not as a run writes them: "
            f"{' '.join(str(error).split()):.300}; move those away that were changed."
        ) from error

    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_config(folder)
    for part in ("unet", "scheduler"):
        copy_part(record.pipeline_dir / part, folder / part)
    write_record(dataclasses.replace(record, metrics=thinned(record.metrics)), folder)
    (folder / "README.md").write_text(card, encoding="utf-8")
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def must_be_empty(folder: Path) -> None:
    """Refuse to write into a folder that holds something.

    Raises:
        InputError: when it does.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is not an empty folder; name a new one.")


def variants(folder: Path) -> list[Path]:
    """Weights of other precision beside the main ones, as ``diffusion_pytorch_model.fp16.safetensors``."""
    return sorted(folder.glob("diffusion_pytorch_model.*.safetensors"))


def copy_part(source: Path, folder: Path) -> None:
    """Copy the weights, of every variant, to the byte, and the config without the folder it was loaded from."""
    folder.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.name == "diffusion_pytorch_model.safetensors" or path in variants(source):
            shutil.copyfile(path, folder / path.name)
        elif path.name in ("config.json", "scheduler_config.json"):
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            write_json(folder / path.name, config)


def thinned(rows: list[dict]) -> list[dict]:
    """Half of ``KEPT_STEPS`` for the newest steps, half evenly among those before; rows of anything else all stay."""
    steps = [i for i, row in enumerate(rows) if "loss" in row]
    if len(steps) <= KEPT_STEPS:
        return rows
    old = steps[: -KEPT_STEPS // 2]
    left_out = set(old) - set(old[:: -(-2 * len(old) // KEPT_STEPS)])
    return [row for i, row in enumerate(rows) if i not in left_out]
