"""NIfTI files become volumes that lie as the head lies; damaged, enormous and foreign ones end in a sentence."""

import gzip
import io
import itertools
import struct
import sys
import tracemalloc
from contextlib import suppress
from pathlib import Path

import nibabel
import numpy as np
import pytest
from damage import random_damage
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.testing import data_path

from mri_ddpm.data import read_volume, slices
from mri_ddpm.data.reading.nifti import HEAD_BYTES, MAX_VOXELS, image_names, is_nifti, read_nifti
from mri_ddpm.data.reading.pictures import BadImageError
from mri_ddpm.errors import InputError

RNG = np.random.default_rng(0)
VALUES = RNG.integers(-500, 3000, (8, 9, 10)).astype(np.int16)
TURNED = np.array([[0.97, -0.2, 0.1, -20], [0.2, 0.97, 0.05, 7], [-0.1, -0.03, 2.2, 3], [0, 0, 0, 1]])
TEMPLATES = Path("/usr/share/mricron/templates")  # Debian's mricron-data: Colin27
KINDS = (
    np.uint8,
    np.int8,
    np.uint16,
    np.int16,
    np.uint32,
    np.int32,
    np.uint64,
    np.int64,
    np.float32,
    np.float64,
)


def image_of(values=VALUES, affine=TURNED, kind=nibabel.Nifti1Image, **header):
    image = kind(values, affine)
    image.header.set_data_dtype(values.dtype)
    for key, value in header.items():
        image.header[key] = value
    return image


def encoded(*args, **options):
    return image_of(*args, **options).to_bytes()


def with_header(content, **fields):
    """The same file with fields of its header overwritten, wrong as they may be."""
    header = nibabel.Nifti1Header(content[:348], check=False)
    for key, value in fields.items():
        header[key] = value
    return header.binaryblock + content[348:]


def assert_equal(volume, image):
    """A volume and what nibabel makes of an image, an independent path through its proxies."""
    expected = nibabel.as_closest_canonical(image)
    np.testing.assert_allclose(volume.voxels, expected.get_fdata(), rtol=1e-6)
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-5)
    assert volume.voxels.dtype == np.float32


def test_every_way_a_volume_can_lie_is_one():
    """48 orders and directions of axes, the same slices."""
    expected = slices(read_nifti(encoded()), "all", field_of_view_mm=12, max_spacing_mm=3)
    ways = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))
    assert len(ways) == 48
    for order, signs in ways:
        turned = image_of().as_reoriented(np.column_stack([order, signs]))
        volume = read_nifti(turned.to_bytes())
        np.testing.assert_array_equal(volume.voxels, VALUES)
        np.testing.assert_allclose(volume.affine, TURNED, atol=1e-5)
        found = slices(volume, "all", field_of_view_mm=12, max_spacing_mm=3)
        assert found.places == expected.places
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.image, other.image)
            assert one.position_mm == pytest.approx(other.position_mm, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(4, 7)] * 3),
    dtype=st.sampled_from(KINDS),
    byte_order=st.sampled_from("<>"),
    order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from((1, -1))] * 3),
    slope=st.sampled_from([None, 1, 0.5, -3, 1e-3]),
    inter=st.sampled_from([0, -1024, 7.25]),
    version=st.sampled_from([nibabel.Nifti1Image, nibabel.Nifti2Image]),
    packed=st.booleans(),
)
def test_what_nibabel_writes_is_read(shape, dtype, byte_order, order, signs, slope, inter, version, packed):
    """Of every kind of number, byte order, version and scale."""
    values = RNG.integers(0, 127, shape).astype(np.dtype(dtype).newbyteorder(byte_order))
    header = version.header_class(endianness=byte_order)
    header.set_data_dtype(values.dtype)
    image = version(values, TURNED, header).as_reoriented(np.column_stack([order, signs]))
    image.header.set_slope_inter(slope, inter if slope else None)
    content = image.to_bytes()
    # nibabel would divide by the scale while writing: it is put into the header afterwards
    at, size = (112, "f") if version is nibabel.Nifti1Image else (176, "d")
    written = image.header.endianness + 2 * size
    content = (
        content[:at] + struct.pack(written, slope or 0, inter) + content[at + struct.calcsize(written) :]
    )
    opened = version.from_bytes(content)
    assert_equal(read_nifti(gzip.compress(content, mtime=0) if packed else content), opened)


