"""Speed as llama-bench reports it, measured by the engine that will run the model."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quantcore.errors import InputError, MissingEngine
from quantcore.evaluate.engines import Asked, Engine, Found, registry
from quantcore.evaluate.engines.base import Sampled
from quantcore.evaluate.engines.kinds import kind_of
from quantcore.evaluate.engines.llamacpp import run_job
from quantcore.evaluate.memory import Buffer, Memory
from quantcore.evaluate.others import Others
from quantcore.progress import Progress, Report, ignore, seconds_left

__all__ = ["Buffer", "Memory", "NotMeasured", "Speed", "SpeedTest", "bench", "generate", "trained_context"]


@dataclass(frozen=True)
class SpeedTest:
    """Tokens per second of one test: `pp512` reads a prompt of 512 tokens, `tg128` generates 128.

    `depth` tokens were in the cache before; where there were any, the name ends in them: `tg128 @ d4096`.
    """

    test: str
    mean: float
    stdev: float
    runs: int
    samples: tuple[float, ...]
    depth: int = 0


@dataclass(frozen=True)
class NotMeasured:
    """What there is no figure of, and why: a test, a depth, or (`test` is empty) all of an engine."""

    engine: str
    test: str
    why: str


@dataclass(frozen=True)
class Speed:
    """The speed of a model in an engine, with all that a reader needs to judge it; `flags` are its settings.

    `others` is the share of the processors' time, 0 to 1, that other programs used meanwhile; None where
    nobody can tell.
    """

    engine: str
    engine_version: str
    backend: str
    threads: int
    results: tuple[SpeedTest, ...]
    memory: Memory
    others: float | None = None
    not_measured: tuple[NotMeasured, ...] = ()
    flags: Mapping[str, object] = field(default_factory=dict)


def bench(
    path: Path,
    *,
    pp: int = 512,
    tg: int = 128,
    depths: tuple[int, ...] = (0,),
    runs: int = 5,
    threads: int | None = None,
    engine: str | None = None,
    limit: float | None = None,
    report: Report = ignore,
) -> Speed:
    """Measure prompt processing and generation, behind each of `depths` tokens, after a warm-up run each.

    Prompts are random tokens, nothing but the depth is cached, generation never stops early. Without `engine`
    the first that can run the model here does. A depth that the model's context has no room for is lowered
    to what it has, and that is said. Raises `MissingEngine` when no engine can run the model here, and
    `TookTooLong` after `limit` seconds.
    """
    if min(pp, tg, runs) < 1 or min(depths, default=-1) < 0:
        raise InputError(
            f"prompt {pp}, generation {tg} and runs {runs} must all be at least 1, depths {depths} at least 0"
        )
    path = Path(path)
    chosen, others_lack = _choose(path, engine)
    within, lowered = _within(depths, chosen.trained(path), max(pp, tg))
    asked = Asked(pp, tg, within, runs, threads, limit=limit)
    others = Others()
    found = chosen.measure(path, asked, _Listener(asked, report))
    share = others.share()
    missed = [NotMeasured(chosen.name, f"depth {depth}", why) for depth, why in lowered.items()]
    missed += [NotMeasured(chosen.name, _name(s), s.why) for s in found.sampled if not s.samples]
    return _speed(chosen, found, share, (*missed, *others_lack))


def trained_context(path: Path) -> int:
    """Return how many tokens in a row a model was trained on; 0 where nobody says."""
    kind = kind_of(Path(path))
    loading = [engine for engine in registry().values() if kind in engine.kinds and not engine.lacking(kind)]
    return loading[0].trained(Path(path)) if loading else 0


def generate(path: Path, prompt: str, count: int, *, threads: int | None = None) -> str:
    """Return the `count` most likely tokens that llama.cpp writes after `prompt`, as text."""
    # Room for the prompt: a token is at least one byte of text.
    n_ctx = len(prompt.encode()) + count + 8
    job = {"kind": "generate", "prompt": prompt, "count": count, "threads": threads, "n_ctx": n_ctx}
    return str(run_job(Path(path), job, lambda _message: None).result["text"])


def _choose(path: Path, name: str | None) -> tuple[Engine, list[NotMeasured]]:
    """Return the engine to measure with, and what each other one lacks that loads such models."""
    kind = kind_of(path)
    loading = [engine for engine in registry().values() if kind in engine.kinds]
    if not loading:
        raise InputError(f"{path}: no engine that is known here loads {kind} models")
    if name is not None:
        loading = [engine for engine in loading if engine.name == name]
    if not loading:
        raise InputError(f"{path}: {name} does not load {kind} models")
    lacks = {engine.name: engine.lacking(kind) for engine in loading}
    able = [engine for engine in loading if not lacks[engine.name]]
    if not able:
        raise MissingEngine(f"{path}: not measured here: {'; '.join(lacks.values())}")
    return able[0], [NotMeasured(engine, "", why) for engine, why in lacks.items() if why]


def _within(depths: tuple[int, ...], trained: int, longest: int) -> tuple[tuple[int, ...], dict[int, str]]:
    """Return the depths with room for `longest` more tokens in the trained context, and why others fail."""
    most = max(trained - longest, 0) if trained else max(depths)
    lowered = {
        depth: f"the model's context of {trained} tokens has no room for {longest} more; "
        f"measured at {most} instead"
        for depth in depths
        if depth > most
    }
    return tuple(dict.fromkeys(min(depth, most) for depth in sorted(depths))), lowered


def _speed(engine: Engine, found: Found, share: float | None, missed: tuple[NotMeasured, ...]) -> Speed:
    return Speed(
        engine=engine.name,
        engine_version=found.engine_version,
        backend=found.backend,
        threads=found.threads,
        results=tuple(_summary(sampled) for sampled in found.sampled if sampled.samples),
        memory=found.memory,
        others=share,
        not_measured=missed,
        flags=found.flags,
    )


def _summary(sampled: Sampled) -> SpeedTest:
    samples = sampled.samples
    stdev = statistics.stdev(samples) if len(samples) > 1 else 0.0
    mean = statistics.fmean(samples)
    return SpeedTest(_name(sampled), mean, stdev, len(samples), samples, sampled.depth)


def _name(sampled: Sampled) -> str:
    return f"{sampled.test} @ d{sampled.depth}" if sampled.depth else sampled.test


class _Listener:
    """Turn what a child tells into progress; None means that nothing is new but the time."""

    def __init__(self, asked: Asked, report: Report) -> None:
        self.report, self.started = report, time.monotonic()
        total = 2 * len(asked.depths) * (asked.runs + 1)
        self.last = Progress("bench", 0, total, "runs", 0.0)

    def __call__(self, message: dict[str, Any] | None) -> None:
        seconds = time.monotonic() - self.started
        told = {} if message is None else {"done": message["done"], "item": message["item"]}
        self.last = replace(self.last, seconds=seconds, **told)
        left = seconds_left(self.last.done, self.last.total, seconds)
        self.last = replace(self.last, seconds_left=left)
        self.report(self.last)
