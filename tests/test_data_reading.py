"""Images of every kind become the right grey floats; the range and the square."""

import io

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from mri_ddpm.data import format_account, load_scans
from mri_ddpm.data.intensity import scale_of_manifest, to_model_range, to_unit_range
from mri_ddpm.data.reading.pictures import BadImageError, fit_square, read_scan

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 31), dtype=np.uint8)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def read(image, format="PNG", **options):
    scan = read_scan(encoded(image, format, **options))
    assert scan.dtype == np.float32
    assert scan.ndim == 2
    return scan


def test_ranges_are_inverse_in_float64():
    unit = torch.rand(4, 1, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(to_unit_range(to_model_range(unit)), unit, rtol=0, atol=1e-15)
    array = np.linspace(0, 1, 101)
    np.testing.assert_allclose(to_unit_range(to_model_range(array)), array, rtol=0, atol=1e-15)
    assert to_model_range(np.array([0.0, 0.5, 1.0])).tolist() == [-1, 0, 1]
    assert to_model_range(np.float32([0.5])).dtype == np.float32


def test_grey_valued_colour_has_no_tint_and_loses_nothing():
    expected = (GREY / 255).astype(np.float32)
    for mode in ("L", "RGB", "RGBA", "LA"):
        np.testing.assert_array_equal(read(Image.fromarray(GREY).convert(mode)), expected, err_msg=mode)


def test_colour_becomes_luma():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    np.testing.assert_allclose(read(Image.fromarray(colours)), [[0.299, 0.587, 0.114, 1]], atol=1e-6)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_keeps_its_depth(format):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    scan = read(Image.fromarray(values), format)
    np.testing.assert_allclose(scan, values / 65535, atol=1e-7)
    assert len(np.unique(scan)) == 65536
    # and through a square of its own size as the cache stores it
    stored = np.round(fit_square(scan, 256, "pad") * 65535)
    assert np.abs(stored / 65535 - values / 65535).max() < 1 / 60000


def test_32_bit_and_float():
    levels = np.array([[0, 16384, 65535]])
    np.testing.assert_allclose(
        read(Image.fromarray(levels.astype(np.int32)), "TIFF"), levels / 65535, atol=1e-7
    )
    beyond = np.array([[-1000, 0, 3000]])
    np.testing.assert_allclose(
        read(Image.fromarray(beyond.astype(np.int32)), "TIFF"), [[0, 0.25, 1]], atol=1e-7
    )
    unit = np.float32([[0, 0.3, 0.6]])
    np.testing.assert_array_equal(read(Image.fromarray(unit), "TIFF"), unit)
    np.testing.assert_allclose(read(Image.fromarray(unit * 10), "TIFF"), [[0, 0.5, 1]], atol=1e-7)
    with pytest.raises(BadImageError, match="not finite"):
        read(Image.fromarray(np.float32([[0, np.nan]])), "TIFF")


def test_1_bit_palette_and_cmyk():
    bits = GREY > 127
    np.testing.assert_array_equal(read(Image.fromarray(bits)), bits)
    palette = Image.fromarray(GREY % 4)
    palette.putpalette([0, 0, 0, 50, 50, 50, 100, 100, 100, 255, 255, 255])
    assert palette.mode == "P"
    np.testing.assert_allclose(read(palette), np.array([0, 50, 100, 255])[GREY % 4] / 255, atol=1e-7)
    cmyk = np.zeros((*GREY.shape, 4), dtype=np.uint8)
    cmyk[..., 3] = 255 - GREY  # black ink alone
    np.testing.assert_allclose(read(Image.fromarray(cmyk, "CMYK"), "TIFF"), GREY / 255, atol=1e-7)


def test_transparency_is_composited_on_black():
    alpha = RNG.integers(0, 256, GREY.shape, dtype=np.uint8)
    expected = GREY / 255 * alpha / 255
    for mode in ("LA", "RGBA"):
        image = Image.fromarray(GREY).convert(mode)
        image.putalpha(Image.fromarray(alpha))
        np.testing.assert_allclose(read(image), expected, atol=1e-6, err_msg=mode)
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8))
    palette.putpalette([200, 200, 200, 200, 200, 200])
    np.testing.assert_allclose(read(palette, transparency=0), [[0, 200 / 255]], atol=1e-6)


def test_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side: turn clockwise by a quarter to see it upright
    np.testing.assert_array_equal(
        read(Image.fromarray(GREY), exif=exif), np.rot90(GREY, -1) / np.float32(255)
    )


