"""``python -m benchmarks.reproduction`` as a user starts it: stopped, resumed in two processes, what it leaves and refuses."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY, losses
from PIL import Image

from benchmarks.reproduction.__main__ import begin_or_join, main, refuse_few_scans
from benchmarks.reproduction.budgets import TINY
from benchmarks.reproduction.items import figure_1
from benchmarks.reproduction.report import SECTIONS
from benchmarks.reproduction.runs import make_plan
from benchmarks.reproduction.study import Study
from mri_ddpm import commands
from mri_ddpm.data import PHANTOM_CLASS_NAMES, draw_phantoms, load_phantoms, load_scans
from mri_ddpm.errors import InputError
from mri_ddpm.files import read_json, write_json

TITLES = [
    "Figure 1", "Figures 2 and 3", "Figure 4", "Table 1", "Figure 6", "Figure 7", "Figures 8 and 9", "Figure 10",
    "Figure 11", "Figure 12", "Claim 1", "Claim 2", "Claim 3", "Claim 4a", "Claim 4b", "Claim 5a", "Claim 5b", "Claim 6a",
    "Claim 6b", "Claim 7a", "Claim 7b", "Claim 7c", "Our recipe", "Larger images, and SSIM",
]  # fmt: skip


def command(folder: Path) -> list[str]:
    return ["-m", "benchmarks.reproduction", "--budget", "tiny", "--output_dir", str(folder)]


@pytest.fixture(scope="module")
def reproduction(tmp_path_factory) -> Path:
    """The whole tiny budget on the phantom: stopped by Ctrl-C within a run, and resumed by two processes."""
    folder = tmp_path_factory.mktemp("reproduction") / "repro"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": REPOSITORY}
    with subprocess.Popen([sys.executable, *command(folder)], **pipes) as first:
        while len(list(folder.glob("runs/*/metrics.jsonl"))) < 3:
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.1)
        first.send_signal(signal.SIGINT)
        errors = first.stderr.read()
    assert first.returncode == 130
    assert errors.endswith("Stopped. The same command resumes it.\n")
    assert "Traceback" not in errors
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}
    assert len(before) == 2
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    second = subprocess.run([*launcher, *command(folder)], timeout=900, **pipes)
    assert second.returncode == 0, second.stderr
    assert "Claim 7c: " in second.stdout
    assert f"Report: {folder / 'report.html'}" in second.stdout
    assert "runs: 100%" in second.stderr  # one bar over all of them
    assert {path: path.stat().st_mtime_ns for path in before} == before
    return folder


@pytest.mark.slow
def test_every_run_leaves_one_line_and_its_folder(reproduction):
    lines = (reproduction / "runs.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON")) for line in lines]
    plan = make_plan(TINY, reproduction / "runs", None, PHANTOM_CLASS_NAMES, 180)
    assert [row["name"] for row in rows] == [run.name for run in plan]
    for row in rows:
        folder = reproduction / "runs" / row["name"]
        assert (folder / "pipeline" / "model_index.json").exists()
        assert not (folder / "checkpoints").exists()  # of all runs together they would fill a disk
        assert "validation loss" in (reproduction / "runs" / f"{row['name']}.log").read_text()
        assert row["epochs"] == read_json(folder / "config.json")["num_train_epochs"]
        assert len(row["validation_loss"]) == row["epochs"]
        assert row["training_seconds"] > 0
        assert ("kid" in row) == (row["part"] not in ("provoked", "large"))
    assert not list(reproduction.glob("runs/*.lock"))


@pytest.mark.slow
def test_every_item_is_reported_twice_with_pictures_code_command_seed_machine_and_time(reproduction):
    html, markdown = ((reproduction / f"report.{end}").read_text() for end in ("html", "md"))
    assert re.findall(r"^### (.*?)(?:: (?:yes|no|not shown))?$", markdown, re.MULTILINE) == TITLES
    for title in TITLES:
        assert f"<h3>{title}" in html
    pictures = re.findall(r"!\[.*?\]\((figures/.*?)\)", markdown)
    assert len(pictures) == html.count('src="data:image/png;base64,') >= 18
    for picture in pictures:
        assert np.asarray(Image.open(reproduction / picture).convert("L")).std() > 5
    assert html.count("<table>") == markdown.count("|---|\n")
    assert 'src="http' not in html
    assert markdown.count("- **Paper:** ") == markdown.count("- **Ours:** ") == len(TITLES)
    made = r"^Code: `(?:benchmarks|mri_ddpm)\..*(?:minutes of training|made in seconds)"
    assert len(re.findall(made, markdown, re.MULTILINE)) == len(TITLES)
    assert markdown.count("accelerate launch train_ddpm.py") >= 20
    assert "{{" not in markdown
    assert "nan" not in markdown.lower().split()


@pytest.mark.slow
def test_a_run_of_the_sweep_is_what_its_command_trains(reproduction, tmp_path):
    """The last of many runs in one process against a process of its own: the same losses to the bit."""
    rows = [json.loads(line) for line in (reproduction / "runs.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["name"] == "losses-l1-seed0")
    flags = shlex.split(row["command"])[3:]
    flags[flags.index("--output_dir") + 1] = str(tmp_path / "alone")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "train_ddpm.py", *flags], cwd=REPOSITORY, env=environment)
    assert done.returncode == 0
    assert losses(tmp_path / "alone") == losses(reproduction / "runs" / row["name"])


@pytest.mark.slow
def test_the_report_is_written_anew_without_training_also_of_runs_that_broke(reproduction, capsys):
    """Surges in the paper's own runs, in a variant, and in the grid: each is told, and nothing is made up for it."""
    lost = ("kid", "bits_per_dimension", "ssim", "ssim_of_training_scans", "flagged_share", "detail_ratio")
    changed = {}
    for name in ("paper-16-16-seed0", "paper-16-8-seed0", "blocks-resnet-seed0", "ratio-16-8-seed0"):
        path = reproduction / "runs" / name / "result.json"
        changed[path] = read_json(path)
        broken = {key: value for key, value in changed[path].items() if key not in lost}
        broken |= {"ended": "the loss is nan at step 20", "evaluations": broken["evaluations"][:2]}
        write_json(path, broken)
    grid = reproduction / "runs" / "paper-16-16-seed0" / "samples" / "epoch-00003-raw.png"
    grid.rename(grid.with_suffix(".away"))
    pictures = {path: path.stat().st_mtime_ns for path in reproduction.glob("runs/*/loss.png")}
    try:
        main(["--budget", "tiny", "--output_dir", str(reproduction)])
    finally:
        grid.with_suffix(".away").rename(grid)
        for path, content in changed.items():
            write_json(path, content)
    assert "Claim 3: not shown" in capsys.readouterr().out
    assert "not reached, the run ended in epoch 3" in (reproduction / "report.md").read_text()
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures


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
        item = figure_1(Study(TINY, [], scans=loaded, with_scans=with_scans))
        (_, draw), file = item.pictures["figure1.png"], tmp_path / "figure1.png"
        draw(file)
        shown[with_scans] = file.read_bytes()
        assert ("in place of patients' scans" in item.ours) is not with_scans
        assert "class_0 4" in item.ours
    assert shown[True] != shown[False]


