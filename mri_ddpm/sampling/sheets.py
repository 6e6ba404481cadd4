"""Pictures of the process: from scan to noise, and from noise to sample."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image, ImageDraw

from mri_ddpm.data import to_model_range, to_unit_range
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline
from mri_ddpm.sampling.batches import sample
from mri_ddpm.sampling.options import SamplingOptions

TILE = 72  # pixels a side of one image on a sheet
TITLE = 14  # pixels of the line over it
NOISE_STEPS = 6  # of the forward process, beside the scan
FILM_COLUMNS = 9
FILM_ROWS = 4
FRAMES, FRAME_MS, LAST_FRAME_MS = 60, 60, 2000


def save_noise_strip(scan: np.ndarray, scheduler: DDPMScheduler, path: Path, seed: int = 0) -> None:
    """Show the forward process on one scan ``(H, W)`` in [0, 1]: x_t at t = 0, T/6, ..., T, with the same noise.

    Over each x_t stands the share of the scan that is left, sqrt(alpha_bar_t) (Ho et al. 2020, equation 4).
    """
    x_0 = torch.from_numpy(to_model_range(scan))[None, None]  # (1, 1, H, W)
    noise = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    last = scheduler.config.num_train_timesteps
    steps = [round(i * last / NOISE_STEPS) for i in range(1, NOISE_STEPS + 1)]
    x_t = [scheduler.add_noise(x_0, noise, torch.tensor([t - 1])) for t in steps]
    signal = scheduler.alphas_cumprod.sqrt()
    titles = ["t=0  100%"] + [f"t={t}  {signal[t - 1]:.0%}" for t in steps]
    sheet(to_unit_range(torch.stack([x_0, *x_t])).numpy(), titles).save(path)


def save_film(
    pipeline: MRIDDPMBasePipeline,
    labels: Sequence | None,
    numbers: Sequence[int],
    options: SamplingOptions,
    files: Sequence[Path],
) -> None:
    """Show how the first of these images arise from noise, as a strip and a film (PNG and GIF).

    For each image, and each of its channels, the strip shows x_t above and the network's progressive estimate of the image
    below (Ho et al. 2020, section 4.3).
    """
    names = pipeline.channel_names or ("",)
    rows = numbers[: max(1, FILM_ROWS // len(names))]
    strip, film = files
    labels = [labels[i] for i in rows] if labels is not None else None
    pipeline.set_progress_bar_config(desc="film", unit="step", disable=False)
    sampled = sample(pipeline, labels, rows, options, output_type="pt", output_trajectory=True)
    calls = len(sampled.timesteps)
    both = [shown(pipeline, to_unit_range(x.float()).numpy()) for x in (sampled.x_t, sampled.x_0)]
    unit = np.stack(both, axis=3).reshape(
        calls, -1, 1, *both[0].shape[-2:]
    )  # (calls, B * channels * 2, 1, H, W)
    planes = pipeline.read_planes(sampled.by_channel, names, "image", sampled.x_0.shape[1:])
    image = shown(pipeline, torch.cat([*planes.values()], dim=1).numpy())  # (B, channels, H, W)
    final = image.reshape(-1, 1, *image.shape[-2:]).repeat(2, axis=0)[None]

    columns = np.unique(np.linspace(0, calls - 1, FILM_COLUMNS - 1).round().astype(int))
    titles = [f"t={sampled.timesteps[i] + 1:g}" for i in columns]
    sheet(np.concatenate([unit[columns], final]), [*titles, "image"]).save(strip)

    pairs = np.concatenate([unit, final]).reshape(calls + 1, -1, 2, *unit.shape[2:])
    pairs = pairs.swapaxes(1, 2)  # (calls + 1, 2, B * channels, 1, H, W): a frame is two columns
    moments = np.unique(np.linspace(0, calls, FRAMES).round().astype(int))
    frames = [sheet(pairs[i], ["x_t", "estimate"]) for i in moments]
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=durations, loop=0)


def shown(pipeline: MRIDDPMBasePipeline, unit: np.ndarray) -> np.ndarray:
    """Images ``(..., C, H, W)`` in [0, 1] as grey ones ``(..., channels, H, W)``: a mask's labels become steps from black to white."""
    found, start = [], 0
    for name in pipeline.channel_names or ("",):
        count = len(pipeline.mask_labels.get(name, (name,)))
        greys = np.arange(1, count + 1, dtype=np.float32)[:, None, None] / count
        found.append((unit[..., start : start + count, :, :] * greys).sum(-3))
        start += count
    return np.stack(found, axis=-3)


def sheet(images: np.ndarray, titles: Sequence[str]) -> Image.Image:
    """A picture of images ``(K, B, 1, H, W)`` in [0, 1]: B rows and K columns, with a title over each column."""
    k, b = images.shape[:2]
    picture = Image.new("L", (k * TILE, b * TILE + TITLE), 255)
    write = ImageDraw.Draw(picture)
    for column in range(k):
        write.text((column * TILE + 2, 1), titles[column], fill=0)
        for row in range(b):
            picture.paste(tile(images[column, row]), (column * TILE, row * TILE + TITLE))
    return picture


def tile(image: np.ndarray) -> Image.Image:
    """``(1, H, W)`` in [0, 1] -> a picture of ``TILE`` pixels, enlarged without smoothing."""
    levels = np.round(np.clip(image[0], 0, 1) * 255).astype(np.uint8)
    return Image.fromarray(levels).resize((TILE, TILE), Image.Resampling.NEAREST)
