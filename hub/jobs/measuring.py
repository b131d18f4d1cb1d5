"""The measure stage: how the quant predicts a text beside its source, its tensors' errors, and its speed.

The source is measured once for each protocol; what it predicted, token by token, is kept in the cache, as the
error of a difference is far smaller when both sides are paired. What cannot be measured here is said, not
guessed.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings

from hub import engine
from hub.catalog.models import Measurement, Revision
from hub.jobs import actions, baselines, importance
from hub.jobs.baselines import Baseline
from hub.jobs.models import Job
from hub.jobs.whole import Whole

Metric = Measurement.Metric

# A share of the processors that other programs may use while speed is measured.
QUIET = 0.1
SOURCE, QUANT, SPEED = "perplexity of the source", "perplexity of the quant", "speed"
ERRORS = "errors of tensors"
# Beside one pass over the text: runs of a prompt and of a generation, the latter a token at a time, and the
# same again deep in the context.
SPEED_COST = 0.8
# Reading both files once.
ERRORS_COST = 0.02
METRICS: dict[engine.SpeedOf, Measurement.Metric] = {
    "pp": Metric.PP,
    "tg": Metric.TG,
    "pp_deep": Metric.PP_DEEP,
    "tg_deep": Metric.TG_DEEP,
}
Miss = Callable[[str], None]  # keeps a sentence about what was not measured
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """What was measured of a quant; `missed` says what was not, and why."""

    figures: tuple[actions.Measured, ...]
    errors: actions.MeasuredErrors | None
    missed: tuple[str, ...] = ()


def measure(
    job: Job, source: engine.Source, made: Path, matrix: engine.Importance | None, tell: engine.Tell
) -> Findings:
    """Return all that this machine can measure of a finished file."""
    steps = {QUANT: 1.0, ERRORS: ERRORS_COST, SPEED: SPEED_COST}
    kept = _kept(job.revision, made.parent)
    # Losses alone are worth a second pass over the source: now there may be room for its base.
    if kept is None or kept.base is None:
        steps = {SOURCE: 1.0} | steps
    whole, missed = Whole(tell, steps), list[str]()

    def miss(sentence: str) -> None:
        actions.log(job, sentence)
        missed.append(sentence)

    quality = _quality(job, source, made, kept, whole, miss)
    errors = _errors(job, source, made, matrix, whole.step(ERRORS), miss)
    return Findings((*quality, *_speed(job, made, whole.step(SPEED), miss)), errors, tuple(missed))


def _quality(
    job: Job, source: engine.Source, made: Path, kept: Baseline | None, whole: Whole, miss: Miss
) -> Iterable[actions.Measured]:
    try:
        baseline = kept
        if baseline is None or baseline.base is None:
            baseline = _baseline(job, source, kept, made.parent, whole.step(SOURCE), miss)
        quality, closeness = _beside(baseline, engine.open_source(made), whole.step(QUANT))
    except (engine.Refused, engine.NoEngine) as exc:
        miss(f"Perplexity was not measured here: {exc}")
        return []
    of = {"baseline": str(job.revision.tensor_type), "baseline_commit": job.revision.commit}
    rise = engine.increase(baseline.losses, quality.losses)
    found = [
        *_absolute(quality),
        _measured(Metric.PPL_INCREASE, rise, "", quality.method | of),
    ]
    if closeness is not None:
        found.append(_measured(Metric.KLD, closeness.divergence, "", closeness.method | of))
        found.append(_measured(Metric.SAME_TOP, closeness.same_top, "%", closeness.method | of))
        found.append(_measured(Metric.DELTA_P, closeness.delta_p, "%", closeness.method | of))
    return found


def _beside(
    baseline: Baseline, quant: engine.Source, tell: engine.Tell
) -> tuple[engine.Quality, engine.Closeness | None]:
    """Measure a quant of a sane source; raises `EngineError` where its own predictions are useless."""
    try:
        if baseline.base is None:
            return engine.perplexity(quant, settings.EVAL_TEXT, tell), None
        return engine.quality(quant, settings.EVAL_TEXT, baseline.base, tell)
    except engine.Useless as exc:
        raise engine.EngineError(f"The file is not fit to be published: {exc}") from exc


def _errors(
    job: Job,
    source: engine.Source,
    made: Path,
    matrix: engine.Importance | None,
    tell: engine.Tell,
    miss: Miss,
) -> actions.MeasuredErrors | None:
    try:
        # Another level's calibration weighs the errors of those that are made without, too.
        matrix = matrix or importance.load(job.revision, made.parent)
        found = engine.tensor_errors(source, engine.open_source(made), matrix, tell)
    except actions.Stale:
        raise
    except Exception as exc:
        # Whatever it was: the file is whole, and must not be lost for want of figures beside it.
        logger.exception("job %s: errors of tensors were not measured", job.pk)
        miss(f"Errors of tensors were not measured here: {_why(exc)}")
        return None
    return actions.MeasuredErrors(
        found.relative, found.columns, found.method, engine.hardware(), engine.measured_with()
    )


def _why(exc: Exception) -> str:
    return str(exc) if isinstance(exc, engine.EngineError) else "something went wrong in the hub itself"


def _speed(job: Job, made: Path, tell: engine.Tell, miss: Miss) -> Iterable[actions.Measured]:
    try:
        found = _quiet_speeds(job, made, tell, miss)
    except actions.Stale:
        raise
    except Exception as exc:
        # The file is whole and measured for quality; a machine without the engine must not keep it back.
        logger.warning("job %s: speed was not measured", job.pk, exc_info=True)
        miss(f"Speed was not measured here: {_why(exc)}")
        return []
    for sentence in found.missed:
        miss(sentence)
    return [
        _measured(METRICS[of], speed.figure, "tokens/s", speed.method, speed.engine)
        for of, speed in found.of.items()
    ]


def _quiet_speeds(job: Job, made: Path, tell: engine.Tell, miss: Miss) -> engine.Speeds:
    """Measure speed; once more where other programs used the processors, and then take the quieter try."""
    engine.wait_for_kernels()
    best = _deep_speeds(job, made, tell, miss)
    if best.others > QUIET:
        # What took too much deep in the context once would do so again.
        deep = any(of.endswith("_deep") for of in best.of)
        with suppress(engine.EngineError):  # the first try counts all the same
            again = engine.speeds(made, partial(_at_the_end, tell), deep=deep)
            best = min(best, again, key=lambda tried: tried.others)
    if best.others > QUIET:
        share = f"{100 * best.others:.0f} %"
        actions.log(job, f"Note: other programs used {share} of the processors while speed was measured.")
    return best


def _deep_speeds(job: Job, made: Path, tell: engine.Tell, miss: Miss) -> engine.Speeds:
    """Measure speed at both depths; where that takes too much time or memory, with an empty cache alone."""
    try:
        return engine.speeds(made, tell)
    except engine.WorthRetry as exc:
        logger.warning("job %s: speed was not measured deep in the context", job.pk, exc_info=True)
        miss(f"Speed at depth {engine.N_DEPTH} was not measured here: {exc}")
        return engine.speeds(made, partial(_at_the_end, tell), deep=False)


def _at_the_end(tell: engine.Tell, progress: dict[str, Any]) -> None:
    """Tell of a second try without going back on what the first one told."""
    tell(progress | {"done": progress["total"]})


def _kept(revision: Revision, folder: Path) -> Baseline | None:
    """Return what was kept of the source by the present protocol, if its figures are known."""
    key = engine.protocol_key(engine.quality_protocol(settings.EVAL_TEXT.read_bytes()))
    known = revision.measurements.filter(method__protocol_key=key).values_list("metric", flat=True)
    return baselines.load(revision, folder) if {Metric.PPL, Metric.BPB} <= set(known) else None


def _baseline(
    job: Job, source: engine.Source, kept: Baseline | None, folder: Path, tell: engine.Tell, miss: Miss
) -> Baseline:
    """Measure the source, keep what it predicted, and record its figures."""
    base: Path | None = folder / baselines.OWN
    try:
        quality = engine.baseline(source, settings.EVAL_TEXT, folder / baselines.OWN, tell)
    except engine.WorthRetry as exc:
        # For want of disk, most likely: perplexity takes none, and may be known.
        miss(f"KL divergence was not measured here: {exc}")
        if kept is not None:
            return kept
        quality, base = engine.perplexity(source, settings.EVAL_TEXT, tell), None
    baseline = Baseline(quality.losses, base)
    baselines.keep(job.revision, baseline)
    Measurement.objects.bulk_create(
        Measurement(revision=job.revision, **vars(figure)) for figure in _absolute(quality)
    )
    return baseline


def _absolute(quality: engine.Quality) -> list[actions.Measured]:
    """Return the figures that stand alone, of a source as of a quant."""
    found = [
        _measured(Metric.PPL, quality.perplexity, "", quality.method),
        _measured(Metric.BPB, quality.bits_per_byte, "bits/byte", quality.method),
    ]
    # Tokens that stand for no byte of the text have no bits for each; no database takes that for a number.
    return [figure for figure in found if math.isfinite(figure.value)]


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
        engine=engine.measured_with() if engine_versions is None else engine_versions,
        statistics=figure.statistics,
    )
