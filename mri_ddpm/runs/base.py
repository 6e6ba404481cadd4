"""The model that a training begins from: what of it holds for the new run, and what the run writes down about it."""

import dataclasses
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from mri_ddpm.config import TrainingConfig
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.presets import ADAPTING
from mri_ddpm.runs.folder import RunFolder
from mri_ddpm.runs.opening import load_pipeline, load_record
from mri_ddpm.runs.record import BASE_FLAG, Record, weights_sha256
from mri_ddpm.runs.resuming import flag

ANYTHING = {"resolution", "dropout"}  # taken over too, but another value fits the weights as well
OF_UNET = (
    "block_out_channels", "layers_per_block", "block_type", "attention_head_dim", "norm_num_groups", "dropout",
)  # fmt: skip
OF_SCHEDULER = ("num_train_timesteps", "beta_start", "beta_end", "prediction_type")
KEPT = ("revision", "sha256", "unet_config", "scheduler_config", "scans", "content_sha256")


@dataclass(frozen=True)
class Base:
    """A model to begin from.

    name: as the user gave it; a folder is absolute.
    revision: the commit of a repository on the Hub.
    sha256: of its weights' file.
    unet_config: of its network.
    scheduler_config: of its noise schedule.
    scans: how many it was trained on, by class; "" where they had none.
    content_sha256: of the manifest of its scans.
    unet: the network; None for a run that is resumed, whose checkpoint has all.
    seen: the hashes of the scans that it was trained on; as little needed for such a run.
    """

    name: str
    revision: str | None
    sha256: str
    unet_config: dict
    scheduler_config: dict
    scans: dict[str, int]
    content_sha256: str
    unet: AttentionUNet2DModel | None = None
    seen: frozenset[str] = field(default_factory=frozenset)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its classes, in the order of its class embedding."""
        return tuple(self.unet_config.get("class_names") or ())

    def as_json(self) -> dict:
        """What ``base.json`` keeps."""
        kept = {name: getattr(self, name) for name in KEPT}
        return {BASE_FLAG: self.name, **kept}

    def flags(self) -> dict:
        """The flags that describe it, with their values."""
        unet, scheduler = self.unet_config, self.scheduler_config
        found = {name: unet[name] for name in OF_UNET} | {name: scheduler[name] for name in OF_SCHEDULER}
        found |= {
            "resolution": unet["sample_size"],
            "attention_types": [kind or "none" for kind in unet["attention_types"]],
            "rescale_betas_zero_snr": bool(scheduler.get("rescale_betas_zero_snr")),
            "start_from_moments": unet.get("moments_size") is not None,
        }
        if self.class_names:  # a model without can gain them
            found["class_conditional"] = True
        for name, key in (("channels", "channel_names"), ("condition_on", "condition_names")):
            if unet.get(key):  # the same
                found[name] = unet[key]
        return found


def base_of(config: TrainingConfig, run: RunFolder, resuming: bool) -> Base | None:
    """What a training begins from, or has begun from where it is resumed; ``None`` without one.

    Raises:
        InputError: as of `open_base` and `read_base`, and when a run is resumed that began from another.
    """
    name = getattr(config, BASE_FLAG)
    if not name:
        return None
    if not (resuming and run.base.exists() and run.checkpoints()):
        return open_base(name, config.revision)
    base = read_base(run)
    if base.name not in (name, str(Path(name).absolute())):
        raise InputError(
            f"{run} began from --{BASE_FLAG} {base.name}, and this is --{BASE_FLAG} {name}; resume with the first, or name another "
            "--output_dir."
        )
    return base


def open_base(name: str, revision: str | None = None) -> Base:
    """Open a model to begin from: a run folder, a saved pipeline or a repository on the Hub.

    Raises:
        InputError: when it is none of ours, comes without the manifest of its training, or has a schedule or classes that no
            training here makes.
    """
    if Path(name).exists():
        if revision:
            raise InputError(f"--revision {revision} is for the Hub, and {name} is a folder; leave it out.")
        name = str(Path(name).absolute())
    record = load_record(name, revision)
    commit = record.pipeline_dir.name if re.fullmatch("[0-9a-f]{40}", record.pipeline_dir.name) else None
    pipeline = load_pipeline(name, "cpu", commit)
    if record.manifest is None:
        raise InputError(
            f"{name} comes without the manifest of its training, so nobody can say which scans it has seen; begin from a run "
            "folder, or from a repository that 'mri-ddpm push' made."
        )
    scheduler = json.loads(pipeline.scheduler.to_json_string())
    if scheduler.get("beta_schedule") != "linear" or scheduler.get("trained_betas") is not None:
        raise InputError(
            f"{name} has betas that are not linear, and no training here goes on with those; begin from a model that was "
            "trained here."
        )
    unet = pipeline.unet
    if unet.config.num_class_embeds and not unet.config.class_names:
        raise InputError(f"{name} has classes without names; begin from a model whose classes have names.")
    try:
        scans = scans_by_class(record, bool(unet.config.class_names))
        seen = frozenset(file["sha256"] for file in record.manifest["files"] if file["split"] == "train")
        content_sha256 = record.manifest["content_sha256"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # it may come from anybody
        raise InputError(
            f"the papers of {name} are not as a run writes them ({type(error).__name__}: {error}); begin from another model."
        ) from error
    sha256, unet_config = weights_sha256(record.pipeline_dir), json.loads(unet.to_json_string())
    return Base(name, commit, sha256, unet_config, scheduler, scans, content_sha256, unet, seen)


def scans_by_class(record: Record, with_classes: bool) -> dict[str, int]:
    """How many scans a model was trained on: its own, and those of the one it began from in classes that it had none of."""
    train = record.manifest["split"]["train"]
    before = record.base["scans"] if record.base else {}
    own = train["classes"] if with_classes and train["classes"] else {"": train["total"]}
    return {name: int(count) for name, count in {**before, **own}.items()}


def read_base(run: RunFolder) -> Base:
    """The base of a run that is resumed: as its ``base.json`` has it, for the model itself may be gone.

    Raises:
        InputError: when the file is not as a run writes it.
    """
    kept = read_json(run.base)
    try:
        base = Base(kept[BASE_FLAG], **{name: kept[name] for name in KEPT})
        base.flags()
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{run.base} is not as a run writes it ({error}); mend it or start a new run."
        ) from error
    return base


def take_over(config: TrainingConfig, base: Base) -> TrainingConfig:
    """Put the base's network, schedule and size in the place of the defaults and of the preset's values.

    And the rate of `ADAPTING`, where all weights are trained at the base's size: at another, textures are learned anew.

    Raises:
        InputError: where a flag was given that says another, naming both.
    """
    found = base.flags()
    for name in sorted(found.keys() & config.given):
        if name in ANYTHING:
            del found[name]
        elif getattr(config, name) != found[name]:
            raise InputError(
                f"{flag(name, getattr(config, name))} contradicts --{BASE_FLAG} {getattr(config, BASE_FLAG)}, which was trained with "
                f"{flag(name, found[name])}; leave one of the two out."
            )
    if (
        not config.train_only
        and found.get("resolution", config.resolution) == base.unet_config["sample_size"]
    ):
        found |= {name: value for name, value in ADAPTING.items() if name not in config.given}
    return dataclasses.replace(config, **found, **{BASE_FLAG: base.name, "revision": base.revision})
