"""The options of sampling, as one object."""

from dataclasses import dataclass, field
from hashlib import sha256

import numpy as np

from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline
from mri_ddpm.sampling.schedulers import set_scheduler

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingOptions:
    """How images are sampled, whatever the model and wherever they go.

    Args:
        scheduler: a name in ``SCHEDULERS``; that of the training when ``None``.
        num_inference_steps: steps of the reverse chain; all when ``None``.
        guidance_scale: how closely an image follows its class and its condition; 1 is no guidance.
        condition_guidance_scale: how closely it follows its condition, where that is not ``guidance_scale``.
        guidance_start: share of the chain where guidance begins.
        guidance_end: share of the chain where guidance ends.
        dynamic_thresholding_ratio: such as 0.995; estimates of x_0 are scaled down instead of clipped.
        seed: image i is sampled from seed + i, whatever its batch.
        batch_size: images at once; ``"auto"`` takes as many as fit into memory.
        edit: what is given: ``image``, ``strength`` and ``mask_image``, for the pipelines that take them, and ``condition``.
    """

    scheduler: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    condition_guidance_scale: float | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    dynamic_thresholding_ratio: float | None = None
    seed: int = 0
    batch_size: int | str = 64
    edit: dict = field(default_factory=dict)

    @property
    def chain(self) -> dict:
        """The arguments for a call of a pipeline."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "condition_guidance_scale": self.condition_guidance_scale,
            "guidance_start": self.guidance_start,
            "guidance_end": self.guidance_end,
            "dynamic_thresholding_ratio": self.dynamic_thresholding_ratio,
            **self.edit,
        }

    def facts(self, pipeline: MRIDDPMBasePipeline) -> dict:
        """What is written of these options into every image and folder, over what its model says; JSON values."""
        total = pipeline.scheduler.config.num_train_timesteps
        told = {name: value for name, value in self.chain.items() if name not in self.edit}
        told["num_inference_steps"] = self.num_inference_steps or total
        if "strength" in self.edit:
            told["strength"] = self.edit["strength"]
        if self.edit.get("condition"):
            told |= facts_of_condition(self.edit["condition"])
        if "image" in self.edit:  # a given scan is the larger part of what comes out
            told["synthetic"] = "in part: a given scan, changed by a diffusion model; not for diagnosis"
            images = self.edit["image"] if isinstance(self.edit["image"], dict) else {"": self.edit["image"]}
            given = {f"image_{name}".rstrip("_"): image for name, image in images.items()}
            given |= {name: self.edit[name] for name in ("mask_image",) if name in self.edit}
            told |= {f"{name}_sha256": sha256(array.tobytes()).hexdigest() for name, array in given.items()}
        return told

    def prepare(self, pipeline: MRIDDPMBasePipeline, num_images: int, class_label: str | int | None) -> None:
        """Give the pipeline its scheduler, and refuse what it cannot sample before long work starts.

        Raises:
            InputError: names the flag or the class, and what is possible.
        """
        if self.scheduler:
            set_scheduler(pipeline, self.scheduler)
        for name, value, least in (
            ("num_images", num_images, 1),
            ("batch_size", 1 if self.batch_size == AUTO else self.batch_size, 1),
            ("seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"--{name} is {value}; take {least} or more.")
        if self.seed + num_images > MAX_SEED:
            largest = MAX_SEED - num_images
            raise InputError(f"--seed is {self.seed}; with {num_images} images take at most {largest}.")
        try:
            pipeline.check_inputs(class_labels=class_label, num_images=num_images, **self.chain)
        except ValueError as error:
            raise InputError(str(error)) from error


def facts_of_condition(condition: dict[str, np.ndarray]) -> dict[str, str]:
    """What is written of a condition into every file."""
    words = f"yes: sampled from a diffusion model to fit a given {' and '.join(condition)}, not for diagnosis"
    hashes = {name: sha256(given.tobytes()).hexdigest() for name, given in condition.items()}
    return {"synthetic": words, **{f"condition_{name}_sha256": digest for name, digest in hashes.items()}}
