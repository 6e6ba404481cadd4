"""Trainings that begin from a model: what is taken over, what becomes of the classes, and what is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import (
    OLD,
    assert_same_to_the_bit,
    base_in_memory,
    begun,
    losses,
    state_of,
    tiny,
    train_alone,
    weights_of,
    write_scans,
)
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from mri_ddpm import MRIDDPMPipeline
from mri_ddpm.data import Channels, load_phantoms, load_scans, to_model_range
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.files import read_json_lines
from mri_ddpm.flags import parse_config
from mri_ddpm.hub import export_repository, push_run
from mri_ddpm.runs import RunFolder, load_pipeline, load_record
from mri_ddpm.runs.base import open_base, take_over
from mri_ddpm.runs.record import WEIGHTS
from mri_ddpm.training.beginning import begin_with, in_order_of
from mri_ddpm.training.loop import repeats_scans
from mri_ddpm.training.moments import PRIOR_SCANS, SCANS_A_COMPONENT, keep_moments
from mri_ddpm.training.state import build_unet

REPO = "me/base"


@pytest.fixture(scope="module")
def adapted(base, new_scans, tmp_path_factory) -> Path:
    """A run that begins from it, on the other scans; nobody writes into it."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return begun(folder, base, train_data_dir=str(new_scans), checkpoints_total_limit=9)


def at_step_0(run: Path) -> tuple[dict, list]:
    """The weights and averaged weights that a training began with."""
    state = state_of(run, 0)
    averaged = next(value["shadow_params"] for value in state.values() if "shadow_params" in value)
    return state["weights"], averaged


# What is taken over


def test_step_0_is_the_base_and_the_training_its_own(base, old_scans, tmp_path):
    run = begun(tmp_path / "run", base, train_data_dir=str(old_scans), checkpoints_total_limit=9)
    weights, averaged = at_step_0(run)
    parameters = MRIDDPMPipeline.from_pretrained(base / "pipeline").unet.named_parameters()
    for (name, parameter), shadow in zip(parameters, averaged, strict=True):
        assert torch.equal(weights[name], parameter)
        assert torch.equal(shadow, parameter)
    rows = read_json_lines(run / "metrics.jsonl")
    last = [row for row in read_json_lines(base / "metrics.jsonl") if "validation_loss_ema" in row][-1]
    assert rows[0] == {**last, "step": 0, "validation_loss": last["validation_loss_ema"]}
    rates = [row["learning_rate"] for row in rows if "loss" in row]
    assert rates[:2] == [0, pytest.approx(1e-4)]  # half of 2e-4: the recipe's warm-up over two steps
    assert len(losses(run)) == 4
    assert state_of(run, 0)["optimizer.bin"]["state"] == {}
    assert not torch.equal(weights_of(run)["conv_in.weight"], weights["conv_in.weight"])


def test_the_base_beats_the_preset_and_flags_that_agree_are_fine(base, old_scans, tmp_path):
    there = tiny(base)
    flags = ["--preset", "mri-ddpm-44", "--train_data_dir", old_scans, "--output_dir", tmp_path / "run"]
    flags += [
        "--pretrained_model_name_or_path",
        base,
        "--block_out_channels",
        8,
        16,
        "--mixed_precision",
        "no",
    ]
    flags += ["--max_train_steps", 2, "--train_batch_size", 8, "--num_inference_steps", 2]
    train_alone(parse_config(list(map(str, flags))))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    for name in (
        "resolution",
        "attention_types",
        "norm_num_groups",
        "attention_head_dim",
        "layers_per_block",
    ):
        assert config[name] == getattr(there, name)
    assert config["pretrained_model_name_or_path"] == str(base)


