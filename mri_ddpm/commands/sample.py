"""``mri-ddpm sample PIPELINE``: images to PNG, NIfTI or DICOM files, and volumes that follow a given one."""

import argparse
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from diffusers import DDPMScheduler
from PIL import Image

from mri_ddpm.commands import parser_of
from mri_ddpm.commands.flags import DEVICE, PIPELINE, add_sampling, add_scans, sampling_options, where
from mri_ddpm.data import Volume
from mri_ddpm.data.intensity import Scale, scale_of_manifest
from mri_ddpm.data.reading.labels import read_labels
from mri_ddpm.data.reading.pictures import BadImageError, fit_square, read_scan
from mri_ddpm.errors import InputError, import_extra
from mri_ddpm.files import writing_to
from mri_ddpm.pipelines.pipeline_mri_ddpm import (
    MRIDDPMBasePipeline,
    MRIDDPMImg2ImgPipeline,
    MRIDDPMInpaintPipeline,
    MRIDDPMPipeline,
    as_array,
)
from mri_ddpm.runs import load_pipeline, load_record
from mri_ddpm.sampling.folder import REFUSAL, SampleFolder
from mri_ddpm.sampling.formats import FORMATS, geometry_of_manifest
from mri_ddpm.sampling.options import facts_of_condition
from mri_ddpm.sampling.provenance import provenance
from mri_ddpm.sampling.sheets import save_film, save_noise_strip
from mri_ddpm.sampling.volumes import check, cut, draw, is_volume, read_given, seen

BIT_DEPTHS = {8: "pil", 16: "pil16"}


def main(args: list[str] | None = None) -> None:
    """Read the flags and sample."""
    parser = parser_of("sample")
    parser.add_argument("pipeline", help=PIPELINE)
    parser.add_argument("--class_label", help="class to sample, by name or index; all in turn when not given")
    parser.add_argument("--num_images", type=int, help="16 when not given; of volumes 1")
    add_sampling(parser)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="of the files, png when not given; nifti and dicom hold one slice of 16 bits each, and are marked as synthetic in "
        "their headers",
    )
    parser.add_argument("--bit_depth", type=int, choices=BIT_DEPTHS, help="of PNG files; 8 when not given")
    parser.add_argument(
        "--image",
        nargs="+",
        metavar="[NAME=]FILE",
        help="scan to sample variations of, as --class_label; it must have the model's size; of several channels each by name, such as "
        "t1=a.png t2=b.png",
    )
    parser.add_argument(
        "--strength",
        type=float,
        help="share of the chain that is run on --image; by default 0.2, or 1 with a mask",
    )
    parser.add_argument(
        "--mask_image",
        type=Path,
        help="mask: its white part of --image is sampled anew, the rest stays as it is",
    )
    parser.add_argument(
        "--condition",
        nargs="+",
        default=[],
        metavar="NAME=FILE",
        help="what a model with a condition is given, for all images: a scan, or a mask in values of labels; such as "
        "seg=mask.png t1=scan.png; of NIfTI volumes the whole is sampled, on their grid",
    )
    parser.add_argument(
        "--reject_copies", action="store_true", help="leave out images that come too close to a training scan"
    )
    add_scans(parser, "for --reject_copies, the scans the model was trained on")
    parser.add_argument(
        "--film",
        action="store_true",
        help="also show how the first images arise from noise: DIR-film.png and .gif, beside the folder",
    )
    parser.add_argument(
        "--noise_strip",
        type=Path,
        metavar="IMAGE",
        help="only write noise_strip.png, which shows how noise covers this scan",
    )
    parser.add_argument(
        "--output_dir",
        type=Path,
        required=True,
        help="folder for the images: new, empty, or of a matching interrupted run, which is resumed",
    )
    sample(parser.parse_args(args))


