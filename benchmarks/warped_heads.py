"""Heads to try volumes on: one NIfTI head, warped anew for each made-up patient, as a BIDS folder.

    python -m benchmarks.warped_heads HEAD.nii.gz FOLDER --num_patients 40

Where nothing better is at hand: Colin27 is in Debian's package mricron-data (/usr/share/mricron/templates/ch2.nii.gz).
"""

import argparse
from pathlib import Path

import nibabel
import numpy as np
from scipy import ndimage

SMOOTH_MM, LARGEST_MM = 45.0, 6.0  # of the displacements


def warp(voxels: np.ndarray, spacing_mm: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """A head (X, Y, Z) moved by a smooth random field, a little larger or smaller, and of another brightness."""
    coarse = [max(4, round(n * mm / SMOOTH_MM)) for n, mm in zip(voxels.shape, spacing_mm, strict=True)]
    grid = np.indices(voxels.shape, dtype=np.float32)
    for axis, mm in enumerate(spacing_mm):
        field = ndimage.zoom(rng.uniform(-1, 1, coarse), np.divide(voxels.shape, coarse), order=3)
        middle = (voxels.shape[axis] - 1) / 2
        grid[axis] = middle + (grid[axis] - middle) * rng.uniform(0.93, 1.07) + field * (LARGEST_MM / mm)
    moved = ndimage.map_coordinates(voxels, grid, order=1)
    return moved.max() * (moved / moved.max()) ** rng.uniform(0.85, 1.15)


def main() -> None:
    parser = argparse.ArgumentParser(description="Warp one head into a BIDS folder of made-up patients.")
    parser.add_argument("head", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num_patients", type=int, default=40)
    args = parser.parse_args()
    image = nibabel.load(args.head)
    voxels = image.get_fdata(dtype=np.float32)
    for patient in range(args.num_patients):
        moved = warp(voxels, image.header.get_zooms()[:3], np.random.default_rng(patient))
        file = args.folder / f"sub-{patient:02d}" / "anat" / f"sub-{patient:02d}_T1w.nii.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(moved.astype(np.int16), image.affine), file)


if __name__ == "__main__":
    main()
