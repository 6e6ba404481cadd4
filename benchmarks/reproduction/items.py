"""The paper's figures and tables as items of the report, ours beside them, with the pictures, which are drawn here."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.reproduction import figures, paper
from benchmarks.reproduction.budgets import Budget, Setting
from benchmarks.reproduction.curves import describe
from benchmarks.reproduction.plan import Run, size_and_batch
from benchmarks.reproduction.report import Item
from benchmarks.reproduction.results import Results
from mri_ddpm.config import PAPER_BETAS, SCALED_BETAS
from mri_ddpm.data import PHANTOM_CLASS_NAMES, Scans, draw_phantoms
from mri_ddpm.diffusion import make_noise_scheduler, terminal_signal
from mri_ddpm.evaluation.subject import as_arrays
from mri_ddpm.sampling.sheets import save_noise_strip

MODULE = "benchmarks.reproduction"
LARGE_SIZES = (128, 256)  # pixels, beyond the paper


@dataclass(frozen=True)
class Material:
    """What the items are made of.

    pictures: folder for them.
    with_scans: whether real scans may be shown.
    """

    budget: Budget
    plan: Sequence[Run]
    results: Results
    scans: Scans
    pictures: Path
    with_scans: bool

    def folder(self, result: dict) -> Path:
        """The run folder of a result."""
        return next(run.folder for run in self.plan if run.name == result["name"])

    def picture(self, result: dict, source: Path, name: str, caption: str) -> dict[str, str]:
        """Take a picture of a run into the report, by name and caption; a run that ended early may not have it."""
        file = self.folder(result) / source
        if not file.exists():
            return {}
        shutil.copy(file, self.pictures / name)
        return {name: caption}

    def paper_run(self, setting: Setting) -> dict:
        """The result of one of the paper's own settings."""
        return self.results.only("paper", size_and_batch(setting))


def scans_item(material: Material) -> Item:
    """Figure 1."""
    images, labels, names, what = shown_scans(material)
    figures.one_of_each_class(images, labels, names, material.pictures / "figure1.png")
    counts = material.scans.manifest["parts"]["training"]["classes"]
    return Item(
        "Figure 1",
        "One scan each of glioma, meningioma, no tumour and pituitary tumour, of a set of 3264.",
        f"One {what} of each class at {images.shape[-1]} pixels. Files in the training part: "
        + (", ".join(f"{name} {count}" for name, count in counts.items()) or "without classes")
        + f". After copies are folded {len(material.scans.train)} train and {len(material.scans.validation)} are held out.",
        f"{MODULE}.figures.one_of_each_class",
        pictures={"figure1.png": f"One {what} of each class."},
    )


def noise_item(material: Material) -> Item:
    """Figures 2 and 3."""
    images, *_, what = shown_scans(material)
    papers, scaled = make_noise_scheduler(**PAPER_BETAS), make_noise_scheduler(**SCALED_BETAS)
    save_noise_strip(images[0, 0], papers, material.pictures / "figure3.png")
    return Item(
        "Figures 2 and 3",
        "The forward process: a scan with more and more Gaussian noise, until it is said to be noise alone.",
        "x_t at t = 0, 50, ..., 300 under betas from 1e-4 to 0.02; over each, the share of the image that is left. At T = 300 it is "
        f"{terminal_signal(papers):.3f}, so x_T is not noise alone, while sampling starts from noise alone. Scaled by 1000/300, as our "
        f"recipe has them, the betas leave {terminal_signal(scaled):.3f}.",
        "mri_ddpm.sampling.sheets.save_noise_strip",
        pictures={"figure3.png": f"The forward process on a {what}."},
    )


def shown_scans(material: Material) -> tuple:
    """Images ``(N, 1, H, W)``, labels and class names to show, and what they are: phantoms where scans may not be shown."""
    if material.with_scans:
        what = "phantom" if material.scans.manifest["source"] == "phantom" else "scan"
        images, labels = as_arrays(material.scans.train)
        return np.asarray(images), labels, material.scans.class_names, what
    images, labels = draw_phantoms(len(PHANTOM_CLASS_NAMES), material.budget.best.resolution, 0)
    return (
        images[:, None],
        labels,
        PHANTOM_CLASS_NAMES,
        "phantom (in place of patients' scans, which are not published)",
    )


