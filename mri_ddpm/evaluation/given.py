"""Synthetic images that somebody else made, read from a folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from mri_ddpm.data import format_findings
from mri_ddpm.data.reading.pictures import BadImageError, read_scan
from mri_ddpm.data.sources import find_source
from mri_ddpm.data.volume_files import VolumeFile
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.lazy import LazyImages, view
from mri_ddpm.scan_options import ScanOptions

FEWEST = 10  # of which any measure has an interval
HELD_BYTES = 2**28  # of decoded images; measuring looks at each some hundred times


def read_images(folder: Path) -> tuple[LazyImages, list[str | None]]:
    """Images ``(N, 1, H, H)`` in [0, 1] of 256 levels, and the class of each, by its folder or its PNG's text.

    All are looked at here, before anything is measured.

    Raises:
        InputError: for fewer than 10 images, and naming the first that cannot be read, is not square or of another size.
    """
    try:
        source = find_source(ScanOptions(train_data_dir=str(folder)))
    except InputError as error:  # which speaks of scans
        raise InputError(str(error).replace("--train_data_dir", "--images")) from error
    if source.findings:  # such as masks, which are left out
        print(f"{folder}: {format_findings({'findings': [asdict(finding) for finding in source.findings]})}")
    files, names, side, channels = source.files, [], None, set()
    for file in tqdm(files, desc="Reading images", unit="image"):
        where = f"--images {folder}: {file.path}"
        if isinstance(file.content, VolumeFile):
            raise InputError(f"{where} is a volume; give its slices, one a file.")
        try:
            height, width = read_scan(file.content.read()).shape
        except (OSError, BadImageError) as error:
            raise InputError(f"{where} {error}; mend or remove it.") from error
        side = side or height
        if (height, width) != (side, side):
            raise InputError(
                f"{where} has {width} x {height} pixels; give square images of one size, such as {side} x {side}."
            )
        text = text_of(folder / file.path)
        names.append(file.class_name or text.get("class"))
        channels.add(text.get("channel"))
    if len(channels - {None}) > 1:
        named = ", ".join(sorted(channels - {None}))
        raise InputError(
            f"--images {folder} holds images of several channels ({named}); give a folder of each, and measure one at a time."
        )
    if len(files) < FEWEST:
        raise InputError(f"--images {folder} holds {len(files)} images; give {FEWEST} or more.")
    return images_of_files([file.content.read for file in files], side), names


def images_of_files(readers: Sequence[Callable[[], bytes]], side: int) -> LazyImages:
    """Image files of one size as images of 256 levels: held if they fit ``HELD_BYTES``, else read where they are looked at."""

    def read(rows: np.ndarray) -> np.ndarray:
        scans = np.stack([read_scan(readers[row]()) for row in rows])[:, None]
        return np.round(scans * 255).astype(np.float32) / 255

    return held(LazyImages(read, (1, side, side), len(readers)))


def masks_of_files(files: Sequence[Path], side: int, values: Sequence[int]) -> LazyImages:
    """Masks in values of labels as ``(N, labels, H, W)`` of 0 and 1, held or read as images are."""

    def read(rows: np.ndarray) -> np.ndarray:
        pixels = np.stack([np.asarray(Image.open(files[row])) for row in rows])[:, None]
        return (pixels == np.reshape(values, (-1, 1, 1))).astype(np.float32)

    return held(LazyImages(read, (len(values), side, side), len(files)))


def held(images: LazyImages) -> LazyImages:
    """The images in memory, if they fit ``HELD_BYTES``."""
    fits = 4 * np.prod(images.shape) <= HELD_BYTES
    return view(np.asarray(images)) if fits else images


def text_of(path: Path) -> dict[str, str]:
    """What a PNG of `mri-ddpm sample` has in its text, such as its class; empty for other files."""
    if path.suffix.lower() != ".png" or not path.is_file():
        return {}
    with Image.open(path) as image:
        return image.info


def labels_of(names: list[str], class_names: tuple[str, ...], folder: Path) -> np.ndarray:
    """The classes' indices among those of the real scans, int64 ``(N,)``.

    Raises:
        InputError: for a class that the scans have not.
    """
    number = {name: index for index, name in enumerate(class_names)}
    strangers = sorted(set(names) - set(number))
    if strangers:
        there = ", ".join(class_names) or "none"
        raise InputError(
            f"--images {folder} has images of class {strangers[0]}, which is none of the scans' classes ({there}); rename or "
            "remove them."
        )
    return np.array([number[name] for name in names], dtype=np.int64)
