"""The kinds of files that samples are written to. In each a sample says that it is synthetic."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mri_ddpm.sampling.dicom import save_dicom
from mri_ddpm.sampling.nifti import DIRECTIONS, save_nifti
from mri_ddpm.sampling.provenance import png_text

THINNEST_MM, WIDEST_MM = 1e-3, 1e3  # pixels of a head lie far inside


class Format(NamedTuple):
    """A kind of file.

    suffix: of its files.
    save: ``(path, image, facts, **geometry)`` writes one.
    package: of the extra ``volumes``, which writes it; Pillow when ``None``.
    """

    suffix: str
    save: Callable[..., None]
    package: str | None = None


def save_png(path: Path, image: Image.Image, facts: dict) -> None:
    """Write a grey image of 8 or 16 bits, with the facts as text."""
    image.save(path, format="PNG", pnginfo=png_text(facts))


FORMATS = {
    "png": Format(".png", save_png),
    "nifti": Format(".nii.gz", save_nifti, "nibabel"),
    "dicom": Format(".dcm", save_dicom, "pydicom"),
}


def geometry_of_manifest(manifest: dict | None) -> dict:
    """``spacing_mm`` and ``plane`` of the scans that a model was trained on, as far as known; anybody may have written it."""
    manifest = manifest if isinstance(manifest, dict) else {}
    spacing, plane = manifest.get("spacing_mm"), manifest.get("plane")
    is_spacing = type(spacing) in (int, float) and THINNEST_MM <= spacing <= WIDEST_MM
    is_plane = isinstance(plane, str) and plane in DIRECTIONS
    return {
        **({"spacing_mm": float(spacing)} if is_spacing else {}),
        **({"plane": plane} if is_plane else {}),
    }
