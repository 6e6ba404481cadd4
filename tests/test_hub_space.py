"""The Space of a model: what is in it, how it is pushed, and that it runs where nothing else is installed."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY
from huggingface_hub import ModelCard, SpaceCard

from mri_ddpm import commands
from mri_ddpm.errors import InputError
from mri_ddpm.hub import export_space, push_run

pytest.importorskip("gradio", reason="the extra 'demo' is not installed")

MODEL, SPACE = "me/brain-mri-ddpm", "me/brain-mri-demo"
THERE = f"spaces/{SPACE}"


def commits(hub) -> int:
    return sum(request.endpoint == "commit" for request in hub.requests)


def test_a_space_holds_the_page_its_requirements_and_every_module(tmp_path):
    listed = export_space(tmp_path / "space", SPACE, MODEL)
    there = {
        path.relative_to(tmp_path / "space") for path in (tmp_path / "space").rglob("*") if path.is_file()
    }
    assert set(listed) == there
    modules = {path.relative_to(REPOSITORY) for path in (REPOSITORY / "mri_ddpm").rglob("*.py")}
    modules |= {
        Path("mri_ddpm", path.relative_to(REPOSITORY)) for path in (REPOSITORY / "pipelines").glob("*.py")
    }
    assert modules <= there
    card = SpaceCard.load(tmp_path / "space/README.md").data
    assert (card.sdk, card.app_file, card.models) == ("gradio", "app.py", [MODEL])
    assert card.sdk_version == version("gradio")
    assert len(card.short_description) <= 60  # the Hub takes no longer one
    lines = (tmp_path / "space/requirements.txt").read_text().splitlines()
    names = {re.match(r"[\w.-]+", line)[0] for line in lines}
    assert {"torch", "diffusers", "gradio", "nibabel", "pydicom"} <= names
    assert not {"mri-ddpm", "pytest", "peft", "monai"} & names
    assert not [line for line in lines if "extra" in line]
    assert len((tmp_path / "space/app.py").read_text().splitlines()) < 12


def test_a_dry_run_writes_model_and_space_and_the_card_names_it(unbroken, tmp_path, capsys, hub):
    commands.main(["push", str(unbroken), MODEL, "--space", SPACE, "--dry_run", str(tmp_path / "dry")])
    listed = set(re.findall(r"^ *[\d,]+  (.+)$", capsys.readouterr().out, re.M))
    assert {"model/model_index.json", "space/app.py", "space/mri_ddpm/demo/serving.py"} <= listed
    card = ModelCard.load(tmp_path / "dry/model/README.md").text
    assert f"https://huggingface.co/spaces/{SPACE}" in card
    assert f"https://huggingface.co/{MODEL}" in (tmp_path / "dry/space/README.md").read_text()
    assert hub.requests == []


def test_a_space_is_private_and_a_second_push_leaves_nothing_of_an_older_version(hub, unbroken, capsys):
    commands.main(["push", str(unbroken), "brain-mri-ddpm", "--space", "brain-mri-demo"])
    out = capsys.readouterr().out
    assert f"Pushed to {hub.url}/spaces/{SPACE}" in out
    assert "HF_TOKEN" in out
    assert hub.repositories[THERE].private
    assert hub.repositories[MODEL].private
    assert f"spaces/{SPACE}" in hub.repositories[MODEL].files()["README.md"].decode()
    assert MODEL in hub.repositories[THERE].files()["app.py"].decode()
    for name in ("mri_ddpm/old.py", "mri_ddpm-0.0.9.dist-info/METADATA", "mine.txt"):
        hub.edit(THERE, name, b"x = 1")
    pushed = push_run(unbroken, MODEL, space_id=SPACE)
    assert pushed.space.removed == ["mri_ddpm-0.0.9.dist-info/METADATA", "mri_ddpm/old.py"]
    assert pushed.space.sent == []
    assert "mine.txt" in hub.repositories[THERE].files()
    push_run(unbroken, MODEL, space_id=SPACE, public=True)
    assert not hub.repositories[THERE].private


def test_a_model_and_its_space_may_have_one_name(hub, unbroken):
    push_run(unbroken, MODEL, space_id=MODEL)
    assert "model_index.json" in hub.repositories[MODEL].files()
    assert "app.py" in hub.repositories[f"spaces/{MODEL}"].files()


@pytest.mark.parametrize(
    ("space", "words"),
    [
        ("me/a/b", "'me/a/b' is no name"),
        ("me/so bad", "is no name"),
        ("you/theirs", "may not write to you/theirs"),
    ],
)
def test_a_space_that_cannot_be_is_refused_before_anything_is_sent(hub, unbroken, capsys, space, words):
    with pytest.raises(SystemExit) as end:
        commands.main(["push", str(unbroken), MODEL, "--space", space])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert commits(hub) == 0


def test_a_space_that_is_somebody_elses_or_public_is_not_written_over(hub, unbroken):
    push_run(unbroken, MODEL, space_id=SPACE)
    hub.repositories[THERE].private = False
    sent = commits(hub)
    with pytest.raises(
        InputError, match="the Space me/brain-mri-demo is public on the Hub; say --hub_public"
    ):
        push_run(unbroken, MODEL, space_id=SPACE)
    hub.repositories[THERE].private = True
    hub.edit(THERE, "mri_ddpm/demo/serving.py", None)
    with pytest.raises(InputError, match="that Space holds something else"):
        push_run(unbroken, MODEL, space_id=SPACE)
    assert commits(hub) == sent


def test_a_dry_run_needs_whole_names_and_an_empty_folder(unbroken, tmp_path, capsys):
    for name, words in ((SPACE, "is not an empty folder"), ("demo", "demo has no owner")):
        (tmp_path / "note").touch()
        with pytest.raises(SystemExit):
            commands.main(["push", str(unbroken), MODEL, "--space", name, "--dry_run", str(tmp_path)])
        assert words in capsys.readouterr().err
        assert os.listdir(tmp_path) == ["note"]


# As the Hub does it


@pytest.mark.slow
def test_a_pushed_space_runs_where_nothing_but_its_requirements_is_installed(hub, unbroken, tmp_path):
    push_run(unbroken, MODEL, space_id=SPACE)
    app = tmp_path / "app"
    for name, content in hub.repositories[THERE].files().items():
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).write_bytes(content)
    python = fresh_environment(tmp_path / "venv", app / "requirements.txt")

    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "HF_HOME")}
    its_own = {"HF_HOME": str(tmp_path / "home"), "GRADIO_SERVER_NAME": "0.0.0.0"}  # as a Space has it
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen([python, "app.py"], cwd=app, env=kept | its_own, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"open http://\S+:(\d+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        addresses = {
            c.laddr.ip for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"
        }
        assert addresses == {"0.0.0.0"}
        with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/") as answer:
            assert "Not for diagnosis" in answer.read().decode()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    assert "Traceback" not in log.read_text()


def fresh_environment(folder: Path, requirements: Path) -> Path:
    """A virtual environment with these requirements alone, and a PyTorch for processors, which is the smaller one."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin/python"
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "HF_ENDPOINT")}
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    torch = f"torch=={version('torch').split('+')[0]}"
    for wanted in ([torch], ["-r", requirements]):
        subprocess.run([*install, *wanted], check=True, env=clean)
    there = subprocess.run(
        [python, "-m", "pip", "list"], capture_output=True, text=True, env=clean, check=True
    )
    assert "mri-ddpm" not in there.stdout
    return python
