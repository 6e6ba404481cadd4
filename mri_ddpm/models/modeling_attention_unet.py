"""The attention U-Net, whole, in one file that is uploaded to the Hub as it is (torch and diffusers only).

Letters in shape comments: B batch, C channels, H height, W width, N = H * W tokens, E embedding width.
"""

import functools
import json
import logging
import re

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

MIN_SIZE = 16  # pixels
MAX_SIZE = 8192  # of a config; any is taken for a single sample
MAX_MOMENTS_SIZE = MAX_COMPONENTS = 256  # of a config too; ours keep 32 and 16
NAME = r"\w[\w.-]{0,63}"  # of a channel, which becomes a part of file names
LOWRES = r"lowres:[1-9]\d{0,4}"  # the condition that is what is drawn, at a fraction of the resolution
MAX_LABELS = 255  # of a mask, which is kept in 8 bits
MAX_LAYERS = 64  # a level; a number out of a broken config would be built for ever


class ScaledGroupNorm(torch.autograd.Function):
    """Group norm (Wu & He 2018), scaled and shifted per sample, for a CPU in bfloat16.

    Forward it is torch's own, to the bit. Its gradient is written out, for torch's takes twice as long there.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, scale, shift, groups, eps):  # (B, C, H, W), (C,) twice, (B, C) twice
        """``norm(x) * (1 + scale) + shift``."""
        h, mean, rstd = torch.native_group_norm(x, weight, bias, *x.shape[:2], x[0, 0].numel(), groups, eps)
        ctx.save_for_backward(x, weight, bias, scale, mean, rstd)
        return torch.addcmul(shift[:, :, None, None], h, 1 + scale[:, :, None, None])

    @staticmethod
    def backward(ctx, grad):
        """Of ``gain * normed + constant``: ``gain * (grad - its mean - normed * the mean of their product) * rstd``."""
        x, weight, bias, scale, mean, rstd = ctx.saved_tensors
        channels = x.shape[1] // mean.shape[1]  # of a group
        exact = torch.promote_types(weight.dtype, torch.float32)
        mean, rstd = (t.to(exact).repeat_interleave(channels, dim=1) for t in (mean, rstd))  # (B, C)
        factor = 1 + scale.to(exact)
        total = grad.sum((2, 3)).to(exact)  # (B, C)
        product = ((grad * x).sum((2, 3)).to(exact) - mean * total) * rstd  # with the normed input, (B, C)

        def group_mean(t):
            means = (weight * factor * t).unflatten(1, (-1, channels)).mean(-1) / x[0, 0].numel()
            return means.repeat_interleave(channels, dim=1)

        slope = -group_mean(product) * rstd**2
        offset = -group_mean(total) * rstd - slope * mean
        terms = (t.to(x.dtype)[:, :, None, None] for t in (offset, slope, weight * factor * rstd))
        offset, slope, gain = terms  # (B, C, 1, 1)
        grad_x = torch.addcmul(offset, x, slope).addcmul_(grad, gain)  # (B, C, H, W)
        of_parameters = (factor * product).sum(0), (factor * total).sum(0)  # (C,)
        return grad_x, *of_parameters, weight * product + bias * total, total, None, None


def norm_scale_shift(norm: nn.GroupNorm, x: torch.Tensor, scale_shift: torch.Tensor) -> torch.Tensor:
    """Group norm, then scale and shift by ``(B, 2 * C)``: ``(B, C, H, W)`` -> ``(B, C, H, W)``."""
    scale, shift = scale_shift.chunk(2, dim=1)  # (B, C) each
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return ScaledGroupNorm.apply(x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps)
    # One pass over memory where "*" and "+" take two
    return torch.addcmul(shift[:, :, None, None], norm(x), 1 + scale[:, :, None, None])


class ResnetBlock(nn.Module):
    """Pre-norm residual block whose second norm is scaled and shifted by the embedding (Dhariwal & Nichol 2021)."""

    def __init__(
        self, in_channels: int, out_channels: int, embed_dim: int, norm_num_groups: int, dropout: float
    ):
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.embed = nn.Linear(embed_dim, 2 * out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, C, H, W)
        h = norm_scale_shift(self.norm2, h, self.embed(embedding))
        return self.shortcut(x) + self.conv2(self.dropout(F.silu(h)))


class ConvNextBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022): 7x7 depthwise, norm, 1x1 to four times the width, GELU, 1x1 back."""

    def __init__(
        self, in_channels: int, out_channels: int, embed_dim: int, norm_num_groups: int, dropout: float
    ):
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 7, padding=3, groups=in_channels)
        self.embed = nn.Linear(embed_dim, 2 * in_channels)
        self.norm = nn.GroupNorm(norm_num_groups, in_channels)
        self.expand = nn.Conv2d(in_channels, 4 * out_channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.project = zero_init(nn.Conv2d(4 * out_channels, out_channels, 1))
        self.shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        )

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h = norm_scale_shift(self.norm, self.depthwise(x), self.embed(embedding))  # (B, C, H, W)
        return self.shortcut(x) + self.project(self.dropout(F.gelu(self.expand(h))))


