"""The house: each room imports only those below it, and no two modules import one another."""

from pathlib import Path

import grimp
import networkx
from importlinter.cli import lint_imports

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def test_rooms_import_only_what_lies_below_them(capsys):
    assert lint_imports(config_filename=str(PYPROJECT), no_cache=True) == 0, capsys.readouterr().out


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
