"""What is carried over to larger images, and what do the first steps cost?

Trains at twice the size from a model that is there, and from nothing, at equal steps. The averaged weights of every checkpoint are sampled,
and samples are compared with the training scans of the larger size. One JSON line a checkpoint goes to
``results.jsonl``; what is there already is not made again, and what was cut short is resumed.

    python -m benchmarks.another_size --base runs/c --train_data_dir DIR --output_dir runs/another_size

Each way says what was expected of it before it was trained.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from mri_ddpm.data import load_scans
from mri_ddpm.evaluation.quality import detail_ratio, frechet_distance, kid
from mri_ddpm.evaluation.subject import as_arrays, class_counts
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import read_json_lines
from mri_ddpm.runs import load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.sampling.sheets import sheet

from .trained import averaged, train

WAYS = {  # name -> flags, and what was expected
    "base": (
        {"learning_rate": 2e-4},
        "after 150 steps better than from nothing after 600; before any step heads without detail",
    ),
    "base-fast": (
        {"learning_rate": 1.5e-3},
        "better than base, whose shapes hardly changed after step 150 (written after these were seen)",
    ),
    "nothing": ({"preset": "quickstart"}, "coarse heads after 600 steps, as at 32 pixels after as many"),
}
SAMPLER = {"scheduler": "dpmsolver++", "num_inference_steps": 10}
SHOWN = 2  # samples of each class in a row of the picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", required=True, help="a run at a smaller size")
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/another_size"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=150, help="steps from one measurement to the next")
    parser.add_argument("--num_images", type=int, default=100)
    args = parser.parse_args()
    args.train_data_dir, args.output_dir = str(Path(args.train_data_dir).resolve()), args.output_dir.resolve()
    base, results = str(Path(args.base).resolve()), args.output_dir / "results.jsonl"
    args.output_dir.mkdir(parents=True, exist_ok=True)
    scans = load_scans(train_data_dir=args.train_data_dir, resolution=args.resolution)
    training, labels = (np.asarray(part) for part in as_arrays(scans.train))
    wavelets = WaveletFeatures.fit(training)
    of_training = wavelets(training)
    counts = class_counts(labels, len(scans.class_names), args.num_images)
    done = {(row["way"], row["step"]) for row in read_json_lines(results)}
    shown = {}

    def record(way: str, checkpoint: Path) -> None:
        step = int(checkpoint.name.removeprefix("step-"))
        file = args.output_dir / f"{way}-{step:06d}.npz"
        if not file.exists():
            pipeline = load_pipeline(str(args.output_dir / way), "cpu")
            pipeline.unet = averaged(pipeline.unet, checkpoint)
            options = SamplingOptions(**SAMPLER, batch_size=25)
            options.prepare(pipeline, args.num_images, 0)
            np.savez_compressed(file, images=sample_arrays(pipeline, counts, options)[0])
        images = np.load(file)["images"]
        first = np.cumsum([0, *counts[:-1]])
        shown[way, step] = np.stack([images[start + i] for start in first for i in range(SHOWN)])
        if (way, step) in done:
            return
        rows = [r for r in read_json_lines(args.output_dir / way / "metrics.jsonl") if r["step"] == step]
        losses = [r["validation_loss_ema"] for r in rows if "validation_loss_ema" in r]
        row = {"way": way, "step": step, "n": len(images), "expected": WAYS[way][1]}
        row |= {
            "validation_loss_ema": losses[-1] if losses else None,
            "wavelet_kid": kid(of_training, wavelets(images)).as_dict(),
            "wavelet_frechet_distance": frechet_distance(of_training, wavelets(images)).as_dict(),
            "detail_ratio": detail_ratio(training, images).as_dict(),
        }
        with results.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(json.dumps(row)[:300], flush=True)

    common = {
        "train_data_dir": args.train_data_dir,
        "resolution": args.resolution,
        "max_train_steps": args.steps,
    }
    common |= {
        "validation_steps": args.every,
        "checkpointing_steps": args.every,
        "checkpoints_total_limit": args.steps,
    }
    for way in args.ways:
        flags = WAYS[way][0] | ({"pretrained_model_name_or_path": base} if way.startswith("base") else {})
        run = args.output_dir / way
        train(run, {**common, **flags})
        for checkpoint in sorted((run / "checkpoints").iterdir()):
            record(way, checkpoint)
    titles = [f"{way}, step {step}" for way, step in shown]
    sheet(np.stack(list(shown.values())), titles).save(args.output_dir / "another_size.png")


if __name__ == "__main__":
    main()
