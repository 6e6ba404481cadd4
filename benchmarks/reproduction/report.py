"""``report.md`` beside its pictures, and the same as ``report.html``, one file that needs no network."""

import base64
import re
from collections.abc import Callable
from pathlib import Path

import jinja2

from benchmarks.reproduction.claims import CLAIMS
from benchmarks.reproduction.items import BEYOND, ITEMS
from benchmarks.reproduction.study import Item, Study, spelled
from mri_ddpm.evaluation.estimates import Estimate
from mri_ddpm.files import whole_file

SECTIONS = {**ITEMS, "The claims": CLAIMS, **BEYOND}
TEMPLATE = Path(__file__).with_name("report.md")
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { padding: 0.2rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; }
img { max-width: 100%; }
code { font-size: 0.8rem; overflow-wrap: anywhere; white-space: pre-wrap; }"""


def write_report(study: Study, folder: Path, **facts: str) -> list[Item]:
    """Ask every item of the study, write its pictures into ``figures/``, and write both forms; returns the items.

    Args:
        study: what is reported.
        folder: the reproduction's.
        facts: of the whole: ``source`` and ``command``.
    """
    (folder / "figures").mkdir(exist_ok=True)
    sections = {title: [(make, make(study)) for make in makers] for title, makers in SECTIONS.items()}
    found = [item for made in sections.values() for _, item in made]
    for item in found:
        for name, (_, write) in item.pictures.items():
            write(folder / "figures" / name)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": cell, "columns": columns, "code": code}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = template.render(sections=sections, budget=study.budget, rows=study.rows, **facts)

    def embedded(match: re.Match) -> str:
        picture = base64.b64encode((folder / match[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{picture}"'

    import markdown  # imported late: who lacks it is told before the first training

    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    body = re.sub(r'src="(figures/[^"]+)"', embedded, body)
    head = f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>MRIDiff, reproduced</title>\n<style>\n{STYLE}\n</style>\n'
    for name, content in {"report.md": text, "report.html": f"{head}{body}\n</html>\n"}.items():
        with whole_file(folder / name) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
    return found


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


def code(function: Callable) -> str:
    """Where a function is found."""
    function = getattr(function, "func", function)  # of a partial
    if not hasattr(function, "__qualname__"):  # a row of a table
        function = type(function)
    return f"{function.__module__}.{function.__qualname__}"
