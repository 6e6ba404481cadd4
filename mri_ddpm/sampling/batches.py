"""Many images in batches: each image is the same whatever batch it is in."""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import psutil
import torch
from accelerate.utils import find_executable_batch_size
from torch import nn
from tqdm.auto import tqdm

from mri_ddpm.errors import InputError
from mri_ddpm.fields import AUTO
from mri_ddpm.pipelines.pipeline_mri_ddpm import MRIDDPMBasePipeline, MRIDDPMPipelineOutput
from mri_ddpm.sampling.options import SamplingOptions

LARGEST_BATCH = {"cpu": 64}  # beyond it a CPU gains nothing
LARGEST_BATCH_ELSEWHERE = 1024


def sample_batches(
    pipeline: MRIDDPMBasePipeline,
    labels: Sequence[str | int] | None,
    num_images: int,
    options: SamplingOptions,
    *,
    done: Container[int] = (),
    output_type: str = "pil",
    condition: dict[str, np.ndarray] | None = None,
    one_noise: bool = False,
) -> Iterator[tuple[range, MRIDDPMPipelineOutput]]:
    """Sample with a progress bar; image i comes from seed + i, whatever its batch.

    Args:
        pipeline: the model, with the scheduler of ``options.prepare``.
        labels: a class for each image; ``None`` samples without classes.
        num_images: how many.
        options: how.
        done: numbers of images that exist already; a batch of these alone is skipped.
        output_type: as of the pipeline.
        condition: by name, one for each image, ``(num_images, H, W)``; one for all is in ``options.edit``.
        one_noise: whether every image comes from seed alone, as slices of one volume do.

    Yields:
        The numbers of a batch's images, and what the pipeline returned.

    Raises:
        InputError: when the network's predictions are not finite.
    """
    if options.batch_size == AUTO:
        fitted = batch_size_that_fits(pipeline, labels, num_images, options, condition)
        options = replace(options, batch_size=fitted)
    one_batch = num_images <= options.batch_size  # then its steps are counted, and else images
    pipeline.set_progress_bar_config(desc="sampling", unit="step", disable=not one_batch)
    with tqdm(total=num_images, desc="sampling", unit="image", disable=one_batch) as bar:
        for start in range(0, num_images, options.batch_size):
            numbers = range(start, min(start + options.batch_size, num_images))
            if not all(i in done for i in numbers):
                batch = labels[numbers.start : numbers.stop] if labels is not None else None
                known = condition_of(condition, numbers)
                seeds = [0] * len(numbers) if one_noise else numbers
                yield numbers, sample(pipeline, batch, seeds, options, output_type=output_type, **known)
            bar.update(len(numbers))


def sample_arrays(
    pipeline: MRIDDPMBasePipeline,
    counts: Sequence[int],
    options: SamplingOptions,
    condition: dict[str, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Sample images into memory, in the 256 grey levels that a user gets; ``counts`` ``(C,)`` is how many of each class.

    Returns:
        Images ``(N, C, H, W)`` float32 in [0, 1] of the contrasts that the model draws, and their classes ``(N,)``. ``counts`` of one more than the model has classes
        end with how many are of no class; then all are.
    """
    labels = np.repeat(np.arange(len(counts)), counts)
    names = pipeline.class_names
    asked = [names[label] for label in labels] if len(counts) <= len(names) else None
    batches = sample_batches(pipeline, asked, len(labels), options, output_type="np", condition=condition)
    images = np.concatenate([contrasts_of(output, pipeline) for _, output in batches])
    return (np.round(images * 255) / 255).astype(np.float32), labels


def contrasts_of(output: MRIDDPMPipelineOutput, pipeline: MRIDDPMBasePipeline) -> np.ndarray:
    """What a pipeline returned as "np", without masks: ``(B, C, H, W)``."""
    channels = output.by_channel
    return np.stack([images for name, images in channels.items() if name not in pipeline.mask_labels], axis=1)


def sample(
    pipeline: MRIDDPMBasePipeline,
    labels: Sequence | None,
    numbers: Sequence[int],
    options: SamplingOptions,
    **arguments,
) -> MRIDDPMPipelineOutput:
    """Sample the images of these numbers by one call of the pipeline, image i from seed + i.

    Raises:
        InputError: for a fault that shows only in sampling, such as predictions that are not finite.
    """
    generators = [torch.Generator().manual_seed(options.seed + i) for i in numbers]
    arguments = {**options.chain, "generator": generators, **arguments}
    try:
        return pipeline(labels, num_images=len(numbers), **arguments)
    except ValueError as error:
        raise InputError(str(error)) from error


def condition_of(condition: dict[str, np.ndarray] | None, numbers: range) -> dict:
    """The argument for a call of the pipeline, where each image has a condition of its own; else none."""
    if not condition:
        return {}
    return {"condition": {name: given[numbers.start : numbers.stop] for name, given in condition.items()}}


def batch_size_that_fits(
    pipeline: MRIDDPMBasePipeline,
    labels: Sequence | None,
    num_images: int,
    options: SamplingOptions,
    condition: dict[str, np.ndarray] | None = None,
) -> int:
    """How many images to sample at once: by estimate half of the free memory; fewer if a step fails."""
    pipeline.set_progress_bar_config(disable=True)
    device = pipeline.device.type
    dearest = {"num_inference_steps": 1, "output_type": "pt", "guidance_start": 0.0, "guidance_end": 1.0}
    if "mask_image" in options.edit:
        dearest["jump_n_sample"] = 1
    with activation_bytes(pipeline.unet) as each:
        known = condition_of(condition, range(1))
        sample(pipeline, labels[:1] if labels else None, range(1), options, **dearest, **known)
    free = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    largest = min(LARGEST_BATCH.get(device, LARGEST_BATCH_ELSEWHERE), free // (2 * max(1, sum(each))))

    @find_executable_batch_size(starting_batch_size=max(1, largest))
    def try_one_step(batch_size: int) -> int:
        tried = range(min(batch_size, num_images))
        known = condition_of(condition, tried)
        sample(pipeline, labels[: len(tried)] if labels else None, tried, options, **dearest, **known)
        return batch_size

    return try_one_step()


@contextmanager
def activation_bytes(network: nn.Module) -> Iterator[list[int]]:
    """Bytes of each layer's output while the block runs. Their sum is more than is ever held at once."""
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
