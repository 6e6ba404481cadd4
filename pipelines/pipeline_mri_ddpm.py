"""Three pipelines and the one denoising loop that they share, in one file. It is uploaded to the Hub as it is.

A copy from the Hub needs diffusers and its dependencies, and no other file of this package.
"""

import functools
import inspect
import json
import logging
import math
import shutil
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
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
    "algorithm_type": "dpmsolver++", "solver_order": 1, "final_sigmas_type": "zero", "use_karras_sigmas": False,
    "use_lu_lambdas": False,
}  # fmt: skip
# Few steps are best spent where details are decided, at low noise: 10 spaced so sample as well as 30 even ones
SPACING = 1.5
OF_OTHERS = {  # arguments of other pipelines
    **dict.fromkeys(
        ("mask_image", "jump_length", "jump_n_sample"), "MRIDDPMInpaintPipeline.from_pipe(pipeline) does"
    ),
    **dict.fromkeys(("image", "strength"), "MRIDDPMImg2ImgPipeline.from_pipe(pipeline) does"),
    "batch_size": "here it is num_images",
    "num_images_per_prompt": "here it is num_images",
    "prompt": "here it is class_labels",
    "timesteps": "here it is num_inference_steps",
    "seed": "here it is generator, such as torch.Generator().manual_seed(0)",
}
MAX_VALUE = 2**16 - 1  # of a label in an image
MOST_NAMED = 5  # labels that a mask should not have
OUTPUT_TYPES = ("pil", "pil16", "np", "pt")
TENSOR_INPUTS = ("x_t", "x_0")
GivenImage = Image.Image | np.ndarray | torch.Tensor | list
Images = list[Image.Image] | np.ndarray | torch.Tensor
# Of masks as PIL images, background first: their pixels are labels, and still seen
LABEL_COLOURS = (
    (0, 0, 0),
    (255, 255, 255),
    (230, 75, 60),
    (70, 160, 230),
    (250, 200, 60),
    (90, 190, 110),
    (170, 100, 200),
)
logger = logging.getLogger(__name__)


@dataclass
class MRIDDPMPipelineOutput(BaseOutput):
    """What a call of the pipeline returns.

    Args:
        images: a list of ``num_images`` grey PIL images of 8 or 16 bits, or ``(num_images, H, W)`` float32 in [0, 1]
            as an array, or ``(num_images, 1, H, W)`` as a tensor, by ``output_type``. Of a model with several channels, a dict of
            such by name. A mask has the values of its labels, 0 for none: as a PIL image with a palette, or as uint8; in 16
            bits where one is over 255.
        channels: that dict, of a model with a name for one channel too.
        x_t: with ``output_trajectory``, what is denoised at each call, ``(calls, num_images, C, H, W)``.
        x_0: with ``output_trajectory``, its estimate of the image at each call, of the same shape, in [-1, 1].
        timesteps: with ``output_trajectory``, the timestep of each call, ``(calls,)``.
    """

    images: Images | dict[str, Images]
    channels: dict[str, Images] | None = None
    x_t: torch.Tensor | None = None
    x_0: torch.Tensor | None = None
    timesteps: torch.Tensor | None = None

    @property
    def by_channel(self) -> dict[str, Images]:
        """The images by the name of their channel; of a model without names it is ``""``."""
        return self.channels or {"": self.images}


@dataclass
class Request:
    """What one call asks for: the arguments of all three pipelines, which their ``__call__`` describe.

    Raises:
        ValueError: for a value that no model accepts.
    """

    class_labels: str | int | Sequence[str | int] | None = None
    num_images: int = 1
    num_inference_steps: int | None = None
    guidance_scale: float = 1.0
    generator: torch.Generator | list[torch.Generator] | None = None
    height: int | None = None
    width: int | None = None
    output_type: str = "pil"
    return_dict: bool = True
    condition: dict[str, GivenImage] | None = None
    condition_guidance_scale: float | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    dynamic_thresholding_ratio: float | None = None
    output_trajectory: bool = False
    callback_on_step_end: Callable[..., dict] | None = None
    callback_on_step_end_tensor_inputs: Sequence[str] = ("x_t",)
    image: GivenImage | dict[str, GivenImage] | None = None
    strength: float = 1.0
    mask_image: GivenImage | None = None
    jump_length: int = 10
    jump_n_sample: int = 1

    def __post_init__(self):
        if isinstance(self.generator, tuple):  # diffusers takes lists alone
            self.generator = list(self.generator)
        scale, start, end = self.guidance_scale, self.guidance_start, self.guidance_end
        apart = self.condition_guidance_scale
        ratio, tensors = self.dynamic_thresholding_ratio, self.callback_on_step_end_tensor_inputs
        is_list = isinstance(self.generator, list)
        given = self.generator if is_list else [] if self.generator is None else [self.generator]
        odd = [one for one in given if not isinstance(one, torch.Generator)]
        unknown = [name for name in tensors if name not in TENSOR_INPUTS]
        refuse(
            (self.num_images < 1, f"num_images is {self.num_images}; ask for at least 1."),
            (not math.isfinite(scale), f"guidance_scale is {scale}; take a number, 1 for none."),
            (apart is not None and not math.isfinite(apart),
             f"condition_guidance_scale is {apart}; take a number, 1 for none."),
            (not 0 <= start < end <= 1,
             f"guidance_start is {start} and guidance_end {end}; take shares of the chain between 0 and 1, the start "
             "before the end."),
            (ratio is not None and not 0 < ratio <= 1,
             f"dynamic_thresholding_ratio is {ratio}; take a share over 0 and up to 1, such as 0.995."),
            (odd, f"generator is {odd and odd[0]!r}; give a torch.Generator, such as torch.Generator().manual_seed(42)."),
            (is_list and len(given) != self.num_images,
             f"{len(given)} generators were given for {self.num_images} images; give one an image."),
            (self.output_type not in OUTPUT_TYPES,
             f"output_type {self.output_type!r} is unknown; take one of {', '.join(map(repr, OUTPUT_TYPES))}."),
            (unknown, f"callback_on_step_end_tensor_inputs names {unknown and unknown[0]!r}; there are {', '.join(TENSOR_INPUTS)}."),
            (not 0 < self.strength <= 1, f"strength is {self.strength}; take a share of the chain over 0 and up to 1."),
            (min(self.jump_length, self.jump_n_sample) < 1,
             f"jump_length is {self.jump_length} and jump_n_sample {self.jump_n_sample}; take 1 or more."),
        )  # fmt: skip


