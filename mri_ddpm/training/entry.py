"""A whole run: refuse, prepare or resume, train, leave a pipeline."""

import dataclasses
import signal
import sys
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm.auto import tqdm

from mri_ddpm.config import TrainingConfig
from mri_ddpm.files import write_json
from mri_ddpm.hub import BackgroundPush
from mri_ddpm.training import preparation
from mri_ddpm.training.batch_size import settle_batch_size
from mri_ddpm.training.checkpoints import (
    find_checkpoint,
    load_checkpoint,
    tidy,
)
from mri_ddpm.training.interrupt import interrupt_between_steps
from mri_ddpm.training.loop import TrainingRun
from mri_ddpm.training.records import Metrics
from mri_ddpm.training.restarts import mark_launcher, meet_anew, restarted
from mri_ddpm.training.run_folder import batch_change, check_run_folder, check_same_data, environment
from mri_ddpm.training.validation import averaged_weights, draw_grid


def train(config: TrainingConfig) -> Path:
    """Train as ``config`` says, in one process or in every process that accelerate started.

    Returns:
        The run folder: ``config.json``, ``manifest.json``, ``environment.json``, ``metrics.jsonl``, ``loss.png``,
        ``checkpoints/``, ``samples/``, ``samples.png`` and ``pipeline/`` with the EMA weights.

    Raises:
        InputError: when the configuration, the scans and the run folder do not go together.
    """
    # Refuse what can be refused before any work
    if config.dataset_name and Path(config.dataset_name).exists():  # and no owner/name on the Hub
        config = dataclasses.replace(config, dataset_name=str(Path(config.dataset_name).absolute()))
    run_dir = Path(config.output_dir)
    preparation.check_architecture(config)
    preparation.check_tracker(config)
    if restarted(run_dir):  # with the first command line, which knows nothing of the steps taken since
        config = dataclasses.replace(config, resume_from_checkpoint="latest")
    check_run_folder(run_dir, config)
    config = preparation.settle_precision(config)
    checkpoint = (
        find_checkpoint(run_dir, config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    )

    # Scans, network and all that trains it
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.report_to,
        project_dir=str(run_dir),
        kwargs_handlers=meet_anew(),
    )
    preparation.check_parallelism(accelerator)
    preparation.use_all_cores(accelerator)
    preparation.keep_freed_memory(accelerator.device)
    scans = preparation.load(accelerator, config)
    check_same_data(run_dir, scans.manifest)
    config = settle_batch_size(accelerator, config, scans)
    run = TrainingRun.prepare(accelerator, config, scans, run_dir)
    change = None
    if checkpoint:
        load_checkpoint(run, checkpoint)
        change = batch_change(run_dir, config, accelerator.num_processes)
    if config.push_to_hub and accelerator.is_main_process:
        run.push = BackgroundPush(
            run_dir, config.repo_id, config.hub_public, config.hub_license, say=tqdm.write
        )

    # The run folder, written only now that nothing is left to refuse
    with run.writing():
        preparation.start_tracker(accelerator, config)
        if accelerator.is_main_process:
            run_dir.mkdir(parents=True, exist_ok=True)
            mark_launcher(run_dir)
            # First of those in sight: it marks the folder as a run
            write_json(run_dir / "config.json", dataclasses.asdict(config))
            (run_dir / "checkpoints").mkdir(exist_ok=True)
            write_json(run_dir / "manifest.json", scans.manifest)
            write_json(run_dir / "environment.json", environment(accelerator))
            run.metrics = Metrics(run_dir / "metrics.jsonl", run.progress.step)
            tidy(run_dir, run.progress.step)
    if checkpoint:
        run.save_pipeline()  # a kill may have come between the checkpoint and its pipeline
    preparation.announce(run)
    if change:
        accelerator.print(change)
    if config.resume_from_checkpoint and not checkpoint:
        accelerator.print(f"{run_dir} has no checkpoint yet: starting from step 0.")

    # Train
    with interrupt_between_steps(accelerator) as interrupt:
        run.train(interrupt)
    if run.progress.step < run.max_steps:
        accelerator.print(
            f"Stopped after step {run.progress.step}. Go on with --resume_from_checkpoint latest."
        )
        sys.exit(128 + (interrupt.signum or signal.SIGINT))

    # Leave a pipeline and its samples
    with run.writing():
        if accelerator.is_main_process:
            with averaged_weights(run.ema, run.raw_unet):
                draw_grid(run.raw_unet, run.noise_scheduler, config, run_dir / "samples.png", progress=True)
    if accelerator.is_main_process:
        print(
            f"Pipeline: {run_dir / 'pipeline'}   samples: {run_dir / 'samples.png'}   loss: {run_dir / 'loss.png'}"
        )
        if run.push:
            print(run.push.finish(run.progress.step))
    # The reducer of DDP must not be the last to hold the process group, or tearing that down can wait for ever: it
    # would join the group's threads, which may need the interpreter's lock to let go of a last message.
    run.unet = None
    accelerator.free_memory()
    accelerator.end_training()
    return run_dir
