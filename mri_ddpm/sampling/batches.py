"""Many images in batches: checked before the first, and each the same whatever batch it is in."""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import psutil
import torch
from accelerate.utils import find_executable_batch_size
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from mri_ddpm.config import AUTO
from mri_ddpm.errors import InputError
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline

LARGEST_BATCH = {"cpu": 64}  # beyond it a CPU gains nothing
LARGEST_BATCH_ELSEWHERE = 1024
MAX_SEED = 2**63 - 1


def check_sampling(
    pipeline: MRIDDPMBasePipeline,
    class_label: str | int | None,
    *,
    num_images: int,
    batch_size: int | str,
    seed: int,
    num_inference_steps: int | None,
    guidance_scale: float,
    **chain,
) -> None:
    """Refuse what ``draw_batches`` cannot draw, before anything long starts.

    Raises:
        InputError: naming the flag or the class, and what there is.
    """
    for name, value, least in (
        ("num_images", num_images, 1),
        ("batch_size", 1 if batch_size == AUTO else batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"--{name} is {value}; take {least} or more.")
    if seed + num_images > MAX_SEED:
        raise InputError(f"--seed is {seed}; with {num_images} images take at most {MAX_SEED - num_images}.")
    try:
        pipeline.check_inputs(
            class_labels=class_label, num_images=num_images, num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale, **chain,
        )  # fmt: skip
    except ValueError as error:
        raise InputError(str(error)) from error


def draw_batches(
    pipeline: MRIDDPMBasePipeline,
    labels: Sequence[str | int] | None,
    *,
    num_images: int,
    batch_size: int | str,
    seed: int,
    done: Container[int] = (),
    **chain,
) -> Iterator[tuple[range, list[Image.Image] | np.ndarray]]:
    """Draw with a progress bar; image i comes from seed + i, whatever its batch.

    Args:
        pipeline: the model.
        labels: one class an image; ``None`` draws without.
        num_images: how many.
        batch_size: how many at once; ``"auto"`` for as many as fit into memory.
        seed: of the first image.
        done: numbers of images that are there already; a batch of nothing else is passed over.
        chain: further arguments of the pipeline: ``num_inference_steps``, ``guidance_scale``, ``output_type``, ...

    Yields:
        The numbers of a batch's images, and the images.

    Raises:
        InputError: when the network's predictions are not finite.
    """
    if batch_size == AUTO:
        batch_size = batch_size_that_fits(pipeline, labels, num_images, **chain)
    one_batch = num_images <= batch_size  # then its steps are counted, and else images
    pipeline.set_progress_bar_config(desc="sampling", unit="step", disable=not one_batch)
    with tqdm(total=num_images, desc="sampling", unit="image", disable=one_batch) as bar:
        for start in range(0, num_images, batch_size):
            numbers = range(start, min(start + batch_size, num_images))
            if not all(i in done for i in numbers):
                batch = labels[numbers.start : numbers.stop] if labels is not None else None
                yield numbers, images_of(pipeline, batch, numbers, seed, **chain)
            bar.update(len(numbers))


def images_of(
    pipeline: MRIDDPMBasePipeline, labels: Sequence | None, numbers: Sequence[int], seed: int, **chain
):
    """Draw the images of these numbers, image i from seed + i.

    Raises:
        InputError: for what only drawing shows, such as predictions that are not finite.
    """
    try:
        seeded = generators(seed, numbers)
        return pipeline(labels, num_images=len(numbers), generator=seeded, **chain).images
    except ValueError as error:
        raise InputError(str(error)) from error


def generators(seed: int, numbers: Sequence[int]) -> list[torch.Generator]:
    """One generator an image, of seed + its number."""
    return [torch.Generator().manual_seed(seed + i) for i in numbers]


def batch_size_that_fits(
    pipeline: MRIDDPMBasePipeline, labels: Sequence | None, num_images: int, **chain
) -> int:
    """How many images to draw at once: at most half of the free memory by estimate, and fewer where one step fails."""
    pipeline.set_progress_bar_config(disable=True)
    device = pipeline.device.type
    dearest = {"num_inference_steps": 1, "output_type": "pt", "guidance_start": 0.0, "guidance_end": 1.0}
    one = {**chain, **dearest, **({"jump_n_sample": 1} if "mask_image" in chain else {})}
    with activation_bytes(pipeline.unet) as each:
        images_of(pipeline, labels[:1] if labels else None, range(1), 0, **one)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    largest = min(LARGEST_BATCH.get(device, LARGEST_BATCH_ELSEWHERE), free // (2 * max(1, sum(each))))

    @find_executable_batch_size(starting_batch_size=max(1, largest))
    def try_one_step(batch_size: int) -> int:
        tried = range(min(batch_size, num_images))
        batch = [labels[0]] * len(tried) if labels else None
        images_of(pipeline, batch, tried, 0, **one)
        return batch_size

    return try_one_step()


@contextmanager
def activation_bytes(network: nn.Module) -> Iterator[list[int]]:
    """Bytes that each layer of a network gives out while the block runs: in sum more than are ever held at once."""
    sizes: list[int] = []
    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [
        leaf.register_forward_hook(lambda _, __, output: sizes.append(output.nbytes)) for leaf in leaves
    ]
    try:
        yield sizes
    finally:
        for handle in handles:
            handle.remove()
