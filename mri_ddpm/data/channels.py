"""What a scan's planes are: which are drawn, which are given, and which of them are masks.

A plane is one stored picture of a scan: a contrast, or a mask with the value of a label in each pixel. B: batch, P: planes,
H, W: the resolution.
"""

from dataclasses import dataclass, field

import numpy as np

from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import factor_of, label_values
from mri_ddpm.scan_options import ScanOptions

from .cache import DEPTH
from .masks import is_mask_name


@dataclass(frozen=True)
class Channels:
    """The names of ``--channels`` and ``--condition_on``.

    drawn: what a model learns to draw, in order; () for one contrast without a name.
    given: what it is given, in order; "lowres:4" is what is drawn, at a quarter of the resolution.
    mask_labels: of those that are masks.
    mask_values: what stands for each of these labels in the stored planes; as of `label_values` where it is not said.
    """

    drawn: tuple[str, ...] = ()
    given: tuple[str, ...] = ()
    mask_labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    mask_values: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        options: ScanOptions,
        mask_labels: dict[str, tuple[str, ...]] | None = None,
        mask_values: dict[str, tuple[int, ...]] | None = None,
    ) -> "Channels":
        """What is asked for, of a source that has these masks.

        Raises `InputError` for a mask at a lower resolution.
        """
        drawn, given = tuple(options.channels), tuple(options.condition_on)
        lowres = [name for name in given if factor_of(name) > 1]
        if lowres and drawn and is_mask_name(drawn[0]):
            raise InputError(
                f"--condition_on {lowres[0]} is of a contrast, and {drawn[0]} is a mask; name a contrast by --channels."
            )
        asked = {name: labels for name, labels in (mask_labels or {}).items() if name in (*drawn, *given)}
        return cls(drawn, given, asked, mask_values or {})

    @property
    def contrasts(self) -> tuple[str, ...]:
        """What is drawn and no mask."""
        return tuple(name for name in self.drawn or ("",) if name not in self.mask_labels)

    @property
    def contrast_channels(self) -> list[int]:
        """Which of the channels that are drawn are contrasts."""
        names = self.drawn or ("",)
        is_contrast = [name in self.contrasts for name in names for _ in range(self.width((name,)))]
        return np.flatnonzero(is_contrast).tolist()

    @property
    def planes(self) -> tuple[str, ...]:
        """The stored pictures of a scan by name, in order; "" is one without a name."""
        stored = (name for name in self.given if factor_of(name) == 1)
        return (*(self.drawn or ("",)), *stored)

    @property
    def values_by_label(self) -> dict[str, dict[str, int]]:
        """{mask: {name of a label: what stands for it in the files}}."""
        return {
            name: dict(zip(labels, self.mask_values.get(name) or label_values(labels), strict=True))
            for name, labels in self.mask_labels.items()
        }

    def width(self, names: tuple[str, ...]) -> int:
        """How many channels these names take: a mask one a label."""
        return sum(len(self.mask_labels.get(name, (name,))) for name in names)

    @property
    def label_channels(self) -> list[int]:
        """Which channels of a condition are labels of masks."""
        is_label = [name in self.mask_labels for name in self.given for _ in range(self.width((name,)))]
        return np.flatnonzero(is_label).tolist()

    def batch(self, stored: np.ndarray) -> dict[str, np.ndarray]:
        """Stored uint16 ``(B, P, H, W)`` as float32: ``pixel_values (B, C, H, W)`` and, where something is given, ``condition``."""
        planes = dict(zip(self.planes, np.moveaxis(stored, 1, 0), strict=True))
        drawn = stored[:, 0]
        names = {"pixel_values": self.drawn or ("",), "condition": self.given}
        parts = {
            part: [self._as_channels(name, planes.get(name, drawn)) for name in of_part]
            for part, of_part in names.items()
        }
        # One alone is not copied again
        return {
            name: part[0] if len(part) == 1 else np.concatenate(part, axis=1)
            for name, part in parts.items()
            if part
        }

    def by_name(self, condition: np.ndarray) -> dict[str, np.ndarray]:
        """A batch's condition ``(B, K, H, W)`` as the pipeline takes it: ``(B, H, W)`` each, a mask in values of labels.

        A lower resolution is as small as it is, ``(B, H / factor, W / factor)``.
        """
        found, start = {}, 0
        for name in self.given:
            width = self.width((name,))
            planes = condition[:, start : start + width]
            is_mask = name in self.mask_labels
            values = label_values(self.mask_labels[name]) if is_mask else [1]
            step = factor_of(name)
            numbers = (planes * np.array(values, dtype=np.float32)[:, None, None]).sum(1)
            found[name] = numbers[:, ::step, ::step]
            start += width
        return found

    def _as_channels(self, name: str, plane: np.ndarray) -> np.ndarray:
        """A stored plane ``(B, H, W)`` as float32: in [0, 1] ``(B, 1, H, W)``, or one-hot ``(B, labels, H, W)``."""
        if name in self.mask_labels:
            values = list(self.values_by_label[name].values())
            return (plane[:, None] == np.reshape(values, (-1, 1, 1))).astype(np.float32)
        unit = plane[:, None].astype(np.float32)
        unit /= DEPTH
        return coarse(unit, factor_of(name))


def coarse(images: np.ndarray, factor: int) -> np.ndarray:
    """Images ``(B, 1, H, W)`` with the mean of each factor x factor block in all of its pixels; the factor divides H and W."""
    if factor == 1:
        return images
    count, _, height, width = images.shape
    blocks = images.reshape(count, 1, height // factor, factor, width // factor, factor)
    means = blocks.mean(axis=(3, 5), keepdims=True)
    return np.broadcast_to(means, blocks.shape).reshape(images.shape)
