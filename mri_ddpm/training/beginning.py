"""A training that begins from a model: its classes and those of the new scans, and its weights in the new network.

E: embedding width, K: channels of the network's input.
"""

import dataclasses
import re

import torch

from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import Scans
from mri_ddpm.errors import InputError, import_extra
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.runs import Base, with_new_inputs


def in_order_of(base: Base, scans: Scans, config: TrainingConfig) -> Scans:
    """The scans with the base's classes and then the new ones, in whose order their labels are.

    Scans without classes are trained on as "no class", with all of the base's classes kept.

    Raises:
        InputError: for a class that differs from one of the base's by case, blanks, '_' or '-' alone, and for a ``--like`` that
            the base has not, or that no class needs.
    """
    old = base.class_names
    new = tuple(name for name in scans.class_names if name not in old) if config.class_conditional else ()
    known = {plain(name): name for name in old}
    for name in new:
        if alike := known.get(plain(name)):
            raise InputError(
                f"the scans have the class {name!r}, and {base.name} the class {alike!r}: if they are one, call it {alike!r} in the "
                "scans too; if not, give it a name that differs by more."
            )
    if config.like and (config.like not in old or not new):
        there = ", ".join(old) or "none"
        raise InputError(
            f"--like {config.like} names no class of {base.name}, which has: {there}."
            if config.like not in old
            else f"--like {config.like} is for classes that are new to {base.name}, and the scans have none; leave it out."
        )
    if not old:
        return scans
    names = old + new
    number = torch.tensor([names.index(name) for name in scans.class_names] or [len(names)]).numpy()
    for part in (scans.train, scans.validation, scans.test):
        if part is not None:
            part.class_labels = number[part.class_labels]
    return dataclasses.replace(scans, class_names=names if scans.class_names else ())


def plain(name: str) -> str:
    """A class's name without case, blanks, '_' and '-'."""
    return re.sub(r"[\s_-]+", "", name.casefold())


def refuse_other_channels(base: Base, unet: AttentionUNet2DModel) -> None:
    """Raise an ``InputError`` where what is drawn, or the labels of a mask, are not those of the base."""
    was, now = (
        (
            config["out_channels"],
            {name: list(labels) for name, labels in (config.get("mask_labels") or {}).items()},
        )
        for config in (base.unet_config, unet.config)
    )
    if was[0] != now[0] or any(now[1].get(name) != labels for name, labels in was[1].items()):
        raise InputError(
            f"{base.name} draws {was[0]} channel(s), with the labels {was[1] or 'of no mask'}, and this training {now[0]}, with "
            f"{now[1] or 'those of no mask'}; take scans with the channels and labels of the base."
        )


@torch.no_grad()
def begin_with(unet: AttentionUNet2DModel, base: Base, like: str | None) -> None:
    """Give a network the weights of its base, and to what is new in it a start.

    A class that is new starts as the class ``like``, or as the mean of the base's classes. An input that is new has no weight, so
    that the network is the base to the bit until it has learned to use it.
    """
    weights = base.unet.state_dict()
    start = base.class_names.index(like) if like else None

    def extended(rows: torch.Tensor, usual: torch.Tensor) -> torch.Tensor:
        """Rows of the old classes, new ones, and the row of "no class": ``(old + 1, ...)`` -> ``(classes + 1, ...)``."""
        new = (unet.config.num_class_embeds or 0) - (len(rows) - 1)
        first = usual if start is None else rows[start]
        return torch.cat([rows[:-1], first.expand(new, *first.shape), rows[-1:]])

    if unet.class_embedding is not None:
        width = unet.class_embedding.weight.shape[1]
        rows = weights.get("class_embedding.weight", torch.zeros(1, width))  # of no class: it adds nothing
        weights["class_embedding.weight"] = extended(rows, rows[:-1].mean(0) if len(rows) > 1 else rows[-1])
    if "x_0_mean" in weights:
        weights["x_0_mean"] = extended(weights["x_0_mean"], weights["x_0_mean"][-1])
    unet.load_state_dict(with_new_inputs(weights, unet))


def choose_trained(unet: AttentionUNet2DModel, config: TrainingConfig) -> None:
    """Leave those parameters trainable that ``--train_only`` names, after giving the network its adapter for "lora".

    Raises:
        InputError: when the package for adapters is not installed.
    """
    if config.train_only is None:
        return
    unet.requires_grad_(False)
    trained = [module for module in (unet.class_embedding, unet.augment_embedding) if module]
    if config.train_only == "norms":
        trained += [module for module in unet.modules() if isinstance(module, torch.nn.GroupNorm)]
        # Without a gradient for its input PyTorch's GroupNorm crashes in channels_last: the first convolution learns too
        trained += [unet.time_embedding, unet.conv_in]
    else:
        import_extra("peft", "lora")
        from peft import LoraConfig

        torch.manual_seed(config.seed)
        targets = [name for name, module in unet.named_modules() if takes_lora(name, module)]
        unet.add_adapter(LoraConfig(r=config.rank, lora_alpha=config.rank, target_modules=targets))
    for module in trained:
        module.requires_grad_(True)


def takes_lora(name: str, module: torch.nn.Module) -> bool:
    """Whether it is a convolution, other than one channel by channel, or a projection of an attention."""
    is_convolution = isinstance(module, torch.nn.Conv2d) and module.groups == 1
    return is_convolution or name.endswith((".to_qkv", ".to_out"))
