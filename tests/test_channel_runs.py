"""Models of several channels and conditions: trained, sampled, evaluated and exported."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from channel_sets import NAMED, batch_of_both
from conftest import assert_same_to_the_bit, noise, shorten, state_of, tiny, train_alone
from PIL import Image

from mri_ddpm import MRIDDPMPipeline, commands
from mri_ddpm.data import ScanDataset, draw_phantoms, load_phantoms
from mri_ddpm.data.phantom import CLASS_NAMES, LABELS, draw_phantom_planes
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.evaluate import evaluate
from mri_ddpm.evaluation.subject import conditions_of, load_real_scans, rows_alike
from mri_ddpm.hub import export_repository
from mri_ddpm.runs import load_record
from mri_ddpm.sampling import SamplingOptions, sample_batches
from mri_ddpm.training.state import always_marked

FLAGS = {"channels": ["t1", "t2"], "condition_on": ["seg"], "random_flip": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_alone(tiny(tmp_path_factory.mktemp("channels") / "run", **FLAGS))


@pytest.fixture(scope="module")
def pipeline(run):
    pipeline = MRIDDPMPipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def mask():
    return draw_phantom_planes(4, 16, 9, ("seg",))[0]["seg"]


def draw(pipeline, seed: int = 0, num_images: int = 2, **arguments):
    generators = [torch.Generator().manual_seed(seed + i) for i in range(num_images)]
    return pipeline(num_images=num_images, num_inference_steps=3, generator=generators, **arguments)


def test_a_run_keeps_the_names_and_draws_every_channel(run, pipeline, mask):
    assert pipeline.channel_names == ("t1", "t2")
    assert pipeline.condition_names == ("seg",)
    assert pipeline.mask_labels == {"seg": LABELS}
    found = draw(pipeline, class_labels="glioma_tumor", condition={"seg": mask[0]}, output_type="pt")
    assert found.channels.keys() == {"t1", "t2"}
    assert found.channels["t2"].shape == (2, 1, 16, 16)
    assert found.images is found.channels  # of one channel, the images themselves
    grid = Image.open(run / "samples.png")
    assert grid.height == 4 * 2 * 96  # a row a class and channel
    assert draw(pipeline, condition={"seg": mask[0]}).channels["t1"][0].mode == "L"


def test_a_run_resumes_to_the_bit_and_not_with_other_channels(run, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints" / "step-000020")
    train_alone(tiny(again, **FLAGS, resume_from_checkpoint="latest"))
    assert_same_to_the_bit(state_of(again), state_of(run))
    for change in ({"channels": ["t1"]}, {"condition_on": []}):
        with pytest.raises(InputError, match=f"{run.name} was trained with --{next(iter(change))} "):
            train_alone(tiny(again, **{**FLAGS, **change}, resume_from_checkpoint="latest"))


def test_one_condition_for_all_is_one_for_each(pipeline, mask):
    one = draw(pipeline, condition={"seg": mask[0]}, output_type="np")
    each = draw(pipeline, condition={"seg": [mask[0], Image.fromarray(mask[0])]}, output_type="np")
    other = draw(pipeline, condition={"seg": mask[1:3]}, output_type="np")
    for name, images in one.channels.items():
        np.testing.assert_array_equal(images, each.channels[name])
        assert (images != other.channels[name]).any()
    assert (
        one.images["t1"] != draw(pipeline, output_type="np").images["t1"]
    ).any()  # nor is it the same as without


def test_guidance_by_class_and_condition_is_the_sum_of_single_calls(make_unet):
    unet = make_unet(**NAMED)
    pipeline = MRIDDPMPipeline(unet, make_noise_scheduler())
    x_t, labels = noise(2, 2, 16, 16), torch.tensor([0, 1])
    condition = unet.conditioning_of(batch_of_both(2))["condition"]
    none = unet(x_t, 9).sample
    of_condition = unet(x_t, 9, condition=condition).sample
    of_both = unet(x_t, 9, labels, condition=condition).sample
    known = {"class_labels": labels, "condition": condition}
    for by_class, by_condition in ((3.0, 2.0), (2.0, 2.0), (3.0, 1.0), (1.0, 2.0), (1.0, 1.0), (0.0, 1.5)):
        scales = {"class_labels": by_class, "condition": by_condition}
        expected = none + by_condition * (of_condition - none) + by_class * (of_both - of_condition)
        torch.testing.assert_close(pipeline.predict(x_t, 9, known, scales), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"condition": np.zeros((16, 16))}, "condition is a ndarray; give a dict by name, of: seg"),
        ({"condition": {}}, "condition lacks 'seg'"),
        ({"condition": {"seg": np.zeros((16, 16)), "t1": 0}}, "condition has 't1', which the model does not know"),
        ({"condition": {"seg": np.zeros((20, 16))}}, "condition 'seg' is 16x20 pixels, but the model takes 16x16"),
        ({"condition": {"seg": np.zeros((3, 16, 16))}}, "3 are given as condition 'seg' for 2 images"),
        ({"condition": {"seg": np.full((16, 16), 7)}}, "has the label 7, which the model does not know; it has 0 .none., 1"),
        ({"condition": {"seg": "mask.png"}}, "condition 'seg' is of <U8; give numbers of labels"),
        ({"guidance_scale": 2.0}, "without class_labels or a condition to follow"),
        ({"condition_guidance_scale": 2.0}, "condition_guidance_scale is 2.0 without a condition"),
    ],
)  # fmt: skip
def test_conditions_that_do_not_fit_are_one_sentence(pipeline, arguments, words):
    with pytest.raises(ValueError, match=words):
        draw(pipeline, **arguments)


def test_an_empty_mask_is_refused_where_no_scan_of_the_class_had_one(run, pipeline, make_unet, mask):
    """Every phantom has a brain; of the model below one class alone was always marked."""
    assert json.loads((run / "pipeline/unet/config.json").read_text())["always_marked"] == {
        "seg": list(CLASS_NAMES)
    }
    empty = np.zeros_like(mask[0])
    for class_labels in (None, "glioma_tumor"):
        with pytest.raises(
            ValueError, match="condition 'seg' is empty, as that of no training scan of the class was"
        ):
            draw(pipeline, class_labels=class_labels, condition={"seg": [mask[0], empty]})
    partly = MRIDDPMPipeline(make_unet(**NAMED, always_marked={"seg": ("b",)}), make_noise_scheduler())
    flair = np.zeros((16, 16))
    for class_labels in (None, "a"):
        partly.check_inputs(class_labels=class_labels, condition={"seg": empty, "flair": flair})
    with pytest.raises(ValueError, match="'seg' is empty"):
        partly.check_inputs(class_labels="b", condition={"seg": empty, "flair": flair})
    # Which batch fits is tried with each image's own class and condition
    given = {"seg": np.stack([empty, np.ones_like(empty)]), "flair": np.stack([flair, flair])}
    options = SamplingOptions(batch_size="auto", num_inference_steps=1)
    ((numbers, _),) = sample_batches(partly, ["a", "b"], 2, options, condition=given)
    assert list(numbers) == [0, 1]
    for odd in ({"t1": ("b",)}, {"seg": "b"}, {"seg": (1,)}, ["seg"]):
        with pytest.raises(ValueError, match="always_marked is no table"):
            make_unet(**NAMED, always_marked=odd)


def test_classes_whose_masks_may_be_empty_are_known():
    scans = load_phantoms(num_images=40, resolution=16, condition_on=["seg", "t1"])
    names, table = scans.class_names, scans.train._table
    assert always_marked(scans, names) == {"seg": names}
    assert always_marked(scans, None) == {"seg": ("",)}
    pixels = np.stack(table["pixels"]).reshape(40, 3, -1)
    pixels[scans.train._rows[scans.train.class_labels == 2][0, 0] // 3, 1] = 0
    emptied = ScanDataset(
        table.from_dict({"pixels": pixels.reshape(120, -1)}, features=table.features),
        scans.train._rows, scans.train.class_labels, scans.channels,
    )  # fmt: skip
    scans = replace(scans, train=emptied)
    assert always_marked(scans, names) == {"seg": names[:2] + names[3:]}
    assert always_marked(scans, None) == {"seg": ()}
    assert always_marked(load_phantoms(num_images=8, resolution=16), names) is None


def test_what_a_model_cannot_do_is_one_sentence(pipeline, make_unet, mask):
    plain = MRIDDPMPipeline(make_unet(), make_noise_scheduler())
    with pytest.raises(ValueError, match="a condition was given, but the model was trained without one"):
        draw(plain, condition={"seg": mask[0]})
    always = MRIDDPMPipeline(make_unet(**NAMED, null_condition=False), make_noise_scheduler())
    with pytest.raises(
        ValueError, match="trained with the condition of every scan .* give condition: seg, flair"
    ):
        draw(always)


def sample(run, folder, *flags) -> None:
    commands.main(
        ["sample", str(run), "--output_dir", str(folder), "--num_inference_steps", "2", *map(str, flags)]
    )


def test_from_the_shell(run, mask, tmp_path, capsys):
    given = tmp_path / "mask.png"
    Image.fromarray(mask[0]).save(given)
    flags = ("--num_images", 2, "--class_label", "no_tumor", "--condition", f"seg={given}")
    sample(run, tmp_path / "a", *flags)
    names = [f"no_tumor-0000{i}-{channel}.png" for i in (0, 1) for channel in ("t1", "t2")]
    assert sorted(file.name for file in (tmp_path / "a").glob("*.png")) == names
    text = Image.open(tmp_path / "a" / names[1]).text
    assert (text["channel"], text["index"], text["seed"]) == ("t2", "0", "0")
    assert "to fit a given seg" in text["synthetic"]
    assert len(text["condition_seg_sha256"]) == 64
    before = (tmp_path / "a" / names[3]).read_bytes()
    (tmp_path / "a" / names[3]).unlink()
    sample(run, tmp_path / "a", *flags)  # what is missing of an image is made again
    assert (tmp_path / "a" / names[3]).read_bytes() == before
    colours, grey = tmp_path / "colours.png", tmp_path / "grey.png"
    Image.fromarray(mask[0]).convert("RGB").save(grey)  # read as masks to train on are
    Image.fromarray(np.stack([mask[0], mask[0] // 2, mask[0]], axis=-1)).save(colours)
    sample(run, tmp_path / "c", *flags[:-1], f"seg={grey}")
    same = (Image.open(tmp_path / part / names[0]) for part in "ac")
    np.testing.assert_array_equal(*map(np.asarray, same))
    for flag, words in (
        (("--condition", f"seg={colours}"), "colours.png has colours, and a mask a number for each label"),
        (("--condition", "seg"), "--condition seg names no file"),
        (
            ("--condition", f"t1={given}"),
            "--condition t1 is not what the model was trained with; it is given seg",
        ),
        (("--condition", f"seg={tmp_path}/no.png"), "No such file or directory"),
        (("--condition", f"seg={given}", f"seg={given}"), "--condition gives seg twice; give one file"),
    ):
        with pytest.raises(SystemExit):
            sample(run, tmp_path / "b", *flag)
        assert words in capsys.readouterr().err


def test_a_scan_of_several_channels_is_changed_from_the_shell(run, mask, tmp_path, capsys):
    planes = draw_phantom_planes(1, 16, 3, ("t1", "t2", "seg"))[0]
    files = {name: tmp_path / f"{name}.png" for name in planes}
    for name, (plane,) in planes.items():
        Image.fromarray(plane if name == "seg" else (plane * 255).round().astype(np.uint8)).save(files[name])
    hole = np.zeros((16, 16), np.uint8)
    hole[4:9, 4:9] = 255
    Image.fromarray(hole).save(tmp_path / "hole.png")
    images = ("--image", f"t1={files['t1']}", f"t2={files['t2']}")
    asked = ("--num_images", 1, "--class_label", "no_tumor", "--condition", f"seg={files['seg']}")
    sample(run, tmp_path / "a", *asked, *images, "--mask_image", tmp_path / "hole.png")
    for name in ("t1", "t2"):
        picture = Image.open(tmp_path / "a" / f"no_tumor-00000-{name}.png")
        given, found = np.asarray(Image.open(files[name])), np.asarray(picture)
        np.testing.assert_array_equal(found[hole == 0], given[hole == 0])
        assert (found != given).any()
        assert len(picture.text[f"image_{name}_sha256"]) == 64
        assert picture.text["synthetic"].startswith("in part: a given scan")
    sample(run, tmp_path / "b", *asked, *images, "--strength", 0.2)
    for flags, words in (
        ((files["t1"],), "t1.png is no NAME=FILE of a channel, and the model draws t1, t2"),
        ((f"t1={files['t1']}",), "image lacks 't2'"),
        ((f"t1={files['t1']}", f"t1={files['t2']}"), "--image gives t1 twice"),
        ((f"seg={files['seg']}",), "is no NAME=FILE of a channel, and the model draws t1, t2"),
    ):
        with pytest.raises(SystemExit):
            sample(run, tmp_path / "c", *asked, "--image", *flags)
        assert words in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_with_a_condition_is_evaluated_with_those_of_training_scans(tmp_path, monkeypatch):
    shorten(monkeypatch)
    run = train_alone(tiny(tmp_path / "run", channels=["t1"], condition_on=["seg", "t2"], phantom_images=120))
    options = SamplingOptions(num_inference_steps=2)
    found = evaluate(
        str(run), tmp_path / "a", num_images=100, options=options, metrics=("wavelet_kid", "likelihood")
    )
    assert found["quality"]["wavelet_kid"]["n"] > 0
    assert found["bits_per_dimension"]["validation"]["value"] > 0
    real = load_real_scans(load_record(str(run)), {}, 16)
    labels = np.array([0, 1, 1, 3])
    given = conditions_of(real.scans["training"], rows_alike(real.training[1], labels, seed=0))
    batch = real.scans["training"].batch(range(len(real.training[1])))
    masks = real.scans["training"].channels.by_name(batch["condition"].numpy())
    for i, label in enumerate(labels):  # both are of one training scan of the class
        same = [(given[name][i] == masks[name]).all((1, 2)) for name in ("seg", "t2")]
        assert label in batch["class_labels"][np.logical_and(*same)]


def test_the_grid_of_a_model_with_a_condition_stays_and_its_card_says_how_to_call_it(
    run, tmp_path, run_fresh
):
    folder = tmp_path / "repository"
    files = [path.as_posix() for path in export_repository(run, folder, "me/tiny")]
    assert "training/samples.png" not in files
    card = (folder / "README.md").read_text()
    assert "It draws t1, t2 together. It is given seg. The labels of seg: 0 none, 1 brain" in card
    assert 'pipeline(condition={"seg": seg}, ...)' in card
    run_fresh(
        """