def test_what_cannot_be_read(monkeypatch):
    whole = encoded(Image.fromarray(GREY), "PNG")
    for content, reason in [
        (b"", "is empty"),
        (b"a,table\n1,2\n", "not an image"),
        (whole[: len(whole) // 2], "cannot be decoded.*truncated"),
        (encoded(Image.fromarray(GREY), "JPEG")[:200], "cannot be decoded|not an image"),
    ]:
        with pytest.raises(BadImageError, match=reason):
            read_scan(content)
    # Pillow only warns up to twice its limit, and raises beyond it: here both are refused.
    for limit in (GREY.size - 1, GREY.size // 3):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(BadImageError, match=f"more than {limit} pixels"):
            read_scan(whole)


def test_square_by_pad_crop_and_stretch():
    wide = np.zeros((20, 40), dtype=np.float32)
    wide[:, 10:30] = 1  # the centred square is white
    assert fit_square(wide, 16, "crop").min() == 1
    padded = fit_square(wide, 40, "pad")
    np.testing.assert_array_equal(padded[10:30], wide)
    assert padded[:10].max() == padded[30:].max() == 0
    stretched = fit_square(wide, 20, "stretch")
    assert stretched.shape == (20, 20)
    assert np.abs(stretched[:, 5:15].mean() - 1) < 0.02
    for fit in ("pad", "crop", "stretch"):
        small = fit_square(RNG.random((53, 67), dtype=np.float32), 16, fit)
        assert small.dtype == np.float32
        assert 0 <= small.min() <= small.max() <= 1


def test_shrinking_is_antialiased():
    stripes = np.tile(np.float32([0, 1]), (128, 64))  # finer than the small image can show
    assert np.abs(fit_square(stripes, 32, "pad")[4:-4, 4:-4] - 0.5).max() < 0.05


def test_padding_to_an_enormous_square_is_refused():
    with pytest.raises(BadImageError, match="too far from square"):
        fit_square(np.zeros((1, 20000), dtype=np.float32), 16, "pad")
    assert fit_square(np.zeros((1, 20000), dtype=np.float32), 16, "stretch").shape == (16, 16)


def tiff(*pages, **options):
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, **({"metadata": None, "photometric": "minisblack"} | options))
    return file.getvalue()


@pytest.mark.parametrize(
    ("dtype", "levels", "unit"),
    [
        ("uint8", [0, 51, 255], [0, 0.2, 1]),
        ("int8", [-128, 0, 127], [0, 128 / 255, 1]),
        ("uint16", [0, 13107, 65535], [0, 0.2, 1]),
        ("int16", [0, 13107, 32767], [0, 0.2, 32767 / 65535]),
        ("int16", [-1000, 0, 3000], [0, 0.25, 1]),
        ("uint32", [0, 2**30, 2**32 - 1], [0, 0.25, 1]),
        ("int32", [0, 13107, 65535], [0, 0.2, 1]),
        ("uint64", [0, 13107, 65535], [0, 0.2, 1]),
        ("float16", [0, 0.25, 1], [0, 0.25, 1]),
        ("float32", [0, 0.2, 1], [0, 0.2, 1]),
        ("float64", [0, 600, 3000], [0, 0.2, 1]),
    ],
)
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_tiff_is_read_as_its_tags_say(dtype, levels, unit, white_is_zero, byteorder):
    values = np.array([levels] * 2, dtype=dtype)
    unit = np.array([unit] * 2)
    file = io.BytesIO()
    photometric = "miniswhite" if white_is_zero else "minisblack"
    tifffile.imwrite(file, values, photometric=photometric, byteorder=byteorder, metadata=None)
    np.testing.assert_allclose(read_scan(file.getvalue()), 1 - unit if white_is_zero else unit, atol=1e-6)


def test_tiff_of_16_bit_colours_keeps_its_depth():
    grey = RNG.integers(0, 65536, (20, 31), dtype=np.uint16)
    for axis, planar in ((-1, "contig"), (0, "separate")):
        colours = np.stack([grey] * 3, axis=axis)
        content = tiff(colours, photometric="rgb", planarconfig=planar)
        np.testing.assert_allclose(read_scan(content), grey / 65535, atol=1e-7)
    alpha = RNG.integers(0, 65536, grey.shape, dtype=np.uint16)
    content = tiff(np.dstack([grey] * 3 + [alpha]), photometric="rgb", extrasamples=["unassalpha"])
    np.testing.assert_allclose(read_scan(content), grey / 65535 * (alpha / 65535), atol=1e-6)


def test_tiff_is_turned_upright_whatever_its_depth():
    for orientation in range(1, 9):
        tags = [(274, "H", 1, orientation, True)]
        shallow, deep = (read_scan(tiff(v, extratags=tags)) for v in (GREY, GREY.astype(np.uint16) * 257))
        np.testing.assert_allclose(deep, shallow, atol=1e-7, err_msg=str(orientation))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_compressed_tiff(compression, dtype):
    levels = GREY / 255 if dtype == "float32" else GREY.astype(int) * (1 if dtype == "uint8" else 257)
    content = encoded(Image.fromarray(levels.astype(dtype)), "TIFF", compression=compression)
    np.testing.assert_allclose(read_scan(content), GREY / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_of_several_pages_one_may_be_other_than_blank(dtype):
    page = GREY.astype(dtype)
    blank = np.zeros_like(page)
    expected = read_scan(tiff(page))
    for pages in ([blank, page], [page, blank], [blank, page, blank]):
        np.testing.assert_array_equal(read_scan(tiff(*pages)), expected)
    assert read_scan(tiff(blank, blank)).max() == 0
    for pages in ([page, page[::-1]], [blank, page, page]):
        with pytest.raises(BadImageError, match="holds several pictures"):
            read_scan(tiff(*pages))
    thumbnail = io.BytesIO()
    with tifffile.TiffWriter(thumbnail) as writer:
        writer.write(page, metadata=None)
        writer.write(page[::2, ::2], subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_scan(thumbnail.getvalue()), expected)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_a_film_is_no_scan(format):
    frames = [Image.fromarray(GREY), Image.fromarray(GREY[::-1].copy())]
    with pytest.raises(BadImageError, match="holds several pictures"):
        read_scan(encoded(frames[0], format, save_all=True, append_images=frames[1:]))


def test_tiff_that_cannot_be_read(monkeypatch):
    whole = tiff(GREY.astype(np.uint16))
    for content in (whole[:20], whole[:400], b"II*\0" + bytes(50)):
        with pytest.raises(BadImageError):
            read_scan(content)
    with pytest.raises(BadImageError, match="complex"):
        read_scan(tiff(GREY.astype(np.complex64)))
    with pytest.raises(BadImageError, match="not finite"):
        read_scan(tiff(np.float32([[0, np.nan]])))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", GREY.size - 1)
    with pytest.raises(BadImageError, match="more than"):
        read_scan(whole)


@pytest.mark.parametrize(
    ("dtype", "odd", "black", "white"),
    [("int16", -1, -1, 4000), ("uint32", 70000, 0, 70000), ("float32", 3000.0, 0, 3000)],
)
def test_one_scale_for_the_whole_data_set(tmp_path, dtype, odd, black, white):
    """One odd pixel in one file changes the scale of all of them, and the account says so."""
    tissue = 0.2 if dtype == "float32" else 2000
    top = 1.0 if dtype == "float32" else 4000
    for index in range(4):
        values = np.full((64, 64), tissue, dtype=dtype)
        values[:8, : 8 * index + 8] = top
        if index == 3:
            values[-1, -1] = odd
        (tmp_path / "scans").mkdir(exist_ok=True)
        (tmp_path / f"scans/{index}.tif").write_bytes(tiff(values))
    scans = load_scans(
        resolution=64,
        train_data_dir=str(tmp_path / "scans"),
        cache_dir=str(tmp_path / "cache"),
        keep_repeats=True,
    )
    for part in (scans.train, scans.validation):
        unit = part.batch(range(len(part)))["pixel_values"].numpy()
        np.testing.assert_allclose(unit[:, 0, 40, 20], (tissue - black) / (white - black), atol=1e-4)
    text = format_account(scans.manifest)
    assert f"4, in all {black} is black and {white} white" in text
    assert f"{odd:g} in 3.tif" in text
    # A scan given alone later is read on the same scale, which its own values do not show
    alone, scale = tiff(np.full((64, 64), tissue, dtype=dtype)), scale_of_manifest(scans.manifest)
    np.testing.assert_allclose(read_scan(alone, scale), (tissue - black) / (white - black), atol=1e-6)


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        3,
        {"float": [0, 1]},
        {"float": [0, 1], "integer": [5, 5]},
        {"float": [0, 1], "integer": "ab"},
    ],
)
def test_a_manifest_of_anybody_has_a_scale_or_none(found):
    assert scale_of_manifest({"intensity_scale": found}) is None
    assert scale_of_manifest({}) is scale_of_manifest(None) is None
