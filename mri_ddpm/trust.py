"""What makes a pipeline from anybody fit to open: none of its code runs, and its files name classes of ours alone."""

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from huggingface_hub import snapshot_download

PIPELINE_MODULE = "pipeline_mri_ddpm"
PIPELINE_CLASSES = ("MRIDDPMPipeline", "MRIDDPMImg2ImgPipeline", "MRIDDPMInpaintPipeline")
UNET_MODULE, UNET_CLASS = "mri_ddpm.models.modeling_attention_unet", "AttentionUNet2DModel"
SHADOWS = ("None.py", "scheduler/diffusers.py", f"unet/{UNET_MODULE}.py")  # diffusers would look here first
MAX_TIMESTEPS = 100_000  # a number out of a broken config would fill the memory


class CheckedPipeline(DiffusionPipeline):
    """A pipeline that opens with the installed classes, whatever code lies beside the weights."""

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, **kwargs):
        """Read ``model_index.json`` and put the installed classes in the place of the code it names, which never runs.

        Raises:
            ValueError: when it, or a config beside it, names a class that is none of ours.
        """
        try:
            config = super().load_config(pretrained_model_name_or_path, **kwargs)
        except (ValueError, RecursionError):  # of numbers and of lists without end
            if not (Path(pretrained_model_name_or_path) / "model_index.json").is_file():
                raise
            config = None
        if not isinstance(config, dict):
            raise ValueError(
                f"{pretrained_model_name_or_path}/model_index.json holds no mapping; it is not opened."
            )
        check_index(config, Path(pretrained_model_name_or_path))
        config.update(_class_name=cls.__name__, unet=[UNET_MODULE, UNET_CLASS])
        return config

    @classmethod
    def download(cls, pretrained_model_name, **kwargs) -> str:
        """Fetch configs and weights of a Hub repository, and none of its code; the folder they are in."""
        variant = f".{kwargs['variant']}" if kwargs.get("variant") else ""
        files = {
            "scheduler": ["scheduler/scheduler_config.json"],
            "unet": ["unet/config.json", f"unet/diffusion_pytorch_model{variant}.safetensors"],
        }
        wanted = ["model_index.json"] + [f for name in files if name not in kwargs for f in files[name]]
        names = ("cache_dir", "force_download", "local_files_only", "token", "revision")
        hub_kwargs = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        return snapshot_download(pretrained_model_name, allow_patterns=wanted, **hub_kwargs)


def check_index(index: dict, folder: Path) -> None:
    """Refuse a pipeline folder whose JSON files name other classes than ours and diffusers' schedulers.

    Raises:
        ValueError: naming the file, what it says, and what it should say; or a file that diffusers would run.
    """
    for name in SHADOWS:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} is code that a pipeline may not bring; remove it.")
    scheduler = index.get("scheduler")
    name = scheduler[-1] if isinstance(scheduler, list) and scheduler else None
    scheduler_class = getattr(diffusers, name, None) if isinstance(name, str) else None
    is_scheduler = isinstance(scheduler_class, type) and issubclass(scheduler_class, SchedulerMixin)
    known = {  # what a file may say, the Hub's form of the usual class first
        "_class_name": [*([PIPELINE_MODULE, name] for name in PIPELINE_CLASSES), *PIPELINE_CLASSES],
        "unet": [[UNET_MODULE.rpartition(".")[-1], UNET_CLASS], [UNET_MODULE, UNET_CLASS]],
        "scheduler": [["diffusers", name if is_scheduler else "DDPMScheduler"]],
    }
    for key in (*known, *(key for key, value in index.items() if isinstance(value, list))):
        wanted = known.get(key, ["no further component"])
        if index.get(key) not in wanted:
            raise ValueError(
                f"{folder / 'model_index.json'} says {key} is {repr(index.get(key)):.200}, where {wanted[0]!r} is wanted; it is not "
                "opened."
            )
    check_config(folder / "unet" / "config.json", UNET_CLASS)
    scheduler_file = folder / "scheduler" / "scheduler_config.json"
    check_config(scheduler_file, name, lambda config: rehearse(scheduler_class, config))
    for file in (folder / "unet").glob("*.index*.json"):  # its entries are paths, and could lead anywhere
        raise ValueError(
            f"{file} spreads the weights over several files; save them whole, with a larger max_shard_size."
        )


def rehearse(scheduler_class: type[SchedulerMixin], config: dict) -> None:
    """Build a scheduler and take one step with it, in which a value that it cannot use shows itself."""
    total = config.get("num_train_timesteps", 1000)
    if not 1 <= total <= MAX_TIMESTEPS:
        raise ValueError(f"num_train_timesteps is not from 1 to {MAX_TIMESTEPS}")
    scheduler, x_t = scheduler_class.from_config(config), torch.zeros(1, 1, 2, 2)
    if hasattr(scheduler, "alphas_cumprod"):  # else no call of the pipeline will take it
        scheduler.set_timesteps(min(2, total))
        scheduler.step(x_t, scheduler.timesteps[0], scheduler.scale_model_input(x_t, scheduler.timesteps[0]))


def check_config(file: Path, class_name: str, build: Callable[[dict], object] = dict) -> None:
    """Refuse a component's config that is none, is another class's, or does not build; one that is not there is fine.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    if not file.is_file():
        return  # given to from_pretrained by the caller, or missed by diffusers in a moment
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        found = config["_class_name"]
        build(config)
    except Exception as error:  # values of any type, or too large for any memory, break anything
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise ValueError(f"{file} is no config of a {class_name}: {reason:.300}.") from error
    if found != class_name:
        raise ValueError(
            f"{file} says _class_name is {repr(found):.200}, where {class_name!r} is wanted; it is not opened."
        )
