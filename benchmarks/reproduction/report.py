"""``report.html``, one file that needs no network, and ``report.md`` with the same beside its pictures."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from benchmarks.reproduction.results import spelled
from mri_ddpm.evaluation.estimates import Estimate
from mri_ddpm.files import whole_file

FOLDER = Path(__file__).parent
SHOWN_COMMANDS = 2  # of an item; the others are in runs.jsonl


@dataclass(frozen=True)
class Item:
    """One thing of the paper, and ours beside it.

    title: what the paper calls it.
    paper: the paper's own figure or number, in words.
    ours: what came out, in words.
    code: where it is made.
    answer: of a claim: yes, no or not shown.
    runs: results that it rests on; commands, seeds, machine and time are theirs.
    pictures: file names in ``figures/``, with captions.
    tables: of rows by column; estimates are spelled with their intervals.
    """

    title: str
    paper: str
    ours: str
    code: str
    answer: str | None = None
    runs: list[dict] = field(default_factory=list)
    pictures: dict[str, str] = field(default_factory=dict)
    tables: list[list[dict]] = field(default_factory=list)

    @property
    def commands(self) -> list[str]:
        """The first trainings, as commands."""
        return [run["command"] for run in self.runs[:SHOWN_COMMANDS]]

    @property
    def more_commands(self) -> int:
        """How many are not shown."""
        return max(0, len(self.runs) - SHOWN_COMMANDS)

    @property
    def seeds(self) -> str:
        """Of its runs."""
        return ", ".join(map(str, sorted({run["seed"] for run in self.runs})))

    @property
    def machines(self) -> str:
        """Of its runs."""
        return ", ".join(sorted({run["environment"]["device"] for run in self.runs}))

    @property
    def minutes(self) -> float:
        """Of training, summed over its runs."""
        return sum(run["training_seconds"] for run in self.runs) / 60


@dataclass(frozen=True)
class Section:
    """Items under one heading."""

    title: str
    items: list[Item]


def write_report(sections: list[Section], facts: dict, folder: Path) -> None:
    """Write both forms into ``folder``, whose ``figures/`` hold the pictures.

    Args:
        sections: what is reported.
        facts: of the whole: ``budget``, ``source``, ``runs``, ``hours``, ``scaled_down``, ``assumed``, ``command``, ``machine``.
        folder: the reproduction's.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=jinja2.select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "cell": cell,
        "columns": columns,
        "embedded": lambda name: embedded(folder / "figures" / name),
    }
    for name in ("report.html", "report.md"):
        text = environment.get_template(name).render(sections=sections, **facts)
        with whole_file(folder / name) as unfinished:
            unfinished.write_text(text, encoding="utf-8")


def columns(table: list[dict]) -> list[str]:
    """Of all rows, in order."""
    return list(dict.fromkeys(name for row in table for name in row))


def cell(value: object) -> str:
    """A table's entry in words."""
    if value is None:
        return "–"
    if isinstance(value, Estimate):
        return spelled(value) if value.n > 1 else f"{value.value:.3g}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def embedded(picture: Path) -> str:
    """A picture as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
