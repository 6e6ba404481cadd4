"""The paper's figures and its table as items of the report, ours beside them, and what is beyond the paper."""

from functools import partial

import numpy as np

from benchmarks.reproduction import figures
from benchmarks.reproduction.architecture import read_architecture
from benchmarks.reproduction.runs import OURS, RECIPE
from benchmarks.reproduction.study import Item, Study, estimate
from mri_ddpm.config import TrainingConfig
from mri_ddpm.data import PHANTOM_CLASS_NAMES, draw_phantoms
from mri_ddpm.diffusion import make_noise_scheduler, terminal_signal
from mri_ddpm.evaluation.quality import ssim_to_nearest
from mri_ddpm.evaluation.subject import as_arrays
from mri_ddpm.presets import PAPER_BETAS, SCALED_BETAS
from mri_ddpm.sampling.sheets import save_noise_strip, sheet
from mri_ddpm.training.validation import draw_grid

TABLE_1 = {  # the paper's epoch losses, by setting; it does not say what they are the means of
    "44×44, batch 80": (8000, 0.0312, 0.0381, 0.0126, 0.0224, 0.0262, 0.0306, 0.4902),
    "72×72, batch 40": (2600, 23.5068, 272.1552, 0.0164, 0.0266, 0.0327, 0.068, 5959.6943),
}
COLUMNS = ("count", "mean", "std", "min", "25%", "50%", "75%", "max")
PARTS = {
    "training": "training_loss",
    "validation": "validation_loss",
    "validation, averaged weights": "validation_loss_ema",
}
LARGE_SIZES = (128, 256)  # pixels, beyond the paper


def figure_1(study: Study) -> Item:
    """The scans."""
    images, labels, class_names, what = shown_scans(study)
    counts = study.scans.manifest["parts"]["training"]["classes"]
    rows = [int(np.flatnonzero(labels == c)[0]) for c in np.unique(labels)]
    names = [name.removesuffix("_tumor") for name in class_names] or ["scan"]
    picture = sheet(images[rows][:, None], names)
    return Item(
        "Figure 1",
        "One scan each of glioma, meningioma, no tumour and pituitary tumour, of a set of 3264.",
        f"One {what} of each class at {images.shape[-1]} pixels. Files in the train split: "
        + (", ".join(f"{name} {count}" for name, count in counts.items()) or "without classes")
        + f". After copies are folded {len(study.scans.train)} train and {len(study.scans.validation)} validate.",
        pictures={"figure1.png": (f"One {what} of each class.", picture.save)},
    )


def figures_2_and_3(study: Study) -> Item:
    """The forward process."""
    images, *_, what = shown_scans(study)
    papers, scaled = make_noise_scheduler(**PAPER_BETAS), make_noise_scheduler(**SCALED_BETAS)
    strip = partial(save_noise_strip, images[0, 0], papers)
    return Item(
        "Figures 2 and 3",
        "The forward process: a scan with more and more Gaussian noise, until it is said to be noise alone.",
        "x_t at t = 0, 50, ..., 300 under betas from 1e-4 to 0.02; over each, the share of the image that is left. At T = 300 it is "
        f"{terminal_signal(papers):.3f}, so x_T is not noise alone, while sampling starts from noise alone. Scaled by 1000/300 "
        f"the betas leave {terminal_signal(scaled):.3f}.",
        pictures={"figure3.png": (f"The forward process on a {what}.", strip)},
        code=save_noise_strip,
    )


def shown_scans(study: Study) -> tuple:
    """Images ``(N, 1, H, W)``, labels and class names to show, and what they are: phantoms where scans may not be shown."""
    if study.with_scans:
        what = "phantom" if study.scans.manifest["source"] == "phantom" else "scan"
        images, labels = as_arrays(study.scans.train)
        return np.asarray(images), labels, study.scans.class_names, what
    images, labels = draw_phantoms(len(PHANTOM_CLASS_NAMES), study.budget.best.resolution, 0)
    what = "phantom (in place of patients' scans, which are not published)"
    return images[:, None], labels, PHANTOM_CLASS_NAMES, what