@pytest.mark.parametrize(
    ("changes", "flag", "has"),
    [
        ({"block_out_channels": [8, 32]}, "--block_out_channels [8, 32]", "--block_out_channels [8, 16]"),
        ({"prediction_type": "sample"}, "--prediction_type sample", "--prediction_type epsilon"),
        ({"num_train_timesteps": 200}, "--num_train_timesteps 200", "--num_train_timesteps 300"),
        ({"class_conditional": False}, "--no_class_conditional", "--class_conditional"),
        ({"start_from_moments": False}, "--no_start_from_moments", "--start_from_moments"),
    ],
)
def test_a_flag_that_contradicts_the_base_is_refused(base, old_scans, tmp_path, changes, flag, has):
    with pytest.raises(InputError) as refusal:
        begun(tmp_path / "run", base, train_data_dir=str(old_scans), **changes)
    assert str(refusal.value) == (
        f"{flag} contradicts --pretrained_model_name_or_path {base}, which was trained with {has}; leave one of the two out."
    )
    assert not (tmp_path / "run").exists()


def test_another_size_has_the_same_weights(base, old_scans, tmp_path):
    run = begun(
        tmp_path / "run", base, train_data_dir=str(old_scans), resolution=24, checkpoints_total_limit=9
    )
    weights, before = at_step_0(run)[0], weights_of(base)
    assert weights.keys() == before.keys()
    for name in before.keys() - {"x_0_mean", "x_0_components"}:
        assert torch.equal(weights[name], before[name])
    assert weights["x_0_mean"].shape[-1] == 16  # the base's: they are scaled to whatever is sampled
    pipeline = MRIDDPMPipeline.from_pretrained(run / "pipeline")
    assert pipeline(num_images=1, num_inference_steps=2).images[0].size == (24, 24)


@pytest.mark.slow
def test_it_is_resumed_to_the_bit_when_the_base_is_gone(base, new_scans, tmp_path):
    gone = shutil.copytree(base, tmp_path / "base")
    flags = {"train_data_dir": str(new_scans), "checkpoints_total_limit": 9, "like": "glioma"}
    whole = begun(tmp_path / "run", gone, **flags)
    expected, curve = state_of(whole, 4), read_json_lines(whole / "metrics.jsonl")
    shutil.rmtree(gone)
    for kept in (2, 0):
        for folder in (whole / "checkpoints").iterdir():
            if int(folder.name.removeprefix("step-")) > kept:
                shutil.rmtree(folder)
        begun(whole, gone, resume_from_checkpoint="latest", **flags)
        assert_same_to_the_bit(state_of(whole, 4), expected)
        rows = read_json_lines(whole / "metrics.jsonl")
        for row in (*rows, *curve):
            row.pop("images_per_second", None)
        assert rows == curve
    with pytest.raises(InputError, match="began from .*base.*, and this is .*other; resume with the first"):
        begun(whole, "some/other", resume_from_checkpoint="latest", **flags)
    with pytest.raises(InputError, match="and this is no --pretrained_model_name_or_path"):
        train_alone(tiny(whole, resume_from_checkpoint="latest", train_data_dir=str(new_scans)))


def test_a_surge_in_the_first_steps_goes_back_to_the_base(base, old_scans, tmp_path):
    run = begun(
        tmp_path / "run", base, train_data_dir=str(old_scans), learning_rate=30.0, max_grad_norm=0.0, lr_warmup_steps=0,
        lr_scheduler="constant", max_train_steps=20, logging_steps=5, checkpointing_steps=20, validation_steps=20,
    )  # fmt: skip
    returns = [row for row in read_json_lines(run / "metrics.jsonl") if "surge_at_step" in row]
    assert returns[0]["step"] == 0


