"""From the bytes of a file to a picture or a volume: what Pillow and tifffile read, NIfTI, DICOM."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

from mri_ddpm.errors import InputError

from .contrasts import contrast_of_name
from .nifti import LEAST_SLICES, image_names, read_nifti
from .pictures import BadImageError
from .series import read_dicom_folder
from .volumes import Volume


def read_volume(
    path: str | Path,
    *,
    volume_index: int | None = None,
    assume_orientation: str | None = None,
    least_slices: int = LEAST_SLICES,
) -> Volume:
    """Open a `.nii`, a `.nii.gz`, a `.hdr` beside which its `.img` lies, or the folder of one DICOM series; see `nifti.read_nifti`.

    The contrast is told by the file's name, or by the series' description. Raises `InputError` for what is missing or cannot be
    used, and for a folder of several series: `series.read_dicom_folder` gives them one after the other.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        volumes = list(islice(read_dicom_folder(path), 2))
        if len(volumes) > 1:
            raise InputError(f"{path} holds several series; name the folder of one.")
        return volumes[0]
    try:
        images = [path.with_name(name) for name in image_names(path.name)]
        image = next((file.read_bytes() for file in images if file.is_file()), None)
        options = {"volume_index": volume_index, "assume_orientation": assume_orientation}
        volume = read_nifti(path.read_bytes(), image, **options, least_slices=least_slices)
    except BadImageError as error:
        raise InputError(f"{path} {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror or error}.") from None
    return replace(volume, contrast=contrast_of_name(path.name))
