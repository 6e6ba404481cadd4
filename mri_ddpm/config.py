"""Everything a training run can be told, and the refusals that can be made before any work starts."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO, about, number_or_auto
from mri_ddpm.presets import PAPER_BETAS, PRESETS
from mri_ddpm.scan_options import ScanOptions

EPOCHS = 1000  # where neither they nor steps are given
LENGTHS = ("num_train_epochs", "max_train_steps")  # of a training; one of them counts


@dataclass(frozen=True, init=False)
class TrainingConfig(ScanOptions):
    """One training run, as it is saved in ``config.json``: the preset's values, but for those that are given.

    ``given`` has the names of these; what is neither given nor the preset's may come from a model to begin from.

    Raises:
        InputError: for an unknown name or preset, and when a number is out of range or two do not fit; the sentence
            states them.
    """

    preset: str = about(
        "quickstart",
        "Start from a preset: tiny, quickstart, mridiff-44, mridiff-72, mridiff-figure4, mri-ddpm-64 or mri-ddpm-44.",
    )
    output_dir: str = about("runs/quickstart", "Run folder: checkpoints, metrics, grids and the pipeline.")

    # A model to begin from
    pretrained_model_name_or_path: str | None = about(
        None,
        "Model to begin from: a run folder, a saved pipeline or a Hub repository. Its weights, network, schedule, size and "
        "classes hold; another --resolution may be given.",
    )
    revision: str | None = about(
        None, "Commit, branch or tag of that repository.", needs="pretrained_model_name_or_path"
    )
    like: str | None = about(
        None,
        "Class of that model as which classes that are new to it start; the mean of its classes when not given.",
        needs="pretrained_model_name_or_path",
    )
    keep_old_share: float | None = about(
        None,
        "Share of samples of that model, in its classes without new scans, among what is trained on, so that these are not forgotten.",
        over=0,
        under=1,
        needs="pretrained_model_name_or_path",
    )
    train_only: Literal["lora", "norms"] | None = about(
        None,
        "What is trained of that model beside the class embedding: lora is low-rank differences of attention and convolutions, "
        "norms are the norms, the time embedding and the first convolution; everything when not given.",
        needs="pretrained_model_name_or_path",
    )
    rank: int = about(
        16, "Rank of the differences of --train_only lora.", least=1, part_of=("train_only", "lora")
    )

    # Data, beside the fields of `ScanOptions`
    random_flip: bool = about(
        False,
        "Mirror training scans left to right, half of the time, and tell the network which.",
    )
    no_flip_classes: list[str] = about(
        [], "Classes in which side matters: --random_flip leaves them alone.", needs="random_flip"
    )
    phantom_images: int = about(2048, "Number of phantoms to draw when there are no scans.", least=2)
    dataloader_num_workers: int = about(
        0,
        "Loader processes, for scans that are too many to be held in memory; 0 loads in the training process.",
        least=0,
    )

    # Network
    block_out_channels: list[int] = about([64, 128, 256], "Channels of each level, finest first.")
    layers_per_block: int = about(2, "Blocks a level.", least=1)
    block_type: Literal["resnet", "convnext"] = about("resnet", "Kind of block.")
    attention_types: list[str] = about(
        ["none", "linear", "full"], "Attention of each level: linear, full or none."
    )
    attention_head_dim: int = about(32, "Channels of one attention head.", least=1)
    norm_num_groups: int = about(8, "Groups of every group norm.", least=1)
    dropout: float = about(0.0, "Dropout inside each block.", least=0, under=1)
    class_conditional: bool = about(True, "Learn each class, when the data has classes.")
    class_dropout_prob: float = about(
        0.1, "Share of training scans shown without their class, for guidance.", least=0, under=1
    )
    condition_dropout_prob: float = about(
        0.1,
        "Share of training scans shown without what --condition_on names, for guidance and for sampling without it.",
        least=0,
        under=1,
        needs="condition_on",
    )
    mask_label_dropout_prob: float = about(
        0.0,
        "Share of the labels of given masks that are left out, each by itself, so that a mask may name few of them.",
        least=0,
        under=1,
        needs="condition_on",
    )
    gradient_checkpointing: bool = about(False, "Trade a third more compute for much less memory.")

    # Diffusion
    num_train_timesteps: int = about(300, "Timesteps T of the diffusion.", least=1)
    beta_start: float = about(PAPER_BETAS["beta_start"], "First of the linear betas.", over=0, under=1)
    beta_end: float = about(PAPER_BETAS["beta_end"], "Last of the linear betas.", over=0, under=1)
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = about(
        "epsilon", "What the network predicts."
    )
    rescale_betas_zero_snr: bool = about(
        False, "Rescale the betas so that the last x_T is nothing but noise; not with epsilon."
    )
    start_from_moments: bool = about(
        True,
        "Keep the scans' mean and main variations with the model; sampling starts at x_T with them, not in noise alone.",
    )
    timestep_sampling: Literal["uniform", "lognormal"] = about(
        "lognormal",
        "How timesteps are drawn in training: all alike, or ln(sigma) from a normal distribution, as in EDM.",
    )
    log_sigma_mean: float = about(
        -0.6,
        "Mean of ln(sigma) for --timestep_sampling lognormal.",
        least=-5,
        most=5,
        part_of=("timestep_sampling", "lognormal"),
    )
    log_sigma_std: float = about(
        1.2,
        "Standard deviation of ln(sigma) for --timestep_sampling lognormal.",
        over=0,
        part_of=("timestep_sampling", "lognormal"),
    )
    loss_type: Literal["huber", "l1", "l2"] = about("huber", "Loss.")
    huber_delta: float = about(
        1.0, "Where the Huber loss turns from square to linear.", over=0, part_of=("loss_type", "huber")
    )
    snr_gamma: float | None = about(
        None, "Min-SNR weighting of the loss; 5.0 is usual. Off when not given.", over=0
    )

    # Optimization
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = about(
        AUTO,
        "Precision of the network in training: no is float32; auto is accelerate's if that says one, else bf16 where the "
        "device is fast in it.",
    )
    train_batch_size: number_or_auto = about(
        64, "Scans a step on each process; auto takes as many as fit into memory.", least=1
    )
    gradient_accumulation_steps: int = about(1, "Batches an optimizer step.", least=1)
    num_train_epochs: int | None = about(
        None, f"Passes over the training scans; {EPOCHS} where no --max_train_steps are given.", least=1
    )
    max_train_steps: int | None = about(None, "Optimizer steps, in place of --num_train_epochs.", least=1)
    optimizer: Literal["adam", "adamw"] = about("adam", "Optimizer.")
    learning_rate: float = about(
        1e-3,
        "Peak learning rate; the preset's, or 2e-4 where all weights of a model to begin from are trained, at its size.",
        over=0,
    )
    adam_beta1: float = about(0.9, "Adam's beta 1.", over=0, under=1)
    adam_beta2: float = about(0.999, "Adam's beta 2.", over=0, under=1)
    adam_epsilon: float = about(1e-8, "Adam's epsilon.", over=0)
    adam_weight_decay: float = about(0.0, "Weight decay; decoupled with adamw.", least=0)
    lr_scheduler: Literal["constant", "linear", "cosine"] = about(
        "cosine", "Learning rate against the optimizer step, after the warm-up; by diffusers.optimization."
    )
    lr_warmup_steps: int = about(100, "Optimizer steps of warm-up.", least=0)
    max_grad_norm: float = about(1.0, "Clip the gradient's norm; 0 is off.", least=0)
    surge_guard: bool = about(
        True, "Clip and skip outlying updates, and go back to the last checkpoint when the loss surges."
    )
    ema_max_decay: float = about(0.9999, "Largest decay of the averaged weights.", over=0, under=1)
    ema_power: float = about(0.75, "Warm-up of that decay: 1 - (1 + step) ** -power.", over=0)

    # Watching and keeping
    logging_steps: int = about(
        10, "Optimizer steps between updates of the progress bar and trackers.", least=1
    )
    validation_steps: int = about(500, "Optimizer steps between validations.", least=1)
    early_stopping_patience: int | None = about(
        None, "End after so many validations in a row without a lower loss of the averaged weights.", least=1
    )
    keep_best: bool = about(
        False, "Keep the averaged weights of the lowest validation loss too, as a pipeline in best/."
    )
    sample_epochs: list[int] = about(
        [], "Epochs at whose end grids of raw and EMA samples are made; 0 is before training."
    )
    evaluate_epochs: list[int] = about(
        [], "Epochs at whose end KID and the share of copied scans are measured on EMA samples."
    )
    evaluate_images: int = about(256, "Samples for --evaluate_epochs.", least=100)
    num_samples: int = about(16, "Images in a grid, the classes in turn.", least=1)
    num_inference_steps: int | None = about(None, "Sampling steps of the grids; T when not given.", least=1)
    checkpointing_steps: int = about(500, "Optimizer steps between checkpoints.", least=1)
    checkpoints_total_limit: int = about(2, "Checkpoints to keep, newest first.", least=1)
    resume_from_checkpoint: str | None = about(None, "'latest' or a checkpoint's folder.")
    report_to: str | None = about(None, "Tracker that accelerate knows: tensorboard, wandb, ...")

    # Publishing
    push_to_hub: bool = about(
        False,
        "Push to the Hugging Face Hub at checkpoints, in the background and ten minutes apart, and at the end.",
    )
    hub_model_id: str | None = about(
        None,
        "Repository, such as me/brain-mri-ddpm; the name of --output_dir when not given.",
        needs="push_to_hub",
    )
    hub_public: bool = about(
        False, "Make the repository public; it is private without this.", needs="push_to_hub"
    )
    hub_license: str | None = about(
        None,
        "Licence of the weights for the model card, as the Hub writes it: cc-by-4.0, ...",
        needs="push_to_hub",
    )

    def __init__(self, **given):
        fields = dataclasses.fields(self)
        unknown = ", ".join(given.keys() - {f.name for f in fields})
        if unknown:
            raise InputError(
                f"a training has no {unknown}; 'mri-ddpm train --help' lists all it can be told."
            )
        preset = given.get("preset", TrainingConfig.preset)
        if preset not in PRESETS:
            raise InputError(f"--preset {preset} is unknown; the presets are: {', '.join(PRESETS)}.")
        makers = [f.default_factory for f in fields]
        defaults = [
            f.default if make is dataclasses.MISSING else make()
            for f, make in zip(fields, makers, strict=True)
        ]
        names = [f.name for f in fields]
        values = put_over(put_over(dict(zip(names, defaults, strict=True)), PRESETS[preset]), given)
        if all(values[name] is None for name in LENGTHS):
            values["num_train_epochs"] = EPOCHS
        if values["report_to"] == "none":  # as others spell it
            values["report_to"] = None
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "given", frozenset(given))
        self.__post_init__()
        refuse_wrong_values(self)

    @property
    def repo_id(self) -> str:
        """The Hub repository to push to; a name alone is the user's own."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    @property
    def source(self) -> str:
        """Where the scans come from, in words."""
        return self.train_data_dir or self.dataset_name or "phantom"


