"""Which files are masks, by their names, and whose; and what their labels are called."""

import itertools
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from mri_ddpm.errors import InputError

from .reading.contrasts import contrast_of_name, without_contrast

PLAIN = {"image", "images", "img", "imgs", "scan", "scans", "slice", "slices", "data", "dataset", "set"}
PART_OF = {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}
PART_OF |= {part: part for part in ("training", "validation", "testing")}
PART_OF |= {"imagestr": "training", "imagests": "testing"}  # of Decathlon and nnU-Net
_MASKS = {"mask", "masks", "seg", "dseg", "segmentation", "segmentations", "labelstr", "labelsts"}
_DRAWN = {  # in a scan called as the rest is
    "lesion", "lesions", "roi", "rois", "label", "labels", "tumor", "tumour",
}  # fmt: skip
MOST_LABELS = 200  # each is a channel; more values are those of a scan. Atlases have 116 (AAL) or 166 (AAL3)
_PART_ALONE = {"imagestr": "tr", "labelstr": "tr", "imagests": "ts", "labelsts": "ts"}


def is_mask_name(name: str) -> bool:
    """Whether a channel of this name is a mask, such as `seg`."""
    return name.casefold() in _MASKS


def stem_of(path: PurePosixPath) -> str:
    """The name of a file without its suffix, `.nii.gz` too."""
    return nifti_stem(path) if nifti_stem(path) != path.name else path.stem


def nifti_stem(path: PurePosixPath) -> str:
    """The name of a file without the suffix of a volume."""
    return re.sub(r"\.(nii|hdr|img)(\.gz)?$", "", path.name, flags=re.IGNORECASE)


def words_of(name: str) -> list[str]:
    """The words of a name in lower case, without numbers."""
    return re.findall(r"[^\W\d_]+", name.casefold())


class Masks:
    """The masks among files, by where they lie and what they are called."""

    def __init__(self, paths: Iterable[PurePosixPath]) -> None:
        paths = list(paths)
        stems = {path.with_name(nifti_stem(path)) for path in paths}
        found = (path for path in paths if _is_mask(path) or _marks_another(path, stems))
        self.paths = sorted(found, key=str)
        self._scans = defaultdict(list)
        for path in {*paths} - {*self.paths}:
            self._scans[path.parent].append(stem_of(path))
        self._heads: dict[PurePosixPath, dict[str | None, set]] = {}
        self._beside, self._called, self._apart = (defaultdict(list) for _ in range(3))
        for path in self.paths:
            stem = stem_of(path)
            base = _base(stem)
            self._beside[path.parent].append(path)
            self._called[path.parent, base].append(path)
            called = {stem, base} if is_mask_name(stem[len(base) + 1 :]) else {stem}
            for key in itertools.product({path.parent.parent, _place(path)}, called):
                self._apart[key].append(path)

    def of(self, path: PurePosixPath, is_alone: bool) -> PurePosixPath | None:
        """The mask of a scan: called as it is in a folder of masks, or beside it as NAME_seg; or the only one in its folder.

        None that is called more like another scan there, as that of another visit is.
        is_alone: whether all scans in its folder are of one patient.
        """
        stem = stem_of(path)
        ends = [len(stem), *(at.start() for at in re.finditer(r"[^A-Za-z0-9]", stem))]
        beginnings = [stem[:end] for end in sorted(ends, reverse=True)]
        numbered = re.sub(r"_\d{4}$", "", stem)  # as nnU-Net has it
        names = beginnings if contrast_of_name(stem) else (stem, numbered)
        apart = ((name, self._named(path, name)) for name in names)
        beside = ((name, self._called.get((path.parent, name))) for name in beginnings)
        both = itertools.chain(apart, beside if path.parent in self._beside else ())
        fitting = (masks for name, masks in both if masks and not self._is_of_another(path, name))
        found = next(fitting, None) or (self._only_one(path) if is_alone else ())
        return next(iter(found)) if len(found) == 1 else None

    def _named(self, path: PurePosixPath, name: str) -> set[PurePosixPath]:
        """The masks of this name in folders beside that of a scan."""
        places = path.parent.parent, _place(path)
        found = {mask for place in places for mask in self._apart.get((place, name), ())}
        return {mask for mask in found if mask.parent != path.parent}

    def _is_of_another(self, path: PurePosixPath, name: str) -> bool:
        """Whether another scan of the same contrast in the folder of one is called so, as `s0` beside `s0_2`."""
        stem, head = stem_of(path), _head(name)
        return head != _head(stem) and head in self._heads_in(path.parent)[contrast_of_name(stem)]

    def _only_one(self, path: PurePosixPath) -> list[PurePosixPath]:
        """The only mask beside a scan, unless it has more words in common with another, as one of another visit has."""
        masks = self._beside.get(path.parent, [])
        if len(masks) != 1 or self._is_of_another(path, _base(stem_of(masks[0]))):
            return []
        heads, words = set().union(*self._heads_in(path.parent).values()), _head(stem_of(masks[0]))
        shared = {head: len(os.path.commonprefix([head, words])) for head in heads}
        return masks if shared[_head(stem_of(path))] == max(shared.values()) else []

    def _heads_in(self, folder: PurePosixPath) -> dict[str | None, set[tuple[str, ...]]]:
        """{contrast: what the scans of a folder are called but for it}."""
        if folder not in self._heads:
            self._heads[folder] = defaultdict(set)
            for stem in self._scans[folder]:
                self._heads[folder][contrast_of_name(stem)].add(_head(stem))
        return self._heads[folder]


