"""What Celery runs. Tasks take ids, may run twice, and hold no rules."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable

from celery.signals import worker_ready, worker_shutting_down
from django.conf import settings
from django.db import close_old_connections

from hub import blobs
from hub.celery import app
from hub.jobs import actions, workspace
from hub.jobs.supervise import supervise
from hub.jobs.wake import TASK

LONGEST_BETWEEN_RECONCILING = 15.0
BETWEEN_SWEEPS = 3600.0
stopping = threading.Event()
logger = logging.getLogger(__name__)


@app.task(name=TASK)
def work(job_id: str) -> None:
    """Take a job and see it to its end; a second message for the same job finds nothing to take."""
    if stopping.is_set():
        return
    job = actions.claim(job_id, f"{socket.gethostname()}:{os.getpid()}")
    if job is None:
        logger.info("job %s: not waiting any more", job_id)
        return
    supervise(job, stopping)


@worker_shutting_down.connect
def _stop(**_signal: object) -> None:
    """Let the running child stop, so that its job goes back to the queue before this process ends."""
    stopping.set()


@worker_ready.connect
def _start_reconciling(**_signal: object) -> None:
    threading.Thread(target=_reconcile_for_ever, name="reconciler", daemon=True).start()


def _reconcile_for_ever() -> None:
    pause = min(LONGEST_BETWEEN_RECONCILING, settings.LEASE_SECONDS / 2)
    next_sweep = 0.0
    while not stopping.is_set():
        if time.monotonic() >= next_sweep:
            _safely(blobs.sweep)
            _safely(workspace.drop_old_logs)
            next_sweep = time.monotonic() + BETWEEN_SWEEPS
        _safely(actions.reconcile)
        stopping.wait(pause)


def _safely(chore: Callable[[], object]) -> None:
    """Run a chore; a database that is away for a moment must not end the thread."""
    close_old_connections()
    try:
        chore()
    except Exception:
        logger.exception("a chore of the reconciler failed; it is tried again")
    finally:
        close_old_connections()
