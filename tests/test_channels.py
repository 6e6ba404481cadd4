"""Several channels, and what is given beside them: closed forms, names, draws, moments, and the phantom's contrasts and mask."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from channel_sets import BOTH, NAMED, SEG, batch_of_both, stored
from conftest import forget_accelerator, noise, tiny, train_alone
from mri_ddpm.pipelines.pipeline_mri_ddpm import as_one_hot
from PIL import Image

from mri_ddpm import AttentionUNet2DModel, MRIDDPMPipeline
from mri_ddpm.data import Channels, draw_phantoms, load_phantoms, to_model_range
from mri_ddpm.data.phantom import CLASS_NAMES, LABELS, draw_phantom_planes
from mri_ddpm.diffusion import make_noise_scheduler, training_loss
from mri_ddpm.errors import InputError
from mri_ddpm.runs import RunFolder
from mri_ddpm.training.moments import PRIOR_SCANS, keep_moments
from mri_ddpm.training.preparation import load_training_scans
from mri_ddpm.training.randomness import Draws, draw_for_batch
from mri_ddpm.training.state import build_unet, prepare
from mri_ddpm.training.step import batch_loss

LOW = Channels(("t1",), ("lowres:4", "seg"), SEG)


# The planes of a scan


def test_contrasts_are_scaled_and_masks_are_one_hot_without_the_background():
    planes, batch = stored(), BOTH.batch(stored())
    assert {name: array.shape for name, array in batch.items()} == {
        "pixel_values": (5, 2, 16, 16),
        "condition": (5, 3, 16, 16),
    }
    np.testing.assert_array_equal(batch["pixel_values"] * 65535, planes[:, :2].astype(np.float32))
    for label in (1, 2):
        np.testing.assert_array_equal(batch["condition"][:, label - 1], planes[:, 2] == label)
    np.testing.assert_array_equal(batch["condition"][:, 2] * 65535, planes[:, 3].astype(np.float32))
    assert Channels().batch(planes[:, :1]).keys() == {"pixel_values"}


def test_a_lower_resolution_is_the_mean_of_each_block_and_is_not_stored():
    planes, alone = stored()[:, [0, 2]], Channels(given=("lowres:8",))
    assert LOW.planes == ("t1", "seg")
    assert alone.planes == ("",)
    batch, images = LOW.batch(planes), planes[:, 0].astype(np.float64) / 65535
    expected = np.array([[[image[i:i + 4, j:j + 4].mean() for j in range(0, 16, 4)] for i in range(0, 16, 4)] for image in images])  # fmt: skip
    np.testing.assert_allclose(batch["condition"][:, 0], np.kron(expected, np.ones((4, 4))), atol=1e-6)
    small = LOW.by_name(batch["condition"])["lowres:4"]
    np.testing.assert_array_equal(np.kron(small, np.ones((4, 4))), batch["condition"][:, 0])
    np.testing.assert_array_equal(batch["condition"][:, 1], planes[:, 1] == 1)
    assert alone.by_name(alone.batch(planes[:, :1])["condition"])["lowres:8"].shape == (5, 2, 2)


@pytest.mark.parametrize("channels", [BOTH, LOW])
def test_a_batchs_condition_goes_through_the_pipeline_to_the_bit(make_unet, channels):
    planes = stored() if channels is BOTH else stored()[:, [0, 2]]
    batch = {name: torch.from_numpy(array) for name, array in channels.batch(planes).items()}
    names = {
        "channel_names": channels.drawn,
        "condition_names": channels.given,
        "out_channels": len(channels.drawn),
    }
    unet = make_unet(**{**NAMED, **names, "in_channels": len(channels.drawn) + 4})
    pipeline = MRIDDPMPipeline(unet, make_noise_scheduler())
    request = pipeline.check_inputs(num_images=5, condition=channels.by_name(batch["condition"].numpy()))
    known = pipeline.begin(request).known["condition"]
    assert torch.equal(known, unet.conditioning_of(batch)["condition"])


def test_a_black_and_white_picture_is_a_mask_of_one_label():
    picture = Image.fromarray(np.eye(16, dtype=np.uint8) * 255)
    for given in (picture, picture.convert("1"), np.eye(16), np.eye(16, dtype=bool), torch.eye(16).long()):
        assert torch.equal(
            as_one_hot(given, "seg", (2, 1, 16, 16), ("lesion",)), torch.eye(16).expand(2, 1, 16, 16)
        )


# The network


def test_no_mask_is_not_an_empty_mask(make_unet):
    unet, x_t = make_unet(**NAMED), noise(2, 2, 16, 16)
    empty = unet.conditioning_of({"condition": torch.zeros(2, 3, 16, 16)})
    dropped = unet.drop_conditioning(empty, {"condition": torch.tensor([True, False])})
    none, found = unet(x_t, 9).sample, unet(x_t, 9, **dropped).sample
    assert torch.equal(found[0], none[0])
    assert (found[1] - none[1]).abs().max() > 1e-3


def test_class_and_condition_are_dropped_apart(make_unet):
    unet, batch = make_unet(**NAMED), batch_of_both(2) | {"class_labels": torch.tensor([0, 1])}
    apart = {"class_labels": torch.tensor([True, False]), "condition": torch.tensor([False, True])}
    found = unet.drop_conditioning(unet.conditioning_of(batch), apart)
    assert found["class_labels"].tolist() == [2, 1]
    assert torch.equal(found["condition"][0, :3], batch["condition"][0])
    assert not found["condition"][1].any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"in_channels": 5}, "in_channels is 5, and with the condition seg, flair it is 6"),
        ({"out_channels": 3}, "out_channels is 3, and t1, t2 take 2"),
        ({"condition_names": ("seg", "t1")}, "t1 is named twice"),
        ({"channel_names": ("t1", "../t2")}, "'../t2' is no name"),
        ({"channel_names": ("t1", "lowres:4")}, "'lowres:4' is no name"),
        ({"condition_names": ("seg", "lowres:")}, "'lowres:' is no name"),
        ({"mask_labels": SEG | {"pet": ("a",)}}, "mask_labels has pet"),
        ({"mask_labels": {"seg": ("a",) * 256}}, "seg has 256 labels; a mask holds at most 255"),
        ({"mask_labels": {"seg": ()}}, "None is no name of a channel or a label"),
    ],
)
def test_names_and_numbers_that_do_not_fit_are_one_sentence(make_unet, changes, words):
    with pytest.raises(ValueError, match=words):
        make_unet(**{**NAMED, **changes})


def test_a_model_saved_before_there_were_names_opens_and_samples_to_the_bit(make_unet, tmp_path):
    unet = make_unet(num_class_embeds=2)
    MRIDDPMPipeline(unet, make_noise_scheduler()).save_pretrained(tmp_path)
    file = tmp_path / "unet" / "config.json"
    config = json.loads(file.read_text())
    new = ("channel_names", "condition_names", "mask_labels", "null_condition")
    file.write_text(json.dumps({name: value for name, value in config.items() if name not in new}))

    def draw(pipeline):
        generator = torch.Generator().manual_seed(0)
        return pipeline([0, 1], 2, 3, guidance_scale=2.0, generator=generator, output_type="pt")

    old, now = (
        draw(MRIDDPMPipeline.from_pretrained(tmp_path)),
        draw(MRIDDPMPipeline(unet, make_noise_scheduler())),
    )
    assert torch.equal(old.images, now.images)
    assert old.channels is None


# Training


def test_noise_and_loss_are_on_the_channels_alone():
    """Of a network that predicts no noise the loss is the noise's own, and the condition reaches it as it was."""
    batch, scheduler, seen = batch_of_both(), make_noise_scheduler(), {}
    unet = AttentionUNet2DModel(16, 6, block_out_channels=(8, 16), attention_types=(None, None), norm_num_groups=4,
                                attention_head_dim=4, **{k: v for k, v in NAMED.items() if k != "in_channels"})  # fmt: skip
    unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    x_0, eps, t = (
        to_model_range(batch["pixel_values"]),
        noise(5, 2, 16, 16),
        torch.tensor([0, 9, 99, 199, 299]),
    )
    found = training_loss(unet, scheduler, x_0, eps, t, unet.conditioning_of(batch))
    huber = torch.where(eps.abs() <= 1, eps.square() / 2, eps.abs() - 0.5)
    torch.testing.assert_close(found.per_sample, huber.mean((1, 2, 3)))
    assert torch.equal(seen["x"][:, :2], scheduler.add_noise(x_0, eps, t))
    assert torch.equal(seen["x"][:, 2:5], batch["condition"])
    assert seen["x"][:, 5].eq(1).all()


