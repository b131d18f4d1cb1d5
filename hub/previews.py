"""What quants of a revision will weigh: worked out from headers, once for all levels, and kept."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

from hub import engine
from hub.catalog.models import Revision
from hub.files import write_whole
from hub.layout import lay_out, without_folder

FORM = 4  # in which previews are kept


@dataclass(frozen=True)
class PlanSummary:
    """What a quant will weigh, known before any work.

    `same_as` is a level before it that gives every tensor of this model the same type; `unchanged` says that
    every tensor has that type already, `weighed` that an importance matrix will be measured for it.
    """

    file_bytes: int
    bpw: float
    warnings: tuple[str, ...] = ()
    same_as: str = ""
    unchanged: bool = False
    weighed: bool = False


def preview(revision: Revision, level: str) -> PlanSummary:
    """Return what a quant of a stored revision will weigh. Worked out once, for all levels, and kept."""
    path = (
        Path(settings.CACHE_DIR)
        / "previews"
        / f"{revision.model.name}-{revision.commit}-{engine.versions().get('quanthub', '')}-{FORM}.json"
    )
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if level not in known:
        known = _all_previews(revision)
        write_whole(path, json.dumps(known).encode())
    if level not in known:
        raise engine.Refused(f"No level is called {level!r}.")
    found = known[level]
    if "refused" in found:
        raise engine.Refused(found["refused"])
    return PlanSummary(**found | {"warnings": tuple(found["warnings"])})


def _all_previews(revision: Revision) -> dict[str, dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        source = engine.open_source(lay_out(revision, Path(folder)))
        importance, lacking = None, ""
        try:
            importance = engine.promised_importance(revision, source)
        except engine.EngineError as exc:
            lacking = str(exc)
        seen: dict[Any, str] = {}
        found = {}
        for level in engine.levels():
            found[level.name] = _preview(source, level, Path(folder), importance, lacking, seen)
        return found


def _preview(
    source: engine.Source,
    level: engine.LevelInfo,
    folder: Path,
    importance: engine.Importance | None,
    lacking: str,
    seen: dict[Any, str],
) -> dict[str, Any]:
    """Return what is kept of a plan; `seen` are the levels before it by what they make of the tensors."""
    try:
        plan = engine.make_plan(source, level.name, importance if level.weighed else None, lacking)
    except engine.EngineError as exc:
        return {"refused": without_folder(str(exc), folder)}
    types = tuple(tensor.type for tensor in plan.tensors), level.weighed and importance is not None
    first = seen.setdefault(types, level.name)
    return {
        "file_bytes": plan.file_bytes,
        "bpw": plan.bpw,
        "warnings": list(plan.warnings),
        "same_as": "" if first == level.name else first,
        "weighed": level.weighed and importance is not None,
        "unchanged": all(tensor.type == tensor.source_type for tensor in plan.tensors),
    }