def put_over(values: dict, given: dict) -> dict:
    """What is given beats other values; a length of training beats one of either kind."""
    if any(given.get(name) is not None for name in LENGTHS):
        values = {**values, **dict.fromkeys(LENGTHS)}
    return {**values, **given}


def refuse_wrong_values(config: TrainingConfig) -> None:
    """Raise an ``InputError`` for a value that cannot be, and for two that do not go together."""
    if config.beta_start > config.beta_end:
        raise InputError(
            f"--beta_start {config.beta_start} is over --beta_end {config.beta_end}; betas rise with t."
        )
    if all(getattr(config, name) is not None for name in LENGTHS):
        raise InputError(
            f"--num_train_epochs {config.num_train_epochs} and --max_train_steps {config.max_train_steps} are both "
            "given; give one of them."
        )
    for name in ("sample_epochs", "evaluate_epochs"):
        if any(epoch < 0 for epoch in getattr(config, name)):
            raise InputError(
                f"--{name} holds {min(getattr(config, name))}; take 0, before training, or more."
            )
    if config.rescale_betas_zero_snr and config.prediction_type == "epsilon":
        raise InputError(
            "--rescale_betas_zero_snr leaves nothing of the scan in the last x_T, where --prediction_type epsilon says "
            "nothing about it; take --prediction_type v_prediction."
        )
    if config.rescale_betas_zero_snr and config.timestep_sampling == "lognormal":
        raise InputError(
            "--rescale_betas_zero_snr starts chains at noise that --timestep_sampling lognormal hardly trains; take "
            "--timestep_sampling uniform."
        )
    if config.num_inference_steps and config.num_inference_steps > config.num_train_timesteps:
        raise InputError(
            f"--num_inference_steps is {config.num_inference_steps}, more than the {config.num_train_timesteps} "
            "timesteps the model is trained with; take at most that."
        )
