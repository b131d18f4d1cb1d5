"""Talk to llama.cpp in a process of its own: its crash is an error here, not the end of the caller."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from quantcore.cores import usable_cores
from quantcore.errors import InputError, MissingEngine, ResourceError, UnreadableFile
from quantcore.sources.gguf import open_gguf

COMMAND = ("-m", "quantcore.evaluate.engine_child")
POLL_SECONDS = 0.5  # how often a caller that waits may change its mind

# Called after each run with runs done and all runs, and meanwhile with None.
Heard = Callable[[dict[str, Any] | None], None]


@dataclass(frozen=True)
class Answer:
    """What the engine answered to a job, and what it logged on the way."""

    result: dict[str, Any]
    log: str


def run_job(path: Path, job: dict[str, Any], heard: Heard) -> Answer:
    """Do `job` with the GGUF file `path` in a child process.

    Raises `MissingEngine` when xllamacpp is not installed, `UnreadableFile` when llama.cpp refuses the file,
    `ResourceError` when it crashes.
    """
    # The file is opened here first: our messages about broken files are better than the engine's.
    source = open_gguf(path)
    vocab = len(source.get("tokenizer.ggml.tokens") or ())
    if not vocab:
        raise InputError(f"{path}: has no tokenizer, so llama.cpp cannot run it")
    threads = job.get("threads") or usable_cores()
    trained = source.count("context_length", 0) or job["n_ctx"]
    whole = {**job, "path": str(path), "vocab": vocab, "trained": trained, "threads": threads}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        result = _converse(whole, log, heard)
        log.seek(0)
        text = log.read()
    if "missing" in result:
        raise MissingEngine(f"llama.cpp is not installed ({result['missing']}): pip install xllamacpp")
    if "error" in result:
        raise UnreadableFile(f"{path}: llama.cpp cannot run it: {_complaint(text) or result['error']}")
    if "result" not in result:
        raise ResourceError(
            f"{path}: llama.cpp died ({result['died']}): {_complaint(text) or 'it said nothing'}"
        )
    return Answer(result["result"] | {"threads": threads}, text)


def _converse(job: dict[str, Any], log: IO[str], heard: Heard) -> dict[str, Any]:
    command = [sys.executable, *COMMAND]
    # Unbuffered: a second line that came along with the first would sit in a buffer that select cannot see.
    with subprocess.Popen(
        command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
    ) as child:
        try:
            if child.stdin is None or child.stdout is None:
                raise AssertionError("pipes were asked for")
            with suppress(BrokenPipeError):  # one that died before it listened tells why by its ending
                child.stdin.write(json.dumps(job).encode())
            child.stdin.close()
            for message in _messages(child.stdout, heard):
                if "done" not in message:
                    return message
                heard(message)
        finally:
            child.kill()
        return {"died": _ending(child.wait())}


def _messages(pipe: IO[bytes], heard: Heard) -> Iterator[dict[str, Any]]:
    """Yield the child's messages until it closes the pipe."""
    while True:
        # The child writes whole lines, so that reading one does not block once the pipe has something.
        while not select.select([pipe], [], [], POLL_SECONDS)[0]:
            heard(None)
        line = pipe.readline()
        if not line:
            return
        yield json.loads(line)


def _ending(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _complaint(log: str) -> str:
    """Return the engine's first line that is marked as an error, without its clock."""
    errors = [line.split(" E ", 1)[1].strip() for line in log.splitlines() if " E " in line[:24]]
    return errors[0] if errors else ""
