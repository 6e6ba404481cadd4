"""What a visitor gives: scans and masks that are put in, and canvases that are painted on.

Files are read by the readers of the command line, and deleted as soon as they are read.
"""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr
import numpy as np
from PIL import Image

from mri_ddpm.data.intensity import Scale
from mri_ddpm.data.reading.labels import MOST_LABEL, NEAREST, read_labels
from mri_ddpm.data.reading.pictures import BadImageError, fit_square, read_scan
from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import LABEL_COLOURS

LARGEST = "20mb"
SIDE = 384  # pixels of a canvas, however few the model has
OPAQUE = 128


def read_upload(path: str | Path, side: int, scale: Scale | None, fit: str) -> np.ndarray:
    """A scan as float32 ``(side, side)`` in [0, 1], made square as the training scans were; its file is gone then.

    Raises:
        InputError: when it is no scan.
    """
    file = Path(path)
    try:
        return fit_square(read_scan(file.read_bytes(), scale), side, fit)
    except (OSError, BadImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file.name} {reason}; give an image file of one scan.") from error
    finally:
        file.unlink(missing_ok=True)


def read_mask_upload(path: str | Path, side: int, fit: str) -> np.ndarray:
    """A mask as float32 ``(side, side)`` in values of labels; its file is gone then.

    Raises:
        InputError: when it is no picture of labels.
    """
    file = Path(path)
    try:
        values = read_labels(file.read_bytes())
        return np.rint(MOST_LABEL * fit_square(values / MOST_LABEL, side, fit, NEAREST))
    except (OSError, BadImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file.name} {reason}; give a picture of labels.") from error
    finally:
        file.unlink(missing_ok=True)


def canvas(colours: Sequence[str], **options) -> gr.ImageEditor:
    """A canvas to paint on in these colours alone."""
    return gr.ImageEditor(
        type="numpy", image_mode="RGBA", sources=(), transforms=(), layers=gr.LayerOptions(disabled=True), buttons=[],
        brush=gr.Brush(default_size=SIDE // 12, colors=list(colours), default_color=colours[0], color_mode="fixed"),
        eraser=gr.Eraser(default_size=SIDE // 12), canvas_size=(SIDE, SIDE), fixed_canvas=True, format="png", **options,
    )  # fmt: skip


def background(levels: np.ndarray) -> dict:
    """A picture ``(h, w)`` or ``(h, w, 3)`` of uint8 as what a canvas shows, with nothing painted."""
    picture = Image.fromarray(levels).convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    return {"background": np.asarray(picture), "layers": [], "composite": None}


def layers_of(painting: dict | None) -> list[np.ndarray]:
    """What was painted, ``(h, w, 4)`` of uint8 each."""
    return (painting or {}).get("layers") or []


def painted(layers: list[np.ndarray], side: int) -> np.ndarray:
    """Where something is painted, as bool ``(side, side)``.

    Raises:
        InputError: when that is nowhere.
    """
    opaque = np.zeros((side, side), dtype=bool)
    for layer in layers:
        alpha = Image.fromarray(np.ascontiguousarray(layer[..., 3]))
        opaque |= np.asarray(alpha.resize((side, side), Image.Resampling.BOX)) >= OPAQUE
    if not opaque.any():
        raise InputError("nothing is painted; paint over the part of the scan that is to be sampled anew.")
    return opaque


def colours_of(count: int) -> np.ndarray:
    """A colour for each of so many labels, uint8 ``(count, 3)``, as masks have that are sampled."""
    others = LABEL_COLOURS[1:]
    return np.array([others[i % len(others)] for i in range(count)], dtype=np.uint8)


def painted_over(mask: np.ndarray, layers: list[np.ndarray], values: Sequence[int]) -> np.ndarray:
    """A mask ``(side, side)`` of the labels' values, with what is painted in their colours over it."""
    colours, side = colours_of(len(values)).astype(int), mask.shape[0]
    for layer in layers:
        picture = Image.fromarray(np.ascontiguousarray(layer)).resize((side, side), Image.Resampling.NEAREST)
        pixels = np.asarray(picture).astype(int)
        distance = np.abs(pixels[:, :, None, :3] - colours).sum(-1)  # (side, side, labels)
        mask = np.where(pixels[..., 3] >= OPAQUE, np.array(values)[distance.argmin(-1)], mask)
    return mask.astype(np.float32)


def coloured(mask: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """A mask ``(h, w)`` of the labels' values in their colours, uint8 ``(h, w, 3)``; others stay black."""
    picture = np.zeros((*mask.shape, 3), dtype=np.uint8)
    for value, colour in zip(values, colours_of(len(values)), strict=True):
        picture[mask == value] = colour
    return picture
