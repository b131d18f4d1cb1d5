"""The measure stage: perplexity of the quant beside its source, and speed in llama.cpp.

The source is measured once for each protocol; its losses, token by token, are kept in the cache, as the error
of a difference is far smaller when both sides are paired. What cannot be measured here is said, not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.db.models import QuerySet

from hub import engine
from hub.catalog.models import Measurement, Revision
from hub.jobs import actions, baselines
from hub.jobs.models import Job
from hub.jobs.whole import Whole

Metric = Measurement.Metric

Speeds = Mapping[Literal["pp", "tg"], engine.Speed]

# A share of the processors that other programs may use while speed is measured.
QUIET = 0.1
SOURCE, QUANT, SPEED = "perplexity of the source", "perplexity of the quant", "speed in llama.cpp"
# Beside one pass over the text: five runs of a prompt and of a generation, the latter a token at a time.
SPEED_COST = 0.4


def measure(job: Job, source: engine.Source, made: Path, tell: engine.Tell) -> list[actions.Measured]:
    """Return every figure that this machine can measure of a finished file."""
    steps = {QUANT: 1.0, SPEED: SPEED_COST}
    if _kept(job.revision) is None:
        steps = {SOURCE: 1.0} | steps
    whole = Whole(tell, steps)
    return [*_quality(job, source, made, whole), *_speed(job, made, whole.step(SPEED))]


def _quality(job: Job, source: engine.Source, made: Path, whole: Whole) -> Iterable[actions.Measured]:
    try:
        baseline = _kept(job.revision)
        if baseline is None:
            baseline = _baseline(job.revision, source, whole.step(SOURCE))
        quality = engine.perplexity(engine.open_source(made), settings.EVAL_TEXT, whole.step(QUANT))
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
        speeds = _quiet_speeds(job, made, tell)
    except engine.EngineError as exc:
        # The file is whole and measured for quality; a machine without the engine must not keep it back.
        actions.log(job, f"Speed was not measured here: {exc}")
        return []
    metrics = {Metric.PP: speeds["pp"], Metric.TG: speeds["tg"]}
    return [
        _measured(metric, speed.figure, "tokens/s", speed.method, speed.engine)
        for metric, speed in metrics.items()
    ]


def _quiet_speeds(job: Job, made: Path, tell: engine.Tell) -> Speeds:
    """Measure speed; once more where other programs used the processors, and then take the quieter try."""
    engine.wait_for_kernels()
    best = engine.speeds(made, tell)
    if _others(best) > QUIET:
        best = min(best, engine.speeds(made, partial(_at_the_end, tell)), key=_others)
    if _others(best) > QUIET:
        share = f"{100 * _others(best):.0f} %"
        actions.log(job, f"Note: other programs used {share} of the processors while speed was measured.")
    return best


def _at_the_end(tell: engine.Tell, progress: dict[str, Any]) -> None:
    """Tell of a second try without going back on what the first one told."""
    tell(progress | {"done": progress["total"]})


def _others(speeds: Speeds) -> float:
    return max((speed.others or 0.0) for speed in speeds.values())


def _key() -> str:
    return engine.protocol_key(engine.quality_protocol(settings.EVAL_TEXT.read_bytes()))


def _rows(revision: Revision, key: str) -> QuerySet[Measurement]:
    return revision.measurements.filter(metric=Metric.PPL, method__protocol_key=key)


def _kept(revision: Revision) -> engine.Losses | None:
    """Return the source's losses by the present protocol if both they and its figure are kept."""
    key = _key()
    return baselines.load(revision, key) if _rows(revision, key).exists() else None


def _baseline(revision: Revision, source: engine.Source, tell: engine.Tell) -> engine.Losses:
    """Measure the source's losses, keep them, and see to its row."""
    key = _key()
    quality = engine.perplexity(source, settings.EVAL_TEXT, tell)
    _require_sane(quality)
    baselines.save(revision, key, quality.losses)
    if not _rows(revision, key).exists():
        figure = _measured(Metric.PPL, quality.perplexity, "", quality.method)
        Measurement.objects.create(revision=revision, **vars(figure))
    return quality.losses


def _require_sane(quality: engine.Quality) -> None:
    if not math.isfinite(quality.perplexity.value):
        raise engine.EngineError(
            "The perplexity is not a finite number: the file is not fit to be published."
        )


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
