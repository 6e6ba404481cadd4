"""Everything a training run can be told, the presets, and the refusals that can be made before any work starts.

The command line's flags are the fields' names. A value comes from the flag, else from the ``--config`` file, else from
the preset, else from the default below, which is our own recipe.
"""

import argparse
import dataclasses
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO, FlagParser, about, number_or_auto, refuse_wrong_fields

PAPER_BETAS = {"beta_start": 1e-4, "beta_end": 0.02}  # MRIDiff's; Ho et al.'s of T = 1000 as they are
SCALED_BETAS = {"beta_start": 1e-4 * 1000 / 300, "beta_end": 0.02 * 1000 / 300}  # those for T = 300
MIN_RESOLUTION = 16  # pixels a side
LARGEST_SEED = 2**63 - 1
EPOCHS = 1000  # where neither they nor steps are given
LENGTHS = ("num_train_epochs", "max_train_steps")  # of a training; one of them counts


@dataclass(frozen=True)
class ScanOptions:
    """Which scans, and how they are read, grouped and split: what `data.load_scans`, the training and `mri-ddpm data` are told.

    Raises:
        InputError: when a number is out of range, a word is unknown, or two do not go together.
    """

    train_data_dir: str | None = about(
        None,
        "Folder or .zip of scans: class folders, train/val/test, or flat. Without it or --dataset_name, the phantom.",
    )
    dataset_name: str | None = about(None, "Data set on the Hub, or a local one, for datasets.load_dataset.")
    dataset_config_name: str | None = about(None, "Configuration of --dataset_name.", needs="dataset_name")
    image_column: str = about("image", "Image column of --dataset_name.", needs="dataset_name")
    label_column: str = about(
        "label",
        "Class column of --dataset_name, of metadata.csv or of participants.tsv; '' for scans without classes.",
        needs="train_data_dir dataset_name",
    )
    patient_pattern: str | None = about(
        None,
        "Regular expression that finds a scan's patient in its path: what its group matches, or all that it matches.",
        needs="train_data_dir",
    )
    resolution: int = about(64, "Pixels a side.", least=MIN_RESOLUTION)
    fit: Literal["pad", "crop", "stretch"] = about("pad", "How a scan becomes square.")
    validation_share: float = about(
        0.1,
        "Share of the scans for validation, where there is no validation folder; by patient, group of copies, and class.",
        over=0,
        under=1,
    )
    keep_repeats: bool = about(False, "Train on identical and near-identical copies too.")
    contrast: str | None = about(
        None,
        "Contrast to train on, where there are several: t1, t1ce, t2, flair, pd, dwi.",
        needs="train_data_dir dataset_name",
    )
    channels: list[str] = about(
        [],
        "What is drawn together, of one head: contrasts, and seg for its mask, such as t1 t2. One image when not given.",
    )
    condition_on: list[str] = about(
        [],
        "What the model is given beside the noise: contrasts, seg for the mask of the head, or lowres:4 for what is drawn at a "
        "quarter of the resolution.",
    )
    plane: Literal["axial", "coronal", "sagittal", "all"] = about("axial", "Plane of the slices of volumes.")
    slices: Literal["all", "with_mask", "without_mask"] = about(
        "all", "Which slices, by the masks beside volumes."
    )
    slice_range: list[float] = about(
        [0.0, 1.0],
        "From where to where slices of volumes are taken, as shares from left, posterior or inferior.",
        least=0,
        most=1,
    )
    slice_step_mm: float | None = about(None, "Least distance of the slices of a volume.", over=0)
    min_head: float = about(
        0.5,
        "Least area of head in a slice, as a share of the largest in its volume.",
        least=0,
        most=1,
    )
    max_spacing_mm: float = about(
        3.0, "Coarsest pixels of a plane that was not acquired, but reformatted from thicker slices.", over=0
    )
    field_of_view_mm: float | None = about(
        None, "Side of every slice of a volume, so that all heads have one scale; such as 240.", over=0
    )
    intensity: Literal["percentiles", "window", "full_range"] = about(
        "percentiles",
        "What is black and white in a volume: percentiles, its file's window, or its full range.",
    )
    volume_index: int | None = about(
        None, "Which volume of files that hold several, from 0; the first when not given.", least=0
    )
    assume_orientation: Literal["RAS"] | None = about(
        None, "RAS, for NIfTI files that do not say how the head lies."
    )
    on_bad_image: Literal["error", "skip"] = about(
        "error", "What to do with files that are no readable image."
    )
    cache_dir: str | None = about(
        None, "Where decoded scans are kept; the datasets library's cache when not given."
    )
    seed: int = about(0, "Seed of all random numbers: the split, weights, noise.", least=0)

    def __post_init__(self):
        refuse_wrong_fields(self)
        if self.train_data_dir and self.dataset_name:
            raise InputError("--train_data_dir and --dataset_name are both given; give one of them.")
        lowres = [name for name in self.condition_on if name.partition(":")[0] == "lowres"]
        for name in lowres:
            self._refuse_wrong_lowres(name)
        if self.channels and self.contrast:
            raise InputError(
                f"--channels and --contrast {self.contrast} are both given; --channels names the contrasts already."
            )
        for flag in ("channels", "condition_on"):
            names = [name for name in getattr(self, flag) if name not in lowres]
            if odd := [name for name in names if not name.replace("_", "").isalnum()]:
                raise InputError(
                    f"--{flag} {odd[0]!r} is no name of a contrast or mask; take words, such as t1 or seg."
                )
        names = [*self.channels, *self.condition_on]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"{repeated[0]} is named twice by --channels and --condition_on; it is drawn or given, so name it once."
            )
        if len(self.slice_range) != 2 or self.slice_range[0] >= self.slice_range[1]:
            words = " ".join(map(str, self.slice_range))
            raise InputError(f"--slice_range is {words}; take two numbers, the lower first, such as 0.3 0.8.")
        if self.seed > LARGEST_SEED:
            raise InputError(f"--seed is {self.seed}; take at most {LARGEST_SEED}.")

    def _refuse_wrong_lowres(self, name: str) -> None:
        found = re.fullmatch(r"lowres:([1-9]\d{0,4})", name)
        factor = int(found[1]) if found else 1
        if factor == 1:
            raise InputError(
                f"--condition_on {name} is no lower resolution; write a factor, such as lowres:4."
            )
        if self.resolution % factor:
            raise InputError(
                f"--condition_on {name} does not divide --resolution {self.resolution}; take a factor that does."
            )
        if len(self.channels) > 1:
            raise InputError(
                f"--condition_on {name} is of one contrast, and --channels draws {', '.join(self.channels)}; name one."
            )


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
    random_flip: bool = about(False, "Mirror training scans left to right, half of the time.")
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
        "uniform",
        "How timesteps are drawn in training: all alike, or ln(sigma) from a normal distribution, as in EDM.",
    )
    log_sigma_mean: float = about(
        -1.2,
        "Mean of ln(sigma) for --timestep_sampling lognormal.",
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
        "Peak learning rate; the preset's, or 2e-4 where all weights of a model to begin from are trained.",
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
        is_adapted = given.get("pretrained_model_name_or_path") and not given.get("train_only")
        usual = {**PRESETS[preset], **(ADAPTING if is_adapted else {})}
        values = put_over(put_over(dict(zip(names, defaults, strict=True)), usual), given)
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


# Beats a preset's where all weights of a model are trained on: docs/finetune.md
ADAPTING = {"learning_rate": 2e-4}


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
    if config.num_inference_steps and config.num_inference_steps > config.num_train_timesteps:
        raise InputError(
            f"--num_inference_steps is {config.num_inference_steps}, more than the {config.num_train_timesteps} "
            "timesteps the model is trained with; take at most that."
        )


OF_DIFFUSERS = {  # flags of its train_unconditional.py that are called otherwise here, or not needed
    "num_epochs": "here it is --num_train_epochs",
    "save_images_epochs": "here it is --sample_epochs",
    "save_model_epochs": "here it is --checkpointing_steps",
    "eval_batch_size": "here it is --num_samples",
    "ddpm_num_steps": "here it is --num_train_timesteps",
    "ddpm_num_inference_steps": "here it is --num_inference_steps",
    "ddpm_beta_schedule": "the betas are linear here, from --beta_start to --beta_end",
    "center_crop": "here it is --fit crop",
    "use_ema": "the weights are always averaged here; leave it out",
    "ema_inv_gamma": "only --ema_power and --ema_max_decay can be chosen here",
    "logger": "here it is --report_to",
    "hub_private_repo": "a repository is private here unless --hub_public is given; leave it out",
    "overwrite_output_dir": "no run is overwritten here; name another --output_dir",
    "enable_xformers_memory_efficient_attention": "attention is as sparing of memory without it; leave it out",
}
MRIDIFF = {  # the paper's recipe (MRIDiff, sections 5 and 7): betas, loss, optimizer and rate, with nothing of ours
    **PAPER_BETAS,
    "prediction_type": "epsilon",
    "timestep_sampling": "uniform",
    "attention_types": ["linear", "linear", "linear"],
    "learning_rate": 1e-3,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "max_grad_norm": 0.0,
}
PRESETS: dict[str, dict] = {
    "tiny": {  # what the tests train, with the same numbers on every CPU
        "mixed_precision": "no",
        "output_dir": "runs/tiny",
        "resolution": 16,
        "phantom_images": 64,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "attention_types": ["linear", "full"],
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "train_batch_size": 8,
        "max_train_steps": 20,
        "lr_warmup_steps": 2,
        "logging_steps": 5,
        "validation_steps": 10,
        "checkpointing_steps": 10,
        "num_samples": 4,
        "num_inference_steps": 5,
    },
    "quickstart": {  # heads in three minutes on two CPU cores that are fast in bf16
        "output_dir": "runs/quickstart",
        "resolution": 32,
        "block_out_channels": [32, 64, 96],
        "train_batch_size": 16,
        "max_train_steps": 800,
        "learning_rate": 1.5e-3,
        "lr_warmup_steps": 50,
        "validation_steps": 400,
        "checkpointing_steps": 400,
        "num_inference_steps": 50,
    },
    "mridiff-44": {
        **MRIDIFF,
        "output_dir": "runs/mridiff-44",
        "resolution": 44,
        "train_batch_size": 80,
        "num_train_epochs": 8000,
    },
    "mridiff-72": {
        **MRIDIFF,
        "output_dir": "runs/mridiff-72",
        "resolution": 72,
        "train_batch_size": 40,
        "num_train_epochs": 2600,
    },
    "mridiff-figure4": {  # 388 x 388 with a 1024-channel bottleneck
        **MRIDIFF,
        "output_dir": "runs/mridiff-figure4",
        "resolution": 388,
        "block_out_channels": [64, 128, 256, 512, 1024],
        "attention_types": ["none", "none", "linear", "linear", "linear"],
        "train_batch_size": 8,
    },
    "mri-ddpm-64": {"output_dir": "runs/mri-ddpm-64"},  # our own recipe: the defaults above
    "mri-ddpm-44": {  # the same for small machines
        "output_dir": "runs/mri-ddpm-44",
        "resolution": 44,
        "block_out_channels": [32, 64, 128],
        "train_batch_size": 32,
        "max_train_steps": 6000,
        "validation_steps": 1000,
    },
}


def parse_config(args: list[str] | None = None) -> TrainingConfig:
    """Read the command line (``sys.argv`` when ``args`` is None) into a ``TrainingConfig``.

    Raises:
        InputError: for an unknown preset, an unreadable ``--config`` file or an unknown key in it, a bad number.
    """
    first_look = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first_look.add_argument("--preset")
    first_look.add_argument("--config")
    first_look.add_argument("--hub_token")
    given, _ = first_look.parse_known_args(args)
    if given.hub_token:  # the parser below would repeat it in its error
        raise InputError(
            "--hub_token is not taken, for a command line is seen by others; log in with 'hf auth login' or set HF_TOKEN."
        )
    for word in sys.argv[1:] if args is None else args:
        name = word.split("=")[0].removeprefix("--")
        if word.startswith("--") and name in OF_DIFFUSERS:
            raise InputError(f"--{name} is a flag of diffusers' own script: {OF_DIFFUSERS[name]}.")
    from_file = read_config_file(given.config) if given.config else {}
    preset = given.preset or from_file.get("preset") or TrainingConfig.preset
    if preset not in PRESETS:
        raise InputError(f"--preset {preset} is unknown; the presets are: {', '.join(PRESETS)}.")

    parser = FlagParser(
        TrainingConfig,
        description="Train a diffusion model on brain MRI slices. Without scans it trains on a built-in phantom.",
        prog="mri-ddpm train",
        usage="mri-ddpm train [--train_data_dir DIR] [--preset NAME] [--config FILE.yaml] [--FLAG VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", help="YAML or JSON file of flags; what the command line gives overrides it."
    )
    parser.set_defaults(**{**PRESETS[preset], "preset": preset})  # for --help

    def read(flags: list[str]) -> dict:
        """What the flags give, without the defaults of those that are not among them."""
        untouched = argparse.Namespace(**{f.name: UNSAID for f in dataclasses.fields(TrainingConfig)})
        found = vars(parser.parse_args(flags, untouched))
        return {name: value for name, value in found.items() if value is not UNSAID and name != "config"}

    by_file = {name: value for name, value in from_file.items() if value in (None, [])}
    by_file |= read(as_flags(from_file))
    return TrainingConfig(**put_over(by_file, read(sys.argv[1:] if args is None else args)))


UNSAID = object()


def as_flags(values: dict) -> list[str]:
    """Write values as flags, so that one parser checks all; None and [] have no flag."""
    flags = []
    for name, value in values.items():
        entries = value if isinstance(value, list) else [value]
        if value is not None and entries:
            flags += [f"--{name}", *map(str, entries)]
    return flags


def read_config_file(path: str) -> dict:
    """Read ``--config``: field names to words as they are written, lists of them, and None for null.

    Of the words the flags' parser makes numbers; YAML would make False of a class that is called no, and 1 of 01.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), yaml.BaseLoader)
    except OSError as error:
        raise InputError(f"--config {path} cannot be read: {error.strerror}; name a YAML file.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of lists within lists without end
        raise InputError(f"--config {path} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path} holds no keys; write lines such as 'resolution: 44'.")
    if values.get("mixed_precision") is False:
        values["mixed_precision"] = "no"  # as YAML reads an unquoted no
    known = [f.name for f in dataclasses.fields(TrainingConfig)]
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise InputError(
            f"--config {path} has unknown keys: {', '.join(unknown)}; 'mri-ddpm train --help' lists them all."
        )
    for f in dataclasses.fields(TrainingConfig):
        value, takes_list = values.get(f.name), f.default_factory is not dataclasses.MISSING
        if value in ("null", "~") or (value == "" and not isinstance(f.default, str)):
            if f.default is not None:
                raise InputError(
                    f"--config {path} gives {f.name} no value; write one, or leave the line out."
                )
            values[f.name] = None
        entries = value if isinstance(value, list) and takes_list else [value]
        if any(isinstance(entry, (dict, list)) or str(entry).startswith("--") for entry in entries):
            raise InputError(
                f"--config {path} gives {f.name} {str(value):.60}; write a number or a word, or several for a list."
            )
    return values
