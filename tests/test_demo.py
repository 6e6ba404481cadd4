"""The demo without a browser: what is streamed, stopped, saved, shown and refused. ``test_demo_page.py`` has the browser."""

import dataclasses
import re
import shlex
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import tiny, train_alone
from PIL import Image

from mri_ddpm import MRIDDPMPipeline, commands
from mri_ddpm.diffusion import make_noise_scheduler
from mri_ddpm.errors import InputError

pytest.importorskip("gradio", reason="the extra 'demo' is not installed")

import gradio as gr

from mri_ddpm.demo import markup
from mri_ddpm.demo.comparing import Comparison, report
from mri_ddpm.demo.inputs import painted, read_mask_upload, read_upload
from mri_ddpm.demo.model import BATCH_SIZE, Model, Samples, Way
from mri_ddpm.demo.page import make_page
from mri_ddpm.demo.parts import Sessions
from mri_ddpm.demo.saving import KINDS, command_of, files, kinds_of
from mri_ddpm.demo.settings import Settings
from mri_ddpm.demo.streaming import Progress, Stopped, Worker
from mri_ddpm.evaluation import classifier
from mri_ddpm.evaluation.subject import load_real_scans
from mri_ddpm.sampling import SamplingOptions

NAMES = ("glioma_tumor", "<b>other</b>")
FEW = SamplingOptions(scheduler="ddim", num_inference_steps=4, seed=7)
BOTH = {
    "in_channels": 5, "out_channels": 3, "channel_names": ("t1", "seg"), "condition_names": ("flair",),
    "mask_labels": {"seg": ("core", "oedema")},
}  # fmt: skip


@pytest.fixture
def open_model(make_unet, tmp_path):
    """Return a function that saves a tiny model and opens it as the demo does."""

    def open_it(**config) -> Model:
        MRIDDPMPipeline(make_unet(**config), make_noise_scheduler()).save_pretrained(tmp_path / "model")
        return Model(str(tmp_path / "model"), "cpu")

    return open_it


@pytest.fixture
def model(open_model):
    return open_model(num_class_embeds=2, class_names=NAMES)


def last(told) -> Samples | Way:
    return list(told)[-1]


# Streaming


def test_what_work_tells_comes_as_it_is_told():
    heard, gate = [], threading.Event()

    def work(tell):
        tell(1)
        gate.wait(10)
        tell(2)

    for item in Worker().stream(work):
        heard.append(item)
        gate.set()  # only now the work goes on: so 1 came before the end
    assert heard == [1, 2]


def test_closing_ends_the_work_and_waits_for_its_end():
    ended = []

    def work(tell):
        try:
            while True:
                tell(0)
        except Stopped:
            time.sleep(0.05)
            ended.append(True)
            raise

    told = Worker().stream(work)
    next(told)
    told.close()
    assert ended == [True]


def test_an_error_of_the_work_is_raised_where_it_is_heard_and_the_next_work_is_done():
    def work(tell):
        tell(1)
        raise InputError("no")

    worker = Worker()
    told = worker.stream(work)
    assert next(told) == 1
    with pytest.raises(InputError, match="no"):
        next(told)
    threads = [next(worker.stream(lambda tell: tell(threading.get_ident()))) for _ in range(2)]
    assert threads[0] == threads[1] != threading.get_ident()


def test_the_time_left_is_by_the_steps_so_far():
    told = Progress(done=10, total=30, images=0, num_images=4, begun=time.monotonic() - 5)
    assert told.seconds_left == pytest.approx(10, rel=0.01)
    assert "about 10 s left" in markup.progress(told)
    assert Progress(1, 30, 0, 4, 0.0).seconds_left is None
    assert markup.duration(200) == "about 3 min"


