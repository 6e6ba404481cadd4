"""The tables of docs/conditions.md hold the numbers of docs/results/conditions.json."""

import json
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
SECTIONS = {
    "mask": "A mask becomes a scan",
    "pairs": "Pairs of scan and mask",
    "contrast": "One contrast from another",
    "lowres": "From a quarter of the resolution",
}
DECIMALS = {"psnr": 1, "ssim": 3}  # of Dice and of correlations 2


@pytest.mark.parametrize("part", SECTIONS)
def test_the_page_shows_what_was_measured(part):
    results = json.loads((DOCS / "results/conditions.json").read_text())
    page = (DOCS / "conditions.md").read_text()
    section = page.split(f"## {SECTIONS[part]}\n")[1].split("\n## ")[0]
    assert ("Not measured yet" in section) == (part not in results)
    runs = {name: rows for name, rows in results.get(part, {}).items() if name != "expected"}
    for name, rows in runs.items():
        table = section.split(f"<!-- {name} -->\n")[1]
        table = table.split("<!-- end -->")[0] if len(runs) > 1 else table
        lines = {line.split("|")[1].strip(): line for line in table.splitlines() if line.startswith("|")}
        for row, found in rows.items():
            for measure, value in found.items():
                if isinstance(value, dict):
                    low, high = value["interval"]
                    n = DECIMALS.get(measure, 2)
                    assert f"{value['value']:.{n}f} [{low:.{n}f}, {high:.{n}f}]" in lines.get(row, table)
