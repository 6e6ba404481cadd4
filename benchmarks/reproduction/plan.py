"""The sweep: every training that a budget asks for, as a list of configurations with names."""

import dataclasses
import itertools
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.reproduction.architecture import read_architecture
from benchmarks.reproduction.budgets import Budget, Setting
from mri_ddpm.config import PAPER_BETAS, PRESETS, TrainingConfig, as_flags

TIMESTEPS = (100, 300, 1000)
LOSSES = ("huber", "l1", "l2")
BASELINE = "resnet-attention"  # of the questions about blocks, timesteps and losses
PROVOKED_RATES = (0.1, 0.3)  # to which the learning rate jumps; the recipe's is 1e-3


@dataclass(frozen=True)
class Run:
    """One training of the sweep.

    part: the question it belongs to: "paper", "start", "ratio", "blocks", "timesteps", "losses", "provoked", "ours" or "large".
    variant: what it is within that question, the same for all seeds.
    gmac: of one forward pass of one sample.
    ssim_images: to draw for SSIM to the nearest held-out scan; 0 is none.
    first: what is trained before, in the same folder, where a run is gone on with under another configuration.
    """

    part: str
    variant: str
    config: TrainingConfig
    gmac: float
    ssim_images: int = 0
    first: TrainingConfig | None = None

    @property
    def folder(self) -> Path:
        """Its run folder, as every training leaves one."""
        return Path(self.config.output_dir)

    @property
    def name(self) -> str:
        """Of the run and its folder."""
        return self.folder.name

    @property
    def cost(self) -> float:
        """Of its training, in GMAC of forward passes."""
        epochs, steps_per_epoch = self.config.num_train_epochs, self.config.validation_steps
        return self.gmac * self.config.train_batch_size * epochs * steps_per_epoch

    @property
    def phases(self) -> list[TrainingConfig]:
        """What is trained, one after the other."""
        return [self.first, self.config] if self.first else [self.config]

    @property
    def command(self) -> str:
        """The training alone, for a shell."""
        return " && ".join(command_of(config, resumed=i > 0) for i, config in enumerate(self.phases))


def command_of(config: TrainingConfig, resumed: bool) -> str:
    """The command that trains a configuration; all runs of a sweep look for a checkpoint, but few have to."""
    plain = TrainingConfig(preset=config.preset)
    names = [field.name for field in dataclasses.fields(config)]
    changed = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(plain, name)}
    if not resumed:
        changed.pop("resume_from_checkpoint", None)
    return shlex.join(
        ["accelerate", "launch", "train_ddpm.py", *as_flags({"preset": config.preset, **changed})]
    )


def make_plan(
    budget: Budget, folder: Path, data: str | None, class_names: tuple[str, ...], num_scans: int
) -> list[Run]:
    """List the runs of a budget, each with a folder in ``folder``; ``data`` has ``num_scans`` training scans."""
    where = {"train_data_dir": data, "phantom_images": budget.phantom_images}
    plan = Planner(budget, folder, where, class_names, num_scans)
    return [
        *plan.paper(),
        *plan.start(),
        *plan.ratio(),
        *plan.ablations(),
        *plan.provoked(),
        *plan.ours(),
    ]


