"""Start the whole hub on one machine and keep it running: broker, worker and web server."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from django.conf import settings
from django.core.management import call_command
from django.db import DatabaseError, connections

from hub import broker
from hub.cli._errors import Failed
from hub.processes import Service

READY_SECONDS = 120.0
# `make up` promises to be gone within ten seconds of a Ctrl-C.
STOP_SECONDS = 8.0
# Each download holds a thread for as long as it lasts, and pages must come beside them.
WEB_THREADS = 64


def say(text: str) -> None:
    """Print a line at once, whether or not a terminal is listening."""
    print(text, flush=True)  # noqa: T201


def up() -> None:
    """Start everything, say when it is ready, and stay until told to stop."""
    with _only_one(settings.DATA_DIR), _told_to_stop() as told:
        _require_free_port()
        _prepare()
        started: list[Service] = []
        compiler: Service | None = None
        address = _broker_address(started)
        try:
            _start(started, address.url)
            compiler = _compile_kernels()
            _wait_ready(started, told)
            if not told():
                _first_admin()
                say(f"Quanthub is ready at {_url()}")
            while not told():
                for service in started:
                    service.keep_running(say)
                if compiler and not compiler.is_running:
                    say(_compiled(compiler))
                    compiler = None
                time.sleep(0.2)
            say("Stopping ...")
        finally:
            if compiler:
                compiler.end()
            _stop(started)
            if address.scratch:
                shutil.rmtree(address.scratch, ignore_errors=True)


@contextmanager
def _only_one(data: Path) -> Iterator[None]:
    """Hold the data folder's lock; the kernel drops it however this process ends."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (data / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise Failed(
                f"Quanthub is running on {data} already ({lock.read().strip() or 'starting'}). "
                "Stop it first, or give another folder with --data."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, {_url()}\n")
        lock.flush()
        yield


