"""The ``mri-ddpm`` command: one thin subcommand a capability."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mri_ddpm.data import account_of, format_account
from mri_ddpm.errors import InputError, exit_on_input_error
from mri_ddpm.evaluation.features import EXTRACTORS
from mri_ddpm.hub import export_repository, load_pipeline, png_text, provenance, push_run
from mri_ddpm.sampling import check_sampling, draw_batches

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main(args: list[str] | None = None) -> None:
    """Run ``mri-ddpm``; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="mri-ddpm", description="Synthetic brain MRI with diffusion models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_sample(commands)
    add_data(commands)
    add_evaluate(commands)
    add_push(commands)
    parsed = parser.parse_args(args)
    with exit_on_input_error():
        parsed.run(parsed)


def add_sample(commands) -> None:
    """``mri-ddpm sample PIPELINE``: draw images to PNG files."""
    parser = commands.add_parser("sample", help="draw images with a trained pipeline")
    parser.add_argument(
        "pipeline", help="run folder, such as runs/a, its pipeline folder, or a Hub repository"
    )
    parser.add_argument("--class_label", help="class to draw, by name; all classes in turn when not given")
    parser.add_argument("--num_images", type=int, default=16)
    parser.add_argument(
        "--num_inference_steps", type=int, help="steps of the reverse chain; all when not given"
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="1 is none; more follows the class more"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image i is drawn from seed + i, whatever its batch"
    )
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument(
        "--reject_copies", action="store_true", help="leave out images that come too close to a training scan"
    )
    parser.add_argument("--data", help="the scans it was trained on, for --reject_copies")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="folder for the PNG files; new or empty"
    )
    parser.set_defaults(run=sample)


def sample(args: argparse.Namespace) -> None:
    """Draw ``--num_images`` images in batches and write each as soon as it is there."""
    if args.output_dir.exists() and (not args.output_dir.is_dir() or any(args.output_dir.iterdir())):
        raise InputError(f"--output_dir {args.output_dir} is not an empty folder; name a new one.")
    pipeline = load_pipeline(args.pipeline, args.device)
    names = [args.class_label] if args.class_label else pipeline.class_names
    labels = [names[i % len(names)] for i in range(args.num_images)] if names else None
    chain = {"num_inference_steps": args.num_inference_steps, "guidance_scale": args.guidance_scale}
    request = {"num_images": args.num_images, "batch_size": args.batch_size, "seed": args.seed, **chain}
    check_sampling(pipeline, names[0] if names else None, **request)
    detector = None
    if args.reject_copies:
        from mri_ddpm.evaluation.evaluate import fit_copy_detector  # imported late: it brings the plots along

        detector = fit_copy_detector(pipeline, args.pipeline, args.data)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    steps = args.num_inference_steps or pipeline.scheduler.config.num_train_timesteps
    source = {**provenance(pipeline), **chain, "num_inference_steps": steps}
    rejected = 0
    for numbers, images in draw_batches(pipeline, labels, **request):
        flagged = detector.examine(as_array(images)).flagged if detector else [False] * len(images)
        rejected += sum(flagged)
        for i, image, is_copy in zip(numbers, images, flagged, strict=True):
            if not is_copy:
                class_name = labels[i] if labels else None
                info = png_text({**source, "class": class_name, "seed": args.seed + i})
                name = f"{class_name}-{i:05d}.png" if labels else f"{i:05d}.png"
                image.save(args.output_dir / name, pnginfo=info)
    if detector:
        print(f"{rejected} of {args.num_images} images came too close to a training scan and were left out.")


def as_array(images: list[Image.Image]) -> np.ndarray:
    """8-bit pictures as float32 ``(N, 1, H, W)`` in [0, 1]."""
    return np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])[:, None]


def add_data(commands) -> None:
    """``mri-ddpm data DIR``: the account of a data set."""
    parser = commands.add_parser("data", help="count, check and split a folder of scans; trains nothing")
    parser.add_argument("train_data_dir", help="folder or .zip of scans")
    parser.add_argument("--validation_share", type=float, default=0.1)
    parser.add_argument("--keep_repeats", action="store_true", help="leave copies in the training part")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument(
        "--output", type=Path, default=Path("manifest.json"), help="JSON file for the whole account"
    )
    parser.set_defaults(run=data)


