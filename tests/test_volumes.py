"""Volumes become slices: how they lie, where, how large, how bright, and which ones are chosen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mri_ddpm.data import Volume, slices
from mri_ddpm.data.reading.pictures import BadImageError
from mri_ddpm.data.reading.volumes import AXES, black_and_white
from mri_ddpm.errors import InputError

IDENTITY = np.eye(3)
RNG = np.random.default_rng(0)
TURN = np.linalg.qr(RNG.normal(size=(3, 3)) * 0.15 + np.eye(3))[0]
OBLIQUE = TURN * np.sign(np.diag(TURN))  # close to the identity


def affine_of(spacing=(1, 1, 1), origin=(0, 0, 0), turn=IDENTITY):
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.array(spacing), origin
    return affine


def places(shape, affine):
    """The mm of every voxel, (3, X, Y, Z)."""
    indices = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ indices + affine[:3, 3:]).reshape(3, *shape)


def ball(shape=(64, 64, 64), spacing=(1, 1, 1), middle=(0, 0, 0), radius=20.0, **options):
    """A head of value 100 around a point in mm, in air of 0; the grid's middle is the origin."""
    affine = affine_of(spacing, -(np.array(shape) - 1) / 2 * np.array(spacing))
    away = np.linalg.norm(places(shape, affine) - np.array(middle).reshape(3, 1, 1, 1), axis=0)
    return Volume(np.float32(100) * (away <= radius), affine, **options)


def noise(shape=(9, 11, 13), affine=None, **options):
    values = RNG.normal(size=shape).astype(np.float32)
    return Volume(values, affine_of() if affine is None else affine, **options)


def extent_of(image):
    """Height and width of what is bright."""
    rows, columns = np.nonzero(image > 0.5)
    return np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])


@pytest.mark.parametrize(
    ("plane", "up", "left"),
    [("axial", "anterior", "right"), ("coronal", "superior", "right"), ("sagittal", "superior", "anterior")],
)
def test_slices_are_seen_as_radiologists_see_them(plane, up, left):
    """Volumes whose values are mm to the right, to the front and up."""
    affine = affine_of((2, 2, 2))
    mm = dict(zip(("right", "anterior", "superior"), places((12, 6, 5), affine), strict=True))
    brightest = {}
    for direction in (up, left):
        found = slices(
            Volume(mm[direction].astype(np.float32), affine), plane, min_head=0, intensity="full_range"
        )
        brightest[direction] = [np.nonzero(part.image == 1) for part in found]
    for (rows, columns), part in zip(brightest[up], found, strict=True):
        assert set(rows) == {0}  # the uppermost
        assert len(columns) == part.image.shape[1]
    for (rows, columns), part in zip(brightest[left], found, strict=True):
        assert set(columns) == {0}  # on the left
        assert len(rows) == part.image.shape[0]


@pytest.mark.parametrize("plane", AXES)
def test_without_resampling_every_voxel_is_there(plane):
    """In oblique scans too; on the scale of the whole volume."""
    volume = noise(affine=affine_of((0.8, 0.8, 0.8), (5, -7, 9), OBLIQUE))
    black, white = black_and_white(volume)
    axis = AXES[plane]
    found = slices(volume, plane, min_head=0)
    assert [part.index for part in found] == list(range(volume.voxels.shape[axis]))
    for part in found:
        expected = (np.take(volume.voxels, part.index, axis) - black) / (white - black)
        np.testing.assert_allclose(part.image[::-1, ::-1].T, expected.clip(0, 1), atol=1e-6)
        assert part.image.dtype == np.float32
        assert part.spacing_mm == pytest.approx(0.8)


@pytest.mark.parametrize("plane", AXES)
def test_positions_are_mm_of_the_middle(plane):
    volume = noise((9, 11, 13), affine_of((0.8, 1.1, 3), (5, -7, 9), OBLIQUE))
    axis = AXES[plane]
    for part in slices(volume, plane, min_head=0):
        middle = [4, 5, 6]
        middle[axis] = part.index
        expected = (volume.affine @ [*middle, 1])[axis]
        assert part.position_mm == pytest.approx(expected)
    assert volume.spacing_mm == pytest.approx((0.8, 1.1, 3))