def full_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention of ``(B, heads, N, head_dim)``; on a CPU torch's takes a third of the time in float32."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


class AttentionBlock(nn.Module):
    """Residual self-attention over all pixels, multi-head.

    ``"full"`` is softmax attention (Vaswani et al. 2017), quadratic in N. ``"linear"`` is efficient attention (Shen et
    al. 2021, equation 4): softmax over the features of q and over the tokens of k, linear in N.
    """

    def __init__(self, kind: str, channels: int, head_dim: int, norm_num_groups: int):
        super().__init__()
        self.kind, self.head_dim = kind, head_dim
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, N, C), a view when x is channels-last
        qkv = self.to_qkv(tokens).unflatten(-1, (3, -1, self.head_dim))  # (B, N, 3, heads, head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head_dim) each
        if self.kind == "full":
            h = full_attention(q, k, v)
        else:
            context = k.softmax(dim=-2).transpose(-2, -1) @ v  # (B, heads, head_dim, head_dim)
            h = q.softmax(dim=-1) @ context
        h = self.to_out(h.transpose(1, 2).flatten(2))  # (B, N, C)
        return x + h.transpose(1, 2).unflatten(2, x.shape[-2:])  # (B, C, H, W)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling to the size of the level above, so that odd sizes come back as they went."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return self.conv(F.interpolate(x, size=size, mode="nearest"))


BLOCKS = {"resnet": ResnetBlock, "convnext": ConvNextBlock}
ATTENTION_KINDS = ("linear", "full", None)


