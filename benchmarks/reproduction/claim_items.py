"""The claims as items of the report, with the pictures that belong to them."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.reproduction import figures
from benchmarks.reproduction.claims import (
    BLOCKS,
    LOSSES,
    SCALED_TIMESTEPS,
    TIMESTEPS,
    Claim,
    long_points,
)
from benchmarks.reproduction.curves import Curves
from benchmarks.reproduction.items import MODULE, Material
from benchmarks.reproduction.measure import DEVICE
from benchmarks.reproduction.report import Item
from benchmarks.reproduction.sweep import FINISHED
from mri_ddpm.hub import load_pipeline
from mri_ddpm.sampling.batches import generators

VARIANT_IMAGES = 8  # in a column
COMPARED = {"blocks": BLOCKS, "timesteps": TIMESTEPS, "timesteps-scaled": SCALED_TIMESTEPS, "losses": LOSSES}
SAME_NOISE = "Synthetic, the same noise in every column, seed 0."


def claim_items(material: Material, claims: Sequence[Claim], kid_of_blurred: float) -> list[Item]:
    """One item a claim."""
    evidence = all_evidence(material, kid_of_blurred)
    items = []
    for claim in claims:
        runs, pictures = evidence[claim.number]
        tables = [claim.table] if claim.table else []
        title, code = f"Claim {claim.number}", f"{MODULE}.claims"
        items.append(Item(title, claim.says, claim.because, code, claim.answer, runs, pictures, tables))
    return items


def all_evidence(material: Material, kid_of_blurred: float) -> dict[str, tuple[list[dict], dict[str, str]]]:
    """The runs and the pictures of every claim, by its number; the pictures are drawn here."""
    results, budget, pictures = material.results, material.budget, material.pictures
    long, provoked = material.paper_run(budget.long), results.of("provoked")
    runs = {
        name: [row for where in variants.values() for row in results.of(*where)]
        for name, variants in COMPARED.items()
    }

    figures.ratio_tables(results.of("ratio"), budget, pictures / "ratio.png")
    figures.loss_against_kid(long_points(results, budget), kid_of_blurred, pictures / "threshold.png")
    curves = [Curves.read(material.folder(row)).loss for row in provoked]
    figures.provoked_losses(provoked, curves, pictures / "provoked.png")
    drawn = {name: variant_samples(material, variants, f"{name}.png") for name, variants in COMPARED.items()}
    return {
        "1": (results.of("ratio"), {"ratio.png": "Means over seeds. Bold: the best of a size. Framed: size / batch over that of the paper's best run."}),
        "2": ([long], {"threshold.png": "One run over its epochs, which stand beside the points."}),
        "3": ([long], material.picture(long, Path("evaluation.png"), "epochs.png", "KID and copies of averaged weights by epoch.")),
        "4a": (runs["blocks"], drawn["blocks"]),
        "4b": (runs["blocks"], {}),
        "5a": (runs["timesteps"], drawn["timesteps"]),
        "5b": (runs["timesteps-scaled"], drawn["timesteps-scaled"]),
        "6a": (runs["losses"], drawn["losses"]),
        "6b": (runs["losses"], {}),
        "7a": ([row for row in results.of("paper") if row["batch_size"] == budget.surge.batch_size], {}),
        "7b": (provoked, {"provoked.png": "The rate jumps after half of the epochs. Steps that the guard went back over are not shown."}),
        "7c": (provoked, {}),
    }  # fmt: skip


def variant_samples(material: Material, variants: dict[str, tuple[str, str]], picture: str) -> dict[str, str]:
    """Draw a column of samples of each variant's first seed, from the same noise; returns the picture with its caption."""
    images = {}
    for name, where in variants.items():
        row = material.results.of(*where)[0]
        if row["ended"] != FINISHED:
            continue
        pipeline = load_pipeline(str(material.folder(row)), DEVICE)
        pipeline.set_progress_bar_config(disable=True)
        labels = (
            [i % len(pipeline.class_names) for i in range(VARIANT_IMAGES)] if pipeline.class_names else None
        )
        drawn = pipeline(
            labels,
            VARIANT_IMAGES,
            material.budget.num_inference_steps,
            generator=generators(0, range(VARIANT_IMAGES)),
            output_type="pt",
        )
        images[name.replace(", attention", "+att")] = drawn.images.cpu().numpy()
    if not images:
        return {}
    figures.variants(images, material.pictures / picture)
    return {picture: SAME_NOISE}
