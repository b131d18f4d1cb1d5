"""Which way things depend: read from the syntax trees, so that no import can hide in a function."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WEB = {"django", "celery", "redis", "ninja", "kombu", "hub"}


def modules(folder: str) -> Iterator[Path]:
    return (path for path in sorted((ROOT / folder).rglob("*.py")) if "migrations" not in path.parts)


def imported(path: Path) -> set[str]:
    """Return the dotted names that a module imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def offenders(folder: str, forbidden: set[str], *, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return "file imports name" for every import of a forbidden package below `folder`."""
    return [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(folder)
        if str(path.relative_to(ROOT)) not in allowed
        for name in imported(path)
        if any(name == bad or name.startswith(f"{bad}.") for bad in forbidden)
    ]


def test_quantcore_knows_nothing_of_the_web():
    assert not offenders("quantcore", WEB)


def test_only_arrays_knows_cupy():
    assert not offenders("quantcore", {"cupy"}, allowed=frozenset({"quantcore/arrays.py"}))
    assert not offenders("hub", {"cupy"})


def test_only_the_engine_knows_quantcore():
    inside = frozenset(str(path.relative_to(ROOT)) for path in modules("hub/engine"))
    assert len(inside) > 3
    assert not offenders("hub", {"quantcore"}, allowed=inside)


def test_only_the_blob_store_knows_where_bytes_lie():
    """Nobody builds a path below the store but the store."""
    users = [path for path in modules("hub") if "BLOB_DIR" in path.read_text()]

    assert {str(path.relative_to(ROOT)) for path in users} <= {"hub/blobs.py", "hub/settings.py"}


@pytest.mark.parametrize(
    ("layer", "above"),
    [
        ("quantcore/formats", {"sources", "containers", "plan", "pipeline", "convert", "evaluate", "cli"}),
        ("quantcore/methods", {"sources", "containers", "plan", "pipeline", "convert", "evaluate", "cli"}),
        ("quantcore/containers", {"formats", "methods", "sources", "plan", "pipeline", "evaluate", "cli"}),
        ("quantcore/sources", {"formats", "methods", "containers", "plan", "pipeline", "evaluate", "cli"}),
        ("quantcore/architectures", {"formats", "containers", "plan", "pipeline", "evaluate", "cli"}),
        ("quantcore/evaluate", {"containers", "plan", "pipeline", "cli"}),
    ],
)
def test_layers_import_downwards_only(layer, above):
    assert not offenders(layer, {f"quantcore.{name}" for name in above})


def test_importing_quantcore_imports_no_web_and_no_gpu():
    """A fresh process that has imported every module of quantcore holds neither Django, Celery nor cupy."""
    code = (
        "import importlib, pkgutil, sys, quantcore;"
        "[importlib.import_module(m.name) for m in pkgutil.walk_packages(quantcore.__path__, 'quantcore.')"
        " if not m.name.endswith('__main__')];"
        "print(sorted({'django', 'celery', 'cupy', 'hub', 'xllamacpp'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)

    assert done.stdout.strip() == "[]"
