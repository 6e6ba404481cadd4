"""The paper's figures, drawn from our scans, our network and our runs, and those that the claims need."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reproduction import paper
from benchmarks.reproduction.architecture import draw_architecture, read_architecture
from benchmarks.reproduction.budgets import Budget
from mri_ddpm.config import PRESETS, TrainingConfig
from mri_ddpm.sampling.sheets import sheet

ZOOM = (0, 0.2)  # of the loss, as in the paper's figure 9
SIZE_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
BATCH_STYLES = (":", "--", "-", "-.")


def save(figure: Figure, path: Path) -> None:
    """Write a figure, small enough to be kept."""
    figure.savefig(path, dpi=90)


def one_of_each_class(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Figure 1: the first scan of each class; images ``(N, 1, H, W)`` in [0, 1]."""
    rows = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)]
    names = [name.removesuffix("_tumor") for name in class_names] or ["scan"]
    sheet(images[rows][:, None], names).save(path)


def architectures(network: dict, network_name: str, class_names: Sequence[str], path: Path) -> None:
    """Figure 4: the U-Net of each preset, and the one that this budget trains in its place."""
    configs = {name: TrainingConfig(preset=name) for name in PRESETS}
    if network:
        configs[network_name] = TrainingConfig(preset="mridiff-44", **network)
    rows = -(-len(configs) // 2)
    figure = Figure(figsize=(11, 4.6 * rows), layout="constrained")
    panels = figure.subplots(rows, 2).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, (name, config) in zip(panels, configs.items(), strict=False):
        draw_architecture(axes, read_architecture(config, class_names), f"{name}, {config.resolution} px")
    save(figure, path)


def all_losses(results: Sequence[dict], budget: Budget, path: Path) -> None:
    """Figure 6: held-out loss of every setting at the paper's learning rate, whole and from 0 to 0.2."""
    figure, panels = two_panels()
    sizes = sorted({row["resolution"] for row in results})
    batches = sorted({row["batch_size"] for row in results})
    for axes in panels:
        for row in results:
            losses = row["validation_loss"]
            look = {
                "color": SIZE_COLOURS[sizes.index(row["resolution"]) % len(SIZE_COLOURS)],
                "linestyle": BATCH_STYLES[batches.index(row["batch_size"]) % len(BATCH_STYLES)],
                "linewidth": 1,
            }
            name = f"{row['resolution']} px, batch {row['batch_size']}" if row["seed"] == 0 else None
            axes.plot(range(1, len(losses) + 1), losses, label=name, **look)
        axes.set_xscale("log")
    panels[0].legend(fontsize=5, ncols=2)
    save(figure, path)


def one_loss(row: dict, path: Path) -> None:
    """Figures 7 to 9: training and held-out loss of one setting, whole and from 0 to 0.2."""
    figure, panels = two_panels()
    for axes in panels:
        for key, name in (("training_loss", "training"), ("validation_loss", "held out")):
            axes.plot(range(1, len(row[key]) + 1), row[key], label=name, linewidth=1)
        axes.legend()
    save(figure, path)


def two_panels() -> tuple[Figure, Sequence[Axes]]:
    """Loss against epoch twice, the second time from 0 to 0.2 only."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes in panels:
        axes.set(xlabel="epoch", ylabel="Huber loss")
        axes.grid(alpha=0.3)
    panels[0].set_yscale("log")
    panels[1].set(ylim=ZOOM, title="0 to 0.2")
    return figure, panels


def ratio_tables(results: Sequence[dict], budget: Budget, path: Path) -> None:
    """Last held-out loss and KID by size and batch, at the paper's learning rate and at the scaled one; means over seeds."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    measures = {
        "held-out loss": lambda row: row["validation_loss"][-1] if row["validation_loss"] else None,
        "KID": lambda row: row["kid"]["value"] if "kid" in row else None,
    }
    for column, (name, value) in enumerate(measures.items()):
        for line, scaled in enumerate((False, True)):
            table = np.full((len(budget.sizes), len(budget.batch_sizes)), np.nan)
            for i, size in enumerate(budget.sizes):
                for j, batch in enumerate(budget.batch_sizes):
                    kept = scaled and batch != budget.best.batch_size
                    rows = [
                        row
                        for row in results
                        if (row["resolution"], row["batch_size"]) == (size, batch)
                        and row["variant"].endswith("-scaled") == kept
                    ]
                    values = [value(row) for row in rows if value(row) is not None]
                    table[i, j] = np.mean(values) if values else np.nan
            rate = "rate ∝ √batch" if scaled else "paper's rate"
            heat_map(panels[line, column], table, budget, f"{name}, {rate}")
    save(figure, path)


def heat_map(axes: Axes, table: np.ndarray, budget: Budget, title: str) -> None:
    """Numbers on colours, the best of each row in bold; a frame where size / batch is over the paper's best run's."""
    relative = table / np.nanmin(table, axis=1, keepdims=True)
    axes.imshow(np.log(relative), cmap="YlOrRd", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(budget.batch_sizes)), [f"batch {batch}" for batch in budget.batch_sizes])
    axes.set_yticks(range(len(budget.sizes)), [f"{size} px" for size in budget.sizes])
    axes.set_title(title, fontsize=9)
    limit = budget.best.resolution / budget.best.batch_size
    for (i, j), value in np.ndenumerate(table):
        over = budget.sizes[i] / budget.batch_sizes[j] > 1.01 * limit
        weight = "bold" if relative[i, j] == 1 else "normal"
        frame = {"boxstyle": "round", "facecolor": "none", "edgecolor": "black" if over else "none"}
        axes.text(j, i, f"{value:.3g}", ha="center", va="center", fontweight=weight, fontsize=8, bbox=frame)


def loss_against_kid(points: Sequence[dict], kid_of_blurred: float, path: Path) -> None:
    """What a loss says of the samples: one point an evaluated epoch, named by it."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    value, low, high = (np.array([point[key] for point in points]) for key in ("kid", "low", "high"))
    axes.errorbar(
        [point["loss"] for point in points], value, yerr=[value - low, high - value], fmt="o", capsize=3
    )
    for point in points:
        axes.annotate(
            point["epoch"], (point["loss"], point["kid"]), (4, 4), textcoords="offset points", fontsize=7
        )
    axes.axvline(paper.THRESHOLD, color="tab:red", linestyle=":", label=f"the paper's {paper.THRESHOLD}")
    axes.axhline(kid_of_blurred, color="gray", linestyle="--", label="scans blurred to outlines")
    axes.set(xlabel="held-out loss", ylabel="KID", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def variants(images: dict[str, np.ndarray], path: Path) -> None:
    """Samples of the same noise, a column a variant: arrays ``(B, 1, H, W)`` in [0, 1], by the variant's name."""
    sheet(np.stack(list(images.values())), list(images)).save(path)


def provoked_losses(results: Sequence[dict], curves: Sequence[np.ndarray], path: Path) -> None:
    """Training loss against the step when the learning rate jumps up, with the guard and without."""
    figure = Figure(figsize=(6, 3.8), layout="constrained")
    axes = figure.subplots()
    names = sorted({row["variant"] for row in results})
    for row, loss in zip(results, curves, strict=True):
        colour = SIZE_COLOURS[names.index(row["variant"]) % len(SIZE_COLOURS)]
        name = row["variant"].replace("-", ", to ") if row["seed"] == 0 else None
        axes.plot(range(1, len(loss) + 1), loss, color=colour, linewidth=0.8, label=name)
    axes.set(xlabel="optimizer step", ylabel="training loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)
