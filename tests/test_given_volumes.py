"""A volume in gives a volume out: cut as the training cuts, sampled slice by slice, put back on the grid of its file."""

import json

import nibabel
import numpy as np
import pytest
from conftest import tiny, train_alone
from mri_ddpm.pipelines.pipeline_mri_ddpm import as_one_hot, label_values, to_masks
from PIL import Image
from volume_sets import AFFINE, SHAPE, head, mask, nifti, series, write

from mri_ddpm import MRIDDPMPipeline, commands
from mri_ddpm.data import Channels, Volume, load_scans, read_volume, slices
from mri_ddpm.data.reading.marks import nifti_is_synthetic
from mri_ddpm.data.reading.pictures import fit_square
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.errors import InputError
from mri_ddpm.sampling import SamplingOptions, sample_volume, save_nifti
from mri_ddpm.sampling.volumes import cut, read_given

AXIAL = {"plane": "axial", "settings": {"fit": "pad", "intensity": "full_range", "field_of_view_mm": None}}
BRATS = {"seg": ("1", "2", "4")}
FAST = SamplingOptions(num_inference_steps=2, batch_size=8)


def smooth(shape, spacing) -> Volume:
    """Waves of 20 mm and more, from 0 to 1."""
    places = np.stack(
        np.meshgrid(*(np.arange(n) * mm for n, mm in zip(shape, spacing, strict=True)), indexing="ij")
    )
    waves = np.sin(places / np.reshape((9, 11, 7), (3, 1, 1, 1)) + 0.5).mean(0)
    return Volume(((waves + 1) / 2).astype(np.float32), np.diag([*spacing, 1.0]))


@pytest.fixture
def pipeline(make_unet):
    """Return a function that builds a pipeline of a tiny U-Net that draws t2."""

    def build(given=("t1",), drawn=("t2",), labels=None, **config):
        channels = Channels(drawn, given, labels or {})
        width = channels.width(drawn)
        unet = make_unet(
            in_channels=width + channels.width(given) + 1, out_channels=width, channel_names=drawn,
            condition_names=given, mask_labels=labels, sample_size=28, **config,
        )  # fmt: skip
        found = MRIDDPMPipeline(unet, make_noise_scheduler())
        found.set_progress_bar_config(disable=True)
        return found

    return build


# Slices out and back


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("field_of_view_mm", [None, 28.0, 57.0])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (1, 1, 2.3), (1.7, 1, 1)])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_are_put_back_where_they_came_from(plane, spacing, field_of_view_mm, fit):
    volume = smooth((40, 53, 34), spacing)
    chosen = slices(volume, plane, min_head=0, field_of_view_mm=field_of_view_mm, intensity="full_range")
    found = chosen.put_back([fit_square(one.image, 80, fit) for one in chosen], fit)
    black, white = volume.extent
    unit = (volume.voxels - black) / (white - black)
    reached = found != 0
    assert reached.mean() > 0.15
    assert reached.all() or fit == "crop" or field_of_view_mm
    assert np.median(np.abs(found - unit)[reached]) < 0.006  # a shift by half a voxel is ten times that
    assert np.percentile(np.abs(found - unit)[reached], 90) < 0.04  # edges lie beside black


def test_what_needs_no_resampling_comes_back_to_the_bit():
    volume = Volume(head(3, (28, 28, 20)).astype(np.float32), AFFINE)
    chosen = slices(volume, min_head=0, intensity="full_range")
    squares = [fit_square(one.image, 28, "pad") for one in chosen]
    np.testing.assert_array_equal(
        chosen.put_back(squares, "pad") * 1500, volume.voxels / volume.extent[1] * 1500
    )


@pytest.mark.parametrize("order", ["RAS", "LPS", "SPL", "AIR"])
def test_a_volume_comes_back_in_the_order_of_its_file(pipeline, tmp_path, order):
    image = nibabel.Nifti1Image(head(5), AFFINE)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(AFFINE), nibabel.orientations.axcodes2ornt(order)
    )
    image = image.as_reoriented(turn)
    nibabel.save(image, tmp_path / "t1.nii.gz")
    volumes = {"t1": read_given(tmp_path / "t1.nii.gz", AXIAL)}
    given = cut(pipeline(), volumes, AXIAL)
    assert given.condition["t1"].shape == (SHAPE[2], 28, 28)
    np.testing.assert_allclose(given.affine, image.affine)
    back = given.put_back(given.condition["t1"], is_mask=False)
    stored = np.asarray(image.dataobj)
    np.testing.assert_allclose(back, stored / stored.max(), atol=1e-6)


