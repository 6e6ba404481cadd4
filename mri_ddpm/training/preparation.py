"""What stands before the first step: checks, scans, the tracker, and what the user is told."""

import dataclasses
import shutil
from pathlib import Path

from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from mri_ddpm import data
from mri_ddpm.config import TrainingConfig
from mri_ddpm.diffusion import MAX_TERMINAL_SIGNAL, terminal_signal
from mri_ddpm.errors import InputError, with_extra
from mri_ddpm.evaluation.memorisation import MIN_TRAINING, MIN_VALIDATION
from mri_ddpm.fields import AUTO
from mri_ddpm.models import modeling_attention_unet
from mri_ddpm.scan_options import ScanOptions
from mri_ddpm.training.state import TrainingState, attention_types

OFTEN = 200  # showings of a scan; 40 scans were copied from 360 on, 100 not in 384: docs/results/few_scans.md


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
        is_extra = config.report_to == "tensorboard"
        command = with_extra("tensorboard") if is_extra else f"pip install {config.report_to}"
        raise InputError(f"--report_to {config.report_to} is not installed; {command} brings it.")
    raise InputError(f"--report_to {config.report_to} is unknown; accelerate knows: {', '.join(known)}.")


def load_training_scans(accelerator: Accelerator, config: TrainingConfig) -> data.Scans:
    """Load the scans, or make phantoms where there are none; one process fills the cache for the others."""
    if config.train_data_dir or config.dataset_name:
        scans = data.load_scans(**{f.name: getattr(config, f.name) for f in dataclasses.fields(ScanOptions)})
    else:
        scans = data.load_phantoms(
            num_images=config.phantom_images,
            resolution=config.resolution,
            validation_share=config.validation_share,
            seed=config.seed,
            channels=config.channels,
            condition_on=config.condition_on,
        )
    if config.evaluate_epochs and not scans.channels.contrasts:
        raise InputError(
            "--evaluate_epochs measures contrasts, and --channels names masks alone; leave it out."
        )
    global_batch = accelerator.num_processes * (
        1 if config.train_batch_size == AUTO else config.train_batch_size
    )
    if global_batch > len(scans.train):
        raise InputError(
            f"--train_batch_size {config.train_batch_size} on {accelerator.num_processes} process(es) is larger than "
            f"the {len(scans.train)} training scans; take at most {len(scans.train) // accelerator.num_processes}."
        )
    return scans


def check_flips(config: TrainingConfig, scans: data.Scans) -> None:
    """Raise an ``InputError`` for a class to leave as it is that neither the scans nor the base have."""
    for name in config.no_flip_classes:
        if name not in scans.class_names:
            there = ", ".join(scans.class_names) or "none"
            raise InputError(
                f"--no_flip_classes {name} is not a class of the scans; the classes are: {there}."
            )


