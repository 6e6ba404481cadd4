"""Every training that a budget asks for, as a list: which claim it is for, and what it changes in the paper's recipe."""

import shlex
from dataclasses import asdict, dataclass, field
from math import sqrt
from pathlib import Path

from benchmarks.reproduction.architecture import read_architecture
from benchmarks.reproduction.budgets import Budget, Setting
from mri_ddpm.config import TrainingConfig
from mri_ddpm.flags import as_flags
from mri_ddpm.presets import PAPER_BETAS, PRESETS

BASELINE = "resnet-attention"  # of the questions about blocks, timesteps and losses
PROVOKED_RATES = (0.1, 0.3)  # to which the learning rate jumps; the recipe's is 1e-3
PAPER = PRESETS["mridiff-44"]
RECIPE = {
    **PAPER,
    "preset": "mridiff-44",
    "surge_guard": False,
    "start_from_moments": False,  # the paper's chains start in noise alone
    "mixed_precision": "no",  # one precision for all runs, on whatever machines they are resumed
    "checkpoints_total_limit": 1,
    "resume_from_checkpoint": "latest",
}
OURS = {  # where our recipe differs from it
    name: getattr(TrainingConfig(preset="mri-ddpm-64"), name)
    for name in (
        "preset", "beta_start", "beta_end", "prediction_type", "attention_types", "lr_scheduler", "lr_warmup_steps",
        "max_grad_norm", "surge_guard", "start_from_moments", "timestep_sampling",
    )
}  # fmt: skip


@dataclass(frozen=True)
class Experiment:
    """One row of the list: trainings that differ in their seeds alone.

    part: the question it belongs to.
    variant: what it is within that question.
    changes: flags that differ from the paper's recipe.
    ssim_images: to sample for SSIM to the nearest validation scan; 0 is none.
    jumps_to: learning rate of the second half of the epochs.
    """

    part: str
    variant: str
    setting: Setting
    changes: dict = field(default_factory=dict)
    seeds: int = 1
    ssim_images: int = 0
    jumps_to: float | None = None


