"""The processes that hold engines: `python -m quantcore.evaluate.children.llamacpp`, and one for each other.

A child reads one job, a line of JSON, from standard input; it answers with JSON lines on standard output:
`{"done", "total", "item"}` after each run, then `{"result"}`, `{"missing"}` or `{"error"}`. All else that the
engine prints goes to standard error. It ends when its standard input is closed.

Speed is measured here for all engines alike, by llama-bench's protocol [1]: prompts are random tokens; a
depth is filled once, and neither that nor the first run of each test, which warms up, is counted.

1. llama.cpp, tools/llama-bench/llama-bench.cpp.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

Emit = Callable[[dict[str, Any]], None]
Work = Callable[[dict[str, Any], Emit], dict[str, Any]]
Tokens = list[int]


class CannotTime(Exception):
    """The engine has no way to run this test of this model; the others are measured all the same."""


class Runner(Protocol):
    """An engine with a model in it, as speed is measured."""

    def fill(self, prefix: Tokens) -> None:
        """Fill the cache with `prefix`, forgetting what was in it."""

    def prefill(self, prefix: Tokens, prompt: Tokens) -> float:
        """Return tokens per second of reading `prompt` behind a cache that holds `prefix`.

        Raises `CannotTime` where the engine cannot go back to `prefix` once it has gone on.
        """

    def decode(self, prefix: Tokens, first: int, count: int) -> float:
        """Return tokens per second of `count` single steps, from the token `first` behind `prefix`."""


def serve(jobs: Mapping[str, Work]) -> None:
    """Do the job that stands on standard input."""
    _die_with_parent()
    # Native code writes to descriptor 1 as it likes; answers go to a copy that only this module knows.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_wait_for_parent, daemon=True).start()
    try:
        emit({"result": jobs[job["kind"]](job, emit)})
    except ImportError as exc:
        emit({"missing": str(exc)})
    except Exception as exc:  # noqa: BLE001 - whatever the engine raises is what the caller must hear
        emit({"error": f"{type(exc).__name__}: {exc}"})


def _die_with_parent() -> None:
    """Ask the kernel to end this process with its parent, even while native code holds the interpreter."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _wait_for_parent() -> None:
    # Nothing more is ever written to it.
    while os.read(0, 1):
        pass
    os._exit(1)


def measure(runner: Runner, job: dict[str, Any], emit: Emit) -> list[dict[str, Any]]:
    """Return `{"test", "depth", "samples"}` for each test at each depth, or `{"test", "depth", "why"}`."""
    source = random.Random(job["seed"])  # noqa: S311 - any tokens do, as long as they can be drawn again
    pp, tg, tries = job["pp"], job["tg"], job["runs"] + 1

    def draw(length: int) -> Tokens:
        return [source.randrange(job["vocab"]) for _ in range(length)]

    tests: dict[str, Callable[[Tokens], float]] = {
        f"pp{pp}": lambda prefix: runner.prefill(prefix, draw(pp)),
        f"tg{tg}": lambda prefix: runner.decode(prefix, draw(1)[0], tg),
    }
    found: list[dict[str, Any]] = []
    total = 2 * len(job["depths"]) * tries
    for depth in job["depths"]:
        prefix = draw(depth)
        if prefix:
            emit({"done": len(found) * tries, "total": total, "item": f"filling {depth} tokens"})
            runner.fill(prefix)
        for name, test in tests.items():
            item = f"{name} at {depth}" if depth else name

            def tell(run: int, item: str = item) -> None:
                emit({"done": len(found) * tries + run, "total": total, "item": item})

            found.append({"test": name, "depth": depth, **_samples(partial(test, prefix), tries, tell)})
    return found


def _samples(test: Callable[[], float], tries: int, tell: Callable[[int], None]) -> dict[str, Any]:
    rates = []
    try:
        for run in range(1, tries + 1):
            rates.append(test())
            tell(run)
    except CannotTime as exc:
        return {"why": str(exc)}
    return {"samples": rates[1:]}  # the first one warms up
