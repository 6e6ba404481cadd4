"""A loaded model, and what a visitor can ask of it. Nothing here knows of a page.

N: images, H, W: the model's size.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mri_ddpm.data import to_unit_range
from mri_ddpm.data.intensity import Scale, scale_of_manifest
from mri_ddpm.demo.streaming import Progress, Worker
from mri_ddpm.pipelines.pipeline_mri_ddpm import (
    MRIDDPMBasePipeline,
    MRIDDPMImg2ImgPipeline,
    MRIDDPMInpaintPipeline,
    MRIDDPMPipeline,
)
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling import SamplingOptions
from mri_ddpm.sampling.batches import sample
from mri_ddpm.sampling.formats import geometry_of_manifest
from mri_ddpm.sampling.provenance import provenance, scheduler_name
from mri_ddpm.sampling.volumes import settings_of

BATCH_SIZE = 4  # images at once: few enough to see the first ones soon
SECONDS_BETWEEN = 0.2  # from one progress to the next
MOST_FRAMES = 101  # that are kept of the way from noise to image


@dataclass(frozen=True)
class Samples:
    """Images that were sampled, in the order of their numbers; the last may still be missing.

    labels: a class for each of all images, or ``None``.
    num_images: how many were asked for.
    options: how they are sampled.
    facts: text for all of them.
    channels: by name ("" without one), ``(N, 1, H, W)``: float32 in [0, 1], or a mask's values of labels.
    mask_labels: of those channels that are masks.
    """

    labels: list[str] | None
    num_images: int
    options: SamplingOptions
    facts: dict
    channels: dict[str, torch.Tensor]
    mask_labels: dict[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(next(iter(self.channels.values()), ()))


@dataclass(frozen=True)
class Way:
    """How one image arises: for each of K moments what is denoised, and the estimate of the image. The last is the image.

    timesteps: ``(K,)``, from the training's last down to 0, which is the image.
    x_t, x_0: uint8 ``(K, H, C * W)``, the channels side by side.
    """

    timesteps: list[int]
    x_t: np.ndarray
    x_0: np.ndarray


class Model:
    """A model by the name that a user gives, and its papers.

    Args:
        name: run folder, saved pipeline or Hub repository.
        device: where it computes.

    Raises:
        InputError: when there is no such model, or no such device.
    """

    def __init__(self, name: str, device: str):
        self.name = name
        self.pipeline: MRIDDPMPipeline = load_pipeline(name, device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.record = load_record(name)
        self.facts = provenance(self.pipeline)
        self.worker = Worker()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that can be asked for; empty for a model without."""
        return self.pipeline.class_names

    @property
    def side(self) -> int:
        """Pixels a side of an image."""
        return self.pipeline.unet.config.sample_size

    @property
    def timesteps(self) -> int:
        """Steps of the whole chain."""
        return self.pipeline.scheduler.config.num_train_timesteps

    @property
    def can_be_guided(self) -> bool:
        """Whether it knows how an image without its class, or without its condition, would be denoised."""
        config = self.pipeline.unet.config
        by_class = config.num_class_embeds and config.get("null_class", True)
        return bool(by_class if self.class_names else self.can_be_guided_by_condition)

    @property
    def can_be_guided_by_condition(self) -> bool:
        """Whether it knows how an image without its condition would be denoised."""
        return bool(self.pipeline.condition_names) and self.pipeline.unet.config.get("null_condition", True)

    @property
    def guided_by(self) -> str:
        """What an image follows more closely with more guidance, in words."""
        return " and ".join(
            ["its class"] * bool(self.class_names) + ["what is put in"] * self.can_be_guided_by_condition
        )

    @property
    def draws_one_channel(self) -> bool:
        """Whether a scan can be changed."""
        return self.contrasts == [*(self.pipeline.channel_names or [""])] and len(self.contrasts) == 1

    @property
    def contrasts(self) -> list[str]:
        """The channels that are no masks, by the names that ``Samples`` has; those are compared with training scans."""
        return [name for name in self.pipeline.channel_names or [""] if name not in self.pipeline.mask_labels]

    @cached_property
    def geometry(self) -> dict:
        """``spacing_mm`` and ``plane``, for files that have fields for them."""
        return geometry_of_manifest(self.record.manifest)

    @cached_property
    def scale(self) -> Scale | None:
        """What is black and white in files that do not say it."""
        return scale_of_manifest(self.record.manifest)

    @property
    def fit(self) -> str:
        """How scans that are not square were made so."""
        return settings_of(self.record.manifest).fit

    def labels(self, class_label: str | None, num_images: int) -> list[str] | None:
        """A class for each image: that one, or all in turn as ``mri-ddpm sample`` takes them."""
        names = [class_label] if class_label else self.class_names
        return [names[i % len(names)] for i in range(num_images)] if names else None

    def sample(
        self, labels: list[str] | None, num_images: int, options: SamplingOptions
    ) -> Iterator[Progress | Samples]:
        """Sample, in batches of ``BATCH_SIZE``; what ``options.edit`` gives decides which pipeline does.

        Yields:
            Progress some times a second, and all samples so far after each batch.

        Raises:
            InputError: for what cannot be sampled, before the first step.
        """

        def work(tell: Callable) -> None:
            pipeline = self.fresh_pipeline(options)
            options.prepare(pipeline, num_images, labels[0] if labels else None)
            facts = {
                **self.facts,
                "scheduler": scheduler_name(pipeline.scheduler),
                **options.facts(pipeline),
            }
            parts: list[dict[str, torch.Tensor]] = []
            begun, starts = time.monotonic(), range(0, num_images, BATCH_SIZE)
            for batch, start in enumerate(starts):
                numbers = range(start, min(start + BATCH_SIZE, num_images))
                pipeline.progress_bar = steps_that_tell(tell, begun, batch, len(starts), start, num_images)
                of_batch = labels[numbers.start : numbers.stop] if labels else None
                output = sample(pipeline, of_batch, numbers, options, output_type="pt")
                parts.append({name: images.cpu() for name, images in output.by_channel.items()})
                channels = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
                tell(Samples(labels, num_images, options, facts, channels, pipeline.mask_labels))

        return self.worker.stream(work)

    def watch(self, label: str | None, options: SamplingOptions) -> Iterator[Progress | Way]:
        """Sample one image, and keep the way to it; yields and raises as ``sample`` does, but a ``Way`` at the end."""

        def work(tell: Callable) -> None:
            pipeline = self.fresh_pipeline(options)
            options.prepare(pipeline, 1, label)
            pipeline.progress_bar = steps_that_tell(tell, time.monotonic(), 0, 1, 0, 1)
            labels = [label] if label else None
            output = sample(pipeline, labels, range(1), options, output_type="pt", output_trajectory=True)
            moments = np.unique(
                np.linspace(0, len(output.timesteps) - 1, MOST_FRAMES - 1).round().astype(int)
            )
            x_t, x_0 = (levels(pixels[moments, 0]) for pixels in (output.x_t, output.x_0))
            timesteps = [round(float(output.timesteps[i])) + 1 for i in moments]
            tell(Way([*timesteps, 0], np.concatenate([x_t, x_0[-1:]]), np.concatenate([x_0, x_0[-1:]])))

        return self.worker.stream(work)

    def fresh_pipeline(self, options: SamplingOptions) -> MRIDDPMBasePipeline:
        """The pipeline for what is given, with the same network and a scheduler of its own, so that no request sees another's."""
        pipeline_class = MRIDDPMPipeline
        if "image" in options.edit:
            pipeline_class = (
                MRIDDPMInpaintPipeline if "mask_image" in options.edit else MRIDDPMImg2ImgPipeline
            )
        scheduler = self.pipeline.scheduler
        fresh = type(scheduler).from_config(scheduler.config)
        return pipeline_class(self.pipeline.unet, fresh)


def steps_that_tell(
    tell: Callable, begun: float, batch: int, batches: int, images: int, num_images: int
) -> Callable[[Sequence], Iterator]:
    """A progress bar for a pipeline: it tells how far one of several equal batches is, and ends the chain when nobody listens."""

    def steps(calls: Sequence) -> Iterator:
        last = -SECONDS_BETWEEN
        for step, call in enumerate(calls):
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN:
                last = now
                tell(Progress(batch * len(calls) + step, batches * len(calls), images, num_images, begun))
            yield call

    return steps


def levels(pixels: torch.Tensor) -> np.ndarray:
    """Images ``(K, C, H, W)`` in [-1, 1], and a little beyond, as uint8 ``(K, H, C * W)``."""
    unit = to_unit_range(pixels.float()).clamp(0, 1).numpy()
    beside = np.concatenate(np.moveaxis(unit, 1, 0), axis=-1)  # (K, H, C * W)
    return (beside * 255).round().astype(np.uint8)
