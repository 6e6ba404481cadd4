"""The paper's figures, made from our network and our runs, and those that the claims need. Each is written to ``path``."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.reproduction.architecture import draw_architecture, read_architecture
from benchmarks.reproduction.budgets import Budget
from benchmarks.reproduction.measure import DEVICE, FINISHED
from benchmarks.reproduction.study import Study, Variant
from mri_ddpm.config import TrainingConfig
from mri_ddpm.files import read_json_lines
from mri_ddpm.presets import PRESETS
from mri_ddpm.runs import load_pipeline
from mri_ddpm.sampling import SamplingOptions
from mri_ddpm.sampling.batches import sample
from mri_ddpm.sampling.sheets import sheet

ZOOM = (0, 0.2)  # of the loss, as in the paper's figure 9
COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
STYLES = (":", "--", "-", "-.")
VARIANT_IMAGES = 8  # in a column


@contextmanager
def figure(path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1) -> Iterator[np.ndarray]:
    """Panels ``(rows, columns)`` to plot into, written small enough to be kept."""
    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots(rows, columns, squeeze=False)
    figure.savefig(path, dpi=90)


def architectures(budget: Budget, class_names: Sequence[str], path: Path) -> None:
    """Figure 4: the U-Net of each preset, and the one that this budget trains in its place."""
    configs = {name: TrainingConfig(preset=name) for name in PRESETS}
    if budget.network:
        configs[f"this budget ({budget.name})"] = TrainingConfig(preset="mridiff-44", **budget.network)
    rows = -(-len(configs) // 2)
    with figure(path, (11, 4.6 * rows), rows, 2) as panels:
        for axes in panels.flat:
            axes.axis("off")
        for axes, (name, config) in zip(panels.flat, configs.items(), strict=False):
            network = read_architecture(config, class_names)
            draw_architecture(axes, network, f"{name}, {config.resolution} px")


def losses(curves: Sequence[tuple[Sequence[float], dict]], path: Path, logarithmic: bool = False) -> None:
    """Figures 6 to 9: losses by epoch, each with its look, whole and from 0 to 0.2."""
    with figure(path, (10, 3.8), 1, 2) as ((whole, zoomed),):
        for axes in (whole, zoomed):
            for values, look in curves:
                axes.plot(range(1, len(values) + 1), values, linewidth=1, **look)
            axes.set(xlabel="epoch", ylabel="Huber loss", xscale="log" if logarithmic else "linear")
            axes.grid(alpha=0.3)
        whole.set_yscale("log")
        zoomed.set(ylim=ZOOM, title="0 to 0.2")
        whole.legend(**({"fontsize": 5, "ncols": 2} if logarithmic else {}))


def all_losses(rows: Sequence[dict], path: Path) -> None:
    """Figure 6: the losses of every setting, its size as a colour and its batch as a style."""
    sizes, batches = (sorted({row[key] for row in rows}) for key in ("resolution", "batch_size"))
    curves = []
    for row in rows:
        colour, style = sizes.index(row["resolution"]), batches.index(row["batch_size"])
        look = {"color": COLOURS[colour % len(COLOURS)], "linestyle": STYLES[style % len(STYLES)]}
        if row["seed"] == 0:
            look["label"] = f"{row['resolution']} px, batch {row['batch_size']}"
        curves.append((row["validation_loss"], look))
    losses(curves, path, logarithmic=True)


def one_loss(row: dict, path: Path) -> None:
    """Figures 7 to 9: training and validation loss of one setting."""
    parts = {"training_loss": "training", "validation_loss": "validation"}
    losses([(row[key], {"label": name}) for key, name in parts.items()], path)


def ratio_tables(study: Study, path: Path) -> None:
    """Last validation loss and KID by size and batch, at the paper's learning rate and at the scaled one; means over seeds."""
    measures: dict[str, Callable[[dict], float | None]] = {
        "validation loss": lambda row: row["validation_loss"][-1] if row["validation_loss"] else None,
        "KID": lambda row: row["kid"]["value"] if "kid" in row else None,
    }
    budget = study.budget
    with figure(path, (10, 7), 2, 2) as panels:
        for column, (name, value) in enumerate(measures.items()):
            for line, scaled in enumerate((False, True)):
                table = np.full((len(budget.sizes), len(budget.batch_sizes)), np.nan)
                for i, j in np.ndindex(table.shape):
                    cell = f"{budget.sizes[i]}-{budget.batch_sizes[j]}"
                    ending = "-scaled" if scaled and budget.batch_sizes[j] != budget.best.batch_size else ""
                    values = [value(row) for row in study.of("ratio", cell + ending)]
                    values = [x for x in values if x is not None]
                    table[i, j] = np.mean(values) if values else np.nan
                rate = "rate ∝ √batch" if scaled else "paper's rate"
                heat_map(panels[line, column], table, budget, f"{name}, {rate}")


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


def loss_against_kid(points: Sequence[dict], threshold: float, kid_of_blurred: float, path: Path) -> None:
    """What a loss says of the samples: one point an evaluated epoch, named by it."""
    with figure(path, (6, 3.8)) as ((axes,),):
        for point in points:
            (low, high), place = point["kid_interval"], (point["loss"], point["kid"])
            bar = [[point["kid"] - low], [high - point["kid"]]]
            axes.errorbar(*place, yerr=bar, fmt="o", capsize=3, color=COLOURS[0])
            axes.annotate(point["epoch"], place, (4, 4), textcoords="offset points", fontsize=7)
        axes.axvline(threshold, color="tab:red", linestyle=":", label=f"the paper's {threshold}")
        axes.axhline(kid_of_blurred, color="gray", linestyle="--", label="scans blurred to outlines")
        axes.set(xlabel="validation loss", ylabel="KID", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()


def provoked_losses(study: Study, path: Path) -> None:
    """Training loss against the step when the learning rate jumps up, with the guard and without."""
    rows = study.of("provoked")
    names = sorted({row["variant"] for row in rows})
    with figure(path, (6, 3.8)) as ((axes,),):
        for row in rows:
            steps = read_json_lines(study.folder / row["name"] / "metrics.jsonl")
            loss = [step["loss"] for step in steps if "loss" in step]
            label = row["variant"].replace("-", ", to ") if row["seed"] == 0 else None
            colour = COLOURS[names.index(row["variant"]) % len(COLOURS)]
            axes.plot(range(1, len(loss) + 1), loss, color=colour, linewidth=0.8, label=label)
        axes.set(xlabel="optimizer step", ylabel="training loss", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()


def variant_samples(study: Study, variants: dict[str, Variant], path: Path) -> None:
    """A column of samples of each variant's first seed, from the same noise; not of those that broke."""
    columns = {}
    for name, where in variants.items():
        row = study.of(*where)[0]
        if row["ended"] != FINISHED:
            continue
        pipeline = load_pipeline(str(study.folder / row["name"]), DEVICE)
        pipeline.set_progress_bar_config(disable=True)
        names, numbers = pipeline.class_names, range(VARIANT_IMAGES)
        labels = [i % len(names) for i in numbers] if names else None
        options = SamplingOptions(num_inference_steps=study.budget.num_inference_steps)
        images = sample(pipeline, labels, numbers, options, output_type="pt").images
        columns[name.replace(", attention", "+att")] = images.cpu().numpy()
    sheet(np.stack(list(columns.values())), list(columns)).save(path)
