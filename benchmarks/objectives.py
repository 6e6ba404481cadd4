"""Which betas and which prediction type draw the better scans at an equal, small budget?

Trains the four combinations on real scans with everything else equal, draws samples from the EMA weights by the same
noise, and compares them with the training scans by Fréchet distance and KID over the first 48 principal components of
the pixels, beside the same distances for held-out scans. The losses are not compared: they mean different things.

    python benchmarks/objectives.py --train_data_dir DIR --output_dir runs/objectives

A combination whose pipeline is already there is not trained again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.config import PAPER_BETAS, SCALED_BETAS
from mri_ddpm.data import load_scans, to_unit_range

COMBINATIONS = [
    (betas, prediction) for betas in ("paper", "scaled") for prediction in ("epsilon", "v_prediction")
]
BETAS = {"paper": PAPER_BETAS, "scaled": SCALED_BETAS}
RESOLUTION = 32  # pixels
REPOSITORY = Path(__file__).parents[1]


class PrincipalComponents(nn.Module):
    """Pixels ``(N, 1, H, W)`` projected on the first components of a reference set: ``(N, num_features)``."""

    def __init__(self, reference: torch.Tensor, num_features: int = 48):
        super().__init__()
        self.num_features = num_features
        flat = reference.flatten(1).double()
        self.mean = flat.mean(0)
        self.components = torch.linalg.svd(flat - self.mean, full_matrices=False).Vh[:num_features].T

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1).double() - self.mean) @ self.components


def distances(images: torch.Tensor, reference: torch.Tensor, features: nn.Module) -> dict:
    """Fréchet distance and KID (mean and standard deviation over 50 subsets) between two sets in [0, 1]."""
    torch.manual_seed(0)
    frechet = FrechetInceptionDistance(feature=features).set_dtype(torch.float64)
    kid = KernelInceptionDistance(feature=features, subsets=50, subset_size=min(200, len(images)))
    for metric in (frechet, kid):
        metric.update(reference, real=True)
        metric.update(images, real=False)
    kid_mean, kid_std = kid.compute()
    return {
        "n": len(images),
        "frechet": float(frechet.compute()),
        "kid": float(kid_mean),
        "kid_std": float(kid_std),
        "mean_intensity": float(images.mean()),
    }


def train(folder: Path, betas: str, prediction: str, args: argparse.Namespace) -> float:
    """Train one combination with the quickstart's network; returns the seconds it took."""
    flags = {
        "train_data_dir": args.train_data_dir,
        "output_dir": folder,
        "prediction_type": prediction,
        **BETAS[betas],
        "seed": args.seed,
        "resolution": RESOLUTION,
        "train_batch_size": 32,
        "learning_rate": 2e-3,
        "max_train_steps": args.max_train_steps,
    }
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", "accelerate_config.yaml"]
    command = [*launch, "train_ddpm.py", "--preset", "quickstart"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    start = time.perf_counter()
    subprocess.run(command, check=True, cwd=REPOSITORY)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/objectives"))
    parser.add_argument("--max_train_steps", type=int, default=600)
    parser.add_argument("--num_images", type=int, default=400)
    parser.add_argument("--num_inference_steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.train_data_dir, args.output_dir = str(Path(args.train_data_dir).resolve()), args.output_dir.resolve()

    scans = load_scans(resolution=RESOLUTION, train_data_dir=args.train_data_dir, seed=args.seed)
    real, held_out = (
        to_unit_range(part.batch(range(len(part)))[0]) for part in (scans.train, scans.validation)
    )
    features = PrincipalComponents(real)
    results = {"held-out scans": distances(held_out, real, features)}
    print(json.dumps(results), flush=True)
    for betas, prediction in COMBINATIONS:
        folder = args.output_dir / f"{betas}-{prediction}-seed{args.seed}"
        seconds = None if (folder / "samples.png").exists() else train(folder, betas, prediction, args)
        pipeline = MRIDDPMPipeline.from_pretrained(folder / "pipeline")
        labels = [i % len(scans.class_names) for i in range(args.num_images)]
        images = pipeline(
            labels,
            args.num_images,
            args.num_inference_steps,
            generator=torch.Generator().manual_seed(args.seed),
            output_type="pt",
        ).images
        results[f"{betas} betas, {prediction}"] = {
            **distances(images, real, features),
            "train_seconds": seconds,
        }
        (args.output_dir / f"objectives-seed{args.seed}.json").write_text(
            json.dumps(results, indent=2) + "\n"
        )
        print(json.dumps({folder.name: results[f"{betas} betas, {prediction}"]}), flush=True)


if __name__ == "__main__":
    main()
