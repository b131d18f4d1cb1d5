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
    """hub/engine.py imports quantcore by its face, never what lies behind it."""
    tree = ast.parse((ROOT / "hub" / "engine.py").read_text())
    names = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if name and name.split(".")[0] == "quantcore"
    }

    assert names <= {"quantcore", "quantcore.errors"}
