"""Flags, presets and config files, and the refusals that need no data."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import mri_ddpm
from mri_ddpm.config import TrainingConfig
from mri_ddpm.errors import InputError, exit_on_input_error
from mri_ddpm.flags import parse_config
from mri_ddpm.presets import PRESETS
from mri_ddpm.training import preparation


def test_nothing_given_is_the_quickstart_on_the_phantom():
    config = parse_config([])
    assert (config.preset, config.source) == ("quickstart", "phantom")


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_a_valid_config(preset):
    config = parse_config(["--preset", preset])
    for name, value in PRESETS[preset].items():
        assert getattr(config, name) == value


def test_the_papers_recipe():
    """MRIDiff: 44 x 44, batch 80, Adam 1e-3, T = 300, 8000 epochs, Huber loss, the noise as the target."""
    config = parse_config(["--preset", "mridiff-44"])
    assert (config.resolution, config.train_batch_size, config.num_train_epochs) == (44, 80, 8000)
    assert (config.optimizer, config.learning_rate, config.lr_scheduler) == ("adam", 1e-3, "constant")
    assert (config.num_train_timesteps, config.beta_start, config.beta_end) == (300, 1e-4, 0.02)
    assert (config.loss_type, config.prediction_type, config.max_grad_norm) == ("huber", "epsilon", 0)


def test_a_flag_overrides_the_file_and_the_file_the_preset(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "preset: mridiff-44\nlearning_rate: 1e-4\nresolution: 72\nrandom_flip: true\nsample_epochs: [0, 3]\n"
    )
    config = parse_config(["--config", str(file), "--resolution", "64"])
    assert (config.resolution, config.learning_rate, config.train_batch_size) == (64, 1e-4, 80)
    assert config.random_flip
    assert config.sample_epochs == [0, 3]


def test_a_saved_config_gives_the_same_config(tmp_path):
    config = parse_config(
        ["--preset", "mridiff-72", "--random_flip", "--no_flip_classes", "a", "no", "--snr_gamma", "5"]
    )
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    assert parse_config(["--config", str(tmp_path / "config.json")]) == config


def test_our_presets_train_by_the_recipe_that_was_searched_and_the_papers_by_its_own():
    for preset in PRESETS:
        config = TrainingConfig(preset=preset)
        recipe = (
            config.prediction_type,
            config.beta_end,
            config.start_from_moments,
            config.timestep_sampling,
        )
        papers = preset.startswith("mridiff")
        assert recipe == ("epsilon", 0.02, True, "uniform" if papers else "lognormal")
    assert (config.log_sigma_mean, config.log_sigma_std) == (-0.6, 1.2)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_the_same_in_python(preset):
    assert TrainingConfig(preset=preset) == parse_config(["--preset", preset])
    assert TrainingConfig(preset=preset, seed=3) == parse_config(["--preset", preset, "--seed", "3"])


@pytest.mark.parametrize(
    ("text", "flags", "lengths"),
    [
        ("", [], (None, 800)),  # of the preset
        ("", ["--num_train_epochs", "50"], (50, None)),
        ("", ["--max_train_steps", "50"], (None, 50)),
        ("num_train_epochs: 50", [], (50, None)),
        ("num_train_epochs: 50", ["--max_train_steps", "9"], (None, 9)),
        ("max_train_steps: null", [], (1000, None)),
        ("preset: mridiff-44\nmax_train_steps: 7", [], (None, 7)),
        ("preset: mridiff-44", [], (8000, None)),
        ("preset: mri-ddpm-64", [], (1000, None)),
    ],
)
def test_a_length_that_is_given_beats_the_presets(tmp_path, text, flags, lengths):
    file = tmp_path / "mine.yaml"
    file.write_text(f"output_dir: here\n{text}")
    config = parse_config(["--config", str(file), *flags])
    assert (config.num_train_epochs, config.max_train_steps) == lengths


def test_no_tracker_as_others_spell_it():
    assert parse_config(["--report_to", "none"]).report_to is None


@pytest.mark.parametrize("given", [{"num_train_epochs": 5, "max_train_steps": 5}])
def test_two_lengths_that_are_given_contradict_each_other(given):
    flags = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    for make in (lambda: TrainingConfig(**given), lambda: parse_config(flags)):
        with pytest.raises(InputError, match="--num_train_epochs 5 and --max_train_steps 5 are both given"):
            make()


def test_a_config_file_means_what_is_written(tmp_path):
    """YAML's own reading has False for no, 1 for 01 and a date for 2024-01-01."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "random_flip: yes\nno_flip_classes: [no, yes, 01, 2024-01-01, 1e3]\nnum_inference_steps: null\nlearning_rate: 1e-4\n"
    )
    config = parse_config(["--config", str(file)])
    assert config.no_flip_classes == ["no", "yes", "01", "2024-01-01", "1e3"]
    assert config.random_flip is True
    assert (config.num_inference_steps, config.learning_rate) == (None, 1e-4)


