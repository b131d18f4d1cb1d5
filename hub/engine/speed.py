"""Speed, as an engine that people use has it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from django.conf import settings

import quantcore
from hub.engine.environment import measured_with
from hub.engine.exchanged import Figure, Speed, SpeedOf, Speeds, Tell, reporter, translated

N_PROMPT, N_GENERATED = 512, 128
N_DEPTH = 4096  # tokens in the cache before the second measurement of speed


def speeds(path: Path, tell: Tell, *, deep: bool = True) -> Speeds:
    """Measure prompt and generation speed in an engine that people use, and `deep` in the context again.

    Raises `NoEngine` where none can run the model here, `WorthRetry` where one took too much time or memory.
    """
    with translated():
        found = quantcore.bench(
            path,
            pp=N_PROMPT,
            tg=N_GENERATED,
            depths=(0, N_DEPTH) if deep else (0,),
            threads=settings.JOB_THREADS,
            limit=settings.ENGINE_SECONDS,
            report=reporter(tell),
        )
    shared = {
        "protocol": "llama-bench",
        "backend": found.backend,
        "threads": found.threads,
        "memory": dataclasses.asdict(found.memory),
        "prompt_tokens": N_PROMPT,
        "generated_tokens": N_GENERATED,
        "flags": dict(found.flags),
    }
    if found.others is not None:
        shared["cpu_used_by_others"] = round(found.others, 2)
    # It says all by itself, such as `xllamacpp 2026.10 (llama.cpp b4711)`.
    name, _, stated = found.engine_version.partition(" ")
    engine = {**measured_with(), name: stated}

    def speed(result: quantcore.SpeedTest) -> Speed:
        method = {"test": result.test, "depth": result.depth, "runs": result.runs, **shared}
        return Speed(Figure(result.mean, result.stdev), method, engine, found.others)

    return Speeds(
        {_speed_of(result): speed(result) for result in found.results},
        tuple(_missed(missed) for missed in found.not_measured),
    )


def _speed_of(result: quantcore.SpeedTest) -> SpeedOf:
    if result.test.startswith("pp"):
        return "pp_deep" if result.depth else "pp"
    return "tg_deep" if result.depth else "tg"


def _missed(missed: quantcore.NotMeasured) -> str:
    what = f"Speed at {missed.test}" if missed.test else f"Speed in {missed.engine}"
    return f"{what} was not measured here: {missed.why}"