@contextmanager
def _told_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C or a terminate signal has come."""
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _url() -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.HOST, settings.HOST)  # noqa: S104
    return f"http://{_with_port(host)}"


def _with_port(host: str) -> str:
    return f"[{host}]:{settings.PORT}" if ":" in host else f"{host}:{settings.PORT}"


def _require_free_port() -> None:
    family = socket.AF_INET6 if ":" in settings.HOST else socket.AF_INET
    with socket.socket(family) as probe:
        # As the web server does: a port that only lingers after a restart is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.HOST, settings.PORT))
        except OSError as exc:
            raise Failed(_why_not_bound(exc)) from exc


def _why_not_bound(exc: OSError) -> str:
    if isinstance(exc, socket.gaierror) or exc.errno == errno.EADDRNOTAVAIL:
        return (
            f"QUANTHUB_HOST is {settings.HOST}, which is no address of this machine. "
            "Use 127.0.0.1 for this machine alone, or 0.0.0.0 for all of its networks."
        )
    return (
        f"Port {settings.PORT} of {settings.HOST} is not free ({exc.strerror}). "
        "Choose another, such as PORT=8001 make up."
    )


def _prepare() -> None:
    """Bring database and static files up to date; see that there is something to try."""
    from hub import blobs, engine
    from hub.catalog.actions import import_demo
    from hub.catalog.models import Model

    say(f"Preparing {settings.DATA_DIR} ...")
    try:
        call_command("migrate", interactive=False, verbosity=0)
        call_command("collectstatic", interactive=False, verbosity=0)
        # Who deletes the demo later does not want it back at the next start.
        if not Model.objects.exists():
            import_demo()
    except DatabaseError as exc:
        raise Failed(f"The database cannot be used: {exc}") from exc
    except (engine.EngineError, blobs.BlobError) as exc:
        raise Failed(f"The demo model cannot be imported: {exc}") from exc
    finally:
        connections.close_all()


def _first_admin() -> None:
    """See that someone can sign in. Last of all: a start that fails must not use up the one-time password."""
    from hub.accounts import actions

    given = settings.ADMIN_PASSWORD
    try:
        password = actions.first_admin(given)
    except DatabaseError as exc:
        raise Failed(f"The database cannot be used: {exc}") from exc
    finally:
        connections.close_all()
    if password:
        shown = "the password from QUANTHUB_ADMIN_PASSWORD" if given else f"the password {password}"
        say(f"The first administrator is admin, with {shown}" + ("" if given else " (shown this once)"))


def _broker_address(started: list[Service]) -> broker.Broker:
    """Start the private broker, unless an address was given."""
    if settings.BROKER_URL:
        if not broker.answers(settings.BROKER_URL):
            raise Failed("The broker at REDIS_URL does not answer. Start it, or unset REDIS_URL.")
        return broker.Broker((), settings.BROKER_URL)
    try:
        found = broker.prepare(settings.DATA_DIR)
    except broker.NoBroker as exc:
        raise Failed(str(exc)) from exc
    service = Service("broker", found.command, settings.LOG_DIR / "broker.log")
    service.start()
    started.append(service)
    return found


def _start(started: list[Service], broker_url: str) -> None:
    environment = {
        "REDIS_URL": broker_url,
        "QUANTHUB_DATA": str(settings.DATA_DIR),
        "PYTHONUNBUFFERED": "1",
    }
    # gunicorn would read options of another project from here.
    environment["GUNICORN_CMD_ARGS"] = ""
    commands = {
        "worker": [sys.executable, "-m", "hub.cli", "worker"],
        "web server": [
            *(sys.executable, "-m", "gunicorn", "hub.wsgi"),
            *("--bind", _with_port(settings.HOST)),
            *("--worker-class", "gthread", "--threads", str(WEB_THREADS)),
            *("--graceful-timeout", "3", "--no-control-socket"),
        ],
    }
    for name, command in commands.items():
        log = settings.LOG_DIR / f"{name.split()[0]}.log"
        service = Service(name, command, log, environment)
        service.start()
        started.append(service)


def _compile_kernels() -> Service | None:
    """Compile the engine's kernels beside the hub, where that was not done when it was installed."""
    from hub import engine

    if not engine.kernels_missing():
        return None
    say("Compiling the engine's kernels for this processor, once; until that is done quants take longer.")
    command = [sys.executable, "-m", "quantcore", "kernels", "--build"]
    service = Service("kernel compiler", command, settings.LOG_DIR / "kernels.log")
    service.start()
    return service


def _compiled(compiler: Service) -> str:
    from hub import engine

    if engine.kernels_missing():
        return f"The engine's kernels could not be compiled, and it does without. See {compiler.log}"
    return "The engine's kernels are compiled."


def _wait_ready(started: list[Service], told: Callable[[], bool]) -> None:
    """Wait until the pages answer and a worker listens."""
    deadline = time.monotonic() + READY_SECONDS
    while not told() and not _is_ready():
        for service in started:
            if not service.is_running:
                raise Failed(f"The {service.name} {service.ending()}. Its log is {service.log}")
        if time.monotonic() > deadline:
            raise Failed(
                f"The hub was not ready after {READY_SECONDS:.0f} s. Its logs are in {settings.LOG_DIR}"
            )
        time.sleep(0.2)


def _is_ready() -> bool:
    try:
        with urllib.request.urlopen(f"{_url()}/readyz", timeout=5) as answer:  # noqa: S310
            return bool(json.load(answer)["worker"])
    except (OSError, ValueError, KeyError):
        return False


def _stop(started: list[Service]) -> None:
    """Stop web and worker first, together; the broker last, as they talk to it while they stop."""
    deadline = time.monotonic() + STOP_SECONDS
    others = [service for service in started if service.name != "broker"]
    for group in (others, [service for service in started if service.name == "broker"]):
        for service in group:
            service.ask_to_stop()
        for service in group:
            service.wait_stopped(max(1.0, deadline - time.monotonic()))