def figure_4(study: Study) -> Item:
    """The network."""
    caption = "Arrows down: stride-2 convolutions; up: nearest-neighbour and a convolution; dashed: skip connections."
    write = partial(figures.architectures, study.budget, study.scans.class_names)
    return Item(
        "Figure 4",
        "A U-Net from the image down to 1024 numbers and up to 388×388; the best run was at 44×44 and says nothing of widths.",
        "Each preset as its module runs: layers, channels × height × width, parameters, and 10^9 multiplications a sample. "
        "mridiff-figure4 is the figure taken by its word, but for the bottleneck, which stays an image of 1024 channels.",
        pictures={"figure4.png": (caption, write)},
        code=read_architecture,
    )


def table_1(study: Study) -> Item:
    """Losses of all epochs."""
    table, runs = [], [study.paper_run(setting) for setting in (study.budget.best, study.budget.surge)]
    for (name, theirs), row in zip(TABLE_1.items(), runs, strict=True):
        table.append({"setting": f"paper: {name}", **dict(zip(COLUMNS, theirs, strict=True))})
        table += loss_rows(f"ours: {size_of(row)}, batch {row['batch_size']}", row)
    return Item(
        "Table 1",
        "Losses of all epochs of two settings.",
        f"The same of ours, over {runs[0]['epochs']} and {runs[1]['epochs']} epochs instead of 8000 and 2600.",
        runs=runs,
        tables=[table],
        code=describe,
    )


def loss_rows(name: str, row: dict) -> list[dict]:
    """Table 1's rows of one run: training and validation losses apart."""
    parts = {
        "training": row["training_loss"],
        "validation": row["validation_loss"],
        "validation, averaged weights": row["validation_loss_ema"],
    }
    return [{"setting": f"{name}, {part}", **describe(losses)} for part, losses in parts.items() if losses]


def describe(losses: list[float]) -> dict[str, float]:
    """Table 1's columns for the losses of all epochs: count, mean, standard deviation, quartiles."""
    spread = np.std(losses, ddof=1) if len(losses) > 1 else 0.0
    quartiles = np.percentile(losses, [0, 25, 50, 75, 100])
    return dict(zip(COLUMNS, (len(losses), np.mean(losses), spread, *quartiles), strict=True))


def figure_6(study: Study) -> Item:
    """The losses of all settings."""
    runs = [row for row in study.of("ratio") if not row["variant"].endswith("-scaled")]
    runs += [row for row in study.of("paper") if not row["variant"].endswith("-guarded")]
    return Item(
        "Figure 6",
        "The losses of all models that were tried, far apart from each other.",
        f"Validation losses of all {len(runs)} runs of the paper's recipe at its learning rate, by size and batch. A larger image is "
        "easier to tell from noise, so losses of different sizes do not compare.",
        runs=runs,
        pictures={
            "figure6.png": (
                "Validation loss by epoch, whole and from 0 to 0.2.",
                partial(figures.all_losses, runs),
            )
        },
        code=figures.all_losses,
    )


def losses(study: Study, of: str, title: str, picture: str, theirs: str) -> Item:
    """Figures 7 to 9: training and validation loss of one setting, the budget's ``best`` or ``surge``."""
    row = study.paper_run(getattr(study.budget, of))
    courses = [row["training_loss"], row["validation_loss"]]
    training, validation = (f"{x[0]:.4f} to {x[-1]:.4f}" if x else "not one whole epoch" for x in courses)
    return Item(
        title,
        theirs,
        f"{size_of(row)}, batch {row['batch_size']}, {row['epochs']} epochs: training {training}, validation {validation}.",
        runs=[row],
        pictures={picture: ("Loss by epoch, whole and from 0 to 0.2.", partial(figures.one_loss, row))},
        code=figures.one_loss,
    )


def samples(study: Study, place: int, theirs: str) -> Item:
    """Figures 10 to 12: samples of the long run, at the first, second or third epoch that the paper shows."""
    row, epoch = study.paper_run(study.budget.long), study.budget.sample_epochs[place]
    grid, name = f"samples/epoch-{epoch:05d}-raw.png", f"figure{10 + place}.png"
    pictures = study.picture(row, grid, name, f"Synthetic, epoch {epoch}.")
    ours = f"Epoch {epoch}, {size_of(row)}, all steps of the chain, weights as they are (not averaged), the same noise in all three figures"
    ours += ", a row a class." if pictures else f": not reached, the run ended in epoch {row['epochs']}."
    return Item(f"Figure {10 + place}", theirs, ours, runs=[row], pictures=pictures, code=draw_grid)


