"""Folders of samples: resumed, refused, filmed, and never out of memory. The command is run as a user runs it."""

import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image

from mri_ddpm import MRIDDPMInpaintPipeline, MRIDDPMPipeline, commands
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.sampling import SCHEDULERS, SamplingOptions, sample_batches, set_scheduler
from mri_ddpm.sampling.batches import LARGEST_BATCH, activation_bytes, batch_size_that_fits

NAMES = ("glioma_tumor", "no_tumor")
CLASS = ("--class_label", "no_tumor")


@pytest.fixture
def pipeline(make_unet):
    return MRIDDPMPipeline(make_unet(num_class_embeds=2, class_names=NAMES), make_noise_scheduler())


@pytest.fixture
def saved(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def sample(saved, output_dir, *flags, steps: int = 4) -> None:
    command = ["sample", str(saved), "--output_dir", str(output_dir), "--num_inference_steps", str(steps)]
    commands.main([*command, *map(str, flags)])


def pictures(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


def refusal(capsys, *arguments, **steps) -> str:
    with pytest.raises(SystemExit) as end:
        sample(*arguments, **steps)
    assert end.value.code == 2
    return capsys.readouterr().err.split("error: ")[-1].strip()


# Going on


@pytest.mark.slow
def test_a_drawing_that_was_killed_goes_on_where_it_stopped(saved, tmp_path):
    flags = ["--num_images", "24", "--batch_size", "4", "--class_label", "no_tumor"]
    command = [
        sys.executable,
        "-c",
        "from mri_ddpm.commands import main; main()",
        "sample",
        str(saved),
        *flags,
    ]
    command += ["--output_dir", str(tmp_path / "out"), "--num_inference_steps", "60"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while len(pictures(tmp_path / "out")) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = pictures(tmp_path / "out")
    assert len(before) < 24
    times = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.png")}

    sample(saved, tmp_path / "out", *flags, steps=60)
    sample(saved, tmp_path / "whole", *flags, steps=60)
    whole = pictures(tmp_path / "whole")
    assert len(whole) == 24
    assert pictures(tmp_path / "out") == whole  # to the bit, texts included
    # Of whole batches: not sampled again
    finished = [f"no_tumor-{i:05d}.png" for i in range(len(before) // 4 * 4)]
    assert finished
    for name in finished:
        assert (tmp_path / "out" / name).stat().st_mtime_ns == times[name]
    assert [path.name for path in (tmp_path / "out").glob(".*")] == [".sampling.json"]


def test_more_images_can_be_asked_for_later_but_no_others(saved, tmp_path, capsys):
    sample(saved, tmp_path / "out", "--num_images", 2)
    few = pictures(tmp_path / "out")
    sample(saved, tmp_path / "out", "--num_images", 5)
    assert len(pictures(tmp_path / "out")) == 5
    assert few.items() <= pictures(tmp_path / "out").items()
    before = pictures(tmp_path / "out")
    for flags, words in (
        (["--seed", 1], "holds images of seed 0, not 1"),
        (["--class_label", "no_tumor"], "holds images of class_label None, not no_tumor"),
        (["--scheduler", "unipc"], "holds images of scheduler DDPMScheduler, not UniPCMultistepScheduler"),
        (["--bit_depth", 16], "holds images of bit_depth 8, not 16"),
    ):
        assert words in refusal(capsys, saved, tmp_path / "out", *flags)
    assert "num_inference_steps 4, not 5" in refusal(capsys, saved, tmp_path / "out", steps=5)
    assert pictures(tmp_path / "out") == before


def test_an_image_that_is_there_is_not_written_again(saved, tmp_path):
    sample(saved, tmp_path / "out", "--num_images", 4)
    (tmp_path / "out" / "no_tumor-00001.png").unlink()
    marked = tmp_path / "out" / "no_tumor-00003.png"
    marked.write_bytes(b"mine")
    sample(saved, tmp_path / "out", "--num_images", 4, "--batch_size", 2)
    assert (tmp_path / "out" / "no_tumor-00001.png").exists()
    assert marked.read_bytes() == b"mine"


def test_a_class_may_be_asked_for_by_index_and_its_name_leads_nowhere(make_unet, tmp_path):
    names = (str(tmp_path / "elsewhere"), "T1/T2")
    unet = make_unet(num_class_embeds=2, class_names=names)
    MRIDDPMPipeline(unet, make_noise_scheduler()).save_pretrained(tmp_path / "pipeline")
    sample(tmp_path / "pipeline", tmp_path / "out", "--num_images", 1, "--class_label", 0)
    sample(tmp_path / "pipeline", tmp_path / "other", "--num_images", 1, "--class_label", 1)
    assert {path.name for path in tmp_path.iterdir()} == {"pipeline", "out", "other"}
    assert list(pictures(tmp_path / "other")) == ["T1_T2-00000.png"]


@pytest.mark.parametrize("where", ["file/out", "link"])
def test_a_folder_that_cannot_be_made_is_one_sentence(saved, tmp_path, capsys, where):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("/proc/nowhere")
    assert "cannot be written" in refusal(capsys, saved, tmp_path / where)


def test_the_folder_one_stands_in_may_be_filled(saved, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    sample(saved, ".", "--num_images", 2, "--film")
    assert len(pictures(tmp_path / "out")) == 2
    assert (tmp_path / "out-film.png").exists()


def test_a_folder_with_somebody_elses_files_is_left_alone(saved, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    for broken in (None, "{", "{}", "[]"):
        if broken:
            (tmp_path / "out" / ".sampling.json").write_text(broken)
        assert "is not an empty folder, nor one that" in refusal(capsys, saved, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2
    (tmp_path / "file").write_text("mine")
    assert "is a file; name a folder" in refusal(capsys, saved, tmp_path / "file")


# How many at once


def test_auto_takes_the_batch_that_half_of_the_memory_holds(pipeline, monkeypatch):
    from mri_ddpm.sampling import batches

    with activation_bytes(pipeline.unet) as each:
        pipeline([0], 1, num_inference_steps=1)
    assert sum(each) > 16 * 16 * 8 * 4  # the first convolution's output alone
    memory = type("memory", (), {"available": 21 * sum(each)})
    monkeypatch.setattr(batches.psutil, "virtual_memory", lambda: memory)
    assert batch_size_that_fits(pipeline, [0, 1] * 50, 100, SamplingOptions()) == 10
    assert (
        batch_size_that_fits(pipeline, [0, 1, 0], 3, SamplingOptions()) == 10
    )  # more may be asked for later
    guided = SamplingOptions(guidance_scale=2.0, guidance_start=0.5)
    assert batch_size_that_fits(pipeline, [0, 1] * 50, 100, guided) == 5
    edit = {"image": np.zeros((16, 16)), "mask_image": np.ones((16, 16))}
    inpaint = MRIDDPMInpaintPipeline.from_pipe(pipeline)
    # One step, not RePaint's ten
    assert batch_size_that_fits(inpaint, [0, 1] * 50, 100, SamplingOptions(edit=edit)) == 10


def test_auto_halves_nothing_less_than_what_fails(pipeline, monkeypatch):
    """A network that cannot take more than 6 images runs out of memory as torch does; fewer are sampled instead."""

    def limit(module, inputs):
        if len(inputs[0]) > 6:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setitem(LARGEST_BATCH, "cpu", 8)
    pipeline.unet.register_forward_pre_hook(limit)
    options = SamplingOptions(batch_size="auto", num_inference_steps=1)
    sizes = [len(numbers) for numbers, _ in sample_batches(pipeline, [0] * 13, 13, options)]
    assert sum(sizes) == 13
    assert 4 <= sizes[0] <= 6


def test_images_are_the_same_in_batches_of_any_size(pipeline):
    def draw(batch_size):
        options = SamplingOptions(batch_size=batch_size, seed=3, num_inference_steps=6)
        batches = sample_batches(pipeline, [0, 1] * 4, 8, options, output_type="np")
        return np.concatenate([output.images for _, output in batches])

    whole = draw(8)
    assert whole.std() > 0.02
    for size in (1, 3):
        np.testing.assert_allclose(draw(size), whole, atol=1e-5)


# Schedulers by name


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws_by_name(saved, tmp_path, name):
    sample(saved, tmp_path / "out", "--scheduler", name, "--num_images", 2)
    images = [Image.open(path) for path in sorted((tmp_path / "out").glob("*.png"))]
    assert len(images) == 2
    noisy = " algorithm_type=sde-dpmsolver++" if name == "dpmsolver++sde" else ""
    assert {image.text["scheduler"] for image in images} == {SCHEDULERS[name][0].__name__ + noisy}
    assert all(np.asarray(image).std() > 5 for image in images)


def test_a_scheduler_keeps_the_recipes_noise_and_clipping(pipeline):
    recipe = pipeline.scheduler
    for name in SCHEDULERS:
        set_scheduler(pipeline, name)
        config = pipeline.scheduler.config
        torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, recipe.alphas_cumprod)
        assert config.timestep_spacing == "trailing"
        assert config.prediction_type == recipe.config.prediction_type
        assert config.clip_sample
        if hasattr(pipeline.scheduler, "sigmas"):
            pipeline.set_timesteps(10)
            assert pipeline.scheduler.sigmas[-1] == 0
    set_scheduler(pipeline, "ddpm")
    assert (
        dict(pipeline.scheduler.config).items()
        >= {"clip_sample": True, "variance_type": "fixed_small"}.items()
    )


def test_a_scheduler_takes_nothing_over_from_the_one_before(pipeline):
    """diffusers hands on settings that the next scheduler has no use for, and the one after it has."""

    def draw(name):
        set_scheduler(pipeline, name)
        generator = torch.Generator().manual_seed(0)
        return pipeline(0, 1, 4, generator=generator, output_type="np").images

    fresh = {name: draw(name) for name in ("ddim", *SCHEDULERS)}
    for before in SCHEDULERS:
        for name in ("ddim", "dpmsolver++", "unipc"):
            draw(before)
            np.testing.assert_array_equal(draw(name), fresh[name])
    karras = {"use_karras_sigmas": True}
    scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, **karras)
    pipeline.scheduler = scheduler
    np.testing.assert_array_equal(draw("dpmsolver++"), fresh["dpmsolver++"])
    assert np.abs(fresh["dpmsolver++"] - fresh["dpmsolver++sde"]).max() > 0.01


def test_16_bit_images_are_the_8_bit_ones_in_finer_levels(saved, tmp_path):
    sample(saved, tmp_path / "8", "--num_images", 2)
    sample(saved, tmp_path / "16", "--num_images", 2, "--bit_depth", 16)
    for name in pictures(tmp_path / "8"):
        coarse, fine = (Image.open(tmp_path / bits / name) for bits in ("8", "16"))
        assert (coarse.mode, fine.mode) == ("L", "I;16")
        assert np.abs(np.asarray(fine) / 257 - np.asarray(coarse)).max() <= 0.5
        assert len(np.unique(np.asarray(fine) % 257)) > 50


# Pictures of the process


def test_a_film_shows_the_way_from_noise_to_the_image(saved, tmp_path):
    sample(saved, tmp_path / "out", "--film", "--num_images", 5, steps=20)
    strip, film = (Image.open(tmp_path / f"out-film.{end}") for end in ("png", "gif"))
    assert {path.suffix for path in (tmp_path / "out").glob("[!.]*")} == {".png"}
    assert len(list((tmp_path / "out").glob("[!.]*"))) == 5  # images alone, to train on
    assert strip.size == (9 * 72, 8 * 72 + 14)  # 8 moments and the image; x_t and its estimate of 4 images
    assert film.n_frames == 21
    assert film.info["loop"] == 0
    first = Image.open(next((tmp_path / "out").glob("*-00000.png"))).resize(
        (72, 72), Image.Resampling.NEAREST
    )
    np.testing.assert_allclose(np.asarray(strip)[14 : 14 + 72, -72:], np.asarray(first), atol=1)


def test_a_noise_strip_shows_one_scan_vanish(saved, tmp_path, capsys):
    scan = np.zeros((30, 20), np.uint8)
    scan[5:25, 5:15] = 200
    Image.fromarray(scan).save(tmp_path / "scan.png")
    command = ["sample", saved, "--noise_strip", tmp_path / "scan.png", "--output_dir", tmp_path / "out"]
    command = [str(part) for part in command]
    commands.main(command)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["noise_strip.png"]
    strip = np.asarray(Image.open(tmp_path / "out" / "noise_strip.png"))[14:]
    tiles = [strip[:, i : i + 72].astype(float).ravel() for i in range(0, strip.shape[1], 72)]
    assert len(tiles) == 7
    likeness = [np.corrcoef(tiles[0], tile)[0, 1] for tile in tiles]
    assert likeness == sorted(likeness, reverse=True)
    assert likeness[-1] < 0.3
    with pytest.raises(SystemExit):
        commands.main(command)
    assert "holds a noise_strip.png already" in capsys.readouterr().err


# Edits from the shell


def test_a_region_is_drawn_anew_and_the_rest_stays(saved, tmp_path):
    rng = np.random.default_rng(0)
    scan, mask = rng.integers(0, 256, (16, 16), dtype=np.uint8), np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(scan).save(tmp_path / "scan.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    files = ["--image", tmp_path / "scan.png", "--mask_image", tmp_path / "mask.png"]
    sample(saved, tmp_path / "out", *files, "--class_label", "no_tumor", "--num_images", 2)
    for path in (tmp_path / "out").glob("*.png"):
        drawn = np.asarray(Image.open(path))
        np.testing.assert_array_equal(drawn[mask == 0], scan[mask == 0])
        assert (drawn[mask > 0] != scan[mask > 0]).mean() > 0.9
        text = Image.open(path).text
        assert text["synthetic"].startswith("in part: a given scan, changed")
        assert len(text["image_sha256"]) == len(text["mask_image_sha256"]) == 64


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--scheduler", "magic"], "invalid choice: 'magic'"),
        (["--batch_size", "0"], "--batch_size is 0; take 1 or more."),
        (["--guidance_start", "0.7", "--guidance_end", "0.2"], "guidance_start is 0.7 and guidance_end 0.2"),
        (["--dynamic_thresholding_ratio", "2"], "dynamic_thresholding_ratio is 2.0; take a share over 0"),
        (["--strength", "0.5"], "--strength is given without --image, the scan to start from; give both."),
        (["--mask_image", "GOOD"], "--mask_image is given without --image"),
        (["--batch_size", "many"], "'many' is neither a number nor 'auto'"),
        (["--seed", str(2**63)], f"--seed is {2**63}; with 16 images take at most"),
        (["--guidance_scale", "nan"], "guidance_scale is nan; take a number, 1 for none."),
        (["--class_label", "2"], "class '2' is not in the model; its classes are: glioma_tumor, no_tumor."),
        (["--image", "GOOD"], "--image needs the --class_label to sample it as: glioma_tumor, no_tumor."),
        (["--image", "GOOD", "--mask_image", "GOOD", *CLASS], "mask_image has no white pixel"),
        (
            ["--image", "nowhere.png", *CLASS],
            "--image nowhere.png: No such file or directory; name an image file.",
        ),
        (
            ["--image", "BIG", *CLASS],
            "image is 20x20 pixels, but the model takes 16x16; resize it to that first.",
        ),
        (
            ["--image", "GOOD", "--mask_image", "BIG", *CLASS],
            "mask_image is 20x20 pixels, but the model takes 16x16",
        ),
        (
            ["--image", "GOOD", "--strength", "1.5", *CLASS],
            "strength is 1.5; take a share of the chain over 0 and up to 1.",
        ),
        (["--image", "TEXT", *CLASS], "is not an image that Pillow can read; name an image file."),
        (["--train_data_dir", "scans"], "--train_data_dir says which scans --reject_copies compares with"),
    ],
)
def test_refusals_of_one_sentence(saved, tmp_path, capsys, flags, sentence):
    for name, side in (("BIG", 20), ("GOOD", 16)):
        Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
    (tmp_path / "TEXT.png").write_text("no image")
    flags = [str(tmp_path / f"{flag}.png") if flag in ("BIG", "GOOD", "TEXT") else flag for flag in flags]
    assert sentence in refusal(capsys, saved, tmp_path / "out", *flags)
    assert not (tmp_path / "out").exists()