import sys, numpy as np, torch
sys.modules['mri_ddpm'] = None
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
generator = torch.Generator().manual_seed(0)
found = pipeline(num_inference_steps=2, condition={"seg": np.eye(16)}, generator=generator, output_type="np")
np.save(sys.argv[2], found.channels["t2"])
""",
        folder,
        tmp_path / "alone.npy",
    )
    generator, here = torch.Generator().manual_seed(0), MRIDDPMPipeline.from_pretrained(folder)
    found = here(num_inference_steps=2, condition={"seg": np.eye(16)}, generator=generator, output_type="np")
    np.testing.assert_array_equal(np.load(tmp_path / "alone.npy"), found.channels["t2"])


def test_a_mask_is_drawn_as_numbers_of_labels(tmp_path):
    run = train_alone(tiny(tmp_path / "run", channels=["t1", "seg"], max_train_steps=2, lr_warmup_steps=1))
    pipeline = MRIDDPMPipeline.from_pretrained(run / "pipeline")
    found = {kind: draw(pipeline, output_type=kind).channels["seg"] for kind in ("pil", "np", "pt")}
    assert found["pil"][0].mode == "P"
    assert found["np"].dtype == np.uint8
    assert found["np"].max() <= len(LABELS)
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in found["pil"]]), found["np"])
    np.testing.assert_array_equal(found["pt"][:, 0].numpy(), found["np"])
    sample(run, tmp_path / "png", "--num_images", 1, "--film")
    again = np.asarray(Image.open(next((tmp_path / "png").glob("*-seg.png"))))
    t1 = np.asarray(Image.open(next((tmp_path / "png").glob("*-t1.png"))))
    strip = np.asarray(Image.open(tmp_path / "png-film.png"))[14:, -72:]  # a channel below the other
    for row, image in enumerate((t1, t1, *[np.round(again / len(LABELS) * 255).astype(np.uint8)] * 2)):
        tile = Image.fromarray(image).resize((72, 72), Image.Resampling.NEAREST)
        np.testing.assert_array_equal(strip[72 * row : 72 * (row + 1)], tile)
    nibabel = pytest.importorskip("nibabel")
    sample(run, tmp_path / "nifti", "--num_images", 1, "--format", "nifti")
    volume = nibabel.load(next((tmp_path / "nifti").glob("*-seg.nii.gz")))
    np.testing.assert_array_equal(np.asarray(volume.dataobj)[..., 0].T[::-1], again)


@pytest.fixture(scope="module")
def lowres_run(tmp_path_factory):
    """Of scans from a folder, which have no names."""
    folder = tmp_path_factory.mktemp("lowres") / "scans"
    folder.mkdir()
    for i, image in enumerate(draw_phantoms(24, 32, 3)[0]):
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{i}.png")
    flags = {"train_data_dir": str(folder), "condition_on": ["lowres:4"], "random_flip": True}
    return train_alone(tiny(folder.with_name("run"), **flags))


def test_a_small_picture_is_sampled_larger(lowres_run, tmp_path, capsys):
    given = tmp_path / "small.png"
    Image.fromarray(np.arange(0, 256, 16, dtype=np.uint8).reshape(4, 4)).save(given)
    sample(lowres_run, tmp_path / "a", "--num_images", 2, "--condition", f"lowres:4={given}")
    sampled = sorted((tmp_path / "a").glob("*.png"))
    assert [Image.open(file).size for file in sampled] == [(16, 16)] * 2
    text = Image.open(sampled[0]).text
    assert "to fit a given lowres:4" in text["synthetic"]
    assert len(text["condition_lowres:4_sha256"]) == 64
    with pytest.raises(SystemExit):
        sample(lowres_run, tmp_path / "b", "--condition", f"lowres:4={sampled[0]}")
    words = "condition 'lowres:4' is 16x16 pixels, but the model takes 4x4"
    assert words in capsys.readouterr().err
    pipeline = MRIDDPMPipeline.from_pretrained(lowres_run / "pipeline")
    with pytest.raises(ValueError, match="18x18 are no multiples of 4, which lowres:4 needs"):
        draw(pipeline, condition={"lowres:4": np.zeros((4, 4))}, height=18, width=18)
    export_repository(lowres_run, tmp_path / "repository", "me/tiny")
    assert 'pipeline(condition={"lowres:4": lowres}, ...)' in (tmp_path / "repository/README.md").read_text()