def test_pairs_and_names(tmp_path):
    image = image_of(kind=nibabel.Nifti1Pair)
    nibabel.save(image, tmp_path / "a_t2.img")
    nibabel.save(image, tmp_path / "b_T1w.img.gz")
    header, voxels = (tmp_path / "a_t2.hdr").read_bytes(), (tmp_path / "a_t2.img").read_bytes()
    assert_equal(read_nifti(header, voxels), image)
    assert_equal(read_nifti(header, gzip.compress(voxels, mtime=0)), image)
    volume = read_volume(tmp_path / "a_t2.hdr")
    assert_equal(volume, image)
    assert volume.contrast == "t2"
    assert image_names("b_T1w.hdr.gz") == ("b_T1w.img", "b_T1w.img.gz")
    assert read_volume(tmp_path / "b_T1w.hdr.gz").contrast == "t1"
    assert image_names("x.nii.gz") == ()
    (tmp_path / "a_t2.img").unlink()
    with pytest.raises(InputError, match="a_t2.hdr is a header alone: put its .img beside it"):
        read_volume(tmp_path / "a_t2.hdr")
    with pytest.raises(InputError, match="nowhere.nii cannot be opened: No such file"):
        read_volume(tmp_path / "nowhere.nii")


def test_sform_goes_before_qform():
    image = image_of()
    other = np.diag([-3.0, -3, 3, 1])
    image.set_qform(other, 1)
    image.set_sform(TURNED, 2)
    np.testing.assert_allclose(read_nifti(image.to_bytes()).affine, TURNED, atol=1e-6)
    image.set_sform(TURNED, 0)
    volume = read_nifti(image.to_bytes())
    np.testing.assert_array_equal(volume.voxels, VALUES[::-1, ::-1])
    assert volume.spacing_mm == (3, 3, 3)


def test_without_orientation_nothing_is_guessed():
    content = with_header(encoded(), sform_code=0, qform_code=0)
    with pytest.raises(BadImageError, match="--assume_orientation RAS"):
        read_nifti(content)
    volume = read_nifti(content, assume_orientation="RAS")
    np.testing.assert_array_equal(volume.voxels, VALUES)
    assert volume.spacing_mm == pytest.approx(np.linalg.norm(TURNED[:3, :3], axis=0))
    assert volume.positions(2)[[0, -1]].sum() == pytest.approx(0)
    # What the file says goes before what is assumed
    np.testing.assert_allclose(read_nifti(encoded(), assume_orientation="RAS").affine, TURNED, atol=1e-6)
    with pytest.raises(InputError, match="LPS is unknown"):
        read_nifti(content, assume_orientation="LPS")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_one_of_several_volumes(pack):
    many = RNG.integers(0, 99, (5, 6, 7, 3)).astype(np.int16)
    content = pack(encoded(many))
    volume = read_nifti(content)
    np.testing.assert_array_equal(volume.voxels, many[..., 0])
    assert volume.notes == ("holds 3 volumes, of which the first is taken: choose by --volume_index",)
    for index in range(3):
        volume = read_nifti(content, volume_index=index)
        np.testing.assert_array_equal(volume.voxels, many[..., index])
        assert volume.notes == ()
    for index in (3, -1):
        with pytest.raises(BadImageError, match=f"holds 3 volumes, counted from 0: --volume_index {index}"):
            read_nifti(content, volume_index=index)
    assert read_nifti(pack(encoded(many[..., :1]))).notes == ()
    with pytest.raises(BadImageError, match="holds 1 volume,"):
        read_nifti(encoded(), volume_index=1)


RGB = np.zeros((5, 5, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])