@pytest.mark.parametrize("plane", AXES)
def test_pixels_are_square(plane):
    """A ball in flat voxels stays round, and stays where it was."""
    volume = ball((60, 40, 20), (1, 1.5, 3.2), (4, -6, 3))
    part = max(slices(volume, plane), key=lambda part: part.image.sum())
    assert part.spacing_mm == pytest.approx(1.5 if plane == "sagittal" else 1)
    np.testing.assert_allclose(extent_of(part.image) * part.spacing_mm, 40, atol=3.3)
    across, up = (axis for axis in range(3) if axis != AXES[plane])
    height, width = part.image.shape
    size = [volume.voxels.shape[axis] * volume.spacing_mm[axis] for axis in (up, across)]
    np.testing.assert_allclose(np.array([height, width]) * part.spacing_mm, size, atol=part.spacing_mm)
    # its middle lies as far from the first corner as it does in mm
    rows, columns = np.nonzero(part.image > 0.5)
    middle = np.array([rows.mean() + 0.5, columns.mean() + 0.5]) * part.spacing_mm
    np.testing.assert_allclose(middle, np.array(size) / 2 - np.array([4, -6, 3])[[up, across]], atol=1.7)


def test_a_resampled_slice_is_that_of_scipy():
    """A smooth picture, by an interpolation of another kind."""
    from scipy.ndimage import map_coordinates

    y = np.linspace(0, 3, 24)[None, :, None]
    x = np.linspace(0, 5, 48)[:, None, None]
    smooth = np.broadcast_to(np.sin(x) * np.cos(y), (48, 24, 5)).astype(np.float32)
    image = slices(Volume(smooth, affine_of((1, 2, 2))), min_head=0, intensity="full_range")[2].image
    assert image.shape == (48, 48)
    unit = (smooth - smooth.min()) / np.ptp(smooth)
    rows, columns = np.mgrid[:48, :48]
    seen = unit[::-1, ::-1, 2].T  # (24, 48)
    expected = map_coordinates(seen, [(rows + 0.5) / 2 - 0.5, columns], order=3, mode="nearest")
    np.testing.assert_allclose(image[3:-3, 3:-3], expected[3:-3, 3:-3], atol=4e-3)


@settings(max_examples=60, deadline=None)
@given(arrays(np.float32, (6, 7, 8), elements=st.sampled_from([0, 0, 0, 0, -3, 1, 2, 5, 7.5, 900])))
def test_percentiles_are_those_of_numpy(values):
    volume = Volume(np.asfortranarray(values)[::-1], affine_of())
    lowest, highest = values.min(), values.max()
    if lowest == highest:
        with pytest.raises(BadImageError, match="one value alone"):
            slices(volume)
        return
    low, high = np.percentile(values, 0.5), np.percentile(values[values > lowest], 99.5)
    expected = (low, high) if low < high else (lowest, highest)
    assert black_and_white(volume) == pytest.approx(expected)


def test_percentiles_of_much_and_of_little_background():
    values = np.sort(RNG.normal(size=(20, 20, 20)).astype(np.float32).ravel())
    for background in (0, 30, 39, 40, 41, 42, 50, 7000):  # 0.5 % of 8000 are 40
        values[: background + 1] = -9
        volume = Volume(RNG.permutation(values).reshape(20, 20, 20), affine_of())
        expected = np.percentile(values, 0.5), np.percentile(values[values > -9], 99.5)
        assert black_and_white(volume) == pytest.approx(expected, abs=1e-6)


def test_windows_and_full_range():
    volume = noise(window=(-0.5, 1.0))
    seen = volume.voxels[::-1, ::-1, 6].T
    options = {"min_head": 0, "intensity": "window"}
    np.testing.assert_allclose(slices(volume, **options)[6].image, ((seen + 0.5) / 1.5).clip(0, 1), atol=1e-6)
    low, high = volume.voxels.min(), volume.voxels.max()
    image = slices(volume, min_head=0, intensity="full_range")[6].image
    np.testing.assert_allclose(image, (seen - low) / (high - low), atol=1e-6)
    for window in (None, (3.0, 3.0), (2.0, 1.0)):
        with pytest.raises(BadImageError, match="no window"):
            slices(noise(window=window), **options)


@pytest.mark.parametrize("intensity", ["full_range", "percentiles"])
def test_white_as_zero_is_the_same_picture(intensity):
    """And what is put around it is black all the same."""
    positive = ball(middle=(5, 0, -8))
    negative = Volume(100 - positive.voxels, positive.affine, white_is_zero=True)
    options = {"plane": "all", "field_of_view_mm": 90, "intensity": intensity}
    one, other = slices(positive, **options), slices(negative, **options)
    assert one.places == other.places
    for first, second in zip(one, other, strict=True):
        np.testing.assert_allclose(first.image, second.image, atol=1e-6)
        assert second.image.shape == (90, 90)
        assert second.image[0, 0] == 0