def test_a_base_from_the_hub_and_what_the_card_says(hub, base, new_scans, tmp_path):
    push_run(base, REPO)
    run = begun(tmp_path / "run", REPO, train_data_dir=str(new_scans))
    kept = json.loads((run / "base.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert len(kept["revision"]) == 40
    assert (config["pretrained_model_name_or_path"], config["revision"]) == (REPO, kept["revision"])
    push_run(run, "me/adapted")
    card = ModelCard.load("me/adapted")
    assert card.data.base_model == REPO
    assert f"revision `{kept['revision']}`" in card.text
    assert f"trained on {sum(kept['scans'].values())} scans: {kept['scans']['glioma']} glioma" in card.text

    # It can be begun from in turn, and knows all scans before it
    again = open_base("me/adapted")
    own = load_record("me/adapted").manifest["split"]["train"]["classes"]
    assert again.scans == {"glioma": kept["scans"]["glioma"], **own}
    assert again.class_names == (*OLD, "abscess")


def test_no_place_of_this_machine_leaves_it(adapted, base, tmp_path):
    export_repository(adapted, tmp_path / "out", REPO)
    texts = [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".json", ".jsonl", ".md")]
    assert tmp_path / "out" / "training" / "base.json" in texts
    assert not any(str(base.parent) in path.read_text() for path in texts)
    assert "base_model" not in ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()


def test_a_condition_that_is_new_changes_nothing_until_it_is_learned():
    before, channels = base_in_memory(OLD), Channels((), ("seg",), {"seg": ("core", "oedema")})
    unet = build_unet(tiny("nowhere"), OLD, channels, before).eval()
    begin_with(unet, before, like=None)
    x_t, timesteps, labels = torch.randn(3, 1, 16, 16), torch.tensor([0, 100, 299]), torch.tensor([0, 1, 2])
    mask = torch.cat([(torch.rand(3, 2, 16, 16) > 0.5).float(), torch.ones(3, 1, 16, 16)], dim=1)
    with torch.no_grad():
        expected = before.unet(x_t, timesteps, labels).sample
        for condition in (None, mask):
            assert torch.equal(unet(x_t, timesteps, labels, condition=condition).sample, expected)
    unet(x_t, timesteps, labels, condition=mask).sample.sum().backward()
    assert unet.conv_in.weight.grad[:, 1:].abs().amin((0, 2, 3)).all()  # and it can be


@pytest.mark.slow
def test_a_condition_is_learned_on_top_of_a_model_without(unbroken, tmp_path):
    run = begun(tmp_path / "run", unbroken, condition_on=["seg"], channels=["t1"])
    assert MRIDDPMPipeline.from_pretrained(run / "pipeline").condition_names == ("seg",)
    with pytest.raises(InputError, match=r"no --condition_on contradicts .*--condition_on \['seg'\]"):
        begun(tmp_path / "other", run, condition_on=[], channels=["t1"])
    with pytest.raises(InputError, match="draws 1 channel.*, and this training 2"):
        begun(tmp_path / "two", unbroken, channels=["t1", "t2"])
    begun(tmp_path / "again", run, max_train_steps=1)


# Ending in time


def test_patience_ends_a_training_and_the_best_is_kept(tmp_path, capsys):
    """At a rate that spoils the network: the loss is lowest at first."""
    spoilt = {"learning_rate": 1.0, "lr_scheduler": "constant", "lr_warmup_steps": 0, "surge_guard": False}
    config = tiny(
        tmp_path / "run", early_stopping_patience=3, keep_best=True, validation_steps=2, max_train_steps=500,
        checkpointing_steps=500, **spoilt,
    )  # fmt: skip
    run = train_alone(config)
    rows = [row for row in read_json_lines(run / "metrics.jsonl") if "validation_loss_ema" in row]
    kept, curve = [row["validation_loss_ema"] for row in rows], losses(run)
    lowest = int(np.argmin(kept))
    assert len(kept) == lowest + 1 + 3
    assert len(curve) == rows[-1]["step"] < 500
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{len(curve):06d}"]
    said = capsys.readouterr()
    assert f"was lowest at step {rows[lowest]['step']}" in said.out + said.err
    assert "Stopped after step" not in said.out
    assert (run / "samples.png").exists()
    assert json.loads((run / "best" / "validation.json").read_text()) == rows[lowest]

    # It can be opened by its name, with the papers of its step
    best, last = (load_pipeline(str(folder), "cpu").unet for folder in (run / "best", run))
    assert not torch.equal(best.conv_in.weight, last.conv_in.weight)
    record = load_record(str(run / "best"))
    assert record.metrics[-1]["step"] == rows[lowest]["step"]
    assert (record.manifest, record.raw_weights, record.pictures) == (
        load_record(str(run)).manifest,
        None,
        {},
    )
    export_repository(run / "best", tmp_path / "out", REPO)
    assert torch.equal(load_file(tmp_path / "out" / WEIGHTS)["conv_in.weight"], best.conv_in.weight)

    # Resumed, it has still ended
    train_alone(dataclasses.replace(config, resume_from_checkpoint="latest"))
    assert losses(run) == curve


def test_copies_are_said_when_they_are_more_than_chance():
    assert repeats_scans({}) is None  # with too few scans nobody looks
    assert repeats_scans({"flagged_share": 0.08, "flagged_share_interval": [0.04, 0.14]}) is None
    words = repeats_scans({"flagged_share": 0.3, "flagged_share_interval": [0.2, 0.4]})
    assert words.startswith(
        "30% of the samples are taken for copies of training scans, where of scans never trained on 5%"
    )


def test_the_validation_loss_of_each_class(unbroken):
    row = [row for row in read_json_lines(unbroken / "metrics.jsonl") if "validation_loss_ema" in row][-1]
    counts = json.loads((unbroken / "manifest.json").read_text())["split"]["validation"]["classes"]
    by_class = sum(row[f"validation_loss_ema {name}"] * count for name, count in counts.items())
    assert by_class / sum(counts.values()) == pytest.approx(row["validation_loss_ema"])


# Classes


def test_new_classes_follow_the_old_ones_and_begin_as_their_mean(adapted, base):
    before, rows = weights_of(base)["class_embedding.weight"], at_step_0(adapted)[0]["class_embedding.weight"]
    assert MRIDDPMPipeline.from_pretrained(adapted / "pipeline").class_names == (*OLD, "abscess")
    assert torch.equal(rows[[0, 1, 3]], before)  # of no class the last
    torch.testing.assert_close(rows[2], before[:2].mean(0))
    assert json.loads((adapted / "manifest.json").read_text())["class_names"] == ["abscess", "meningioma"]


def test_new_classes_begin_like_another():
    before = base_in_memory(OLD)
    unet = build_unet(tiny("nowhere"), (*OLD, "abscess", "cyst"), base=before)
    begin_with(unet, before, "glioma")
    assert torch.equal(unet.class_embedding.weight, before.unet.class_embedding.weight[[0, 1, 0, 0, 2]])
    assert torch.equal(unet.x_0_mean, before.unet.x_0_mean[[0, 1, 0, 0, 2]])


def test_every_scan_has_the_number_of_its_class_in_the_model(base, new_scans):
    plain = load_scans(train_data_dir=str(new_scans), resolution=16)
    names = [plain.class_names[label] for label in plain.train.class_labels]
    ordered = in_order_of(open_base(str(base)), plain, tiny("nowhere"))
    assert ordered.class_names == (*OLD, "abscess")
    assert [ordered.class_names[label] for label in ordered.train.class_labels] == names
    found = ordered.train.batch(range(9))["class_labels"]
    assert [ordered.class_names[label] for label in found] == names[:9]


def test_an_evaluation_knows_which_class_is_which(adapted, new_scans):
    record = load_record(str(adapted))
    real = load_real_scans(record, {"train_data_dir": str(new_scans)}, 16).numbered_by((*OLD, "abscess"))
    labels = real.batch("training", range(10), "cpu")["class_labels"]
    expected = [{"abscess": 2, "meningioma": 1}[real.class_names[y]] for y in real.training[1][:10]]
    assert labels.tolist() == expected


def test_a_model_without_classes_gains_them():
    before = base_in_memory(("",), class_conditional=False)
    unet = build_unet(tiny("nowhere"), ("abscess", "cyst"), base=before).eval()
    begin_with(unet, before, like=None)
    assert unet.config.class_names == ("abscess", "cyst")
    x_t, timesteps = torch.randn(3, 1, 16, 16), torch.tensor([0, 100, 299])
    with torch.no_grad():  # until it has learned them, they change nothing
        expected = before.unet(x_t, timesteps).sample
        assert expected.any()
        assert torch.equal(unet(x_t, timesteps, torch.tensor([0, 1, 2])).sample, expected)


def test_scans_without_classes_keep_all_of_the_bases(base, tmp_path):
    flat = write_scans(tmp_path / "flat", seed=3, **{"": 30})
    run = begun(tmp_path / "run", base, train_data_dir=str(flat))
    pipeline = MRIDDPMPipeline.from_pretrained(run / "pipeline")
    assert pipeline.class_names == OLD
    before, after = (
        weights_of(base)["class_embedding.weight"],
        state_of(run, 4)["weights"]["class_embedding.weight"],
    )
    assert torch.equal(after[:2], before[:2])  # nobody asked for them
    assert not torch.equal(after[2], before[2])
    assert torch.equal(weights_of(run)["x_0_mean"][:2], weights_of(base)["x_0_mean"][:2])


# Moments


def test_means_of_classes_with_new_scans_are_theirs_and_others_stay(base, new_scans, adapted):
    before, after = (weights_of(folder)["x_0_mean"].double().flatten(1) for folder in (base, adapted))
    scans = load_scans(train_data_dir=str(new_scans), resolution=16)
    batch = scans.train.batch(range(len(scans.train)))
    rows, labels = to_model_range(batch["pixel_values"]).flatten(1).double(), batch["class_labels"]

    def shrunk(rows, towards, more=0.0, number=0):
        return (rows.sum(0) + more + PRIOR_SCANS * towards) / (len(rows) + number + PRIOR_SCANS)

    gliomas = open_base(str(base)).scans["glioma"]
    assert torch.equal(after[0], before[0])  # glioma
    torch.testing.assert_close(after[1], shrunk(rows[labels == 1], before[1]), atol=1e-6, rtol=0)
    torch.testing.assert_close(after[2], shrunk(rows[labels == 0], before[2]), atol=1e-6, rtol=0)
    overall = shrunk(rows, before[2], gliomas * before[0], gliomas)
    torch.testing.assert_close(after[3], overall, atol=1e-6, rtol=0)
    # Under fifty scans show no direction of their own
    assert torch.equal(*(weights_of(folder)["x_0_components"] for folder in (base, adapted)))


def test_directions_of_many_new_scans_join_the_old_ones():
    """Covariances add up as scans do."""
    before, config = base_in_memory(OLD), tiny("nowhere")
    new = dataclasses.replace(load_phantoms(num_images=160, resolution=16, seed=1), class_names=())
    new.train.class_labels = np.full(len(new.train), 2)  # of no class, beside two old ones
    unet = build_unet(config, (), base=before)
    begin_with(unet, before, like=None)
    old = unet.x_0_components.double().flatten(1).numpy()
    keep_moments(unet, new, before)
    rows = to_model_range(new.train.batch(range(len(new.train)))["pixel_values"]).flatten(1).double().numpy()
    _, lengths, axes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    kept = len(rows) // SCANS_A_COMPONENT
    own = (axes[:kept].T * lengths[:kept] ** 2 / len(rows)) @ axes[:kept]
    weight = sum(before.scans.values()) + PRIOR_SCANS
    joined = (len(rows) * own + weight * old.T @ old) / (len(rows) + weight)
    variances, axes = np.linalg.eigh(joined)
    expected = (axes[:, -16:] * variances[-16:]) @ axes[:, -16:].T  # as many as before
    components = unet.x_0_components.double().flatten(1).numpy()
    np.testing.assert_allclose(components.T @ components, expected, atol=1e-5)
    assert torch.equal(unet.x_0_mean[:2], before.unet.x_0_mean[:2])


# Bad input


def test_a_folder_without_a_pipeline_is_called_what_it_is(base, tmp_path):
    """By what samples it as by what pushes it."""
    unfinished = shutil.copytree(base, tmp_path / "run", ignore=shutil.ignore_patterns("pipeline"))
    folders = {
        base / "checkpoints": "holds no pipeline; name a run folder",
        RunFolder(base).checkpoints()[-1]: "is a checkpoint, to resume its training from; name its run",
        unfinished: "is a run without a pipeline/ yet",
    }
    for folder, words in folders.items():
        for opened in (lambda name: load_pipeline(name, "cpu"), load_record):
            with pytest.raises(InputError, match=words):
                opened(str(folder))


@pytest.mark.parametrize(
    ("classes", "changes", "words"),
    [
        (
            {"Glioma": 20},
            {},
            "the class 'Glioma', and .* the class 'glioma': if they are one, call it 'glioma'",
        ),
        ({"menin-gioma": 20}, {}, "call it 'meningioma'"),
        ({"abscess": 20}, {"like": "sarcoma"}, "--like sarcoma names no class of .*: glioma, meningioma"),
        (
            {"glioma": 20},
            {"like": "glioma"},
            "--like glioma is for classes that are new .* the scans have none",
        ),
        ({"glioma": 20}, {"revision": "main"}, "--revision main is for the Hub, and .* is a folder"),
    ],
)
def test_classes_and_flags_that_do_not_fit_are_refused(base, tmp_path, classes, changes, words):
    scans = write_scans(tmp_path / "scans", **classes)
    with pytest.raises(InputError, match=words):
        begun(tmp_path / "run", base, train_data_dir=str(scans), **changes)
    assert not (tmp_path / "run").exists()


def spoil_weights(base: Path) -> None:
    file = base / "pipeline" / WEIGHTS
    weights = load_file(file)
    weights["conv_in.weight"][0, 0, 0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})


