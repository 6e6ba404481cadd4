"""Mirrored scans, and the network that is told of them."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import forget_accelerator, state_of, tiny, train_alone
from PIL import Image

from mri_ddpm.data import to_model_range
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.errors import InputError
from mri_ddpm.runs import Base, RunFolder, load_pipeline
from mri_ddpm.sampling import SamplingOptions, sample_arrays
from mri_ddpm.training.beginning import begin_with
from mri_ddpm.training.preparation import announce, load_training_scans
from mri_ddpm.training.randomness import draw_for_batch
from mri_ddpm.training.state import build_unet, prepare
from mri_ddpm.training.step import batch_loss

MIRRORED = torch.tensor([[0.0], [1.0], [0.5]])
X_T = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
TIMESTEPS, LABELS = torch.tensor([0, 100, 299]), torch.tensor([0, 1, 2])


def predicted(unet, **more) -> torch.Tensor:
    with torch.no_grad():
        return unet(X_T, TIMESTEPS, LABELS, **more).sample


# The network


def test_scans_as_they_are_are_told_nothing(make_unet):
    unet = make_unet(num_class_embeds=2, augment_dim=1)
    plain = predicted(unet)
    assert torch.equal(predicted(unet, augment_labels=torch.zeros(3, 1)), plain)
    told = predicted(unet, augment_labels=MIRRORED)
    assert torch.equal(told[0], plain[0])
    assert ((told - plain)[1:].abs().amax((1, 2, 3)) > 1e-3).all()
    assert build_unet(tiny("nowhere", random_flip=True), ("a", "b")).config.augment_dim == 1
    assert build_unet(tiny("nowhere"), ("a", "b")).augment_embedding is None


def test_who_was_never_told_refuses_to_be(make_unet):
    unet = make_unet(num_class_embeds=2)
    with pytest.raises(ValueError, match="augment_labels were given, but this model was never told"):
        predicted(unet, augment_labels=MIRRORED)
    assert "augment_labels" not in unet.conditioning_of({"augment_labels": MIRRORED})
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=f"augment_dim is {wrong}; take 0 or 1"):
            make_unet(augment_dim=wrong)


# Training


def test_it_is_told_which_scans_are_mirrored_and_the_class_is_dropped_apart(tmp_path):
    forget_accelerator()
    names = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
    config = tiny(tmp_path, random_flip=True, no_flip_classes=[names[1]], class_dropout_prob=0.5)
    scans = load_training_scans(Accelerator(cpu=True), config)
    assert scans.class_names == names
    state, seen = prepare(Accelerator(cpu=True), config, scans, RunFolder(tmp_path)), {}
    state.raw_unet.conv_in.register_forward_pre_hook(lambda _, inputs: seen.update(x_t=inputs[0]))
    state.raw_unet.augment_embedding.register_forward_pre_hook(lambda _, inputs: seen.update(told=inputs[0]))
    batch = scans.train.batch(range(32))
    batch_loss(state, 5, batch)
    draws = draw_for_batch(config, 5, batch["pixel_values"], 0, 1, state.timestep_weights)
    mirrored = draws.flip & (batch["class_labels"] != 1)
    assert (draws.flip & (batch["class_labels"] == 1)).any()
    for dropped in (draws.drop_class, ~draws.drop_class):
        assert 0 < mirrored[dropped].sum() < dropped.sum()
    assert torch.equal(seen["told"], mirrored[:, None].float())
    x_0 = to_model_range(batch["pixel_values"])
    x_0[mirrored] = x_0[mirrored].flip(-1)
    x_t = make_noise_scheduler().add_noise(x_0, draws.noise, draws.timesteps)
    torch.testing.assert_close(seen["x_t"], x_t)


def test_samples_face_as_scans_do(tmp_path):
    """Of scans that are black on the right, and shown mirrored half of the time, no sample is black on the left."""
    rng = np.random.default_rng(0)
    for number in range(40):
        image = np.zeros((16, 16), np.uint8)
        image[:, :8] = np.kron(rng.integers(100, 256, (4, 2)), np.ones((4, 4)))
        path = tmp_path / "scans" / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    # All noise at the end of the chain, which so shows no side itself
    of_chain = {"rescale_betas_zero_snr": True, "prediction_type": "sample", "start_from_moments": False}
    of_chain["timestep_sampling"] = "uniform"
    of_length = {
        "max_train_steps": 200,
        "validation_steps": 200,
        "checkpointing_steps": 200,
        "ema_power": 0.5,
    }
    flags = {"block_out_channels": [16, 16], "learning_rate": 5e-3, **of_chain, **of_length}
    run = train_alone(
        tiny(tmp_path / "run", train_data_dir=str(tmp_path / "scans"), random_flip=True, **flags)
    )
    pipeline = load_pipeline(str(run), "cpu")
    options = SamplingOptions("ddim", num_inference_steps=10)
    options.prepare(pipeline, 40, None)
    images, _ = sample_arrays(pipeline, [40], options)
    left, right = images[..., :8].mean((1, 2, 3)), images[..., 8:].mean((1, 2, 3))
    assert (left > right + 0.2).mean() >= 0.95


@pytest.mark.parametrize(
    ("steps", "flip", "told"), [(1400, False, True), (1399, False, False), (1400, True, False)]
)
def test_who_shows_few_scans_often_is_told_of_it(tmp_path, capsys, steps, flip, told):
    forget_accelerator()
    config = tiny(tmp_path, random_flip=flip, max_train_steps=steps)
    scans = load_training_scans(Accelerator(cpu=True), config)
    announce(prepare(Accelerator(cpu=True), config, scans, RunFolder(tmp_path)))
    assert ("each scan is shown 200 times: --random_flip" in capsys.readouterr().out) == told


def test_showings_are_counted_by_scan_and_not_by_epoch(tmp_path, capsys):
    """An epoch with rehearsal shows few scans several times."""
    forget_accelerator()
    given = {"pretrained_model_name_or_path": "base", "keep_old_share": 0.5, "max_train_steps": 2800}
    config = tiny(tmp_path, **given)
    scans = load_training_scans(Accelerator(cpu=True), config)
    samples = {"images": np.zeros((168, 16, 16), np.uint8), "class_labels": np.zeros(168, np.int64)}
    state = prepare(Accelerator(cpu=True), config, scans, RunFolder(tmp_path), rehearsal=samples)
    assert state.max_steps // state.steps_per_epoch < 100
    announce(state)
    assert "each scan is shown 200 times" in capsys.readouterr().out


def test_a_run_is_not_resumed_with_other_mirroring(tmp_path):
    """Another network, or classes that were left alone so far."""
    flags = {"random_flip": True, "no_flip_classes": ["no_tumor"]}
    run = train_alone(tiny(tmp_path / "run", **flags, max_train_steps=5, checkpointing_steps=5))
    last, first = state_of(run, 5)["weights"], build_unet(tiny("nowhere", **flags), tuple("abcd"))
    assert not torch.equal(last["augment_embedding.weight"], first.augment_embedding.weight)
    resumed = {"resume_from_checkpoint": "latest", "max_train_steps": 8}
    with pytest.raises(InputError, match="was trained with --random_flip, and this is --no_random_flip"):
        train_alone(tiny(run, **resumed))
    with pytest.raises(
        InputError, match=r"--no_flip_classes \['no_tumor'\], and this is no --no_flip_classes"
    ):
        train_alone(tiny(run, **resumed, random_flip=True))
    before = json.loads((run / "config.json").read_text())
    del before["no_flip_classes"]  # as of a run whose network was not told
    (run / "config.json").write_text(json.dumps(before))
    with pytest.raises(InputError, match="when networks were not told which scans are mirrored"):
        train_alone(tiny(run, **resumed, random_flip=True))


# A model to begin from


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_step_0_is_the_base_told_or_not(make_unet, before, after):
    names = {"num_class_embeds": 2, "class_names": ("a", "b")}
    unet = make_unet(**names, augment_dim=int(before), moments_size=16, num_components=16)
    scheduler = json.loads(make_noise_scheduler().to_json_string())
    base = Base("base", None, "", json.loads(unet.to_json_string()), scheduler, {"a": 30, "b": 30}, "", unet)
    later = build_unet(tiny("nowhere", random_flip=after), ("a", "b"), base=base).eval()
    begin_with(later, base, like=None)
    assert torch.equal(predicted(later), predicted(unet))
    if after and before:  # what the base knew of mirrored scans is kept
        told = [predicted(network, augment_labels=MIRRORED) for network in (later, unet)]
        assert torch.equal(*told)


def test_an_adapter_keeps_it(tmp_path):
    pytest.importorskip("peft")
    flags = {"max_train_steps": 4, "checkpointing_steps": 4, "validation_steps": 4}
    base = train_alone(tiny(tmp_path / "base", **flags))
    flags |= {"pretrained_model_name_or_path": str(base), "train_only": "lora", "random_flip": True}
    run = train_alone(tiny(tmp_path / "run", **flags, learning_rate=1e-2, checkpoints_total_limit=9))
    first, last = (state_of(run, step)["weights"]["augment_embedding.weight"] for step in (0, 4))
    assert not torch.equal(first, last)
    whole, alone = (load_pipeline(str(folder), "cpu").unet for folder in (run, run / "adapter"))
    torch.testing.assert_close(
        predicted(alone, augment_labels=MIRRORED),
        predicted(whole, augment_labels=MIRRORED),
        atol=1e-5,
        rtol=1e-4,
    )


def test_classes_of_the_base_can_be_left_alone_too(tmp_path):
    """Samples of them are shown among the new scans, and mirrored else."""
    flags = {"max_train_steps": 2, "checkpointing_steps": 2, "validation_steps": 2}
    base = train_alone(tiny(tmp_path / "base", **flags))
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "scans" / "abscess" / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(path)
    flags |= {"pretrained_model_name_or_path": str(base), "train_data_dir": str(tmp_path / "scans")}
    flags |= {"keep_old_share": 0.5, "random_flip": True}
    train_alone(tiny(tmp_path / "run", **flags, no_flip_classes=["glioma_tumor", "abscess"]))
    with pytest.raises(InputError, match="--no_flip_classes sarcoma is not a class .*glioma_tumor.*abscess"):
        train_alone(tiny(tmp_path / "other", **flags, no_flip_classes=["sarcoma"]))
