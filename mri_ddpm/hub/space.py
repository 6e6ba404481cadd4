"""A Space: a repository that the Hub runs, with the demo of one model."""

import re
from importlib.metadata import PackageNotFoundError, distribution, requires, version
from pathlib import Path
from platform import python_version_tuple

from huggingface_hub import SpaceCardData

import mri_ddpm
from mri_ddpm.errors import InputError, with_extra
from mri_ddpm.hub.export import must_be_empty
from mri_ddpm.pipelines import pipeline_mri_ddpm

EXTRAS = ("demo", "volumes")  # of ours, that the page needs
SUFFIXES = (".py", ".html", ".md")  # of the files that the package consists of

APP = '''"""The page of {repo_id} in a browser. Synthetic, not for diagnosis."""

import sys

from mri_ddpm.demo import serve
from mri_ddpm.errors import exit_on_input_error

with exit_on_input_error():
    serve((sys.argv[1:] or ["{repo_id}"])[0], server_name=None)  # the environment says whom it listens to
'''

README = """---
{front_matter}
---

# {title}

Synthetic brain MRI from the model [{repo_id}](https://huggingface.co/{repo_id}). **Not for diagnosis.**

Nothing that a visitor puts in is kept. While the model is private, this Space needs a secret `HF_TOKEN` that may read it (Settings,
Variables and secrets).

In a fresh environment it runs anywhere:

```bash
pip install -r requirements.txt
python app.py            # or the path of a model
```

The folder `mri_ddpm` holds the sources of mri-ddpm {version}, Apache-2.0. `mri-ddpm push --space` wrote all of it.
"""


def export_space(folder: Path, space_id: str, repo_id: str) -> list[Path]:
    """Write the exact Space of a model: ``README.md``, ``app.py``, ``requirements.txt``, and this package's sources.

    The sources, because a package index may not have this very version, and a wheel beside ``requirements.txt`` may not be there
    yet when the Hub installs that.

    Args:
        folder: where to; new or empty.
        space_id: the Space's name, ``owner/name``.
        repo_id: the model's, which the Space opens when it starts.

    Returns:
        The files written, relative to ``folder``.

    Raises:
        InputError: when Gradio is missing, so that nobody can have seen the page, or ``folder`` holds something.
    """
    must_be_empty(folder)
    title = space_id.split("/")[-1]
    front_matter = SpaceCardData(
        title=title, emoji="🧠", colorFrom="gray", colorTo="gray", sdk="gradio", sdk_version=gradio_version(),
        python_version=".".join(python_version_tuple()[:2]), app_file="app.py", license="apache-2.0",
        short_description="Synthetic brain MRI, not for diagnosis", models=[repo_id], tags=["mri", "synthetic-data"],
    )  # fmt: skip
    texts = {
        "README.md": README.format(
            front_matter=front_matter, title=title, repo_id=repo_id, version=version("mri-ddpm")
        ),
        "app.py": APP.format(repo_id=repo_id),
        "requirements.txt": "".join(f"{line}\n" for line in requirements()),
        **sources(),
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return sorted(Path(name) for name in texts)


def gradio_version() -> str:
    """The version of Gradio that is installed here.

    Raises:
        InputError: when none is.
    """
    try:
        return version("gradio")
    except PackageNotFoundError as error:
        raise InputError(f"gradio is not installed; {with_extra('demo')} brings it.") from error


def requirements() -> list[str]:
    """What this package requires, and its ``EXTRAS``, as lines of ``requirements.txt``."""
    found = []
    for line in requires("mri-ddpm") or []:
        extra = re.search(r"""; *extra *== *["'](.+)["']""", line)
        if extra is None or extra[1] in EXTRAS:
            found.append(line[: extra.start()].strip() if extra else line)
    return found


def sources() -> dict[str, str]:
    """This package's own files as they lie in a plain install, and the names and the licence it is known by."""
    found = {}
    for module in (mri_ddpm, pipeline_mri_ddpm):  # apart in a clone
        package = Path(module.__file__).parent
        inside = Path(*module.__name__.split(".")[:2]) if module is pipeline_mri_ddpm else Path("mri_ddpm")
        for path in sorted(package.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                found[(inside / path.relative_to(package)).as_posix()] = path.read_text(encoding="utf-8")
    papers = f"mri_ddpm-{version('mri-ddpm')}.dist-info"
    found[f"{papers}/METADATA"] = f"Metadata-Version: 2.1\nName: mri-ddpm\nVersion: {version('mri-ddpm')}\n"
    licence = distribution("mri-ddpm").read_text("licenses/LICENSE")
    return found | ({f"{papers}/licenses/LICENSE": licence} if licence else {})
