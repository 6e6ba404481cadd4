"""What a run wrote down about itself, as far as it may leave the machine."""

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from mri_ddpm import files
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json_lines, write_json, write_json_lines
from mri_ddpm.runs.folder import EMA_GRIDS, GRID, LOSS_PLOT, RunFolder, step_of

LOCAL_PATHS = ("train_data_dir", "output_dir", "cache_dir", "resume_from_checkpoint")
PAPERS = "training"  # the folder of a repository that holds the run's papers
RAW_WEIGHTS = "model.safetensors"  # of a checkpoint
ADAPTER_WEIGHTS = "pytorch_lora_weights.safetensors"  # as diffusers calls it
BASE_FLAG = "pretrained_model_name_or_path"
NAMES = ("dataset_name", "source", BASE_FLAG)  # paths too, or names on the Hub
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"  # of a pipeline


@dataclass(frozen=True)
class Record:
    """The pipeline of a run and its papers; what the run did not write of these weights is ``None`` or empty."""

    pipeline_dir: Path
    config: dict | None = None
    manifest: dict | None = None
    base: dict | None = None  # of a run that began from a model
    environment: dict | None = None
    evaluation: dict | None = None
    metrics: list[dict] = field(default_factory=list)
    raw_weights: Path | None = None  # of the newest checkpoint; the pipeline has the EMA weights
    pictures: dict[str, Path] = field(default_factory=dict)  # by the name they get in the repository


def read_record(source: Path) -> Record:
    """Read a run folder, the ``pipeline/`` or ``best/`` in it, a saved pipeline, or an exported repository.

    Raises:
        InputError: when it is none of them, or one of its files cannot be read.
    """
    run = RunFolder(source)
    if run.has_pipeline:
        pipeline_dir = run.pipeline
    elif (source / "model_index.json").is_file():
        pipeline_dir, parent = source, RunFolder(source.parent)
        is_of_run = source in (parent.pipeline, parent.best) and parent.config.is_file()
        run = parent if is_of_run else RunFolder(source / PAPERS)
    else:
        raise InputError(f"{source} {without_pipeline(source)}.")
    # The last that was made counts: of an epoch, or of the end, which a resumed run may have left behind
    grids = [path for path in (*run.path.glob(EMA_GRIDS), run.grid) if path.is_file()]
    newest = max(grids, key=lambda path: (path.stat().st_mtime, path), default=run.grid)
    pictures = {GRID: newest, LOSS_PLOT: run.loss_plot}
    checkpoints = [folder for folder in run.checkpoints() if (folder / RAW_WEIGHTS).is_file()]
    rows = read_json_lines(run.metrics)
    if checkpoints:  # the steps that a kill came after are in no weights
        rows = [row for row in rows if row.get("step", 0) <= step_of(checkpoints[-1])]
    config, manifest = read_json(run.config), read_json(run.manifest)
    if pipeline_dir == run.best:  # its weights are of an earlier step than all the rest
        rows = [row for row in rows if row.get("step", 0) <= read_json(run.best_validation)["step"]]
        checkpoints, pictures = [], {}
    if (config or {}).get("condition_on"):
        pictures.pop(GRID, None)  # its samples follow masks or contrasts of patients
    # No owner/name, but a folder's
    if manifest and "source" in manifest and not (config or {}).get("dataset_name"):
        manifest["source"] = Path(str(manifest["source"])).name
    return Record(
        pipeline_dir,
        config=config,
        manifest=manifest,
        base=read_json(run.base),
        environment=read_json(run.environment),
        evaluation=read_evaluation(run.evaluation_metrics, pipeline_dir),
        metrics=rows,
        raw_weights=checkpoints[-1] / RAW_WEIGHTS if checkpoints else None,
        pictures={name: path for name, path in pictures.items() if path.is_file()},
    )


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER_WEIGHTS).is_file()


def without_pipeline(folder: Path) -> str:
    """What a folder is that is no pipeline and has none in it, and what to name instead."""
    if is_adapter(folder):
        return "is an adapter; name the run that made it, whose pipeline/ has it merged in"
    if (folder / RAW_WEIGHTS).is_file():
        return "is a checkpoint, to resume its training from; name its run, which has a pipeline/"
    if RunFolder(folder).config.is_file():
        return "is a run without a pipeline/ yet; it gets one with its next checkpoint"
    return "holds no pipeline; name a run folder with a pipeline/ in it, or a saved pipeline"


def write_record(record: Record, folder: Path) -> None:
    """Write a record to ``training/`` of a repository, from where ``read_record`` reads it.

    Of an evaluation it is the numbers alone, for its pictures show patients' scans.
    """
    run = RunFolder(folder / PAPERS)
    papers = {
        run.config: record.config,
        run.manifest: record.manifest,
        run.base: record.base,
        run.environment: record.environment,
        run.evaluation_metrics: record.evaluation,
    }
    for path, paper in papers.items():
        if paper is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, paper)
    if record.metrics:
        run.path.mkdir(exist_ok=True)
        write_json_lines(run.metrics, record.metrics)
    for name, path in record.pictures.items():
        run.path.mkdir(exist_ok=True)
        shutil.copyfile(path, run.path / name)


def papers_that_travel(run: RunFolder) -> list[Path]:
    """Every file that ``write_record`` may write: what a repository holds of a run besides its pipeline."""
    papers = [run.config, run.manifest, run.base, run.environment, run.metrics, run.evaluation_metrics]
    return [*papers, run.grid, run.loss_plot]


def copy_record(run_dir: Path, folder: Path) -> None:
    """Copy what ``read_record`` reads of a run, with the weights, as it is at this moment of the training."""
    run = RunFolder(run_dir)
    for path in (*papers_that_travel(run), *run_dir.glob(EMA_GRIDS), *run.pipeline.rglob("*")):
        target = folder / path.relative_to(run_dir)
        if path.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)  # with its time, by which the newest grid is known


def read_evaluation(path: Path, pipeline_dir: Path) -> dict | None:
    """An evaluation of the weights in ``pipeline_dir``; ``None`` where there is none, or it is of others."""
    evaluation = read_json(path)
    if evaluation is None or not (pipeline_dir / WEIGHTS).is_file():
        return None
    revision, settings = weights_sha256(pipeline_dir), evaluation.get("settings")
    of_these = isinstance(settings, dict) and settings.get("revision") == f"sha256:{revision}"
    return evaluation if of_these else None


def weights_sha256(pipeline_dir: Path) -> str:
    """What tells the weights of a saved pipeline from all others."""
    return hashlib.sha256((pipeline_dir / WEIGHTS).read_bytes()).hexdigest()


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
    for key in NAMES:
        if isinstance(kept.get(key), str) and not is_hub_name(kept[key]):
            kept[key] = Path(kept[key]).name
    return kept


def is_hub_name(path: str) -> bool:
    """Whether it reads ``owner/name``; a folder is made absolute when a run begins."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~")) and not Path(path).exists()
