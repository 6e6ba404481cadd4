"""Two contrasts drawn together, a mask and a third contrast given beside them: names, planes and a network for tests."""

import numpy as np
import torch

from mri_ddpm.data import Channels

SEG = {"seg": ("core", "oedema")}
BOTH = Channels(("t1", "t2"), ("seg", "flair"), SEG)
NAMED = {
    "in_channels": 6, "out_channels": 2, "num_class_embeds": 2, "class_names": ("a", "b"),
    "channel_names": BOTH.drawn, "condition_names": BOTH.given, "mask_labels": SEG,
}  # fmt: skip


def stored(count: int = 5, side: int = 16) -> np.ndarray:
    """Planes of ``BOTH``, ``(B, P, H, W)``."""
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 65536, (count, 4, side, side)).astype(np.uint16)
    planes[:, 2] = rng.integers(0, 3, (count, side, side))
    return planes


def batch_of_both(count: int = 5) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in BOTH.batch(stored(count)).items()}
