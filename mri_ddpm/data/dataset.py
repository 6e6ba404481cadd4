"""Scans as a PyTorch data set, straight from the memory-mapped Arrow table, or held in memory.

B: batch, H, W: the resolution.
"""

from collections.abc import Sequence
from math import isqrt

import datasets
import numpy as np
import torch

from .cache import DEPTH
from .channels import Channels

AT_ONCE = 256  # images that are read to be held, so that they are not twice in memory


class ScanDataset(torch.utils.data.Dataset):
    """Items {"pixel_values": float32 (C, H, W) in [0, 1], "class_labels": int64 ()}; nothing random happens here.

    Where something is given they also have "condition": float32 (K, H, W), see `Channels.batch`.

    table: has a column "pixels", uint16 (H * W,): contrasts in 0..65535, masks in values of labels.
    rows: where in it the planes of each scan are, (N, P), or (N,) for scans of one.
    class_labels: int64, one for every scan.
    channels: what the planes are.
    """

    def __init__(
        self,
        table: datasets.Dataset,
        rows: np.ndarray,
        class_labels: np.ndarray,
        channels: Channels | None = None,
    ) -> None:
        self.class_labels, self.channels = np.asarray(class_labels, dtype=np.int64), channels or Channels()
        rows = np.asarray(rows, dtype=np.int64)
        self._table, self._rows = table, rows if rows.ndim == 2 else rows[:, None]
        chunks = table.data.column("pixels").chunks
        self._starts = np.cumsum([0, *map(len, chunks)])
        # Views into the memory map, (rows of the chunk, H, W): nothing is read before it is asked for.
        self._chunks = [_pixels(chunk) for chunk in chunks]
        self._held: dict[str, torch.Tensor] | None = None

    def __reduce__(self) -> tuple:
        """Worker processes map the table again instead of getting a copy of its pixels."""
        return (ScanDataset, (self._table, self._rows, self.class_labels, self.channels))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict]:
        """What a DataLoader asks for: all items of a batch at once."""
        batch = self.batch(indices)
        return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]

    def batch(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """{"pixel_values": float32 (B, C, H, W) in [0, 1], "class_labels": int64 (B,)}, in the order asked for.

        And "condition": float32 (B, K, H, W), where something is given.
        """
        if self._held:
            chosen = torch.as_tensor(indices, device=self._held["class_labels"].device)
            return {name: tensor[chosen] for name, tensor in self._held.items()}
        indices = np.asarray(indices)
        rows = self._rows[indices]  # (B, P)
        chunk = np.searchsorted(self._starts, rows, side="right") - 1
        places = zip(chunk.ravel(), (rows - self._starts[chunk]).ravel(), strict=True)
        stored = np.stack([self._chunks[c][r] for c, r in places])  # (B * P, H, W)
        images = self.channels.batch(stored.reshape(*rows.shape, *stored.shape[1:]))
        return {
            **{name: torch.from_numpy(array) for name, array in images.items()},
            "class_labels": torch.from_numpy(self.class_labels[indices]),
        }

    def marked(self) -> dict[str, np.ndarray]:
        """Whether a scan's mask shows any label, bool (N,), by the names of the masks that are given."""
        masks = [name for name in self.channels.given if name in self.channels.mask_labels]
        found = {name: np.zeros(len(self), dtype=bool) for name in masks}
        for start in range(0, len(self) if found else 0, AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(self)))
            known = self.channels.by_name(self.batch(rows)["condition"].cpu().numpy())
            for name, of_scan in found.items():
                of_scan[start : start + AT_ONCE] = known[name].any(axis=(1, 2))
        return found

    def with_more(self, images: np.ndarray, class_labels: np.ndarray, times: int = 1) -> "ScanDataset":
        """The same scans of one plane, so many times, and after them images ``(N, H, W)`` of 8 bits with their classes."""
        stored = np.round(images.reshape(len(images), -1) * (DEPTH / 255)).astype(np.uint16)
        features = datasets.Features({"pixels": self._table.features["pixels"]})
        more = datasets.Dataset.from_dict({"pixels": stored}, features=features)
        table = datasets.concatenate_datasets([self._table.select_columns("pixels"), more])
        rows = np.concatenate([*[self._rows] * times, len(self._table) + np.arange(len(images))[:, None]])
        labels = np.concatenate([*[self.class_labels] * times, class_labels])
        return ScanDataset(table, rows, labels, self.channels)

    def only(self, name: str) -> "ScanDataset":
        """The same scans as one would draw this channel of them alone; what is held elsewhere is read from the table."""
        labels = {key: value for key, value in self.channels.mask_labels.items() if key == name}
        alone = Channels((name,) if name else (), (), labels, self.channels.mask_values)
        at = self.channels.planes.index(name)
        return ScanDataset(self._table, self._rows[:, [at]], self.class_labels, alone)

    @property
    def nbytes(self) -> int:
        """Bytes of all that `batch` would give, images as float32."""
        return len(self) * sum(tensor.nbytes for tensor in self.batch([0]).values()) if len(self) else 0

    @property
    def side(self) -> int:
        """Pixels a side of an image."""
        return self._chunks[0].shape[-1]

    def hold(self, device: torch.device | str) -> None:
        """Keep all images on a device, from where batches are then taken: for data sets that are small beside it."""
        held = {
            name: torch.empty((len(self), *tensor.shape[1:]), dtype=tensor.dtype, device=device)
            for name, tensor in self.batch([0]).items()
        }
        for start in range(0, len(self), AT_ONCE):
            rows = range(start, min(start + AT_ONCE, len(self)))
            for name, tensor in self.batch(rows).items():
                held[name][start : start + AT_ONCE] = tensor
        self._held = held


def _pixels(chunk) -> np.ndarray:
    """An Arrow array of fixed-size lists as a numpy view (rows, H, W)."""
    flat = chunk.flatten().to_numpy(zero_copy_only=True)
    side = isqrt(len(flat) // max(len(chunk), 1))
    return flat.reshape(len(chunk), side, side)
