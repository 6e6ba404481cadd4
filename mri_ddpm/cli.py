"""The ``mri-ddpm`` command: one thin subcommand a capability."""

import argparse
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image

from mri_ddpm.config import parse_config
from mri_ddpm.data import account_of, format_account
from mri_ddpm.data.reading import BadImageError, fit_square, read_scan
from mri_ddpm.errors import InputError, exit_on_input_error
from mri_ddpm.evaluation.features import EXTRACTORS
from mri_ddpm.evaluation.subject import HUB_FLAGS
from mri_ddpm.files import write_json, writing_to
from mri_ddpm.hub import export_repository, load_pipeline, provenance, push_run
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline, as_array
from mri_ddpm.sampling import SCHEDULERS, check_sampling, set_scheduler
from mri_ddpm.sampling.folder import REFUSAL, SampleFolder
from mri_ddpm.sampling.sheets import save_film, save_noise_strip

TRAIN = "train"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BIT_DEPTHS = {8: "pil", 16: "pil16"}
CHAIN = (
    "num_inference_steps", "guidance_scale", "guidance_start", "guidance_end", "dynamic_thresholding_ratio", "strength",
)  # fmt: skip


def main(args: list[str] | None = None) -> None:
    """Run ``mri-ddpm``; bad input ends with one sentence and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="mri-ddpm", description="Synthetic brain MRI with diffusion models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser(TRAIN, help="train a model; 'mri-ddpm train --help' lists its flags")
    add_sample(commands)
    add_data(commands)
    add_evaluate(commands)
    add_push(commands)
    args = sys.argv[1:] if args is None else args
    with exit_on_input_error():
        if args[:1] == [
            TRAIN
        ]:  # its flags are the fields of TrainingConfig, which have a parser of their own
            train_model(args[1:])
            return
        if args[:1] == ["reproduce"]:
            raise InputError(
                "reproduce is no command of the package; run python -m benchmarks.reproduction in a clone of the repository."
            )
        parsed = parser.parse_args(args)
        parsed.run(parsed)


def train_model(flags: list[str]) -> None:
    """``mri-ddpm train``: what ``train_ddpm.py`` does, from wherever the package is installed."""
    from mri_ddpm.training import train  # imported late: it brings the plots along

    train(parse_config(flags))


def add_sample(commands) -> None:
    """``mri-ddpm sample PIPELINE``: draw images to PNG files."""
    parser = commands.add_parser("sample", help="draw images with a trained pipeline")
    add_pipeline(parser)
    parser.add_argument("--class_label", help="class to draw, by name or index; all in turn when not given")
    parser.add_argument("--num_images", type=int, default=16)
    add_chain(parser)
    parser.add_argument(
        "--dynamic_thresholding_ratio",
        type=float,
        help="scale estimates down instead of clipping; such as 0.995",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="image i is drawn from seed + i, whatever its batch"
    )
    parser.add_argument(
        "--batch_size",
        type=auto_or_int,
        default="auto",
        help="images at once; 'auto' for what fits into memory",
    )
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--bit_depth", type=int, choices=BIT_DEPTHS, default=8, help="of the PNG files")
    parser.add_argument(
        "--image", type=Path, help="draw variations of this scan as --class_label; it has the model's size"
    )
    parser.add_argument(
        "--strength", type=float, help="share of the chain that --image goes through: 0.2, or 1 with a mask"
    )
    parser.add_argument(
        "--mask_image", type=Path, help="white where --image is drawn anew; the rest stays as it is"
    )
    parser.add_argument(
        "--reject_copies", action="store_true", help="leave out images that come too close to a training scan"
    )
    add_scans(parser, "for --reject_copies, the scans it was trained on")
    parser.add_argument(
        "--film",
        action="store_true",
        help="also show the first images' way from noise, beside the folder: DIR-film.png and .gif",
    )
    parser.add_argument(
        "--noise_strip",
        type=Path,
        metavar="IMAGE",
        help="only show how noise covers this scan: noise_strip.png",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the PNG files; new, empty, or that of the same request, which is gone on with",
    )
    parser.set_defaults(run=sample)


def add_pipeline(parser: argparse.ArgumentParser) -> None:
    """The model, as ``sample`` and ``evaluate`` take it."""
    parser.add_argument(
        "pipeline", help="run folder, such as runs/a, its pipeline folder, or a Hub repository"
    )


def add_chain(parser: argparse.ArgumentParser) -> None:
    """How an image is drawn, as ``sample`` and ``evaluate`` take it."""
    parser.add_argument(
        "--scheduler",
        choices=SCHEDULERS,
        help="how noise becomes an image; that of the training when not given",
    )
    parser.add_argument(
        "--num_inference_steps", type=int, help="steps of the reverse chain; all when not given"
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="1 is none; more follows the class more"
    )
    parser.add_argument(
        "--guidance_start", type=float, default=0.0, help="share of the chain where it begins"
    )
    parser.add_argument("--guidance_end", type=float, default=1.0, help="share of the chain where it ends")


def add_scans(parser: argparse.ArgumentParser, what: str) -> None:
    """Where real scans are, by the flags of the training."""
    hub = "needed only where the run's papers do not say it"
    parser.add_argument("--train_data_dir", "--data", metavar="DIR", help=f"{what}: a folder or .zip")
    parser.add_argument("--dataset_name", help=f"or a data set on the Hub, or what save_to_disk wrote; {hub}")
    parser.add_argument("--dataset_config_name", help="configuration of --dataset_name")
    parser.add_argument("--image_column", help="image column of --dataset_name")
    parser.add_argument("--label_column", help="class column of --dataset_name")


def where(args: argparse.Namespace) -> dict[str, str | None]:
    """What `add_scans` asked for; `None` where it was not given."""
    return {name: getattr(args, name) for name in ("train_data_dir", *HUB_FLAGS)}


def auto_or_int(value: str) -> int | str:
    """``--batch_size``: a number or ``auto``."""
    if value != "auto" and not value.lstrip("-").isdigit():
        raise argparse.ArgumentTypeError(f"{value!r} is neither a number nor 'auto'")
    return value if value == "auto" else int(value)


def sample(args: argparse.Namespace) -> None:
    """Draw ``--num_images`` images in batches and write each as soon as it is there."""
    if args.output_dir.is_file():
        raise InputError(f"--output_dir {args.output_dir} is a file; name a folder.")
    pipeline = load_pipeline(args.pipeline, args.device)
    if args.noise_strip:
        show_noise(args, pipeline)
        return
    if args.scheduler:
        set_scheduler(pipeline, args.scheduler)
    if args.image and pipeline.class_names and not args.class_label:
        raise InputError(f"--image needs the --class_label to draw it as: {', '.join(pipeline.class_names)}.")
    names = [named_class(args.class_label, pipeline)] if args.class_label else pipeline.class_names
    labels = [names[i % len(names)] for i in range(args.num_images)] if names else None
    chain = {name: getattr(args, name) for name in CHAIN}
    edit = {"image": args.image, "mask_image": args.mask_image}
    edit = {name: read_file(name, path) for name, path in edit.items() if path}
    request = {"num_images": args.num_images, "batch_size": args.batch_size, "seed": args.seed, **chain}
    check_sampling(pipeline, names[0] if names else None, **request, **edit)

    steps = args.num_inference_steps or pipeline.scheduler.config.num_train_timesteps
    facts = {**provenance(pipeline), **chain, "num_inference_steps": steps}
    asked = {"class_label": args.class_label, "seed": args.seed, "bit_depth": args.bit_depth}
    if edit:  # a given scan is the larger part of what comes out
        facts["synthetic"] = "in part: a given scan, drawn anew by a diffusion model; not for diagnosis"
        facts |= {f"{name}_sha256": sha256(image.tobytes()).hexdigest() for name, image in edit.items()}
    folder = SampleFolder(args.output_dir, {**facts, **asked, "reject_copies": args.reject_copies})
    films = [args.output_dir.with_name(f"{args.output_dir.name}-film.{end}") for end in ("png", "gif")]
    if args.film and any(film.exists() for film in films):
        raise InputError(f"--film would write {films[0]} and {films[1]}, of which one exists; remove it.")
    copies = None
    if args.reject_copies:
        from mri_ddpm.evaluation.evaluate import fit_copy_detector  # imported late: it brings the plots along

        detector = fit_copy_detector(pipeline, args.pipeline, **where(args))

        def copies(images: list[Image.Image]) -> np.ndarray:
            return detector.examine(np.stack([as_array(image, "image") for image in images])[:, None]).flagged

    folder.fill(
        pipeline,
        labels,
        facts=facts,
        copies=copies,
        output_type=BIT_DEPTHS[args.bit_depth],
        **request,
        **edit,
    )
    kept = [i for i in range(args.num_images) if i not in folder.rejected]
    if args.film and kept:
        save_film(pipeline, labels, kept, args.seed, films, **chain, **edit)
        print(f"written: {films[0]} and {films[1]}")
    if copies:
        print(
            f"{len(folder.rejected)} of {args.num_images} images came too close to a training scan and were left out."
        )


def named_class(label: str, pipeline: MRIDDPMPipeline) -> str:
    """``--class_label``, which may be an index where no class is called by a number, as a name where there are names."""
    names = pipeline.class_names
    is_index = label.isdecimal() and int(label) < len(names) and not any(map(str.isdecimal, names))
    return names[int(label)] if is_index else label


def show_noise(args: argparse.Namespace, pipeline: MRIDDPMPipeline) -> None:
    """``--noise_strip``: the forward process on one scan, brought to the model's size."""
    target = args.output_dir / "noise_strip.png"
    if target.exists():
        raise InputError(
            f"--output_dir {args.output_dir} holds a noise_strip.png already; name another folder."
        )
    scan = read_file("noise_strip", args.noise_strip, pipeline.unet.config.sample_size)
    with writing_to(args.output_dir, *REFUSAL):
        args.output_dir.mkdir(parents=True, exist_ok=True)
        save_noise_strip(scan, DDPMScheduler.from_config(pipeline.scheduler.config), target, args.seed)
    print(f"written: {target}")


