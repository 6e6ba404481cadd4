"""The house: each room imports only those below it, and no two modules import one another."""

import subprocess
import sys
from pathlib import Path

import grimp
import networkx

REPOSITORY = Path(__file__).parents[1]
LINT = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"


def test_rooms_import_only_what_lies_below_them():
    """In a process of its own, for the linter turns off what other modules log."""
    ended = subprocess.run([sys.executable, "-c", LINT], cwd=REPOSITORY, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_no_two_modules_import_one_another():
    """Directly or by way of others, for types or later than the start."""
    modules = grimp.build_graph("mri_ddpm", cache_dir=None)
    edges = [(name, to) for name in modules.modules for to in modules.find_modules_directly_imported_by(name)]
    circles = [
        sorted(group)
        for group in networkx.strongly_connected_components(networkx.DiGraph(edges))
        if len(group) > 1
    ]
    assert len(edges) > 200  # it has looked
    assert circles == []
