"""How few steps are enough, by which scheduler, and how much guidance does a class need?

Samples the same number of images from the same noise by every scheduler and step count with a model of real scans, and
compares each set in wavelet features with the training scans, and with the whole ancestral chain's images. Then samples by several
guidance scales, and asks a classifier that was trained on real scans whether it sees the class that was asked for.

    python benchmarks/solvers.py --pipeline runs/c --train_data_dir DIR --output_dir runs/solvers

What is there is not sampled again, so that several processes can share the work: --schedulers ddpm in one, the others in
another, and the command without it for the tables at the end. `--schedulers guidance` is for the guidance scales alone.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from mri_ddpm.pipelines.pipeline_mri_ddpm import spaced_timesteps

from mri_ddpm.evaluation.classifier import predict, train_classifier
from mri_ddpm.evaluation.estimates import share
from mri_ddpm.evaluation.quality import detail_ratio, frechet_distance, kid
from mri_ddpm.evaluation.subject import class_counts, load_real_scans
from mri_ddpm.evaluation.wavelets import WaveletFeatures
from mri_ddpm.files import write_json
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling import SCHEDULERS, SamplingOptions, sample_arrays

STEPS = {
    "ddpm": (10, 20, 50, 300),
    "heun": (5, 10),
}  # a step of heun is two calls of the network, but for the last
OTHER_STEPS = (5, 10, 20)
WHOLE = "ddpm-300"
GUIDANCE = {"scheduler": "dpmsolver++", "num_inference_steps": 10}
SCALES = (1.0, 1.5, 2.0, 3.0, 5.0)
INTERVAL = {"guidance_start": 0.2, "guidance_end": 0.8}
TIMED_IMAGES = 16


def requests(schedulers: list[str]) -> dict[str, dict]:
    """What is sampled, by name: the solvers at their steps, and the guidance scales."""
    solvers = {
        f"{name}-{steps}": {"scheduler": name, "num_inference_steps": steps}
        for name in schedulers
        if name != "guidance"
        for steps in STEPS.get(name, OTHER_STEPS)
    }
    if "guidance" not in schedulers:
        return solvers
    scales = {f"guidance-{scale:g}": {**GUIDANCE, "guidance_scale": scale} for scale in SCALES}
    limited = {
        f"guidance-{scale:g}-interval": {**GUIDANCE, "guidance_scale": scale, **INTERVAL}
        for scale in SCALES
        if scale != 1
    }
    return solvers | scales | limited


def images_of(name: str, request: dict, pipeline, counts: np.ndarray, args) -> tuple[np.ndarray, np.ndarray]:
    """The images of a request and their classes: those of its file, or sampled now."""
    file = args.output_dir / f"{name}.npz"
    if not file.exists():
        options = SamplingOptions(**request, batch_size=args.batch_size, seed=args.seed)
        options.prepare(pipeline, args.num_images, 0)
        images, labels = sample_arrays(pipeline, counts, options)
        np.savez_compressed(file, images=np.round(images * 255).astype(np.uint8), labels=labels)
    kept = np.load(file)
    if len(kept["labels"]) != args.num_images:
        raise SystemExit(
            f"{file} holds {len(kept['labels'])} images, not {args.num_images}; name another --output_dir."
        )
    return kept["images"].astype(np.float32) / 255, kept["labels"]


def seconds_per_image(pipeline, request: dict) -> float:
    """One batch, by the clock, after a first step that is not counted."""
    options = SamplingOptions(**request, batch_size=TIMED_IMAGES)
    options.prepare(pipeline, TIMED_IMAGES, 0)
    counts = [TIMED_IMAGES, *[0] * (len(pipeline.class_names) - 1)]
    sample_arrays(pipeline, counts, replace(options, num_inference_steps=1))
    start = time.perf_counter()
    sample_arrays(pipeline, counts, options)
    return (time.perf_counter() - start) / TIMED_IMAGES


def network_calls(request: dict, num_train_timesteps: int) -> int:
    """How often the network sees an image; with guidance twice a step, inside its interval."""
    steps, guided = request["num_inference_steps"], 0
    if request.get("guidance_scale", 1) != 1:
        start, end = (
            request.get(name, usual) for name, usual in (("guidance_start", 0), ("guidance_end", 1))
        )
        timesteps = spaced_timesteps(num_train_timesteps, steps)
        guided = sum(start <= 1 - (t + 1) / num_train_timesteps < end for t in timesteps)
    return (2 * steps - 1 if request["scheduler"] == "heun" else steps) + guided


def plot(rows: dict[str, dict], validation: dict, path: Path) -> None:
    """KID against the network's calls, a line a scheduler."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in SCHEDULERS:
        line = [row for row in rows.values() if row["scheduler"] == name]
        calls = [row["network_calls"] for row in line]
        value = np.array([row["kid"]["value"] for row in line])
        low, high = np.array([row["kid"]["interval"] for row in line]).T
        error = np.maximum([value - low, high - value], 0)
        axes.errorbar(calls, value, yerr=error, fmt="o-", capsize=2, markersize=4, label=name)
    axes.axhspan(*validation["interval"], color="gray", alpha=0.2, label="validation scans")
    axes.set(xlabel="calls of the network an image", ylabel="wavelet KID to the training scans", xscale="log")
    axes.set_yscale("symlog", linthresh=0.05)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pipeline", required=True)
    parser.add_argument("--train_data_dir", required=True)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/solvers"))
    parser.add_argument("--schedulers", nargs="+", choices=[*SCHEDULERS, "guidance"], help="only these")
    parser.add_argument("--num_images", type=int, default=800)
    parser.add_argument("--batch_size", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)

    pipeline = load_pipeline(args.pipeline, "cpu")
    real = load_real_scans(
        load_record(args.pipeline), {"train_data_dir": args.train_data_dir}, pipeline.unet.config.sample_size
    )
    counts = class_counts(real.training[1], len(real.class_names), args.num_images)
    wanted = requests(args.schedulers or [*SCHEDULERS, "guidance"])
    sampled = {name: images_of(name, request, pipeline, counts, args) for name, request in wanted.items()}

    wavelets = WaveletFeatures.fit(real.training[0])
    reference = wavelets(real.training[0])
    features = {name: wavelets(images) for name, (images, _) in sampled.items()}
    judge = train_classifier(*real.training, len(real.class_names), seed=1, title="classifier")

    def quality(images: np.ndarray, embedded: np.ndarray) -> dict:
        return {
            "kid": kid(reference, embedded).as_dict(),
            "frechet_distance": frechet_distance(reference, embedded).as_dict(),
            "detail_ratio": detail_ratio(real.training[0], images).as_dict(),
        }

    x, y = real.validation
    validation = {**quality(x, wavelets(x)), "class_fidelity": share(predict(judge, x) == y).as_dict()}
    rows = {}
    for name, request in wanted.items():
        images, labels = sampled[name]
        rows[name] = {
            **request,
            "network_calls": network_calls(request, pipeline.scheduler.config.num_train_timesteps),
            "seconds_per_image": seconds_per_image(pipeline, request),
            **quality(images, features[name]),
            **(
                {"kid_to_whole_chain": kid(features[WHOLE], features[name]).as_dict()}
                if WHOLE in features
                else {}
            ),
            "class_fidelity": share(predict(judge, images) == labels).as_dict(),
        }
        print(json.dumps({name: rows[name]}), flush=True)
    result = {
        "pipeline": Path(args.pipeline).name,
        "num_images": args.num_images,
        "torch_threads": torch.get_num_threads(),
        "features": wavelets.name,
        "validation": validation,
        "rows": rows,
    }
    write_json(args.output_dir / "solvers.json", result)
    solvers = {name: row for name, row in rows.items() if not name.startswith("guidance")}
    if solvers:
        plot(solvers, validation["kid"], args.output_dir / "solvers.png")


if __name__ == "__main__":
    main()
