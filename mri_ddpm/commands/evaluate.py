"""``mri-ddpm evaluate PIPELINE --train_data_dir DIR``: quality, usefulness, and whether patients are copied."""

import argparse
from pathlib import Path

from mri_ddpm.commands import parser_of
from mri_ddpm.commands.flags import DEVICE, PIPELINE, add_sampling, add_scans, sampling_options, where
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.evaluate import evaluate, evaluate_images
from mri_ddpm.evaluation.features import EXTRACTORS
from mri_ddpm.runs import RunFolder

NUM_IMAGES = 2000


def main(args: list[str] | None = None) -> None:
    """Read the flags and measure."""
    parser = parser_of("evaluate")
    parser.add_argument("pipeline", nargs="?", help=PIPELINE)
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="synthetic images of any generator, measured instead of a model's",
    )
    add_scans(parser, "the scans the model was trained on, unless these are phantoms")
    parser.add_argument("--num_images", type=int, default=NUM_IMAGES, help="synthetic images to sample")
    parser.add_argument("--metrics", nargs="+", help="what to measure; everything when not given")
    add_sampling(parser)
    parser.add_argument(
        "--extractor", choices=EXTRACTORS, default="in_domain", help="network that computes the features"
    )
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument(
        "--output_dir",
        type=Path,
        help="folder for the report; the evaluation/ of a run folder when not given",
    )
    evaluate_model(parser.parse_args(args))


def refuse_sampling(args: argparse.Namespace) -> None:
    """Refuse what tells a model how to sample, where there is none."""
    of_models = argparse.ArgumentParser()
    add_sampling(of_models)
    of_models.add_argument("--num_images", type=int, default=NUM_IMAGES)
    for name, default in vars(of_models.parse_args([])).items():
        if name != "seed" and getattr(args, name) != default:
            raise InputError(
                f"--{name} is for a model that samples, and --images are measured as they are; leave it out."
            )


def evaluate_model(args: argparse.Namespace) -> None:
    """Measure, write the report, and say in short what came out."""
    if (args.images is None) == (args.pipeline is None):
        raise InputError("give either a PIPELINE to sample with, or --images DIR to measure as they are.")
    output_dir = args.output_dir
    if output_dir is None and args.images:
        raise InputError("--images is given without --output_dir; say by that where the report goes.")
    if output_dir is None:
        run = RunFolder(Path(args.pipeline))
        if not run.has_pipeline:
            raise InputError(
                f"{args.pipeline} is no run folder; check the name, or say by --output_dir where the report goes."
            )
        output_dir = run.evaluation
    chosen = {"extractor": args.extractor, "device": args.device, **where(args)}
    if args.metrics:
        chosen["metrics"] = args.metrics
    if args.images:
        refuse_sampling(args)
        metrics = evaluate_images(args.images, output_dir, seed=args.seed, **chosen)
    else:
        options = sampling_options(args)
        metrics = evaluate(args.pipeline, output_dir, num_images=args.num_images, options=options, **chosen)
    for verdict in metrics["verdicts"]:
        print(f"{verdict['question']} {verdict['answer']}")
    print(f"Report: {output_dir / 'report.html'}   numbers: {output_dir / 'metrics.json'}")
