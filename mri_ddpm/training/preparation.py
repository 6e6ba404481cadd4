"""What stands before the first step: checks, scans, the network, the optimizer, and what the user is told."""

import ctypes
import dataclasses
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import DistributedType
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import parse_flag_from_env

from mri_ddpm import data
from mri_ddpm.config import AUTO, TrainingConfig
from mri_ddpm.diffusion import MAX_TERMINAL_SIGNAL, terminal_signal
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.memorisation import MIN_HELD_OUT, MIN_TRAINING
from mri_ddpm.files import read_json
from mri_ddpm.models import modeling_attention_unet
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.training.moments import MAX_COMPONENTS, moments_size

if TYPE_CHECKING:
    from mri_ddpm.training.loop import TrainingRun


def attention_types(config: TrainingConfig) -> tuple[str | None, ...]:
    """The flag's words as the network takes them: "none" is ``None``."""
    return tuple(None if kind == "none" else kind for kind in config.attention_types)


def check_architecture(config: TrainingConfig) -> None:
    """Raise an ``InputError`` where the network's numbers do not fit each other."""
    try:
        modeling_attention_unet.check_architecture(
            config.block_out_channels,
            config.layers_per_block,
            config.block_type,
            attention_types(config),
            config.attention_head_dim,
            config.norm_num_groups,
        )
    except ValueError as error:
        raise InputError(f"--{error}") from error


def check_tracker(config: TrainingConfig) -> None:
    """Raise an ``InputError`` for a tracker that accelerate does not know, or that is not installed."""
    known = [str(name) for name in LOGGER_TYPE_TO_CLASS]
    if config.report_to is None or config.report_to in [str(name) for name in get_available_trackers()]:
        return
    if config.report_to in known:
        extra = '"mri-ddpm[tensorboard]"' if config.report_to == "tensorboard" else config.report_to
        raise InputError(f"--report_to {config.report_to} is not installed; 'pip install {extra}' brings it.")
    raise InputError(f"--report_to {config.report_to} is unknown; accelerate knows: {', '.join(known)}.")


def check_parallelism(accelerator: Accelerator) -> None:
    """Raise an ``InputError`` for ways to share out a network that is too large for one device; ours are not."""
    if accelerator.distributed_type in (
        DistributedType.FSDP,
        DistributedType.DEEPSPEED,
        DistributedType.MEGATRON_LM,
    ):
        raise InputError(
            f"{accelerator.distributed_type.value} is not supported, for the network fits every GPU; launch with "
            "--multi_gpu, and where memory is short take --gradient_checkpointing or --train_batch_size auto."
        )


def settle_precision(config: TrainingConfig) -> TrainingConfig:
    """Put a precision in the place of "auto": accelerate launch's, else the resumed run's, else the device's.

    Called before there is an ``Accelerator``, which takes it.

    Raises:
        InputError: for fp16 on a CPU.
    """
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    precision = config.mixed_precision
    if precision == AUTO:
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # "no" is also of who was asked nothing
        saved = Path(config.output_dir) / "environment.json"
        if launched != "no":
            precision = launched
        elif config.resume_from_checkpoint and saved.exists():
            precision = read_json(saved).get("mixed_precision", "no")
        else:
            precision = "bf16" if fast_in_bfloat16(on_cpu) else "no"
    if precision == "fp16" and on_cpu:
        raise InputError("--mixed_precision fp16 needs a GPU, and there is none; take no or bf16.")
    return dataclasses.replace(config, mixed_precision=precision)


def fast_in_bfloat16(on_cpu: bool) -> bool:
    """Whether the device has units for matrix products in bfloat16: CPUs with AMX, CUDA from Ampere on."""
    if on_cpu:
        # Without AMX it takes longer than float32. The function is private: a version of torch may be without it.
        return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)


