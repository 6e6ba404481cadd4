"""The two-sample test: chance for what is alike, near 1 for what is not, and intervals that hold."""

import numpy as np
import pytest
import torch
from conftest import phantom_images
from scipy.ndimage import gaussian_filter

from mri_ddpm.errors import InputError
from mri_ddpm.evaluation import two_sample
from mri_ddpm.evaluation.two_sample import mean_of_shares, mirror_and_move, two_sample_accuracy


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 60)


@pytest.fixture(scope="module")
def phantoms():
    """Training ones, unseen ones, and the samples of a perfect generator."""
    images = phantom_images(360, 16)
    return images[:160], images[160:240], images[240:]


def test_a_perfect_generator_cannot_be_told_and_blur_can(few_steps, phantoms):
    training, unseen, fresh = phantoms
    alike = two_sample_accuracy(training, unseen, fresh)
    assert alike.low < 0.5 < alike.high
    assert alike.n == 80
    blurred = two_sample_accuracy(training, unseen, gaussian_filter(fresh, (0, 0, 0.7, 0.7)))
    assert blurred.low > 0.85


def test_the_same_images_give_the_same_number(phantoms, monkeypatch):
    monkeypatch.setattr(two_sample, "STEPS", 3)
    few = [images[:20] for images in phantoms]
    assert two_sample_accuracy(*few) == two_sample_accuracy(*few)


@pytest.mark.slow
def test_copies_hide_from_it(few_steps, phantoms):
    """So a copy detector has to stand beside it."""
    training, unseen, _ = phantoms
    copies = two_sample_accuracy(training, unseen, training)
    assert copies.low < 0.5 < copies.high


def test_the_interval_of_two_shares_covers_their_mean():
    rng, covered = np.random.default_rng(0), []
    for real, fake in ((0.5, 0.5), (0.9, 0.2), (0.99, 0.95), (0.05, 0.95)):
        draws = [(rng.random(70) < real, rng.random(150) < fake) for _ in range(400)]
        found = [mean_of_shares(*draw) for draw in draws]
        covered.append(np.mean([e.low <= (real + fake) / 2 <= e.high for e in found]))
    assert all(0.92 <= share <= 0.99 for share in covered)
    perfect = mean_of_shares(np.ones(70, bool), np.ones(150, bool))
    assert perfect.value == perfect.high == 1
    assert 0.9 < perfect.low < 1


def test_moving_keeps_every_pixel_as_it_is():
    images = torch.zeros(2000, 1, 9, 12)
    images[:, 0, 4, 3] = 1 - torch.arange(2000) / 4000
    moved = mirror_and_move(images, torch.Generator().manual_seed(0))
    assert torch.equal(moved.amax((1, 2, 3)), images.amax((1, 2, 3)))
    assert torch.equal(moved.sum((1, 2, 3)), images.sum((1, 2, 3)))
    places = {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()}
    assert places == {
        (row, column + side) for row in range(2, 7) for column in range(1, 6) for side in (0, 5)
    }


def test_too_few_are_refused(phantoms):
    training, unseen, fresh = phantoms
    with pytest.raises(InputError, match="19 unseen scans are too few"):
        two_sample_accuracy(training, unseen[:19], fresh)
    with pytest.raises(InputError, match="19 samples are too few"):
        two_sample_accuracy(training, unseen, fresh[:19])