def _base(name: str) -> str:
    """The name of a mask less the word that says what it is."""
    return re.sub(r"[^A-Za-z0-9]+[A-Za-z]+$", "", name)


def _head(name: str) -> tuple[str, ...]:
    """The words and numbers of a name less those that say its contrast."""
    return tuple(re.findall(r"[^\W_]+", without_contrast(name)))


def _marks_another(path: PurePosixPath, stems: set[PurePosixPath]) -> bool:
    """Whether a file is called as another one is, and what is drawn in it: `7_lesion.nii.gz` beside `7.nii.gz`."""
    name = stem_of(path)
    head, _, last = name.replace("-", "_").rpartition("_")
    return last.casefold() in _DRAWN and head != "" and path.with_name(name[: len(head)]) in stems


def _is_mask(path: PurePosixPath) -> bool:
    """A segmentation: the last word of its name says so, as in `7_mask.png`, or a folder of it, as `train_masks`."""
    folders = (set(words_of(folder)) - PLAIN - PART_OF.keys() for folder in path.parts[:-1])
    last = words_of(stem_of(path))[-1:]
    return not _MASKS.isdisjoint(last) or any(words and words <= _MASKS for words in folders)


def _place(path: PurePosixPath) -> tuple[str, ...]:
    """The folders of a file less what says that scans or masks are in them: `val_masks/a` is as `val_images/a`."""
    folders = []
    for folder in path.parts[:-1]:
        words = re.findall(r"[^\W_]+", folder.casefold())
        words = [_PART_ALONE.get(word, word) for word in words]
        folders.append(" ".join(word for word in words if word not in PLAIN | _MASKS))
    return tuple(filter(None, folders))


def named_labels(
    found: dict[str, Counter[int]], names: dict[int, str], source: str
) -> dict[str, dict[str, int]]:
    """{mask: {name: value}} of all values that masks hold, in rising order.

    found: {mask: {value: number of scans that show it}}.
    names: those that are known, as of `dataset.json`. They count where the values are 1, 2, ...; other labels are called by their
        values, so that each mask in a file means the same when it is given to a model. A lone 255 is called 1.
    Raises `InputError` where a mask has too many values for labels, or none.
    """
    labels = {}
    for mask, counts in found.items():
        values = sorted(counts)
        if len(values) > MOST_LABELS:
            raise InputError(
                f"{mask} of {source} holds {len(values)} values, too many for labels (at most {MOST_LABELS}), of which each"
                " takes a channel of the network: join labels to fewer."
            )
        if not values:
            raise InputError(f"{mask} of {source} is empty in every scan: give masks that mark something.")
        numbers = ["1"] if values == [255] else [str(value) for value in values]
        called = [re.sub(r"[^A-Za-z0-9_.-]+", "_", names.get(value, str(value))) for value in values]
        is_told = values == [*range(1, len(values) + 1)] and len(set(called)) == len(called)
        labels[mask] = dict(zip(called if is_told else numbers, values, strict=True))
    return labels
