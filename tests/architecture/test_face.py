"""What quantcore shows to others is what it says it shows."""

from __future__ import annotations

import ast
from pathlib import Path

import quantcore

ROOT = Path(__file__).parents[2]


def test_every_name_of_the_face_exists():
    """`__all__`, the imports for type checkers and the homes agree, and each name can be had."""
    tree = ast.parse(Path(quantcore.__file__).read_text())
    guard = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.asname or alias.name for node in guard.body for alias in node.names}

    assert imported == set(quantcore.__all__) == {*quantcore._HOMES, "errors"}
    assert all(getattr(quantcore, name) is not None for name in quantcore.__all__)


def test_the_hub_sees_only_the_face():
    """hub/engine takes names of the face from quantcore, never a module that lies behind it."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "hub" / "engine").glob("*.py")]
    modules, names = set(), set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names if alias.name.split(".")[0] == "quantcore"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "quantcore":
            modules.add(node.module)
            names |= {alias.name for alias in node.names} if node.module == "quantcore" else set()
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "quantcore" else set()

    assert modules <= {"quantcore", "quantcore.errors"}
    assert names
    assert names <= set(quantcore.__all__)
