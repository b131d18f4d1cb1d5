"""The folder that one attempt at a job works in. Attempts never share one: a straggler can spoil nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from django.conf import settings

from hub.jobs.models import Job


def folder_name(job_id: str, attempt: int) -> str:
    return f"{job_id}-{attempt}"


def folder(job: Job) -> Path:
    return Path(settings.WORK_DIR) / folder_name(job.pk, job.attempt)


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