# Sampling


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_those_of_the_command_line_to_the_byte(model, tmp_path, monkeypatch, kind):
    """The page shows the command; it is run as it stands there."""
    samples = last(model.sample(model.labels(None, 6), 6, FEW))
    found = {file.name: file.read_bytes() for _, _, file in files(samples, kind, model.geometry)}
    monkeypatch.chdir(tmp_path)
    commands.main(shlex.split(command_of(model.name, None, samples, kind))[1:])
    there = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.name[0] != "."}
    assert len(found) == 6
    assert found == there


def test_guided_samples_of_one_class_are_those_of_the_command_line(model, tmp_path, monkeypatch):
    options = SamplingOptions(num_inference_steps=5, guidance_scale=1.5, scheduler="ddpm")
    samples = last(model.sample(model.labels(NAMES[1], 2), 2, options))
    found = [file.read_bytes() for _, _, file in files(samples, "PNG, 8 bits", {})]
    monkeypatch.chdir(tmp_path)
    commands.main(shlex.split(command_of(model.name, NAMES[1], samples, "PNG, 8 bits"))[1:])
    assert found == [file.read_bytes() for file in sorted((tmp_path / "out").glob("*.png"))]


def test_guidance_is_by_the_class_where_a_condition_cannot_be_left_out(open_model):
    flair = {"in_channels": 3, "condition_names": ("flair",), "null_condition": False}
    model, sessions, visitor = (
        open_model(num_class_embeds=2, class_names=NAMES, **flair),
        Sessions(),
        gr.Request(),
    )
    visitor.session_hash = "visitor"
    with gr.Blocks():
        settings = Settings(model, sessions)
    assert model.guided_by == "its class"
    sessions.of(visitor).condition["flair"] = np.zeros((16, 16), np.float32)
    values = {settings.seed: 0, settings.class_label: NAMES[0], settings.solver: "ddim", settings.steps: 4}
    asked = settings.asked({**values, settings.guidance: 2.0}, visitor)
    samples = last(model.sample(model.labels(NAMES[0], 2), 2, asked.options))
    assert len(samples) == 2
    assert "--guidance_scale 2.0 --condition_guidance_scale 1.0" in command_of(
        "m", None, samples, "PNG, 8 bits"
    )


def test_several_channels_are_saved_as_the_command_line_does(open_model, tmp_path, monkeypatch):
    model = open_model(**BOTH)
    samples = last(model.sample(None, 2, FEW))
    assert kinds_of(masks=True) == ["PNG, 8 bits", "PNG, 16 bits", "NIfTI"]
    for kind in ("PNG, 8 bits", "NIfTI"):
        found = {file.name: file.read_bytes() for _, _, file in files(samples, kind, {})}
        folder = tmp_path / KINDS[kind][0]
        folder.mkdir()
        monkeypatch.chdir(folder)
        commands.main(shlex.split(command_of(model.name, None, samples, kind))[1:])
        there = {file.name: file.read_bytes() for file in (folder / "out").iterdir() if file.name[0] != "."}
        assert len(found) == 4
        assert found == there


def test_images_come_batch_by_batch_and_stay_what_they_are(model):
    count = 2 * BATCH_SIZE + 1
    told = [item for item in model.sample(model.labels(None, count), count, FEW) if isinstance(item, Samples)]
    assert [len(samples) for samples in told] == [BATCH_SIZE, 2 * BATCH_SIZE, count]
    for samples in told:
        assert torch.equal(samples.channels[""], told[-1].channels[""][: len(samples)])


def test_a_sampling_that_nobody_waits_for_stops_computing(model):
    calls = []
    model.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    told = model.sample(None, 64, SamplingOptions(num_inference_steps=300))  # 4800 calls
    next(told)
    told.close()
    stopped_at = len(calls)
    assert stopped_at < 1000
    time.sleep(0.1)
    assert len(calls) == stopped_at


def test_two_requests_do_not_see_one_another(model):
    """Each has a scheduler of its own, though one is halfway when the other begins."""
    alone = last(model.sample(None, 2, FEW)).channels[""]
    first = model.sample(None, 2, FEW)
    next(first)
    last(model.sample(None, 1, SamplingOptions(scheduler="heun", num_inference_steps=3)))
    assert torch.equal(last(first).channels[""], alone)