def test_slices_with_little_head_are_left_out():
    """The area of a ball's slice is 1 - (z / r)² of the largest."""
    volume = ball((64, 64, 64), radius=25)
    for least in (0.25, 0.5, 0.9):
        found = slices(volume, min_head=least)
        reach = 25 * np.sqrt(1 - least)
        assert max(abs(part.position_mm) for part in found) == pytest.approx(reach, abs=1)
        assert len(found) == pytest.approx(2 * reach, abs=2)
        assert found.left_out == {"with too little head": 64 - len(found)}
    assert len(slices(volume, min_head=0)) == 64
    assert slices(volume, min_head=0).left_out == {}


def test_dark_heads_on_a_pedestal_are_heads():
    """Values such as a z-score's, of which 10 % of the upper percentile says nothing."""
    plain = ball()
    shifted = Volume(plain.voxels / 50 - 9, plain.affine)
    assert slices(shifted).places == slices(plain).places


def test_range_and_step():
    volume = noise((8, 8, 20), affine_of((1, 1, 2)))
    found = slices(volume, min_head=0, slice_range=(0.3, 0.8))
    assert [part.index for part in found] == list(range(6, 16))
    assert found.left_out == {"outside --slice_range": 10}
    found = slices(volume, min_head=0, slice_step_mm=5)
    assert [part.index for part in found] == [0, 3, 6, 9, 12, 15, 18]
    assert found.left_out == {"closer than --slice_step_mm": 13}
    thirds = noise((8, 8, 20), affine_of((1, 1, 1 / 3)))  # three of them are not quite 1 in float64
    assert [part.index for part in slices(thirds, min_head=0, slice_step_mm=1)] == list(range(0, 20, 3))


@pytest.mark.parametrize(("spacing", "kept"), [
    ((1, 1, 5), {"axial"}), ((0.9, 5, 0.9), {"coronal"}), ((5, 1, 1), {"sagittal"}), ((2, 2, 3), set(AXES)), ((4, 4, 4), set(AXES)),
    ((4, 4, 6), {"axial"}),
])  # fmt: skip
def test_planes_reformatted_from_thicker_slices_are_left_out(spacing, kept):
    volume = noise((10, 10, 10), affine_of(spacing))
    found = slices(volume, "all", min_head=0, max_spacing_mm=3)
    assert {part.plane for part in found} == kept
    assert found.left_out == (
        {"reformatted from slices thicker than --max_spacing_mm": 10 * (3 - len(kept))}
        if len(kept) < 3
        else {}
    )
    assert len(slices(volume, "all", min_head=0)) == 30


def test_the_acquired_plane_stays_even_if_it_is_not_the_finest():
    volume = noise((10, 10, 10), affine_of((4, 4, 3.5)), acquired_axis=2)
    assert {part.plane for part in slices(volume, "all", min_head=0, max_spacing_mm=3)} == set(AXES)
    volume = noise((10, 10, 10), affine_of((3.5, 4, 4)), acquired_axis=0)
    found = slices(volume, "all", min_head=0, max_spacing_mm=3)
    assert len(found) == 30  # the others are no coarser


def test_uneven_spacing_is_fine_in_the_acquired_plane_alone():
    uneven = np.array([0, 3, 6, 13, 16, 19, 22.0])
    volume = noise((8, 9, 7), affine_of((1, 1, 3)), acquired_axis=2, positions_mm=uneven)
    assert [part.position_mm for part in slices(volume, min_head=0)] == uneven.tolist()
    found = slices(volume, min_head=0, slice_step_mm=7)
    assert [part.position_mm for part in found] == [0, 13, 22]
    for plane in ("coronal", "sagittal"):
        with pytest.raises(BadImageError, match="unevenly spaced.*--plane axial"):
            slices(volume, plane)
    found = slices(volume, "all", min_head=0)
    assert {part.plane for part in found} == {"axial"}
    assert found.left_out == {"across unevenly spaced slices": 8 + 9}


@pytest.mark.parametrize("plane", AXES)
def test_a_field_of_view_gives_every_head_one_place_and_scale(plane):
    """The same ball in three scanners' grids."""
    for shape, spacing, middle in [
        ((64, 64, 64), (1, 1, 1), (9, -4, 7)),
        ((100, 90, 40), (0.7, 0.7, 2), (-8, 5, 0)),
        ((40, 34, 30), (1.5, 1.6, 1.5), (0, 0, 0)),
    ]:
        found = slices(ball(shape, spacing, middle), plane, field_of_view_mm=80)
        part = max(found, key=lambda part: part.image.sum())
        side = part.image.shape[0]
        assert part.image.shape == (side, side)
        assert side * part.spacing_mm == pytest.approx(80, abs=part.spacing_mm / 2)
        rows, columns = np.nonzero(part.image > 0.5)
        middle = np.array([rows.mean(), columns.mean()]) + 0.5
        np.testing.assert_allclose(middle * part.spacing_mm, 40, atol=1.7)
        np.testing.assert_allclose(extent_of(part.image) * part.spacing_mm, 40, atol=2.2)