def sample(args: argparse.Namespace) -> None:
    """Sample ``--num_images`` images in batches and write each as soon as it is there."""
    if args.output_dir.is_file():
        raise InputError(f"--output_dir {args.output_dir} is a file; name a folder.")
    for name, value in where(args).items():
        if value is not None and not args.reject_copies:
            raise InputError(
                f"--{name} says which scans --reject_copies compares with; give both, or neither."
            )
    bit_depth = bit_depth_of(args)
    pipeline = load_pipeline(args.pipeline, args.device)
    if args.noise_strip:
        show_noise(args, pipeline)
        return
    if args.image and pipeline.class_names and not args.class_label:
        raise InputError(
            f"--image needs the --class_label to sample it as: {', '.join(pipeline.class_names)}."
        )
    condition = read_condition(args, pipeline)
    if any(isinstance(given, Volume) for given in condition.values()):
        fill_with_volumes(args, pipeline, condition)
        return
    args.num_images, args.format = 16 if args.num_images is None else args.num_images, args.format or "png"
    names = [named_class(args.class_label, pipeline)] if args.class_label else pipeline.class_names
    labels = [names[i % len(names)] for i in range(args.num_images)] if names else None
    pipeline, edit = with_edit(args, pipeline)
    refuse_masks(args, pipeline)
    options = sampling_options(args, edit={**edit, **({"condition": condition} if condition else {})})
    options.prepare(pipeline, args.num_images, names[0] if names else None)

    facts = {**provenance(pipeline), **options.facts(pipeline)}
    geometry = geometry_of_manifest(load_record(args.pipeline).manifest) if args.format != "png" else {}
    asked = {"class_label": args.class_label, "seed": args.seed, "bit_depth": bit_depth, **geometry}
    request = {**facts, **asked, "reject_copies": args.reject_copies}
    folder = SampleFolder(args.output_dir, request, args.format)
    beside = args.output_dir.absolute()
    films = [beside.with_name(f"{beside.name}-film.{end}") for end in ("png", "gif")]
    if args.film and any(film.exists() for film in films):
        raise InputError(f"--film would write {films[0]} and {films[1]}, of which one exists; remove it.")
    copies = None
    if args.reject_copies:
        # Imported late: it brings the plots along
        from mri_ddpm.evaluation.evaluate import fit_copy_detectors

        detectors = fit_copy_detectors(pipeline, args.pipeline, **where(args))

        def copies(channels: dict[str, list[Image.Image]]) -> np.ndarray:
            contrasts = [images for name, images in channels.items() if name not in pipeline.mask_labels]
            stacked = np.stack(
                [[as_array(image, "image") for image in images] for images in contrasts], axis=1
            )
            return detectors.examine(stacked).flagged  # of (B, C, H, W)

    how = {"facts": facts, "copies": copies, "output_type": BIT_DEPTHS[bit_depth], **geometry}
    folder.fill(pipeline, labels, args.num_images, options, **how)
    kept = [i for i in range(args.num_images) if i not in folder.rejected]
    print(f"written: {len(kept)} images in {args.output_dir}")
    if args.film and kept:
        save_film(pipeline, labels, kept, options, films)
        print(f"written: {films[0]} and {films[1]}")
    if copies:
        print(
            f"{len(folder.rejected)} of {args.num_images} images came too close to a training scan and were left out."
        )


def refuse_masks(args: argparse.Namespace, pipeline: MRIDDPMBasePipeline) -> None:
    """Refuse what compares contrasts, or holds no mask, of a model that draws masks."""
    labels = [name for name in pipeline.channel_names if name in pipeline.mask_labels]
    if args.reject_copies and labels and len(labels) == len(pipeline.channel_names):
        raise InputError(
            f"--reject_copies compares contrasts, and this model draws {', '.join(labels)} alone; leave it out."
        )
    if labels and args.format == "dicom":
        raise InputError(
            f"--format dicom holds no mask, and this model draws {labels[0]}; take --format png or nifti."
        )


def fill_with_volumes(
    args: argparse.Namespace, pipeline: MRIDDPMBasePipeline, volumes: dict[str, Volume]
) -> None:
    """Sample ``--num_images`` volumes that follow the given ones, and write each as soon as it is there."""
    for flag in ("film", "reject_copies", "image", "mask_image", "strength", "bit_depth"):
        if getattr(args, flag):
            raise InputError(f"--{flag} is for images, and --condition names volumes; leave it out.")
    if args.format not in (None, "nifti"):
        raise InputError(
            f"--format {args.format} holds no volume, and --condition names one; leave it out, for NIfTI."
        )
    import_extra("nibabel", "volumes")
    number = 1 if args.num_images is None else args.num_images
    label = named_class(args.class_label, pipeline) if args.class_label else None
    given, options = cut(pipeline, volumes, load_record(args.pipeline).manifest), sampling_options(args)
    check(pipeline, given, options, number, label)
    facts = {**provenance(pipeline), **options.facts(pipeline), **facts_of_condition(given.condition)}
    folder = SampleFolder(args.output_dir, {**facts, "class_label": label, "seed": args.seed}, "nifti")
    folder.save_request()
    channels = pipeline.channel_names or ("",)
    files = {name: folder.files([label] * number, name) for name in channels}
    for i in range(number):
        if all(files[name][i].exists() for name in channels):
            continue
        found = draw(pipeline, given, replace(options, seed=options.seed + i), label)
        for name, voxels in found.items():
            text = {**facts, "class": label, "channel": name or None, "seed": options.seed + i, "index": i}
            folder.save(voxels, files[name][i], text, affine=given.affine)
    print(f"written: {number} volume{'s' * (number > 1)} in {args.output_dir}")
    if unseen := len(given.slices) - len(seen(pipeline, given, label)):
        print(
            f"{unseen} of {len(given.slices)} slices are black: their mask is empty, as that of no training scan was."
        )