def test_few_scans_are_refused_before_anything_is_trained(scans, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--budget", "tiny", "--data", scans, "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 2
    assert re.search(
        "error: --train_data_dir has 12 training scans .* --budget tiny needs 20", capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    few = load_phantoms(num_images=160, resolution=16)  # enough for tiny but for validation
    with pytest.raises(InputError, match="16 validation scans .* needs 20"):
        refuse_few_scans(TINY, few)


def test_another_s_folder_is_refused(tmp_path, capsys):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("mine")
    for folder, words in (
        (tmp_path / "thesis", "is not empty and holds no reproduction"),
        (tmp_path / "thesis" / "chapter.txt", "is a file"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["--budget", "tiny", "--output_dir", str(folder)])
        assert end.value.code == 2
        message = capsys.readouterr().err
        assert words in message
        assert message.count("\n") == 1
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [("budget", "of another budget"), ("content_sha256", "on other scans"), ("runs", "by the plan of another version")],
)  # fmt: skip
def test_another_reproduction_is_refused(tmp_path, changed, words):
    note = {"budget": "tiny", "content_sha256": "a", "runs": {"ratio": {}}}
    file = tmp_path / "repro" / "plan.json"
    begin_or_join(file, note, first=True)
    begin_or_join(file, note, first=True)  # resumed
    begin_or_join(file, note, first=False)
    with pytest.raises(InputError, match=f"holds a reproduction {words}; name a new folder"):
        begin_or_join(file, {**note, changed: "other"}, first=True)
    assert read_json(file) == note


def test_the_command_that_moved_names_the_new_door(capsys):
    with pytest.raises(SystemExit) as end:
        commands.main(["reproduce", "--budget", "tiny", "--output_dir", "repro"])
    assert end.value.code == 2
    message = capsys.readouterr().err
    assert "run python -m benchmarks.reproduction" in message
    assert message.count("\n") == 1


def test_every_item_is_one_row_of_the_report():
    assert sum(map(len, SECTIONS.values())) == len(TITLES)
