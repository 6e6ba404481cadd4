"""What a run shows of itself: the plots of its losses and evaluations, and grids of samples."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers.utils import make_image_grid
from PIL import Image, ImageDraw

from mri_ddpm.files import whole_file

GRID_TILE = 96  # pixels; smaller images are enlarged without smoothing
LABEL_WIDTH = 120  # pixels
CURVE_POINTS = 4000  # of a longer run every second step, or third, is shown: a figure has fewer pixels


def plot_loss(rows: Sequence[dict], path: Path, title: str) -> None:
    """Plot the training loss (steps and the mean of all around them) and the validation loss, raw and EMA, against the step."""
    from matplotlib.figure import Figure  # imported late: it is slow, and only the main process plots

    training = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    validation = [
        (row["step"], row["validation_loss"], row["validation_loss_ema"])
        for row in rows
        if "validation_loss" in row
    ]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    if training:
        steps, losses = np.array(training).T
        window = max(1, len(losses) // 50)
        every = -(-len(losses) // CURVE_POINTS)
        mean = np.lib.stride_tricks.sliding_window_view(losses, window)[::every].mean(axis=1)
        axes.plot(steps[::every], losses[::every], color="tab:blue", alpha=0.25, linewidth=0.6)
        axes.plot(
            steps[window - 1 :: every], mean, color="tab:blue", label=f"training, mean of {window} steps"
        )
    if validation:
        steps, raw, ema = np.array(validation).T
        axes.plot(steps, raw, "o-", color="tab:orange", markersize=3, label="validation, raw weights")
        axes.plot(steps, ema, "o-", color="tab:green", markersize=3, label="validation, EMA weights")
    for number, step in enumerate(row["step"] for row in rows if "surge_at_step" in row):
        axes.axvline(
            step, color="tab:red", linestyle=":", label=None if number else "back here after a surge"
        )
    axes.set(xlabel="optimizer step", ylabel="loss", yscale="log", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    save_figure(figure, path)


def plot_evaluation(rows: Sequence[dict], path: Path, expected_share: float) -> None:
    """Plot the KID of wavelets and the share flagged as copies against the epoch, with intervals and what real scans would score."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    titles = {
        "wavelet_kid": ("wavelet KID to the training scans", 0),
        "flagged_share": ("flagged as copies", expected_share),
    }
    names = {name: None for row in rows for name in row if not name.endswith("_interval")}
    # By channel a name goes on after the measure
    names = {key: [name for name in names if f"{name}_".startswith(f"{key}_")] for key in titles}
    titles = {key: title for key, title in titles.items() if names[key]}
    if not titles:
        return  # there were too few scans
    for axes, (key, (title, real)) in zip(
        figure.subplots(len(titles), sharex=True, squeeze=False)[:, 0], titles.items(), strict=True
    ):
        for name in names[key]:
            measured = [row for row in rows if name in row]
            epochs, value = [row["epoch"] for row in measured], np.array([row[name] for row in measured])
            low, high = np.array([row[f"{name}_interval"] for row in measured]).T
            error, channel = np.maximum([value - low, high - value], 0), name[len(key) + 1 :]
            axes.errorbar(epochs, value, yerr=error, fmt="o-", capsize=3, label=channel or None)
        axes.axhline(real, color="gray", linestyle=":", label="expected of real scans never trained on")
        axes.set(ylabel=title)
        axes.grid(alpha=0.3)
        if len(names[key]) > 1:
            axes.legend()
    axes.set(xlabel="epoch")
    axes.legend()
    save_figure(figure, path)


def save_figure(figure, path: Path) -> None:
    """Write a figure of matplotlib as PNG, whole or not at all."""
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")


def save_grid(images: Sequence[Image.Image], row_names: Sequence[str], path: Path) -> None:
    """Write images as a grid of one row a name, the name on its left; images are given row by row."""
    scale = max(1, -(-GRID_TILE // images[0].width))
    tiles = [
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
        for image in images
    ]
    grid = make_image_grid(tiles, rows=len(row_names), cols=len(images) // len(row_names))
    left = LABEL_WIDTH if any(row_names) else 0
    labelled = Image.new("L", (grid.width + left, grid.height))
    labelled.paste(grid, (left, 0))
    draw = ImageDraw.Draw(labelled)
    for row, name in enumerate(row_names):
        draw.text((6, (row + 0.5) * tiles[0].height), name.replace("_", "\n"), fill=255, anchor="lm")
    with whole_file(path) as unfinished:
        labelled.save(unfinished, format="PNG")
