"""A model as the difference to the one it began from: low-rank weights in diffusers' own file, and the little that is new besides.

The folder ``adapter/`` of a run holds ``pytorch_lora_weights.safetensors``, which ``unet.load_lora_adapter(folder, prefix=None)``
reads too, ``rest.safetensors`` with the class embedding and the moments, the network's ``config.json``, and ``base.json``.
"""

import copy
import json
import re
from pathlib import Path

import torch
from diffusers.utils import logging
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mri_ddpm.errors import InputError
from mri_ddpm.files import whole_folder, write_json
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.runs.folder import RunFolder
from mri_ddpm.runs.record import ADAPTER_WEIGHTS
from mri_ddpm.trust import UNET_CLASS, check_config

REST = "rest.safetensors"
AUGMENT = "augment_embedding.weight"
WHOLE = (  # trained, or measured, whole
    "class_embedding.weight", AUGMENT, "x_0_mean", "x_0_components",
)  # fmt: skip
FIRST = re.compile(r"(.+)\.lora_A(?:\.default)?\.weight")  # of a pair


def merged_weights(weights: dict[str, torch.Tensor], scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Weights with their low-rank differences added: W + scale B A (Hu et al. 2021, arXiv:2106.09685).

    Of a convolution A is as large as W, and B of 1 x 1 pixels. Weights without differences stay as they are.
    """
    plain = {
        name.replace(".base_layer.", "."): tensor for name, tensor in weights.items() if ".lora_" not in name
    }
    for name, a in weights.items():
        if first := FIRST.fullmatch(name):
            b, weight = weights[name.replace(".lora_A.", ".lora_B.")], plain[f"{first[1]}.weight"]
            plain[f"{first[1]}.weight"] = weight + scale * (b.flatten(1) @ a.flatten(1)).view_as(weight)
    return plain


def merged(unet: AttentionUNet2DModel) -> AttentionUNet2DModel:
    """The same network without an adapter, whose weights have its differences added; itself where it has none."""
    weights = unet.state_dict()
    if not any(map(FIRST.fullmatch, weights)):
        return unet
    with torch.random.fork_rng(devices=[]):  # building draws weights
        plain = AttentionUNet2DModel.from_config(unet.config)
    plain.load_state_dict(merged_weights(weights))
    return plain.to(unet.device, memory_format=torch.channels_last)


def with_new_inputs(weights: dict[str, torch.Tensor], unet: AttentionUNet2DModel) -> dict[str, torch.Tensor]:
    """Weights that fit ``unet``, which may be given more than they know: of a new channel the first convolution takes nothing.

    What they do not know of mirrored scans stays as ``unet`` has it; scans as they are have no part in that.
    """
    wide = torch.zeros_like(unet.conv_in.weight)  # (C, K, 3, 3)
    known = weights["conv_in.weight"]
    wide[:, : known.shape[1]] = known
    told = {name: tensor for name, tensor in unet.state_dict().items() if name == AUGMENT}
    plain = {name: tensor for name, tensor in weights.items() if name != AUGMENT or told}
    return told | plain | {"conv_in.weight": wide}


def save_adapter(unet: AttentionUNet2DModel, base: dict, folder: Path) -> None:
    """Write the adapter of a network that has one, whole or not at all; ``base`` is what `Base.as_json` says."""
    with whole_folder(folder) as unfinished:
        # A copy, for diffusers saves no tensor that lies channels last
        plain = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it warns of a change of precision that it does not make
        try:
            plain.save_lora_adapter(unfinished)
        finally:
            logging.set_verbosity(verbosity)
        kept = {name: tensor for name, tensor in unet.state_dict().items() if name in WHOLE}
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in kept.items()},
            unfinished / REST,
            metadata={"format": "pt"},
        )
        (unfinished / "config.json").write_text(unet.to_json_string(), encoding="utf-8")
        write_json(RunFolder(unfinished).base, base)


@torch.no_grad()
def adapted(before: AttentionUNet2DModel, folder: Path) -> AttentionUNet2DModel:
    """A base's network with the adapter of a folder merged into it.

    Raises:
        InputError: when the folder's files are damaged, or do not fit that network.
    """
    try:
        check_config(folder / "config.json", UNET_CLASS)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        unet = AttentionUNet2DModel.from_config(config)
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as file:
            told = json.loads(
                (file.metadata() or {}).get("lora_adapter_metadata", '{"r": 1, "lora_alpha": 1}')
            )
        weights = with_new_inputs(before.state_dict(), unet) | load_file(folder / REST)
        weights = merged_weights(
            weights | load_file(folder / ADAPTER_WEIGHTS), told["lora_alpha"] / told["r"]
        )
        if not all(tensor.isfinite().all() for tensor in weights.values()):
            raise ValueError("it holds numbers that are not finite")
        unet.load_state_dict(weights)
    except Exception as error:  # a broken file makes its reader raise nearly anything
        reason = " ".join((str(error) or type(error).__name__).split()).rstrip(".")
        raise InputError(f"the adapter {folder} cannot be used: {reason:.300}.") from error
    return unet.eval()
