"""``python -m benchmarks.reproduction`` as a user starts it: killed, gone on with in two processes, and what it leaves and refuses."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, losses
from PIL import Image

from benchmarks.reproduction.__main__ import main
from benchmarks.reproduction.budgets import BUDGETS
from benchmarks.reproduction.items import Material, scans_item
from benchmarks.reproduction.plan import make_plan
from benchmarks.reproduction.reproduce import refuse_few_scans, reproduce
from benchmarks.reproduction.results import Results
from mri_ddpm import cli
from mri_ddpm.data import draw_phantoms, load_phantoms, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json, write_json

TINY = BUDGETS["tiny"]
TITLES = [
    "Figure 1", "Figures 2 and 3", "Figure 4", "Table 1", "Figure 6", "Figure 7", "Figures 8 and 9", "Figure 10",
    "Figure 11", "Figure 12", "Claim 1", "Claim 2", "Claim 3", "Claim 4a", "Claim 4b", "Claim 5a", "Claim 5b", "Claim 6a",
    "Claim 6b", "Claim 7a", "Claim 7b", "Claim 7c", "Our recipe", "Larger images, and SSIM",
]  # fmt: skip


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory) -> Path:
    """The whole tiny budget on the phantom, by two processes; killed after a few runs, and started again."""
    folder = tmp_path_factory.mktemp("reproduction") / "repro"
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "benchmarks.reproduction",
    ]
    command += ["--budget", "tiny", "--output_dir", str(folder)]

    def start() -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True, **pipes)

    first = start()
    while len(list(folder.glob("runs/*/result.json"))) < 5:
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    second = start()
    output, errors = second.communicate(timeout=600)
    assert second.returncode == 0, errors
    assert "Claim 7c: " in output
    assert f"Report: {folder / 'report.html'}" in output
    assert "runs: 100%" in errors  # one bar over all of them
    assert {path: path.stat().st_mtime_ns for path in before} == before
    return folder


def strict(text: str) -> dict:
    """JSON as every reader takes it."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_every_run_leaves_one_line_and_its_folder(reproduction):
    rows = [strict(line) for line in (reproduction / "runs.jsonl").read_text().splitlines()]
    plan = make_plan(
        TINY, reproduction / "runs", None, load_phantoms(num_images=8, resolution=16).class_names, 180
    )
    assert [row["name"] for row in rows] == [run.name for run in plan]
    for row in rows:
        folder = reproduction / "runs" / row["name"]
        assert (folder / "pipeline" / "model_index.json").exists()
        assert not (folder / "checkpoints").exists()  # of all runs together they would fill a disk
        assert "held-out loss" in (reproduction / "runs" / f"{row['name']}.log").read_text()
        assert row["epochs"] == read_json(folder / "config.json")["num_train_epochs"]
        assert len(row["validation_loss"]) == row["epochs"]
        assert row["training_seconds"] > 0
    assert not list(reproduction.glob("runs/*.lock"))
    kids = [
        row["kid"]["value"]
        for row in rows
        if row["part"] in ("paper", "start", "ratio", "blocks", "timesteps", "losses")
    ]
    assert len(kids) == len([run for run in plan if run.part not in ("provoked", "ours", "large")])
    assert len(set(kids)) == len(kids) - 1  # the guard has nothing to do, so one run is drawn twice


def test_every_item_is_reported_twice_with_pictures_code_command_seed_machine_and_time(reproduction):
    html, markdown = ((reproduction / f"report.{end}").read_text() for end in ("html", "md"))
    assert re.findall(r"^### (.*?)(?:: (?:yes|no|not shown))?$", markdown, re.MULTILINE) == TITLES
    for title in TITLES:
        assert f"<h3>{title}" in html
    pictures = re.findall(r"!\[.*?\]\((figures/.*?)\)", markdown)
    assert len(pictures) == html.count("data:image/png;base64,") >= 18
    for picture in pictures:
        assert np.asarray(Image.open(reproduction / picture).convert("L")).std() > 5
    assert 'src="http' not in html
    assert markdown.count("- **Paper:** ") == markdown.count("- **Ours:** ") == len(TITLES)
    assert len(
        re.findall(
            r"^Code: `(?:benchmarks|mri_ddpm)\..*(minutes of training|drawn in seconds)",
            markdown,
            re.MULTILINE,
        )
    ) == len(TITLES)
    assert markdown.count("accelerate launch train_ddpm.py") >= 20
    assert "{{" not in markdown + html
    assert "nan" not in markdown.lower().split()


def test_a_run_of_the_sweep_is_what_its_command_trains(reproduction, tmp_path):
    """The last of many runs in one process against a process of its own: the same losses to the bit."""
    rows = [json.loads(line) for line in (reproduction / "runs.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["name"] == "losses-l1-seed1")
    flags = shlex.split(row["command"])[3:]
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "alone")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, "train_ddpm.py", *flags],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        env=environment,
    )
    assert losses(tmp_path / "alone") == losses(reproduction / "runs" / row["name"])


