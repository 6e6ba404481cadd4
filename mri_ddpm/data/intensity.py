"""The one owner of the intensity range: files hold samples of many kinds, images live in [0, 1], the model sees [-1, 1].

Everything that crosses between these (data, validation, sampling, grids) goes through the functions below.
H, W: height and width in pixels.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

# What is black and white in samples whose file does not say it, as long as all of them lie between
USUAL_SCALE = {"integer": (0.0, 65535.0), "float": (0.0, 1.0)}

Scale = dict[str, tuple[float, float]]  # black and white by the kind of samples
Intensities = TypeVar("Intensities", torch.Tensor, np.ndarray)


def to_model_range(unit: Intensities) -> Intensities:
    """Map intensities of any shape from [0, 1] (black to white) to [-1, 1], keeping the dtype."""
    return unit * 2 - 1


def to_unit_range(x: Intensities) -> Intensities:
    """Map intensities of any shape from [-1, 1] to [0, 1], keeping the dtype: undoes `to_model_range`.

    Nothing is clipped: what lies outside [-1, 1] comes out outside [0, 1].
    """
    return (x + 1) / 2


def to_uint16(unit: np.ndarray) -> np.ndarray:
    """Round intensities of any shape in [0, 1] to the 65536 levels of uint16; values that came from them stay what they were."""
    return np.round(np.clip(unit, 0, 1) * 65535).astype(np.uint16)


@dataclass(frozen=True)
class Samples:
    """The grey values of one picture, (H, W), as its file holds them.

    kind: "integer" or "float" where the file does not say what is white; None where it does, and `values` are in [0, 1].
    white_is_zero: whether the file has black and white the other way round; of its kinds only.
    """

    values: np.ndarray
    kind: str | None = None
    white_is_zero: bool = False

    @property
    def extent(self) -> tuple[str | None, float, float]:
        """Their kind, the lowest and the highest value."""
        return self.kind, float(self.values.min()), float(self.values.max())


def common_scale(extents: Iterable[tuple[str | None, float, float]]) -> Scale:
    """One scale for all pictures of a data set, by their `Samples.extent`.

    A kind of which a value lies outside `USUAL_SCALE` reaches from the lowest value of all, or 0, to the highest.
    """
    scale, found = dict(USUAL_SCALE), [row for row in extents if row[0]]
    for kind, (black, white) in USUAL_SCALE.items():
        lowest = min((low for k, low, _ in found if k == kind), default=black)
        highest = max((high for k, _, high in found if k == kind), default=white)
        if lowest < black or highest > white:
            scale[kind] = (min(lowest, 0.0), highest)
    return scale


def scale_of_manifest(manifest: dict | None) -> Scale | None:
    """The scale of the scans that a model was trained on; None where its manifest, which anybody may have written, has none."""
    try:
        found = {
            kind: (float(black), float(white)) for kind, (black, white) in manifest["intensity_scale"].items()
        }
    except (AttributeError, KeyError, TypeError, ValueError):
        return None
    is_scale = found.keys() == USUAL_SCALE.keys() and all(-np.inf < b < w < np.inf for b, w in found.values())
    return found if is_scale else None


def from_samples(samples: Samples, scale: Scale) -> np.ndarray:
    """The picture as float32 (H, W) in [0, 1], black to white."""
    if samples.kind is None:
        return samples.values.astype(np.float32)
    black, white = scale[samples.kind]
    unit = (samples.values.astype(np.float64) - black) / (white - black or 1.0)
    return (1 - unit if samples.white_is_zero else unit).astype(np.float32)