def check_epochs(state: TrainingState) -> None:
    """Raise an ``InputError`` for epochs at whose end something is to be done, and which the training does not reach."""
    last = state.max_steps // state.steps_per_epoch
    for name in ("sample_epochs", "evaluate_epochs"):
        beyond = [epoch for epoch in getattr(state.config, name) if epoch > last]
        if beyond:
            raise InputError(
                f"--{name} {beyond[0]} is never reached: {state.max_steps} steps, {state.steps_per_epoch} an epoch, are {last} whole "
                "epochs; take at most that, or train longer by --num_train_epochs."
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


def announce(state: TrainingState) -> None:
    """Say what is trained on what, and what the user may not expect."""
    config, scans, say = state.config, state.scans, state.accelerator.print
    if config.source == "phantom":
        say(
            "No scans given: training on the built-in head phantom, drawings that stand in for scans.\n"
            "  To train on real ones: --train_data_dir DIR, a folder with one folder of images a class."
        )
    found = scans.manifest["class_names"]
    names = f" in {len(found)} class{'es' * (len(found) != 1)} ({', '.join(found)})" if found else ""
    say(
        f"{len(scans.train)} training and {len(scans.validation)} validation images{names}, {config.resolution} px"
    )
    if state.base:
        announce_base(state)
    if config.channels or config.condition_on:
        given = f" given {', '.join(config.condition_on)}" if config.condition_on else ""
        say(f"drawn: {', '.join(config.channels) or 'one channel'}{given}")
    if scans.manifest["findings"]:
        say(data.format_findings(scans.manifest))
    kinds = {"repeat": "repeat", "bad": "unreadable file", "leak": "leak", "test": "test scan"}
    left_out = {words: scans.manifest["split"][kind]["total"] for kind, words in kinds.items()}
    told = [f"{count} {words}{'s' * (count > 1)}" for words, count in left_out.items() if count]
    if told:
        say(f"left out: {', '.join(told)}")
    if (scans.manifest["repeats"] or {}).get("label_conflicts"):
        say(
            f"warning: {scans.manifest['repeats']['label_conflicts']} pictures lie in folders of more than one class, and count "
            "as the first of them; 'group' in manifest.json says which."
        )
    if scans.manifest["dark"]:
        say(data.dark_warning(scans.manifest))
    if config.evaluate_epochs and (len(scans.train) < MIN_TRAINING or len(scans.validation) < MIN_VALIDATION):
        say(
            f"warning: --evaluate_epochs leaves out the search for copies, which takes {MIN_TRAINING} training and {MIN_VALIDATION} "
            "validation scans."
        )
    parameters = sum(p.numel() for p in state.raw_unet.parameters()) / 1e6
    processes, factor = state.accelerator.num_processes, state.guard.rate_factor
    a_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    say(
        f"{parameters:.1f} M parameters, {config.prediction_type}, {config.loss_type} loss, "
        f"T={config.num_train_timesteps}, {state.max_steps} steps of "
        f"{a_step} images on "
        f"{processes} x {state.accelerator.device}, learning rate {config.learning_rate:g}, mixed precision: {config.mixed_precision}"
        + (f", resuming from step {state.progress.step}" if state.progress.step else "")
        + (f" with {factor:g} of the learning rate, after surges" if factor < 1 else "")
    )
    of_scans = state.max_steps * a_step * (1 - (config.keep_old_share or 0))
    showings = int(of_scans / len(scans.train))
    if showings >= OFTEN and not config.random_flip and not state.progress.step:
        say(
            f"each scan is shown {showings} times: --random_flip may hold a model back from copying them (docs/results/few_scans.md)"
        )
    if config.lr_warmup_steps >= state.max_steps:
        say(
            f"warning: --lr_warmup_steps {config.lr_warmup_steps} do not end within the {state.max_steps} steps of this training, "
            f"so that --learning_rate {config.learning_rate:g} is never reached; take fewer."
        )
    signal = terminal_signal(state.noise_scheduler)
    if signal > MAX_TERMINAL_SIGNAL and not config.start_from_moments:
        say(
            f"warning: this schedule leaves {signal:.3f} of the image in the last x_T (more than "
            f"{MAX_TERMINAL_SIGNAL}), while sampling starts from noise alone; leave out --no_start_from_moments, or take a larger --beta_end."
        )


def announce_base(state: TrainingState) -> None:
    """Say what the training begins from, what becomes of its classes, and whether it has seen the validation scans."""
    base, manifest, say = state.base, state.scans.manifest, state.accelerator.print
    say(
        f"begun from {base.name}, {base.unet_config['sample_size']} px, trained on {sum(base.scans.values())} scans"
    )
    kept = [name for name in base.class_names if name not in manifest["class_names"]]
    if share := state.config.keep_old_share:
        say(f"samples of it are {share:.0%} of what is shown (--keep_old_share {share})")
    new = [name for name in manifest["class_names"] if name not in base.class_names]
    if kept:
        say(f"classes of it without new scans: {', '.join(kept)}")
    if new and base.class_names and state.raw_unet.class_embedding is not None:
        start = state.config.like or "the mean of its classes"
        say(f"classes that are new to it: {', '.join(new)}, begun as {start}")
    files = [file["sha256"] for file in manifest["files"] if file["split"] == "validation"]
    if seen := sum(sha256 in base.seen for sha256 in files):
        say(
            f"warning: {base.name} was trained on {seen} of the {len(files)} validation scans, so that what is measured on these is too "
            "good; leave them out, or name the parts by folders train/ and val/."
        )
