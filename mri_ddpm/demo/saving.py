"""Samples as the files that ``mri-ddpm sample`` writes, to the byte, and the command that writes them."""

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image

from mri_ddpm.demo.model import BATCH_SIZE, Samples
from mri_ddpm.errors import InputError, import_extra
from mri_ddpm.pipelines.pipeline_mri_ddpm import label_values, to_images, to_masks
from mri_ddpm.sampling.folder import SampleFolder, facts_of_image
from mri_ddpm.sampling.formats import FORMATS

# By the name that a page shows: the format, and what the pipeline calls images of its depth
KINDS = {
    "PNG, 8 bits": ("png", "pil"),
    "PNG, 16 bits": ("png", "pil16"),
    "NIfTI": ("nifti", "pil16"),
    "DICOM": ("dicom", "pil16"),
}
MEDIA_TYPES = {"png": "image/png", "nifti": "application/gzip", "dicom": "application/dicom"}


def kinds_of(masks: bool) -> list[str]:
    """The kinds that can be written here: by what is installed, and DICOM has none for masks that are drawn."""
    found = []
    for kind, (format, _) in KINDS.items():
        try:
            if FORMATS[format].package:
                import_extra(FORMATS[format].package, "volumes")
        except InputError:
            continue
        if not (masks and format == "dicom"):
            found.append(kind)
    return found


def pictures(samples: Samples, depth: str = "pil") -> dict[str, list[Image.Image]]:
    """The images of each channel as the pipeline gives them."""
    labels = samples.mask_labels
    return {
        name: masks(values, labels[name]) if name in labels else to_images(values, depth)
        for name, values in samples.channels.items()
    }


def masks(values: torch.Tensor, labels: tuple[str, ...]) -> list[Image.Image]:
    """Values of labels ``(N, 1, H, W)`` as pictures in the labels' colours."""
    planes = [values.int() == value for value in label_values(labels)]
    return to_masks(torch.cat(planes, dim=1).float(), "pil", labels)


def files(samples: Samples, kind: str, geometry: dict) -> Iterator[tuple[int, str, Path]]:
    """Write each image; the number of an image, its channel, and its file, which is gone when the next one is asked for."""
    format, depth = KINDS[kind]
    several, geometry = len(samples.channels) > 1, {} if format == "png" else geometry
    with tempfile.TemporaryDirectory(prefix="mri-ddpm-") as path:
        folder = SampleFolder(Path(path), {}, format)
        for name, images in pictures(samples, depth).items():
            names = folder.files(samples.labels or [None] * samples.num_images, name if several else None)
            for i, image in enumerate(images):
                text = facts_of_image(samples.facts, i, samples.labels, name, samples.options)
                folder.save(image, names[i], text, **geometry)
                yield i, name, names[i]
                names[i].unlink()


def command_of(model: str, class_label: str | None, samples: Samples, kind: str) -> str:
    """The command that writes the same files, if a condition is given by the same pictures."""
    format, depth = KINDS[kind]
    options, flags = samples.options, {"--class_label": class_label, "--num_images": samples.num_images}
    flags |= {
        "--scheduler": options.scheduler,
        "--num_inference_steps": options.num_inference_steps,
        "--guidance_scale": options.guidance_scale if options.guidance_scale != 1 else None,
        "--condition_guidance_scale": options.condition_guidance_scale
        if options.guidance_scale != 1
        else None,
        "--seed": options.seed,
        "--batch_size": BATCH_SIZE,
        "--condition": [f"{name}=FILE" for name in options.edit.get("condition", ())] or None,
        "--format": format if format != "png" else None,
        "--bit_depth": 16 if (format, depth) == ("png", "pil16") else None,
        "--output_dir": "out",
    }
    words = ["mri-ddpm", "sample", model]
    for flag, value in flags.items():
        if value is not None:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
