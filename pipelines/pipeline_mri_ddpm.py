"""The pipeline, whole, in one file that is uploaded to the Hub as it is (diffusers and what it needs, and no sibling)."""

import functools
import inspect
import json
import logging
import math
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
)
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

if __name__.startswith("mri_ddpm."):  # and not a copy that diffusers took from a repository
    # In this form diffusers does not look for the package where such a copy is opened
    import mri_ddpm.trust as trust

    Opener = trust.CheckedPipeline
else:
    Opener = DiffusionPipeline

DDIM_AS_DPM_SOLVER = {
    "algorithm_type": "dpmsolver++",
    "solver_order": 1,
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_lu_lambdas": False,
}
# Few steps are best spent where details are decided, at low noise: 10 spaced so draw as 30 even ones do
SPACING = 1.5
OF_OTHERS = {  # arguments of diffusers' pipelines
    "batch_size": "num_images",
    "num_images_per_prompt": "num_images",
    "prompt": "class_labels",
    "timesteps": "num_inference_steps",
    "seed": "generator, such as torch.Generator().manual_seed(0)",
}
OUTPUT_TYPES = ("pil", "pil16", "np", "pt")
logger = logging.getLogger(__name__)


@dataclass
class MRIDDPMPipelineOutput(BaseOutput):
    """What a call of the pipeline returns.

    Args:
        images: a list of ``num_images`` grey PIL images of 8 or 16 bits, or ``(num_images, H, W)`` float32 in [0, 1]
            as an array, or ``(num_images, 1, H, W)`` as a tensor, by ``output_type``.
        x_t: with ``output_trajectory``, what the network saw at each call, ``(calls, num_images, 1, H, W)``.
        x_0: with ``output_trajectory``, what it took the image to be at each call, of the same shape, in [-1, 1].
        timesteps: with ``output_trajectory``, the timestep of each call, ``(calls,)``.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    x_t: torch.Tensor | None = None
    x_0: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None


class MRIDDPMPipeline(Opener):
    r"""Draw synthetic brain MRI slices from noise by the reverse process (MRIDiff, algorithm 2).

    Args:
        unet: an ``AttentionUNet2DModel``; its config holds the size it was trained at and its classes' names.
        scheduler: the ``DDPMScheduler`` it was trained with, or any diffusers scheduler made from its config.
    """

    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = ["x_t", "x_0"]

    def __init__(self, unet, scheduler):
        super().__init__()
        unet.to(
            memory_format=torch.channels_last
        )  # twice the convolution rate on a CPU, and what a GPU wants in bf16
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "MRIDDPMPipeline":
        """As in diffusers, which passes on a network of the type that the constructor names; this file knows none."""
        return super().from_pipe(pipeline, **{"unet": pipeline.unet, **kwargs})

    # diffusers asks its signature which arguments it takes
    @functools.wraps(DiffusionPipeline.save_pretrained)
    def save_pretrained(self, save_directory, *args, private: bool = True, **kwargs) -> None:
        # With push_to_hub=True a new repository is private, unless asked otherwise
        super().save_pretrained(str(save_directory), *args, private=private, **kwargs)

    def push_to_hub(
        self, repo_id: str, commit_message: str | None = None, private: bool = True, **kwargs
    ) -> str:
        """As in diffusers, but that a new repository is private, unless asked otherwise."""
        return super().push_to_hub(repo_id, commit_message, private, **kwargs)

    def set_attention_slice(self, slice_size) -> None:
        """Called by ``enable_attention_slicing``: say that there is nothing to slice."""
        if slice_size is not None:
            logger.warning(
                "Attention is not sliced: it is scaled_dot_product_attention, which needs no slices."
            )

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op=None) -> None:
        """Called by ``enable_xformers_memory_efficient_attention``: say that it is no other than before."""
        if valid:
            logger.warning("xFormers is not used: scaled_dot_product_attention is as sparing of memory.")

    def save_config(self, save_directory, **kwargs) -> None:
        """Write ``model_index.json`` and the code that it names, so that what is saved opens with diffusers alone.

        ``save_pretrained`` and ``push_to_hub`` come through here. diffusers itself would record the installed package's
        modules, and such a repository opens for nobody else (huggingface/diffusers#6563).
        """
        super().save_config(save_directory, **kwargs)
        folder, index_file = Path(save_directory), Path(save_directory) / self.config_name
        index = json.loads(index_file.read_text(encoding="utf-8"))
        unet = getattr(self.unet, "_orig_mod", self.unet)  # as it was before torch.compile
        unet_file = Path(inspect.getfile(type(unet)))
        (folder / "unet").mkdir(exist_ok=True)
        shutil.copyfile(__file__, folder / Path(__file__).name)
        shutil.copyfile(unet_file, folder / "unet" / unet_file.name)
        index["_class_name"] = [Path(__file__).stem, MRIDDPMPipeline.__name__]
        index["unet"] = [unet_file.stem, type(unet).__name__]
        index.pop("_name_or_path", None)  # a folder of this machine is nobody else's business
        index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

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
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        dynamic_thresholding_ratio: float | None = None,
        image: Image.Image | np.ndarray | torch.Tensor | list | None = None,
        strength: float | None = None,
        mask_image: Image.Image | np.ndarray | torch.Tensor | list | None = None,
        jump_length: int = 10,
        jump_n_sample: int | None = None,
        output_trajectory: bool = False,
        callback_on_step_end: Callable[..., dict] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("x_t",),
        **of_others,
    ) -> MRIDDPMPipelineOutput | tuple:
        """Draw ``num_images`` slices, or draw given ones anew, whole or in part.

        Args:
            class_labels: a class by name or index, for all images or one an image; ``None`` draws without a class.
            num_images: how many.
            num_inference_steps: steps of the reverse chain; all of the training's when ``None``.
            guidance_scale: classifier-free guidance (Ho & Salimans 2022): 1 is none, more follows the class more.
            generator: one for all images, or a list of one an image, which makes an image independent of its batch.
            height: pixels; the size trained at when ``None``.
            width: pixels; the size trained at when ``None``.
            output_type: ``"pil"`` (8 bits, ``L``), ``"pil16"`` (16 bits, ``I;16``), ``"np"`` or ``"pt"``.
            return_dict: return an ``MRIDDPMPipelineOutput`` instead of a tuple.
            guidance_start: share of the whole chain's timesteps after which guidance sets in.
            guidance_end: and after which it ends; guidance at neither end is often better (Kynkäänniemi et al. 2024,
                arXiv:2404.07724). Without guidance the network sees each image once a step instead of twice.
            dynamic_thresholding_ratio: share of each estimate's pixels that must not be clipped, such as 0.995; the
                rest of the range is scaled down to [-1, 1] (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
            image: a scan to start from, or one an image: PIL, or ``(H, W)``, ``(B, H, W)`` or ``(B, 1, H, W)``
                in [0, 1].
            strength: share of the timesteps that is run from the noised ``image`` (SDEdit, arXiv:2108.01073), over 0 to 1;
                0.2 when ``None``, which at 32 to 64 pixels keeps the head and redraws its inside; 1 with a mask.
            mask_image: where ``image`` is drawn anew: white, or 0.5 and more. All other pixels stay as they are.
            jump_length: steps that are taken again, with a mask, after going back to the noise before them.
            jump_n_sample: how often each such stretch is drawn, so that both sides of the mask's edge agree (RePaint,
                arXiv:2201.09865, section 4.2). With a ``DDPMScheduler`` 10 when ``None``; others cannot go back, and
                take 1.
            output_trajectory: return also what was seen and estimated at each step.
            callback_on_step_end: called after each step as ``f(pipeline, step, timestep, tensors)``; what it returns as
                ``{"x_t": ...}`` is gone on with.
            callback_on_step_end_tensor_inputs: which tensors it is given: ``"x_t"``, ``"x_0"``.
            of_others: none; arguments of other pipelines are told what they are called here.

        Raises:
            TypeError: for an argument that there is not.
            ValueError: for what cannot be drawn; the sentence names the argument and what it can be. Also when a network
                predicts what is not finite.
        """
        for name in of_others:
            hint = f"; here it is {OF_OTHERS[name]}" if name in OF_OTHERS else ""
            raise TypeError(f"{type(self).__name__} takes no {name}{hint}.")
        self.check_inputs(
            class_labels, num_images, num_inference_steps, guidance_scale, generator, output_type,
            guidance_start=guidance_start, guidance_end=guidance_end, strength=strength, jump_length=jump_length,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio, jump_n_sample=jump_n_sample,
            tensor_inputs=callback_on_step_end_tensor_inputs, image=image, mask_image=mask_image, height=height,
            width=width,
        )  # fmt: skip
        generator = list(generator) if isinstance(generator, tuple) else generator
        labels = self.class_indices(class_labels, num_images)  # (B,) or None
        shape = self.shape(num_images, height, width)
        device = self._execution_device
        dtype = torch.promote_types(self.unet.dtype, torch.float32)  # bf16 steps would add noise of their own
        total = self.scheduler.config.num_train_timesteps
        steps = num_inference_steps or total

        def draw_noise() -> torch.Tensor:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)

        # Timesteps stay on the CPU, where schedulers look them up in every step; the network has its own
        scheduler = self.set_timesteps(steps)
        timesteps, on_device = scheduler.timesteps, scheduler.timesteps.to(device)
        alpha_bars = alpha_bars_of(scheduler)
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_kwargs = {"generator": generator} if takes_generator else {}  # deterministic solvers take none

        # From noise, or from the noised scan; a mask keeps its known part at each step's noise
        given = None if image is None else self.as_images(image, "image", shape).to(device)  # in [0, 1]
        redrawn = (
            None if mask_image is None else self.as_images(mask_image, "mask_image", shape).to(device) >= 0.5
        )
        if strength is None:
            strength = 1.0 if given is None or redrawn is not None else 0.2
        step_ends = timesteps[:: scheduler.order] + 1  # of Heun, which calls the network twice a step
        start = 0 if given is None else int((step_ends - strength * total).abs().argmin())
        calls = range(start * scheduler.order, len(timesteps))
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(calls[0])

        def noised_scan(i: int) -> torch.Tensor:
            return scheduler.add_noise((given * 2 - 1).to(dtype), draw_noise(), timesteps[i : i + 1])

        knows_start = getattr(self.unet, "x_0_mean", None) is not None
        if given is not None and not (knows_start and redrawn is not None and calls[0] == 0):
            x_t = noised_scan(calls[0])
        elif knows_start:
            noise = draw_noise()
            x_t = scheduler.add_noise(self.draw_by_moments(labels, noise, generator), noise, timesteps[:1])
        else:  # x_T / sqrt(alpha_bar_T) where a scheduler counts in sigmas; with "trailing" its own start is a little short
            x_t = draw_noise() * (1.0 if scheduler.init_noise_sigma == 1 else alpha_bars[0] ** -0.5)
        if redrawn is not None:
            calls = with_jumps(calls, jump_length, jump_n_sample or (10 if is_ancestral(scheduler) else 1))

        x_ts, x_0s, finite = [], [], torch.tensor(True, device=device)
        for step, i in enumerate(self.progress_bar(calls)):
            t = timesteps[i]
            if step and i <= calls[step - 1]:  # back over the stretch just drawn: q(x_t | x_s) for s < t
                kept = alpha_bars[i] / [*alpha_bars, 1.0][calls[step - 1] + 1]
                x_t = kept**0.5 * x_t + (1 - kept) ** 0.5 * draw_noise()
            if redrawn is not None:
                x_t = torch.where(redrawn, x_t, noised_scan(i))
            model_input = scheduler.scale_model_input(x_t, t)  # (B, C, H, W)
            inside = guidance_start * total <= total - 1 - float(t) < guidance_end * total
            prediction = self.predict(model_input, on_device[i], labels, guidance_scale if inside else 1.0)
            finite = finite & prediction.isfinite().all()  # clipping would hide it; read after the loop
            prediction, x_0 = self.clip(prediction, model_input, alpha_bars[i], dynamic_thresholding_ratio)
            x_t = scheduler.step(prediction, t, x_t, **step_kwargs).prev_sample
            if i == len(timesteps) - 1 and is_ancestral(scheduler):
                x_t = x_0  # z = 0 in the last step (algorithm 2), where diffusers draws one unless t is 0
            if output_trajectory:
                x_ts.append(model_input.cpu())
                x_0s.append(x_0.cpu())
            if callback_on_step_end is not None:
                tensors = {"x_t": x_t, "x_0": x_0}
                tensors = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                x_t = (callback_on_step_end(self, step, t, tensors) or {}).get("x_t", x_t)

        if not (finite & x_t.isfinite().all()):
            raise ValueError(
                "the network's predictions are not finite numbers; take other weights, of an earlier step or in "
                "float32, or a lower guidance_scale."
            )
        unit = (x_t.float() / 2 + 0.5).clamp(0, 1)
        if redrawn is not None:
            unit = torch.where(redrawn, unit, given)
        output = MRIDDPMPipelineOutput(images=self.to_images(unit, output_type))
        if output_trajectory:
            output["x_t"], output["x_0"] = torch.stack(x_ts), torch.stack(x_0s)
            output["timesteps"] = timesteps[list(calls)]
        self.maybe_free_model_hooks()
        return output if return_dict else output.to_tuple()

    def shape(self, num_images: int, height: int | None, width: int | None) -> tuple[int, int, int, int]:
        """``(B, C, H, W)`` of what is drawn; the size trained at where none is given."""
        size = self.unet.config.sample_size
        return (
            num_images,
            self.unet.config.in_channels,
            *(size if n is None else n for n in (height, width)),
        )

    def set_timesteps(self, num_inference_steps: int) -> SchedulerMixin:
        """The scheduler, set to exactly that many steps; they begin at T - 1, where there is nothing but noise.

        It mends what of diffusers shows at T = 300: "trailing" timesteps come from a range of floats, which for
        7 or 28 steps has one too many, at -1; and `DDIMScheduler` takes steps of T // num_inference_steps, whatever its
        timesteps are. For fewer than all, first-order DPM-Solver++ stands in, which is DDIM (Lu et al. 2022,
        arXiv:2211.01095, section 4). Schedulers that take timesteps get those of `spaced_timesteps`; others, such as
        UniPC, space theirs evenly.
        """
        scheduler, total = self.scheduler, self.scheduler.config.num_train_timesteps
        trailing = scheduler.config.timestep_spacing == "trailing"
        if num_inference_steps == total and not trailing:  # the other spacings hold a timestep twice then
            scheduler, trailing = (
                type(scheduler).from_config(scheduler.config, timestep_spacing="trailing"),
                True,
            )
        if isinstance(scheduler, DDIMScheduler) and num_inference_steps != total:
            scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config, **DDIM_AS_DPM_SOLVER)
        own_spacing = any(value for name, value in scheduler.config.items() if name.startswith("use_"))
        takes_timesteps = "timesteps" in inspect.signature(scheduler.set_timesteps).parameters
        if trailing and takes_timesteps and not own_spacing:
            scheduler.set_timesteps(timesteps=spaced_timesteps(total, num_inference_steps))
        else:
            scheduler.set_timesteps(num_inference_steps)
        if scheduler.timesteps[-1] < 0:
            scheduler.timesteps = scheduler.timesteps[:-1]
            scheduler.num_inference_steps = num_inference_steps
            if hasattr(scheduler, "sigmas"):  # those of the steps, and the one after the last
                scheduler.sigmas = torch.cat([scheduler.sigmas[:-2], scheduler.sigmas[-1:]])
        if hasattr(scheduler, "sigmas") and scheduler.sigmas[0] <= scheduler.sigmas[1]:
            scheduler.sigmas[0] = (
                2 * scheduler.sigmas[1]
            )  # diffusers' finite stand-in for zero SNR can be too small
        return scheduler

    def draw_by_moments(self, labels: torch.Tensor | None, like: torch.Tensor, generator) -> torch.Tensor:
        """Draw x_0 from the Gaussian with the training scans' moments: noised, it is where the forward process ends.

        q(x_T) has the mean sqrt(alpha_bar_T) E[x_0], and the covariance alpha_bar_T Cov[x_0] + (1 - alpha_bar_T) I
        (Ho et al. 2020, equation 4). N(0, I) is neither, unless the schedule leaves nothing of the scan.

        Args:
            labels: ``(B,)``, or ``None`` for the moments over all classes.
            like: of the shape wanted, ``(B, C, H, W)``.
            generator: one, or a list of one an image.
        """
        mean, components = (x.to(like) for x in self.unet.x_0_moments(*like.shape[-2:]))
        x_0 = mean[-1:].expand_as(like) if labels is None else mean[labels]  # (B, C, H, W)
        shape = (len(like), len(components))
        weights = randn_tensor(shape, generator=generator, device=like.device, dtype=like.dtype)  # (B, K)
        return x_0 + torch.einsum("bk,kchw->bchw", weights, components)

    def predict(
        self, model_input, timestep, labels: torch.Tensor | None, guidance_scale: float
    ) -> torch.Tensor:
        """What the network says of ``(B, C, H, W)``; with guidance in one forward of twice the batch."""
        dtype, model_input = model_input.dtype, model_input.to(self.unet.dtype)
        if labels is None or guidance_scale == 1.0:
            return self.unet(model_input, timestep, class_labels=labels).sample.to(dtype)
        null = torch.full_like(labels, self.unet.config.num_class_embeds)
        twice = torch.cat([model_input] * 2)  # (2B, C, H, W)
        prediction = self.unet(twice, timestep, class_labels=torch.cat([labels, null])).sample.to(dtype)
        conditional, unconditional = prediction.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def clip(
        self, prediction, x_t, alpha_bar: float, dynamic_thresholding_ratio: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A prediction whose x_0 lies in the range of images, and that x_0, for any scheduler.

        diffusers' schedulers clip each in its own way or not at all; after this one theirs changes nothing. With a ratio
        under 1 dynamic thresholding takes the place of clipping.
        """
        config, signal, noise = self.scheduler.config, alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        if config.prediction_type == "epsilon":
            x_0 = (x_t - noise * prediction) / signal  # Ho et al. 2020, equation 15
        elif config.prediction_type == "v_prediction":
            x_0 = signal * x_t - noise * prediction  # Salimans & Ho 2022, section 4
        else:
            x_0 = prediction
        if dynamic_thresholding_ratio is not None:
            largest = x_0.flatten(1).float().abs().quantile(dynamic_thresholding_ratio, dim=1)  # (B,)
            largest = largest.clamp(min=1).to(x_0.dtype)[:, None, None, None]
            x_0 = x_0.clamp(-largest, largest) / largest
        elif config.get("clip_sample", True):
            limit = config.get("clip_sample_range", 1.0)
            x_0 = x_0.clamp(-limit, limit)
        else:
            return prediction, x_0
        if config.prediction_type == "epsilon":
            return (x_t - signal * x_0) / noise, x_0
        if config.prediction_type == "v_prediction":
            return (signal * x_t - x_0) / noise, x_0
        return x_0, x_0

    def check_inputs(
        self,
        class_labels,
        num_images,
        num_inference_steps,
        guidance_scale,
        generator,
        output_type,
        *,
        guidance_start: float = 0.0,
        guidance_end: float = 1.0,
        dynamic_thresholding_ratio: float | None = None,
        image=None,
        strength: float | None = None,
        mask_image=None,
        jump_length: int = 10,
        jump_n_sample: int | None = None,
        tensor_inputs: Sequence[str] = (),
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Raise a ``ValueError`` whose sentence names the argument that cannot be used and what could."""
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}; ask for at least 1.")
        config, unet_config = self.scheduler.config, self.unet.config
        steps, max_steps = num_inference_steps, config.num_train_timesteps
        if steps is not None and not 1 <= steps <= max_steps:
            raise ValueError(
                f"num_inference_steps is {steps}, but the model was trained with {max_steps} timesteps; "
                f"take 1 to {max_steps}."
            )
        if not (hasattr(self.scheduler, "alphas_cumprod") and hasattr(self.scheduler, "init_noise_sigma")):
            raise ValueError(
                f"a {type(self.scheduler).__name__} knows no alphas of a DDPM; take a DDPMScheduler, DDIMScheduler, "
                "DPMSolverMultistepScheduler, UniPCMultistepScheduler or another of their kind."
            )
        if not math.isfinite(guidance_scale):
            raise ValueError(f"guidance_scale is {guidance_scale}; take a number, 1 for none.")
        if guidance_scale != 1.0 and not unet_config.num_class_embeds:
            raise ValueError(
                f"guidance_scale is {guidance_scale}, but the model has no classes to be guided by; leave it at 1."
            )
        if guidance_scale != 1.0 and class_labels is None:
            raise ValueError(f"guidance_scale is {guidance_scale} without class_labels to follow; give them.")
        if (guidance_scale != 1.0 or class_labels is None) and not unet_config.get("null_class", True):
            raise ValueError(
                "the model was trained with the class of every scan (class_dropout_prob 0) and has no null class, which "
                "guidance and images without a class need; give class_labels, and leave guidance_scale at 1."
            )
        if not 0 <= guidance_start < guidance_end <= 1:
            raise ValueError(
                f"guidance_start is {guidance_start} and guidance_end {guidance_end}; take shares of the chain between 0 "
                "and 1, the start before the end."
            )
        ratio = dynamic_thresholding_ratio
        if ratio is not None and not 0 < ratio <= 1:
            raise ValueError(
                f"dynamic_thresholding_ratio is {ratio}; take a share over 0 and up to 1, such as 0.995."
            )
        is_list = isinstance(generator, (list, tuple))
        for one in generator if is_list else [generator]:
            if not isinstance(one, torch.Generator) and (is_list or one is not None):
                raise ValueError(
                    f"generator is {one!r}; give a torch.Generator, such as torch.Generator().manual_seed(42)."
                )
        if is_list and len(generator) != num_images:
            raise ValueError(
                f"{len(generator)} generators were given for {num_images} images; give one an image."
            )
        if output_type not in OUTPUT_TYPES:
            raise ValueError(
                f"output_type {output_type!r} is unknown; take one of {', '.join(map(repr, OUTPUT_TYPES))}."
            )
        if image is None and (mask_image is not None or strength is not None):
            name = "mask_image" if mask_image is not None else "strength"
            raise ValueError(f"{name} is given without image, the scan to start from; give both.")
        shape = self.shape(num_images, height, width)
        if image is not None:
            self.as_images(image, "image", shape)
        if mask_image is not None and not (self.as_images(mask_image, "mask_image", shape) >= 0.5).any():
            raise ValueError(
                "mask_image has no white pixel, of half its range or more, so nothing would be drawn; paint white what is to "
                "be drawn anew (of a mask of 0 and 1 in 8 bits, multiply by 255)."
            )
        if strength is not None and not 0 < strength <= 1:
            raise ValueError(f"strength is {strength}; take a share of the chain over 0 and up to 1.")
        if jump_length < 1 or (jump_n_sample is not None and jump_n_sample < 1):
            raise ValueError(
                f"jump_length is {jump_length} and jump_n_sample {jump_n_sample}; take 1 or more."
            )
        scheduler_name = type(self.scheduler).__name__
        if (jump_n_sample or 1) > 1 and not is_ancestral(self.scheduler):
            raise ValueError(
                f"jump_n_sample is {jump_n_sample}, but a {scheduler_name} cannot go back; take 1, or a DDPMScheduler."
            )
        if (
            config.get("rescale_betas_zero_snr")
            and "rescale_betas_zero_snr" not in inspect.signature(type(self.scheduler).__init__).parameters
        ):
            raise ValueError(
                f"the model was trained with rescale_betas_zero_snr, which {scheduler_name} does not know; take a "
                "DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler or "
                "EulerDiscreteScheduler."
            )
        for name in tensor_inputs:
            if name not in self._callback_tensor_inputs:
                raise ValueError(
                    f"callback_on_step_end_tensor_inputs names {name!r}; there are {self._callback_tensor_inputs}."
                )

    def class_indices(self, class_labels, num_images: int) -> torch.Tensor | None:
        """Turn names and indices into ``(num_images,)`` int64 indices; ``None`` stays ``None``.

        A number is the class of that name, and an index only where no class is called by a number.

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
                f"{len(class_labels)} class labels were given for {num_images} images; give one an image, and num_images."
            )

        def plain(name: str) -> str:  # é is one letter, or e and an accent
            return unicodedata.normalize("NFC", name)

        by_name = {plain(name): index for index, name in enumerate(self.class_names)}
        if not any(name.isdecimal() for name in by_name):
            by_name |= {str(index): index for index in range(num_classes)}
        for label in class_labels:
            if plain(str(label)) not in by_name:
                known = ", ".join(self.class_names) or f"0 to {num_classes - 1}"
                raise ValueError(f"class {label!r} is not in the model; its classes are: {known}.")
        indices = [by_name[plain(str(label))] for label in class_labels]
        return torch.tensor(indices, device=self._execution_device)

    def as_images(self, given, name: str, shape: tuple[int, int, int, int]) -> torch.Tensor:
        """Bring a scan or mask, or one an image, to ``shape`` as float32 in [0, 1].

        Raises:
            ValueError: when it has another size, number or range; nothing is resized, for the size would then be ours.
        """
        arrays = [as_array(part, name) for part in (given if isinstance(given, (list, tuple)) else [given])]
        if not arrays or any(array.shape != arrays[0].shape for array in arrays):
            raise ValueError(f"{name} is no image, or images of several sizes; give (H, W) or (B, H, W).")
        pixels = np.stack(arrays)
        (count, channels, height, width), size = shape, pixels.shape[-2:]
        if pixels.ndim < 3 or pixels.shape[-1] <= 4 or (arrays[0].ndim == 4 and pixels.shape[-3] != channels):
            raise ValueError(
                f"{name} of shape {arrays[0].shape} is not grey; give (H, W), (B, H, W) or (B, 1, H, W)."
            )
        if size != (height, width):
            raise ValueError(
                f"{name} is {size[1]}x{size[0]} pixels, but {width}x{height} are drawn; resize it to that first."
            )
        pixels = pixels.reshape(-1, channels, height, width)
        if len(pixels) not in (1, count):
            raise ValueError(
                f"{len(pixels)} are given as {name} for {count} images; give 1, or one an image."
            )
        unit = torch.from_numpy(pixels)
        if not ((unit >= 0) & (unit <= 1)).all():
            raise ValueError(f"{name} has values outside [0, 1]; scale it to that range, black to white.")
        return unit.expand(shape)

    @staticmethod
    def to_images(unit: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
        """Bring images ``(B, 1, H, W)`` in [0, 1] to what ``output_type`` asks for."""
        if output_type == "pt":
            return unit
        array = unit[:, 0].cpu().numpy()  # (B, H, W)
        if output_type == "np":
            return array
        levels = np.uint16 if output_type == "pil16" else np.uint8
        return [Image.fromarray(image) for image in (array * np.iinfo(levels).max).round().astype(levels)]


def as_array(given: Image.Image | np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """One picture's intensities as float32 in [0, 1] of the range of its type.

    Raises:
        ValueError: for a type whose range nobody knows.
    """
    if isinstance(given, Image.Image):
        given = given.convert("L") if given.mode in ("RGB", "P") else given
        if given.mode not in ("1", "L", "I;16"):
            raise ValueError(
                f"{name} is a PIL image of mode {given.mode}; convert it to 'L', or to 'I;16' for 16 bits."
            )
    if isinstance(given, torch.Tensor):
        given = (given.float() if given.is_floating_point() else given).cpu()
    array = np.asarray(given)
    if array.dtype.kind not in "bf" and array.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"{name} is of {array.dtype}; give floats in [0, 1], bool, uint8 or uint16.")
    full_range = np.iinfo(array.dtype).max if array.dtype.kind == "u" else 1
    return array.astype(np.float32) / np.float32(full_range)


def spaced_timesteps(num_train_timesteps: int, num_inference_steps: int) -> list[int]:
    """Timesteps of the steps of a chain, from T - 1 down: at (i / N)^``SPACING`` of T for i = N ... 1, no two alike."""
    ends, last = [], 0
    for i in range(1, num_inference_steps + 1):
        even, share = num_train_timesteps * i / num_inference_steps, i / num_inference_steps
        last = max(round(even * share ** (SPACING - 1)), last + 1)
        ends.append(last - 1)
    return ends[::-1]


def is_ancestral(scheduler: SchedulerMixin) -> bool:
    """Whether each step depends on nothing but x_t, and leads to a sample of x_{t-1}: only then can one go back."""
    return isinstance(scheduler, DDPMScheduler)


def alpha_bars_of(scheduler: SchedulerMixin) -> list[float]:
    """The share of the signal's variance at each of the scheduler's timesteps (Ho et al. 2020, equation 4)."""
    if hasattr(scheduler, "sigmas"):  # noise over signal, of each step
        return (1 / (1 + scheduler.sigmas[: len(scheduler.timesteps)].double() ** 2)).tolist()
    return scheduler.alphas_cumprod[scheduler.timesteps].tolist()


def with_jumps(calls: range, jump_length: int, jump_n_sample: int) -> list[int]:
    """The order of steps in which each stretch of ``jump_length`` is taken ``jump_n_sample`` times (RePaint, figure 9)."""
    stretches = [calls[start : start + jump_length] for start in range(0, len(calls), jump_length)]
    return [i for stretch in stretches for _ in range(jump_n_sample) for i in stretch]