def test_a_series_of_dicom_is_given_as_a_folder(pipeline, tmp_path):
    folder = write(tmp_path / "series", series(5, "4711"))
    given = cut(pipeline(), {"t1": read_given(folder, AXIAL)}, AXIAL)
    back = given.put_back(given.condition["t1"], is_mask=False)
    np.testing.assert_allclose(back, head(5) / head(5).max(), atol=1e-3)
    np.testing.assert_allclose(given.affine, AFFINE, atol=1e-3)


# Labels


def test_labels_that_are_numbers_are_the_values_of_pixels():
    assert label_values(("1", "2", "4")) == [1, 2, 4]
    for labels in (("core", "oedema"), ("1", "core"), ("0", "1"), ("1", "01"), ("1", "70000")):
        assert label_values(labels) == [1, 2]
    pixels = np.random.default_rng(0).choice([0, 1, 2, 4], (3, 16, 16))
    planes = as_one_hot(pixels, "seg", (3, 1, 16, 16), BRATS["seg"])
    np.testing.assert_array_equal(planes[:, 2], pixels == 4)
    np.testing.assert_array_equal(to_masks(planes, "np", BRATS["seg"]), pixels)
    found = Channels((), ("seg",), BRATS).by_name(planes.numpy())
    np.testing.assert_array_equal(found["seg"], pixels)
    large = to_masks(planes[:, :2], "pil", ("7", "2001"))
    np.testing.assert_array_equal(
        np.asarray(large[0]), np.select([pixels[0] == 1, pixels[0] == 2], [7, 2001])
    )
    with pytest.raises(
        ValueError, match="seg has the labels 2, 4, which the model does not know; it has 0 .none., 1, 3"
    ):
        as_one_hot(pixels, "seg", (3, 1, 16, 16), ("1", "3"))