def test_the_condition_is_dropped_as_often_as_asked_and_changes_no_other_draw():
    x_0 = torch.zeros(20_000, 1, 1, 1)
    draws = {
        p: draw_for_batch(tiny("x", condition_on=["seg"], condition_dropout_prob=p), 3, x_0, 0, 1)
        for p in (0.1, 0.3)
    }
    for p, drawn in draws.items():
        assert abs(drawn.drop_condition.float().mean() - p) < 4 * (p * (1 - p) / 20_000) ** 0.5
    both = (draws[0.3].drop_condition & draws[0.3].drop_class).float().mean()
    assert abs(both - 0.03) < 0.005  # apart from the class
    for name in ("noise", "timesteps", "drop_class", "flip"):
        assert torch.equal(getattr(draws[0.1], name), getattr(draws[0.3], name))


def test_the_moments_of_several_channels_are_those_of_each():
    scans = load_phantoms(num_images=40, resolution=16, channels=["t1", "t2"])
    config = tiny("nowhere", channels=["t1", "t2"])
    unet = build_unet(config, scans.class_names, scans.channels)
    keep_moments(unet, scans)
    batch = scans.train.batch(range(len(scans.train)))
    rows, labels = to_model_range(batch["pixel_values"]).double(), batch["class_labels"]
    for channel in (0, 1):
        of_channel = rows[:, channel]  # (N, 16, 16)
        overall = (of_channel.sum(0) + PRIOR_SCANS * of_channel.mean()) / (len(rows) + PRIOR_SCANS)
        torch.testing.assert_close(unet.x_0_mean[-1, channel].double(), overall, rtol=0, atol=1e-6)
        of_class = of_channel[labels == 2]
        expected = (of_class.sum(0) + PRIOR_SCANS * overall) / (len(of_class) + PRIOR_SCANS)
        torch.testing.assert_close(unet.x_0_mean[2, channel].double(), expected, rtol=0, atol=1e-6)


