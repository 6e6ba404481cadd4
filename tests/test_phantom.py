"""The head phantom: reproducible, in range, and with each class's lesion where such a tumour sits."""

import numpy as np
import pytest

from mri_ddpm.data import phantom
from mri_ddpm.data.phantom import CLASS_NAMES, PLANES, add_rician_noise, draw_phantom, draw_phantoms

PIXEL = 2 / 64  # of a 64 x 64 drawing, in head coordinates


def undrawn_head(seed, plane):
    """The lesion-free head behind draw_phantom(..., seed, 64, plane), with its coordinates and cavity."""
    streams = phantom._streams(seed)
    return phantom._draw_head(phantom._choose_view(streams["plane"], plane, "no_tumor"), streams, 64)


def lesion_of(class_name, seed, plane):
    """Where the class's image differs from the same head without a lesion, and by how much."""
    difference = draw_phantom(class_name, seed, 64, plane) - draw_phantom("no_tumor", seed, 64, plane)
    return np.abs(difference) > 0.02, difference


def seeds_showing(plane, class_name, count=5):
    """Seeds whose slice is the same for every class: an axial pituitary tumour is always cut low."""
    low = phantom.VIEWS["axial_low"]
    everywhere = plane != "axial" or class_name != "pituitary_tumor"
    return [seed for seed in range(60) if everywhere or undrawn_head(seed, plane).view is low][:count]


def test_class_names_are_those_of_the_data_set_in_order():
    assert CLASS_NAMES == ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


@pytest.mark.parametrize("plane", [*PLANES, None])
@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_same_arguments_same_image_in_range(class_name, plane):
    image = draw_phantom(class_name, 3, 45, plane)
    assert image.shape == (45, 45)
    assert image.dtype == np.float32
    assert image.min() >= 0
    assert image.max() <= 1
    np.testing.assert_array_equal(image, draw_phantom(class_name, 3, 45, plane))
    assert not np.array_equal(image, draw_phantom(class_name, 4, 45, plane))