class AttentionUNet2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    r"""U-Net with attention at every level that asks for it: x_t, t and a class in, the model's prediction out.

    The shape is that of the reference recipe (MRIDiff, section 5.2): a first convolution; per level
    ``layers_per_block`` blocks, attention and downsampling; a bottleneck of block, full attention, block; the mirrored
    way up, every block taking the matching skip connection; a last ResNet block and a convolution.

    Any height and width from 16 pixels up, odd and non-square too: a level halves the size rounding up, and the way up
    returns to the sizes of the way down.

    Args:
        sample_size: pixels a side that the model is trained at; what the pipeline draws unless told otherwise.
        in_channels: channels that the first convolution takes: those of the sample, of its condition, and one that says
            where a condition is known.
        out_channels: channels of the sample and of the prediction.
        block_out_channels: channels of each level, finest first.
        layers_per_block: blocks a level.
        block_type: ``"resnet"`` or ``"convnext"``.
        attention_types: for each level ``"linear"``, ``"full"`` or ``None`` (no attention).
        attention_head_dim: channels of one attention head.
        norm_num_groups: groups of every group norm; every entry of ``block_out_channels`` is a multiple of it.
        dropout: probability inside each block.
        num_class_embeds: number of classes, or ``None`` for an unconditional model. The embedding has one index more:
            ``num_class_embeds`` itself means "no class", for guidance.
        class_names: names of the classes by index, kept with the weights so that a sample can be asked for by name.
        null_class: whether "no class" was seen in training, so that its embedding means something.
        moments_size: pixels a side at which the moments of the training scans are kept, or ``None`` for none. They say
            where the forward process ends, and so where a chain starts: the buffer ``x_0_mean`` holds the mean scan of
            each class, and last the one over all, ``(num_class_embeds + 1, out_channels, moments_size, moments_size)``.
        num_components: in how many directions scans vary about it, in ``x_0_components``, each as long as a standard
            deviation, ``(num_components, out_channels, moments_size, moments_size)``.
        channel_names: names of what is drawn, in order, such as ``("t1", "t2")``; ``None`` is one channel without a name.
        condition_names: names of what is given, in order, such as ``("seg",)``; ``None`` for a model without a condition.
            ``"lowres:4"`` is what is drawn at a quarter of the resolution, each pixel repeated 4 x 4 times.
        mask_labels: the labels of those names that are masks, such as ``{"seg": ("oedema", "core")}``. A mask takes a
            channel a label, which is 1 where its pixels are and 0 elsewhere.
        null_condition: whether "no condition" was seen in training.
        always_marked: by the name of a mask that is given, the classes whose scans all showed some of its labels, such as
            ``{"seg": ("glioma",)}``; ``""`` is the class of a model without classes. So an empty mask says nothing there.
        augment_dim: 1 where the network was told which training scans are mirrored (Karras et al. 2022, appendix F.2), else 0.
            It is asked for scans as they are.

    Raises:
        ValueError: when a number does not fit another; the sentence names both.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        sample_size: int = 44,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (64, 128, 256),
        layers_per_block: int = 2,
        block_type: str = "resnet",
        attention_types: tuple[str | None, ...] = ("linear", "linear", "linear"),
        attention_head_dim: int = 32,
        norm_num_groups: int = 8,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        class_names: tuple[str, ...] | None = None,
        null_class: bool = True,
        moments_size: int | None = None,
        num_components: int = 0,
        channel_names: tuple[str, ...] | None = None,
        condition_names: tuple[str, ...] | None = None,
        mask_labels: dict[str, tuple[str, ...]] | None = None,
        null_condition: bool = True,
        always_marked: dict[str, tuple[str, ...]] | None = None,
        augment_dim: int = 0,
    ):
        super().__init__()
        check_architecture(
            block_out_channels,
            layers_per_block,
            block_type,
            attention_types,
            attention_head_dim,
            norm_num_groups,
        )
        if not MIN_SIZE <= sample_size <= MAX_SIZE:
            raise ValueError(f"sample_size is {sample_size}; take {MIN_SIZE} to {MAX_SIZE} pixels.")
        check_channels(in_channels, out_channels, channel_names, condition_names, mask_labels)
        if always_marked is not None and not is_table(always_marked, condition_names or ()):
            raise ValueError("always_marked is no table of classes by the names of conditions.")
        if augment_dim not in (0, 1):
            raise ValueError(f"augment_dim is {augment_dim}; take 0 or 1.")
        num_classes = num_class_embeds or 0
        if class_names is not None and [type(name) for name in class_names] != [str] * num_classes:
            raise ValueError(f"class_names are not the names of {num_classes} classes.")
        if moments_size is not None:
            if not (1 <= moments_size <= MAX_MOMENTS_SIZE and 0 <= num_components <= MAX_COMPONENTS):
                raise ValueError(
                    f"moments_size is {moments_size} and num_components {num_components}; take 1 to {MAX_MOMENTS_SIZE} pixels and 0 to "
                    f"{MAX_COMPONENTS} components."
                )
            size = (out_channels, moments_size, moments_size)
            self.register_buffer("x_0_mean", torch.zeros(num_classes + 1, *size))
            self.register_buffer("x_0_components", torch.zeros(num_components, *size))
        self.gradient_checkpointing = False
        channels, embed_dim = tuple(block_out_channels), 4 * block_out_channels[0]

        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(channels[0], embed_dim)
        self.class_embedding = nn.Embedding(num_class_embeds + 1, embed_dim) if num_class_embeds else None
        self.augment_embedding = nn.Linear(augment_dim, embed_dim, bias=False) if augment_dim else None
        if augment_dim:  # as large as a class's: from zero, as EDM has it, it was hardly learned
            nn.init.normal_(self.augment_embedding.weight)

        def block(kind: str, c_in: int, c_out: int) -> nn.Module:
            return BLOCKS[kind](c_in, c_out, embed_dim, norm_num_groups, dropout)

        def attention(kind: str | None, c: int) -> nn.Module:
            return AttentionBlock(kind, c, attention_head_dim, norm_num_groups) if kind else nn.Identity()

        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        next_channels = [
            *channels[1:],
            channels[-1],
        ]  # the coarsest level hands its own width to the bottleneck
        for i, (c, c_next) in enumerate(zip(channels, next_channels, strict=True)):
            last = i == len(channels) - 1
            level = nn.ModuleDict(
                {
                    "blocks": nn.ModuleList(block(block_type, c, c) for _ in range(layers_per_block)),
                    "attention": attention(attention_types[i], c),
                    "downsample": nn.Identity() if last else nn.Conv2d(c, c_next, 3, stride=2, padding=1),
                }
            )
            self.down.append(level)
            level = nn.ModuleDict(
                {
                    "upsample": nn.Identity() if last else Upsample(c_next, c),
                    "blocks": nn.ModuleList(block(block_type, 2 * c, c) for _ in range(layers_per_block)),
                    "attention": attention(attention_types[i], c),
                }
            )
            self.up.insert(0, level)
        self.mid_block1 = block(block_type, channels[-1], channels[-1])
        self.mid_attention = attention("full", channels[-1])
        self.mid_block2 = block(block_type, channels[-1], channels[-1])
        self.last_block = block("resnet", 2 * channels[0], channels[0])
        self.norm_out = nn.GroupNorm(norm_num_groups, channels[0])
        self.conv_out = zero_init(nn.Conv2d(channels[0], out_channels, 3, padding=1))

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path, output_loading_info: bool = False, **kwargs
    ) -> "AttentionUNet2DModel":
        """Load as every diffusers model does, but from safetensors alone, and only weights that fit their config.

        Args:
            pretrained_model_name_or_path: a folder, or a repository on the Hub.
            output_loading_info: return the model and a dictionary about its loading.
            kwargs: as in diffusers: ``subfolder``, ``revision``, ``torch_dtype``, ``variant``, ``token``, ...

        Raises:
            ValueError: when a tensor is missing, unknown, of another shape or not finite, the file is damaged, or a number
                in the config fits no network.
        """
        where = "/".join(map(str, filter(None, (pretrained_model_name_or_path, kwargs.get("subfolder")))))
        kwargs["use_safetensors"] = True  # a pickle could run anything
        logger = logging.getLogger("diffusers.models.modeling_utils")
        level = logger.level
        logger.setLevel(logging.ERROR)  # it would list every tensor that is named in one sentence below
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path, output_loading_info=True, **kwargs
            )
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")
            raise ValueError(f"the U-Net in {where} cannot be loaded: {reason:.300}.") from error
        except OSError as error:
            # Diffusers' words for a file it cannot read
            if not str(error).startswith("Unable to load weights"):
                raise
            raise ValueError(
                f"the weights in {where} are damaged or cut short; fetch them again, or from another revision."
            ) from error
        finally:
            logger.setLevel(level)
        wrong = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
        if wrong:
            raise ValueError(
                f"the weights in {where} do not fit its config.json: {len(wrong)} tensors are missing or unknown, "
                f"the first is {wrong[0]}."
            )
        for name, tensor in model.state_dict().items():
            if not tensor.isfinite().all():
                raise ValueError(
                    f"the weights in {where} hold numbers that are not finite, the first in {name}; take those of an "
                    "earlier step."
                )
        return (model, info) if output_loading_info else model

    def x_0_moments(self, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        """``x_0_mean`` and ``x_0_components`` at that size: ``(num_class_embeds + 1, C, H, W)``, ``(K, C, H, W)``.

        In float32 where the weights are of 16 bits, which a CPU does not resize.
        """
        dtype = torch.promote_types(self.x_0_mean.dtype, torch.float32)
        resize = {"size": (height, width), "mode": "bilinear", "antialias": True}
        mean, components = (x.to(dtype) for x in (self.x_0_mean, self.x_0_components))
        return F.interpolate(mean, **resize), F.interpolate(components, **resize)

    # A pipeline asks its signature which arguments it takes
    @functools.wraps(ModelMixin.save_pretrained)
    def save_pretrained(self, save_directory, *args, private: bool = True, **kwargs) -> None:
        # With push_to_hub=True a new repository is private, unless asked otherwise
        super().save_pretrained(save_directory, *args, private=private, **kwargs)

    def push_to_hub(
        self, repo_id: str, commit_message: str | None = None, private: bool = True, **kwargs
    ) -> str:
        """As in diffusers, but that a new repository is private, unless asked otherwise."""
        return super().push_to_hub(repo_id, commit_message, private, **kwargs)

    def to_json_string(self) -> str:
        """What is saved as ``config.json``: all but the folder of this machine that the model was loaded from."""
        config = json.loads(super().to_json_string())
        config.pop("_name_or_path", None)
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    def conditioning_of(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `forward` is to be given of a batch beside the images, as far as the model takes it and the batch has it.

        ``class_labels (B,)``, ``augment_labels (B, augment_dim)``, and ``condition (B, K + 1, H, W)``: the batch's own K channels
        and one of 1. That one says that the condition is known: a mask that is empty is not the same as no mask.
        """
        taken = {"class_labels": self.class_embedding, "augment_labels": self.augment_embedding}
        found = {name: batch[name] for name, embedding in taken.items() if embedding and name in batch}
        if self.config.condition_names and "condition" in batch:
            planes = batch["condition"]
            found["condition"] = torch.cat([planes, torch.ones_like(planes[:, :1])], dim=1)
        return found

    def drop_conditioning(
        self, conditioning: dict[str, torch.Tensor], dropped: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The same without what ``dropped``, bool ``(B,)`` by name, says (Ho & Salimans 2022, arXiv:2207.12598).

        Of classes that is the null class; of any other tensor ``(B, ...)`` it is 0.
        """
        nulls = {"class_labels": self.config.num_class_embeds}
        return conditioning | {
            name: tensor.masked_fill(dropped[name].reshape(-1, *[1] * (tensor.ndim - 1)), nulls.get(name, 0))
            for name, tensor in conditioning.items()
            if name in dropped
        }

    def embed(
        self,
        sample: torch.Tensor,
        timestep,
        class_labels: torch.Tensor | None,
        augment_labels: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed timesteps, classes and augmentations: ``(B, E)``, already passed through SiLU for every block to project."""
        timestep = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])  # (B,)
        embedding = self.time_embedding(self.time_proj(timestep).to(sample.dtype))  # (B, E)
        if self.class_embedding is not None:
            if class_labels is None:
                class_labels = torch.full_like(timestep, self.config.num_class_embeds, dtype=torch.long)
            embedding = embedding + self.class_embedding(class_labels)
        elif class_labels is not None:
            raise ValueError(
                "class_labels were given, but this model was trained without classes; leave them out."
            )
        if augment_labels is not None:
            if self.augment_embedding is None:
                raise ValueError(
                    "augment_labels were given, but this model was never told of augmentations; leave them out."
                )
            embedding = embedding + self.augment_embedding(augment_labels.to(sample.dtype))
        return F.silu(embedding)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        condition: torch.Tensor | None = None,
        augment_labels: torch.Tensor | None = None,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predict epsilon, v or x_0 (whatever it was trained for) from a noisy sample.

        Args:
            sample: x_t, ``(B, out_channels, H, W)``, H and W at least 16.
            timestep: one timestep for all, or ``(B,)``.
            class_labels: ``(B,)`` int64 class indices; ``num_class_embeds`` or ``None`` mean "no class".
            return_dict: return a ``UNet2DOutput`` instead of a tuple.
            condition: ``(B, in_channels - out_channels, H, W)``, as `conditioning_of` makes it; 0 or ``None`` mean "none".
            augment_labels: ``(B, augment_dim)``, 1 for each image that is mirrored; ``None`` means "as it is".

        Raises:
            ValueError: for a height or width under 16, or class labels, a condition or augment labels on a model without them.
        """
        if min(sample.shape[-2:]) < MIN_SIZE:
            raise ValueError(
                f"a sample of {tuple(sample.shape[-2:])} pixels is too small; the least is {MIN_SIZE}."
            )
        embedding = self.embed(sample, timestep, class_labels, augment_labels)
        if self.config.condition_names:
            if condition is None:
                shape = len(sample), self.config.in_channels - self.config.out_channels, *sample.shape[-2:]
                condition = sample.new_zeros(shape)
            sample = torch.cat([sample, condition.to(sample.dtype)], dim=1)  # (B, in_channels, H, W)
        elif condition is not None:
            raise ValueError("a condition was given, but this model was trained without one; leave it out.")

        def run(block: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                return self._gradient_checkpointing_func(block, *inputs)
            return block(*inputs)

        x = first = self.conv_in(sample)  # (B, C, H, W)
        skips = []
        for level in self.down:
            for block in level["blocks"]:
                x = run(block, x, embedding)
                skips.append(x)
            x = skips[-1] = run(level["attention"], x)
            x = level["downsample"](x)  # (B, C', ceil(H / 2), ceil(W / 2)) but at the coarsest level

        x = run(self.mid_block1, x, embedding)
        x = run(self.mid_attention, x)
        x = run(self.mid_block2, x, embedding)

        for level in self.up:
            # Diffusers may define this file's classes anew
            if not isinstance(level["upsample"], nn.Identity):
                x = level["upsample"](x, skips[-1].shape[-2:])
            for block in level["blocks"]:
                x = run(block, torch.cat([x, skips.pop()], dim=1), embedding)  # (B, 2C, H, W) -> (B, C, H, W)
            x = run(level["attention"], x)

        x = run(self.last_block, torch.cat([x, first], dim=1), embedding)
        x = self.conv_out(F.silu(self.norm_out(x)))  # (B, out_channels, H, W)
        return UNet2DOutput(sample=x) if return_dict else (x,)


def zero_init(module: nn.Module) -> nn.Module:
    """Zero a residual branch's last layer, so that every block starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def check_architecture(
    block_out_channels, layers_per_block, block_type, attention_types, attention_head_dim, norm_num_groups
) -> None:
    """Raise a ``ValueError`` whose sentence states the numbers that do not fit together."""
    if block_type not in BLOCKS:
        raise ValueError(f"block_type {block_type!r} is unknown; take one of {', '.join(map(repr, BLOCKS))}.")
    if not 1 <= layers_per_block <= MAX_LAYERS:
        raise ValueError(f"layers_per_block is {layers_per_block}; take 1 to {MAX_LAYERS}.")
    if not block_out_channels:
        raise ValueError("block_out_channels is empty; give the channels of at least one level.")
    if len(attention_types) != len(block_out_channels):
        raise ValueError(
            f"attention_types has {len(attention_types)} entries for {len(block_out_channels)} levels of "
            "block_out_channels; give one a level."
        )
    for kind in attention_types:
        if kind not in ATTENTION_KINDS:
            raise ValueError(
                f"attention type {kind!r} is unknown; take linear, full or none (None in Python)."
            )
    for channels in block_out_channels:
        for name, divisor in (
            ("norm_num_groups", norm_num_groups),
            ("attention_head_dim", attention_head_dim),
        ):
            if divisor < 1 or channels % divisor:
                raise ValueError(
                    f"block_out_channels {channels} is not a multiple of {name} {divisor}; change one."
                )