@dataclass(frozen=True)
class Chain:
    """The reverse chain of a request: what is known, by name, shape ``(B, C, H, W)``, and the calls of the network.

    ``known`` has ``class_labels (B,)`` and ``condition (B, K + 1, H, W)``, as far as they are given; ``scales`` the guidance of each.
    Where a call is not later than the one before, the process goes back to it.
    """

    request: Request
    known: dict[str, torch.Tensor]
    scales: dict[str, float]
    shape: tuple[int, int, int, int]
    device: torch.device
    dtype: torch.dtype
    scheduler: SchedulerMixin
    calls: Sequence[int]

    def draw_noise(self) -> torch.Tensor:
        """Draw standard normal noise of the chain's shape."""
        generator = self.request.generator
        return randn_tensor(self.shape, generator=generator, device=self.device, dtype=self.dtype)

    def noised(self, images: torch.Tensor, call: int) -> torch.Tensor:
        """Draw x_t of images in [0, 1] at the timestep of that call (Ho et al. 2020, equation 4)."""
        x_0 = (images * 2 - 1).to(self.dtype)
        return self.scheduler.add_noise(x_0, self.draw_noise(), self.scheduler.timesteps[call : call + 1])


class MRIDDPMBasePipeline(Opener):
    """What the three pipelines share: a network, a scheduler, the checks of a request, and the denoising loop."""

    edits: tuple[str, ...] = ()  # the arguments beside those of `MRIDDPMPipeline`
    model_cpu_offload_seq = "unet"
    _callback_tensor_inputs = list(TENSOR_INPUTS)

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        # Twice the convolution rate on a CPU, and what a GPU wants in bf16
        unet.to(memory_format=torch.channels_last)
        self.register_modules(unet=unet, scheduler=scheduler)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs) -> "MRIDDPMBasePipeline":
        """As in diffusers, except that the network keeps its dtype unless another is asked for.

        diffusers passes a network on only if the constructor names its exact class, which this file cannot load.
        """
        dtype = pipeline.unet.dtype
        logger = logging.getLogger("diffusers.models.modeling_utils")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it warns of layers to be kept in float32, also where there are none
        try:
            other = super().from_pipe(pipeline, **{"unet": pipeline.unet, **kwargs})
            is_chosen = kwargs.keys() & {"dtype", "torch_dtype"} or other.unet.dtype == dtype
            return other if is_chosen else other.to(dtype)
        finally:
            logger.setLevel(level)

    # diffusers asks its signature which arguments it takes
    @functools.wraps(DiffusionPipeline.save_pretrained)
    def save_pretrained(self, save_directory, *args, private: bool = True, **kwargs) -> None:
        # With push_to_hub=True a new repository is private, unless asked otherwise
        super().save_pretrained(str(save_directory), *args, private=private, **kwargs)

    def push_to_hub(
        self, repo_id: str, commit_message: str | None = None, private: bool = True, **kwargs
    ) -> str:
        """As in diffusers, except that a new repository is private unless asked otherwise."""
        return super().push_to_hub(repo_id, commit_message, private, **kwargs)

    def set_attention_slice(self, slice_size) -> None:
        """Called by ``enable_attention_slicing``: say that there is nothing to slice."""
        if slice_size is not None:
            logger.warning(
                "Attention is not sliced: it is scaled_dot_product_attention, which needs no slices."
            )

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op=None) -> None:
        """Called by ``enable_xformers_memory_efficient_attention``: say that attention stays as it is."""
        if valid:
            logger.warning("xFormers is not used: scaled_dot_product_attention is as sparing of memory.")

    def save_config(self, save_directory, **kwargs) -> None:
        """Write ``model_index.json`` and the code that it names, so that the folder opens with diffusers alone.

        ``save_pretrained`` and ``push_to_hub`` call this. diffusers itself would record the installed package's modules.
        Such a repository opens for nobody else (huggingface/diffusers#6563).
        """
        super().save_config(save_directory, **kwargs)
        folder, index_file = Path(save_directory), Path(save_directory) / self.config_name
        index = json.loads(index_file.read_text(encoding="utf-8"))
        unet = getattr(self.unet, "_orig_mod", self.unet)  # as it was before torch.compile
        unet_file = Path(inspect.getfile(type(unet)))
        (folder / "unet").mkdir(exist_ok=True)
        shutil.copyfile(__file__, folder / Path(__file__).name)
        shutil.copyfile(unet_file, folder / "unet" / unet_file.name)
        own_class = next(c for c in type(self).__mro__ if c.__module__ == __name__)  # of a user's subclass
        index["_class_name"] = [Path(__file__).stem, own_class.__name__]
        index["unet"] = [unet_file.stem, type(unet).__name__]
        index.pop("_name_or_path", None)  # a folder of this machine is nobody else's business
        index_file.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the model's classes, by index; empty for a model without classes."""
        return tuple(self.unet.config.class_names or ())

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of what the model draws, in order; empty for a model of one channel without a name."""
        return tuple(self.unet.config.get("channel_names") or ())

    @property
    def condition_names(self) -> tuple[str, ...]:
        """Names of what the model is to be given, in order; empty for a model without a condition."""
        return tuple(self.unet.config.get("condition_names") or ())

    @property
    def mask_labels(self) -> dict[str, tuple[str, ...]]:
        """The labels of those channels and conditions that are masks; `label_values` says what each is in an image."""
        return {name: tuple(labels) for name, labels in (self.unet.config.get("mask_labels") or {}).items()}

    def check_inputs(self, **arguments) -> Request:
        """The request, its image and mask as tensors ``(B, C or 1, H, W)``, and its condition by name as ``(B, 1 or labels, H, W)``.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for what cannot be sampled; the sentence names the argument and its possible values.
        """
        taken = {field.name for field in fields(Request)} - OF_OTHERS.keys() | {*self.edits}
        unknown = arguments.keys() - taken
        for name in sorted(unknown, key=[*OF_OTHERS, *unknown].index):
            hint = f"; {OF_OTHERS[name]}" if name in OF_OTHERS else ""
            raise TypeError(f"{type(self).__name__} takes no {name}{hint}.")
        request = Request(**arguments)
        scale, labels, steps = request.guidance_scale, request.class_labels, request.num_inference_steps
        apart, condition = request.condition_guidance_scale, request.condition
        of_condition = scale if apart is None else apart
        config, total = self.unet.config, self.scheduler.config.num_train_timesteps
        scheduler_class, zero_snr = type(self.scheduler), "rescale_betas_zero_snr"
        has_alphas = hasattr(self.scheduler, "alphas_cumprod") and hasattr(self.scheduler, "init_noise_sigma")
        refuse(
            (steps is not None and not 1 <= steps <= total,
             f"num_inference_steps is {steps}, but the model was trained with {total} timesteps; take 1 to {total}."),
            (not has_alphas,
             f"a {scheduler_class.__name__} knows no alphas of a DDPM; take a DDPMScheduler, DDIMScheduler, "
             "DPMSolverMultistepScheduler, UniPCMultistepScheduler or another of their kind."),
            (self.scheduler.config.get(zero_snr) and zero_snr not in inspect.signature(scheduler_class.__init__).parameters,
             f"the model was trained with {zero_snr}, which {scheduler_class.__name__} does not know; take a "
             "DDPMScheduler, DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler or "
             "EulerDiscreteScheduler."),
            (scale != 1.0 and not config.num_class_embeds and not self.condition_names,
             f"guidance_scale is {scale}, but the model has no classes to be guided by; leave it at 1."),
            (scale != 1.0 and labels is None and condition is None,
             f"guidance_scale is {scale} without class_labels{' or a condition' * bool(self.condition_names)} to follow; give "
             "them, or leave it at 1."),
            (apart is not None and condition is None,
             f"condition_guidance_scale is {apart} without a condition to follow; give one, or leave it out."),
            (condition is not None and not self.condition_names,
             "a condition was given, but the model was trained without one; leave it out."),
            (self.condition_names and not config.get("null_condition", True) and condition is None,
             f"the model was trained with the condition of every scan (condition_dropout_prob 0); give condition: "
             f"{', '.join(self.condition_names)}."),
            (condition is not None and of_condition != 1.0 and not config.get("null_condition", True),
             "the model was trained with the condition of every scan (condition_dropout_prob 0), so it cannot be guided by it; "
             "set condition_guidance_scale to 1."),
            ((scale != 1.0 or of_condition != 1.0 or labels is None) and not config.get("null_class", True),
             "the model was trained with the class of every scan (class_dropout_prob 0) and has no null class, which "
             "guidance and images without a class need; give class_labels, and leave guidance_scale at 1."),
            (request.jump_n_sample > 1 and not is_ancestral(self.scheduler),
             f"jump_n_sample is {request.jump_n_sample}, but a {scheduler_class.__name__} cannot go back; take 1, or a "
             "DDPMScheduler."),
        )  # fmt: skip
        self.class_indices(labels, request.num_images)
        if condition is not None:
            request.condition = self.read_planes(
                condition, self.condition_names, "condition", self.shape(request)
            )
            refuse(
                (bool(self.without_marks(request.condition, labels).any()),
                 f"condition {' and '.join(map(repr, self.unet.config.get('always_marked') or ()))} is empty, as that of no training "
                 f"scan{' of the class' * bool(self.class_names)} was; give a mask that shows a label, or sample without the condition."),
            )  # fmt: skip
        if "image" in self.edits:
            names, one = self.channel_names or ("",), request.image
            given = one if isinstance(one, dict) or len(names) > 1 else {names[0]: one}
            planes = self.read_planes(given, names, "image", self.shape(request))
            request.image = torch.cat([*planes.values()], dim=1).to(self._execution_device)  # (B, C, H, W)
        if "mask_image" in self.edits:
            count, _, *size = self.shape(request)
            mask = as_images(request.mask_image, "mask_image", (count, 1, *size))
            request.mask_image = mask.to(self._execution_device) >= 0.5
            refuse(
                (not request.mask_image.any(),
                 "mask_image has no white pixel, of half its range or more, so nothing would change; paint white what is to "
                 "be sampled anew (of a mask of 0 and 1 in 8 bits, multiply by 255)."),
            )  # fmt: skip
        return request

    def class_indices(self, class_labels, num_images: int) -> torch.Tensor | None:
        """Turn names and indices into ``(num_images,)`` int64 indices; ``None`` stays ``None``.

        A number is the class of that name. It is an index only if no class has a number for its name.

        Raises:
            ValueError: for an unknown class, or if the numbers of classes and images differ.
        """
        if class_labels is None:
            return None
        num_classes = self.unet.config.num_class_embeds
        if hasattr(class_labels, "tolist"):  # arrays and tensors
            class_labels = class_labels.tolist()
        if isinstance(class_labels, (str, int)):
            class_labels = [class_labels] * num_images
        refuse(
            (not num_classes, "class_labels were given, but the model was trained without classes; leave them out."),
            (len(class_labels) != num_images,
             f"{len(class_labels)} class labels were given for {num_images} images; give one an image, and num_images."),
        )  # fmt: skip

        def plain(label: str | int) -> str:  # é is one letter, or e and an accent
            return unicodedata.normalize("NFC", str(label))

        by_name = {plain(name): index for index, name in enumerate(self.class_names)}
        if not any(name.isdecimal() for name in by_name):
            by_name |= {str(index): index for index in range(num_classes)}
        for label in class_labels:
            if plain(label) not in by_name:
                known = ", ".join(self.class_names) or f"0 to {num_classes - 1}"
                raise ValueError(f"class {label!r} is not in the model; its classes are: {known}.")
        return torch.tensor([by_name[plain(label)] for label in class_labels], device=self._execution_device)

    def read_planes(
        self, given: dict[str, GivenImage], names: Sequence[str], what: str, shape: tuple
    ) -> dict[str, torch.Tensor]:
        """Images and masks by name as tensors in [0, 1]: ``(B, 1, H, W)`` of an image, ``(B, labels, H, W)`` of a mask.

        A lower resolution is brought to ``(H, W)`` by repeating its pixels.

        Args:
            given: by name.
            names: that have to be given, in the order of the result.
            what: they are, for errors.
            shape: of the samples, ``(B, C, H, W)``.

        Raises:
            ValueError: for names, sizes, numbers or labels that do not fit the model.
        """
        known, is_dict = ", ".join(names), isinstance(given, dict)
        missing = [name for name in names if is_dict and name not in given]
        unknown = [name for name in given if name not in names] if is_dict else []
        refuse(
            (not is_dict, f"{what} is a {type(given).__name__}; give a dict by name, of: {known}."),
            (bool(unknown), f"{what} has {unknown and unknown[0]!r}, which the model does not know; give {known}."),
            (bool(missing), f"{what} lacks {missing and missing[0]!r}; the model was trained with {known}."),
        )  # fmt: skip
        count, _, height, width = shape
        found = {}
        for name in names:
            factor, labels = factor_of(name), self.mask_labels.get(name)
            refuse(
                (height % factor or width % factor,
                 f"{width}x{height} are no multiples of {factor}, which {name} needs; take another height and width."),
            )  # fmt: skip
            called = f"{what} {name!r}" if name else what
            plane = given[name], called, (count, 1, height // factor, width // factor)
            images = as_one_hot(*plane, labels) if labels else as_images(*plane)
            found[name] = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
        return found

    def without_marks(
        self, condition: dict[str, torch.Tensor], class_labels: str | int | Sequence[str | int] | None
    ) -> torch.Tensor:
        """Which images of a condition by name, as of `read_planes`, have an empty mask that no scan of their class had; ``(B,)``."""
        count = len(next(iter(condition.values())))
        indices = self.class_indices(class_labels, count)
        names = self.class_names or ("",)
        asked = [names] * count if indices is None else [[names[i]] for i in indices.tolist()]
        found = torch.zeros(count, dtype=torch.bool)
        for mask, classes in (self.unet.config.get("always_marked") or {}).items():
            is_asked = torch.tensor([set(of_image) <= set(classes) for of_image in asked])
            found |= is_asked & ~condition[mask].flatten(1).any(dim=1)
        return found

    def shape(self, request: Request) -> tuple[int, int, int, int]:
        """The images' shape ``(B, C, H, W)``; the size is that of the training if none is given."""
        size = self.unet.config.sample_size
        height, width = (size if n is None else n for n in (request.height, request.width))
        return request.num_images, self.unet.config.out_channels, height, width

    def begin(self, request: Request) -> Chain:
        """The chain of a request: the last steps of all, as many as its strength says."""
        total = self.scheduler.config.num_train_timesteps
        scheduler = self.set_timesteps(request.num_inference_steps or total)
        step_ends = scheduler.timesteps[:: scheduler.order] + 1
        start = int((step_ends - request.strength * total).abs().argmin()) * scheduler.order
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(start)
        calls = range(start, len(scheduler.timesteps))
        known, scales = {}, {}
        if request.class_labels is not None:
            known["class_labels"] = self.class_indices(request.class_labels, request.num_images)
            scales["class_labels"] = request.guidance_scale
        if request.condition is not None:
            parts = [part.to(self._execution_device, self.unet.dtype) for part in request.condition.values()]
            # The last channel says that the condition is known
            known["condition"] = torch.cat(
                [*parts, torch.ones_like(parts[0][:, :1])], dim=1
            )  # (B, K + 1, H, W)
            apart = request.condition_guidance_scale
            scales["condition"] = request.guidance_scale if apart is None else apart
        return Chain(
            request=request,
            known=known,
            scales=scales,
            shape=self.shape(request),
            device=self._execution_device,
            # bf16 steps would add noise of their own
            dtype=torch.promote_types(self.unet.dtype, torch.float32),
            scheduler=scheduler,
            calls=with_jumps(calls, request.jump_length, request.jump_n_sample),
        )

    def set_timesteps(self, num_inference_steps: int) -> SchedulerMixin:
        """The scheduler, set to exactly that many steps. They begin at T - 1, where there is nothing but noise.

        Two faults of diffusers that show at T = 300 are mended. "Trailing" timesteps come from a range of floats, which
        for 7 or 28 steps has one too many, at -1. `DDIMScheduler` takes steps of T // num_inference_steps, whatever its
        timesteps are. For fewer than all steps first-order DPM-Solver++, which is DDIM, replaces it (Lu et al. 2022,
        arXiv:2211.01095, section 4).

        Schedulers that take timesteps get those of `spaced_timesteps`. Others, such as UniPC, space theirs evenly.
        """
        scheduler, total = self.scheduler, self.scheduler.config.num_train_timesteps
        trailing = scheduler.config.timestep_spacing == "trailing"
        if num_inference_steps == total and not trailing:  # the other spacings hold a timestep twice then
            scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
            trailing = True
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
            # diffusers' finite stand-in for zero SNR can be too small
            scheduler.sigmas[0] = 2 * scheduler.sigmas[1]
        return scheduler

    @property
    def knows_moments(self) -> bool:
        """Whether the model keeps the moments of its training scans. If so, chains start from them."""
        return getattr(self.unet, "x_0_mean", None) is not None

    def draw_start(self, chain: Chain) -> torch.Tensor:
        """Draw x_T ``(B, C, H, W)``: where the forward process ends if the model knows the moments, else from N(0, I).

        q(x_T) has the mean sqrt(alpha_bar_T) E[x_0], and the covariance alpha_bar_T Cov[x_0] + (1 - alpha_bar_T) I
        (Ho et al. 2020, equation 4). N(0, I) has neither, unless the schedule leaves nothing of the scan. So an x_0 of the
        Gaussian with the training scans' moments, those of the class or of all, is drawn and noised. With a condition it is
        their mean.
        """
        scheduler, noise = chain.scheduler, chain.draw_noise()
        if not self.knows_moments:
            # x_T / sqrt(alpha_bar_T) where a scheduler counts in sigmas; with "trailing" its own start is a little short
            return noise * (1.0 if scheduler.init_noise_sigma == 1 else alpha_bars_of(scheduler)[0] ** -0.5)
        mean, components = (x.to(noise) for x in self.unet.x_0_moments(*chain.shape[-2:]))
        if "condition" in chain.known:
            components = components[:0]  # a head drawn from them would not be the given one
        labels = chain.known.get("class_labels")
        x_0 = mean[-1:] if labels is None else mean[labels]  # (1 or B, C, H, W)
        shape, kind = (len(noise), len(components)), {"device": noise.device, "dtype": noise.dtype}
        weights = randn_tensor(shape, generator=chain.request.generator, **kind)  # (B, K)
        x_0 = x_0 + torch.einsum("bk,kchw->bchw", weights, components)
        return scheduler.add_noise(x_0, noise, scheduler.timesteps[:1])

    def denoise(self, chain: Chain, x_t: torch.Tensor) -> MRIDDPMPipelineOutput | tuple:
        """Run the reverse process (algorithm 2), from x_t to images in the form that the request asks for.

        Args:
            chain: as ``begin`` made it.
            x_t: at the first call, ``(B, C, H, W)``. Of a request with a mask, what it leaves black stays as in the image.

        Raises:
            ValueError: when a prediction is not finite.
        """
        request, scheduler, calls = chain.request, chain.scheduler, chain.calls
        # Timesteps stay on the CPU, where schedulers look them up in every step; the network has its own
        timesteps, on_device = scheduler.timesteps, scheduler.timesteps.to(chain.device)
        alpha_bars, total = alpha_bars_of(scheduler), scheduler.config.num_train_timesteps
        takes_generator = "generator" in inspect.signature(scheduler.step).parameters
        step_kwargs = {"generator": request.generator} if takes_generator else {}

        x_ts, x_0s, finite = [], [], torch.tensor(True, device=chain.device)
        for step, i in enumerate(self.progress_bar(calls)):
            t = timesteps[i]
            if step and i <= calls[step - 1]:  # back over the stretch just sampled: q(x_t | x_s) for s < t
                kept = alpha_bars[i] / [*alpha_bars, 1.0][calls[step - 1] + 1]
                x_t = kept**0.5 * x_t + (1 - kept) ** 0.5 * chain.draw_noise()
            if request.mask_image is not None:  # what is known gets the noise of each step
                x_t = torch.where(request.mask_image, x_t, chain.noised(request.image, i))
            model_input = scheduler.scale_model_input(x_t, t)  # (B, C, H, W)
            inside = request.guidance_start * total <= total - 1 - float(t) < request.guidance_end * total
            scales = chain.scales if inside else dict.fromkeys(chain.scales, 1.0)
            prediction = self.predict(model_input, on_device[i], chain.known, scales)
            finite = finite & prediction.isfinite().all()  # clipping would hide it; read after the loop
            ratio = request.dynamic_thresholding_ratio
            prediction, x_0 = self.clip(prediction, model_input, alpha_bars[i], ratio)
            x_t = scheduler.step(prediction, t, x_t, **step_kwargs).prev_sample
            if i == len(timesteps) - 1 and is_ancestral(scheduler):
                x_t = x_0  # z = 0 in the last step (algorithm 2), where diffusers draws one unless t is 0
            if request.output_trajectory:
                x_ts.append(model_input.cpu())
                x_0s.append(x_0.cpu())
            if request.callback_on_step_end is not None:
                tensors = {"x_t": x_t, "x_0": x_0}
                tensors = {name: tensors[name] for name in request.callback_on_step_end_tensor_inputs}
                x_t = (request.callback_on_step_end(self, step, t, tensors) or {}).get("x_t", x_t)

        if not (finite & x_t.isfinite().all()):
            raise ValueError(
                "the network's predictions are not finite numbers; take other weights, of an earlier step or in "
                "float32, or a lower guidance_scale."
            )
        unit = (x_t.float() / 2 + 0.5).clamp(0, 1)
        if request.mask_image is not None:
            unit = torch.where(request.mask_image, unit, request.image)
        channels = self.split(unit, request.output_type)
        # Both at once: of a dict alone BaseOutput would make fields
        output = MRIDDPMPipelineOutput(
            images=channels if len(channels) > 1 else next(iter(channels.values())),
            channels=channels if self.channel_names else None,
        )
        if request.output_trajectory:
            output["x_t"], output["x_0"] = torch.stack(x_ts), torch.stack(x_0s)
            output["timesteps"] = timesteps[calls]
        self.maybe_free_model_hooks()
        return output if request.return_dict else output.to_tuple()

    def split(self, unit: torch.Tensor, output_type: str) -> dict:
        """Images ``(B, C, H, W)`` in [0, 1] by the channels' names, each in the form asked for."""
        found, start = {}, 0
        for name in self.channel_names or ("",):
            labels = self.mask_labels.get(name)
            planes = unit[:, start : start + len(labels or (name,))]
            found[name] = to_masks(planes, output_type, labels) if labels else to_images(planes, output_type)
            start += planes.shape[1]
        return found

    def predict(
        self, model_input, timestep, known: dict[str, torch.Tensor], scales: dict[str, float]
    ) -> torch.Tensor:
        """The network's prediction for ``(B, C, H, W)``; with guidance, by one forward pass of two or three times the batch.

        With class and condition that is p_0 + s_condition (p_condition - p_0) + s_class (p_both - p_condition), p_0 being that
        without both (Brooks et al. 2023, arXiv:2211.09800, equation 3). Where the scales are one number, p_condition falls out.
        """
        dtype, model_input = model_input.dtype, model_input.to(self.unet.dtype)
        nulls = {"class_labels": self.unet.config.num_class_embeds, "condition": 0}
        levels, steps = [known], []  # with less and less known; how far to go from each one to that before it
        for name, scale in scales.items():
            below = {**levels[-1], name: torch.full_like(known[name], nulls[name])}
            if steps and steps[-1] == scale:
                levels[-1] = below
            else:
                levels.append(below)
                steps.append(scale)
        while steps and steps[-1] == 1.0:  # all the way, wherever it began
            steps.pop()
            levels.pop()
        inputs = {
            "class_labels": None,
            **{name: torch.cat([level[name] for level in levels]) for name in known},
        }
        batch = torch.cat([model_input] * len(levels))  # (levels * B, C, H, W)
        predictions = self.unet(batch, timestep, **inputs).sample.to(dtype).chunk(len(levels))
        prediction = predictions[-1]
        for i in reversed(range(len(steps))):
            prediction = prediction + steps[i] * (predictions[i] - predictions[i + 1])
        return prediction

    def clip(
        self, prediction, x_t, alpha_bar: float, dynamic_thresholding_ratio: float | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A prediction whose x_0 lies in the range of images, and that x_0, for any scheduler.

        diffusers' schedulers each clip in their own way, or not at all. After this clipping theirs changes nothing. With a
        ratio under 1 dynamic thresholding replaces clipping.
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


class MRIDDPMPipeline(MRIDDPMBasePipeline):
    """Sample synthetic brain MRI slices from noise by the reverse process (MRIDiff, algorithm 2).

    Args:
        unet: an ``AttentionUNet2DModel``; its config holds the size it was trained at and its classes' names.
        scheduler: the ``DDPMScheduler`` it was trained with, or any diffusers scheduler made from its config.
    """

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
        condition: dict[str, GivenImage] | None = None,
        **options,
    ) -> MRIDDPMPipelineOutput | tuple:
        """Sample ``num_images`` slices.

        Args:
            class_labels: a class by name or index, for all images or one for each; ``None`` samples without a class.
            num_images: how many.
            num_inference_steps: steps of the reverse chain; all of the training's when ``None``.
            guidance_scale: classifier-free guidance (Ho & Salimans 2022): how closely an image follows its class; 1 is none.
            generator: one for all images, or a list with one for each, which makes an image independent of its batch.
            height: pixels; the size trained at when ``None``.
            width: pixels; the size trained at when ``None``.
            output_type: ``"pil"`` (8 bits, ``L``), ``"pil16"`` (16 bits, ``I;16``), ``"np"`` or ``"pt"``.
            return_dict: return an ``MRIDDPMPipelineOutput`` instead of a tuple.
            condition: what is given, by name, such as ``{"seg": mask, "t1": image}``: for all images, or one for each. Images
                are PIL, or ``(H, W)``, ``(B, H, W)`` or ``(B, 1, H, W)`` in [0, 1]. Masks have the value of a label in each
                pixel, 0 for none; 255 too is the label of a mask that has one. ``"lowres:4"`` is a small image,
                ``(H / 4, W / 4)``. ``None`` samples without a condition.
            options: arguments that are seldom needed:

                - ``condition_guidance_scale``: as ``guidance_scale``, of the condition alone; the same when ``None``. If both
                  differ, the network sees each image three times a step.
                - ``guidance_start``, ``guidance_end``: shares of the chain's timesteps between which guidance acts. It is
                  often better without guidance at both ends (Kynkäänniemi et al. 2024, arXiv:2404.07724). Without
                  guidance the network sees each image once a step instead of twice.
                - ``dynamic_thresholding_ratio``: such as 0.995. Each estimate of x_0 is clipped at this quantile of its
                  pixels' magnitudes and divided by it, if it is over 1 (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
                - ``output_trajectory``: return also the network's input and its estimate at each step.
                - ``callback_on_step_end``: called after each step as ``f(pipeline, step, timestep, tensors)``. The
                  chain continues with the x_t that it returns as ``{"x_t": ...}``.
                - ``callback_on_step_end_tensor_inputs``: the tensors it is given: ``"x_t"`` (default), ``"x_0"``.

        Raises:
            TypeError: for an unknown argument.
            ValueError: for what cannot be sampled; the sentence names the argument and its possible values. Also when
                the network's predictions are not finite.
        """
        request = self.check_inputs(
            class_labels=class_labels, num_images=num_images, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, generator=generator, height=height, width=width,
            output_type=output_type, return_dict=return_dict, condition=condition, **options,
        )  # fmt: skip
        chain = self.begin(request)
        return self.denoise(chain, self.draw_start(chain))


