"""Levels, plans, and files made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

import quantcore
from hub.engine.exchanged import EngineError, LevelInfo, Made, Refused, Tell, reporter, translated

if TYPE_CHECKING:
    from hub.engine.exchanged import Importance, Plan, Source

# Before the semicolon what is the same for all levels: it is then said once.
NO_IMPORTANCE = "The level is noise without an importance matrix, which cannot be measured of this model here"


def is_weighed(level: str) -> bool:
    """Return whether a level is made with an importance matrix, where one can be measured."""
    return any(known.weighed for known in levels() if known.name == level)


@lru_cache(maxsize=1)
def levels() -> tuple[LevelInfo, ...]:
    """Return every level that can be asked for, from the largest file to the smallest."""
    known = quantcore.all_formats()
    return tuple(
        LevelInfo(
            *(r.name, r.title, r.summary, known[r.base].family, known[r.base].bits),
            *(r.usual, r.special, r.legacy, r.weighed, r.needs_imatrix),
        )
        for r in quantcore.all_recipes().values()
    )


def fingerprint(level: str, options: Mapping[str, Any] | None = None) -> str:
    """Return what makes two requests for a revision the same one: the level and all options of its recipe.

    The engine's version is left out on purpose: pages and addresses know one quant of a level, so a new
    release must not make a second one beside it. Which release made the bytes is in `made_with`.
    """
    recipe = {"level": level, "options": dict(options or {})}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def make_plan(source: Source, level: str, importance: Importance | None = None, lacking: str = "") -> Plan:
    """Decide each tensor's type and the exact size of the file.

    `lacking` says why there is no importance matrix, for whoever asks for a level that is noise without.
    """
    try:
        with translated():
            return quantcore.make_plan(source, level, quantcore.Options(imatrix=importance))
    except Refused as exc:
        if lacking and isinstance(exc.__cause__, quantcore.errors.NeedsCalibration):
            raise Refused(f"{NO_IMPORTANCE}; {lacking}") from exc
        raise


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as the JSON document that jobs and quants keep."""
    return plan.to_json()


def quantize(
    source: Source, plan: Plan, destination: Path, tell: Tell, importance: Importance | None = None
) -> Made:
    """Write the planned file; it appears under its name whole or not at all."""
    with translated():
        backend = quantcore.choose_backend(settings.BACKEND)
        made = quantcore.quantize(
            source,
            plan,
            destination,
            threads=settings.JOB_THREADS,
            report=reporter(tell),
            kernels=backend.kernels,
            imatrix=importance,
        )
    return Made(made.path, made.file_bytes, made.sha256, made.seconds)


def kernels_missing() -> bool:
    """Return whether compiled kernels would make quants sooner here and are not there yet."""
    return settings.BACKEND == "auto" and quantcore.kernels_missing()


def wait_for_kernels() -> None:
    """Wait while kernels are compiled on this machine: that takes the processors that would be timed."""
    quantcore.wait_for_kernels()


def verify(path: Path, plan: Plan) -> None:
    """Read the written file back and hold it to the plan."""
    try:
        with translated():
            quantcore.verify(path, plan)
    except Refused as exc:
        # Nothing that a user gave: we wrote this file ourselves.
        raise EngineError(f"The finished file is not what was planned: {exc}") from exc