@pytest.fixture
def state(tmp_path):
    """Return a function that prepares a training on the phantom."""

    def build(**changes):
        forget_accelerator()
        config = tiny(tmp_path, channels=["t1", "t2"], condition_on=["seg", "flair"], **changes)
        scans = load_training_scans(Accelerator(cpu=True), config)
        return prepare(Accelerator(cpu=True), config, scans, RunFolder(tmp_path))

    return build


def seen_by_the_network(state) -> tuple[torch.Tensor, dict, Draws]:
    """The network's input in the 6th batch, that batch, and what it drew."""
    seen, batch = {}, state.scans.train.batch(range(8))
    state.raw_unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    batch_loss(state, 5, batch)
    draws = draw_for_batch(state.config, 5, batch["pixel_values"], 0, 1, state.timestep_weights, num_labels=3)
    return seen["x"], batch, draws


def test_mirroring_turns_channels_and_condition_alike(state):
    x, batch, draws = seen_by_the_network(state(random_flip=True))
    assert draws.flip.any()
    assert not draws.flip.all()
    flip = draws.flip[:, None, None, None]
    turned = {
        name: torch.where(flip, batch[name].flip(-1), batch[name]) for name in ("pixel_values", "condition")
    }
    noised = make_noise_scheduler().add_noise(
        to_model_range(turned["pixel_values"]), draws.noise, draws.timesteps
    )
    torch.testing.assert_close(x[:, :2], noised)
    known = turned["condition"] * ~draws.drop_condition[:, None, None, None]
    assert torch.equal(x[:, 2:6], known)