def our_recipe(study: Study) -> Item:
    """Table 1 of our own recipe in the paper's best setting, and what its samples are worth beside the paper's recipe.

    That as printed, and with chains that start where the forward process ends.
    """
    (ours,), (started,), best = study.of("ours"), study.of("start"), study.paper_run(study.budget.best)
    recipes = {"paper's": best, "paper's, started at q(x_T)": started, "ours": ours}
    quality = [
        {
            "recipe": name,
            "KID": estimate(row.get("kid")),
            "fine detail, scans = 1": row.get("detail_ratio"),
            "taken for copies": row.get("flagged_share"),
        }
        for name, row in recipes.items()
    ]
    same = "Synthetic, the same weights; chains start at q(x_T)."
    paper = TrainingConfig(**RECIPE)
    changes = ", ".join(
        f"{name} {value}"
        for name, value in OURS.items()
        if value != getattr(paper, name) and name not in ("preset", *study.budget.network)
    )
    return Item(
        "Our recipe",
        "Nothing of the kind; its best setting is 44×44, batch 80.",
        f"It changes {changes}, at {size_of(ours)}, batch {ours['batch_size']}, with the network, scans and epochs of the paper's recipe. "
        "Losses compare with table 1 only under the same betas, target and timesteps. What is measured of "
        f"{study.budget.images} samples of each compares always.",
        runs=[ours, best, started],
        pictures={
            **study.picture(ours, "samples.png", "ours.png", "Synthetic, our recipe."),
            **study.picture(best, "samples.png", "papers.png", "Synthetic, the paper's recipe."),
            **study.picture(started, "samples.png", "papers_started.png", same),
        },
        tables=[loss_rows("our recipe", ours), quality],
    )


def larger_images(study: Study) -> Item:
    """Larger images, and SSIM to the nearest validation scan."""
    large = study.of("large")
    pictures = {}
    for row in large:
        caption = f"Synthetic, {size_of(row)}, {row['epochs']} epochs."
        pictures |= study.picture(row, "samples.png", f"large-{row['resolution']}.png", caption)
    table = [
        {
            "images": f"{size_of(row)}, {'paper' if row['part'] == 'paper' else 'our'} recipe",
            "epochs": row["epochs"],
            "SSIM to the nearest validation scan": estimate(row["ssim"]),
            "of real training scans": estimate(row["ssim_of_training_scans"]),
            "n": row["ssim"]["n"],
        }
        for row in (*study.of("paper"), *study.of("ours"), *large)
        if "ssim" in row
    ]
    missing = [size for size in LARGE_SIZES if size not in [row["resolution"] for row in large]]
    return Item(
        "Larger images, and SSIM",
        "Left for more GPU power: SSIM says something only of larger images.",
        "By our recipe. For each sample the validation scan with the highest SSIM was sought; beside it, what as many real training scans "
        "score. SSIM falls with size for everything, real scans too, and rises with blur, so it ranks nothing by itself."
        + "".join(f" {size}×{size} is not in this budget." for size in missing),
        runs=large,
        pictures=pictures,
        tables=[table],
        code=ssim_to_nearest,
    )


def size_of(row: dict) -> str:
    """Of a result's images: "44×44"."""
    return f"{row['resolution']}×{row['resolution']}"


BEST = "44×44 (42 in its caption), batch 80: falls fast, then slowly for thousands of epochs; least 0.0126."
SURGE = (
    "72×72, batch 40: near 0.025 for 2000 epochs, then a surge to 5960; figure 9 is its part from 0 to 0.2."
)
LATE = "Epoch 585. Four kinds of scans with eyes and skulls; little changes later."
ITEMS = {  # by section
    "The scans and the network": (figure_1, figures_2_and_3, figure_4),
    "Losses": (
        table_1,
        figure_6,
        partial(losses, of="best", title="Figure 7", picture="figure7.png", theirs=BEST),
        partial(losses, of="surge", title="Figures 8 and 9", picture="figures8.png", theirs=SURGE),
    ),
    "Samples over training": (
        partial(samples, place=0, theirs="Epoch 0. Noise."),
        partial(samples, place=1, theirs="Epoch 120. Heads and skulls begin to show."),
        partial(samples, place=2, theirs=LATE),
    ),
}
BEYOND = {  # the paper, after its claims
    "Beyond the paper": (our_recipe, larger_images)
}