def experiments(budget: Budget) -> list[Experiment]:
    """All of a budget, in the order of the report."""
    best, surge, long, images = budget.best, budget.surge, budget.long, budget.images
    own, own_seeds = budget.ablation, budget.ablation_seeds
    chain = {"num_inference_steps": budget.paper_inference_steps}
    over_time = {"sample_epochs": [*budget.sample_epochs], "evaluate_epochs": [*budget.evaluate_epochs]}
    grid = [Setting(s, b, budget.ratio_epochs) for s in budget.sizes for b in budget.batch_sizes]
    everywhere = {"attention_types": PAPER["attention_types"]}  # also where other runs do with less
    nowhere = {"attention_types": ["none"] * len(PAPER["attention_types"])}  # the bottleneck's stays
    convnext = {"block_type": "convnext"}
    ours = OURS | budget.network
    large = {**ours, **budget.large_network, "evaluate_epochs": [], "num_samples": 8}

    def root_rate(setting: Setting) -> dict:  # Adam's goes with the root of the batch (Malladi et al. 2022)
        return {"learning_rate": PAPER["learning_rate"] * sqrt(setting.batch_size / best.batch_size)}

    def scaled_betas(timesteps: int) -> dict:  # which leave as little signal as the paper's do after 1000
        return {name: beta * 1000 / timesteps for name, beta in PAPER_BETAS.items()}

    return [
        # Table 1, figures 6 to 12, claims 2 and 3; the surge with the guard too; chains that start where the forward process ends
        *(
            Experiment("paper", s.name, s, chain | (over_time if s == long else {}), ssim_images=images * (s == best))
            for s in dict.fromkeys((best, surge, long))
        ),
        Experiment("paper", f"{surge.name}-guarded", surge, {"surge_guard": True}),
        Experiment("start", best.name, best, {**chain, "start_from_moments": True}),
        # Claim 1, at the paper's learning rate and at one that follows the batch; at the best run's batch both are one
        *(
            Experiment("ratio", s.name + ending, s, rate, budget.ratio_seeds)
            for s in grid
            for ending, rate in {"": {}, "-scaled": root_rate(s)}.items()
            if not (ending and s.batch_size == best.batch_size)
        ),
        # Claim 4, at equal compute
        Experiment("blocks", BASELINE, own, everywhere, own_seeds),
        Experiment("blocks", "resnet", own, nowhere, own_seeds),
        Experiment("blocks", "convnext-attention", own, convnext | everywhere, own_seeds),
        Experiment("blocks", "convnext", own, convnext | nowhere, own_seeds),
        # Claim 5; T = 300 under the paper's betas is the baseline, and those were made for T = 1000
        *(
            Experiment("timesteps", name, own, {"num_train_timesteps": number, **betas, **everywhere}, own_seeds)
            for name, number, betas in (
                ("100", 100, PAPER_BETAS),
                ("100-scaled", 100, scaled_betas(100)),
                ("300-scaled", 300, scaled_betas(300)),
                ("1000", 1000, PAPER_BETAS),
            )
        ),
        # Claim 6
        Experiment("losses", "l1", own, {"loss_type": "l1", **everywhere}, own_seeds),
        Experiment("losses", "l2", own, {"loss_type": "l2", **everywhere}, own_seeds),
        # Claim 7: healthy for half of the epochs, for the guard compares with what it has seen of the run
        *(
            Experiment(
                "provoked", f"{name}-{rate}", budget.provoked, {"surge_guard": guard, "evaluate_epochs": []},
                budget.provoked_seeds, jumps_to=rate,
            )
            for rate in PROVOKED_RATES
            for name, guard in (("unguarded", False), ("guarded", True))
        ),
        # Beyond the paper; for the larger sizes no classifier is trained for KID
        Experiment("ours", best.name, best, ours, ssim_images=images),
        *(Experiment("large", s.name, s, large, ssim_images=min(images, 64)) for s in budget.large),
    ]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One training.

    part, variant, ssim_images: of its experiment.
    phases: what is trained in its folder, one after the other.
    gmac: of one forward pass of one sample.
    """

    part: str
    variant: str
    ssim_images: int
    phases: tuple[TrainingConfig, ...]
    gmac: float

    @property
    def config(self) -> TrainingConfig:
        """Of the last phase."""
        return self.phases[-1]

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
        steps = self.config.num_train_epochs * self.config.validation_steps
        return self.gmac * self.config.train_batch_size * steps

    @property
    def command(self) -> str:
        """The training alone, for a shell; of a sweep all runs look for a checkpoint, but few have to."""
        commands = []
        for i, config in enumerate(self.phases):
            plain, flags = asdict(TrainingConfig(preset=config.preset)), asdict(config)
            changed = {name: flags[name] for name in flags if flags[name] != plain[name]}
            if i == 0:
                changed.pop("resume_from_checkpoint")
            flags = as_flags({"preset": config.preset, **changed})
            commands.append(shlex.join(["accelerate", "launch", "train_ddpm.py", *flags]))
        return " && ".join(commands)


def make_plan(
    budget: Budget, folder: Path, data: str | None, class_names: tuple[str, ...], num_scans: int
) -> list[Run]:
    """The runs of a budget, each with a folder in ``folder``; ``data`` has ``num_scans`` training scans."""
    rows = experiments(budget)
    common = {
        **RECIPE,
        **budget.network,
        "train_data_dir": data,
        "phantom_images": budget.phantom_images,
        "evaluate_images": budget.images,
        "num_inference_steps": budget.num_inference_steps,
    }
    gmacs: dict[str, float] = {}

    def run(row: Experiment, seed: int) -> Run:
        setting, steps_per_epoch = row.setting, num_scans // row.setting.batch_size
        flags = {
            **common,
            "resolution": setting.resolution,
            "train_batch_size": setting.batch_size,
            "num_train_epochs": setting.epochs,
            "validation_steps": steps_per_epoch,
            "evaluate_epochs": [setting.epochs],
            "output_dir": str(folder / f"{row.part}-{row.variant}-seed{seed}"),
            "seed": seed,
            **row.changes,
        }
        network = ("resolution", "block_out_channels", "layers_per_block", "block_type", "attention_types")
        key = str([flags.get(name) for name in network])
        if key not in gmacs:
            gmacs[key] = read_architecture(TrainingConfig(**flags), class_names).gmac
        if row.part == "blocks":  # whose first is the baseline
            baseline = gmacs.setdefault("baseline", gmacs[key])
            epochs = max(1, round(setting.epochs * baseline / gmacs[key]))
            flags |= {"num_train_epochs": epochs, "evaluate_epochs": [epochs]}
        phases = [flags]
        if row.jumps_to:
            flags["checkpointing_steps"] = max(1, steps_per_epoch // 6)
            phases = [
                {**flags, "num_train_epochs": setting.epochs // 2},
                {**flags, "learning_rate": row.jumps_to},
            ]
        configs = tuple(TrainingConfig(**phase) for phase in phases)
        return Run(row.part, row.variant, row.ssim_images, configs, gmacs[key])

    seeds = range(max(row.seeds for row in rows))
    return [run(row, seed) for seed in seeds for row in rows if seed < row.seeds]
