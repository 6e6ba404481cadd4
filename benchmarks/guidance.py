"""Which guidance samples best: by the class, within an interval of the chain, or by an earlier self?

Samples the same images from the same noise in each way of `WAYS`, and compares them with the training scans by the yardstick that
sees anatomy. Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) may be limited to an interval (Kynkäänniemi et al. 2024,
arXiv:2404.07724). Autoguidance (Karras et al. 2024, arXiv:2406.02507) takes a weaker model of the same classes as the guide; here it is the
average of an earlier checkpoint. One JSON line a way; what is there already is not made again.

    python -m benchmarks.guidance --run runs/c --train_data_dir DIR --guide step-001500 --output_dir runs/guidance
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from mri_ddpm.data import load_scans
from mri_ddpm.evaluation.subject import class_counts
from mri_ddpm.models.modeling_attention_unet import AttentionUNet2DModel
from mri_ddpm.runs import RunFolder, load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.sampling.sheets import sheet

from .recipe_search import SHOWN, Yardstick
from .trained import averaged

SOLVER = {"scheduler": "dpmsolver++sde", "num_inference_steps": 20}
MIDDLE = {"guidance_start": 0.2, "guidance_end": 0.8}
WAYS = {  # name -> guidance by class, the scale of autoguidance, and what was expected
    "none": ({}, 1.0, "the mark"),
    "class 1.5": ({"guidance_scale": 1.5}, 1.0, "better in KID, as at 32 pixels"),
    "class 1.5, middle": ({"guidance_scale": 1.5, **MIDDLE}, 1.0, "as class 1.5, with more variety"),
    "class 2.5, middle": ({"guidance_scale": 2.5, **MIDDLE}, 1.0, "a little better than class 1.5"),
    "autoguidance 1.5": ({}, 1.5, "better than class 1.5: it mends what is badly learnt"),
    "autoguidance 2": ({}, 2.0, "a little better again, or too much"),
}


def guide_by(unet: AttentionUNet2DModel, guide: AttentionUNet2DModel, scale: float) -> None:
    """Have a network predict what lies beyond its own prediction, seen from the guide's."""
    plain = unet.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.sample = torch.lerp(guide(*args, **kwargs).sample, output.sample, scale)
        return output

    unet.forward = forward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument(
        "--guide", required=True, help="an earlier checkpoint of the run, such as step-001500"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("runs/guidance"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--num_images", type=int, default=300)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results = args.output_dir / "guidance.jsonl"
    done = (
        {json.loads(line)["way"] for line in results.read_text().splitlines()} if results.exists() else set()
    )

    checkpoint = RunFolder(args.run).find_checkpoint(args.guide)
    resolution = load_pipeline(str(args.run), "cpu").unet.config.sample_size
    scans = load_scans(resolution=resolution, train_data_dir=args.train_data_dir)
    yardstick = Yardstick(scans)
    counts = class_counts(yardstick.labels, len(scans.class_names), args.num_images)
    for way in args.ways:
        if way in done:
            continue
        guidance, scale, expected = WAYS[way]
        pipeline, options = load_pipeline(str(args.run), "cpu"), SamplingOptions(**SOLVER, **guidance)
        options.prepare(pipeline, args.num_images, 0)
        if scale != 1:
            guide_by(pipeline.unet, averaged(pipeline.unet, checkpoint), scale)
        images, labels = sample_arrays(pipeline, counts, options)
        rows = [np.flatnonzero(labels == c)[:SHOWN] for c in range(len(counts))]
        shown = np.stack([images[row] for row in rows], axis=1)  # (SHOWN, classes, 1, H, W)
        sheet(shown, [""] * SHOWN).save(args.output_dir / f"{way.replace(' ', '-').replace(',', '')}.png")
        row = {
            "way": way,
            **SOLVER,
            **guidance,
            "autoguidance": scale,
            "guide": args.guide,
            "expected": expected,
        }
        row |= yardstick.measure(images)
        with results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