def test_single_labels_are_left_out_and_contrasts_never(state):
    x, batch, draws = seen_by_the_network(state(mask_label_dropout_prob=0.5, condition_dropout_prob=0.0))
    assert 0 < draws.drop_labels.float().mean() < 1
    kept = torch.cat([~draws.drop_labels, torch.ones(8, 1, dtype=bool)], dim=1)[..., None, None]
    assert torch.equal(x[:, 2:6], batch["condition"] * kept)
    assert x[:, 6].eq(1).all()


def test_with_a_condition_a_chain_starts_from_the_mean_alone(make_unet):
    """A head drawn from the variations would contradict the one that is given."""
    unet = make_unet(**NAMED, moments_size=16, num_components=3)
    unet.x_0_mean.copy_(noise(3, 2, 16, 16, seed=1))
    unet.x_0_components.copy_(noise(3, 2, 16, 16, seed=2))
    pipeline, given = (
        MRIDDPMPipeline(unet, make_noise_scheduler()),
        BOTH.by_name(batch_of_both(2)["condition"].numpy()),
    )

    def start(**arguments):
        generator = torch.Generator().manual_seed(0)
        chain = pipeline.begin(
            pipeline.check_inputs(class_labels=[1, 0], num_images=2, generator=generator, **arguments)
        )
        return pipeline.draw_start(chain), chain.scheduler

    eps = torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    x_t, scheduler = start(condition=given)
    torch.testing.assert_close(x_t, scheduler.add_noise(unet.x_0_mean[[1, 0]], eps, torch.tensor([299])))
    assert (start()[0] - x_t).abs().max() > 0.1


# The phantom


def test_all_planes_show_one_head_and_its_mask_shows_the_lesion():
    planes, labels = draw_phantom_planes(16, 48, 5, ("", "t1", "t2", "seg"))
    images, same = draw_phantoms(16, 48, 5)
    np.testing.assert_array_equal(planes[""], images)
    np.testing.assert_array_equal(labels, same)
    brain, ventricle, lesion = (planes["seg"] == number for number in range(1, len(LABELS) + 1))
    has_lesion = labels != CLASS_NAMES.index("no_tumor")
    np.testing.assert_array_equal(lesion.any((1, 2)), has_lesion)
    assert lesion[has_lesion].mean((1, 2)).max() < 0.15
    for i in range(16):  # fluid is dark in T1 and bright in T2
        assert planes["t2"][i][ventricle[i]].mean() > planes["t1"][i][ventricle[i]].mean() + 0.2
        outside = ~(brain | ventricle | lesion)[i]
        assert np.corrcoef(planes["t1"][i][outside], planes["t2"][i][outside])[0, 1] > 0.8


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            {"channels": ["t3"]},
            "--channels t3 is nothing that the phantom has; it has the contrasts t1, t1ce",
        ),
        ({"channels": ["t1"], "condition_on": ["t1"]}, "t1 is named twice"),
        ({"condition_dropout_prob": 0.2}, "--condition_dropout_prob is given without --condition_on"),
        (
            {"channels": ["seg"], "evaluate_epochs": [1]},
            "--evaluate_epochs measures contrasts, and --channels names masks",
        ),
        (
            {"channels": ["t1"], "contrast": "t1", "train_data_dir": "."},
            "--channels and --contrast t1 are both given",
        ),
        (
            {"condition_on": ["lowres"]},
            "--condition_on lowres is no lower resolution; write a factor, such as lowres:4",
        ),
        ({"condition_on": ["lowres:1"]}, "--condition_on lowres:1 is no lower resolution"),
        ({"condition_on": ["lowres:5"]}, "--condition_on lowres:5 does not divide --resolution 16"),
        (
            {"channels": ["t1", "t2"], "condition_on": ["lowres:4"]},
            "lowres:4 is of one contrast, and --channels draws t1, t2",
        ),
        ({"channels": ["seg"], "condition_on": ["lowres:4"]}, "lowres:4 is of a contrast, and seg is a mask"),
        ({"channels": ["lowres:4"]}, "--channels 'lowres:4' is no name"),
    ],
)
def test_flags_that_cannot_be_are_one_sentence(tmp_path, flags, words):
    with pytest.raises(InputError, match=words):
        train_alone(tiny(tmp_path / "run", **flags))