def read_file(flag: str, path: Path, resolution: int | None = None) -> np.ndarray:
    """The scan that a flag names, as float32 ``(H, W)`` in [0, 1], padded to a square of so many pixels where given."""
    try:
        scan = read_scan(path.read_bytes())
        return fit_square(scan, resolution, "pad") if resolution else scan
    except (OSError, BadImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--{flag} {path}: {reason}; name an image file.") from error


def add_data(commands) -> None:
    """``mri-ddpm data DIR``: the account of a data set."""
    parser = commands.add_parser("data", help="count, check and split a folder of scans; trains nothing")
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder or .zip of scans")
    add_scans(parser, "the same")
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
    with writing_to(args.output.parent, "name another file.", "--output "):
        args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.folder and args.train_data_dir:
        raise InputError(
            f"{args.folder} and --train_data_dir {args.train_data_dir} are both given; give one of them."
        )
    args.train_data_dir = args.train_data_dir or args.folder
    manifest = account_of(
        **{name: value for name, value in where(args).items() if value is not None},
        validation_share=args.validation_share,
        keep_repeats=args.keep_repeats,
        seed=args.seed,
    )
    print(format_account(manifest))
    with writing_to(args.output.parent, "name another file.", "--output "):
        write_json(args.output, manifest)
    print(f"written: {args.output}")


def add_evaluate(commands) -> None:
    """``mri-ddpm evaluate PIPELINE --train_data_dir DIR``: quality, usefulness, and whether patients are copied."""
    parser = commands.add_parser(
        "evaluate", help="measure a model: quality, usefulness, and whether it copies patients"
    )
    parser.add_argument(
        "pipeline", nargs="?", help="run folder, such as runs/a, its pipeline folder, or a Hub repository"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="measure these synthetic images instead, whoever drew them"
    )
    add_scans(parser, "the scans it was trained on, but for the phantom's")
    parser.add_argument("--num_images", type=int, default=2000, help="synthetic images to draw")
    parser.add_argument("--metrics", nargs="+", help="what to measure; everything when not given")
    add_chain(parser)
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
    from mri_ddpm.evaluation import evaluate as doors  # imported late: it brings the plots along

    if (args.images is None) == (args.pipeline is None):
        raise InputError("give either a PIPELINE to draw with, or --images DIR to measure as they are.")
    output_dir = args.output_dir
    if output_dir is None and args.images:
        raise InputError("--images is given without --output_dir; say by that where the report goes.")
    if output_dir is None:
        if not (Path(args.pipeline) / "pipeline").is_dir():
            raise InputError(f"{args.pipeline} is no run folder; say by --output_dir where the report goes.")
        output_dir = Path(args.pipeline) / "evaluation"
    same_names = ("num_images", "scheduler", "num_inference_steps", "guidance_scale", "guidance_start", "guidance_end", "extractor", "batch_size", "seed", "device")  # fmt: skip
    chosen = {name: getattr(args, name) for name in same_names} | where(args)
    if args.metrics:
        chosen["metrics"] = args.metrics
    if args.images:
        of_images = ("extractor", "metrics", "seed", "device", *where(args))
        chosen = {name: value for name, value in chosen.items() if name in of_images}
        metrics = doors.evaluate_images(args.images, output_dir, **chosen)
    else:
        metrics = doors.evaluate(args.pipeline, output_dir, **chosen)
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
