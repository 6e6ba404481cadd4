"""How much of the paper is run: ``tiny`` shows that everything works, ``hour`` is evidence, ``full`` is the paper's own size."""

from dataclasses import dataclass

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


@dataclass(frozen=True)
class Budget:
    """What one budget runs.

    summary: what is smaller than in the paper, for the report; empty when nothing is.
    network: flags of a smaller U-Net than the paper's, for every run.
    best, surge: the two settings of the paper's table 1, figures 6 to 9.
    long: the run that is looked at over its epochs: figures 10 to 12, and whether little changes late. May be ``best``.
    sample_epochs: of the long run, where the paper shows samples.
    evaluate_epochs: of the long run, where KID and copies are measured.
    late_epoch: of the long run, from which on "little changes".
    sizes, batch_sizes, ratio_epochs, ratio_seeds: the sweep over image size / batch size.
    ablation: what the questions about blocks, timesteps and losses are asked at, with so many seeds.
    provoked: a run of the second setting whose learning rate jumps up after half of its epochs, with so many seeds.
    large: larger images by our own recipe.
    large_network: flags of its U-Net.
    images: drawn for every measurement.
    paper_inference_steps: for each of them in the paper's own settings; all of T when ``None``.
    num_inference_steps: in all other runs.
    """

    name: str
    summary: str
    network: dict
    best: Setting
    surge: Setting
    long: Setting
    sample_epochs: tuple[int, int, int]
    evaluate_epochs: tuple[int, ...]
    late_epoch: int
    sizes: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    ratio_epochs: int
    ratio_seeds: int
    ablation: Setting
    ablation_seeds: int
    provoked: Setting
    provoked_seeds: int
    large: tuple[Setting, ...]
    large_network: dict
    images: int
    paper_inference_steps: int | None
    num_inference_steps: int | None
    phantom_images: int = 2048


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget(
            name="tiny",
            summary="Nothing here says anything of the paper: 180 phantoms of 16 and 20 pixels stand in for scans, a network of "
            "a thousandth of the paper's cost, two epochs a run. It shows that every part of the reproduction works.",
            network=NARROW,
            best=Setting(20, 16, 3),
            surge=Setting(20, 8, 3),
            long=Setting(16, 16, 4),
            sample_epochs=(0, 2, 4),
            evaluate_epochs=(0, 2, 3, 4),
            late_epoch=2,
            sizes=(16, 20),
            batch_sizes=(8, 16),
            ratio_epochs=2,
            ratio_seeds=1,
            ablation=Setting(16, 16, 2),
            ablation_seeds=2,
            provoked=Setting(16, 8, 2),
            provoked_seeds=1,
            large=(Setting(32, 16, 1),),
            large_network=NARROW,
            images=100,
            paper_inference_steps=4,
            num_inference_steps=4,
            phantom_images=200,
        ),
        Budget(
            name="hour",
            summary="Scaled down for two CPU cores: a U-Net of 8/16/32 channels with one block a level and attention "
            "at the coarsest level alone (0.14 instead of 13.6 million parameters; at every level for claims 4 to 6); fewer epochs than the paper's "
            "8000 and 2600; and the questions about epochs, blocks, timesteps and losses are asked at 28×28.",
            network=NARROW,
            best=Setting(44, 80, 40),
            surge=Setting(72, 40, 8),
            long=Setting(28, 80, 640),
            sample_epochs=(0, 120, 585),
            evaluate_epochs=(0, 15, 30, 60, 120, 240, 400, 585, 640),
            late_epoch=585,
            sizes=(28, 44, 56, 72),
            batch_sizes=(20, 40, 80, 160),
            ratio_epochs=3,
            ratio_seeds=1,
            ablation=Setting(28, 40, 6),
            ablation_seeds=3,
            provoked=Setting(72, 40, 4),
            provoked_seeds=2,
            large=(Setting(128, 4, 4),),
            large_network={
                **NARROW,
                "block_out_channels": [8, 16, 32, 64, 64],
                "attention_types": ["none", "none", "none", "linear", "full"],
            },
            images=128,
            paper_inference_steps=None,
            num_inference_steps=50,
        ),
        Budget(
            name="full",
            summary="",
            network={},
            best=Setting(44, 80, 8000),
            surge=Setting(72, 40, 2600),
            long=Setting(44, 80, 8000),
            sample_epochs=(0, 120, 585),
            evaluate_epochs=(0, 30, 120, 300, 585, 1000, 2000, 4000, 8000),
            late_epoch=585,
            sizes=(28, 44, 56, 72),
            batch_sizes=(20, 40, 80, 160),
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
            paper_inference_steps=None,
            num_inference_steps=None,
        ),
    )
}
