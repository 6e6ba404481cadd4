"""The classifier two-sample test: can a network that was taught the difference tell samples from real scans?"""

import numpy as np
import torch
import torch.nn.functional as F

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.classifier import predict, train_classifier
from mri_ddpm.evaluation.estimates import Estimate, share
from mri_ddpm.evaluation.lazy import Images, joined, view

FOLDS = 2
STEPS = 600  # a fold; of 500 scans whose halves are two heads' 0.94 are told at 32 px, 0.74 after 200
FEWEST = 20  # unseen scans, and samples; fewer say nothing
REACH = 2  # pixels that augmentation moves by


def two_sample_accuracy(
    training: Images, unseen: Images, samples: Images, device: str = "cpu", progress: bool = False
) -> Estimate:
    """Share of unseen real scans and unseen samples that a classifier takes for what they are: 0.5 is perfect, 1 is worst.

    The classifier two-sample test (Lopez-Paz & Oquab 2017, arXiv:1610.06545, section 3), on pixels, with cross-fitting:
    samples and unseen scans are split in two, at random; a network learns training scans from one half of the samples and
    is tested on the other half and on half of the unseen scans, then the halves change places. So each is judged once, by
    a network that has not met it.

    Nothing hides from it but copying: what differs at all, be it brightness or a border, it learns, given samples enough
    and steps. So 1 says that they differ, not that it is to be seen, and of two that score 1 it cannot say which is better.
    With few samples it is weaker.

    The value is the mean of the two shares, so their numbers do not matter; the interval joins Wilson's of each (Newcombe
    1998, method 10). It leaves out that another training would learn another network. ``n`` is the smaller number judged.

    Args:
        training: the generator's training scans, ``(M, C, H, W)`` float32 in [0, 1]. Of several channels it
            also learns whether they fit one another.
        unseen: real scans that it was not trained on, ``(K, 1, H, W)``; copies of training scans would be known again.
        samples: ``(N, C, H, W)``.
        device: where to train; at 44 pixels it takes one core a minute or two.
        progress: show a bar a training.

    Raises:
        InputError: for fewer than 20 unseen scans or samples.
    """
    for name, images in (("unseen scans", unseen), ("samples", samples)):
        if len(images) < FEWEST:
            raise InputError(
                f"{len(images)} {name} are too few for the two-sample test: at least {FEWEST} are needed."
            )
    rng = np.random.default_rng(0)
    unseen_folds, sample_folds = (rng.permutation(len(x)) % FOLDS for x in (unseen, samples))
    real_hits, sample_hits = [], []
    for fold in range(FOLDS):
        others = samples[sample_folds != fold]
        # As often as training scans, so that it has no reason to say "real" in doubt.
        repeated = view(others)[np.arange(len(training)) % len(others)]
        model = train_classifier(
            joined(training, repeated),
            np.repeat([0, 1], len(training)),
            num_classes=2,
            seed=fold,
            steps=STEPS,
            augmentation=mirror_and_move,
            device=device,
            title=f"two-sample test, fold {fold + 1} of {FOLDS}" if progress else "",
        )
        real_hits.append(predict(model, unseen[unseen_folds == fold], device) == 0)
        sample_hits.append(predict(model, samples[sample_folds == fold], device) == 1)
    return mean_of_shares(np.concatenate(real_hits), np.concatenate(sample_hits))


def mean_of_shares(a: np.ndarray, b: np.ndarray) -> Estimate:
    """Mean of the shares of true values in two independent sets, with Newcombe's interval (1998, method 10)."""
    a, b = share(a), share(b)
    below = np.hypot(a.value - a.low, b.value - b.low) / 2
    above = np.hypot(a.high - a.value, b.high - b.value) / 2
    value = (a.value + b.value) / 2
    return Estimate(value, float(value - below), float(value + above), n=min(a.n, b.n))


def mirror_and_move(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror half of the images and move each by up to ``REACH`` whole pixels: unlike a turn, it leaves the sharpness."""
    n, channels, height, width = images.shape
    mirrored = torch.rand(n, generator=generator) < 0.5
    down, right = torch.randint(2 * REACH + 1, (2, n, 1), generator=generator)  # (B, 1) each
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = F.pad(images, (REACH,) * 4)  # black outside, as scans are
    rows, columns = down + torch.arange(height), right + torch.arange(width)  # (B, H), (B, W)
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