class MRIDDPMImg2ImgPipeline(MRIDDPMBasePipeline):
    """Sample variations of a given scan: it is noised for a part of the chain and denoised from there (SDEdit)."""

    edits = ("image", "strength")

    @torch.no_grad()
    def __call__(
        self,
        class_labels=None,
        *,
        image: GivenImage | dict[str, GivenImage],
        strength: float = 0.2,
        **arguments,
    ) -> MRIDDPMPipelineOutput | tuple:
        """Sample ``num_images`` variations.

        Args:
            class_labels: as in ``MRIDDPMPipeline``.
            image: the scan to start from, or one for each image. It is PIL, or ``(H, W)``, ``(B, H, W)`` or
                ``(B, 1, H, W)`` in [0, 1]. Of several channels a dict by name, a mask in values of labels.
            strength: share of the timesteps that is run from the noised ``image`` (SDEdit, arXiv:2108.01073). It is over
                0 and up to 1. At 32 to 64 pixels 0.2 keeps the head's outline and changes its inside.
            arguments: all others of ``MRIDDPMPipeline``, whose errors it raises.
        """
        request = self.check_inputs(class_labels=class_labels, image=image, strength=strength, **arguments)
        chain = self.begin(request)
        return self.denoise(chain, chain.noised(request.image, chain.calls[0]))