@pytest.mark.parametrize(("content", "words"), [
    (encoded(VALUES[:, :, 0]), "is 8x9 and no volume but a single picture"),
    (encoded(VALUES[:, :, :1]), "is 8x9x1 and no volume but a single picture"),
    (encoded(VALUES[:, :3]), "is 8x3x10, and a volume has 4 slices"),
    (encoded(np.zeros((5, 5, 5, 1, 3), dtype=np.int16)), "is 5x5x5x1x3, of more axes"),
    (encoded(RGB), "holds colours"),
    (encoded(VALUES.astype(np.complex64)), "holds complex numbers"),
    (encoded(VALUES.astype(np.float32) * np.float32(np.nan)), "not one finite number"),
    (encoded(VALUES.astype(np.float64) * 1e36), "which no scan has"),
    (with_header(encoded(), dim=[3, 8, 9, -10, 1, 1, 1, 1]), "claims to be 8x9x-10 voxels"),
    (with_header(encoded(), dim=[3, 8, 0, 10, 1, 1, 1, 1]), "claims to be 8x0x10 voxels"),
    (with_header(encoded(), vox_offset=1e30), "claims that its voxels begin at byte"),
    (with_header(encoded(), vox_offset=-1e30), "cannot be read as NIfTI .*vox offset"),
    (with_header(encoded(), srow_x=[0, 0, 0, 0], srow_y=[0, 0, 0, 0]), "which no scan has|cannot be read"),
    (with_header(encoded(), srow_z=[np.nan, 0, 2, 0]), "which no scan has|cannot be read"),
    (with_header(encoded(), scl_slope=2, scl_inter=np.inf), "cannot be read as NIfTI .*intercept"),
    (encoded()[:1000], "is truncated: of 1440 bytes of voxels it holds 648"),
    (gzip.compress(encoded()[:1000], mtime=0), "is truncated: of 1440 bytes of voxels it holds 648"),
    (gzip.compress(encoded(), mtime=0)[:300], "cannot be read|is truncated|is not a NIfTI"),
    (encoded(kind=nibabel.Nifti1Image)[:344], "is not a NIfTI volume|is an Analyze volume"),
    (nibabel.AnalyzeHeader().binaryblock, "is an Analyze volume"),
    (nibabel.AnalyzeHeader(endianness=">").binaryblock, "is an Analyze volume"),
    (b"", "is not a NIfTI volume"),
    (b"\x1f\x8b", "is not a NIfTI volume"),
    (b"\x1f\x8b" + bytes(400), "cannot be read"),
    (b"hello\n" * 200, "is not a NIfTI volume"),
    (gzip.compress(b"hello\n" * 200, mtime=0), "is not a NIfTI volume"),
])  # fmt: skip
def test_what_is_no_scan_ends_in_a_sentence(content, words):
    with pytest.raises(BadImageError, match=words):
        read_nifti(content)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_background(value):
    """As SPM writes it outside the head."""
    values = VALUES.astype(np.float32)
    values[:, 5:] = value
    volume = read_nifti(encoded(values))
    assert (volume.voxels[:, 5:] == VALUES[:, :5].min()).all()
    np.testing.assert_array_equal(volume.voxels[:, :5], VALUES[:, :5])
    assert volume.notes == ("holds values that are no finite numbers (320): they are taken as its lowest",)


def test_the_window_of_the_header():
    assert read_nifti(encoded(cal_min=-3, cal_max=800)).window == (-3, 800)
    for low, high in ((0, 0), (5, 2), (np.nan, 1), (0, np.inf)):
        assert read_nifti(encoded(cal_min=low, cal_max=high)).window is None


def test_small_faults_are_mended_silently(caplog):
    """Which nibabel does, but not silently; and no place of the voxels means right after the header."""
    np.testing.assert_array_equal(read_nifti(with_header(encoded(), vox_offset=0)).voxels, VALUES)
    content = with_header(encoded(), sizeof_hdr=349, pixdim=[0, 1, 1, 2, 0, 0, 0, 0])
    np.testing.assert_array_equal(read_nifti(content).voxels, VALUES)
    assert caplog.text == ""
    nibabel.Nifti1Header(content[:348])
    assert "sizeof_hdr should be 348" in caplog.text


def peak_of(read):
    """The memory that a reading took at most, in bytes; it ends in a sentence."""
    tracemalloc.start()
    try:
        with pytest.raises(BadImageError) as caught:
            read()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_claims_take_no_memory(pack):
    """A header of a few bytes may say anything of what follows it."""
    read_nifti(encoded())  # what is imported once is not counted
    for dims, words in [
        ([3, 30000, 30000, 300, 1, 1, 1, 1], f"is 30000x30000x300, and no more than {MAX_VOXELS} voxels"),
        ([4, 512, 512, 512, 30000, 1, 1, 1], "is truncated"),
        ([3, 512, 512, 512, 1, 1, 1, 1], "is truncated"),
    ]:
        content = pack(with_header(encoded(), dim=dims))
        taken, message = peak_of(lambda content=content: read_nifti(content))
        assert words in message
        assert taken < 2**20


def test_bombs_take_no_memory():
    """512 MB of zeros in two megabytes: after a volume, and before a late one."""
    read_nifti(encoded())
    zeros = io.BytesIO()
    with gzip.open(zeros, "wb", compresslevel=1) as file:
        for _ in range(512):
            file.write(bytes(2**20))
    bomb = zeros.getvalue()
    assert len(bomb) < 2**22
    tracemalloc.start()
    try:
        volume = read_nifti(gzip.compress(encoded(), mtime=0) + bomb)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(volume.voxels, VALUES)
    late = with_header(encoded(), dim=[4, 8, 9, 10, 32767, 1, 1, 1])[: 348 + 4]
    many = gzip.compress(late, mtime=0) + bomb
    tracemalloc.start()
    try:
        voxels = read_nifti(many, volume_index=32000).voxels
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()
    assert not voxels.any()


def test_a_wrong_checksum_is_seen():
    packed = bytearray(gzip.compress(encoded(), mtime=0))
    packed[-6] ^= 1
    with pytest.raises(BadImageError, match="cannot be read as NIfTI .*data check"):
        read_nifti(bytes(packed))


