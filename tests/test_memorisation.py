"""Copies are found, however they were altered; real scans never trained on are taken for copies as often as promised."""

import json

import numpy as np
import pytest
import torch
from conftest import phantom_images
from diffusers import DDIMScheduler
from scipy.ndimage import gaussian_filter
from scipy.stats import norm

from benchmarks.copies import controls, turned
from mri_ddpm import AttentionUNet2DModel
from mri_ddpm.diffusion import make_noise_scheduler, training_target
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.copies import ChannelDetectors, audit_in_all
from mri_ddpm.evaluation.memorisation import (
    CopyDetector,
    audit,
    share_beyond,
    sure_limit,
    verdict,
    worst_pairs_picture,
)
from mri_ddpm.evaluation.nearest import nearest_by_embedding
from mri_ddpm.evaluation.report import verdict_on_copies


def check_controls(training, validation, unrelated, count=30):
    """The controls on which the verdict was chosen, with limits from half of the validation."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(validation))
    detector = CopyDetector.fit(training, validation[order[::2]])
    rows = rng.choice(len(training), count, replace=False)
    exact = detector.examine(training[rows])
    assert exact.flagged.mean() >= 0.99
    np.testing.assert_array_equal(exact.index, rows)
    partners, unseen = training[rng.choice(len(training), count)], validation[order[1::2]][:count]
    copies = controls(training[rows], partners, unseen, rng)
    for not_found in ("noise of 0.10", "mixed 70:30 with an unseen scan"):
        del copies[not_found]
    flagged = detector.examine(np.concatenate(list(copies.values()))).flagged.reshape(len(copies), count)
    shares = dict(zip(copies, flagged.mean(1).round(3), strict=True))
    assert min(shares.values()) >= 0.95, shares
    noise = rng.random((count, *training.shape[1:]), dtype=np.float32)
    for others in (unrelated, noise, 0.05 * noise, 1 - 0.3 * noise):
        numbers = audit(detector, others)["copies"]
        assert numbers["share"]["interval"][0] <= 0.05, numbers
    check_rate(detector, validation[order[1::2]])


def check_rate(detector, others):
    """Of real images never trained on 5 % are taken for copies: in whichever halves they give limits and rate."""
    found = detector.examine(others)
    real = -np.concatenate([detector.validation_suspicion, found.suspicion])
    estimates, half = [], len(real) // 2
    for seed in range(100):
        order = np.random.default_rng(seed).permutation(len(real))
        estimates.append(share_beyond(real[order[half:]], real[order[:half]], 0.95))
    assert 0.035 < np.mean([estimate.value for estimate in estimates]) < 0.065
    assert np.mean([estimate.low <= 0.05 <= estimate.high for estimate in estimates]) > 0.9
    share = audit(detector, others, found)["copies"]["share"]
    assert share["value"] == found.flagged.mean() < 0.15


@pytest.mark.parametrize("side", [32, pytest.param(64, marks=pytest.mark.slow)])
def test_controls_on_phantoms(side):
    images = phantom_images(450, side)
    check_controls(images[:250], images[250:], phantom_images(20, side, seed=9), count=20)


@pytest.mark.slow
def test_controls_on_scans(reference_scans):
    scans = reference_scans(44)
    training, validation = (
        part.batch(range(len(part)))["pixel_values"].numpy() for part in (scans.train, scans.validation)
    )
    check_controls(training, validation, phantom_images(60, 44), count=20)


# Few copies among many images


def fields(count, seed=0):
    """Smooth pictures without noise, (N, 1, 16, 16)."""
    noise = np.random.default_rng(seed).standard_normal((count, 1, 16, 16))
    return (0.5 + gaussian_filter(noise, (0, 0, 3, 3), mode="wrap")).astype(np.float32)


@pytest.mark.parametrize("copies", [1, 60])
def test_copies_are_not_lost_among_many_images(copies):
    """The others resemble no scan, so that the share taken for copies stays by the 5 % of real ones."""
    training = fields(400)
    detector = CopyDetector.fit(training, fields(272, seed=1), searches=["pixels"])
    others = np.random.default_rng(2).random((1000 - copies, 1, 16, 16), dtype=np.float32)
    for images, count in ((others, 0), (np.concatenate([others, training[:copies]]), copies)):
        numbers = audit(detector, images)
        assert numbers["copies"]["sure"] == count
        assert verdict_on_copies({"memorisation": numbers})["tone"] == ("bad" if count else "good")


@pytest.mark.parametrize("spread", [0.3, 0.6, 0.9])
def test_sure_copies_are_no_real_images(spread):
    rng = np.random.default_rng(0)
    real = np.exp(spread * rng.standard_normal((2000, 300)))
    alarms = [(row[100:] < sure_limit(row[:100], 200)).any() for row in real]
    assert np.mean(alarms) < 0.025


def test_copies_left_among_validation_images_hide_none():
    """Of 272 validation scans of the reference set 6 are pictures of training, turned or cropped."""
    real = np.exp(0.7 * np.random.default_rng(0).standard_normal(272))
    left = np.concatenate([real[:261], np.full(11, 1e-3)])
    assert 0.75 < sure_limit(left, 2000) / sure_limit(real, 2000) < 1
    assert verdict(left, left, np.arange(272))["sure"] == 11


# The embedding


def test_the_nearest_in_an_embedding_by_hand():
    rng = np.random.default_rng(0)
    features, real = (
        rng.standard_normal((7, 5)).astype(np.float32),
        rng.standard_normal((80, 5)).astype(np.float32),
    )
    cosine = np.array([[f @ r / np.linalg.norm(f) / np.linalg.norm(r) for r in real] for f in features])
    found = nearest_by_embedding(features, 3 * real)
    np.testing.assert_array_equal(found.index, cosine.argmax(1))
    np.testing.assert_allclose(found.similarity, cosine.max(1), atol=1e-5)
    expected = (1 - cosine.max(1)) / (1 - np.sort(cosine)[:, -50:]).mean(1)
    np.testing.assert_allclose(found.ratio, expected, atol=1e-4)
    assert not found.how


def test_an_embedding_finds_what_pixels_cannot():
    """Sorted pixels do not see how a head is turned; the rate of the two spaces together stays what it was."""

    def embed(images):
        sorted_pixels = np.sort(images.reshape(len(images), -1), axis=1)
        return sorted_pixels - sorted_pixels.mean(1, keepdims=True)

    images = phantom_images(650, 32)
    training, validation, others = images[:300], images[300:475], images[475:]
    turned = np.rot90(training[:40], axes=(2, 3))
    pixels, both = (CopyDetector.fit(training, validation, e, ["pixels"]) for e in (None, embed))
    assert pixels.examine(turned).flagged.mean() < 0.1
    found = both.examine(turned)
    assert found.flagged.all()
    assert set(found.space) == {"embedding"}
    np.testing.assert_array_equal(found.index, range(40))
    noise = 0.05 * np.random.default_rng(0).standard_normal((40, 1, 32, 32))
    assert both.examine((training[:40] + noise).astype(np.float32)).flagged.mean() >= 0.95
    numbers = audit(both, others)
    low, high = numbers["copies"]["share"]["interval"]
    assert low <= 0.05 <= high
    assert numbers["embedding"].keys() == numbers["pixels"].keys()
    assert "shift" not in audit(both, turned)["worst_pairs"][0]
    assert worst_pairs_picture(both, found, turned, count=3).size == (3 * 304, 132)


# Several channels


def of_channels(count: int, seed: int, channels: int = 3) -> np.ndarray:
    """Pictures whose channels have nothing to do with one another, (N, C, 16, 16)."""
    return np.concatenate([fields(count, seed=100 * seed + i) for i in range(channels)], axis=1)


@pytest.fixture(scope="module")
def channel_detectors():
    return ChannelDetectors.fit(of_channels(300, 1), of_channels(1000, 2), [np_features] * 3, ["pixels"])


def np_features(images):
    """Something to embed by: the spectrum."""
    return np.abs(np.fft.rfft2(np.asarray(images))[..., :4, :4]).reshape(len(images), -1).astype(np.float32)


def test_honest_samples_of_several_channels_are_taken_for_copies_no_oftener(channel_detectors):
    """Four detectors in two spaces each: any of them finds 5 %, all of them much more, and the verdict 5 % again."""
    found = channel_detectors.examine(of_channels(3000, 3))
    alone = np.stack([each.flagged for each in (*found.channels, found.joint)])
    assert np.abs(alone.mean(1) - 0.05).max() < 0.025
    assert alone.any(0).mean() > 0.12
    assert abs(found.flagged.mean() - 0.05) < 0.025
    share = audit_in_all(channel_detectors, found)["copies"]["share"]
    assert share["interval"][0] <= 0.05 <= share["interval"][1]
    assert share["value"] == found.flagged.mean()


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_copy_in_one_channel_alone_is_found(channel_detectors, channel):
    images, training = of_channels(60, 4), of_channels(300, 1)
    images[:, channel] = training[:60, channel]
    found = channel_detectors.examine(images)
    assert found.flagged.all()
    np.testing.assert_array_equal(found.index, range(60))
    flagged = [each.flagged.mean() for each in found.channels]
    assert flagged[channel] == 1
    assert max(share for i, share in enumerate(flagged) if i != channel) < 0.2
    numbers = audit_in_all(channel_detectors, found)
    assert numbers["copies"]["sure"] == 60
    assert verdict_on_copies({"memorisation": numbers})["tone"] == "bad"


def test_what_is_copied_a_little_in_each_channel_is_found_by_all_together(channel_detectors):
    training = of_channels(300, 1)
    images = training[:60] + 0.4 * (of_channels(60, 5) - 0.5)
    found = channel_detectors.examine(images.astype(np.float32))
    assert found.joint.flagged.mean() > max(each.flagged.mean() for each in found.channels) + 0.5
    assert found.flagged.mean() > 0.5


def test_the_worst_pairs_show_every_channel(channel_detectors):
    images = of_channels(300, 1)[:5]
    found = channel_detectors.examine(images)
    picture = np.asarray(worst_pairs_picture(channel_detectors.joint, found.joint, images))
    assert picture.shape == (5 * (96 + 36), 9 * 96 + 16)
    for channel in range(3):  # an image, its copy, and no difference
        image, real, difference = (
            picture[:96, (3 * channel + i) * 96 : (3 * channel + i + 1) * 96] for i in range(3)
        )
        np.testing.assert_array_equal(image, real)
        assert difference.max() == 0
        assert image.max() > 50


def test_one_channel_is_judged_as_ever():
    training, validation, images = (phantom_images(n, 16, seed=i) for i, n in enumerate((100, 40, 20)))
    alone, one = (
        CopyDetector.fit(training, validation),
        ChannelDetectors.fit(training, validation, [None]),
    )
    images = np.concatenate([images, training[:10]])
    assert one.joint is None
    np.testing.assert_array_equal(one.examine(images).flagged, alone.examine(images).flagged)
    np.testing.assert_array_equal(one.examine(images).suspicion, alone.examine(images).suspicion)


def test_of_masks_alone_no_copies_are_sought():
    with pytest.raises(InputError, match="looked for in contrasts, and the model draws masks alone"):
        ChannelDetectors.fit(fields(60), fields(20, seed=1), [])


# The numbers


def test_the_audit_says_what_the_examination_found():
    images = phantom_images(300, 32)
    detector = CopyDetector.fit(images[:200], images[200:])
    synthetic = np.concatenate([images[:30], images[:10, :, :, ::-1], phantom_images(60, 32, seed=5)])
    found = detector.examine(synthetic)
    numbers = audit(detector, synthetic, found)
    assert json.loads(json.dumps(numbers)) == numbers == audit(detector, synthetic)
    assert (numbers["images"], numbers["training_images"], numbers["validation_images"]) == (100, 200, 100)
    copies = numbers["copies"]
    assert copies["count"] == found.flagged.sum() == round(100 * copies["share"]["value"])
    assert 40 <= copies["count"] <= 46
    assert 30 <= copies["distinct_training_images"] <= copies["count"] - 10
    assert copies["share"]["interval"][0] > copies["expected"]
    for level, over, expected in (("95th", found.over_95, 0.05), ("99th", found.over_99, 0.01)):
        row = numbers["pixels"][f"similarity_over_{level}_percentile"]
        assert row["share"]["value"] == over["pixels"].mean()
        assert row["expected"] == expected
    assert 0.4 <= numbers["pixels"]["ratio_under_1st_percentile"]["share"]["value"] <= 0.45
    assert (
        numbers["pixels"]["validation_median_ratio"]["value"]
        > numbers["pixels"]["median_ratio"]["interval"][0]
    )
    pairs = numbers["worst_pairs"]
    assert len(pairs) == 16
    for pair in pairs:
        assert pair["training_image"] == (pair["image"] if pair["image"] < 30 else pair["image"] - 30)
        assert pair["flipped"] == (pair["image"] >= 30)
        assert pair["similarity"] > 0.999


@pytest.mark.parametrize("level", [0.95, 0.99])
@pytest.mark.parametrize("validation", [30, 272])
def test_intervals_hold_the_true_share(validation, level):
    """Scores of synthetic images normal about `centre`, those of real images about 0: the true share is known."""
    rng = np.random.default_rng(0)
    for centre in (0.0, 1.0):
        truth = norm.sf(norm.ppf(level) - centre)
        held = 0
        for _ in range(200):
            estimate = share_beyond(rng.normal(centre, 1, 500), rng.normal(0, 1, validation), level)
            assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            held += estimate.low <= truth <= estimate.high
        assert held >= 186  # 190 of 200 are promised, and 186 leave room for chance


def test_intervals_at_the_ends():
    real = np.random.default_rng(0).normal(0, 1, 272)
    for level in (0.95, 0.99):
        none, every = share_beyond(real[:100] - 9, real, level), share_beyond(real[:100] + 9, real, level)
        assert (none.value, none.low) == (0, 0)
        assert 0 < none.high < 0.05
        assert (every.value, every.high, every.n) == (1, 1, 100)
        assert every.low > 0.95
    assert share_beyond(real + 9, real[:20], 0.99).low == 0  # 20 images say nothing of a 99th percentile


# Refusals

GOOD = np.random.default_rng(0).random((60, 1, 16, 16), dtype=np.float32)
HOLED = np.where(GOOD > 0.999, np.nan, GOOD)


@pytest.mark.parametrize(
    ("training", "validation", "images", "message"),
    [
        (GOOD[:19], GOOD, GOOD, "there are 19 training images: to look for copies takes 20 or more"),
        (GOOD, GOOD[:19], GOOD, "there are 19 validation images: to look for copies takes 20 or more"),
        (GOOD, np.flip(GOOD), GOOD[:0], "there are 0 images"),
        (GOOD, GOOD[..., :-1], GOOD, r"validation images are of \(16, 15\) pixels"),
        (
            GOOD,
            np.flip(GOOD),
            np.pad(GOOD, ((0, 0), (0, 0), (0, 1), (0, 1))),
            r"images are \(1, 17, 17\) and training",
        ),
        (GOOD[:, 0], GOOD, GOOD, r"training images have the shape \(60, 16, 16\): give \(N, C, H, W\)"),
        (GOOD, HOLED, GOOD, "validation images hold values that are not finite"),
        (HOLED, GOOD, GOOD, "training images hold values that are not finite"),
        (GOOD, np.flip(GOOD), HOLED, "images hold values that are not finite"),
        (GOOD[..., :8, :8], GOOD, GOOD, "to compare takes 16 a side"),
        (GOOD, GOOD[:20], GOOD, "copies of training images: hold out others"),
    ],
)
def test_refusals_say_what_to_do(training, validation, images, message):
    with pytest.raises(InputError, match=message) as refusal:
        CopyDetector.fit(training, validation).examine(images)
    assert str(refusal.value).count("\n") == 0


@pytest.mark.parametrize(
    ("features", "real", "message"),
    [
        (np.ones((3, 4)), np.ones((60, 5)), "make them one size"),
        (np.ones((3, 4)), np.ones((19, 4)), "20 or more"),
        (np.ones((3, 4)), np.full((60, 4), np.inf), "not finite"),
        (np.ones(3), np.ones((60, 4)), r"give \(N, D\)"),
    ],
)
def test_features_that_cannot_be_compared(features, real, message):
    with pytest.raises(InputError, match=message):
        nearest_by_embedding(features, real)


# What cannot be seen; stands here so that nobody believes otherwise


def test_what_the_detector_does_not_see():
    images = phantom_images(450, 32)
    training = images[:300]
    detector = CopyDetector.fit(training, images[300:])
    for unseen in (turned(training[:50], np.full(50, 60)), training[:50, :, ::-1]):
        assert detector.examine(unseen).flagged.mean() < 0.3


# A model that has learned its training images by heart


def learned_by_heart(images, steps):
    """Samples of a diffusion model trained on nothing but `images`, each with a class of its own, one of each class."""
    torch.manual_seed(0)
    side, classes = images.shape[-1], torch.arange(len(images))
    unet = AttentionUNet2DModel(
        sample_size=side,
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_types=(None, None),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=len(images),
    )
    noise_scheduler = make_noise_scheduler(100, 1e-3, 0.2, "sample")
    optimizer = torch.optim.Adam(unet.parameters(), betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    scans = torch.from_numpy(images) * 2 - 1
    for _ in range(steps):
        rows, timesteps = torch.randint(len(images), (32,)), torch.randint(100, (32,))
        x_0, noise = scans[rows], torch.randn(32, 1, side, side)
        prediction = unet(noise_scheduler.add_noise(x_0, noise, timesteps), timesteps, rows).sample
        target = training_target(noise_scheduler, x_0, noise, timesteps)
        loss = torch.nn.functional.mse_loss(prediction, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
    sampler = DDIMScheduler.from_config(noise_scheduler.config, timestep_spacing="trailing")
    sampler.set_timesteps(20)
    x = torch.randn(len(images), 1, side, side)
    with torch.no_grad():
        for t in sampler.timesteps:
            x = sampler.step(unet.eval()(x, t, classes).sample, t, x).prev_sample
    return (x / 2 + 0.5).clamp(0, 1).numpy()


@pytest.mark.slow
def test_a_model_that_learned_30_images_by_heart_is_caught():
    heads = phantom_images(400, 16)
    detector = CopyDetector.fit(heads[:300], heads[300:])
    found = detector.examine(learned_by_heart(heads[:30], steps=270))
    assert found.flagged.mean() >= 0.5
    assert (found.index[found.flagged] < 30).all()