def network_item(material: Material) -> Item:
    """Figure 4."""
    figures.architectures(
        material.budget.network, f"this budget ({material.budget.name})", material.scans.class_names,
        material.pictures / "figure4.png",
    )  # fmt: skip
    return Item(
        "Figure 4",
        "A U-Net from the image down to 1024 numbers and up to 388×388; the best run was at 44×44 and says nothing of widths.",
        "Each preset as its module runs: layers, channels × height × width, parameters, and 10^9 multiplications a sample. "
        "mridiff-figure4 is the figure taken by its word, but for the bottleneck, which stays an image of 1024 channels.",
        f"{MODULE}.architecture.read_architecture",
        pictures={
            "figure4.png": "Arrows down: stride-2 convolutions; up: nearest-neighbour and a convolution; dashed: skip connections."
        },
    )


def table_1_item(material: Material) -> Item:
    """Table 1."""
    budget, table, runs = material.budget, [], []
    for (name, theirs), setting in zip(paper.TABLE_1.items(), (budget.best, budget.surge), strict=True):
        result = material.paper_run(setting)
        runs.append(result)
        table.append({"setting": f"paper: {name}", **theirs})
        table += loss_rows(
            f"ours: {setting.resolution}×{setting.resolution}, batch {setting.batch_size}", result
        )
    return Item(
        "Table 1",
        "Losses of all epochs of two settings.",
        f"The same of ours, over {runs[0]['epochs']} and {runs[1]['epochs']} epochs instead of 8000 and 2600.",
        f"{MODULE}.curves.describe",
        tables=[table],
        runs=runs,
    )


def loss_rows(name: str, result: dict) -> list[dict]:
    """Table 1's rows of one run: training and held-out losses apart."""
    parts = {
        "training": "training_loss",
        "held out": "validation_loss",
        "held out, averaged weights": "validation_loss_ema",
    }
    return [
        {"setting": f"{name}, {part}", **describe(torch.tensor(result[key], dtype=torch.float64).numpy())}
        for part, key in parts.items()
        if result[key]
    ]


def all_losses_item(material: Material) -> Item:
    """Figure 6."""
    runs = [row for row in material.results.of("ratio") if not row["variant"].endswith("-scaled")]
    runs += [row for row in material.results.of("paper") if not row["variant"].endswith("-guarded")]
    figures.all_losses(runs, material.budget, material.pictures / "figure6.png")
    return Item(
        "Figure 6",
        "The losses of all models that were tried, far apart from each other.",
        f"Held-out losses of all {len(runs)} runs of the paper's recipe at its learning rate, by size and batch. A larger image is "
        "easier to tell from noise, so losses of different sizes do not compare.",
        f"{MODULE}.figures.all_losses",
        pictures={"figure6.png": "Held-out loss by epoch, whole and from 0 to 0.2."},
        runs=runs,
    )


def loss_items(material: Material) -> list[Item]:
    """Figures 7, 8 and 9."""
    theirs = {
        "Figure 7": "44×44 (42 in its caption), batch 80: falls fast, then slowly for thousands of epochs; least 0.0126.",
        "Figures 8 and 9": "72×72, batch 40: near 0.025 for 2000 epochs, then a surge to 5960; figure 9 is its part from 0 to 0.2.",
    }
    items = []
    for (title, words), setting in zip(
        theirs.items(), (material.budget.best, material.budget.surge), strict=True
    ):
        result, picture = (
            material.paper_run(setting),
            f"{title.split(' and')[0].lower().replace(' ', '')}.png",
        )
        figures.one_loss(result, material.pictures / picture)
        items.append(
            Item(
                title,
                words,
                f"{size_of(result)}, batch {setting.batch_size}, {result['epochs']} epochs: training {course(result['training_loss'])}, "
                f"held out {course(result['validation_loss'])}.",
                f"{MODULE}.figures.one_loss",
                pictures={picture: "Loss by epoch, whole and from 0 to 0.2."},
                runs=[result],
            )
        )
    return items