def use_all_cores(accelerator: Accelerator) -> None:
    """Take the machine's cores where ``accelerate launch`` left a process on a CPU its default of one thread.

    Any other number, from OMP_NUM_THREADS or ``--num_cpu_threads_per_process``, is left as it is.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # set by the launcher alone
    if launched and accelerator.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = psutil.cpu_count(logical=False) or 1
        torch.set_num_threads(max(1, cores // accelerator.num_processes))


def keep_freed_memory(device: torch.device) -> None:
    """On a CPU have glibc keep the memory of a step for the next one, instead of handing it back and asking again.

    Tensors over 32 MB are else mapped anew each time, and the system clears every page of them at its first use, which at
    44 px and batches of 80 took as long as the arithmetic. Another C library is left as it is.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of <malloc.h>
    if device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def load(accelerator: Accelerator, config: TrainingConfig) -> data.Scans:
    """Load the scans, or draw phantoms where there are none; one process fills the cache for the others."""
    if config.train_data_dir or config.dataset_name:
        same_names = ("train_data_dir", "dataset_name", "dataset_config_name", "image_column", "label_column",
                      "resolution", "fit", "validation_share", "keep_repeats", "on_bad_image", "seed",
                      "cache_dir")  # fmt: skip
        scans = data.load_scans(**{name: getattr(config, name) for name in same_names})
    else:
        scans = data.load_phantoms(
            num_images=config.phantom_images,
            resolution=config.resolution,
            validation_share=config.validation_share,
            seed=config.seed,
        )
    global_batch = accelerator.num_processes * (
        1 if config.train_batch_size == AUTO else config.train_batch_size
    )
    if global_batch > len(scans.train):
        raise InputError(
            f"--train_batch_size {config.train_batch_size} on {accelerator.num_processes} process(es) is larger than "
            f"the {len(scans.train)} training scans; take at most {len(scans.train) // accelerator.num_processes}."
        )
    for name in config.no_flip_classes:
        if name not in scans.class_names:
            there = ", ".join(scans.class_names) or "none"
            raise InputError(
                f"--no_flip_classes {name} is not a class of the scans; the classes are: {there}."
            )
    return scans


def check_epochs(config: TrainingConfig, max_steps: int, steps_per_epoch: int) -> None:
    """Raise an ``InputError`` for epochs at whose end something is to be done, and which the training does not reach."""
    last = max_steps // steps_per_epoch
    for name in ("sample_epochs", "evaluate_epochs"):
        beyond = [epoch for epoch in getattr(config, name) if epoch > last]
        if beyond:
            raise InputError(
                f"--{name} {beyond[0]} is never reached: {max_steps} steps, {steps_per_epoch} an epoch, are {last} whole "
                "epochs; take at most that, or train longer by --num_train_epochs."
            )


def hold_if_small(accelerator: Accelerator, scans: data.Scans) -> bool:
    """Keep the scans on the device where they take an eighth of its free memory at most; else they stay on disk."""
    device = accelerator.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    processes_on_it = accelerator.num_processes if device.type == "cpu" else 1
    small = scans.train.nbytes + scans.validation.nbytes <= free / (8 * processes_on_it)
    if small:
        scans.train.hold(device)
        scans.validation.hold(device)
    return small