def test_a_field_of_view_moves_by_whole_pixels():
    volume = noise((30, 30, 5))
    whole = slices(volume, min_head=0)[2].image
    small, large = (slices(volume, min_head=0, field_of_view_mm=mm)[2].image for mm in (21, 41))
    assert any(
        np.array_equal(small, whole[top : top + 21, left : left + 21])
        for top in range(10)
        for left in range(10)
    )
    assert large.shape == (41, 41)
    assert large.sum() == pytest.approx(whole.sum(), rel=1e-5)
    with pytest.raises(BadImageError, match="smaller --field_of_view_mm"):
        slices(volume, field_of_view_mm=1e6)[0]


def test_a_bright_voxel_in_the_air_does_not_move_the_frame():
    volume = ball(middle=(6, -3, 2))
    centre = slices(volume).centre
    volume.voxels[0, 0, 0] = 1000
    assert slices(Volume(volume.voxels, volume.affine)).centre == centre


def test_slices_by_mask():
    volume = noise((8, 9, 20))
    marks = np.zeros((8, 9, 20), dtype=np.float32)
    marks[2:5, 3, 7:11] = 4
    mask = Volume(marks, volume.affine)
    with_mask, without = (
        slices(volume, min_head=0, mask=mask, slices=which) for which in ("with_mask", "without_mask")
    )
    assert [part.index for part in with_mask] == [7, 8, 9, 10]
    assert with_mask.left_out == {"without a mask": 16}
    assert sorted(with_mask.places + without.places) == list(slices(volume, min_head=0).places)
    assert without.left_out == {"with a mask": 4}
    empty = Volume(np.zeros_like(marks), volume.affine)
    assert len(slices(volume, min_head=0, mask=empty, slices="without_mask")) == 20
    with pytest.raises(InputError, match="needs masks"):
        slices(volume, slices="with_mask")
    for other in (noise((8, 9, 21)), noise((8, 9, 20), affine_of(origin=(0, 0, 0.01)))):
        with pytest.raises(BadImageError, match="8x9x20, and its mask 8x9x2"):
            slices(volume, mask=other, slices="with_mask")


def test_another_contrast_is_cut_at_the_same_places():
    volume = ball(middle=(6, -3, 2))
    other = Volume(200 - volume.voxels, volume.affine)
    found = slices(volume, "all", field_of_view_mm=50)
    same = found.of(other, 100, 200)
    assert same.places == found.places
    for one, two in zip(found, same, strict=True):
        inside = one.image > 0
        assert (two.image[inside] == 0).all()
        assert one.image.shape == two.image.shape
    with pytest.raises(BadImageError, match="64x64x64 and not on the grid"):
        found.of(Volume(other.voxels, affine_of((2, 2, 2))), 0, 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e35])
def test_values_that_no_scan_has_are_refused(value):
    values = np.ones((5, 5, 5), dtype=np.float32)
    values[1, 2, 3] = value
    with pytest.raises(BadImageError, match="which no scan has"):
        Volume(values, affine_of())


@pytest.mark.parametrize("spacing", [(1, 1, 0), (1, 1, 1e6), (1e-9, 1, 1), (1, np.nan, 1)])
def test_affines_that_no_scanner_has_are_refused(spacing):
    with pytest.raises(BadImageError, match="which no scan has"):
        noise(affine=affine_of(spacing))


@pytest.mark.filterwarnings("error")
def test_extreme_values_stay_finite():
    values = RNG.normal(size=(8, 8, 8)).astype(np.float32)
    for extreme in (9e29, -9e29):
        values[4, 4, 4] = extreme
        for scale in (1, 1e-37, 0):
            volume = Volume(
                np.where(values == np.float32(extreme), values, values * np.float32(scale)),
                affine_of((1, 2, 3)),
            )
            for intensity in ("percentiles", "full_range"):
                for part in slices(volume, "all", intensity=intensity):
                    assert np.isfinite(part.image).all()
                    assert part.image.min() >= 0
                    assert part.image.max() <= 1


def test_voxels_too_flat_to_be_cut_are_refused():
    volume = noise((300, 300, 100), affine_of((0.01, 0.01, 99)))
    assert slices(volume, min_head=0)[5].image.shape == (300, 300)
    with pytest.raises(BadImageError, match="too far from cubes"):
        slices(volume, "coronal", min_head=0)[0]


@pytest.mark.parametrize("options", [{"plane": "oblique"}, {"intensity": "auto"}, {"slices": "some"}])
def test_unknown_choices_are_named(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"--{name} {value} is unknown: choose one of "):
        slices(noise(), **options)
