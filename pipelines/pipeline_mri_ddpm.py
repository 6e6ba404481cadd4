"""The pipeline, whole, in one file that is uploaded to the Hub as it is (diffusers and what it needs, and no sibling)."""

import inspect
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import snapshot_download
from PIL import Image

UNET_MODULE, UNET_CLASS = "mri_ddpm.models.modeling_attention_unet", "AttentionUNet2DModel"
INSTALLED = __name__.startswith("mri_ddpm.")  # and not a copy that diffusers took from a repository


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

    def save_config(self, save_directory, **kwargs) -> None:
        """Write ``model_index.json`` and the code that it names, so that what is saved opens with diffusers alone.

        ``save_pretrained`` and ``push_to_hub`` come through here. diffusers itself would record the installed package's
        modules, and such a repository opens for nobody else (huggingface/diffusers#6563).
        """
        super().save_config(save_directory, **kwargs)
        folder, index_file = Path(save_directory), Path(save_directory) / self.config_name
        index = json.loads(index_file.read_text())
        unet = getattr(self.unet, "_orig_mod", self.unet)  # as it was before torch.compile
        unet_file = Path(inspect.getfile(type(unet)))
        (folder / "unet").mkdir(exist_ok=True)
        shutil.copyfile(__file__, folder / Path(__file__).name)
        shutil.copyfile(unet_file, folder / "unet" / unet_file.name)
        index["_class_name"] = [Path(__file__).stem, MRIDDPMPipeline.__name__]
        index["unet"] = [unet_file.stem, type(unet).__name__]
        index.pop("_name_or_path", None)  # a folder of this machine is nobody else's business
        index_file.write_text(json.dumps(index, indent=2) + "\n")

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, **kwargs):
        """Read ``model_index.json`` and put the installed classes in the place of the code it names, which never runs.

        Raises:
            ValueError: when it, or a config beside it, names a class that is none of ours.
        """
        config = super().load_config(pretrained_model_name_or_path, **kwargs)
        if not isinstance(config, dict):
            raise ValueError(
                f"{pretrained_model_name_or_path}/model_index.json holds no mapping; it is not opened."
            )
        if INSTALLED:
            check_index(config, Path(pretrained_model_name_or_path))
            config.update(_class_name=cls.__name__, unet=[UNET_MODULE, UNET_CLASS])
        return config

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Fetch configs and weights of a Hub repository, and none of its code; the folder they are in."""
        if not INSTALLED:
            return super().download(pretrained_model_name, **kwargs)
        variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
        files = {
            "scheduler": ["scheduler/scheduler_config.json"],
            "unet": ["unet/config.json", f"unet/diffusion_pytorch_model{variant}.safetensors"],
        }
        wanted = ["model_index.json"] + [f for name in files if name not in kwargs for f in files[name]]
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return snapshot_download(pretrained_model_name, allow_patterns=wanted, **hub_kwargs)

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


def check_index(index: dict, folder: Path) -> None:
    """Refuse a pipeline folder whose JSON files name other classes than ours and diffusers' schedulers.

    Raises:
        ValueError: naming the file, what it says, and what it should say.
    """
    scheduler = index.get("scheduler")
    name = scheduler[-1] if isinstance(scheduler, list) and scheduler else None
    scheduler_class = getattr(diffusers, name, None) if isinstance(name, str) else None
    is_scheduler = isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)
    known = {  # what a file may say, the Hub's form first
        "_class_name": ([Path(__file__).stem, MRIDDPMPipeline.__name__], MRIDDPMPipeline.__name__),
        "unet": ([UNET_MODULE.rpartition(".")[-1], UNET_CLASS], [UNET_MODULE, UNET_CLASS]),
        "scheduler": (["diffusers", name if is_scheduler else "DDPMScheduler"],),
    }
    for key in (*known, *(key for key, value in index.items() if isinstance(value, list))):
        wanted = known.get(key, ("no further component",))
        if index.get(key) not in wanted:
            raise ValueError(
                f"{folder / 'model_index.json'} says {key} is {index.get(key)!r}, where {wanted[0]!r} is wanted; it is not "
                "opened."
            )
    check_config(folder / "unet" / "config.json", UNET_CLASS)
    check_config(folder / "scheduler" / "scheduler_config.json", name, scheduler_class.from_config)
    for file in (folder / "unet").glob("*.index*.json"):  # its entries are paths, and could lead anywhere
        raise ValueError(
            f"{file} spreads the weights over several files; save them whole, with a larger max_shard_size."
        )


def check_config(file: Path, class_name: str, build: Callable[[dict], object] = dict) -> None:
    """Refuse a component's config that is none, is another class's, or does not build; one that is not there is fine.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    if not file.is_file():
        return  # given to from_pretrained by the caller, or missed by diffusers in a moment
    try:
        config = json.loads(file.read_text())
        found = config["_class_name"]
        build(config)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ValueError(f"{file} is no config of a {class_name}: {error}.") from error
    if found != class_name:
        raise ValueError(
            f"{file} says _class_name is {found!r}, where {class_name!r} is wanted; it is not opened."
        )
