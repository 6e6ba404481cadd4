"""The model card, filled from what the run wrote down and never by hand."""

from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline, label_values
from mri_ddpm.runs.folder import GRID, LOSS_PLOT
from mri_ddpm.runs.record import BASE_FLAG, Record, is_hub_name

TEMPLATE = Path(__file__).with_name("model_card.md")
TAGS = ["diffusers", "ddpm", "mri", "brain", "medical-imaging", "synthetic-data"]
TASK = "unconditional-image-generation"
RECIPE = (  # rows of the card's table, as the run's config.json names them
    "preset", "resolution", "block_out_channels", "layers_per_block", "block_type", "attention_types",
    "num_train_timesteps", "beta_start", "beta_end", "rescale_betas_zero_snr", "prediction_type", "start_from_moments", "timestep_sampling", "loss_type", "huber_delta", "snr_gamma",
    "optimizer", "learning_rate", "lr_scheduler", "lr_warmup_steps", "max_grad_norm", "train_batch_size",
    "gradient_accumulation_steps", "train_only", "keep_old_share", "class_dropout_prob", "random_flip", "no_flip_classes", "ema_max_decay", "seed",
)  # fmt: skip


def make_model_card(
    record: Record, pipeline: MRIDDPMPipeline, repo_id: str, license: str | None, space_id: str | None = None
) -> ModelCard:
    """Fill ``model_card.md`` from a run's papers and its pipeline; what was not measured is said to be so."""
    config, manifest, base = record.config or {}, record.manifest, record.base
    facts = training_facts(record)
    hub_data = [config["dataset_name"]] if "/" in (config.get("dataset_name") or "") else None
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=TASK,
        license=license or "other",
        license_name=None if license else "not-chosen",
        tags=TAGS,
        base_model=base[BASE_FLAG] if base and is_hub_name(base[BASE_FLAG]) else None,
        datasets=hub_data,
        model_name=repo_id.split("/")[-1],
        eval_results=eval_results(record, facts) or None,
    )
    scheduler = pipeline.scheduler.config
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        repo_id=repo_id,
        license=license,
        space_id=space_id,
        size=pipeline.unet.config.sample_size,
        class_names=pipeline.class_names,
        channel_names=pipeline.channel_names,
        condition_names=pipeline.condition_names,
        mask_labels={
            name: list(zip(label_values(labels), labels, strict=True))
            for name, labels in pipeline.mask_labels.items()
        },
        million_parameters=pipeline.unet.num_parameters() / 1e6,
        timesteps=scheduler.num_train_timesteps,
        grid=GRID if GRID in record.pictures else None,
        loss_plot=LOSS_PLOT if LOSS_PLOT in record.pictures else None,
        config=config,
        recipe={key: config[key] for key in RECIPE if config.get(key) is not None},
        manifest=manifest,
        base=base and {"name": base[BASE_FLAG], **base},
        environment=record.environment,
        evaluation=record.evaluation,
        quality=measured_quality(record),
        facts=facts,
        version=version("mri-ddpm"),
    )


def training_facts(record: Record) -> dict:
    """Steps, hours and losses, from ``metrics.jsonl``; empty without one."""
    steps = [row for row in record.metrics if "loss" in row]
    validation = [row for row in record.metrics if "validation_loss" in row]
    if not steps:
        return {}
    config, environment = record.config or {}, record.environment or {}
    batch = (
        config.get("train_batch_size", 1)
        * config.get("gradient_accumulation_steps", 1)
        * environment.get("num_processes", 1)
    )
    last = validation[-1] if validation else {}
    numbers = [row["step"] for row in steps]
    since = [
        1,
        *(b - a for a, b in zip(numbers[:-1], numbers[1:], strict=True)),
    ]  # more than 1 where they are thinned
    timed = [(n, row) for n, row in zip(since, steps, strict=True) if "images_per_second" in row]
    return {
        "step": steps[-1]["step"],
        "epoch": steps[-1]["epoch"] + 1,
        "images_seen": steps[-1]["step"] * batch,
        "minutes": sum(n * batch / row["images_per_second"] for n, row in timed) / 60,
        "loss": sum(row["loss"] for row in steps[-100:]) / len(steps[-100:]),
        "loss_steps": len(steps[-100:]),
        "validation": last.get("validation_loss"),
        "validation_ema": last.get("validation_loss_ema"),
        "validation_step": last.get("step"),
    }


def measured_quality(record: Record) -> dict[str, dict]:
    """An evaluation's overall quality, and how the condition is followed, by metric; of several channels each with its name."""
    evaluation = record.evaluation or {}
    found = {}
    for name, part in {"": evaluation, **evaluation.get("channels", {})}.items():
        measured = {**(part.get("quality") or {}), **(part.get("fidelity") or {})}
        found |= {key + f" of {name}" * bool(name): entry for key, entry in measured.items()}
    return found


def eval_results(record: Record, facts: dict) -> list[EvalResult]:
    """The measured numbers in ``model-index`` form: the validation loss, and an evaluation's overall quality."""
    manifest = record.manifest or {}
    name = manifest.get("source", "not recorded")
    found = {}
    if facts.get("validation_ema") is not None:
        loss = (record.config or {}).get("loss_type", "")
        found["loss"] = (f"Validation {loss} loss, EMA weights", facts["validation_ema"])
    for key, entry in measured_quality(record).items():
        found[key] = (key, entry["value"])
    return [
        EvalResult(
            task_type=TASK,
            dataset_type=name,
            dataset_name=name,
            metric_type=key,
            metric_name=title,
            metric_value=value,
        )
        for key, (title, value) in found.items()
    ]
