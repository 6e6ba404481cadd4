"""What a visitor gives: read by the readers of the command line, and deleted as soon as it is read."""

from pathlib import Path

import numpy as np
from PIL import Image

from mri_ddpm.data.intensity import Scale
from mri_ddpm.data.reading.pictures import BadImageError, fit_square, read_scan
from mri_ddpm.errors import InputError

LARGEST = "20mb"


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


def painted(layers: list[np.ndarray], side: int) -> np.ndarray:
    """Where something was painted, in the layers ``(h, w, 4)`` of an editor, as bool ``(side, side)``.

    Raises:
        InputError: when that is nowhere.
    """
    opaque = np.zeros((side, side), dtype=bool)
    for layer in layers:
        alpha = Image.fromarray(np.ascontiguousarray(layer[..., 3]))
        opaque |= np.asarray(alpha.resize((side, side), Image.Resampling.BOX)) >= 128
    if not opaque.any():
        raise InputError("nothing is painted; paint over the part of the scan that is to be sampled anew.")
    return opaque
