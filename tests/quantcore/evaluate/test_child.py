"""An engine runs in a process of its own: whatever befalls it is an error of ours, and nothing is left."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from quantcore.errors import (
    Cancelled,
    MissingEngine,
    NotEnoughMemory,
    ResourceError,
    TookTooLong,
    UnreadableFile,
)
from quantcore.evaluate.child import Child, converse

PATH = Path("model.gguf")
ENGINE = Child("llama.cpp", "quantcore.evaluate.children.llamacpp", "pip install xllamacpp")


def answered_by(monkeypatch, code):
    """Let a process that runs `code` answer in the place of the one that holds the engine."""
    monkeypatch.setattr(Child, "command", property(lambda _child: [sys.executable, "-c", code]))


def ask(heard=lambda _message: None, limit=None):
    return converse(ENGINE, PATH, {"kind": "bench"}, heard, limit)


def is_running(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


LOAD_FAILS = (
    "import sys; sys.stderr.write('0.00.1 E ggml_aligned_malloc: "
    "insufficient memory (attempted to allocate 180.00 MB)\\n0.00.2 E srv load_model: failed to load\\n');"
)


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [
        ("import os; os.close(0); os.abort()", ResourceError, r"llama\.cpp died \(signal 6\)"),
        ("import os; os.abort()", ResourceError, r"llama\.cpp died \(signal 6\): it said nothing"),
        ("import sys; sys.exit('no card')", ResourceError, r"died \(exit status 1\): no card"),
        ("""print('{"missing": "no xllamacpp"}')""", MissingEngine, r"pip install xllamacpp"),
        ("""print('{"error": "RuntimeError: no"}')""", UnreadableFile, "cannot run it: RuntimeError: no"),
        ("""print('{"result": {"sam', end='')""", ResourceError, r"died \(exit status 0\)"),
        ("import os; os.kill(os.getpid(), 9)", NotEnoughMemory, r"out of memory, killed by signal 9"),
        (f"""{LOAD_FAILS} print('{{"error": "RuntimeError: no"}}')""", NotEnoughMemory, "allocate 180.00 MB"),
        (
            """print('{"error": "RuntimeError: can\\'t allocate memory: you tried"}')""",
            NotEnoughMemory,
            "tried",
        ),
        ("import sys; sys.exit('terminate called: std::bad_alloc')", NotEnoughMemory, "bad_alloc"),
    ],
)
def test_what_befalls_the_engine_is_an_error_of_ours(monkeypatch, code, error, said):
    answered_by(monkeypatch, code)

    with pytest.raises(error, match=said) as caught:
        ask()
    assert type(caught.value) is error


def test_the_end_of_the_log_is_kept_as_a_note(monkeypatch):
    answered_by(
        monkeypatch, "import sys; [print('line', n, file=sys.stderr) for n in range(99)]; sys.exit(3)"
    )

    with pytest.raises(ResourceError) as caught:
        ask()
    assert caught.value.__notes__[0].splitlines()[1:] == [f"line {n}" for n in range(79, 99)]


def test_an_engine_is_stopped_at_its_limit(monkeypatch):
    """It is told how far it came, and is gone."""
    code = """import os, time; print('{"done": 3, "total": 12, "item": "%d"}' % os.getpid(), flush=True)"""
    answered_by(monkeypatch, f"{code}; time.sleep(60)")
    told = []

    with pytest.raises(
        TookTooLong, match=r"model\.gguf: llama\.cpp was stopped after 0\.7 s, with 3 of 12 runs"
    ):
        ask(told.append, limit=0.7)
    assert not is_running(int(told[0]["item"]))


def test_an_engine_that_never_stops_talking_is_stopped_too(monkeypatch):
    answered_by(monkeypatch, """while 1: print('{"done": 1, "total": 2, "item": ""}', flush=True)""")

    with pytest.raises(TookTooLong):
        ask(limit=0.5)


def test_a_listener_that_has_enough_ends_the_engine(monkeypatch):
    code = """import os, time; print('{"done": 1, "total": 2, "item": "%d"}' % os.getpid(), flush=True)"""
    answered_by(monkeypatch, f"{code}; time.sleep(60)")
    told = []

    def stop(message):
        told.append(message)
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        ask(stop)
    assert not is_running(int(told[0]["item"]))


def test_lines_that_come_together_are_heard_at_once(monkeypatch):
    """An answer behind another line is not kept waiting until the child ends."""
    line = '{"done": 1, "total": 2, "item": "x"}\\n{"missing": "no xllamacpp"}\\n'
    answered_by(
        monkeypatch, f"import sys, time; sys.stdout.write('{line}'); sys.stdout.flush(); time.sleep(60)"
    )
    began = time.monotonic()

    with pytest.raises(MissingEngine):
        ask()
    assert time.monotonic() - began < 20


def test_an_engine_ends_with_whoever_asked_it(tmp_path):
    """Also where that was killed and could clean up nothing."""
    told = tmp_path / "pid"
    job = (
        "import os, time; from quantcore.evaluate.children import serve;"
        f"serve({{'x': lambda *_: (open({str(told)!r}, 'w').write(str(os.getpid())), time.sleep(60))}})"
    )
    asker = (
        "import sys, subprocess, time; from quantcore.evaluate.child import _talk;"
        f"_talk([sys.executable, '-c', {job!r}], {{'kind': 'x'}}, None, lambda _: None, None)"
    )
    process = subprocess.Popen([sys.executable, "-c", asker])
    wait_until(lambda: told.exists() and told.read_text())

    process.kill()
    process.wait()

    wait_until(lambda: not is_running(int(told.read_text())))


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
