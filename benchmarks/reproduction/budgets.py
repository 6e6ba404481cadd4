"""How much of the paper is run: ``tiny`` shows that everything works, ``hour`` is evidence, ``full`` is the paper's own size."""

from dataclasses import dataclass, field

NARROW = {  # an eighth of the paper's channels, one block a level instead of two, attention at the coarsest level alone
    "block_out_channels": [8, 16, 32],
    "layers_per_block": 1,
    "attention_types": ["none", "none", "linear"],
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}


@dataclass(frozen=True)
class Setting:
    """One training: pixels a side, images a step, passes over the training scans."""

    resolution: int
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """Of a run's variant: "44-80"."""
        return f"{self.resolution}-{self.batch_size}"


@dataclass(frozen=True)
class Budget:
    """What one budget runs; what it leaves out is as in the paper."""

    name: str
    # The two settings of the paper's table 1, figures 6 to 9
    best: Setting
    surge: Setting
    # What is looked at over its epochs, KID and copies at these: figures 10 to 12, and whether little changes late
    long: Setting
    evaluate_epochs: tuple[int, ...]
    # What the questions about blocks, timesteps and losses are asked at
    ablation: Setting
    ablation_seeds: int
    # A run of the second setting whose learning rate jumps up after half of its epochs
    provoked: Setting
    provoked_seeds: int
    # Larger images by our own recipe
    large: tuple[Setting, ...]
    large_network: dict
    # Sampled for every measurement
    images: int
    # Image size against batch size
    ratio_epochs: int
    ratio_seeds: int
    sizes: tuple[int, ...] = (28, 44, 56, 72)
    batch_sizes: tuple[int, ...] = (20, 40, 80, 160)
    # What is smaller than in the paper: flags of the U-Net, and in words
    network: dict = field(default_factory=dict)
    summary: str = ""
    # Of the long run: where the paper shows samples, and from where on little changes
    sample_epochs: tuple[int, int, int] = (0, 120, 585)
    late_epoch: int = 585
    # For each image, in the paper's own settings and in all others; all of T when None
    paper_inference_steps: int | None = None
    num_inference_steps: int | None = None
    phantom_images: int = 2048


TINY = Budget(
    name="tiny",
    summary="Nothing here says anything of the paper: 180 phantoms of 16 pixels stand in for scans, a network of a thousandth "
    "of the paper's cost, one to three epochs a run, one seed. It shows that every part of the reproduction works.",
    network=NARROW,
    best=Setting(16, 16, 3),
    surge=Setting(16, 8, 2),
    long=Setting(16, 16, 3),
    sample_epochs=(0, 1, 3),
    evaluate_epochs=(0, 1, 2, 3),
    late_epoch=2,
    sizes=(16,),
    batch_sizes=(8, 16),
    ratio_epochs=2,
    ratio_seeds=1,
    ablation=Setting(16, 16, 1),
    ablation_seeds=1,
    provoked=Setting(16, 8, 2),
    provoked_seeds=1,
    large=(Setting(20, 16, 1),),
    large_network=NARROW,
    images=100,
    paper_inference_steps=4,
    num_inference_steps=4,
    phantom_images=200,
)
HOUR = Budget(
    name="hour",
    summary="Scaled down for two CPU cores: a U-Net of 8/16/32 channels with one block a level and attention "
    "at the coarsest level alone (0.14 instead of 13.6 million parameters; at every level for claims 4 to 6); fewer epochs than the paper's "
    "8000 and 2600; and the questions about epochs, blocks, timesteps and losses are asked at 28×28.",
    network=NARROW,
    best=Setting(44, 80, 40),
    surge=Setting(72, 40, 8),
    long=Setting(28, 80, 640),
    evaluate_epochs=(0, 15, 30, 60, 120, 240, 400, 585, 640),
    ratio_epochs=3,
    ratio_seeds=1,
    ablation=Setting(28, 40, 6),
    ablation_seeds=3,
    provoked=Setting(72, 40, 4),
    provoked_seeds=2,
    large=(Setting(128, 4, 4),),
    large_network=NARROW
    | {
        "block_out_channels": [8, 16, 32, 64, 64],
        "attention_types": ["none", "none", "none", "linear", "full"],
    },
    images=128,
    num_inference_steps=50,
)
FULL = Budget(
    name="full",
    best=Setting(44, 80, 8000),
    surge=Setting(72, 40, 2600),
    long=Setting(44, 80, 8000),
    evaluate_epochs=(0, 30, 120, 300, 585, 1000, 2000, 4000, 8000),
    ratio_epochs=120,
    ratio_seeds=3,
    ablation=Setting(44, 80, 240),
    ablation_seeds=3,
    provoked=Setting(72, 40, 4),
    provoked_seeds=3,
    large=(Setting(128, 32, 400), Setting(256, 16, 200)),
    large_network={
        "block_out_channels": [64, 128, 256, 256],
        "attention_types": ["none", "none", "linear", "full"],
    },
    images=1000,
)
BUDGETS = {budget.name: budget for budget in (TINY, HOUR, FULL)}
