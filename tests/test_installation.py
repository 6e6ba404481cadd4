"""What is published, and that training starts from it: a source distribution, installed plainly, in a clone and outside.

``.ci/doors`` tries every way to install with every door.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, losses

TOP = ("LICENSE", "MANIFEST.in", "README.md", "CHANGELOG.md", "accelerate_config.yaml", "pyproject.toml", "train_ddpm.py")  # fmt: skip
FOLDERS = ("benchmarks", "mri_ddpm", "pipelines", "tests")


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone as it comes, without what was built or linked in this one."""
    folder = tmp_path_factory.mktemp("clone")
    for name in TOP:
        shutil.copy(REPOSITORY / name, folder)
    for name in FOLDERS:
        shutil.copytree(
            REPOSITORY / name,
            folder / name,
            ignore=lambda parent, names: [
                n for n in names if n == "__pycache__" or Path(parent, n).is_symlink()
            ],
        )
    return folder


@pytest.fixture(scope="module")
def source_distribution(clone, tmp_path_factory) -> Path:
    dist = tmp_path_factory.mktemp("dist")
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, dist], cwd=clone, check=True, capture_output=True)
    return next(dist.iterdir())


@pytest.fixture(scope="module")
def site(source_distribution, tmp_path_factory) -> Path:
    """A folder for ``sys.path`` with what pip installs."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", folder, source_distribution], check=True, capture_output=True)
    return folder


def run(site: Path, cwd: Path, *command) -> str:
    """Run Python with the installed package before all others, as in a fresh environment."""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_source_distribution_holds_what_a_clone_does(clone, source_distribution):
    with tarfile.open(source_distribution) as archive:
        there = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {path.relative_to(clone).as_posix() for name in FOLDERS for path in (clone / name).rglob("*.*")}
    assert {*TOP, *wanted} <= there


def test_what_is_installed_holds_every_module(clone, site):
    """``packages`` in pyproject.toml is written by hand."""
    modules = {path.relative_to(clone) for path in (clone / "mri_ddpm").rglob("*") if path.is_file()}
    modules |= {Path("mri_ddpm", path.relative_to(clone)) for path in (clone / "pipelines").glob("*.py")}
    assert {path for path in modules if not (site / path).is_file()} == set()
    assert not (site / "benchmarks").exists()


@pytest.mark.slow
def test_training_from_an_installed_package_outside_the_repository(site, tmp_path):
    flags = (
        "--preset",
        "tiny",
        "--max_train_steps",
        2,
        "--lr_warmup_steps",
        0,
        "--output_dir",
        tmp_path / "run",
    )
    run(site, tmp_path, "-m", "mri_ddpm", "train", *flags)
    assert len(losses(tmp_path / "run")) == 2


@pytest.mark.slow
def test_a_clone_beside_a_plain_install_finds_its_own_pipelines(clone, site):
    """The clone's ``mri_ddpm/`` hides the installed one, while its ``pipelines/`` stands beside it."""
    where = "from mri_ddpm import MRIDDPMPipeline; import sys; print(sys.modules['mri_ddpm.pipelines.pipeline_mri_ddpm'].__file__)"
    found = Path(run(site, clone, "-c", where).strip())
    assert found == clone / "pipelines" / "pipeline_mri_ddpm.py"
