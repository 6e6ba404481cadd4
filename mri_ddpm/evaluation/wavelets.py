"""Features of images without a network: the energies of wavelets, whatever the brightness.

A wavelet scattering transform of two layers (Bruna & Mallat 2013, arXiv:1203.1513) beside a coarse picture, whitened on
the training scans. Nothing is learned but their mean and principal components. B: batch, H' and W': with a margin.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.lazy import Images, blocks

COMPONENTS = 48
SCALES, ORIENTATIONS = 3, 6
GRID, COARSE_GRID = 4, 6  # cells a side over which energies and the picture itself are averaged
WHITE = 0.98  # this share of an image's pixels is darker than what counts as its white
DARKEST_WHITE = 0.02  # a black image is not lifted until its noise is bright
BRIGHTEST = 1.5  # times white; a few glaring pixels say no more than that
MARGIN = 8  # mirrored pixels on each side, where the coarsest wavelets reach over the border
LEAST_SIDE = 16
BATCH = 64


@dataclass(frozen=True, eq=False)
class WaveletFeatures:
    """Images ``(N, 1, H, W)`` float32 in [0, 1] -> ``(N, 48)`` float64, of mean 0 and covariance 1 over the training scans.

    Each image is divided by its 98th percentile, so brightness says nothing. Then three groups of numbers, each given the
    same weight: energies of wavelets at three scales and six orientations on a 4 x 4 grid, means of a second layer
    (wavelets of the first's moduli), and the image itself on a 6 x 6 grid. Of energies the square roots are taken, so
    that a few strong edges do not hide the rest.

    It sees blur, noise, wrong texture and wrong shape. Blind to brightness, to copying, and to what is smaller than a cell
    and has the texture of its surroundings.
    """

    means: tuple[np.ndarray, ...]  # by group, (D_g,)
    scales: tuple[float, ...]
    whitening: np.ndarray  # (D, 48)
    name = "wavelets"

    @classmethod
    def fit(cls, training: Images) -> "WaveletFeatures":
        """Whiten on the training scans; of N of them there are at most N - 1 components.

        Raises `InputError` for images under 16 pixels, and for fewer than two different ones.
        """
        groups = _groups(training)
        means = tuple(group.mean(axis=0) for group in groups)
        scales = tuple(float(np.sqrt(group.var(axis=0).sum())) for group in groups)
        if len(training) < 2 or min(scales) == 0:
            raise InputError("The training scans are all alike: wavelet features need different ones.")
        flat = _flat(groups, means, scales)
        _, singular, components = np.linalg.svd(flat, full_matrices=False)
        kept = min(COMPONENTS, int((singular > 1e-6 * singular[0]).sum()))
        deviations = singular[:kept] / np.sqrt(len(flat) - 1)
        return cls(means, scales, components[:kept].T / deviations)

    def __call__(self, images: Images) -> np.ndarray:
        return _flat(_groups(images), self.means, self.scales) @ self.whitening


def _flat(groups: list[np.ndarray], means: tuple[np.ndarray, ...], scales: tuple[float, ...]) -> np.ndarray:
    parts = zip(groups, means, scales, strict=True)
    return np.concatenate([(group - mean) / scale for group, mean, scale in parts], axis=1)  # (N, D)


def _groups(images: Images) -> list[np.ndarray]:
    """Roots of first energies ``(N, 288)``, of second energies ``(N, 108)``, and the coarse pictures ``(N, 36)``."""
    if min(images.shape[2:]) < LEAST_SIDE:
        raise InputError(
            f"The images are {images.shape[2:]} pixels: wavelet features take {LEAST_SIDE} a side or more."
        )
    batches = (torch.from_numpy(block.astype(np.float32)) for block in blocks(images, BATCH))
    found = zip(*(_scattering(_normalised(batch)) for batch in batches), strict=True)
    first, second, coarse = (torch.cat(parts).flatten(1).double().numpy() for parts in found)
    return [np.sqrt(first), np.sqrt(second), coarse]


def _normalised(images: torch.Tensor) -> torch.Tensor:
    white = images.flatten(1).quantile(WHITE, dim=1).clamp(min=DARKEST_WHITE)
    return (images / white[:, None, None, None]).clamp(max=BRIGHTEST)


def _scattering(images: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Mean moduli by cell ``(B, J L, 4, 4)``, those of the second layer ``(B, 3 L^2)``, cells ``(B, 1, 6, 6)``."""
    height, width = images.shape[2:]
    margins = (MARGIN, MARGIN + width % 2, MARGIN, MARGIN + height % 2)  # even in all
    padded = F.pad(images, margins, mode="reflect")
    filters = morlet_wavelets(*padded.shape[2:])  # (J, L, H', W')
    moduli = torch.fft.ifft2(torch.fft.fft2(padded)[:, None] * filters).abs()  # (B, J, L, H', W')
    first = moduli[..., MARGIN : MARGIN + height, MARGIN : MARGIN + width].flatten(1, 2)
    second = []
    for scale in range(SCALES - 1):
        spectra = torch.fft.fft2(moduli[:, scale])  # (B, L, H', W')
        # Only coarser wavelets: a modulus varies more slowly than its wave.
        for coarser in filters[scale + 1 :].flatten(0, 1):
            # A mean needs but every other pixel, whose spectrum is the folded one: four times as fast.
            folded = (spectra * coarser).unflatten(3, (2, -1)).sum(3).unflatten(2, (2, -1)).sum(2) / 4
            again = torch.fft.ifft2(folded).abs()[..., MARGIN // 2 :, MARGIN // 2 :]
            second.append(again[..., : (height + 1) // 2, : (width + 1) // 2].mean((2, 3)))  # (B, L)
    return (
        F.adaptive_avg_pool2d(first, GRID),
        torch.cat(second, 1),
        F.adaptive_avg_pool2d(images, COARSE_GRID),
    )


@cache
def morlet_wavelets(height: int, width: int) -> torch.Tensor:
    """Fourier transforms of Morlet wavelets, real ``(J, L, H, W)`` for J scales, the finest first, and L orientations.

    A wave of 3/4 pi 2^-j radians a pixel under a Gaussian of 0.8 2^j pixels along it and 1.5 times that across, less as
    much of the Gaussian as makes the mean 0 (Bruna & Mallat 2013, section 2.1; constants of Kymatio, arXiv:1812.11214).
    """
    v, u = (2 * np.pi * np.fft.fftfreq(side) for side in (height, width))
    # A sampled wavelet's spectrum repeats: what passes Nyquist comes back at the other end.
    around = 2 * np.pi * np.array([-1, 0, 1])
    v, u = (v + around[:, None])[:, None, :, None], (u + around[:, None])[None, :, None, :]

    def gaussian(frequency: float, sigma: float, angle: float) -> np.ndarray:
        along = np.cos(angle) * u + np.sin(angle) * v - frequency
        across = np.cos(angle) * v - np.sin(angle) * u
        return np.exp(-(sigma**2) / 2 * (along**2 + (1.5 * across) ** 2)).sum((0, 1))  # (H, W)

    wavelets = np.empty((SCALES, ORIENTATIONS, height, width))
    for scale in range(SCALES):
        for turn in range(ORIENTATIONS):
            shape = (0.8 * 2**scale, np.pi * turn / ORIENTATIONS)
            wave, bump = gaussian(0.75 * np.pi / 2**scale, *shape), gaussian(0.0, *shape)
            wavelets[scale, turn] = wave - bump * wave[0, 0] / bump[0, 0]
    return torch.from_numpy(wavelets).float()
