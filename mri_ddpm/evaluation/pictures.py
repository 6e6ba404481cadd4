"""The plots and picture sheets of the report."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from mri_ddpm.evaluation.classifier import Labelled
from mri_ddpm.evaluation.lazy import Images
from mri_ddpm.evaluation.subject import RealScans
from mri_ddpm.sampling.sheets import TILE, sheet, tile

COLUMNS = 8
COLOURS = {"synthetic": "tab:red", "training": "tab:blue", "validation": "tab:green"}
PLOTS = {  # what the report shows, and what it says of it
    "side_by_side.png": "Left synthetic, right real validation scans, a row a class.",
    "fidelity.png": "Above validation scans, below samples that were given what belongs to these scans.",
    "power_spectrum.png": "Power by spatial frequency: a lack at high frequencies is blur, an excess is noise.",
    "intensities.png": "How often each brightness occurs.",
    "losses.png": "Training loss by timestep; a gap between training and validation scans means that scans were learned by heart.",
    "bits.png": "What each timestep costs in bits per dimension.",
    "rate_distortion.png": "Progressive lossy compression: the error left after so many bits.",
    "progressive.png": "What the model makes of a validation scan after more and more noise: fine detail goes first.",
    "worst_pairs.png": "The 16 synthetic images closest to a training scan: synthetic, training, difference.",
}


def new_plot(xlabel: str, ylabel: str, **axes_settings) -> tuple:
    """A figure of the report's size with its axes."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, **axes_settings)
    axes.grid(alpha=0.3)
    return figure, axes


def save_plot(figure: Figure, axes, path: Path) -> None:
    """Add the legend and write the picture."""
    axes.legend()
    figure.savefig(path, dpi=100)


def plot_spectra(spectra: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Radially averaged power by part, with the ratio to the training scans that the eye looks for."""
    figure, axes = new_plot("spatial frequency, cycles/pixel", "power", yscale="log")
    for name, (frequency, power) in spectra.items():
        axes.plot(frequency[1:], power[1:], label=name, color=COLOURS[name])
    save_plot(figure, axes, folder / "power_spectrum.png")


def plot_histograms(histograms: dict[str, tuple[np.ndarray, np.ndarray]], folder: Path) -> None:
    """Density of intensities by part."""
    figure, axes = new_plot("intensity", "density", yscale="log")
    for name, (centres, density) in histograms.items():
        axes.step(centres, density, where="mid", label=name, color=COLOURS[name])
    save_plot(figure, axes, folder / "intensities.png")


def plot_losses(losses: dict[str, dict[str, list[dict]]], folder: Path) -> None:
    """Loss by timestep quartile: raw and EMA weights, training and validation scans, with intervals."""
    figure, axes = new_plot("timesteps, percent of T", "loss", yscale="log")
    axes.set_xticks(range(4), ["0-25", "25-50", "50-75", "75-100"])
    for i, (weights, parts) in enumerate(losses.items()):
        for j, (part, rows) in enumerate(parts.items()):
            value = np.array([row["value"] for row in rows])
            low, high = np.array([row["interval"] for row in rows]).T
            axes.errorbar(
                np.arange(4) + 0.08 * (2 * i + j - 1.5),
                value,
                yerr=[value - low, high - value],
                fmt="os"[i],
                capsize=3,
                color=COLOURS[part.replace("_", " ")],
                label=f"{part.replace('_', ' ')}, {weights} weights",
            )
    save_plot(figure, axes, folder / "losses.png")


def plot_bits(bits: dict[str, np.ndarray], folder: Path) -> None:
    """The bound's terms by timestep; the last entry, L_T, is left to the number in the text."""
    figure, axes = new_plot("timestep", "bits per dimension", yscale="log")
    for part, terms in bits.items():
        name = part.replace("_", " ")
        axes.plot(terms[:-1], label=name, color=COLOURS[name])
    save_plot(figure, axes, folder / "bits.png")


def plot_rate_distortion(rate: np.ndarray, distortion: np.ndarray, folder: Path) -> None:
    """Error against bits (DDPM, figure 5)."""
    figure, axes = new_plot("rate, bits per dimension", "error of the estimate, grey levels of 255")
    axes.plot(rate, distortion, label="validation scans", color=COLOURS["validation"])
    save_plot(figure, axes, folder / "rate_distortion.png")


def save_side_by_side(real: RealScans, synthetic: Labelled, folder: Path) -> None:
    """The first synthetic and validation images of each class, a row a class: nothing is picked. A mask's labels are greys."""
    names = real.class_names or ("all",)
    rows, titles = [], []
    for c, name in enumerate(names):
        for images, labels in (synthetic, real.validation):
            rows.append(images[labels == c][:COLUMNS])
        titles.append(name)
    picture = Image.new("L", (2 * COLUMNS * TILE + 24, len(names) * (TILE + 14)), 255)
    write = ImageDraw.Draw(picture)
    for i, images in enumerate(rows):
        top, left = (i // 2) * (TILE + 14), (i % 2) * (COLUMNS * TILE + 24)
        write.text((left + 2, top + 1), f"{('synthetic', 'real')[i % 2]} {titles[i // 2]}", fill=0)
        for j, image in enumerate(images):
            picture.paste(tile(grey(image)), (left + j * TILE, top + 14))
    picture.save(folder / "side_by_side.png")


def save_followed(samples: Images, scans: Images, folder: Path) -> None:
    """The first validation scans, and under each the sample that was given what belongs to it."""
    shown = min(2 * COLUMNS, len(scans))
    pairs = [[grey(image) for image in np.asarray(images[:shown])] for images in (scans, samples)]
    titles = ["scans above, their samples below", *[""] * (shown - 1)]
    sheet(np.stack(pairs, axis=1), titles).save(folder / "fidelity.png")


def grey(image: np.ndarray) -> np.ndarray:
    """An image ``(1, H, W)`` as it is, and a mask ``(labels, H, W)`` with a grey for each label."""
    tones = np.arange(1, len(image) + 1, dtype=np.float32) / len(image)
    return (image * tones[:, None, None]).sum(0, keepdims=True)
