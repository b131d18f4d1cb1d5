"""Speed as llama-bench reports it, measured by llama.cpp itself."""

from __future__ import annotations

import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcore.errors import InputError
from quantcore.evaluate.engine import run_job
from quantcore.evaluate.others import Others
from quantcore.progress import Progress, Report, ignore, seconds_left

SEED = 1  # of the random prompts: every run of a measurement can be repeated

BUFFERS = {
    "model": r"model buffer size\s*=\s*([\d.]+) MiB",
    "kv": r"KV buffer size\s*=\s*([\d.]+) MiB",
    "compute": r"compute buffer size\s*=\s*([\d.]+) MiB",
}


@dataclass(frozen=True)
class SpeedTest:
    """Tokens per second of one test: `pp512` reads a prompt of 512 tokens, `tg128` generates 128."""

    test: str
    mean: float
    stdev: float
    runs: int
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Memory:
    """What the engine said it allocated, in bytes; None where it did not say."""

    model: int | None
    kv: int | None
    compute: int | None


@dataclass(frozen=True)
class Speed:
    """The speed of a model in an engine, with all that a reader needs to judge it.

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


def bench(
    path: Path,
    *,
    pp: int = 512,
    tg: int = 128,
    runs: int = 5,
    threads: int | None = None,
    report: Report = ignore,
) -> Speed:
    """Measure prompt processing and generation of a GGUF file with llama.cpp, after a warm-up run each.

    Prompts are random tokens, nothing is cached, generation never stops early. Raises `MissingEngine` when
    xllamacpp is not installed.
    """
    if min(pp, tg, runs) < 1:
        raise InputError(f"prompt {pp}, generation {tg} and runs {runs} must all be at least 1")
    path = _file(path)
    started, last = time.monotonic(), Progress("bench", 0, 2 * (runs + 1), "runs", 0.0)

    def heard(message: dict[str, Any] | None) -> None:
        nonlocal last
        seconds = time.monotonic() - started
        done = last.done if message is None else message["done"]
        item = last.item if message is None else message["item"]
        last = Progress(
            "bench", done, last.total, "runs", seconds, seconds_left(done, last.total, seconds), item
        )
        report(last)

    n_ctx = max(pp, tg + 1) + 8
    job: dict[str, Any] = {"kind": "bench", "pp": pp, "tg": tg, "runs": runs, "seed": SEED}
    job |= {"threads": threads, "n_ctx": n_ctx, "stretch": True}
    others = Others()
    answer = run_job(path, job, heard)
    share = others.share()
    result = answer.result
    return Speed(
        engine="llama.cpp",
        engine_version=result["engine_version"],
        backend=result["backend"],
        threads=result["threads"],
        results=tuple(_summary(test, samples) for test, samples in result["samples"].items()),
        memory=Memory(**{part: _mebibytes(pattern, answer.log) for part, pattern in BUFFERS.items()}),
        others=share,
    )


def generate(path: Path, prompt: str, count: int, *, threads: int | None = None) -> str:
    """Return the `count` most likely tokens that llama.cpp writes after `prompt`, as text."""
    # Room for the prompt: a token is at least one byte of text.
    n_ctx = len(prompt.encode()) + count + 8
    job = {"kind": "generate", "prompt": prompt, "count": count, "threads": threads, "n_ctx": n_ctx}
    return str(run_job(_file(path), job, lambda _message: None).result["text"])


def _file(path: Path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path}: is a directory; llama.cpp runs GGUF files: make one with `quantcore convert`"
        )
    return path


def _summary(test: str, samples: list[float]) -> SpeedTest:
    stdev = statistics.stdev(samples) if len(samples) > 1 else 0.0
    return SpeedTest(test, statistics.fmean(samples), stdev, len(samples), tuple(samples))


def _mebibytes(pattern: str, log: str) -> int | None:
    """Return the sum over devices in bytes."""
    found = re.findall(pattern, log)
    return round(sum(map(float, found)) * (1 << 20)) if found else None