def test_image_i_does_not_depend_on_how_many_are_drawn():
    images, labels = draw_phantoms(10, 32, seed=5)
    fewer, _ = draw_phantoms(6, 32, seed=5)
    np.testing.assert_array_equal(images[:6], fewer)
    assert images.shape == (10, 32, 32)
    assert images.dtype == np.float32
    assert labels.dtype == np.int64
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len({image.tobytes() for image in images}) == 10
    assert not np.array_equal(fewer, draw_phantoms(6, 32, seed=6)[0])
    assert draw_phantoms(0, 32, seed=5)[0].shape == (0, 32, 32)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_same_seed_is_the_same_head_at_another_resolution(class_name, plane):
    for seed in range(2):
        fine = draw_phantom(class_name, seed, 128, plane).reshape(64, 2, 64, 2).mean(axis=(1, 3))
        coarse = draw_phantom(class_name, seed, 64, plane)
        assert np.corrcoef(fine.ravel(), coarse.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("plane", PLANES)
def test_a_head_on_a_dark_background(plane):
    for seed in range(8):
        image = draw_phantom("no_tumor", seed, 64, plane)
        assert image[:6, :6].mean() < 0.06
        assert image[:6, -6:].mean() < 0.06
        assert 0.2 < (image > 0.1).mean() < 0.75
        assert image[24:40, 24:40].mean() > 0.12


def test_planes_differ_and_the_seed_chooses_among_them():
    chosen = set()
    for seed in range(12):
        by_plane = {plane: draw_phantom("no_tumor", seed, 32, plane) for plane in PLANES}
        assert np.abs(by_plane["axial"] - by_plane["coronal"]).mean() > 0.03
        assert np.abs(by_plane["axial"] - by_plane["sagittal"]).mean() > 0.03
        assert np.abs(by_plane["coronal"] - by_plane["sagittal"]).mean() > 0.03
        unasked = draw_phantom("no_tumor", seed, 32)
        chosen |= {plane for plane, image in by_plane.items() if np.array_equal(image, unasked)}
    assert chosen == set(PLANES)


@pytest.mark.parametrize("plane", PLANES)
def test_only_the_classes_with_a_tumor_paint_one(plane):
    for class_name, paint_lesion in phantom._LESION_PAINTERS.items():
        head = undrawn_head(1, plane)
        before = head.image.copy()
        paint_lesion(head, np.random.default_rng(0))
        assert np.array_equal(head.image, before) == (class_name == "no_tumor")


@pytest.mark.parametrize("plane", PLANES)
def test_glioma_is_a_mass_inside_the_brain(plane):
    for seed in seeds_showing(plane, "glioma_tumor"):
        head = undrawn_head(seed, plane)
        changed, _ = lesion_of("glioma_tumor", seed, plane)
        assert changed.mean() > 0.005
        assert head.cavity[changed].max() < 0


@pytest.mark.parametrize("plane", PLANES)
def test_a_glioma_rim_lies_around_its_core(plane):
    for seed in range(8):
        head = undrawn_head(seed, plane)
        head.image[:] = 0.5  # so that only the rim is brighter than what was there and only the core darker
        head.tones.update(rim=1.0, core=0.0, oedema=0.5)
        phantom._paint_glioma(head, np.random.default_rng(seed))
        rim, core = head.image > 0.75, head.image < 0.25
        assert core.any()
        from_core = np.hypot(head.x - head.x[core].mean(), head.y - head.y[core].mean())
        assert from_core[core].mean() < 0.75 * from_core[rim].mean()
        assert head.cavity[rim].max() < 0


@pytest.mark.parametrize("plane", PLANES)
def test_meningioma_is_bright_and_rests_on_the_dura(plane):
    for seed in seeds_showing(plane, "meningioma_tumor"):
        head = undrawn_head(seed, plane)
        changed, difference = lesion_of("meningioma_tumor", seed, plane)
        assert changed.mean() > 0.005
        assert head.cavity[changed].max() < PIXEL
        assert difference[changed].mean() > 0.05
        on_inner_skull = head.cavity[changed].max() > -PIXEL
        on_falx = bool(head.view.fissures) and np.abs(head.x[changed]).min() < PIXEL
        assert on_inner_skull or on_falx


@pytest.mark.parametrize("plane", PLANES)
def test_pituitary_tumor_is_bright_and_sits_in_the_sella(plane):
    seeds = seeds_showing(plane, "pituitary_tumor")
    assert len(seeds) == 5
    for seed in seeds:
        head = undrawn_head(seed, plane)
        changed, _ = lesion_of("pituitary_tumor", seed, plane)
        x, y = head.x[changed].mean(), head.y[changed].mean()
        assert changed.mean() > 0.002
        cavity_middle = head.x[head.cavity < 0].mean()
        if plane == "axial":
            assert abs(x) < 0.08
            assert abs(y) < 0.3
            continue
        assert abs(x) < 0.08 if plane == "coronal" else x < cavity_middle  # a sagittal face looks left
        floor = head.y[(head.cavity < 0) & (np.abs(head.x - x) < 0.05)].max()
        assert floor - 0.25 < y < floor + 0.05


def test_rician_noise_has_its_closed_form_moments():
    sigma, rng = 0.1, np.random.default_rng(0)
    background = add_rician_noise(np.zeros((500, 500)), sigma, rng)
    assert background.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert background.var() == pytest.approx((2 - np.pi / 2) * sigma**2, rel=0.02)
    signal = add_rician_noise(np.full((500, 500), 0.5), sigma, rng)
    assert (signal**2).mean() == pytest.approx(0.5**2 + 2 * sigma**2, rel=0.01)
    np.testing.assert_array_equal(add_rician_noise(np.array([0.0, 0.25]), 0.0, rng), [0.0, 0.25])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("astrocytoma", 0, 32), "glioma_tumor, meningioma_tumor, no_tumor, pituitary_tumor"),
        (("no_tumor", 0, 32, "oblique"), "axial, coronal, sagittal"),
        (("no_tumor", 0, 15), "resolution is 15"),
        (("no_tumor", -1, 32), "seed is -1"),
    ],
)
def test_wrong_arguments_say_what_to_do(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_phantom(*arguments)


@pytest.mark.parametrize(
    ("arguments", "message"), [((-1, 32, 0), "num_images is -1"), ((0, 8, 0), "resolution is 8")]
)
def test_wrong_arguments_of_a_set(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_phantoms(*arguments)


def test_the_smallest_resolution_still_holds_a_head():
    image = draw_phantom("no_tumor", 0, 16)
    assert image[:2, :2].mean() < 0.06 < image[6:10, 6:10].mean()