def read_condition(args: argparse.Namespace, pipeline: MRIDDPMBasePipeline) -> dict[str, np.ndarray | Volume]:
    """``--condition`` by name: each file as ``(H, W)``, a scan in [0, 1] and a mask as it is; or all as volumes."""
    found, manifest = {}, load_record(args.pipeline).manifest if args.condition else None
    for given in args.condition:
        name, _, file = given.partition("=")
        if not file:
            raise InputError(f"--condition {given} names no file; write NAME=FILE, such as seg=mask.png.")
        if name not in pipeline.condition_names:
            known = ", ".join(pipeline.condition_names) or "nothing"
            raise InputError(
                f"--condition {name} is not what the model was trained with; it is given {known}."
            )
        refuse_twice("condition", name, found)
        if is_volume(Path(file)):
            found[name] = read_given(file, manifest)
        elif name in pipeline.mask_labels:
            found[name] = read_mask("condition", Path(file))
        else:
            found[name] = read_file("condition", Path(file), scale_of_manifest(manifest))
    kinds = {isinstance(given, Volume): name for name, given in found.items()}
    if len(kinds) > 1:
        raise InputError(
            f"--condition {kinds[True]} is a volume, and {kinds[False]} a picture; give all as one or the other."
        )
    return found


def refuse_twice(flag: str, name: str, found: Collection[str]) -> None:
    """Raise an ``InputError`` for a second file of one name, of which the first would be forgotten."""
    if name in found:
        raise InputError(f"--{flag} gives {name} twice; give one file of each name.")


def read_mask(flag: str, path: Path) -> np.ndarray:
    """The values of labels in a picture that a flag names."""
    try:
        return read_labels(path.read_bytes())
    except OSError as error:
        raise InputError(f"--{flag} {path}: {error.strerror}; name a picture of labels.") from error
    except BadImageError as error:
        raise InputError(f"--{flag} {path} {error}.") from error


def bit_depth_of(args: argparse.Namespace) -> int:
    """``--bit_depth``, of which only PNG has a choice; a format that cannot be written is refused before any work."""
    if args.format in (None, "png"):
        return args.bit_depth or 8
    if args.bit_depth:
        raise InputError(f"--bit_depth is of PNG files; --format {args.format} has 16 bits, so leave it out.")
    import_extra(FORMATS[args.format].package, "volumes")
    return 16


def with_edit(args: argparse.Namespace, pipeline: MRIDDPMPipeline) -> tuple[MRIDDPMBasePipeline, dict]:
    """The pipeline that ``--image``, ``--mask_image`` and ``--strength`` ask for, and its arguments of them."""
    given = {"image": args.image, "mask_image": args.mask_image, "strength": args.strength}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        return pipeline, {}
    if not args.image:
        raise InputError(
            f"--{next(iter(given))} is given without --image, the scan to start from; give both."
        )
    scale = scale_of_manifest(load_record(args.pipeline).manifest)
    given["image"] = read_channels(args.image, pipeline, scale)
    if args.mask_image:
        given["mask_image"] = read_file("mask_image", args.mask_image, scale)
    edit_class = MRIDDPMInpaintPipeline if args.mask_image else MRIDDPMImg2ImgPipeline
    return edit_class.from_pipe(pipeline), given


def read_channels(
    files: list[str], pipeline: MRIDDPMPipeline, scale: Scale | None
) -> np.ndarray | dict[str, np.ndarray]:
    """``--image``: a scan as ``(H, W)`` in [0, 1], or by name what a model of several channels draws, a mask as it is."""
    names = pipeline.channel_names
    if (
        len(files) == 1 and len(names) < 2 and files[0].partition("=")[0] not in names
    ):  # a path may have "=" in it
        return read_file("image", Path(files[0]), scale)
    found = {}
    for given in files:
        name, _, file = given.partition("=")
        if name not in names or not file:
            known = ", ".join(names) or "one channel without a name"
            raise InputError(
                f"--image {given} is no NAME=FILE of a channel, and the model draws {known}; write such as t1=scan.png."
            )
        refuse_twice("image", name, found)
        is_mask = name in pipeline.mask_labels
        found[name] = read_mask("image", Path(file)) if is_mask else read_file("image", Path(file), scale)
    return found


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
    scale = scale_of_manifest(load_record(args.pipeline).manifest)
    scan = fit_square(
        read_file("noise_strip", args.noise_strip, scale), pipeline.unet.config.sample_size, "pad"
    )
    with writing_to(args.output_dir, *REFUSAL):
        args.output_dir.mkdir(parents=True, exist_ok=True)
        save_noise_strip(scan, DDPMScheduler.from_config(pipeline.scheduler.config), target, args.seed)
    print(f"written: {target}")


def read_file(flag: str, path: Path, scale: Scale | None) -> np.ndarray:
    """The scan that a flag names, as float32 ``(H, W)`` in [0, 1], on the scale of the training scans where it is known."""
    try:
        return read_scan(path.read_bytes(), scale)
    except (OSError, BadImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"--{flag} {path}: {reason}; name an image file.") from error
