"""Which scans, and how they are read: what `data`, the training and the evaluation are told alike."""

import re
from dataclasses import dataclass
from typing import Literal

from mri_ddpm.errors import InputError
from mri_ddpm.fields import about, refuse_wrong_fields

MIN_RESOLUTION = 16  # pixels a side
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ScanOptions:
    """Which scans, and how they are read, grouped and split: what `data.load_scans`, the training and `mri-ddpm data` are told.

    Raises:
        InputError: when a number is out of range, a word is unknown, or two do not go together.
    """

    train_data_dir: str | None = about(
        None,
        "Folder or .zip of scans: class folders, train/val/test, or flat. Without it or --dataset_name, the phantom.",
    )
    dataset_name: str | None = about(None, "Data set on the Hub, or a local one, for datasets.load_dataset.")
    dataset_config_name: str | None = about(None, "Configuration of --dataset_name.", needs="dataset_name")
    image_column: str = about("image", "Image column of --dataset_name.", needs="dataset_name")
    label_column: str = about(
        "label",
        "Class column of --dataset_name, of metadata.csv or of participants.tsv; '' for scans without classes.",
        needs="train_data_dir dataset_name",
    )
    patient_pattern: str | None = about(
        None,
        "Regular expression that finds a scan's patient in its path: what its group matches, or all that it matches.",
        needs="train_data_dir",
    )
    resolution: int = about(64, "Pixels a side.", least=MIN_RESOLUTION)
    fit: Literal["pad", "crop", "stretch"] = about("pad", "How a scan becomes square.")
    validation_share: float = about(
        0.1,
        "Share of the scans for validation, where there is no validation folder; by patient, group of copies, and class.",
        over=0,
        under=1,
    )
    keep_repeats: bool = about(False, "Train on identical and near-identical copies too.")
    contrast: str | None = about(
        None,
        "Contrast to train on, where there are several: t1, t1ce, t2, flair, pd, dwi.",
        needs="train_data_dir dataset_name",
    )
    channels: list[str] = about(
        [],
        "What is drawn together, of one head: contrasts, and seg for its mask, such as t1 t2. One image when not given.",
    )
    condition_on: list[str] = about(
        [],
        "What the model is given beside the noise: contrasts, seg for the mask of the head, or lowres:4 for what is drawn at a "
        "quarter of the resolution.",
    )
    plane: Literal["axial", "coronal", "sagittal", "all"] = about("axial", "Plane of the slices of volumes.")
    slices: Literal["all", "with_mask", "without_mask"] = about(
        "all", "Which slices, by the masks beside volumes."
    )
    slice_range: list[float] = about(
        [0.0, 1.0],
        "From where to where slices of volumes are taken, as shares from left, posterior or inferior.",
        least=0,
        most=1,
    )
    slice_step_mm: float | None = about(None, "Least distance of the slices of a volume.", over=0)
    min_head: float = about(
        0.5,
        "Least area of head in a slice, as a share of the largest in its volume.",
        least=0,
        most=1,
    )
    max_spacing_mm: float = about(
        3.0, "Coarsest pixels of a plane that was not acquired, but reformatted from thicker slices.", over=0
    )
    field_of_view_mm: float | None = about(
        None, "Side of every slice of a volume, so that all heads have one scale; such as 240.", over=0
    )
    intensity: Literal["percentiles", "window", "full_range"] = about(
        "percentiles",
        "What is black and white in a volume: percentiles, its file's window, or its full range.",
    )
    volume_index: int | None = about(
        None, "Which volume of files that hold several, from 0; the first when not given.", least=0
    )
    assume_orientation: Literal["RAS"] | None = about(
        None, "RAS, for NIfTI files that do not say how the head lies."
    )
    on_bad_image: Literal["error", "skip"] = about(
        "error", "What to do with files that are no readable image."
    )
    cache_dir: str | None = about(
        None, "Where decoded scans are kept; the datasets library's cache when not given."
    )
    seed: int = about(0, "Seed of all random numbers: the split, weights, noise.", least=0)

    def __post_init__(self):
        refuse_wrong_fields(self)
        if self.train_data_dir and self.dataset_name:
            raise InputError("--train_data_dir and --dataset_name are both given; give one of them.")
        lowres = [name for name in self.condition_on if name.partition(":")[0] == "lowres"]
        for name in lowres:
            self._refuse_wrong_lowres(name)
        if self.channels and self.contrast:
            raise InputError(
                f"--channels and --contrast {self.contrast} are both given; --channels names the contrasts already."
            )
        for flag in ("channels", "condition_on"):
            names = [name for name in getattr(self, flag) if name not in lowres]
            if odd := [name for name in names if not name.replace("_", "").isalnum()]:
                raise InputError(
                    f"--{flag} {odd[0]!r} is no name of a contrast or mask; take words, such as t1 or seg."
                )
        names = [*self.channels, *self.condition_on]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise InputError(
                f"{repeated[0]} is named twice by --channels and --condition_on; it is drawn or given, so name it once."
            )
        if len(self.slice_range) != 2 or self.slice_range[0] >= self.slice_range[1]:
            words = " ".join(map(str, self.slice_range))
            raise InputError(f"--slice_range is {words}; take two numbers, the lower first, such as 0.3 0.8.")
        if self.seed > LARGEST_SEED:
            raise InputError(f"--seed is {self.seed}; take at most {LARGEST_SEED}.")

    def _refuse_wrong_lowres(self, name: str) -> None:
        found = re.fullmatch(r"lowres:([1-9]\d{0,4})", name)
        factor = int(found[1]) if found else 1
        if factor == 1:
            raise InputError(
                f"--condition_on {name} is no lower resolution; write a factor, such as lowres:4."
            )
        if self.resolution % factor:
            raise InputError(
                f"--condition_on {name} does not divide --resolution {self.resolution}; take a factor that does."
            )
        if len(self.channels) > 1:
            raise InputError(
                f"--condition_on {name} is of one contrast, and --channels draws {', '.join(self.channels)}; name one."
            )
