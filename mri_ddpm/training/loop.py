"""The training loop; one optimizer step is ``TrainingRun.step``."""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
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
from mri_ddpm.diffusion import (
    lognormal_timestep_weights,
    make_noise_scheduler,
    min_snr_weights,
    training_loss,
)
from mri_ddpm.errors import SurgeError
from mri_ddpm.files import whole_folder
from mri_ddpm.hub import BackgroundPush
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.training import preparation
from mri_ddpm.training.checkpoints import (
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    set_rate,
    writing_together,
)
from mri_ddpm.training.epoch_evaluation import EpochEvaluation
from mri_ddpm.training.guard import LEAST_RATE_FACTOR, Guard, all_finite
from mri_ddpm.training.interrupt import Interrupt
from mri_ddpm.training.moments import keep_moments
from mri_ddpm.training.randomness import DROPOUT, EpochSampler, derive_seed, draw_for_batch
from mri_ddpm.training.records import Metrics, plot_loss
from mri_ddpm.training.validation import averaged_weights, draw_grid, validation_loss

PLOT_SECONDS = 20.0  # a plot takes a tenth of a second, and of hundreds of thousands of steps half a second


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
    guard: Guard
    progress: Progress
    steps_per_epoch: int
    max_steps: int
    timestep_weights: torch.Tensor | None = None  # how often each is trained; all alike when None
    metrics: Metrics | None = None  # on the main process only
    epoch_evaluation: EpochEvaluation | None = None  # there too, from the first of --evaluate_epochs on
    push: BackgroundPush | None = None  # there too, and only with --push_to_hub
    trouble: str | None = None  # what is wrong with the last steps, in words
    unlogged: list[dict] = field(default_factory=list)
    since: float = 0.0  # when the steps in ``unlogged`` began, in seconds
    bar: tqdm | None = None
    plotted: float = -math.inf  # when ``loss.png`` was drawn last, in seconds

    @classmethod
    def prepare(
        cls, accelerator: Accelerator, config: TrainingConfig, scans: Scans, run_dir: Path
    ) -> "TrainingRun":
        """Build the network, the optimizer and the rest for this process."""
        sampler = EpochSampler(len(scans.train), config.seed)
        held = preparation.hold_if_small(accelerator, scans)
        loader = DataLoader(
            scans.train,
            batch_size=config.train_batch_size,
            sampler=sampler,
            drop_last=True,
            num_workers=0 if held else config.dataloader_num_workers,
            pin_memory=accelerator.device.type == "cuda" and not held,
        )
        raw_unet = preparation.build_unet(config, scans.class_names).to(memory_format=torch.channels_last)
        if config.start_from_moments:
            keep_moments(raw_unet, scans, config)
        optimizer = preparation.build_optimizer(config, raw_unet)
        unet, optimizer, loader = accelerator.prepare(raw_unet, optimizer, loader)
        # Without accelerate's autocast, which losses ask for: samples are drawn in float32, as by the pipeline
        accelerator.unwrap_model(unet, keep_fp32_wrapper=False)
        steps_per_epoch = math.ceil(len(loader) / config.gradient_accumulation_steps)
        max_steps = config.max_train_steps or config.num_train_epochs * steps_per_epoch
        preparation.check_epochs(config, max_steps, steps_per_epoch)

        # Not prepared by accelerate, which would step it once a process: it counts optimizer steps.
        lr_scheduler = get_scheduler(
            "constant_with_warmup" if config.lr_scheduler == "constant" else config.lr_scheduler,
            optimizer.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=max_steps,
        )
        ema = EMAModel(
            raw_unet.parameters(), decay=config.ema_max_decay, use_ema_warmup=True, power=config.ema_power
        )
        progress = Progress()
        parameters, fp16 = list(raw_unet.parameters()), accelerator.scaler is not None
        guard = Guard(optimizer.optimizer, parameters, config.surge_guard, fp16)
        accelerator.register_for_checkpointing(progress, ema, guard)  # the rate follows from the step
        noise_scheduler = make_noise_scheduler(
            config.num_train_timesteps,
            config.beta_start,
            config.beta_end,
            config.prediction_type,
            config.rescale_betas_zero_snr,
        )
        timestep_weights = None
        if config.timestep_sampling == "lognormal":
            timestep_weights = lognormal_timestep_weights(
                noise_scheduler, config.log_sigma_mean, config.log_sigma_std
            ).to(accelerator.device)
        return cls(
            accelerator, config, run_dir, scans, sampler, loader, unet, raw_unet, noise_scheduler, optimizer,
            lr_scheduler, ema, guard, progress, steps_per_epoch, max_steps, timestep_weights,
        )  # fmt: skip

    def train(self, interrupt: Interrupt) -> None:
        """Take the steps that are left, validating, keeping and showing on the way."""
        self.bar = tqdm(
            total=self.max_steps, initial=self.progress.step, desc="training", unit="step",
            disable=not self.accelerator.is_main_process, dynamic_ncols=True, leave=None,
        )  # fmt: skip
        with self.bar:
            self.unet.train()
            self.since = time.perf_counter()
            self.show()  # of epoch 0, or what a kill between a checkpoint and this left out
            stopping = False
            while self.progress.step < self.max_steps and not stopping:
                for batches in self.epoch_from_here():
                    self.unlogged.append(self.step(batches))
                    self.progress.step += 1
                    self.bar.update()
                    stopping = self.is_to_stop(interrupt)
                    self.watch_and_keep(stopping)
                    if self.trouble:
                        self.go_back()
                        break
                    if stopping or self.progress.step == self.max_steps:
                        break
                if not stopping:
                    self.show()

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
        pending = []
        for numbered in enumerate(loader, start=epoch * len(self.loader) + skipped):
            pending.append(numbered)
            if len(pending) == accumulation:
                yield pending
                pending = []
        if pending:
            yield pending

    def step(self, batches: list[tuple[int, dict]]) -> dict:
        """One optimizer step; returns its loss, rate and gradient norm, still on the device."""
        losses = []
        for index, batch in batches:
            # Not accelerate's accumulate(): of an epoch's last batches, gathered here, each would become a step of its own
            is_last = index == batches[-1][0]
            with nullcontext() if is_last else self.accelerator.no_sync(self.unet):
                loss = self.loss(index, batch)
                losses.append(loss.detach())
                self.accelerator.backward(loss / len(batches))
        max_norm = self.config.max_grad_norm or math.inf
        grad_norm = self.accelerator.clip_grad_norm_(self.unet.parameters(), max_norm)
        verdict = self.guard.judge(grad_norm, max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        self.lr_scheduler.step()
        self.ema.step(self.raw_unet.parameters())
        loss = torch.stack(losses).mean()
        return {"loss": loss, "learning_rate": learning_rate, "grad_norm": grad_norm, **verdict}

    def loss(self, batch_index: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Mean loss ``()`` of this process's part of a batch: ``pixel_values (B, C, H, W)``, ``class_labels (B,)``."""
        x_0 = batch["pixel_values"]
        config, accelerator = self.config, self.accelerator
        torch.manual_seed(derive_seed(config.seed, DROPOUT, batch_index, accelerator.process_index))
        draws = draw_for_batch(
            config,
            batch_index,
            x_0,
            accelerator.process_index,
            accelerator.num_processes,
            self.timestep_weights,
        )
        if config.random_flip:
            keep_side = [self.scans.class_names.index(name) for name in config.no_flip_classes]
            flip = draws.flip & ~torch.isin(
                batch["class_labels"], batch["class_labels"].new_tensor(keep_side)
            )
            x_0 = torch.where(flip[:, None, None, None], x_0.flip(-1), x_0)
        conditioning = self.raw_unet.drop_conditioning(self.raw_unet.conditioning_of(batch), draws.drop_class)
        kind = {"loss_type": config.loss_type, "huber_delta": config.huber_delta}
        with accelerator.autocast():
            drawn = (x_0, draws.noise, draws.timesteps)
            loss = training_loss(
                self.unet, self.noise_scheduler, *drawn, conditioning, **kind
            ).per_sample  # (B,)
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
        weights = [*self.raw_unet.parameters(), *self.ema.shadow_params]
        if keeping and not self.trouble and not all_finite(weights):
            self.trouble = "the weights are no longer finite"
        if self.trouble:
            return
        if validating:
            self.validate()
        if keeping:
            with self.writing():
                if self.metrics:
                    self.metrics.sync()
            save_checkpoint(self.accelerator, self.run_dir, step, config.checkpoints_total_limit)
            self.save_pipeline()
            if self.push and not stopping and step < self.max_steps:  # the end has a push of its own
                self.push.start(step, MRIDDPMPipeline(self.raw_unet, self.noise_scheduler))

    def log(self) -> None:
        """Bring the losses since the last time to ``metrics.jsonl``, the trackers and the progress bar."""
        rates = [row.pop("learning_rate") for row in self.unlogged]
        on_device = {key: torch.stack([row[key] for row in self.unlogged]) for key in self.unlogged[0]}
        on_device["loss"] = self.accelerator.reduce(on_device["loss"], "mean")
        values = {key: tensor.tolist() for key, tensor in on_device.items()}  # the one wait for the device
        losses, skipped = values["loss"], values.get("skipped", [False] * len(rates))
        first = self.progress.step - len(losses) + 1
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        images_per_step = self.config.train_batch_size * self.config.gradient_accumulation_steps
        images_per_second = len(losses) * images_per_step * self.accelerator.num_processes / seconds
        rows = [
            {
                "step": step,
                "epoch": (step - 1) // self.steps_per_epoch,
                "loss": loss,
                "learning_rate": rates[i],
                "images_per_second": images_per_second,
                "grad_norm": values["grad_norm"][i],
                **{name: 1 for name in ("clipped", "skipped") if name in values and values[name][i]},
            }
            for i, (step, loss) in enumerate(enumerate(losses, start=first))
        ]
        self.unlogged = []
        with self.writing():
            if self.metrics:
                self.metrics.append(rows)
        self.accelerator.log(rows[-1], step=self.progress.step)
        self.bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", images_per_s=f"{images_per_second:.0f}")
        self.trouble = self.guard.trouble(losses, skipped)

    def go_back(self) -> None:
        """After a surge: back to the last checkpoint, from which half of the learning rate leads on.

        Raises:
            SurgeError: when there is no checkpoint yet, when that has been done too often, or without the guard.
        """
        trouble, surged_at, self.trouble = self.trouble, self.progress.step, None
        rate_factor = self.guard.rate_factor / 2
        checkpoint = find_checkpoint(self.run_dir, "latest")
        if not (self.config.surge_guard and checkpoint) or rate_factor < LEAST_RATE_FACTOR:
            raise SurgeError(
                f"{trouble} at step {surged_at}; resume from the last checkpoint, or start again, with a lower "
                f"--learning_rate than {self.config.learning_rate * self.guard.rate_factor:g}, or with --max_grad_norm 1."
            )
        load_checkpoint(self, checkpoint)
        self.guard.rate_factor = rate_factor
        set_rate(self)
        step = self.progress.step
        row = {"step": step, "surge_at_step": surged_at, "learning_rate_factor": rate_factor}
        with self.writing():
            if self.metrics:
                self.metrics.rewind(step)
                if row not in self.metrics.rows:  # it is there when a resumed run meets its surge again
                    self.metrics.append([row])
        self.accelerator.log(row, step=surged_at)
        self.bar.write(
            f"step {surged_at}: {trouble}; back to step {step} with {rate_factor:g} of the learning rate"
        )
        self.bar.n = step
        self.bar.refresh()
        self.since = time.perf_counter()

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
        with self.writing():
            if self.metrics:
                self.metrics.append([row])
                self.plot()
        if self.metrics:
            self.bar.write(
                f"step {row['step']}: held-out loss {row['validation_loss']:.4f}, EMA {row['validation_loss_ema']:.4f}"
            )
        self.since = time.perf_counter()  # so that images/s counts training alone

    def plot(self) -> None:
        """Draw ``loss.png``: at the end, and between not so often that it costs more than the steps."""
        if time.monotonic() - self.plotted < PLOT_SECONDS and self.progress.step < self.max_steps:
            return
        names = ("loss_type", "prediction_type", "resolution")
        title = "{} loss, {}, {} px".format(*(getattr(self.config, name) for name in names))
        plot_loss(self.metrics.rows, self.run_dir / "loss.png", title)
        self.plotted = time.monotonic()

    def show(self) -> None:
        """Grids and measurements where an epoch ends that has been chosen for them."""
        epoch, within = divmod(self.progress.step, self.steps_per_epoch)
        if within == 0 and epoch in self.config.sample_epochs:
            self.sample(epoch)
        if within == 0 and epoch in self.config.evaluate_epochs:
            self.evaluate(epoch)

    def sample(self, epoch: int) -> None:
        """Grids of raw and EMA samples at the end of an epoch, from the same noise every time."""
        with self.writing():
            if self.accelerator.is_main_process:
                folder = self.run_dir / "samples"
                folder.mkdir(exist_ok=True)
                for weights in ("raw", "ema"):
                    path = folder / f"epoch-{epoch:05d}-{weights}.png"
                    with averaged_weights(self.ema, self.raw_unet) if weights == "ema" else nullcontext():
                        draw_grid(self.raw_unet, self.noise_scheduler, self.config, path)
        self.since = time.perf_counter()

    def evaluate(self, epoch: int) -> None:
        """Quality and copying of EMA samples at the end of an epoch; no second time when resuming there."""
        with self.writing():
            if self.metrics and not any(
                "detail_ratio" in row and row["epoch"] == epoch for row in self.metrics.rows
            ):
                self.epoch_evaluation = self.epoch_evaluation or EpochEvaluation(self)
                with averaged_weights(self.ema, self.raw_unet):
                    self.epoch_evaluation.record(epoch)
        self.since = time.perf_counter()

    def save_pipeline(self) -> None:
        """Write ``pipeline/`` with the EMA weights, whole or not at all."""
        with self.writing():
            if self.accelerator.is_main_process:
                with (
                    whole_folder(self.run_dir / "pipeline") as unfinished,
                    averaged_weights(self.ema, self.raw_unet),
                ):
                    MRIDDPMPipeline(self.raw_unet, self.noise_scheduler).save_pretrained(unfinished)
        self.since = time.perf_counter()

    def writing(self) -> AbstractContextManager:
        """For what is written to the run folder: all processes wait for it, and end together if it fails."""
        return writing_together(self.accelerator, self.run_dir)
