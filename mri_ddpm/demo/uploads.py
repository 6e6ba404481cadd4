"""What a visitor gives: read by the readers of the command line, and deleted as soon as it is read."""

from pathlib import Path

import numpy as np
from PIL import Image

from mri_ddpm.data.intensity import Scale
from mri_ddpm.data.reading.labels import MOST_LABEL, NEAREST, as_labels
from mri_ddpm.data.reading.pictures import BadImageError, fit_square, read_scan
from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import as_numbers

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


def read_mask_upload(path: str | Path, side: int, fit: str) -> np.ndarray:
    """A mask as float32 ``(side, side)`` in values of labels; its file is gone then.

    Raises:
        InputError: when it is no picture of labels.
    """
    file = Path(path)
    try:
        with Image.open(file) as picture:
            values = as_labels(as_numbers(picture, file.name))
        return np.rint(MOST_LABEL * fit_square(values / MOST_LABEL, side, fit, NEAREST))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, BadImageError) as error:
        raise InputError(
            f"{file.name} cannot be read as a mask: {error}; give a picture of labels."
        ) from error
    finally:
        file.unlink(missing_ok=True)
