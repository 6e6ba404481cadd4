"""A whole run: refuse, prepare or resume, train, leave a pipeline."""

import dataclasses
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tqdm.auto import tqdm

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import write_sources
from mri_ddpm.files import read_json_lines, write_json
from mri_ddpm.hub import BackgroundPush
from mri_ddpm.runs import LATEST, RunFolder, base_of, take_over
from mri_ddpm.runs.folder import run_of
from mri_ddpm.runs.metrics import Metrics
from mri_ddpm.runs.resuming import alone, batch_change, check_run_folder, check_same_data, check_same_model
from mri_ddpm.training import device, preparation
from mri_ddpm.training.batch_size import settle_batch_size
from mri_ddpm.training.beginning import in_order_of
from mri_ddpm.training.checkpoints import load_checkpoint, save_checkpoint
from mri_ddpm.training.interrupt import interrupt_between_steps
from mri_ddpm.training.loop import EMA_LOSS, TrainingLoop
from mri_ddpm.training.rehearsal import rehearse, save_rehearsal
from mri_ddpm.training.restarts import mark_launcher, meet_anew, restarted
from mri_ddpm.training.state import prepare
from mri_ddpm.training.validation import draw_grid


def train(config: TrainingConfig) -> Path:
    """Train as ``config`` says, in one process or in every process that accelerate started.

    Returns:
        The run folder: ``config.json``, ``manifest.json``, ``environment.json``, ``metrics.jsonl``, ``loss.png``,
        ``checkpoints/``, ``samples/``, ``samples.png`` and ``pipeline/`` with the EMA weights.

    Raises:
        InputError: when the configuration, the scans and the run folder do not go together.
    """
    folder = RunFolder(Path(config.output_dir))
    with alone(folder) as claim:
        return _train(config, folder, claim)


def _train(config: TrainingConfig, folder: RunFolder, claim: Callable[[], None]) -> Path:
    # Refuse what can be refused before any work
    # A restart has the first command line, which knows nothing of the steps taken since
    named = LATEST if restarted(folder) else config.resume_from_checkpoint
    data_set = config.dataset_name
    if data_set and Path(data_set).exists():  # and no owner/name on the Hub
        data_set = str(Path(data_set).absolute())
    base = base_of(config, folder, resuming=bool(named))
    config = take_over(config, base) if base else config
    config = dataclasses.replace(config, dataset_name=data_set, resume_from_checkpoint=named)
    preparation.check_architecture(config)
    preparation.check_tracker(config)
    check_run_folder(folder, config)
    config = device.settle_precision(config)
    checkpoint = folder.find_checkpoint(named) if named else None
    resumed = [folder]
    if checkpoint and (origin := run_of(checkpoint)).path != folder.path.resolve():
        resumed.append(origin)
    for run in resumed if named else ():
        check_same_model(run, config)

    # Scans, network and all that trains it
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=config.report_to,
        project_dir=str(folder),
        kwargs_handlers=meet_anew(),
    )
    device.check_parallelism(accelerator)
    device.use_all_cores(accelerator)
    device.keep_freed_memory(accelerator.device)
    scans = preparation.load_training_scans(accelerator, config)
    for run in resumed:
        check_same_data(run, scans.manifest)
    if base:
        scans = in_order_of(base, scans, config)
    preparation.check_flips(config, scans)
    config = settle_batch_size(accelerator, config, scans, base)
    rehearsal = None
    if config.keep_old_share:
        rehearsal = rehearse(config, scans, base, folder.rehearsal, accelerator.device)
    state = prepare(accelerator, config, scans, folder, base, rehearsal)
    preparation.check_epochs(state)
    loop = TrainingLoop(state)
    change = None
    if checkpoint:
        load_checkpoint(state, checkpoint)
        change = batch_change(folder, config, accelerator.num_processes)
    if config.push_to_hub and accelerator.is_main_process:
        loop.push = BackgroundPush(
            folder.path, config.repo_id, config.hub_public, config.hub_license, say=tqdm.write
        )

    # The run folder, written only now that nothing is left to refuse
    with loop.writing():
        preparation.start_tracker(accelerator, config)
        if accelerator.is_main_process:
            folder.path.mkdir(parents=True, exist_ok=True)
            claim()
            mark_launcher(folder)
            # First of those in sight: it marks the folder as a run
            write_json(folder.config, dataclasses.asdict(config))
            folder.checkpoint_root.mkdir(exist_ok=True)
            write_json(folder.manifest, scans.manifest)
            if base:
                write_json(folder.base, base.as_json())
            if rehearsal:
                save_rehearsal(folder.rehearsal, rehearsal)
            if scans.manifest["patients"]:
                write_sources(folder.sources, scans.paths)
            write_json(folder.environment, device.environment(accelerator))
            # Of a base's own validation, before the first step, there is but one
            loop.metrics = Metrics(folder.metrics, state.progress.step or -1)
            folder.tidy_checkpoints(state.progress.step)
    # Rows that the main process has left
    loop.validations = [row for row in read_json_lines(folder.metrics) if EMA_LOSS in row]
    if base and not checkpoint:
        save_checkpoint(state)  # for a surge in the first steps, and for a base that goes away
    if checkpoint:
        loop.save_pipeline()  # a kill may have come between the checkpoint and its pipeline
    preparation.announce(state)
    if change:
        accelerator.print(change)
    if config.resume_from_checkpoint and not checkpoint:
        accelerator.print(f"{folder} has no checkpoint yet: starting from step 0.")

    # Train
    with interrupt_between_steps(accelerator) as interrupt:
        loop.train(interrupt)
    if not loop.finished:
        accelerator.print(
            f"Stopped after step {state.progress.step}. Go on with --resume_from_checkpoint latest."
        )
        sys.exit(128 + (interrupt.signum or signal.SIGINT))

    # Leave a pipeline and its samples
    with loop.writing():
        if accelerator.is_main_process:
            with state.averaged_weights:
                draw_grid(
                    state.raw_unet,
                    state.noise_scheduler,
                    config,
                    folder.grid,
                    scans.validation,
                    progress=True,
                )
    if accelerator.is_main_process:
        best = f"   best: {folder.best}" if folder.best.exists() else ""
        print(f"Pipeline: {folder.pipeline}{best}   samples: {folder.grid}   loss: {folder.loss_plot}")
        if loop.push:
            print(loop.push.finish(state.progress.step))
    # The reducer of DDP must not be the last to hold the process group, or tearing that down can wait for ever: it
    # would join the group's threads, which may need the interpreter's lock to let go of a last message.
    state.unet = None
    accelerator.free_memory()
    accelerator.end_training()
    return folder.path
