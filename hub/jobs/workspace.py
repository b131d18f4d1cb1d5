"""The folder and the log of an attempt at a job. Attempts never share them: a straggler can spoil nothing."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from hub.jobs.models import Job

LOGS_ARE_KEPT_SECONDS = 30 * 24 * 3600.0


def folder_name(job_id: str, attempt: int) -> str:
    return f"{job_id}-{attempt}"


def folder(job: Job) -> Path:
    return Path(settings.WORK_DIR) / folder_name(job.pk, job.attempt)


def log_file(job: Job) -> Path:
    """Return where the attempt's own process writes what happens, tracebacks included."""
    return _logs() / f"{folder_name(job.pk, job.attempt)}.log"


def _logs() -> Path:
    return Path(settings.LOG_DIR) / "jobs"


def drop_old_logs() -> None:
    """Remove logs that nobody has written to for a month."""
    old = time.time() - LOGS_ARE_KEPT_SECONDS
    for path in _logs().glob("*.log"):
        if path.stat().st_mtime < old:
            path.unlink(missing_ok=True)


def wipe(job: Job) -> None:
    """Remove what the attempt left."""
    shutil.rmtree(folder(job), ignore_errors=True)


@contextmanager
def fresh(job: Job) -> Iterator[Path]:
    """Yield an empty folder, and remove it in the end."""
    wipe(job)
    place = folder(job)
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        wipe(job)
