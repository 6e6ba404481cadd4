"""The one owner of the intensity range: images live in [0, 1], the model sees [-1, 1].

Everything that crosses between the two (data, validation, sampling, grids) goes through these two functions.
"""

from typing import TypeVar

import numpy as np
import torch

Intensities = TypeVar("Intensities", torch.Tensor, np.ndarray)


def to_model_range(unit: Intensities) -> Intensities:
    """Map intensities of any shape from [0, 1] (black to white) to [-1, 1], keeping the dtype."""
    return unit * 2 - 1


def to_unit_range(x: Intensities) -> Intensities:
    """Map intensities of any shape from [-1, 1] to [0, 1], keeping the dtype: undoes `to_model_range`.

    Nothing is clipped: what lies outside [-1, 1] comes out outside [0, 1].
    """
    return (x + 1) / 2
