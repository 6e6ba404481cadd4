"""The training loop, as titled paragraphs; one optimizer step is ``TrainingRun.step``."""

import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import Scans
from mri_ddpm.diffusion import loss_per_sample, make_noise_scheduler, min_snr_weights, training_target
from mri_ddpm.errors import InputError
from mri_ddpm.files import replace_folder, write_json
from mri_ddpm.hub import BackgroundPush
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.training import preparation
from mri_ddpm.training.checkpoints import Progress, find_checkpoint, save_checkpoint
from mri_ddpm.training.epoch_evaluation import EpochEvaluation
from mri_ddpm.training.interrupt import Interrupt, interrupt_between_steps
from mri_ddpm.training.randomness import DROPOUT, EpochSampler, derive_seed, draw_for_batch
from mri_ddpm.training.records import Metrics, plot_loss
from mri_ddpm.training.run_folder import check_run_folder, check_same_data, environment
from mri_ddpm.training.validation import averaged_weights, draw_grid, validation_loss


def train(config: TrainingConfig) -> Path:
    """Train as ``config`` says, in one process or in every process that accelerate started.

    Returns:
        The run folder: ``config.json``, ``manifest.json``, ``environment.json``, ``metrics.jsonl``, ``loss.png``,
        ``checkpoints/``, ``samples/``, ``samples.png`` and ``pipeline/`` with the EMA weights.

    Raises:
        InputError: when the configuration, the scans and the run folder do not go together.
    """
    # Refuse what can be refused before any work
    run_dir = Path(config.output_dir)
    preparation.check_architecture(config)
    preparation.check_tracker(config)
    check_run_folder(run_dir, config)
    checkpoint = (
        find_checkpoint(run_dir, config.resume_from_checkpoint) if config.resume_from_checkpoint else None
    )

    # Scans, network and all that trains it
    accelerator = Accelerator(
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.report_to,
        project_dir=str(run_dir),
    )
    preparation.use_all_cores(accelerator)
    scans = preparation.load(accelerator, config)
    check_same_data(run_dir, scans.manifest)
    run = TrainingRun.prepare(accelerator, config, scans, run_dir)
    if checkpoint:
        accelerator.load_state(str(checkpoint))
        run.ema.to(accelerator.device)  # what accelerate does not know is loaded to the CPU
    if config.push_to_hub and accelerator.is_main_process:
        run.push = BackgroundPush(
            run_dir, config.repo_id, config.hub_public, config.hub_license, say=tqdm.write
        )

    # The run folder, written only now that nothing is left to refuse
    if accelerator.is_main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        write_json(run_dir / "config.json", dataclasses.asdict(config))  # first: it marks the folder as a run
        (run_dir / "checkpoints").mkdir(exist_ok=True)
        write_json(run_dir / "manifest.json", scans.manifest)
        write_json(run_dir / "environment.json", environment(accelerator))
        run.metrics = Metrics(run_dir / "metrics.jsonl", run.progress.step)
    preparation.start_tracker(accelerator, config)
    preparation.announce(run)
    if config.resume_from_checkpoint and not checkpoint:
        accelerator.print(f"{run_dir} has no checkpoint yet: starting from step 0.")

    # Train
    if run.progress.step == 0 and 0 in config.sample_epochs:
        run.sample(epoch=0)
    with interrupt_between_steps(accelerator) as interrupt:
        run.train(interrupt)
    if run.progress.step < run.max_steps:
        accelerator.print(
            f"Stopped after step {run.progress.step}. Go on with --resume_from_checkpoint latest."
        )
        sys.exit(128 + (interrupt.signum or signal.SIGINT))

    # Leave a pipeline and its samples
    if accelerator.is_main_process:
        with averaged_weights(run.ema, run.raw_unet):
            draw_grid(run.raw_unet, run.noise_scheduler, config, run_dir / "samples.png", progress=True)
        print(
            f"Pipeline: {run_dir / 'pipeline'}   samples: {run_dir / 'samples.png'}   loss: {run_dir / 'loss.png'}"
        )
        if run.push:
            print(run.push.finish(run.progress.step))
    accelerator.end_training()
    return run_dir