class MRIDDPMInpaintPipeline(MRIDDPMBasePipeline):
    """Sample a part of a given scan anew, and leave every other pixel as it is (RePaint)."""

    edits = ("image", "mask_image", "strength", "jump_length", "jump_n_sample")

    @torch.no_grad()
    def __call__(
        self, class_labels=None, *, image: GivenImage | dict[str, GivenImage], mask_image: GivenImage, strength: float = 1.0,
        jump_length: int = 10, jump_n_sample: int | None = None, **arguments,
    ) -> MRIDDPMPipelineOutput | tuple:  # fmt: skip
        """Sample ``num_images`` images that differ from the scan in the white part of the mask.

        Args:
            class_labels: as in ``MRIDDPMPipeline``.
            image: the scan, or one for each image, as in ``MRIDDPMImg2ImgPipeline``.
            mask_image: where ``image`` is sampled anew, in all channels: white, or 0.5 and more. It has the forms of one channel.
            strength: share of the timesteps that is run. Under 1 what the mask covers shows through in part.
            jump_length: number of steps that are repeated, after going back to the noise before them.
            jump_n_sample: how often each such stretch is run, so that both sides of the mask's edge agree (RePaint,
                arXiv:2201.09865, section 4.2). ``None`` is 10 with a ``DDPMScheduler``; other schedulers cannot go back.
            arguments: all others of ``MRIDDPMPipeline``, whose errors it raises.
        """
        if jump_n_sample is None:
            jump_n_sample = 10 if is_ancestral(self.scheduler) else 1
        request = self.check_inputs(
            class_labels=class_labels, image=image, mask_image=mask_image, strength=strength,
            jump_length=jump_length, jump_n_sample=jump_n_sample, **arguments,
        )  # fmt: skip
        chain = self.begin(request)
        # Nothing of what the mask covers may show through x_T
        x_t = self.draw_start(chain) if chain.calls[0] == 0 else chain.noised(request.image, chain.calls[0])
        return self.denoise(chain, x_t)


