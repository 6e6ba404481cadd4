"""Many images in batches: checked before the first, and each the same whatever batch it is in."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMPipeline


def check_sampling(
    pipeline: MRIDDPMPipeline,
    class_label: str | int | None,
    *,
    num_images: int,
    batch_size: int,
    seed: int,
    num_inference_steps: int | None,
    guidance_scale: float,
) -> None:
    """Refuse what ``draw_batches`` cannot draw, before anything long starts.

    Raises:
        InputError: naming the flag or the class, and what there is.
    """
    for name, value, least in (
        ("num_images", num_images, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; take {least} or more.")
    try:
        pipeline.check_inputs(class_label, num_images, num_inference_steps, guidance_scale, None, "pil")
        pipeline.class_indices(class_label, num_images)
    except ValueError as error:
        raise InputError(str(error)) from error


def draw_batches(
    pipeline: MRIDDPMPipeline,
    labels: Sequence[str | int] | None,
    *,
    num_images: int,
    batch_size: int,
    seed: int,
    output_type: str = "pil",
    **chain,
) -> Iterator[tuple[range, list[Image.Image] | np.ndarray]]:
    """Draw with a progress bar; image i comes from seed + i, whatever its batch.

    Args:
        pipeline: the model.
        labels: one class an image; ``None`` draws without.
        num_images: how many.
        batch_size: how many at once.
        seed: of the first image.
        output_type: as of the pipeline.
        chain: ``num_inference_steps`` and ``guidance_scale``.

    Yields:
        The numbers of a batch's images, and the images.
    """
    pipeline.set_progress_bar_config(disable=True)
    with tqdm(total=num_images, desc="sampling", unit="image") as bar:
        for start in range(0, num_images, batch_size):
            numbers = range(start, min(start + batch_size, num_images))
            batch = labels[numbers.start : numbers.stop] if labels is not None else None
            generators = [torch.Generator().manual_seed(seed + i) for i in numbers]
            images = pipeline(
                batch, num_images=len(numbers), generator=generators, output_type=output_type, **chain
            ).images
            yield numbers, images
            bar.update(len(numbers))
