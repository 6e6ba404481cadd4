"""Training a part of the weights: adapters of low rank, and norms."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import OLD, assert_same_to_the_bit, base_in_memory, begun, state_of, tiny, weights_of
from safetensors.torch import load_file, save_file

from mri_ddpm import commands
from mri_ddpm.errors import InputError
from mri_ddpm.evaluation.subject import raw_unet
from mri_ddpm.runs import load_pipeline, load_record, merged
from mri_ddpm.training.beginning import begin_with, choose_trained
from mri_ddpm.training.state import build_unet


@pytest.mark.parametrize("train_only", ["lora", "norms"])
def test_only_what_is_named_is_trained(base, new_scans, tmp_path, train_only):
    if train_only == "lora":
        pytest.importorskip("peft")
    run = begun(
        tmp_path / "run",
        base,
        train_data_dir=str(new_scans),
        train_only=train_only,
        checkpoints_total_limit=9,
    )
    first, last = (state_of(run, step)["weights"] for step in (0, 4))
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert "class_embedding.weight" in moved
    if train_only == "lora":
        assert all(".lora_" in name for name in moved - {"class_embedding.weight"})
        assert {"conv_in.lora_B.default.weight", "mid_attention.to_qkv.lora_B.default.weight"} <= moved
    else:
        assert all("norm" in name or "_embedding" in name or "conv_in" in name for name in moved)
        assert {"norm_out.weight", "time_embedding.linear_1.weight"} <= moved
    assert weights_of(run).keys() == weights_of(base).keys()
    # All that follows takes it for any other model, and it can be resumed
    record = load_record(str(run))
    assert raw_unet(load_pipeline(str(run), "cpu"), record) is not None
    expected = state_of(run, 4)
    shutil.rmtree(run / "checkpoints" / "step-000004")
    flags = {"train_data_dir": str(new_scans), "train_only": train_only, "checkpoints_total_limit": 9}
    begun(run, base, resume_from_checkpoint="latest", **flags)
    assert_same_to_the_bit(state_of(run, 4), expected)


def test_an_adapter_merged_is_the_network_that_has_it():
    pytest.importorskip("peft")
    before = base_in_memory(OLD)
    unet = build_unet(tiny("nowhere"), OLD, base=before).eval()
    begin_with(unet, before, like=None)
    config = tiny("nowhere", pretrained_model_name_or_path="base", train_only="lora", rank=3)
    choose_trained(unet, config)
    x_t, timesteps, labels = torch.randn(3, 1, 16, 16), torch.tensor([0, 100, 299]), torch.tensor([0, 1, 2])
    with torch.no_grad():
        expected = before.unet(x_t, timesteps, labels).sample
        assert torch.equal(unet(x_t, timesteps, labels).sample, expected)  # at first it changes nothing
        for name, parameter in unet.named_parameters():
            parameter.add_(0.05 * torch.randn_like(parameter) * (".lora_B." in name))
        with_adapter = unet(x_t, timesteps, labels).sample
        assert (with_adapter - expected).abs().max() > 0.01
        torch.testing.assert_close(
            merged(unet)(x_t, timesteps, labels).sample, with_adapter, atol=1e-5, rtol=1e-4
        )
    assert merged(before.unet) is before.unet


@pytest.fixture(scope="module")
def with_lora(base, new_scans, tmp_path_factory) -> tuple[Path, Path]:
    """A copy of the base, and a run of an adapter for it."""
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("lora")
    below = shutil.copytree(base, folder / "base")
    return below, begun(folder / "run", below, train_data_dir=str(new_scans), train_only="lora", rank=4)


def test_an_adapter_opens_here_and_by_diffusers_own_means(with_lora):
    below, run = with_lora
    whole, alone = (load_pipeline(str(folder), "cpu") for folder in (run, run / "adapter"))
    for name, tensor in whole.unet.state_dict().items():
        torch.testing.assert_close(alone.unet.state_dict()[name], tensor)
    assert alone.class_names == (*OLD, "abscess")
    unet = load_pipeline(str(below), "cpu").unet
    unet.load_lora_adapter(str(run / "adapter"), prefix=None, use_safetensors=True)
    unet.fuse_lora()
    x_t, labels = torch.randn(2, 1, 16, 16), torch.zeros(2, dtype=torch.long)
    with torch.no_grad():
        unet.class_embedding.weight[0] = whole.unet.class_embedding.weight[0]
        torch.testing.assert_close(
            unet(x_t, 7, labels).sample, whole.unet(x_t, 7, labels).sample, atol=1e-5, rtol=1e-4
        )


def test_an_adapter_for_other_weights_or_a_damaged_one_is_refused(with_lora, base, tmp_path):
    below, run = with_lora
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    told = json.loads((adapter / "base.json").read_text())
    (adapter / "base.json").write_text(json.dumps({**told, "pretrained_model_name_or_path": str(run)}))
    with pytest.raises(InputError, match=f"is an adapter for other weights than {run} has"):
        load_pipeline(str(adapter), "cpu")
    (adapter / "base.json").write_text(json.dumps(told))
    weights = load_file(adapter / "rest.safetensors")
    save_file({**weights, "x_0_mean": weights["x_0_mean"] * torch.nan}, adapter / "rest.safetensors")
    with pytest.raises(InputError, match="cannot be used: it holds numbers that are not finite"):
        load_pipeline(str(adapter), "cpu")
    save_file(weights, adapter / "rest.safetensors")
    with pytest.raises(InputError, match="comes without the manifest of its training"):  # it is in no run
        begun(tmp_path / "run", adapter)
    (adapter / "pytorch_lora_weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"the adapter .* cannot be used"):
        load_pipeline(str(adapter), "cpu")


def test_an_adapter_samples_in_every_way(with_lora, tmp_path, capsys):
    _, run = with_lora
    alone = shutil.copytree(run / "adapter", tmp_path / "adapter")
    for name, adapter in (("beside", run / "adapter"), ("alone", alone)):
        sample = [
            "sample",
            str(adapter),
            "--num_images",
            "1",
            "--num_inference_steps",
            "2",
            "--format",
            "nifti",
        ]
        commands.main([*sample, "--output_dir", str(tmp_path / name)])
        assert len(list((tmp_path / name).glob("*.nii.gz"))) == 1
    with pytest.raises(SystemExit):
        commands.main([*sample, "--output_dir", str(tmp_path / "gpu"), "--device", "cuda:7"])
    assert "--device cuda:7 cannot be used" in capsys.readouterr().err