def test_a_mask_that_is_drawn_comes_out_in_the_labels_of_its_file(pipeline, tmp_path):
    found, affine = sample_volume(
        pipeline(drawn=("t2", "seg"), labels=BRATS),
        {"t1": Volume(head(1).astype(np.float32), AFFINE)},
        AXIAL,
        FAST,
    )
    assert found["t2"].dtype == np.float32
    assert 0 <= found["t2"].min() < found["t2"].max() <= 1
    assert {0} < {*np.unique(found["seg"])} <= {0, 1, 2, 4}
    save_nifti(tmp_path / "seg.nii.gz", found["seg"], {}, affine=affine)
    again = nibabel.load(tmp_path / "seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(again.dataobj), found["seg"])
    np.testing.assert_allclose(again.affine, AFFINE)


def test_a_mask_is_given_without_interpolation_and_put_where_its_scan_is(pipeline):
    labels = 4.0 * mask()
    labels[3] = 1
    volumes = {
        "seg": Volume(labels.astype(np.float32), AFFINE),
        "t1": Volume(head(2).astype(np.float32), AFFINE),
    }
    given = cut(pipeline(given=("seg", "t1"), labels=BRATS), volumes, AXIAL)
    assert {*np.unique(given.condition["seg"])} == {0, 1, 4}
    back = given.put_back(given.condition["seg"], is_mask=True)
    np.testing.assert_array_equal(back, labels)


@pytest.mark.parametrize(
    "settings", [{}, {"field_of_view_mm": 150.0, "intensity": "full_range", "fit": "crop"}]
)
def test_volumes_are_cut_as_the_training_cut_them(make_unet, tmp_path, settings):
    labels = np.select([mask(5, 14) == 1], [4], 0).astype(np.uint8)
    labels[12, 12:16, 6:9] = 2
    made = {
        f"sub-{p}/sub-{p}_{name}.nii.gz": nifti(
            labels if name == "seg" else (1 + i) * head(p)
        )  # framed alike
        for p in range(4)
        for i, name in enumerate(("t1", "t2", "seg"))
    }
    options = {
        "channels": ["t2"],
        "condition_on": ["t1", "seg"],
        "resolution": 20,
        "min_head": 0.0,
        **settings,
    }
    scans = load_scans(
        train_data_dir=write(tmp_path / "scans", made), cache_dir=str(tmp_path / "cache"), **options
    )
    unet = make_unet(
        in_channels=5, sample_size=20, channel_names=("t2",), condition_names=("t1", "seg"),
        mask_labels=scans.channels.mask_labels,
    )  # fmt: skip
    assert scans.channels.mask_labels == {"seg": ("2", "4")}
    files = {name: tmp_path / f"scans/sub-2/sub-2_{name}.nii.gz" for name in ("t1", "seg")}
    volumes = {name: read_given(file, scans.manifest) for name, file in files.items()}
    found = cut(MRIDDPMPipeline(unet, make_noise_scheduler()), volumes, scans.manifest).condition
    compared = 0
    for split, part in (("train", scans.train), ("validation", scans.validation)):
        rows = [row["path"] for row in scans.manifest["files"] if row["split"] == split]
        known = part.channels.by_name(part.batch(range(len(part)))["condition"].numpy())
        for i, path in enumerate(scans.paths[row] for row in rows):
            if "sub-2" in path:
                index = int(path.rpartition(" ")[2])
                np.testing.assert_allclose(known["t1"][i], found["t1"][index], atol=1 / 65535)
                np.testing.assert_array_equal(known["seg"][i], found["seg"][index])
                compared += 1
    assert compared == head(2).any((0, 1)).sum()  # of black slices one is kept, of another patient


# A single slice


def test_a_slice_of_nifti_is_given_as_the_picture_it_is(pipeline, tmp_path):
    picture = (np.random.default_rng(0).random((28, 28)) * 65535).astype(np.uint16)
    for plane in (None, "axial", "coronal", "sagittal"):
        save_nifti(tmp_path / "t1.nii.gz", picture / 65535, {}, plane=plane)
        volume = read_given(tmp_path / "t1.nii.gz", None)
        given = cut(pipeline(), {"t1": volume}, None)
        np.testing.assert_allclose(given.condition["t1"], picture[None] / 65535, atol=1e-4)
        stored = np.asarray(nibabel.load(tmp_path / "t1.nii.gz").dataobj) / 65535
        np.testing.assert_allclose(given.put_back(given.condition["t1"], is_mask=False), stored, atol=1e-4)
    flat = nibabel.Nifti1Image(picture[::-1].T.astype(np.int32), np.diag([-1.0, 1, 1, 1]))
    nibabel.save(flat, tmp_path / "flat.nii")  # of two axes
    np.testing.assert_array_equal(read_given(tmp_path / "flat.nii", None).voxels[::-1, :, 0], picture[::-1].T)
    with pytest.raises(InputError, match="no volume but a single picture"):
        read_volume(tmp_path / "flat.nii")


# All slices of a volume


def test_slices_that_are_given_the_same_are_the_same(pipeline):
    """One noise for all: what differs between slices follows from the condition."""
    voxels = np.repeat(head(1)[:, :, 10:11], 6, axis=2).astype(np.float32)
    found = sample_volume(pipeline(), {"t1": Volume(voxels, AFFINE)}, AXIAL, FAST)[0]["t2"]
    np.testing.assert_allclose(found, np.repeat(found[:, :, :1], 6, axis=2), atol=1e-5)
    assert found.std() > 0.01


def test_slices_with_a_mask_that_the_training_never_saw_stay_black(pipeline):
    model = pipeline(given=("seg",), labels=BRATS, always_marked={"seg": ("",)})
    given = {"seg": Volume(mask(8, 11).astype(np.float32), AFFINE)}
    found = sample_volume(model, given, AXIAL, FAST)[0]["t2"]
    assert np.flatnonzero(found.any((0, 1))).tolist() == [8, 9, 10, 11]
    with pytest.raises(InputError, match="condition 'seg' is empty, as that of no training scan was"):
        sample_volume(model, {"seg": Volume(np.zeros(SHAPE, np.float32), AFFINE)}, AXIAL, FAST)


@pytest.mark.parametrize(
    ("volumes", "manifest", "words"),
    [
        ({"t1": head(1)}, None, "the model was not trained on slices of volumes in one plane; give single slices"),
        ({"t1": head(1)}, {**AXIAL, "plane": None}, "give single slices, as PNG or NIfTI"),
        ({"t1": head(1), "seg": mask()[:20]}, AXIAL, "condition 'seg' has 20x28x20 voxels and 't1' 24x28x20, on another grid"),
        ({"t1": head(1), "seg": 7 * mask()}, AXIAL, "condition 'seg' has the label 7, which the model does not know; it has 0 .none., 1, 2, 4"),
        ({"t1": head(1), "seg": mask() / 2}, AXIAL, "condition 'seg' holds values such as 0.5"),
        ({"t1": 0 * head(1), "seg": mask()}, AXIAL, "condition 't1' holds one value alone, 0"),
        ({"t1": head(1)}, AXIAL, "condition lacks 'seg'"),
        ({"t1": head(1), "seg": mask()}, {**AXIAL, "settings": {"fit": "no"}}, "--fit no is unknown"),
    ],
)  # fmt: skip
def test_volumes_that_do_not_fit_are_one_sentence(pipeline, volumes, manifest, words):
    given = {name: Volume(voxels.astype(np.float32), AFFINE) for name, voxels in volumes.items()}
    with pytest.raises(InputError, match=words):
        sample_volume(pipeline(given=("seg", "t1"), labels=BRATS), given, manifest, FAST)


# From the shell


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of phantoms that says it was trained on axial slices of volumes."""
    run = train_alone(
        tiny(tmp_path_factory.mktemp("volumes") / "run", channels=["t2", "t1ce"], condition_on=["t1"])
    )
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "plane": "axial"}))
    return run


def sample(run, folder, *flags) -> None:
    commands.main(
        ["sample", str(run), "--output_dir", str(folder), "--num_inference_steps", "2", *map(str, flags)]
    )


def test_from_the_shell(run, tmp_path, capsys):
    file = tmp_path / "t1.nii.gz"
    nibabel.save(nibabel.Nifti1Image(head(5)[::-1], np.diag([-1.0, 1, 1, 1]) @ AFFINE), file)
    given = nibabel.load(file)
    sample(run, tmp_path / "a", "--condition", f"t1={file}", "--num_images", 2, "--class_label", "no_tumor")
    names = [f"no_tumor-0000{i}-{channel}.nii.gz" for i in (0, 1) for channel in ("t1ce", "t2")]
    assert sorted(found.name for found in (tmp_path / "a").glob("*.nii.gz")) == names
    volumes = [nibabel.load(tmp_path / "a" / name) for name in names]
    for volume in volumes:
        assert volume.shape == given.shape
        np.testing.assert_allclose(volume.affine, given.affine, atol=1e-4)
        assert nifti_is_synthetic(volume.header)
        facts = json.loads(volume.header.extensions[0].get_content())
        assert (facts["class"], len(facts["condition_t1_sha256"])) == ("no_tumor", 64)
    assert (np.asarray(volumes[1].dataobj) != np.asarray(volumes[3].dataobj)).any()
    before = (tmp_path / "a" / names[3]).read_bytes()
    (tmp_path / "a" / names[3]).unlink()
    sample(run, tmp_path / "a", "--condition", f"t1={file}", "--num_images", 2, "--class_label", "no_tumor")
    assert (tmp_path / "a" / names[3]).read_bytes() == before
    capsys.readouterr()
    for flags, words in (
        (("--film",), "--film is for images, and --condition names volumes"),
        (("--format", "png"), "--format png holds no volume"),
        (("--num_images", 0), "--num_images is 0; take 1 or more"),
    ):
        with pytest.raises(SystemExit):
            sample(run, tmp_path / "b", "--condition", f"t1={file}", *flags)
        assert words in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_a_picture_of_16_bits_keeps_its_depth(run, tmp_path):
    picture = (np.random.default_rng(0).random((16, 16)) * 65535).astype(np.uint16)
    Image.fromarray(picture).save(tmp_path / "t1.png")
    Image.fromarray((picture >> 8).astype(np.uint8)).save(tmp_path / "coarse.png")
    save_nifti(tmp_path / "t1.nii.gz", picture / 65535, {})
    flags = ("--num_images", 1, "--class_label", "no_tumor", "--bit_depth", 16)
    sample(run, tmp_path / "a", *flags, "--condition", f"t1={tmp_path}/t1.png")
    sample(run, tmp_path / "b", *flags, "--condition", f"t1={tmp_path}/coarse.png")
    sample(run, tmp_path / "c", *flags[:4], "--condition", f"t1={tmp_path}/t1.nii.gz")
    a, b = (np.asarray(Image.open(tmp_path / folder / "no_tumor-00000-t2.png")) for folder in "ab")
    assert (a != b).any()
    c = nibabel.load(tmp_path / "c" / "no_tumor-00000-t2.nii.gz")
    np.testing.assert_allclose(np.asarray(c.dataobj)[..., 0].T[::-1].astype(int), a, atol=2)
