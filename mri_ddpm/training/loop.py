"""The training loop: steps, and what is logged, kept and shown on the way."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm.auto import tqdm

from mri_ddpm.errors import SurgeError
from mri_ddpm.evaluation.during_training import TrainingEvaluator, is_evaluation
from mri_ddpm.evaluation.memorisation import VERDICT_RATE
from mri_ddpm.files import whole_folder, write_json
from mri_ddpm.hub import BackgroundPush
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline
from mri_ddpm.runs import LATEST, merged, save_adapter
from mri_ddpm.runs.metrics import Metrics
from mri_ddpm.training.checkpoints import load_checkpoint, save_checkpoint, set_rate, writing_together
from mri_ddpm.training.guard import LEAST_RATE_FACTOR, all_finite
from mri_ddpm.training.interrupt import Interrupt
from mri_ddpm.training.plots import plot_evaluation, plot_loss
from mri_ddpm.training.state import TrainingState
from mri_ddpm.training.step import rest_of_epoch, take_step
from mri_ddpm.training.validation import draw_grid, pipeline_of, validation_losses

EMA_LOSS = "validation_loss_ema"
PLOT_SECONDS = 20.0  # a plot takes a tenth of a second, and of hundreds of thousands of steps half a second


@dataclass
class TrainingLoop:
    """Acts on a training state until its last step; all its own is of the main process, except the last five."""

    state: TrainingState
    metrics: Metrics | None = None
    evaluator: TrainingEvaluator | None = None  # from the first of --evaluate_epochs on
    push: BackgroundPush | None = None  # only with --push_to_hub
    plotted: float = -math.inf  # when ``loss.png`` was made last, in seconds
    trouble: str | None = None  # what is wrong with the last steps, in words
    unlogged: list[dict] = field(default_factory=list)
    since: float = 0.0  # when the steps in ``unlogged`` began, in seconds
    bar: tqdm | None = None
    validations: list[dict] = field(default_factory=list)  # their rows in ``metrics.jsonl``, on every process

    @property
    def finished(self) -> bool:
        """Whether the last step is taken, or the validation loss has not fallen for as long as patience lasts."""
        return self.state.progress.step >= self.state.max_steps or self.patience_is_out

    @property
    def patience_is_out(self) -> bool:
        """Whether the lowest of the validation losses is ``--early_stopping_patience`` validations ago."""
        losses, patience = (
            [row[EMA_LOSS] for row in self.validations],
            self.state.config.early_stopping_patience,
        )
        return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def train(self, interrupt: Interrupt) -> None:
        """Take the steps that are left, validating, keeping and showing on the way."""
        self.bar = tqdm(
            total=self.state.max_steps, initial=self.state.progress.step, desc="training", unit="step",
            disable=not self.state.accelerator.is_main_process, dynamic_ncols=True, leave=None,
        )  # fmt: skip
        with self.bar:
            self.state.unet.train()
            self.since = time.perf_counter()
            if self.state.base and not self.state.progress.step:
                self.validate()  # what the base is worth on these scans
            self.show()  # of epoch 0, or what a kill between a checkpoint and this left out
            stopping = False
            while not self.finished and not stopping:
                for batches in rest_of_epoch(self.state):
                    self.unlogged.append(take_step(self.state, batches))
                    self.state.progress.step += 1
                    self.bar.update()
                    stopping = self.is_to_stop(interrupt)
                    self.watch_and_keep(stopping)
                    if self.trouble:
                        self.go_back()
                        break
                    if stopping or self.finished:
                        break
                if not stopping:
                    self.show()
            if self.patience_is_out:
                best = min(self.validations, key=lambda row: row[EMA_LOSS])
                self.bar.write(
                    f"step {self.state.progress.step}: the validation loss of the EMA weights was lowest at step {best['step']}, "
                    f"{best[EMA_LOSS]:.4f}, and patience is out: this ends the training"
                )

    def is_to_stop(self, interrupt: Interrupt) -> bool:
        """Whether to stop after this step, the same on every process; several of them ask one another now and then."""
        if interrupt.alone:
            return interrupt.signum is not None
        return self.state.progress.step % self.state.config.logging_steps == 0 and interrupt.agreed()

    def watch_and_keep(self, stopping: bool) -> None:
        """Log, validate and checkpoint where the step count asks for it, and at the end; just keep when stopping."""
        config, step = self.state.config, self.state.progress.step

        def due(interval: int) -> bool:
            return step == self.state.max_steps or step % interval == 0

        validating, keeping = due(config.validation_steps), stopping or due(config.checkpointing_steps)
        if due(config.logging_steps) or validating or keeping:
            self.log()
        weights = [*self.state.raw_unet.parameters(), *self.state.ema.shadow_params]
        if keeping and not self.trouble and not all_finite(weights):
            self.trouble = "the weights are no longer finite"
        if self.trouble:
            return
        if validating:
            self.validate()
        if keeping or self.finished:
            with self.writing():
                if self.metrics:
                    self.metrics.sync()
            save_checkpoint(self.state)
            self.save_pipeline()
            if self.push and not stopping and not self.finished:  # the end has a push of its own
                self.push.start(step, self.pipeline())

    def log(self) -> None:
        """Bring the losses since the last time to ``metrics.jsonl``, the trackers and the progress bar."""
        rates = [row.pop("learning_rate") for row in self.unlogged]
        on_device = {key: torch.stack([row[key] for row in self.unlogged]) for key in self.unlogged[0]}
        on_device["loss"] = self.state.accelerator.reduce(on_device["loss"], "mean")
        values = {key: tensor.tolist() for key, tensor in on_device.items()}  # the one wait for the device
        losses, skipped = values["loss"], values.get("skipped", [False] * len(rates))
        first = self.state.progress.step - len(losses) + 1
        seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
        images_per_step = self.state.config.train_batch_size * self.state.config.gradient_accumulation_steps
        images_per_second = len(losses) * images_per_step * self.state.accelerator.num_processes / seconds
        rows = [
            {
                "step": step,
                "epoch": (step - 1) // self.state.steps_per_epoch,
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
        self.state.accelerator.log(rows[-1], step=self.state.progress.step)
        self.bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", images_per_s=f"{images_per_second:.0f}")
        self.trouble = self.state.guard.trouble(losses, skipped)

    def go_back(self) -> None:
        """After a surge: back to the last checkpoint, from which half of the learning rate leads on.

        Raises:
            SurgeError: when there is no checkpoint yet, when that has been done too often, or without the guard.
        """
        trouble, surged_at, self.trouble = self.trouble, self.state.progress.step, None
        rate_factor = self.state.guard.rate_factor / 2
        checkpoint = self.state.folder.find_checkpoint(LATEST)
        if not (self.state.config.surge_guard and checkpoint) or rate_factor < LEAST_RATE_FACTOR:
            raise SurgeError(
                f"{trouble} at step {surged_at}; resume from the last checkpoint, or start again, with a lower "
                f"--learning_rate than {self.state.config.learning_rate * self.state.guard.rate_factor:g}, or with --max_grad_norm 1."
            )
        load_checkpoint(self.state, checkpoint)
        self.state.guard.rate_factor = rate_factor
        set_rate(self.state)
        step = self.state.progress.step
        self.validations = [row for row in self.validations if row["step"] <= step]
        row = {"step": step, "surge_at_step": surged_at, "learning_rate_factor": rate_factor}
        with self.writing():
            if self.metrics:
                self.metrics.rewind(step)
                if row not in self.metrics.rows:  # it is there when a resumed run meets its surge again
                    self.metrics.append([row])
        self.state.accelerator.log(row, step=surged_at)
        self.bar.write(
            f"step {surged_at}: {trouble}; back to step {step} with {rate_factor:g} of the learning rate"
        )
        self.bar.n = step
        self.bar.refresh()
        self.since = time.perf_counter()

    def validate(self) -> None:
        """Validation loss of raw and EMA weights, to ``metrics.jsonl``, the trackers and ``loss.png``."""
        arguments = (
            self.state.accelerator,
            self.state.raw_unet,
            self.state.noise_scheduler,
            self.state.scans.validation,
            self.state.config,
        )
        row = {"step": self.state.progress.step}
        row["validation_loss"] = validation_losses(*arguments).mean().item()
        with self.state.averaged_weights:
            losses = validation_losses(*arguments).cpu()  # (N,)
        row[EMA_LOSS] = losses.mean().item()
        labels = self.state.scans.validation.class_labels  # (N,)
        for label in np.unique(labels) if self.state.scans.class_names else ():
            row[f"{EMA_LOSS} {self.state.scans.class_names[label]}"] = losses[labels == label].mean().item()
        self.validations.append(row)
        self.state.accelerator.log(row, step=self.state.progress.step)
        with self.writing():
            if self.metrics:
                self.metrics.append([row])
                self.plot()
            if (
                self.metrics
                and self.state.config.keep_best
                and row[EMA_LOSS] <= min(r[EMA_LOSS] for r in self.validations)
            ):
                self.save_best(row)
        if self.metrics:
            self.bar.write(
                f"step {row['step']}: validation loss {row['validation_loss']:.4f}, EMA {row[EMA_LOSS]:.4f}"
            )
        self.since = time.perf_counter()  # so that images/s counts training alone

    def save_best(self, row: dict) -> None:
        """Write ``best/`` with the EMA weights and the row of their validation, whole or not at all; on the main process."""
        folder = self.state.folder
        with whole_folder(folder.best) as unfinished, self.state.averaged_weights:
            self.pipeline().save_pretrained(unfinished)
            write_json(unfinished / folder.best_validation.name, row)

    def plot(self) -> None:
        """Make ``loss.png``: at the end, and between not so often that it costs more than the steps."""
        if time.monotonic() - self.plotted < PLOT_SECONDS and not self.finished:
            return
        names = ("loss_type", "prediction_type", "resolution")
        title = "{} loss, {}, {} px".format(*(getattr(self.state.config, name) for name in names))
        plot_loss(self.metrics.rows, self.state.folder.loss_plot, title)
        self.plotted = time.monotonic()

    def show(self) -> None:
        """Grids and measurements where an epoch ends that has been chosen for them."""
        epoch, within = divmod(self.state.progress.step, self.state.steps_per_epoch)
        if within == 0 and epoch in self.state.config.sample_epochs:
            self.sample(epoch)
        if within == 0 and epoch in self.state.config.evaluate_epochs:
            self.evaluate(epoch)

    def sample(self, epoch: int) -> None:
        """Grids of raw and EMA samples at the end of an epoch, from the same noise every time."""
        with self.writing():
            if self.state.accelerator.is_main_process:
                for weights in ("raw", "ema"):
                    path = self.state.folder.epoch_grid(epoch, weights)
                    path.parent.mkdir(exist_ok=True)
                    with self.state.averaged_weights if weights == "ema" else nullcontext():
                        known = self.state.config, path, self.state.scans.validation
                        draw_grid(self.state.raw_unet, self.state.noise_scheduler, *known)
        self.since = time.perf_counter()

    def evaluate(self, epoch: int) -> None:
        """Quality and copying of EMA samples at the end of an epoch; no second time when resuming there."""
        with self.writing():
            if self.metrics and not any(
                is_evaluation(row) and row["epoch"] == epoch for row in self.metrics.rows
            ):
                self.record_evaluation(epoch)
        self.since = time.perf_counter()

    def record_evaluation(self, epoch: int) -> None:
        """Bring an evaluation's numbers to ``metrics.jsonl``, the trackers and ``evaluation.png``; on the main process."""
        state = self.state
        self.evaluator = self.evaluator or TrainingEvaluator(
            state.scans,
            num_images=state.config.evaluate_images,
            num_inference_steps=state.config.num_inference_steps,
            batch_size=state.config.train_batch_size,
            seed=state.config.seed,
            device=str(state.accelerator.device),
            cache_dir=state.config.cache_dir,
            say=self.bar.write,
        )
        with state.averaged_weights, pipeline_of(state.raw_unet, state.noise_scheduler) as pipeline:
            found = self.evaluator(pipeline)
        row = {"step": state.progress.step, "epoch": epoch, **found}
        self.metrics.append([row])
        plot_evaluation(self.metrics.rows, state.folder.evaluation_plot, expected_share=VERDICT_RATE)
        values = {name: row[name] for name in self.evaluator.metrics if name in row}
        state.accelerator.log(values, step=row["step"])
        shown = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.bar.write(f"epoch {epoch}: {shown or 'too few scans to measure anything but detail'}")
        if words := repeats_scans(found):
            self.bar.write(f"warning: epoch {epoch}: {words}")

    def pipeline(self) -> MRIDDPMPipeline:
        """The network with the weights that it has now, an adapter merged into them."""
        return MRIDDPMPipeline(merged(self.state.raw_unet), self.state.noise_scheduler)

    def save_pipeline(self) -> None:
        """Write ``pipeline/`` with the EMA weights, and ``adapter/`` where one is trained, each whole or not at all."""
        state = self.state
        with self.writing():
            if state.accelerator.is_main_process:
                with whole_folder(state.folder.pipeline) as unfinished, state.averaged_weights:
                    self.pipeline().save_pretrained(unfinished)
                if state.config.train_only == "lora":
                    with state.averaged_weights:
                        save_adapter(state.raw_unet, state.base.as_json(), state.folder.adapter)
        self.since = time.perf_counter()

    def writing(self) -> AbstractContextManager:
        """For what is written to the run folder: all processes wait for it, and end together if it fails."""
        return writing_together(self.state.accelerator, self.state.folder)


def repeats_scans(found: dict) -> str | None:
    """Say that an evaluation took more samples for copies than of real scans it would, for certain; ``None`` where it did not."""
    if found.get("flagged_share_interval", [0.0])[0] <= VERDICT_RATE:
        return None
    return (
        f"{found['flagged_share']:.0%} of the samples are taken for copies of training scans, where of scans never trained on "
        f"{VERDICT_RATE:.0%} would be: the model repeats what it has seen; end the training earlier, or take more scans"
    )
