"""A folder of samples that records its request, so that an interrupted sampling can be resumed."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO
from mri_ddpm.files import whole_file, write_json, writing_to
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline
from mri_ddpm.sampling.batches import batch_size_that_fits, sample_batches
from mri_ddpm.sampling.formats import FORMATS
from mri_ddpm.sampling.options import SamplingOptions

REQUEST_FILE = ".sampling.json"  # hidden, so that the folder is one of images alone, to train on or to load
# Of a folder that cannot be written: the way out, and the flag that names it
REFUSAL = ("name another folder.", "--output_dir ")


class SampleFolder:
    """Files by number, class and channel, and ``.sampling.json``: the request, and the numbers of rejected images.

    Each file is whole or not there.

    Args:
        path: new, empty, or with images of the same request. More images may be asked for than before.
        request: everything that the images depend on, except how many there are; JSON values.
        format: of the files, a name in ``FORMATS``.

    Raises:
        InputError: when the folder holds anything else.
    """

    def __init__(self, path: Path, request: dict, format: str = "png"):
        self.path, self.format = path, FORMATS[format]
        self.request = request = {"format": format, **request}
        self.rejected: set[int] = set()
        # That "auto" found, by device: the same batches give the same bits
        self.batch_size: dict[str, int] = {}
        if not path.exists() or (path.is_dir() and all(file.name == REQUEST_FILE for file in path.iterdir())):
            return
        before = read_request(path)
        other = [
            key for key in {**before["request"], **request} if before["request"].get(key) != request.get(key)
        ]
        if other:
            raise InputError(
                f"--output_dir {path} holds images of {other[0]} {str(before['request'].get(other[0])):.100}, not "
                f"{request.get(other[0])}; name a new folder."
            )
        self.rejected, self.batch_size = set(before["rejected"]), before["batch_size"]

    def fill(
        self,
        pipeline: MRIDDPMBasePipeline,
        labels: Sequence[str] | None,
        num_images: int,
        options: SamplingOptions,
        *,
        facts: dict,
        copies: Callable[[dict[str, list[Image.Image]]], Sequence[bool]] | None = None,
        output_type: str = "pil",
        condition: dict[str, np.ndarray] | None = None,
        **geometry: float | str,
    ) -> None:
        """Sample the images that are missing, and write each batch as soon as it is sampled.

        Args:
            pipeline: the model, with the scheduler of ``options.prepare``.
            labels: a class for each image; ``None`` samples without classes.
            num_images: how many the folder holds in the end.
            options: how. If a sampling is resumed, a ``batch_size`` of "auto" is the one found before.
            facts: text that is written into every image.
            copies: decides for each image whether it is rejected; it is given all channels by name.
            output_type: ``"pil"`` for 8 bits, ``"pil16"`` for 16.
            condition: by name, one for each image, ``(num_images, H, W)``.
            geometry: ``spacing_mm`` and ``plane``, as far as known, for formats that have fields for them.
        """
        self.save_request()  # first: a folder that cannot be written is known before anything is sampled
        if options.batch_size == AUTO:
            device = pipeline.device.type  # a batch that fitted elsewhere says nothing
            fitted = self.batch_size.get(device) or batch_size_that_fits(
                pipeline, labels, num_images, options, condition
            )
            options = replace(options, batch_size=fitted)
            self.batch_size[device] = fitted
            self.save_request()
        channels = pipeline.channel_names or ("",)
        several = len(channels) > 1
        files = {
            name: self.files(labels or [None] * num_images, name if several else None) for name in channels
        }
        whole = (all(file.exists() for file in of_image) for of_image in zip(*files.values(), strict=True))
        done = self.rejected | {i for i, is_whole in enumerate(whole) if is_whole}
        for numbers, output in sample_batches(
            pipeline, labels, num_images, options, done=done, output_type=output_type, condition=condition
        ):
            by_channel = output.by_channel
            left_out = copies(by_channel) if copies else [False] * len(numbers)
            self.rejected |= {i for i, flag in zip(numbers, left_out, strict=True) if flag}
            missing = [(row, i) for row, i in enumerate(numbers) if i not in done and i not in self.rejected]
            for name, images in by_channel.items():
                for row, i in missing:
                    text = facts_of_image(facts, i, labels, name, options)
                    self.save(images[row], files[name][i], text, **geometry)
            if self.rejected:
                self.save_request()

    def files(self, labels: Sequence[str | None], channel: str | None = None) -> list[Path]:
        """The file of each image, by number, class and channel, whether it exists or not."""
        # A class's name comes with the model, and must not lead out of the folder
        prefixes = ["" if label is None else re.sub(r"[^\w.-]", "_", f"{label}-") for label in labels]
        suffix = f"{f'-{channel}' if channel else ''}{self.format.suffix}"
        return [self.path / f"{prefix}{i:05d}{suffix}" for i, prefix in enumerate(prefixes)]

    def save(self, image: Image.Image, file: Path, text: dict, **geometry: float | str) -> None:
        """Write one image under a temporary name and rename it."""
        with writing_to(self.path, *REFUSAL), whole_file(file) as unfinished:
            self.format.save(unfinished, image, text, **geometry)

    def save_request(self) -> None:
        """Write ``.sampling.json``."""
        rejected = sorted(int(i) for i in self.rejected)
        with writing_to(self.path, *REFUSAL):
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(
                self.path / REQUEST_FILE,
                {"request": self.request, "batch_size": self.batch_size, "rejected": rejected},
            )


def facts_of_image(
    facts: dict, i: int, labels: Sequence[str] | None, channel: str, options: SamplingOptions
) -> dict:
    """The facts of all images, and those of image i alone."""
    of_image = {"class": labels[i] if labels else None, "channel": channel or None}
    return {**facts, **of_image, "seed": options.seed + i, "index": i}


def read_request(path: Path) -> dict:
    """The content of ``.sampling.json`` in a folder of images.

    Raises:
        InputError: when the folder was not written by ``mri-ddpm sample``.
    """
    try:
        found = json.loads((path / REQUEST_FILE).read_text(encoding="utf-8"))
        return {
            "request": {"format": "png", **found["request"]},  # older folders do not name it
            "batch_size": {device: max(1, int(size)) for device, size in found["batch_size"].items()},
            "rejected": [int(number) for number in found["rejected"]],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise InputError(
            f"--output_dir {path} is not an empty folder, nor one that 'mri-ddpm sample' wrote; name a new one."
        ) from None