def set_kind(base: Path) -> None:
    index = json.loads((base / "pipeline" / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionPipeline"
    (base / "pipeline" / "model_index.json").write_text(json.dumps(index))


def set_betas(base: Path) -> None:
    file = base / "pipeline" / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "beta_schedule": "squaredcos_cap_v2"}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_weights, "not finite.*conv_in.weight"),
        (set_kind, "StableDiffusionPipeline"),
        (set_betas, "betas that are not linear"),
        (lambda base: (base / "manifest.json").write_text('{"files": 3}'), "are not as a run writes them"),
        (lambda base: (base / "manifest.json").unlink(), "comes without the manifest of its training"),
        (lambda base: shutil.rmtree(base / "pipeline"), "is a run without a pipeline/ yet"),
        (shutil.rmtree, "base"),
    ],
)
def test_a_base_that_cannot_be_begun_from_is_refused(base, new_scans, tmp_path, spoil, words):
    bad = shutil.copytree(base, tmp_path / "base")
    spoil(bad)
    with pytest.raises(InputError, match=words) as refusal:
        begun(tmp_path / "run", bad, train_data_dir=str(new_scans))
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_validation_scans_that_the_base_has_seen_are_said(base, old_scans, tmp_path, capsys):
    begun(tmp_path / "run", base, train_data_dir=str(old_scans), seed=7, max_train_steps=1)
    assert "validation scans, so that what is measured on these is too good" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "rate"),
    [
        ({}, 2e-4),
        ({"resolution": 16}, 2e-4),
        ({"resolution": 24}, 1e-3),
        ({"learning_rate": 1e-2}, 1e-2),
        ({"train_only": "lora"}, 1e-3),
    ],
)
def test_all_weights_of_a_base_are_trained_at_a_lower_rate(given, rate):
    """Low-rank differences and norms are learned at the preset's, and so is another size."""
    config = tiny("nowhere", pretrained_model_name_or_path="base", **given)
    assert take_over(config, base_in_memory(OLD)).learning_rate == rate