def test_several_pieces_of_gzip_are_one_file():
    content = encoded()
    pieces = b"".join(gzip.compress(content[at : at + 500], mtime=0) for at in range(0, len(content), 500))
    np.testing.assert_array_equal(read_nifti(pieces).voxels, VALUES)
    assert is_nifti(pieces[:HEAD_BYTES])


def test_nifti_is_known_by_its_content():
    for kind in (nibabel.Nifti1Image, nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.Nifti2Pair):
        header = image_of(kind=kind).header
        header["magic"] = kind.header_class().default_structarr()["magic"]
        for content in (header.binaryblock, header.as_byteswapped().binaryblock):
            assert is_nifti(content), kind
            assert is_nifti(gzip.compress(content, mtime=0))
    noise = RNG.bytes(2**16)
    assert is_nifti(gzip.compress(encoded() + noise, 1, mtime=0)[:HEAD_BYTES])
    for other in (
        b"",
        b"\x1f\x8b",
        b"\x1f\x8b\x08" + noise,
        noise,
        gzip.compress(noise, mtime=0),
        b"\x89PNG" + bytes(600),
    ):
        assert not is_nifti(other)
    assert not is_nifti(bytes(128) + b"DICM" + bytes(600))
    assert not is_nifti(nibabel.AnalyzeHeader().binaryblock)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_damaged_files_end_in_a_sentence_or_a_finite_volume(name):
    content = encoded(RNG.normal(size=(8, 9, 10)).astype(np.float32), cal_max=1)
    sentences = []
    for seed, damaged in random_damage(
        name, gzip.compress(content, mtime=0) if name.endswith("gz") else content, 150
    ):
        try:
            volume = read_nifti(damaged)
            assert np.isfinite(volume.voxels).all(), seed
            for part in slices(volume, "all", field_of_view_mm=20):
                assert np.isfinite(part.image).all(), seed
        except BadImageError as error:
            sentences.append(str(error))
    assert len(sentences) > 20
    assert all(sentences)
    assert not any("\n" in sentence for sentence in sentences)


@settings(max_examples=150, deadline=None)
@given(
    header=st.binary(min_size=344, max_size=344), dims=st.lists(st.integers(-2, 9), min_size=7, max_size=7)
)
def test_headers_of_noise_end_in_a_sentence_or_a_finite_volume(header, dims):
    dims = struct.pack("<8h", 3, *dims)
    datatype = struct.pack("<2h", 4, 16)
    content = struct.pack("<i", 348) + header[4:40] + dims + header[56:70] + datatype + header[74:] + b"n+1\0"
    with suppress(BadImageError):
        volume = read_nifti(content + VALUES.tobytes())
        assert np.isfinite(volume.voxels).all()
        assert np.isfinite(volume.affine).all()


def test_without_nibabel_the_way_out_is_named(monkeypatch):
    content = encoded()
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[volumes\]"'):
        read_nifti(content)
    assert is_nifti(content)


@pytest.mark.parametrize(
    "name", ["anatomical.nii", "example4d.nii.gz", "example_nifti2.nii.gz", "standard.nii.gz"]
)
def test_real_files_of_nibabel(name):
    path = Path(data_path, name)
    image = nibabel.load(path)
    first = image.slicer[..., 0] if image.ndim == 4 else image
    volume = read_volume(path)
    assert_equal(volume, first)
    assert bool(volume.notes) == (image.ndim == 4)
    for part in slices(volume, "all"):
        assert part.image.min() >= 0
        assert part.image.max() <= 1


def test_a_thin_slab_is_refused():
    with pytest.raises(InputError, match="functional.nii is 17x21x3x20, and a volume has 4 slices"):
        read_volume(Path(data_path, "functional.nii"))


@pytest.mark.skipif(not TEMPLATES.is_dir(), reason="needs Debian's mricron-data")
def test_colin27():
    """One head, whose slices and tissue are known."""
    volume = read_volume(TEMPLATES / "ch2.nii.gz")
    found = slices(volume)
    assert (len(found), found.left_out) == (144, {"with too little head": 37})
    middle = slices(volume, slice_range=(0.3, 0.8))
    brain = middle.of(read_volume(TEMPLATES / "ch2bet.nii.gz"), 0, 1)
    white_matter = [
        np.percentile(head.image[inside.image > 0], 85) for head, inside in zip(middle, brain, strict=True)
    ]
    assert min(white_matter) > 0.53
    assert max(white_matter) < 0.62
    labels = read_volume(TEMPLATES / "aal.nii.gz")
    with_mask, without = (
        slices(volume, mask=labels, slices=which) for which in ("with_mask", "without_mask")
    )
    assert len(with_mask) + len(without) == 144
    assert 0 < len(without) < len(with_mask)
