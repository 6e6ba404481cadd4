"""The pipeline, whole, in one file that is uploaded to the Hub as it is (torch, diffusers, numpy and PIL only)."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image


@dataclass
class MRIDDPMPipelineOutput(BaseOutput):
    """What a call of the pipeline returns.

    Args:
        images: a list of ``num_images`` 8-bit grey PIL images, or ``(num_images, H, W)`` float32 in [0, 1] as
            an array, or ``(num_images, 1, H, W)`` as a tensor, by ``output_type``.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor


class MRIDDPMPipeline(DiffusionPipeline):
    r"""Draw synthetic brain MRI slices from noise by the reverse process (MRIDiff, algorithm 2).

    Args:
        unet: an ``AttentionUNet2DModel``; its config holds the size it was trained at and its classes' names.
        scheduler: the ``DDPMScheduler`` it was trained with, or any diffusers scheduler made from its config.
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet, scheduler):
        super().__init__()
        unet.to(
            memory_format=torch.channels_last
        )  # twice the convolution rate on a CPU, and what a GPU wants in bf16
        self.register_modules(unet=unet, scheduler=scheduler)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that can be asked for, by index; empty for a model without classes."""
        return tuple(self.unet.config.class_names or ())

    @torch.no_grad()
    def __call__(
        self,
        class_labels: str | int | Sequence[str | int] | None = None,
        num_images: int = 1,
        num_inference_steps: int | None = None,
        guidance_scale: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        height: int | None = None,
        width: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> MRIDDPMPipelineOutput | tuple:
        """Draw ``num_images`` slices.

        Args:
            class_labels: a class by name or index, for all images or one an image; ``None`` draws without a class.
            num_images: how many.
            num_inference_steps: steps of the reverse chain; all of the training's when ``None``.
            guidance_scale: classifier-free guidance (Ho & Salimans 2022): 1 is none, more follows the class more.
            generator: one for all images, or a list of one an image, which makes an image independent of its batch.
            height: pixels; the size trained at when ``None``.
            width: pixels; the size trained at when ``None``.
            output_type: ``"pil"``, ``"np"`` or ``"pt"``.
            return_dict: return an ``MRIDDPMPipelineOutput`` instead of a tuple.

        Raises:
            ValueError: for an unknown class, output type or number; the sentence names it and what there is.
        """
        self.check_inputs(
            class_labels, num_images, num_inference_steps, guidance_scale, generator, output_type
        )
        labels = self.class_indices(class_labels, num_images)  # (B,) or None
        guided = labels is not None and guidance_scale != 1.0
        size = self.unet.config.sample_size
        device, dtype = self._execution_device, self.unet.dtype

        self.scheduler.set_timesteps(
            num_inference_steps or self.scheduler.config.num_train_timesteps, device=device
        )
        shape = (
            num_images,
            self.unet.config.in_channels,
            *(size if n is None else n for n in (height, width)),
        )
        x_t = (
            randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            * self.scheduler.init_noise_sigma
        )
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generator} if takes_generator else {}  # deterministic solvers take none

        timesteps = self.scheduler.timesteps
        timesteps = timesteps[timesteps >= 0]  # diffusers rounds 7 or 28 steps of T = 300 to one more, at -1
        for t in self.progress_bar(timesteps):
            model_input = self.scheduler.scale_model_input(x_t, t)  # (B, C, H, W)
            if guided:
                null = torch.full_like(labels, self.unet.config.num_class_embeds)
                both = self.unet(
                    torch.cat([model_input] * 2), t, class_labels=torch.cat([labels, null])
                ).sample
                conditional, unconditional = both.chunk(2)
                prediction = unconditional + guidance_scale * (conditional - unconditional)
            else:
                prediction = self.unet(model_input, t, class_labels=labels).sample
            x_t = self.scheduler.step(prediction, t, x_t, **step_kwargs).prev_sample

        images = self.to_images(x_t, output_type)
        self.maybe_free_model_hooks()
        return MRIDDPMPipelineOutput(images=images) if return_dict else (images,)

    def check_inputs(
        self, class_labels, num_images, num_inference_steps, guidance_scale, generator, output_type
    ) -> None:
        """Raise a ``ValueError`` whose sentence names the argument that cannot be used and what could."""
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}; ask for at least 1.")
        steps, max_steps = num_inference_steps, self.scheduler.config.num_train_timesteps
        if steps is not None and not 1 <= steps <= max_steps:
            raise ValueError(
                f"num_inference_steps is {steps}, but the model was trained with {max_steps} timesteps; "
                f"take 1 to {max_steps}."
            )
        if guidance_scale != 1.0 and not self.unet.config.num_class_embeds:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but the model has no classes to be guided by; leave it at 1."
            )
        if guidance_scale != 1.0 and class_labels is None:
            raise ValueError(f"guidance_scale is {guidance_scale} without class_labels to follow; give them.")
        if isinstance(generator, list) and len(generator) != num_images:
            raise ValueError(
                f"{len(generator)} generators were given for {num_images} images; give one an image."
            )
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type {output_type!r} is unknown; take 'pil', 'np' or 'pt'.")

    def class_indices(self, class_labels, num_images: int) -> torch.Tensor | None:
        """Turn names and indices into ``(num_images,)`` int64 indices; ``None`` stays ``None``.

        Raises:
            ValueError: for a class that the model has not, or another number of classes than of images.
        """
        if class_labels is None:
            return None
        num_classes = self.unet.config.num_class_embeds
        if not num_classes:
            raise ValueError(
                "class_labels were given, but the model was trained without classes; leave them out."
            )
        if hasattr(class_labels, "tolist"):  # arrays and tensors
            class_labels = class_labels.tolist()
        if isinstance(class_labels, (str, int)):
            class_labels = [class_labels] * num_images
        if len(class_labels) != num_images:
            raise ValueError(
                f"{len(class_labels)} class labels were given for {num_images} images; give one an image."
            )
        by_name = {name: index for index, name in enumerate(self.class_names)}
        indices = [by_name.get(label, label) for label in class_labels]
        for index in indices:
            if not isinstance(index, int) or not 0 <= index < num_classes:
                known = ", ".join(self.class_names) or f"0 to {num_classes - 1}"
                raise ValueError(f"class {index!r} is not in the model; its classes are: {known}.")
        return torch.tensor(indices, device=self._execution_device)

    @staticmethod
    def to_images(sample: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Bring samples ``(B, 1, H, W)`` in [-1, 1] to images in [0, 1], as ``output_type`` asks."""
        unit = (sample.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return unit
        array = unit[:, 0].cpu().numpy()  # (B, H, W)
        if output_type == "np":
            return array
        return [Image.fromarray(image) for image in (array * 255).round().astype(np.uint8)]
