"""Sets of small volumes made for tests: heads that differ, as files of many kinds, in the layouts that people have."""

import gzip
import io
import zipfile
from functools import cache

import dicom_files
import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

SHAPE = (24, 28, 20)
AFFINE = np.diag([8.0, 8.0, 8.0, 1.0])
AFFINE[:3, 3] = (-92, -108, -76)


@cache
def head(seed: int, shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Voxels int16 of an ellipsoid of smooth blobs, others for each seed; black around it."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    blobs = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.5)
    inside = (grid**2).sum(0) < 0.8
    return (inside * (600 + 300 * blobs / blobs.std()).clip(100, 1500)).astype(np.int16)


@cache
def mask(first: int = 8, last: int = 11) -> np.ndarray:
    """A segmentation uint8 of some axial slices."""
    voxels = np.zeros(SHAPE, dtype=np.uint8)
    voxels[10:14, 12:16, first : last + 1] = 1
    return voxels


def nifti(voxels: np.ndarray, affine: np.ndarray = AFFINE, *, packed: bool = True) -> bytes:
    """The bytes of a `.nii.gz`, or of a `.nii`."""
    content = nibabel.Nifti1Image(voxels, affine).to_bytes()
    return gzip.compress(content, 1, mtime=0) if packed else content


def pair(voxels: np.ndarray) -> tuple[bytes, bytes]:
    """The bytes of a `.hdr` and its `.img`."""
    image = nibabel.Nifti1Pair(voxels, AFFINE)
    files = nibabel.Nifti1Pair.make_file_map({"header": None, "image": None})
    for file in files.values():
        file.fileobj = io.BytesIO()
    image.to_file_map(files)
    return files["header"].fileobj.getvalue(), files["image"].fileobj.getvalue()


@cache
def series(seed: int, patient: str, folder: str = "", study: bool = True, **tags: str) -> dict[str, bytes]:
    """{path: file} of a DICOM series of a head, with names that say nothing; `study`: whether it says its own numbers."""
    numbers = {"StudyInstanceUID": f"1.2.{seed + 1}", "SeriesInstanceUID": f"1.2.{seed + 1}.1"}
    numbers = (numbers if study else dict.fromkeys(numbers, "")) | tags
    found = dicom_files.slices_of(head(seed), AFFINE, seed, PatientID=patient, **numbers)
    return {f"{folder}{name}": content for name, content in found.items()}


def write(root, files: dict[str, bytes]) -> str:
    """Write files below a folder, and return its name."""
    for path, content in files.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return str(root)


def write_zip(path, files: dict[str, bytes], separator: str = "/") -> str:
    """Write a `.zip`, on Windows with backslashes, and return its name."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            member = zipfile.ZipInfo("x")
            member.filename = name.replace("/", separator)  # of which zipfile would make slashes
            archive.writestr(member, content)
    return str(path)