def count_channels(names, mask_labels) -> int:
    """Channels that these names take: one each, and a mask one a label."""
    return sum(len((mask_labels or {}).get(name, (name,))) for name in names)


def is_called(name, pattern: str) -> bool:
    """Whether it is a name of that kind, wherever it comes from."""
    return isinstance(name, str) and re.fullmatch(pattern, name) is not None


def is_table(value, names) -> bool:
    """Whether it is a dict of lists of words by some of these names, wherever it comes from."""
    return isinstance(value, dict) and all(
        name in names and isinstance(words, (list, tuple)) and all(isinstance(word, str) for word in words)
        for name, words in value.items()
    )


def check_channels(in_channels, out_channels, channel_names, condition_names, mask_labels) -> None:
    """Raise a ``ValueError`` whose sentence says which names and numbers of channels do not fit together."""
    drawn, given, masks = channel_names or (), condition_names or (), dict(mask_labels or {})
    names = [*drawn, *given]
    labels = [label for of_mask in masks.values() for label in (of_mask or [None])]
    odd = [name for name in (*drawn, *labels) if not is_called(name, NAME)]
    odd += [name for name in given if not is_called(name, f"{NAME}|{LOWRES}")]
    if odd:
        raise ValueError(
            f"{odd[0]!r} is no name of a channel or a label; take letters, numbers, '_', '-' and '.'."
        )
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice in channel_names and condition_names; name it once.")
    if many := [name for name, of_mask in masks.items() if len(of_mask) > MAX_LABELS]:
        raise ValueError(f"{many[0]} has {len(masks[many[0]])} labels; a mask holds at most {MAX_LABELS}.")
    if strangers := masks.keys() - {*names}:
        raise ValueError(f"mask_labels has {min(strangers)}, which is neither a channel nor a condition.")
    wanted = count_channels(drawn, masks) if drawn else out_channels
    if out_channels != wanted:
        raise ValueError(f"out_channels is {out_channels}, and {', '.join(drawn)} take {wanted}.")
    wanted = out_channels + count_channels(given, masks) + 1
    if given and in_channels != wanted:
        raise ValueError(
            f"in_channels is {in_channels}, and with the condition {', '.join(given)} it is {wanted}."
        )