def test_the_report_is_written_anew_without_training_also_of_runs_that_broke(reproduction, capsys):
    """Surges in the paper's own runs, in a variant, and in the grid: each is told, and nothing is made up for it."""
    changed = {}
    for name in ("paper-16-16-seed0", "paper-20-16-seed0", "blocks-resnet-seed0", "ratio-16-8-seed0"):
        path = reproduction / "runs" / name / "result.json"
        changed[path] = read_json(path)
        lost = (
            "kid",
            "bits_per_dimension",
            "ssim",
            "ssim_of_training_scans",
            "flagged_share",
            "detail_ratio",
        )
        broken = {key: value for key, value in changed[path].items() if key not in lost}
        write_json(
            path,
            {
                **broken,
                "ended": "the loss is nan at step 20",
                "evaluations": changed[path]["evaluations"][:2],
            },
        )
    grid = reproduction / "runs" / "paper-16-16-seed0" / "samples" / "epoch-00004-raw.png"
    grid.rename(grid.with_suffix(".away"))
    pictures = {path: path.stat().st_mtime_ns for path in reproduction.glob("runs/*/loss.png")}
    try:
        main(["--budget", "tiny", "--output_dir", str(reproduction)])
    finally:
        grid.with_suffix(".away").rename(grid)
        for path, content in changed.items():
            write_json(path, content)
    assert "Claim 3: not shown" in capsys.readouterr().out
    assert "not reached, the run ended in epoch 4" in (reproduction / "report.md").read_text()
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures


def test_ctrl_c_says_that_the_same_command_goes_on(reproduction, tmp_path):
    """In the middle of the long run, all others being over; of it nothing is lost."""
    folder = tmp_path / "repro"
    shutil.copytree(reproduction, folder)
    shutil.rmtree(folder / "runs" / "paper-16-16-seed0")
    command = [
        sys.executable,
        "-m",
        "benchmarks.reproduction",
        "--budget",
        "tiny",
        "--output_dir",
        str(folder),
    ]
    with subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) as process:
        while not (folder / "runs" / "paper-16-16-seed0" / "metrics.jsonl").exists():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        errors = process.stderr.read()
    assert process.returncode == 130
    assert errors.endswith("Stopped. The same command goes on.\n")
    assert "Traceback" not in errors
    assert not (folder / "runs" / "paper-16-16-seed0" / "result.json").exists()


@pytest.fixture
def scans(tmp_path) -> str:
    """Sixteen images in class folders."""
    images, labels = draw_phantoms(16, 20, seed=5)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "scans" / f"class_{label}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 255).astype(np.uint8)).save(path)
    return str(tmp_path / "scans")


def test_scans_are_shown_unless_they_may_not_be(scans, tmp_path):
    loaded = load_scans(train_data_dir=scans, resolution=TINY.best.resolution)
    shown = {}
    for with_scans in (True, False):
        material = Material(TINY, [], Results([]), loaded, tmp_path, with_scans)
        item = scans_item(material)
        shown[with_scans] = (tmp_path / "figure1.png").read_bytes()
        assert ("in place of patients' scans" in item.ours) is not with_scans
        assert "class_0 4" in item.ours
    assert shown[True] != shown[False]


def test_few_scans_are_refused_before_anything_is_trained(scans, tmp_path):
    with pytest.raises(InputError, match="--train_data_dir has 12 training scans .* --budget tiny needs 51"):
        reproduce(tmp_path / "out", data=scans, budget="tiny")
    assert not (tmp_path / "out").exists()
    few = load_phantoms(num_images=160, resolution=16)  # enough for tiny but for what is held out
    with pytest.raises(InputError, match="16 held-out scans .* needs 20"):
        refuse_few_scans(TINY, few)


def test_another_s_folder_is_refused(reproduction, tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    other = tmp_path / "other"
    other.mkdir()
    write_json(other / "plan.json", {**read_json(reproduction / "plan.json"), "budget": "hour"})
    older = tmp_path / "older"
    older.mkdir()
    write_json(older / "plan.json", {**read_json(reproduction / "plan.json"), "runs": {}})
    for folder, words in (
        (tmp_path / "thesis", "is not empty and holds no reproduction"),
        (tmp_path / "thesis" / "chapter.txt", "is a file"),
        (other, "holds a reproduction of another budget"),
        (older, "by the plan of another version"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["--budget", "tiny", "--output_dir", str(folder)])
        assert end.value.code == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_the_command_that_moved_names_the_new_door(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["reproduce", "--budget", "tiny", "--output_dir", "repro"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "run python -m benchmarks.reproduction" in message
    assert message.count("\n") == 1