@dataclass
class TrainingRun:
    """Everything that a step reads or changes. ``unet`` is wrapped for this process, ``raw_unet`` is the same bare."""

    accelerator: Accelerator
    config: TrainingConfig
    run_dir: Path
    scans: Scans
    sampler: EpochSampler
    loader: DataLoader
    unet: torch.nn.Module
    raw_unet: AttentionUNet2DModel
    noise_scheduler: DDPMScheduler
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMAModel
    progress: Progress
    steps_per_epoch: int
    max_steps: int
    metrics: Metrics | None = None  # on the main process only
    epoch_evaluation: EpochEvaluation | None = None  # there too, from the first of --evaluate_epochs on
    push: BackgroundPush | None = None  # there too, and only with --push_to_hub
    unlogged: list[dict] = field(default_factory=list)
    since: float = 0.0  # when the steps in ``unlogged`` began, in seconds
    bar: tqdm | None = None

    @classmethod
    def prepare(
        cls, accelerator: Accelerator, config: TrainingConfig, scans: Scans, run_dir: Path
    ) -> "TrainingRun":
        """Build the network, the optimizer and the rest for this process."""
        sampler = EpochSampler(len(scans.train), config.seed)
        loader = DataLoader(
            scans.train,
            batch_size=config.train_batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=config.dataloader_num_workers,
        )
        raw_unet = preparation.build_unet(config, scans.class_names).to(memory_format=torch.channels_last)
        optimizer = preparation.build_optimizer(config, raw_unet)
        unet, optimizer, loader = accelerator.prepare(raw_unet, optimizer, loader)
        steps_per_epoch = math.ceil(len(loader) / config.gradient_accumulation_steps)
        max_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch

        # Not prepared by accelerate, which would step it once a process: it counts optimizer steps.
        lr_scheduler = get_scheduler(
            config.lr_scheduler,
            optimizer.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=max_steps,
        )
        ema = EMAModel(
            raw_unet.parameters(), decay=config.ema_max_decay, use_ema_warmup=True, power=config.ema_power
        )
        progress = Progress()
        accelerator.register_for_checkpointing(progress, ema, lr_scheduler)
        noise_scheduler = make_noise_scheduler(
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            config.prediction_type,
            config.rescale_betas_zero_snr,
        )
        return cls(
            accelerator, config, run_dir, scans, sampler, loader, unet, raw_unet, noise_scheduler, optimizer,
            lr_scheduler, ema, progress, steps_per_epoch, max_steps,
        )  # fmt: skip

    def train(self, interrupt: Interrupt) -> None:
        """Take the steps that are left, validating, keeping and showing on the way."""
        self.bar = tqdm(
            total=self.max_steps, initial=self.progress.step, desc="training", unit="step",
            disable=not self.accelerator.is_main_process, dynamic_ncols=True,
        )  # fmt: skip
        self.unet.train()
        self.since = time.perf_counter()
        stopping = False
        while self.progress.step < self.max_steps and not stopping:
            for batches in self.epoch_from_here():
                self.unlogged.append(self.step(batches))
                self.progress.step += 1
                self.bar.update()
                stopping = self.is_to_stop(interrupt)
                self.watch_and_keep(stopping)
                if stopping or self.progress.step == self.max_steps:
                    break
            epoch, within = divmod(self.progress.step, self.steps_per_epoch)
            if within == 0 and epoch in self.config.sample_epochs:
                self.sample(epoch)
            if within == 0 and epoch in self.config.evaluate_epochs:
                self.evaluate(epoch)
        self.bar.close()

    def is_to_stop(self, interrupt: Interrupt) -> bool:
        """Whether to stop after this step, the same on every process; several of them ask one another now and then."""
        if interrupt.alone:
            return interrupt.signum is not None
        return self.progress.step % self.config.logging_steps == 0 and interrupt.agreed()

    def epoch_from_here(self) -> Iterator[list[tuple[int, dict]]]:
        """Yield the rest of the current epoch, an optimizer step's batches at a time, each with its global index."""
        accumulation = self.config.gradient_accumulation_steps
        epoch, within = divmod(self.progress.step, self.steps_per_epoch)
        self.sampler.epoch = epoch
        skipped = within * accumulation
        loader = self.accelerator.skip_first_batches(self.loader, skipped) if skipped else self.loader
        first, pending = epoch * len(self.loader) + skipped, []
        for index, batch in enumerate(loader, start=first):
            pending.append((index, batch))
            if len(pending) == accumulation:
                yield pending
                pending = []
        if pending:
            yield pending

    def step(self, batches: list[tuple[int, dict]]) -> dict:
        """One optimizer step; returns its loss, rate and gradient norm, still on the device."""
        losses, grad_norm = [], None
        for index, batch in batches:
            with self.accelerator.accumulate(self.unet):
                loss = self.loss(index, batch["pixel_values"], batch["class_labels"])
                losses.append(loss.detach())
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.config.max_grad_norm:
                    grad_norm = self.accelerator.clip_grad_norm_(
                        self.unet.parameters(), self.config.max_grad_norm
                    )
                self.optimizer.step()
                self.optimizer.zero_grad()
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        self.lr_scheduler.step()
        self.ema.step(self.raw_unet.parameters())
        return {"loss": torch.stack(losses).mean(), "learning_rate": learning_rate, "grad_norm": grad_norm}

    def loss(self, batch_index: int, x_0: torch.Tensor, class_labels: torch.Tensor) -> torch.Tensor:
        """Mean loss of this process's part of a batch: ``(B, 1, H, W)``, ``(B,)`` -> ``()``."""
        config, accelerator = self.config, self.accelerator
        torch.manual_seed(derive_seed(config.seed, DROPOUT, batch_index, accelerator.process_index))
        draws = draw_for_batch(config, batch_index, x_0, accelerator.process_index, accelerator.num_processes)
        if config.random_flip:
            keep_side = [self.scans.class_names.index(name) for name in config.no_flip_classes]
            flip = draws.flip & ~torch.isin(class_labels, class_labels.new_tensor(keep_side))
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        null_class = self.raw_unet.config.num_class_embeds
        class_labels = class_labels.masked_fill(draws.drop_class, null_class) if null_class else None

        x_t = self.noise_scheduler.add_noise(x_0, draws.noise, draws.timesteps)
        prediction = self.unet(x_t, draws.timesteps, class_labels=class_labels).sample
        target = training_target(self.noise_scheduler, x_0, draws.noise, draws.timesteps)
        loss = loss_per_sample(prediction.float(), target, config.loss_type, config.huber_delta)  # (B,)
        if config.snr_gamma:
            loss = loss * min_snr_weights(self.noise_scheduler, draws.timesteps, config.snr_gamma)
        return loss.mean()

    def watch_and_keep(self, stopping: bool) -> None:
        """Log, validate and checkpoint where the step count asks for it, and at the end; just keep when stopping."""
        config, step = self.config, self.progress.step

        def due(interval: int) -> bool:
            return step == self.max_steps or step % interval == 0

        validating, keeping = due(config.validation_steps), stopping or due(config.checkpointing_steps)
        if due(config.logging_steps) or validating or keeping:
            self.log()
        if validating:
            self.validate()
        if keeping:
            save_checkpoint(self.accelerator, self.run_dir, step, config.checkpoints_total_limit)
            self.save_pipeline()
            if self.push and not stopping and step < self.max_steps:  # the end has a push of its own
                self.push.start(step)

    def log(self) -> None:
        """Bring the losses since the last time to ``metrics.jsonl``, the trackers and the progress bar."""
        losses = self.accelerator.reduce(torch.stack([row["loss"] for row in self.unlogged]), "mean").tolist()
        first = self.progress.step - len(losses) + 1
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        images_per_step = self.config.train_batch_size * self.config.gradient_accumulation_steps
        images_per_second = len(losses) * images_per_step * self.accelerator.num_processes / seconds
        rows = [
            {
                "step": step,
                "epoch": (step - 1) // self.steps_per_epoch,
                "loss": loss,
                "learning_rate": row["learning_rate"],
                "images_per_second": images_per_second,
                **({} if row["grad_norm"] is None else {"grad_norm": float(row["grad_norm"])}),
            }
            for step, (loss, row) in enumerate(zip(losses, self.unlogged, strict=True), start=first)
        ]
        self.unlogged = []
        if self.metrics:
            self.metrics.append(rows)
        self.accelerator.log(rows[-1], step=self.progress.step)
        self.bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", images_per_s=f"{images_per_second:.0f}")
        bad = next((row for row in rows if not math.isfinite(row["loss"])), None)
        if bad:
            raise InputError(
                f"the loss is {bad['loss']} at step {bad['step']}; resume from the last checkpoint with a lower "
                f"--learning_rate than {self.config.learning_rate}, or with --max_grad_norm 1."
            )

    def validate(self) -> None:
        """Held-out loss of raw and EMA weights, to ``metrics.jsonl``, the trackers and ``loss.png``."""
        arguments = (
            self.accelerator,
            self.raw_unet,
            self.noise_scheduler,
            self.scans.validation,
            self.config,
        )
        row = {"step": self.progress.step, "validation_loss": validation_loss(*arguments)}
        with averaged_weights(self.ema, self.raw_unet):
            row["validation_loss_ema"] = validation_loss(*arguments)
        self.accelerator.log(row, step=self.progress.step)
        if self.metrics:
            self.metrics.append([row])
            title = (
                f"{self.config.loss_type} loss, {self.config.prediction_type}, {self.config.resolution} px"
            )
            plot_loss(self.metrics.rows, self.run_dir / "loss.png", title)
            self.bar.write(
                f"step {row['step']}: held-out loss {row['validation_loss']:.4f}, EMA {row['validation_loss_ema']:.4f}"
            )
        self.since = time.perf_counter()  # so that images/s counts training alone

    def sample(self, epoch: int) -> None:
        """Grids of raw and EMA samples at the end of an epoch, from the same noise every time."""
        if self.accelerator.is_main_process:
            folder = self.run_dir / "samples"
            folder.mkdir(exist_ok=True)
            for weights in ("raw", "ema"):
                path = folder / f"epoch-{epoch:05d}-{weights}.png"
                with averaged_weights(self.ema, self.raw_unet) if weights == "ema" else nullcontext():
                    draw_grid(self.raw_unet, self.noise_scheduler, self.config, path)
        self.accelerator.wait_for_everyone()
        self.since = time.perf_counter()

    def evaluate(self, epoch: int) -> None:
        """Quality and copying of EMA samples at the end of an epoch."""
        if self.accelerator.is_main_process:
            self.epoch_evaluation = self.epoch_evaluation or EpochEvaluation(self)
            with averaged_weights(self.ema, self.raw_unet):
                self.epoch_evaluation.record(epoch)
        self.accelerator.wait_for_everyone()
        self.since = time.perf_counter()

    def save_pipeline(self) -> None:
        """Write ``pipeline/`` with the EMA weights, whole or not at all."""
        if self.accelerator.is_main_process:
            unfinished = self.run_dir / ".pipeline.unfinished"
            with averaged_weights(self.ema, self.raw_unet):
                MRIDDPMPipeline(self.raw_unet, self.noise_scheduler).save_pretrained(unfinished)
            replace_folder(unfinished, self.run_dir / "pipeline")
        self.accelerator.wait_for_everyone()
        self.since = time.perf_counter()