FREE = {  # any word can be meant
    "output_dir", "train_data_dir", "dataset_name", "cache_dir", "resume_from_checkpoint", "pretrained_model_name_or_path",
}  # fmt: skip


def check(flags):
    config = parse_config(flags)
    preparation.check_architecture(config)
    preparation.check_tracker(config)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(TrainingConfig) if f.name not in FREE])
def test_a_senseless_value_of_any_flag_gets_a_sentence(name, capsys):
    field = TrainingConfig.__dataclass_fields__[name]
    numbers = ["-7"] if "int" in str(field.type) else ["nan", "inf", "-inf", "-7"]
    for value in numbers if "int" in str(field.type) or "float" in str(field.type) else ["none of these"]:
        with pytest.raises((InputError, SystemExit)) as refusal:
            check([f"--{name}={value}"])
        words = capsys.readouterr().err if refusal.type is SystemExit else str(refusal.value)
        assert name in words


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(TrainingConfig)])
def test_every_flag_is_read_somewhere(name):
    package = Path(mri_ddpm.__file__).parent
    declared = {"config.py", "scan_options.py", "presets.py", "flags.py"}
    sources = [
        path.read_text(encoding="utf-8") for path in package.rglob("*.py") if path.name not in declared
    ]
    if name in ("hub_model_id",):  # read by a property of the configuration
        name = "repo_id"
    assert any(re.search(rf"(config|options)\.{name}\b|\"{name}\"", source) for source in sources)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--no_flip_classes", "a"], ["--no_flip_classes", "--random_flip"]),
        (["--use_ema"], ["--use_ema is a flag of diffusers' own script", "always averaged"]),
        (["--num_epochs=5"], ["--num_epochs is", "here it is --num_train_epochs"]),
        (["--label_column", "a"], ["--label_column", "--dataset_name"]),
        (["--huber_delta", "2", "--loss_type", "l2"], ["--huber_delta", "--loss_type is l2"]),
        (["--learning_rate", "0"], ["--learning_rate is 0"]),
        (["--sample_epochs", "3", "-1"], ["--sample_epochs holds -1"]),
        (["--preset", "huge"], ["--preset huge", "quickstart", "mridiff-44"]),
        (["--resolution", "15"], ["--resolution is 15", "16"]),
        (["--learning_rate", "-1"], ["--learning_rate is -1"]),
        (["--dropout", "1"], ["--dropout is 1"]),
        (["--huber_delta", "0"], ["--huber_delta is 0"]),
        (["--beta_end", "1.5"], ["--beta_end is 1.5"]),
        (["--beta_start", "0.03", "--beta_end", "0.02"], ["--beta_start 0.03", "--beta_end 0.02"]),
        (["--num_inference_steps", "301"], ["--num_inference_steps is 301", "300"]),
        (["--train_data_dir", "a", "--dataset_name", "b"], ["--train_data_dir", "--dataset_name"]),
        (
            ["--rescale_betas_zero_snr", "--prediction_type", "epsilon"],
            ["--rescale_betas_zero_snr", "--prediction_type v_prediction"],
        ),
        (
            ["--rescale_betas_zero_snr", "--prediction_type", "v_prediction"],
            ["--rescale_betas_zero_snr", "--timestep_sampling uniform"],
        ),
        (["--config", "no-such.yaml"], ["no-such.yaml", "No such file"]),
    ],
)
def test_refusals_name_the_flag_and_the_number(flags, words):
    with pytest.raises(InputError) as refusal:
        parse_config(flags)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("learning_rat: 1", ["unknown keys: learning_rat"]),
        ("- 1\n- 2", ["holds no keys"]),
        ("a: [", ["is no YAML"]),
    ],
)
def test_a_config_file_that_cannot_be_used(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as refusal:
        parse_config(["--config", str(file)])
    for word in [str(file), *words]:
        assert word in str(refusal.value)


def test_a_wrong_type_in_a_config_file_ends_like_a_wrong_flag(tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("resolution: large")
    with pytest.raises(SystemExit) as end:
        parse_config(["--config", str(file)])
    assert end.value.code == 2
    assert "--resolution" in capsys.readouterr().err


def test_a_person_sees_one_sentence_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as end, exit_on_input_error():
        TrainingConfig(resolution=3)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: --resolution is 3; take 16 or more.\n"