def test_the_way_begins_in_noise_and_ends_in_the_image(model):
    way = last(model.watch(NAMES[0], FEW))
    image = last(model.sample([NAMES[0]], 1, FEW)).channels[""][0, 0]
    assert way.timesteps[0] == 300
    assert way.timesteps[-1] == 0
    assert way.x_t.shape == way.x_0.shape == (5, 16, 16)
    np.testing.assert_array_equal(way.x_0[-1], (image.numpy() * 255).round().astype(np.uint8))
    np.testing.assert_array_equal(way.x_t[-1], way.x_0[-1])
    assert len(last(model.watch(NAMES[0], SamplingOptions())).timesteps) == 101  # of 300 steps


@pytest.mark.parametrize(
    ("labels", "options", "words"),
    [
        (["sarcoma"], FEW, "'sarcoma'"),
        (None, SamplingOptions(num_inference_steps=301), "num_inference_steps is 301"),
        (None, SamplingOptions(seed=-1), "--seed is -1"),
        (None, SamplingOptions(guidance_scale=2.0), "guidance_scale is 2.0"),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_the_first_step(model, labels, options, words):
    with pytest.raises(InputError, match=words):
        next(model.sample(labels, 1, options))


# The page


def labels_of(page) -> set[str]:
    return {
        part["props"].get("label") or part["props"].get("value")
        for part in page.config["components"]
        if isinstance(part["props"].get("label") or part["props"].get("value"), str)
    }


def test_what_a_model_lacks_is_not_shown(open_model):
    full = labels_of(make_page(open_model(num_class_embeds=2, class_names=NAMES)))
    assert {"Class", "Seed", "Solver", "Steps", "Guidance", "Number of images", "Save as"} <= full
    assert "Guidance" not in labels_of(
        make_page(open_model(num_class_embeds=2, class_names=NAMES, null_class=False))
    )
    assert not {"Class", "Guidance"} & labels_of(make_page(open_model()))


def test_every_page_says_what_it_shows(model):
    html = [
        part["props"].get("value") for part in make_page(model).config["components"] if part["type"] == "html"
    ]
    assert any("Synthetic. Not for diagnosis." in value for value in html if value)


def test_names_that_come_with_a_model_are_escaped(model):
    samples = last(model.sample([NAMES[1]], 1, FEW))
    html = markup.gallery(samples, "PNG, 8 bits", {})
    assert "&lt;b&gt;other&lt;/b&gt;, seed 7" in html
    assert "<b>" not in html


def test_the_gallery_has_frames_for_what_is_to_come(model):
    first = next(item for item in model.sample(None, 6, FEW) if isinstance(item, Samples))
    html = markup.gallery(first, "PNG, 8 bits", {})
    assert html.count("<img") == BATCH_SIZE
    assert html.count('class="missing"') == 2


# Compare


@pytest.fixture(scope="module")
def known(tmp_path_factory) -> Path:
    """A run of phantoms, enough of them to seek copies among."""
    changes = {"phantom_images": 320, "max_train_steps": 2, "lr_warmup_steps": 0, "train_batch_size": 16}
    return train_alone(tiny(tmp_path_factory.mktemp("known") / "run", **changes))


@pytest.fixture
def steps_of_features(tmp_path, monkeypatch):
    """Return a function that says for how many steps features are learned, anew in each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return lambda steps: monkeypatch.setattr(classifier, "STEPS", steps)


def test_a_training_scan_is_found_to_be_a_copy_and_shown_only_if_it_may_be(known, steps_of_features):
    steps_of_features(6)
    model = Model(str(known), "cpu")
    samples = last(model.sample(model.labels(None, 3), 3, FEW))
    scan = load_real_scans(model.record, {}, 16).training[0][:1]
    channels = {"": torch.cat([torch.from_numpy(np.asarray(scan)), samples.channels[""][1:]])}
    copied = dataclasses.replace(samples, channels=channels)
    for show_scans in (False, True):
        comparison = Comparison(model, {}, show_scans)
        assert comparison.has_scans
        *_, html = comparison.examine(copied)
        rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>.*?</td><td>(.*?)</td></tr>", html)
        assert [row[0] for row in rows] == [f"{name}, seed {7 + i}" for i, name in enumerate(samples.labels)]
        assert rows[0][1] == "1.000"
        assert rows[0][2] in ("taken for a copy", "surely a copy")
        assert ("<img" in html) == show_scans


def test_a_comparison_that_nobody_waits_for_stops_learning(known, steps_of_features):
    """Though it is a loop of another room that learns, which knows of no listener."""
    steps_of_features(100_000)
    model = Model(str(known), "cpu")
    comparison = Comparison(model, {}, False)
    told = comparison.examine(last(model.sample(None, 1, FEW)))
    while "step 3;" not in next(told):
        pass
    told.close()
    assert next(comparison.worker.stream(lambda tell: tell("free"))) == "free"


def test_an_evaluation_is_shown_by_channel_and_a_strange_one_is_not(model):
    quality = {"kid": {"value": 0.25, "real": 0.0}}
    verdicts = [{"question": "<i>Good?</i>", "answer": "yes"}]
    html = report({"verdicts": verdicts, "quality": quality, "channels": {"t1": {"quality": quality}}})
    assert "&lt;i&gt;Good?" in html
    assert html.count("0.25") == 2
    assert "kid of t1" in html
    assert report({"quality": [1, 2]}) == ""
    assert "Compare" not in labels_of(make_page(model))


# What visitors give


def test_an_upload_is_read_as_the_command_line_reads_it_and_deleted(tmp_path):
    scan = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    file = tmp_path / "scan.png"
    Image.fromarray(scan).save(file)
    np.testing.assert_array_equal(read_upload(file, 16, None, "pad"), scan.astype(np.float32) / 255)
    assert not file.exists()
    Image.fromarray(np.full((40, 20), 255, np.uint8)).save(file)
    padded = read_upload(file, 16, None, "pad")
    assert padded.shape == (16, 16)
    assert padded[:, 0].max() == 0
    assert padded[8, 8] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"%PDF-1.4", "not an image"), (b"\x89PNG\r\n\x1a\nxxxx", "scan.png")],
)
def test_a_broken_upload_is_refused_and_deleted_too(tmp_path, content, words):
    file = tmp_path / "scan.png"
    file.write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_upload(file, 16, None, "pad")
    assert not file.exists()


def test_a_mask_is_read_as_the_command_line_reads_it_and_deleted(tmp_path):
    file = tmp_path / "mask.png"
    mask = np.kron([[0, 1], [2, 3]], np.ones((16, 16))).astype(np.uint8)
    Image.fromarray(mask).save(file)
    np.testing.assert_array_equal(read_mask_upload(file, 16, "pad"), mask[::2, ::2])
    assert not file.exists()
    file.write_text("no picture")
    with pytest.raises(InputError, match="mask.png is not an image"):
        read_mask_upload(file, 16, "pad")
    assert not file.exists()


def test_what_is_painted_is_brought_to_the_models_size():
    layer = np.zeros((64, 64, 4), np.uint8)
    layer[:32, 8:16, 3] = 255
    layer[32:, 32:, 3] = 100  # a faint edge
    expected = np.zeros((16, 16), bool)
    expected[:8, 2:4] = True
    np.testing.assert_array_equal(painted([layer], 16), expected)
    with pytest.raises(InputError, match="nothing is painted"):
        painted([layer * 0], 16)


# The command


def test_without_a_model_the_command_says_how_to_get_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        commands.main(["demo"])
    assert end.value.code == 2
    assert "mri-ddpm train --preset quickstart" in capsys.readouterr().err