def data(args: argparse.Namespace) -> None:
    """Print the account and write it, with every file's hash and split, as JSON."""
    if args.output.exists():
        raise InputError(f"--output {args.output} exists; name another file, or remove it.")
    manifest = account_of(
        args.train_data_dir,
        validation_share=args.validation_share,
        keep_repeats=args.keep_repeats,
        seed=args.seed,
    )
    print(format_account(manifest))
    args.output.write_text(json.dumps(manifest, indent=1) + "\n")
    print(f"written: {args.output}")


def add_evaluate(commands) -> None:
    """``mri-ddpm evaluate PIPELINE --data DIR``: quality, usefulness, and whether patients are copied."""
    parser = commands.add_parser(
        "evaluate", help="measure a model: quality, usefulness, and whether it copies patients"
    )
    parser.add_argument(
        "pipeline", help="run folder, such as runs/a, its pipeline folder, or a Hub repository"
    )
    parser.add_argument(
        "--data", help="folder or .zip of the scans it was trained on; none for the phantom's"
    )
    parser.add_argument("--num_images", type=int, default=2000, help="synthetic images to draw")
    parser.add_argument(
        "--num_inference_steps", type=int, help="steps of the reverse chain; all when not given"
    )
    parser.add_argument("--guidance_scale", type=float, default=1.0)
    parser.add_argument(
        "--extractor", choices=EXTRACTORS, default="in_domain", help="what makes the features"
    )
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="folder for the report; the evaluation/ of a run folder when not given",
    )
    parser.set_defaults(run=evaluate_model)


def evaluate_model(args: argparse.Namespace) -> None:
    """Measure, write the report, and say in short what came out."""
    from mri_ddpm.evaluation.evaluate import evaluate  # imported late: it brings the plots along

    output_dir = args.output_dir
    if output_dir is None:
        if not (Path(args.pipeline) / "pipeline").is_dir():
            raise InputError(f"{args.pipeline} is no run folder; say by --output_dir where the report goes.")
        output_dir = Path(args.pipeline) / "evaluation"
    same_names = ("data", "num_images", "num_inference_steps", "guidance_scale", "extractor", "batch_size", "seed", "device")  # fmt: skip
    metrics = evaluate(args.pipeline, output_dir, **{name: getattr(args, name) for name in same_names})
    for verdict in metrics["verdicts"]:
        print(f"{verdict['question']} {verdict['answer']}")
    print(f"Report: {output_dir / 'report.html'}   numbers: {output_dir / 'metrics.json'}")


def add_push(commands) -> None:
    """``mri-ddpm push RUN REPO``: a run or a pipeline to the Hub."""
    parser = commands.add_parser("push", help="publish a run, or a saved pipeline, on the Hugging Face Hub")
    parser.add_argument("source", type=Path, help="run folder, such as runs/a, or a saved pipeline")
    parser.add_argument(
        "hub_model_id", help="repository, such as me/brain-mri-ddpm; made when it is not there"
    )
    parser.add_argument("--hub_public", action="store_true", help="for everybody to see; private without it")
    parser.add_argument(
        "--hub_license",
        help="licence of the weights for the model card, as the Hub writes it: cc-by-4.0, ...",
    )
    parser.add_argument(
        "--dry_run",
        type=Path,
        metavar="DIR",
        help="write the repository to DIR and list it; nothing leaves the machine",
    )
    parser.set_defaults(run=push)


def push(args: argparse.Namespace) -> None:
    """Push, or write what would be pushed and list it."""
    if not args.dry_run:
        print(push_run(args.source, args.hub_model_id, public=args.hub_public, license=args.hub_license))
        return
    for path in export_repository(args.source, args.dry_run, args.hub_model_id, args.hub_license):
        print(f"{(args.dry_run / path).stat().st_size:>12,}  {path}")
    print(f"written: {args.dry_run}; nothing was sent")
