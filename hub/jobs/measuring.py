"""The measure stage: perplexity of the quant beside its source, and speed in llama.cpp.

The source is measured once for each protocol; its losses, token by token, are kept in the cache, as the error
of a difference is far smaller when both sides are paired. What cannot be measured here is said, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings

from hub import engine
from hub.catalog.models import Measurement, Revision
from hub.jobs import actions, baselines
from hub.jobs.models import Job

Metric = Measurement.Metric


def measure(job: Job, source: engine.Source, made: Path, tell: engine.Tell) -> list[actions.Measured]:
    """Return every figure that this machine can measure of a finished file."""
    return [*_quality(job, source, made, tell), *_speed(job, made, tell)]


def _quality(job: Job, source: engine.Source, made: Path, tell: engine.Tell) -> Iterable[actions.Measured]:
    try:
        baseline = _baseline(job.revision, source, partial(_named, tell, "the source", 1))
        quality = engine.perplexity(
            engine.open_source(made), settings.EVAL_TEXT, partial(_named, tell, "the quant", 2)
        )
    except (engine.Refused, engine.NoEngine) as exc:
        actions.log(job, f"Perplexity was not measured here: {exc}")
        return []
    _require_sane(quality)
    rise = engine.increase(baseline, quality.losses)
    return [
        _measured(Metric.PPL, quality.perplexity, "", quality.method),
        _measured(
            Metric.PPL_INCREASE, rise, "", quality.method | {"baseline": str(job.revision.tensor_type)}
        ),
    ]


def _speed(job: Job, made: Path, tell: engine.Tell) -> Iterable[actions.Measured]:
    try:
        speeds = engine.speeds(made, partial(_named, tell, "speed in llama.cpp", 3))
    except engine.EngineError as exc:
        # The file is whole and measured for quality; a machine without the engine must not keep it back.
        actions.log(job, f"Speed was not measured here: {exc}")
        return []
    metrics = {Metric.PP: speeds["pp"], Metric.TG: speeds["tg"]}
    return [
        _measured(metric, speed.figure, "tokens/s", speed.method, speed.engine)
        for metric, speed in metrics.items()
    ]


def _baseline(revision: Revision, source: engine.Source, tell: engine.Tell) -> engine.Losses:
    """Return the source's losses, measuring them if they are not kept, and see to its row."""
    protocol = engine.quality_protocol(settings.EVAL_TEXT.read_bytes())
    key = engine.protocol_key(protocol)
    row = revision.measurements.filter(metric=Metric.PPL, method__protocol_key=key)
    losses = baselines.load(revision, key)
    if losses is not None and row.exists():
        return losses
    quality = engine.perplexity(source, settings.EVAL_TEXT, tell)
    _require_sane(quality)
    baselines.save(revision, key, quality.losses)
    if not row.exists():
        figure = _measured(Metric.PPL, quality.perplexity, "", quality.method)
        Measurement.objects.create(revision=revision, **vars(figure))
    return quality.losses


def _require_sane(quality: engine.Quality) -> None:
    if not math.isfinite(quality.perplexity.value):
        raise engine.EngineError(
            "The perplexity is not a finite number: the file is not fit to be published."
        )


def _named(tell: engine.Tell, item: str, index: int, progress: dict[str, Any]) -> None:
    """Say which of the three measurements is under way."""
    tell({**progress, "item": progress["item"] or item, "index": index, "count": 3})


def _measured(
    metric: Metric,
    figure: engine.Figure,
    unit: str,
    method: dict[str, Any],
    engine_versions: dict[str, Any] | None = None,
) -> actions.Measured:
    return actions.Measured(
        metric=metric,
        value=figure.value,
        unit=unit,
        deviation=figure.deviation,
        method=method,
        hardware=engine.hardware(),
        engine=engine.versions() if engine_versions is None else engine_versions,
    )