def build_unet(config: TrainingConfig, class_names: tuple[str, ...]) -> AttentionUNet2DModel:
    """The network, its weights drawn from the seed."""
    conditional = config.class_conditional and bool(class_names)
    torch.manual_seed(config.seed)
    unet = AttentionUNet2DModel(
        sample_size=config.resolution,
        block_out_channels=tuple(config.block_out_channels),
        layers_per_block=config.layers_per_block,
        block_type=config.block_type,
        attention_types=attention_types(config),
        attention_head_dim=config.attention_head_dim,
        norm_num_groups=config.norm_num_groups,
        dropout=config.dropout,
        num_class_embeds=len(class_names) if conditional else None,
        class_names=tuple(class_names) if conditional else None,
        null_class=not conditional or config.class_dropout_prob > 0,
        moments_size=moments_size(config.resolution) if config.start_from_moments else None,
        num_components=MAX_COMPONENTS if config.start_from_moments else 0,
    )
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def build_optimizer(config: TrainingConfig, unet: AttentionUNet2DModel) -> torch.optim.Optimizer:
    """Adam as in the recipe, or AdamW; fused, so that the guard can have an update left out without waiting for it."""
    optimizer_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return optimizer_class(
        unet.parameters(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.adam_weight_decay,
        fused=True,
    )


def start_tracker(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Open the tracker of ``--report_to`` with the configuration as its hyperparameters.

    Raises:
        InputError: when it does not open, as without a login; a run folder that it made is gone again.
    """
    if not config.report_to:
        return
    run_dir = Path(config.output_dir)
    is_new = not any(run_dir.glob("*"))
    flat = {
        name: value if isinstance(value, (int, float)) else str(value)
        for name, value in dataclasses.asdict(config).items()
    }
    try:
        accelerator.init_trackers("mri-ddpm", config=flat)
    except Exception as error:  # each tracker has its own kinds
        if is_new:
            shutil.rmtree(run_dir, ignore_errors=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"--report_to {config.report_to} cannot be started: {reason.removesuffix('.'):.300}; log in to it or mend that, or "
            "leave out --report_to."
        ) from error


def announce(run: "TrainingRun") -> None:
    """Say what is trained on what, and what the user may not expect."""
    config, scans, say = run.config, run.scans, run.accelerator.print
    if config.source == "phantom":
        say(
            "No scans given: training on the built-in head phantom, drawings that stand in for scans.\n"
            "  To train on real ones: --train_data_dir DIR, a folder with one folder of images a class."
        )
    names = (
        f" in {len(scans.class_names)} classes ({', '.join(scans.class_names)})" if scans.class_names else ""
    )
    say(
        f"{len(scans.train)} training and {len(scans.validation)} held-out images{names}, {config.resolution} px"
    )
    if scans.manifest["findings"]:
        say(data.format_findings(scans.manifest))
    kinds = {"repeat": "repeats", "bad": "unreadable files", "leak": "leaks", "test": "test scans"}
    left_out = {words: scans.manifest["split"][kind]["total"] for kind, words in kinds.items()}
    if any(left_out.values()):
        say("left out: " + ", ".join(f"{count} {words}" for words, count in left_out.items() if count))
    if (scans.manifest["repeats"] or {}).get("label_conflicts"):
        say(
            f"warning: {scans.manifest['repeats']['label_conflicts']} pictures lie in folders of more than one class, and count "
            "as the first of them; 'group' in manifest.json says which."
        )
    if scans.manifest["dark"]:
        say(data.dark_warning(scans.manifest))
    if config.evaluate_epochs and (len(scans.train) < MIN_TRAINING or len(scans.validation) < MIN_HELD_OUT):
        say(
            f"warning: --evaluate_epochs leaves out the search for copies, which takes {MIN_TRAINING} training and {MIN_HELD_OUT} "
            "held-out scans."
        )
    parameters = sum(p.numel() for p in run.raw_unet.parameters()) / 1e6
    processes, factor = run.accelerator.num_processes, run.guard.rate_factor
    say(
        f"{parameters:.1f} M parameters, {config.prediction_type}, {config.loss_type} loss, "
        f"T={config.num_train_timesteps}, {run.max_steps} steps of "
        f"{config.train_batch_size * config.gradient_accumulation_steps * processes} images on "
        f"{processes} x {run.accelerator.device}, mixed precision: {config.mixed_precision}"
        + (f", going on from step {run.progress.step}" if run.progress.step else "")
        + (f" with {factor:g} of the learning rate, after surges" if factor < 1 else "")
    )
    if config.lr_warmup_steps >= run.max_steps:
        say(
            f"warning: --lr_warmup_steps {config.lr_warmup_steps} do not end within the {run.max_steps} steps of this training, "
            f"so that --learning_rate {config.learning_rate:g} is never reached; take fewer."
        )
    signal = terminal_signal(run.noise_scheduler)
    if signal > MAX_TERMINAL_SIGNAL and not config.start_from_moments:
        say(
            f"warning: this schedule leaves {signal:.3f} of the image in the last x_T (more than "
            f"{MAX_TERMINAL_SIGNAL}), while sampling starts from noise alone; leave out --no_start_from_moments, or take a larger --beta_end."
        )
