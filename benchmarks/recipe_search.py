"""Which recipe gives the best samples at an equal, small budget, and sampled in which way?

Trains each recipe of `RECIPES` on real scans with the quickstart's network and the same steps of the same batches, makes
as many samples in each way of `SAMPLERS`, and compares them with the training scans by the yardstick that sees anatomy.
One JSON line for each recipe and sampler goes to ``results.jsonl``; what is there already is not made again.

    python -m benchmarks.recipe_search --train_data_dir DIR --output_dir runs/search [--recipes NAME ...] [--seed 1] [--resolution 44]

Each recipe says what was expected of it before it was trained. Losses are not compared: they mean different things.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mri_ddpm.data import load_scans
from mri_ddpm.evaluation.features import make_extractor
from mri_ddpm.evaluation.quality import detail_ratio, frechet_distance, kid
from mri_ddpm.evaluation.subject import as_arrays, class_counts
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import read_json
from mri_ddpm.presets import PAPER_BETAS, SCALED_BETAS
from mri_ddpm.runs import RunFolder, load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.sampling.sheets import sheet

from .trained import train

PAPERS = {**PAPER_BETAS, "prediction_type": "epsilon"}
LOGNORMAL = {"timestep_sampling": "lognormal", "log_sigma_mean": -1.2}
UNIFORM = {"timestep_sampling": "uniform"}
RECIPES = {  # name -> flags, and what was expected
    "paper-printed": ({**PAPERS, **UNIFORM, "start_from_moments": False}, "too bright all over"),
    "paper": (
        {**PAPERS, **UNIFORM},
        "wavelet Fréchet distance 8.4, as measured before with class means alone",
    ),
    "paper-lognormal": ({**PAPERS, **LOGNORMAL}, "better than uniform timesteps: 7"),
    "v-lognormal": (
        {**PAPER_BETAS, **LOGNORMAL, "prediction_type": "v_prediction"},
        "as epsilon, for the timesteps decide",
    ),
    "scaled-v": (
        {**SCALED_BETAS, **UNIFORM, "prediction_type": "v_prediction"},
        "the default until now: 15, as measured before",
    ),
    "scaled-v-lognormal": (
        {**SCALED_BETAS, **LOGNORMAL, "prediction_type": "v_prediction"},
        "11, as measured before",
    ),
    "paper-lognormal-rate": ({**PAPERS, **LOGNORMAL, "learning_rate": 3e-3}, "a little better, or unstable"),
    "paper-lognormal-l2": ({**PAPERS, **LOGNORMAL, "loss_type": "l2"}, "no difference"),
    "paper-lognormal-flip": ({**PAPERS, **LOGNORMAL, "random_flip": True}, "no difference at 12 epochs"),
    "paper-lognormal-low": (
        {**PAPERS, **LOGNORMAL, "log_sigma_mean": -1.8},
        "sharper, with worse shapes",
    ),
    "paper-lognormal-high": (
        {**PAPERS, **LOGNORMAL, "log_sigma_mean": -0.6},
        "better shapes, less detail",
    ),
    "paper-lognormal-higher": (
        {**PAPERS, **LOGNORMAL, "log_sigma_mean": 0.0},
        "less detail, shapes as at -0.6",
    ),
    "paper-lognormal-batch16": (
        {**PAPERS, **LOGNORMAL, "train_batch_size": 16, "max_train_steps": 1800},
        "the same images in twice the steps: a little better",
    ),
    "paper-lognormal-ema-long": (
        {**PAPERS, **LOGNORMAL, "ema_power": 0.85},
        "no better: the rate decays to 0 anyway",
    ),
    "paper-lognormal-ema-short": (
        {**PAPERS, **LOGNORMAL, "ema_power": 0.6},
        "a little better, for early weights are worse",
    ),
    "paper-lognormal-beta2": ({**PAPERS, **LOGNORMAL, "adam_beta2": 0.99}, "a little better: few steps"),
    "paper-lognormal-deeper": (
        {**PAPERS, **LOGNORMAL, "block_out_channels": [32, 64, 64], "layers_per_block": 3},
        "no difference: a step costs 1.15 times as much",
    ),
    "paper-lognormal-wider": (
        {**PAPERS, **LOGNORMAL, "block_out_channels": [64, 64, 96], "layers_per_block": 1},
        "a little worse shapes, for fewer layers see less of the head: 6.5; a step costs 1.3 times as much",
    ),
    "paper-lognormal-coarser": (
        {**PAPERS, **LOGNORMAL, "block_out_channels": [32, 64, 128]},
        "a little better, as the third more channels at 8 pixels cost a tenth of a step: 5.9",
    ),
}
SAMPLERS = {
    "dpmsolver++-30": {"scheduler": "dpmsolver++", "num_inference_steps": 30},
    "sde-20": {"scheduler": "dpmsolver++sde", "num_inference_steps": 20},
    "sde-20-guided": {"scheduler": "dpmsolver++sde", "num_inference_steps": 20, "guidance_scale": 1.5},
}
FIXED = {"preset": "quickstart", "train_batch_size": 32, "learning_rate": 1.5e-3}
SHOWN = 8  # samples of each class in a picture


class Yardstick:
    """Everything that is measured of images, against the training scans."""

    def __init__(self, scans):
        self.training, self.labels = as_arrays(scans.train)
        self.validation = np.asarray(as_arrays(scans.validation)[0])
        self.features = {
            "wavelet": WaveletFeatures.fit(self.training),
            "in_domain": make_extractor("in_domain", self.training, self.labels, scans.class_names),
        }
        rows = {"wavelet": slice(None), "in_domain": self.features["in_domain"].reference}
        self.of_training = {
            name: features(self.training[rows[name]]) for name, features in self.features.items()
        }

    def measure(self, images: np.ndarray) -> dict:
        """Of images ``(N, 1, H, W)`` in [0, 1]."""
        embedded = {name: features(images) for name, features in self.features.items()}
        return {
            "n": len(images),
            "wavelet_frechet_distance": frechet_distance(
                self.of_training["wavelet"], embedded["wavelet"]
            ).as_dict(),
            **{f"{name}_kid": kid(self.of_training[name], embedded[name]).as_dict() for name in embedded},
            "detail_ratio": detail_ratio(self.training, images).as_dict(),
            "mean_intensity": float(images.mean()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/search"))
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--max_train_steps", type=int, default=900)
    parser.add_argument("--num_images", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.train_data_dir, args.output_dir = str(Path(args.train_data_dir).resolve()), args.output_dir.resolve()

    results = args.output_dir / "results.jsonl"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    done = {(row["recipe"], row["sampler"], row["seed"], row.get("resolution", 32)) for row in rows}
    scans = load_scans(resolution=args.resolution, train_data_dir=args.train_data_dir)
    yardstick = Yardstick(scans)
    common = {"seed": args.seed, "resolution": args.resolution}

    def write(recipe: str, sampler: str | None, images: np.ndarray, **more) -> None:
        row = {"recipe": recipe, "sampler": sampler, **common, **more, **yardstick.measure(images)}
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    if ("validation scans", None, args.seed, args.resolution) not in done:
        write("validation scans", None, yardstick.validation)
    counts = class_counts(yardstick.labels, len(scans.class_names), args.num_images)
    for name in args.recipes:
        recipe, expected = RECIPES[name]
        folder = args.output_dir / f"{name}-{args.resolution}-seed{args.seed}"
        given = {"train_data_dir": args.train_data_dir, "max_train_steps": args.max_train_steps}
        train(folder, {**FIXED, **common, **given, **recipe})
        precision = read_json(RunFolder(folder).environment)["mixed_precision"]
        made = {
            "steps": args.max_train_steps,
            "flags": recipe,
            "expected": expected,
            "mixed_precision": precision,
        }
        for sampler, chain in SAMPLERS.items():
            if (name, sampler, args.seed, args.resolution) in done:
                continue
            pipeline, options = load_pipeline(str(folder), "cpu"), SamplingOptions(**chain, batch_size=50)
            options.prepare(pipeline, args.num_images, 0)
            images, labels = sample_arrays(pipeline, counts, options)
            rows = [np.flatnonzero(labels == c)[:SHOWN] for c in range(len(counts))]
            shown = np.stack([images[row] for row in rows], axis=1)  # (SHOWN, classes, 1, H, W)
            sheet(shown, [""] * SHOWN).save(args.output_dir / f"{folder.name}-{sampler}.png")
            write(name, sampler, images, **made)


if __name__ == "__main__":
    main()