def refuse(*cases: tuple[bool, str]) -> None:
    """Raise a ``ValueError`` of the first case that holds, each with its sentence."""
    for holds, sentence in cases:
        if holds:
            raise ValueError(sentence)


def factor_of(name: str) -> int:
    """How many times smaller a side of what is given under this name is: 4 of ``"lowres:4"``, else 1."""
    return int(name.partition(":")[2] or 1)


def as_images(given: GivenImage, name: str, shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Bring a scan or mask, or one for each image, to ``shape`` as float32 in [0, 1].

    Raises:
        ValueError: when it has another size, number or range. Nothing is resized: that is for the caller to decide.
    """
    pixels = stacked(given, name, shape, as_array)
    inside = ((pixels >= 0) & (pixels <= 1)).all()
    refuse((not inside, f"{name} has values outside [0, 1]; scale it to that range, black to white."))
    return torch.from_numpy(pixels).expand(shape)


def label_values(labels: Sequence[str]) -> list[int]:
    """What the pixels of each label are in an image: the number that it is called, where all have one, or else 1, 2, ..."""
    numbers = [int(label) for label in labels if label.isdecimal()]
    are_values = len({*numbers} - {0}) == len(labels) and max(numbers) <= MAX_VALUE
    return numbers if are_values else [*range(1, len(labels) + 1)]


def as_one_hot(
    given: GivenImage, name: str, shape: tuple[int, int, int, int], labels: Sequence[str]
) -> torch.Tensor:
    """Bring a mask, or one for each image, to ``(B, labels, H, W)``: 1 where a pixel has the label, else 0.

    Args:
        given: the values of labels, 0 for none.
        name: of the mask, for errors.
        shape: ``(B, 1, H, W)``.
        labels: their names.

    Raises:
        ValueError: when it has another size or number, or a label that is unknown. Nothing is resized.
    """
    pixels = known_labels(stacked(given, name, shape, as_numbers), name, labels)
    planes = [pixels == value for value in label_values(labels)]
    return torch.from_numpy(np.concatenate(planes, axis=1).astype(np.float32)).expand(shape[0], -1, -1, -1)


def known_labels(pixels: np.ndarray, name: str, labels: Sequence[str]) -> np.ndarray:
    """A mask of any shape, in which 255 too may be the only label.

    Raises:
        ValueError: for labels that the model does not know.
    """
    values = [0, *label_values(labels)]
    if len(labels) == 1 and np.isin(pixels, (0, 255)).all():  # a black and white picture
        return pixels / np.float32(255) * values[1]
    strange = np.setdiff1d(pixels, values)  # sorted
    called = zip(values, ("none", *labels), strict=True)
    told = ", ".join(f"{value}" if f"{value}" == label else f"{value} ({label})" for value, label in called)
    first = ", ".join(f"{value:g}" for value in strange[:MOST_NAMED]) + ", ..." * (len(strange) > MOST_NAMED)
    refuse(
        (len(strange) > 0,
         f"{name} has the label{'s' * (len(strange) > 1)} {first}, which the model does not know; it has {told}."),
    )  # fmt: skip
    return pixels


def stacked(
    given: GivenImage, name: str, shape: tuple[int, int, int, int], read: Callable[..., np.ndarray]
) -> np.ndarray:
    """A picture, or one for each image, as ``(1 or B, C, H, W)``.

    Raises:
        ValueError: when it has another size or number than ``shape``.
    """
    arrays = [read(part, name) for part in (given if isinstance(given, (list, tuple)) else [given])]
    one_size = bool(arrays) and all(array.shape == arrays[0].shape for array in arrays)
    refuse((not one_size, f"{name} is no image, or images of several sizes; give (H, W) or (B, H, W)."))
    pixels = np.stack(arrays)
    (count, channels, height, width), size = shape, pixels.shape[-2:]
    coloured = (pixels.shape[-1] <= 4 and pixels.shape[-1] != width) or (
        arrays[0].ndim == 4 and pixels.shape[-3] != channels
    )
    refuse(
        (pixels.ndim < 3 or coloured,
         f"{name} of shape {arrays[0].shape} is not grey; give (H, W), (B, H, W) or (B, 1, H, W)."),
        (size != (height, width),
         f"{name} is {size[-1]}x{size[0]} pixels, but the model takes {width}x{height}; resize it to that first."),
    )  # fmt: skip
    pixels = pixels.reshape(-1, channels, height, width)
    refuse(
        (len(pixels) not in (1, count),
         f"{len(pixels)} are given as {name} for {count} images; give 1, or one an image."),
    )  # fmt: skip
    return pixels


def to_images(unit: torch.Tensor, output_type: str) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Convert images ``(B, 1, H, W)`` in [0, 1] to ``output_type``."""
    if output_type == "pt":
        return unit
    array = unit[:, 0].cpu().numpy()  # (B, H, W)
    if output_type == "np":
        return array
    levels = np.uint16 if output_type == "pil16" else np.uint8
    return [Image.fromarray(image) for image in (array * np.iinfo(levels).max).round().astype(levels)]


def to_masks(
    planes: torch.Tensor, output_type: str, labels: Sequence[str]
) -> list[Image.Image] | np.ndarray | torch.Tensor:
    """Convert one channel a label, ``(B, labels, H, W)`` in [0, 1], to values of labels: the likeliest, 0 where none is 0.5."""
    values = label_values(labels)
    small = max(values) <= 255
    share, label = planes.max(dim=1, keepdim=True)  # (B, 1, H, W)
    found = torch.where(share >= 0.5, torch.tensor(values, device=label.device)[label], 0)
    if output_type == "pt":
        return found.to(torch.uint8 if small else torch.uint16)
    array = found[:, 0].cpu().numpy().astype(np.uint8 if small else np.uint16)  # (B, H, W)
    if output_type == "np":
        return array
    none, *others = LABEL_COLOURS
    palette = np.array([none, *(others[i % len(others)] for i in range(255))], dtype=np.uint8)
    masks = [Image.fromarray(mask) for mask in array]
    for mask in masks if small else ():
        mask.putpalette(palette.tobytes())  # of all 256, or a file would have too few bits
    return masks


def as_numbers(given: Image.Image | np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """One mask's pixels as they are, in float32.

    Raises:
        ValueError: for a picture in colours, of which nobody knows the labels.
    """
    if isinstance(given, Image.Image) and given.mode not in ("1", "L", "P", "I;16"):
        raise ValueError(f"{name} is a PIL image of mode {given.mode}; give labels as 'L', 'P' or '1'.")
    array = np.asarray(given.cpu() if isinstance(given, torch.Tensor) else given)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} is of {array.dtype}; give numbers of labels.")
    return array.astype(np.float32)


def as_array(given: Image.Image | np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """One picture's intensities as float32, divided by the largest value of its type.

    Raises:
        ValueError: for a type whose range is unknown.
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
    """The timesteps of a chain, from T - 1 down: at (i / N)^``SPACING`` of T for i = N ... 1, all different."""
    ends, last = [], 0
    for i in range(1, num_inference_steps + 1):
        even, share = num_train_timesteps * i / num_inference_steps, i / num_inference_steps
        last = max(round(even * share ** (SPACING - 1)), last + 1)
        ends.append(last - 1)
    return ends[::-1]


def is_ancestral(scheduler: SchedulerMixin) -> bool:
    """Whether each step depends on x_t alone and gives a sample of x_{t-1}. Only then can the chain go back."""
    return isinstance(scheduler, DDPMScheduler)


def alpha_bars_of(scheduler: SchedulerMixin) -> list[float]:
    """alpha_bar, the signal's share of the variance, at each of the scheduler's timesteps (Ho et al. 2020, equation 4)."""
    if hasattr(scheduler, "sigmas"):  # noise over signal, of each step
        return (1 / (1 + scheduler.sigmas[: len(scheduler.timesteps)].double() ** 2)).tolist()
    return scheduler.alphas_cumprod[scheduler.timesteps].tolist()


def with_jumps(calls: range, jump_length: int, jump_n_sample: int) -> list[int]:
    """The order of calls if each stretch of ``jump_length`` is run ``jump_n_sample`` times (RePaint, figure 9)."""
    stretches = [calls[start : start + jump_length] for start in range(0, len(calls), jump_length)]
    return [i for stretch in stretches for _ in range(jump_n_sample) for i in stretch]
