"""Copies that were turned, enlarged, cut or mixed: how each lies on its training image is found, and in what sets of images they show."""

import numpy as np
import pytest
from conftest import phantom_images

from benchmarks.copies import turned
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.fragments import nearest_by_mixture, nearest_by_parts
from mri_ddpm.evaluation.memorisation import CopyDetector, audit, laid_on, verdict, worst_pairs_picture
from mri_ddpm.evaluation.nearest import nearest_by_correlation
from mri_ddpm.evaluation.registration import nearest_by_registration


@pytest.fixture(scope="module")
def training():
    return phantom_images(200, 32)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(("degrees", "scale"), [(0, 1), (12, 1), (-15, 1), (0, 0.9), (7, 1.11)])
def test_how_it_was_turned_and_enlarged_is_found(training, flipped, degrees, scale):
    images = training[:6, :, :, ::-1] if flipped else training[:6]
    images = turned(images, np.full(6, degrees), np.full(6, scale))
    found = nearest_by_registration(images, training)
    np.testing.assert_array_equal(found.index, range(6))
    np.testing.assert_array_equal(found.how["flipped"], [flipped] * 6)
    np.testing.assert_allclose(found.how["degrees"], degrees, atol=0.5)
    np.testing.assert_allclose(found.how["scale"], scale, atol=0.015)
    np.testing.assert_allclose(found.how["shift"], 0, atol=0.2)
    assert found.ratio.max() < 0.06
    for row in range(6):  # in the middle, which stays in the image
        pair = {name: values[row].tolist() for name, values in found.how.items()}
        difference = (laid_on(training[row], pair) - images[row])[:, 6:-6, 6:-6]
        assert np.abs(difference).mean() < 0.02


def test_a_moved_image_is_laid_back():
    """By 1.5 pixels right and one up, enlarged about the centre: both are told apart."""
    training = phantom_images(60, 64)
    images = turned(training[:4], np.full(4, 5.0), np.full(4, 1.05))
    images = np.stack([laid_on(image, {"shift": (-1, 1.5)}) for image in images])
    found = nearest_by_registration(images, training)
    np.testing.assert_array_equal(found.index, range(4))
    np.testing.assert_allclose(found.how["shift"], [[-1, 1.5]] * 4, atol=0.2)
    np.testing.assert_allclose(found.how["degrees"], 5, atol=0.3)


def test_other_contrast_and_blur_are_no_difference(training):
    images = 0.1 + 0.6 * training[:8] ** 2
    found = nearest_by_registration(images.astype(np.float32), training)
    np.testing.assert_array_equal(found.index, range(8))
    assert found.ratio.max() < 0.5 * nearest_by_correlation(images, training).ratio.max()


