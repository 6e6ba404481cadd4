"""What a run wrote down about itself, as far as it may leave the machine."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from mri_ddpm import files
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json_lines

LOCAL_PATHS = ("train_data_dir", "output_dir", "cache_dir", "resume_from_checkpoint")
DATA = ("dataset_name", "source")  # a path too, or a name on the Hub
GRID, LOSS = "samples.png", "loss.png"


@dataclass(frozen=True)
class Record:
    """The pipeline of a run and its papers; what the run did not write of these weights is ``None`` or empty."""

    pipeline_dir: Path
    config: dict | None = None
    manifest: dict | None = None
    environment: dict | None = None
    evaluation: dict | None = None
    metrics: list[dict] = field(default_factory=list)
    raw_weights: Path | None = None  # of the newest checkpoint; the pipeline has the EMA weights
    pictures: dict[str, Path] = field(default_factory=dict)  # by the name they get in the repository


def read_record(source: Path) -> Record:
    """Read a run folder, the ``pipeline/`` in it, a saved pipeline, or an exported repository.

    Raises:
        InputError: when it is none of them, or one of its files cannot be read.
    """
    if (source / "pipeline" / "model_index.json").is_file():
        pipeline_dir, papers = source / "pipeline", source
    elif (source / "model_index.json").is_file():
        is_of_run = source.name == "pipeline" and (source.parent / "config.json").is_file()
        pipeline_dir, papers = source, source.parent if is_of_run else source / "training"
    else:
        raise InputError(
            f"{source} holds no pipeline; name a run folder with a pipeline/ in it, or a saved pipeline."
        )
    # The last that was drawn counts: of an epoch, or of the end, which a resumed run may have left behind
    grids = [path for path in (*papers.glob("samples/epoch-*-ema.png"), papers / GRID) if path.is_file()]
    pictures = {
        GRID: max(grids, key=lambda path: (path.stat().st_mtime, path), default=papers / GRID),
        LOSS: papers / LOSS,
    }
    raw_weights = max(papers.glob("checkpoints/step-*[0-9]/model.safetensors"), default=None, key=by_step)
    rows = read_json_lines(papers / "metrics.jsonl")
    if raw_weights:  # the steps that a kill came after are in no weights
        step = int(raw_weights.parent.name.removeprefix("step-"))
        rows = [row for row in rows if row.get("step", 0) <= step]
    config, manifest = read_json(papers / "config.json"), read_json(papers / "manifest.json")
    if (
        manifest and "source" in manifest and not (config or {}).get("dataset_name")
    ):  # no owner/name, but a folder's
        manifest["source"] = Path(str(manifest["source"])).name
    return Record(
        pipeline_dir,
        config=config,
        manifest=manifest,
        environment=read_json(papers / "environment.json"),
        evaluation=read_evaluation(papers / "evaluation" / "metrics.json", pipeline_dir),
        metrics=rows,
        raw_weights=raw_weights,
        pictures={name: path for name, path in pictures.items() if path.is_file()},
    )


def copy_record(run_dir: Path, folder: Path) -> None:
    """Copy what ``read_record`` reads of a run, with the weights, as it is at this moment of the training."""
    papers = ("config.json", "manifest.json", "environment.json", "metrics.jsonl", "evaluation/metrics.json")
    for pattern in (*papers, GRID, LOSS, "samples/epoch-*-ema.png", "pipeline/**/*"):
        for path in run_dir.glob(pattern):
            target = folder / path.relative_to(run_dir)
            if path.is_file():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)  # with its time, by which the newest grid is known


def read_evaluation(path: Path, pipeline_dir: Path) -> dict | None:
    """An evaluation of the weights in ``pipeline_dir``; ``None`` where there is none, or it is of others."""
    evaluation = read_json(path)
    weights = pipeline_dir / "unet" / "diffusion_pytorch_model.safetensors"
    if evaluation is None or not weights.is_file():
        return None
    revision, settings = hashlib.sha256(weights.read_bytes()).hexdigest(), evaluation.get("settings")
    of_these = isinstance(settings, dict) and settings.get("revision") == f"sha256:{revision}"
    return evaluation if of_these else None


def by_step(file: Path) -> tuple[int, str]:
    """Sorts what is in checkpoints by their steps, whatever their number of digits."""
    return len(file.parent.name), file.parent.name


def read_json(path: Path) -> dict | None:
    """A JSON file without the places on this machine that it names; ``None`` when there is no such file."""
    if not path.is_file():
        return None
    try:
        return without_places(files.read_json(path))
    except RecursionError as error:
        raise InputError(f"{path} holds lists within lists without end; mend it or move it away.") from error


def without_places(value):
    """Drop the paths of single files, which may name patients, and keep no more than the name of a folder."""
    if isinstance(value, list):
        return [without_places(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {key: without_places(entry) for key, entry in value.items() if key != "path"}
    for key in LOCAL_PATHS:
        if isinstance(kept.get(key), str):
            kept[key] = Path(kept[key]).name
    for key in DATA:
        if isinstance(kept.get(key), str) and not is_hub_name(kept[key]):
            kept[key] = Path(kept[key]).name
    return kept


def is_hub_name(path: str) -> bool:
    """Whether it reads ``owner/name``; a folder is made absolute when a run begins."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~")) and not Path(path).exists()