@dataclass(frozen=True)
class Planner:
    """What all runs of a plan have in common."""

    budget: Budget
    folder: Path
    where: dict
    class_names: tuple[str, ...]
    num_scans: int
    counted: dict[str, float] = field(default_factory=dict)

    def run(self, part: str, variant: str, setting: Setting, ssim_images: int = 0, **changes) -> Run:
        """A training by the paper's recipe, but for ``changes``; measured at its end."""
        steps_per_epoch = self.num_scans // setting.batch_size
        base = {**PRESETS["mridiff-44"], "preset": "mridiff-44", "surge_guard": False, **self.budget.network}
        base["start_from_moments"] = False  # the paper's chains start in noise alone
        base["mixed_precision"] = "no"  # one precision for all runs, on whatever machines they are resumed
        seed = changes.get("seed", 0)
        flags = {
            **base,
            **self.where,
            "resolution": setting.resolution,
            "train_batch_size": setting.batch_size,
            "num_train_epochs": setting.epochs,
            "validation_steps": steps_per_epoch,
            "evaluate_epochs": [setting.epochs],
            "evaluate_images": self.budget.images,
            "num_inference_steps": self.budget.num_inference_steps,
            "checkpoints_total_limit": 1,
            "resume_from_checkpoint": "latest",
            "output_dir": str(self.folder / f"{part}-{variant}-seed{seed}"),
            **changes,
        }
        config = TrainingConfig(**flags)
        return Run(part, variant, config, self.gmac(config), ssim_images)

    def gmac(self, config: TrainingConfig) -> float:
        """Of one forward pass of one sample; counted once a network and size."""
        names = ("resolution", "block_out_channels", "layers_per_block", "block_type", "attention_types")
        key = str([getattr(config, name) for name in names])
        if key not in self.counted:
            self.counted[key] = read_architecture(config, self.class_names).gmac
        return self.counted[key]

    def paper(self) -> Iterator[Run]:
        """Table 1, figures 6 to 12: the paper's settings as they are, and the second with the guard too."""
        budget = self.budget
        for setting in dict.fromkeys((budget.best, budget.surge, budget.long)):
            changes = {"num_inference_steps": budget.paper_inference_steps}
            if setting == budget.long:
                changes |= {
                    "sample_epochs": list(budget.sample_epochs),
                    "evaluate_epochs": list(budget.evaluate_epochs),
                }
            ssim_images = budget.images if setting == budget.best else 0
            yield self.run("paper", size_and_batch(setting), setting, ssim_images, **changes)
        guarded = f"{size_and_batch(budget.surge)}-guarded"
        yield self.run("paper", guarded, budget.surge, surge_guard=True)

    def start(self) -> Iterator[Run]:
        """The paper's best setting once more: the same weights, of chains that start where the forward process ends."""
        best = self.budget.best
        changes = {
            "num_inference_steps": self.budget.paper_inference_steps,
            "start_from_moments": True,
        }
        yield self.run("start", size_and_batch(best), best, **changes)

    def ratio(self) -> Iterator[Run]:
        """Image size against batch size at equal epochs, at the paper's learning rate and at one that follows the batch.

        Adam's rate goes with the square root of the batch (Malladi et al. 2022, arXiv:2205.10287).
        """
        budget = self.budget
        for seed in range(budget.ratio_seeds):
            for size in budget.sizes:
                for batch_size in budget.batch_sizes:
                    setting = Setting(size, batch_size, budget.ratio_epochs)
                    name = size_and_batch(setting)
                    yield self.run("ratio", name, setting, seed=seed)
                    if batch_size != budget.best.batch_size:  # there both rates are one
                        rate = PRESETS["mridiff-44"]["learning_rate"]
                        rate *= math.sqrt(batch_size / budget.best.batch_size)
                        yield self.run("ratio", f"{name}-scaled", setting, seed=seed, learning_rate=rate)

    def ablations(self) -> Iterator[Run]:
        """Blocks and attention at equal compute, timesteps and losses at equal epochs; they share one baseline.

        That has attention at every level, as the paper's network, also where other runs do with less. The bottleneck's stays.
        """
        setting = self.budget.ablation
        everywhere = {"attention_types": PRESETS["mridiff-44"]["attention_types"]}
        nowhere = {"attention_types": ["none"] * len(everywhere["attention_types"])}
        blocks = {
            BASELINE: everywhere,
            "resnet": nowhere,
            "convnext-attention": {"block_type": "convnext", **everywhere},
            "convnext": {"block_type": "convnext", **nowhere},
        }
        gmac = {
            variant: self.run("blocks", variant, setting, **changes).gmac
            for variant, changes in blocks.items()
        }
        timesteps = {}
        for number in TIMESTEPS:
            steps = {"num_train_timesteps": number, **everywhere}
            if number != 300:  # which is the baseline's
                timesteps[f"{number}"] = {**steps, **PAPER_BETAS}
            if number != 1000:  # which the paper's betas were made for
                scaled = {name: beta * 1000 / number for name, beta in PAPER_BETAS.items()}
                timesteps[f"{number}-scaled"] = {**steps, **scaled}
        for seed in range(self.budget.ablation_seeds):
            for variant, changes in blocks.items():
                epochs = max(1, round(setting.epochs * gmac[BASELINE] / gmac[variant]))
                equal = dataclasses.replace(setting, epochs=epochs)
                yield self.run("blocks", variant, equal, seed=seed, **changes)
            for variant, changes in timesteps.items():
                yield self.run("timesteps", variant, setting, seed=seed, **changes)
            for loss_type in LOSSES[1:]:
                yield self.run("losses", loss_type, setting, seed=seed, loss_type=loss_type, **everywhere)

    def provoked(self) -> Iterator[Run]:
        """The second setting, healthy for half of its epochs, then gone on with at a rate far too high; guarded or not.

        Half of them, for the guard compares with what it has seen of the run.
        """
        setting = self.budget.provoked
        guards = {"unguarded": False, "guarded": True}
        for seed in range(self.budget.provoked_seeds):
            for rate, (name, guard) in itertools.product(PROVOKED_RATES, guards.items()):
                plain = {"seed": seed, "surge_guard": guard, "evaluate_epochs": []}
                plain["checkpointing_steps"] = max(1, self.num_scans // setting.batch_size // 6)
                variant = f"{name}-{rate}"
                run = self.run("provoked", variant, setting, learning_rate=rate, **plain)
                healthy = dataclasses.replace(setting, epochs=setting.epochs // 2)
                first = self.run("provoked", variant, healthy, **plain)
                yield dataclasses.replace(run, first=first.config)

    def ours(self) -> Iterator[Run]:
        """Our own recipe in the best setting, and at larger sizes, where no classifier is trained for KID."""
        recipe = {
            name: getattr(TrainingConfig(preset="mri-ddpm-64"), name)
            for name in (
                "beta_start", "beta_end", "prediction_type", "attention_types", "lr_scheduler", "lr_warmup_steps",
                "max_grad_norm", "surge_guard", "start_from_moments", "timestep_sampling",
            )
        }  # fmt: skip
        budget = self.budget
        recipe |= {"preset": "mri-ddpm-64", **budget.network}
        yield self.run("ours", size_and_batch(budget.best), budget.best, budget.images, **recipe)
        for setting in budget.large:
            large = {**recipe, **budget.large_network, "evaluate_epochs": [], "num_samples": 8}
            yield self.run("large", size_and_batch(setting), setting, min(budget.images, 64), **large)


def size_and_batch(setting: Setting) -> str:
    """Of a name: "44-80"."""
    return f"{setting.resolution}-{setting.batch_size}"