def test_channels_are_laid_alike(training):
    """Two contrasts of one head, turned together; those of two heads have no common turn."""
    both = np.concatenate([training[:100], 1 - training[:100]], axis=1)
    images = np.concatenate([turned(both[:5, i : i + 1], np.full(5, 10.0)) for i in range(2)], axis=1)
    found = nearest_by_registration(images, both)
    np.testing.assert_array_equal(found.index, range(5))
    np.testing.assert_allclose(found.how["degrees"], 10, atol=0.5)
    images[:, 1] = turned(both[:5, 1:], np.full(5, -10.0))[:, 0]
    assert nearest_by_registration(images, both).ratio.min() > 3 * found.ratio.max()


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("flipped", [False, True])
def test_a_part_of_a_scan_is_found_in_another_head(side, flipped):
    images = phantom_images(120, side)
    training, others = images[:100], images[100:105].copy()
    half = np.s_[:, :, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4]
    others[half] = (training[:5, :, :, ::-1] if flipped else training[:5])[half]
    found = nearest_by_parts(others, training)
    np.testing.assert_array_equal(found.index, range(5))
    np.testing.assert_array_equal(found.how["flipped"], [flipped] * 5)
    assert found.ratio.max() < 0.02
    top, left, length = found.how["region"].T
    assert (np.minimum(top, left) >= side // 4).all()
    assert (np.maximum(top, left) + length <= 3 * side // 4).all()
    np.testing.assert_array_equal(found.how["shift"], np.zeros((5, 2)))


def test_parts_of_larger_images_are_told_in_their_pixels():
    images = np.kron(phantom_images(43, 64), np.ones((3, 3), dtype=np.float32))  # 192 pixels, compared at 128
    others = images[40:].copy()
    others[:, :, 48:144, 48:144] = images[:3, :, 48:144, 48:144]
    found = nearest_by_parts(others, images[:40])
    np.testing.assert_array_equal(found.index, range(3))
    np.testing.assert_array_equal(found.how["region"][:, 2], [60] * 3)
    assert found.how["region"][:, :2].min() >= 48
    assert (found.how["region"][:, :2].max() + 60) <= 144
    assert nearest_by_registration(images[:3], images[:40]).ratio.max() < 1e-3
    assert nearest_by_mixture(images[:3], images[:40]).ratio.max() < 1e-3


def test_a_moved_part_is_found(training):
    others = phantom_images(5, 32, seed=4)
    others[:, :, 8:24, 8:24] = training[:5, :, 7:23, 9:25]
    found = nearest_by_parts(others, training)
    np.testing.assert_array_equal(found.index, range(5))
    np.testing.assert_array_equal(found.how["shift"], [[1, -1]] * 5)


def test_what_all_scans_have_is_no_copied_part():
    """A label burnt into every scan."""
    images = phantom_images(130, 32)
    label = np.random.default_rng(0).random((10, 10), dtype=np.float32)
    images[:, :, :10, :10] = label
    assert nearest_by_parts(images[100:], images[:100]).ratio.min() > 0.02


def test_a_label_in_some_scans_hides_no_copy():
    """The same mark in a tenth of the scans would make all of these copies of a part of one another."""
    images, mark = phantom_images(400, 32), np.random.default_rng(0).random((9, 9))
    images[::10, :, 2:11, 2:11] = mark
    training, validation = images[:300], images[300:360]
    detector = CopyDetector.fit(training, validation)
    assert detector.searches == ("pixels", "registered", "mixtures")
    copies = turned(training[:20], np.full(20, 10.0))
    found = detector.examine(np.concatenate([copies, images[360:]]))
    assert found.flagged[:20].mean() >= 0.9
    assert found.flagged[20:].mean() <= 0.15  # of 40: 95 times in 100 with a rate of 0.05
    assert audit(detector, images[360:])["not_sought"] == ["parts"]
    with pytest.raises(InputError, match="hold out others"):  # nothing is left to search
        CopyDetector.fit(training, validation, searches=["parts"])


@pytest.mark.parametrize("weight", [0.5, 0.7, 0.85])
def test_a_mixture_of_two_scans_is_told(training, weight):
    images = weight * training[:10] + (1 - weight) * training[10:20]
    found = nearest_by_mixture(images, training)
    assert found.ratio.max() < 0.02
    pairs = np.stack([found.index, found.how["mixed_with"]], 1)
    if weight == 0.5:
        pairs.sort(1)
    np.testing.assert_array_equal(pairs, [[i, i + 10] for i in range(10)])
    assert nearest_by_mixture(phantom_images(30, 32, seed=3), training).ratio.min() > 0.1


def test_the_worst_pairs_show_how_they_lie(training):
    detector = CopyDetector.fit(training, phantom_images(30, 32, seed=1))
    images = turned(training[:3], np.array([12.0, -9.0, 6.0]))
    found = detector.examine(images)
    assert set(found.space) == {"registered"}
    picture = np.asarray(worst_pairs_picture(detector, found, images, count=3))
    image, real, difference = (picture[30:66, i * 96 + 30 : i * 96 + 66] for i in range(3))
    assert image.max() > 60
    assert difference.mean() < 0.2 * np.abs(real.astype(float) - real.mean()).mean()


# Power


@pytest.fixture(scope="module")
def pool():
    """Suspicions of real phantoms, and of copies: as they are, and turned."""
    images = phantom_images(800, 32)
    training, real = images[:300], images[300:]
    rng = np.random.default_rng(0)
    detector = CopyDetector.fit(training, real[:100])
    angles = rng.choice([-1, 1], 60) * rng.uniform(3, 15, 60)
    copies = {"exact": training[:60], "turned": turned(training[:60], angles)}
    return {
        "real": np.concatenate([detector.validation_suspicion, detector.examine(real[100:]).suspicion]),
        **{name: detector.examine(x).suspicion for name, x in copies.items()},
    }


def is_red(suspicion, validation):
    copies = verdict(suspicion, validation, np.zeros(len(suspicion), int))
    return copies["sure"] > 0 or copies["share"]["interval"][0] > copies["expected"]


@pytest.mark.slow
def test_few_copies_make_the_verdict_red_and_honest_sets_do_not(pool):
    """2000 images, of which none, 0.1 %, 1 % and 5 % are copies; drawn from 500 heads, of which 200 at a time set the limits."""
    rng = np.random.default_rng(1)
    red = {}
    for kind, count in (("exact", 0), *((k, n) for k in ("exact", "turned") for n in (2, 20, 100))):
        found = []
        for _ in range(300):
            real = rng.permutation(pool["real"])
            images = np.concatenate([rng.choice(real[200:], 2000 - count), rng.choice(pool[kind], count)])
            found.append(is_red(images, real[:200]))
        red[kind, count] = np.mean(found)
    honest = red.pop(("exact", 0))
    assert honest <= 0.05, honest
    assert min(red.values()) >= 0.95, red
