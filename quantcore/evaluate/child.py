"""Talk to an engine in a process of its own: its crash is an error here, not the end of the caller.

However the conversation ends, by an answer, an error, a limit or an exception of the listener, the process is
gone afterwards. It also ends by itself when this one does.
"""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from quantcore.errors import (
    MissingEngine,
    NotEnoughMemory,
    QuantcoreError,
    ResourceError,
    TookTooLong,
    UnreadableFile,
)

POLL_SECONDS = 0.5  # how often a caller that waits may change its mind
TAIL_LINES = 20  # of the log, that an error carries as its note

# What engines, C++, Python and PyTorch say where memory runs out.
_NO_MEMORY = re.compile(
    r"(?:unable|failed|can.t|cannot) (?:to )?(?:re)?allocate"
    r"|(?:out of|insufficient) memory|bad_alloc|MemoryError",
    re.IGNORECASE,
)

# Called after each run with runs done and all runs, and meanwhile with None.
Heard = Callable[[dict[str, Any] | None], None]


@dataclass(frozen=True)
class Child:
    """How to start an engine, and what to call it: `module` is what `python -m` runs."""

    engine: str
    module: str
    install: str

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.module]


@dataclass(frozen=True)
class Answer:
    """What the engine answered to a job, and what it logged on the way."""

    result: dict[str, Any]
    log: str


def converse(
    child: Child, path: Path, job: dict[str, Any], heard: Heard, limit: float | None = None
) -> Answer:
    """Do `job` with the model at `path`, which may take `limit` seconds.

    Raises `MissingEngine` when the engine is not installed, `UnreadableFile` when it refuses the model,
    `NotEnoughMemory` when that does not suffice, `TookTooLong`, and `ResourceError` when it crashes.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        try:
            result = _talk(child.command, {**job, "path": str(path)}, log, heard, limit)
        except TookTooLong as exc:
            raise _noted(TookTooLong(f"{path}: {child.engine} {exc}"), _text(log)) from None
        text = _text(log)
    if "result" not in result:
        raise _noted(_error(child, path, result, text), text)
    return Answer(result["result"], text)


def _text(log: IO[str]) -> str:
    log.seek(0)
    return log.read()


def _error(child: Child, path: Path, result: dict[str, Any], log: str) -> QuantcoreError:
    if "missing" in result:
        return MissingEngine(f"{child.engine} is not installed ({result['missing']}): {child.install}")
    said = _complaint(log) or result.get("error") or _last_line(log)
    if result.get("signal") == signal.SIGKILL or _NO_MEMORY.search(f"{result.get('error')} {said}"):
        died = f", killed by signal {signal.SIGKILL:d}" if "signal" in result else ""
        return NotEnoughMemory(
            f"{path}: {child.engine} ran out of memory{died} ({said or 'it said nothing'}); "
            "a lesser depth or prompt takes less"
        )
    if "error" in result:
        return UnreadableFile(f"{path}: {child.engine} cannot run it: {said}")
    return ResourceError(f"{path}: {child.engine} died ({result['died']}): {said or 'it said nothing'}")


def _noted(error: QuantcoreError, log: str) -> QuantcoreError:
    """Give an error the end of the log, for whoever looks at its traceback."""
    tail = log.splitlines()[-TAIL_LINES:]
    if tail:
        error.add_note("\n".join(["The engine's last words:", *tail]))
    return error


def _talk(
    command: list[str], job: dict[str, Any], log: IO[str], heard: Heard, limit: float | None
) -> dict[str, Any]:
    # Unbuffered: a second line that came along with the first would sit in a buffer that select cannot see.
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
    ) as child:
        try:
            if child.stdin is None or child.stdout is None:
                raise AssertionError("pipes were asked for")
            # It stays open: the child ends itself when this end is closed, as it is when this process dies.
            with suppress(BrokenPipeError):  # one that died before it listened tells why by its ending
                child.stdin.write(json.dumps(job).encode() + b"\n")
            for message in _messages(child.stdout, heard, limit):
                if "done" not in message:
                    return message
                heard(message)
            return _ending(child.wait())
        finally:
            child.kill()


def _messages(pipe: IO[bytes], heard: Heard, limit: float | None) -> Iterator[dict[str, Any]]:
    """Yield the child's messages until it closes the pipe."""
    began, last = time.monotonic(), "nothing"
    while True:
        # The child writes whole lines, so that reading one does not block once the pipe has something.
        while not select.select([pipe], [], [], POLL_SECONDS)[0]:
            heard(None)
            _check(limit, began, last)
        _check(limit, began, last)
        line = pipe.readline()
        if not line.endswith(b"\n"):
            return
        message = json.loads(line)
        if "done" in message:
            last = f"{message['done']} of {message['total']} runs"
        yield message


def _check(limit: float | None, began: float, last: str) -> None:
    if limit is not None and time.monotonic() - began > limit:
        raise TookTooLong(f"was stopped after {limit:g} s, with {last} done")


def _ending(status: int) -> dict[str, Any]:
    return (
        {"died": f"signal {-status}", "signal": -status} if status < 0 else {"died": f"exit status {status}"}
    )


def _complaint(log: str) -> str:
    """Return llama.cpp's first line that is marked as an error, without its clock."""
    errors = [line.split(" E ", 1)[1].strip() for line in log.splitlines() if " E " in line[:24]]
    return errors[0] if errors else ""


def _last_line(log: str) -> str:
    return next((line.strip() for line in reversed(log.splitlines()) if line.strip()), "")
