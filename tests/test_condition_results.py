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
    rows = results.get(part, {}).get(part, {})
    lines = {line.split("|")[1].strip(): line for line in section.splitlines() if line.startswith("|")}
    for name, row in rows.items():
        for measure, found in row.items():
            if isinstance(found, dict):
                low, high = found["interval"]
                n = DECIMALS.get(measure, 2)
                assert f"{found['value']:.{n}f} [{low:.{n}f}, {high:.{n}f}]" in lines.get(name, section)