def sample_items(material: Material) -> list[Item]:
    """Figures 10, 11 and 12."""
    theirs = {
        10: "Noise.",
        11: "Heads and skulls begin to show.",
        12: "Four kinds of scans with eyes and skulls; little changes later.",
    }
    epochs = zip(paper.SAMPLE_EPOCHS, material.budget.sample_epochs, strict=True)
    result, items = material.paper_run(material.budget.long), []
    for (number, words), (their_epoch, epoch) in zip(theirs.items(), epochs, strict=True):
        grid = Path("samples", f"epoch-{epoch:05d}-raw.png")
        pictures = material.picture(result, grid, f"figure{number}.png", f"Synthetic, epoch {epoch}.")
        ours = f"Epoch {epoch}, {size_of(result)}, all steps of the chain, weights as they are (not averaged), the same noise in all three "
        ours += (
            "figures, a row a class."
            if pictures
            else f"figures: not reached, the run ended in epoch {result['epochs']}."
        )
        code = "mri_ddpm.training.validation.draw_grid"
        items.append(
            Item(
                f"Figure {number}",
                f"Epoch {their_epoch}. {words}",
                ours,
                code,
                pictures=pictures,
                runs=[result],
            )
        )
    return items


def ours_item(material: Material) -> Item:
    """Table 1 of our own recipe, in the paper's best setting, and what its samples are worth beside the paper's recipe.

    That as printed, and with chains that start where the forward process ends.
    """
    (result,), (started,) = material.results.of("ours"), material.results.of("start")
    best = material.paper_run(material.budget.best)
    quality = [
        {
            "recipe": name,
            "KID": bracketed(row.get("kid")),
            "fine detail, scans = 1": row.get("detail_ratio"),
            "taken for copies": row.get("flagged_share"),
        }
        for name, row in (("paper's", best), ("paper's, started at q(x_T)", started), ("ours", result))
    ]
    grid = Path("samples.png")
    return Item(
        "Our recipe",
        "Nothing of the kind; its best setting is 44×44, batch 80.",
        f"Scaled betas, v-prediction, warm-up, cosine rate, clipping and the guard, at {size_of(result)}, batch {result['batch_size']}, with "
        "the network, scans and epochs of the paper's recipe. Its losses are of another target and another schedule, so they do not "
        f"compare with table 1; what is measured of {material.budget.images} samples of each does.",
        f"{MODULE}.items.ours_item",
        pictures={
            **material.picture(result, grid, "ours.png", "Synthetic, our recipe."),
            **material.picture(best, grid, "papers.png", "Synthetic, the paper's recipe."),
            **material.picture(
                started, grid, "papers_started.png", "Synthetic, the same weights; chains start at q(x_T)."
            ),
        },
        tables=[loss_rows("our recipe", result), quality],
        runs=[result, best, started],
    )


def large_item(material: Material) -> Item:
    """Larger images, and SSIM to the nearest held-out scan."""
    results, large = material.results, material.results.of("large")
    pictures = {}
    for row in large:
        caption = f"Synthetic, {size_of(row)}, {row['epochs']} epochs."
        pictures |= material.picture(row, Path("samples.png"), f"large-{row['resolution']}.png", caption)
    table = [
        {
            "images": f"{size_of(row)}, {'paper' if row['part'] == 'paper' else 'our'} recipe",
            "epochs": row["epochs"],
            "SSIM to the nearest held-out scan": bracketed(row["ssim"]),
            "of real training scans": bracketed(row["ssim_of_training_scans"]),
            "n": row["ssim"]["n"],
        }
        for row in (*results.of("paper"), *results.of("ours"), *large)
        if "ssim" in row
    ]
    missing = [size for size in LARGE_SIZES if size not in [row["resolution"] for row in large]]
    return Item(
        "Larger images, and SSIM",
        "Left for more GPU power: SSIM says something only of larger images.",
        "By our recipe. For each sample the held-out scan with the highest SSIM was sought; beside it, what as many real training scans "
        "score. SSIM falls with size for everything, real scans too, and rises with blur, so it ranks nothing by itself."
        + "".join(f" {size}×{size} is not in this budget." for size in missing),
        "mri_ddpm.evaluation.quality.ssim_to_nearest",
        pictures=pictures,
        tables=[table],
        runs=large,
    )


def size_of(result: dict) -> str:
    """ "44×44"."""
    return f"{result['resolution']}×{result['resolution']}"


def course(losses: Sequence[float]) -> str:
    """Where a curve begins and ends."""
    return f"{losses[0]:.4f} to {losses[-1]:.4f}" if losses else "not one whole epoch"


def bracketed(estimate: dict | None) -> str | None:
    """A saved estimate in words."""
    if estimate is None:
        return None
    low, high = estimate["interval"]
    return f"{estimate['value']:.3g} [{low:.3g}, {high:.3g}]"
