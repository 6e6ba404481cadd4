"""Copies among samples of one channel or several: sought in each channel and in all together, with one verdict.

N: images, K: validation images, C: channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mri_ddpm.errors import InputError

from .lazy import Images, plane
from .memorisation import (
    SEARCHES,
    CopyDetector,
    Embedding,
    Examination,
    share_under,
    surely_copies,
    taken_for_copies,
    verdict,
)


@dataclass(frozen=True, eq=False)
class ChannelExaminations:
    """What `ChannelDetectors.examine` found of N images.

    channels, joint: what each detector found; each takes 5 % of real images for copies.
    suspicion: float (N,), the least of all.
    flagged: bool (N,), the verdict, which takes 5 % of real images for copies too.
    index: int64 (N,), the training image that is nearest where the suspicion is least.
    """

    channels: tuple[Examination, ...]
    joint: Examination | None
    suspicion: np.ndarray
    flagged: np.ndarray
    index: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelDetectors:
    """A detector of copies for each channel, and where there are several one for all together.

    A patient may be copied in one channel alone, or a little in each. An image is as suspicious as the detector says that finds
    most. More detectors find more chance resemblances, so the limit is on that least suspicion: 5 % of validation scans lie
    under it, however many detectors there are, and however alike what they find.
    """

    channels: tuple[CopyDetector, ...]
    joint: CopyDetector | None

    @classmethod
    def fit(
        cls,
        training: Images,
        validation: Images,
        embeds: Sequence[Embedding | None],
        searches: Sequence[str] = tuple(SEARCHES),
    ) -> "ChannelDetectors":
        """Find how near the validation images come to training, in (M, C, H, W) and (K, C, H, W).

        embeds: for one more space, one a channel, of images (N, 1, H, W); `None` for none.
        searches: as of `CopyDetector.fit`, and errors too.
        """
        if not embeds:
            raise InputError("copies are looked for in contrasts, and the model draws masks alone.")
        channels = tuple(
            CopyDetector.fit(plane(training, i), plane(validation, i), embed, searches)
            for i, embed in enumerate(embeds)
        )
        several = len(embeds) > 1
        joint = CopyDetector.fit(training, validation, together(embeds), searches) if several else None
        return cls(channels, joint)

    def examine(self, images: Images) -> ChannelExaminations:
        """Find the nearest training image of each image (N, C, H, W) by each detector, and pass the verdict."""
        channels = tuple(detector.examine(plane(images, i)) for i, detector in enumerate(self.channels))
        joint = self.joint and self.joint.examine(images)
        found = [*channels, *([joint] if joint else [])]
        suspicions = np.stack([each.suspicion for each in found])  # (detectors, N)
        most = suspicions.argmin(0)
        index = np.stack([each.index for each in found])[most, np.arange(len(images))]
        suspicion = suspicions.min(0)
        copied = taken_for_copies(suspicion, self.validation_suspicion)
        return ChannelExaminations(channels, joint, suspicion, copied, index)

    @property
    def validation_suspicion(self) -> np.ndarray:
        """What `ChannelExaminations.suspicion` is of the validation images, float (K,)."""
        found = [*self.channels, *([self.joint] if self.joint else [])]
        return np.min([detector.validation_suspicion for detector in found], axis=0)


def audit_in_all(detectors: ChannelDetectors, found: ChannelExaminations) -> dict:
    """The verdict over all channels in numbers for JSON, as `memorisation.audit` has that of one."""
    validation = detectors.validation_suspicion
    return {
        "images": len(found.suspicion),
        "training_images": len(detectors.channels[0].training),
        "validation_images": len(validation),
        "validation_copies": surely_copies(validation, validation),
        "copies": verdict(found.suspicion, validation, found.index),
        "ratio_under_1st_percentile": share_under(found.suspicion, validation, 0.01),
    }


def together(embeds: Sequence[Embedding]) -> Embedding:
    """Features of all channels of an image, whose cosine is the mean of the channels'."""

    def embed(images: Images) -> np.ndarray:
        parts = [embed(plane(images, i)) for i, embed in enumerate(embeds)]
        return np.concatenate(
            [f / np.linalg.norm(f, axis=1, keepdims=True).clip(1e-12) for f in parts], axis=1
        )

    return embed
