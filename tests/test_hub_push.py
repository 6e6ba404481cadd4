"""Pushing to a Hub and opening what was pushed, through the real client and HTTP; see ``hub_server.py``."""

import hashlib
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from conftest import forget_accelerator, tiny
from diffusers import DDIMScheduler
from hub_server import TOKEN
from packaging.version import Version
from PIL import Image
from safetensors.torch import load_file, save_file
from test_hub_export import DRAW, FILES, WEIGHTS, images_of
from test_training import start

from mri_ddpm import AttentionUNet2DModel, MRIDDPMPipeline, commands
from mri_ddpm.errors import InputError
from mri_ddpm.files import write_json
from mri_ddpm.hub import background, export_repository, push, push_run

REPO = "me/brain-mri-ddpm"
WRONG_TOKEN = "hf_" + "w" * 34


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(push, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def pushed(hub, unbroken) -> Path:
    """``REPO`` holds the tiny run; returned is the run."""
    push_run(unbroken, REPO)
    hub.requests.clear()
    return unbroken


def asked(hub, endpoint: str) -> list:
    return [request for request in hub.requests if request.endpoint == endpoint]


def load(repo_id: str = REPO, **kwargs) -> MRIDDPMPipeline:
    return MRIDDPMPipeline.from_pretrained(repo_id, **kwargs)


# Push, and open in other processes


@pytest.mark.slow
def test_a_pushed_run_opens_both_ways_in_fresh_processes(hub, unbroken, run_fresh, tmp_path, monkeypatch):
    commands.main(["push", str(unbroken), REPO])
    assert set(hub.repositories[REPO].files()) == FILES | {".gitattributes"}
    assert hub.repositories[REPO].private
    expected = images_of(load(unbroken / "pipeline"))

    installed = DRAW.format(
        imports="from mri_ddpm import MRIDDPMPipeline", load=f"MRIDDPMPipeline.from_pretrained({REPO!r})"
    )
    alone = DRAW.format(
        imports="sys.modules['mri_ddpm'] = None\nfrom diffusers import DiffusionPipeline",
        load=f"DiffusionPipeline.from_pretrained({REPO!r}, trust_remote_code=True)",
    )
    for name, source in (("installed", installed), ("alone", alone)):
        monkeypatch.setenv("HF_HOME", str(tmp_path / f"home-{name}"))  # nothing is there yet
        run_fresh(source, REPO, tmp_path / f"{name}.npy")
        assert np.array_equal(np.load(tmp_path / f"{name}.npy"), expected), name
    assert not list((tmp_path / "home-installed").rglob("*.py"))  # no code was even fetched


def test_loading_takes_every_option_that_diffusers_has(hub, pushed, tmp_path, monkeypatch):
    first = hub.repositories[REPO].find("main").sha
    pipeline = load(cache_dir=tmp_path / "cache")
    assert type(pipeline) is MRIDDPMPipeline
    half = load(torch_dtype=torch.float16)
    assert half.unet.dtype == torch.float16
    unet = AttentionUNet2DModel.from_pretrained(REPO, subfolder="unet")
    assert torch.equal(unet.conv_in.weight, pipeline.unet.conv_in.weight)
    scheduler = DDIMScheduler.from_pretrained(REPO, subfolder="scheduler")
    assert load(scheduler=scheduler).scheduler is scheduler

    half.save_pretrained(tmp_path / "both", variant="fp16")
    shutil.copy(pushed / "pipeline" / WEIGHTS, tmp_path / "both" / "unet")
    push_run(tmp_path / "both", REPO)
    assert torch.equal(
        load(variant="fp16", torch_dtype=torch.float16).unet.conv_in.weight, half.unet.conv_in.weight
    )
    with pytest.raises(ValueError, match="variant=fp16"):
        load(variant="fp16", revision=first)

    change_weights(tmp_path / "both")
    push_run(tmp_path / "both", REPO)
    assert not torch.equal(load().unet.conv_in.weight, unet.conv_in.weight)
    assert torch.equal(load(revision=first).unet.conv_in.weight, unet.conv_in.weight)

    monkeypatch.delenv("HF_TOKEN")
    assert load(token=TOKEN).class_names == pipeline.class_names
    hub.fail("*", status=503, times=10**6)
    again = load(local_files_only=True, cache_dir=tmp_path / "cache")
    assert np.array_equal(images_of(again), images_of(pipeline))


def change_weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["conv_in.weight"] += 1
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def test_a_loaded_pipeline_is_saved_and_pushed_again(hub, pushed, tmp_path):
    pipeline = load()
    pipeline.save_pretrained(tmp_path / "saved")
    commands.main(["push", str(tmp_path / "saved"), "me/again"])
    pipeline.push_to_hub("me/by-diffusers")
    pipeline.save_pretrained(str(tmp_path / "sent"), push_to_hub=True, repo_id="me/sent")
    pipeline.unet.push_to_hub("me/unet")
    for repo_id in ("me/again", "me/by-diffusers", "me/sent", "me/unet"):
        assert hub.repositories[repo_id].private
    pipeline.push_to_hub("me/public", private=False)
    assert not hub.repositories["me/public"].private
    for repo_id in ("me/again", "me/by-diffusers", "me/sent"):
        assert np.array_equal(images_of(load(repo_id)), images_of(pipeline))
        assert "pipeline_mri_ddpm.py" in hub.repositories[repo_id].files()


def test_a_second_push_leaves_nothing_of_the_first_model(hub, pushed, tmp_path):
    run = shutil.copytree(pushed, tmp_path / "run")
    MRIDDPMPipeline.from_pretrained(run / "pipeline").to(torch.float16).save_pretrained(
        run / "half", variant="fp16"
    )
    variant = WEIGHTS.replace(".safetensors", ".fp16.safetensors")
    shutil.copy(run / "half" / variant, run / "pipeline" / variant)
    revision = hashlib.sha256((run / "pipeline" / WEIGHTS).read_bytes()).hexdigest()
    (run / "evaluation").mkdir()
    write_json(run / "evaluation/metrics.json", {"settings": {"revision": f"sha256:{revision}"}})
    push_run(run, REPO)
    theirs = {".gitattributes", "notes/mine.txt", "training/notes.md", "unet/plot.png"}
    for name in theirs - {".gitattributes"}:
        hub.edit(REPO, name, b"of a colleague")
    left = {variant, "training/evaluation/metrics.json"}
    assert left < set(hub.repositories[REPO].files())

    change_weights(run / "pipeline")
    (run / "pipeline" / variant).unlink()
    number = len(hub.repositories[REPO].commits)
    done = push_run(run, REPO)
    assert set(done.removed) == left
    assert variant in str(done)
    assert set(hub.repositories[REPO].files()) == FILES | theirs
    assert len(hub.repositories[REPO].commits) == number + 1


def test_a_second_push_sends_what_has_changed_and_no_more(hub, pushed, tmp_path, capsys):
    run = shutil.copytree(pushed, tmp_path / "run")
    change_weights(run / "pipeline")
    commands.main(["push", str(run), REPO])
    out = capsys.readouterr().out
    assert f"MB ({WEIGHTS})" in out
    assert f"unchanged: {len(FILES) - 1}" in out
    size = (run / "pipeline" / WEIGHTS).stat().st_size
    assert [request.bytes_received for request in asked(hub, "lfs_upload")] == [size]
    # Older clients send small files along with every commit, but never the weights
    if Version(huggingface_hub.__version__) >= Version("1.20"):
        assert sum(request.bytes_received for request in asked(hub, "commit")) < 2000
    before, after = (commit.files for commit in hub.repositories[REPO].commits[-2:])
    assert [name for name in after if after[name] != before[name]] == [WEIGHTS]

    hub.requests.clear()
    commands.main(["push", str(run), REPO])
    assert "sent nothing" in capsys.readouterr().out
    assert not asked(hub, "commit")
    assert not asked(hub, "lfs_upload")


def test_a_name_alone_is_the_user_s_own(hub, unbroken):
    assert push_run(unbroken, "brains").repo_id == "me/brains"
    assert b'from_pretrained("me/brains")' in hub.repositories["me/brains"].files()["README.md"]


# Who may see it


def test_public_only_when_it_is_said(hub, pushed):
    assert hub.repositories[REPO].private
    push_run(pushed, REPO, public=True)
    assert not hub.repositories[REPO].private
    with pytest.raises(InputError, match=f"{REPO} is public on the Hub; say --hub_public"):
        push_run(pushed, REPO)
    push_run(pushed, "me/open", public=True)
    assert not hub.repositories["me/open"].private


def test_a_name_that_holds_something_else_is_refused(hub, unbroken, capsys):
    push_run(unbroken, "me/thesis")
    for name in (*FILES,):
        hub.edit("me/thesis", name, None)
    hub.edit("me/thesis", "weights.bin", b"somebody's years of work")
    with pytest.raises(SystemExit) as end:
        commands.main(["push", str(unbroken), "me/thesis"])
    assert end.value.code == 2
    assert "the name me/thesis is taken" in capsys.readouterr().err
    assert hub.repositories["me/thesis"].files()["weights.bin"] == b"somebody's years of work"


# Faults

REFUSED = {  # what the server does, and words of the one sentence
    "no token": (None, "log in with 'hf auth login' or set HF_TOKEN"),
    "wrong token": (None, "refused the token"),
    "somebody else's": (None, "may not write to acme/brain"),
    "no name": (None, "is no name for a repository"),
    "may not": (
        ("commit", {"status": 403, "message": "Your token is read-only"}),
        "403: Your token is read-only",
    ),
    "missing": (("preupload", {"status": 404}), "is not on the Hub"),
    "taken": (("commit", {"status": 409}), "is taken (409)"),
    "other": (
        ("commit", {"status": 418, "message": "no coffee"}),
        "refused me/brain-mri-ddpm (418: no coffee)",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_refusal_is_one_sentence_and_not_tried_again(hub, unbroken, capsys, monkeypatch, kind):
    fault, words = REFUSED[kind]
    repo_id = {"somebody else's": "acme/brain", "no name": "me/brain mri?"}.get(kind, REPO)
    if kind == "no token":
        monkeypatch.delenv("HF_TOKEN")
    if kind == "wrong token":
        monkeypatch.setenv("HF_TOKEN", WRONG_TOKEN)
    if fault:
        hub.fail(fault[0], **fault[1])
    with pytest.raises(SystemExit) as end:
        commands.main(["push", str(unbroken), repo_id])
    assert end.value.code == 2
    message = capsys.readouterr().err.split("error: ")[1]
    assert words in message
    assert message.count("\n") == 1
    assert TOKEN not in message
    assert WRONG_TOKEN not in message
    assert len(asked(hub, fault[0] if fault else "create")) <= 1


PASSING = {
    "before the commit": [
        ("create", {"status": 503}),
        ("tree", {"cut_after_bytes": 0}),
        ("preupload", {"status": 500}),
        ("lfs_batch", {"status": 503}),
        ("lfs_upload", {"cut_after_bytes": 20_000}),
    ],
    "at the commit": [
        ("commit", {"status": 429, "headers": {"Retry-After": "0"}}),
        ("commit", {"status": 502}),
        ("commit", {"hang_seconds": 30}),
    ],
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_tried_again(hub, unbroken, kind):
    for where, fault in PASSING[kind]:
        hub.fail(where, **fault)
    pushed = push_run(unbroken, REPO)
    assert set(pushed.sent) == FILES
    assert not [fault for fault in hub.faults if fault.times]
    assert np.array_equal(images_of(load()), images_of(load(unbroken / "pipeline")))


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub, pushed, tmp_path):
    run = shutil.copytree(pushed, tmp_path / "run")
    (run / "environment.json").unlink()
    change_weights(run / "pipeline")
    before = len(hub.repositories[REPO].commits)
    hub.fail("commit", answer_lost=True)
    done = push_run(run, REPO)
    assert len(hub.repositories[REPO].commits) == before + 1
    assert WEIGHTS in done.sent
    assert done.removed == ["training/environment.json"]
    assert set(hub.repositories[REPO].files()) == (FILES | {".gitattributes"}) - set(done.removed)


def test_a_hub_that_stays_away_leaves_everything_as_it_was(hub, pushed, tmp_path, capsys):
    run = shutil.copytree(pushed, tmp_path / "run")
    change_weights(run / "pipeline")
    before = hub.repositories[REPO].files()
    hub.fail("commit", status=503, times=100, message="maintenance")
    with pytest.raises(SystemExit) as end:
        commands.main(["push", str(run), REPO])
    assert end.value.code == 2
    message = capsys.readouterr().err.split("error: ")[1]
    for words in ("503: maintenance", f"tried {push.TRIES} times", "whole or not at all"):
        assert words in message
    assert hub.repositories[REPO].files() == before
    assert len(asked(hub, "commit")) == push.TRIES


@pytest.mark.slow
def test_ctrl_c_during_a_push_leaves_no_weights_behind(hub, tmp_path):
    (tmp_path / "temporary").mkdir()
    hub.fail("commit", hang_seconds=30, times=100)
    flags = (
        "--output_dir",
        tmp_path / "run",
        "--max_train_steps",
        100_000,
        "--push_to_hub",
        "--hub_model_id",
        REPO,
    )
    process = start(*flags, launcher=(), TMPDIR=str(tmp_path / "temporary"))
    while not asked(hub, "commit"):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    assert list((tmp_path / "temporary").glob("mri-ddpm-*"))
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not list((tmp_path / "temporary").glob("mri-ddpm-*"))


def test_errors_and_logs_blot_out_what_the_server_repeats(hub, unbroken, capfd, caplog):
    hub.fail("commit", status=403, message=f"the token {TOKEN} may not")
    hub.fail("lfs_upload", status=503, times=1)
    with pytest.raises(SystemExit):
        commands.main(["push", str(unbroken), REPO])
    seen = "".join(capfd.readouterr()) + caplog.text
    assert "the token *** may not" in seen
    assert TOKEN not in seen
    assert "X-Amz-Signature" not in seen


# Loading from a Hub that was tampered with


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        ("model_index.json", lambda b: b.replace(b'"modeling_attention_unet"', b'"../../evil"'), "unet is"),
        ("model_index.json", lambda b: b.replace(b"MRIDDPMPipeline", b"EvilPipeline"), "_class_name is"),
        (WEIGHTS, lambda b: b[: len(b) // 2], "damaged or cut short"),
        ("unet/config.json", lambda b: b.replace(b'"layers_per_block": 1', b'"layers_per_block": 2'), "do not fit its config.json"),
    ],
)  # fmt: skip
def test_a_tampered_repository_on_the_hub_is_refused(hub, pushed, tmp_path, capsys, path, change, words):
    content = hub.repositories[REPO].files()[path]
    assert change(content) != content
    hub.edit(REPO, path, change(content))
    hub.edit(REPO, "pipeline_mri_ddpm.py", f"open({str(tmp_path / 'ran')!r}, 'w')".encode())
    hub.edit(REPO, "unet/../../../../escaped.safetensors", b"x")
    with pytest.raises(SystemExit) as end:
        commands.main(["sample", REPO, "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "out").exists()
    assert not list(Path(os.environ["HF_HOME"]).rglob("escaped*"))


def test_sample_says_what_is_wrong_with_a_repository(hub, pushed, tmp_path, capsys, monkeypatch):
    def message(repo_id):
        with pytest.raises(SystemExit) as end:
            commands.main(["sample", repo_id, "--output_dir", str(tmp_path / "out")])
        assert end.value.code == 2
        return capsys.readouterr().err.split("error: ")[1]

    assert "me/nothing is not on the Hub" in message("me/nothing")
    monkeypatch.setenv("HF_TOKEN", WRONG_TOKEN)
    shutil.rmtree(Path(os.environ["HF_HOME"]) / "hub", ignore_errors=True)
    refused = message(REPO)
    assert "refused the token" in refused
    assert WRONG_TOKEN not in refused


def test_images_of_a_hub_model_carry_its_commit(hub, pushed, tmp_path):
    commands.main(
        [
            "sample",
            REPO,
            "--num_images",
            "1",
            "--num_inference_steps",
            "2",
            "--output_dir",
            str(tmp_path / "out"),
        ]
    )
    text = Image.open(next((tmp_path / "out").glob("*.png"))).text
    assert (text["model"], text["revision"]) == (REPO, hub.repositories[REPO].find("main").sha)


# During training


@pytest.mark.slow
def test_training_pushes_at_checkpoints_and_at_the_end(hub, unbroken, tmp_path):
    process = start("--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id", REPO)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    repository = hub.repositories[REPO]
    assert repository.private
    assert [commit.message for commit in repository.commits] == [
        "initial commit",
        "Step 10",
        "Trained to step 20",
    ]
    assert repository.files()[WEIGHTS] == (tmp_path / "run/pipeline" / WEIGHTS).read_bytes()
    assert set(repository.files()) == FILES | {".gitattributes"}
    assert f"Pushed to {hub.url}/{REPO}" in out
    everything = [
        out,
        err,
        *(path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()),
    ]
    everything += [content.decode(errors="replace") for content in repository.files().values()]
    assert not [text for text in everything if TOKEN in text]


def test_a_background_push_is_of_its_step_and_done_beside_training(hub, unbroken, tmp_path, monkeypatch):
    """The run goes on at once, and what it then writes belongs to the next push, which does not follow on the heels."""
    run = shutil.copytree(unbroken, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    weights, said, threads = (run / "pipeline" / WEIGHTS).read_bytes(), [], []

    def export(*args, **kwargs):
        threads.append(threading.current_thread())
        shutil.rmtree(run / "pipeline")
        return export_repository(*args, **kwargs)

    monkeypatch.setattr(background, "export_repository", export)
    pushing = background.BackgroundPush(run, REPO, False, None, said.append)
    pipeline = MRIDDPMPipeline.from_pretrained(run / "pipeline")
    pushing.start(20, pipeline)
    pushing.thread.join()
    pushing.start(30, pipeline)
    assert pushing.thread is threads[0]
    assert threads[0] is not threading.main_thread()
    assert [line.split(" to ")[0].split(":")[0] for line in said] == ["step 20"]
    assert [commit.message for commit in hub.repositories[REPO].commits] == ["initial commit", "Step 20"]
    sent = hub.repositories[REPO].files()
    assert sent[WEIGHTS] == weights
    export_repository(unbroken, tmp_path / "exported", REPO)  # with the pipeline as it opens from its folder
    for name in FILES:
        assert sent[name] == (tmp_path / "exported" / name).read_bytes(), name


def refused_training(capfd, *flags) -> str:
    """What ``mri-ddpm train --preset tiny --push_to_hub`` says, which ends with exit code 2."""
    forget_accelerator()
    with pytest.raises(SystemExit) as end:
        commands.main(["train", "--preset", "tiny", "--push_to_hub", *map(str, flags)])
    assert end.value.code == 2
    return "".join(capfd.readouterr())


def test_training_survives_a_hub_that_is_away(hub, unbroken, tmp_path, capfd):
    hub.fail("*", status=503, times=10**6)
    run = tmp_path / "run"
    said = refused_training(capfd, "--output_dir", run, "--hub_model_id", REPO)
    for words in (
        "Training starts all the same",
        f"error: the run in {run} is whole, but was not pushed",
        f"mri-ddpm push {run} {REPO}",
    ):
        assert words in said
    for name in (f"pipeline/{WEIGHTS}", "checkpoints/step-000020/model.safetensors"):
        assert (run / name).read_bytes() == (unbroken / name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "token", "words"),
    [
        (["--hub_model_id", REPO], WRONG_TOKEN, "refused the token"),
        (["--hub_model_id", "acme/brain"], TOKEN, "may not write to acme/brain"),
        (["--hub_token", TOKEN], TOKEN, "--hub_token is not taken"),
    ],
)
def test_training_refuses_before_it_starts(hub, tmp_path, capfd, monkeypatch, flags, token, words):
    monkeypatch.setenv("HF_TOKEN", token)
    said = refused_training(capfd, "--output_dir", tmp_path / "run", *flags)
    assert words in said.strip().splitlines()[-1]
    assert token not in said
    assert not (tmp_path / "run").exists()


def test_flags_that_need_push_to_hub_say_so(tmp_path):
    with pytest.raises(InputError, match="--hub_public is given without --push_to_hub"):
        tiny(tmp_path, hub_public=True)
    assert tiny(tmp_path / "brains", push_to_hub=True).repo_id == "brains"
