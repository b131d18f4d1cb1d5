"""The life of a job, one step at a time. Writes are fenced: they match no row once a newer attempt began."""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.utils import timezone

from hub.files import without_paths
from hub.jobs.models import STEPS, Job, JobEvent, Stage, State


class IllegalStep(Exception):
    """The table of steps does not allow this change; a bug, never a user's doing."""


class Stale(Exception):
    """The job has moved on under another hand; whoever gets this must stop."""


def move(job: Job, to: State, text: str, *, kind: str = JobEvent.Kind.STATE, **changes: Any) -> None:
    """Change a job's state: the one function that does. Refreshes `job`, and adds a line to its log."""
    if to not in STEPS[job.state]:
        raise IllegalStep(f"{job}: {job.state} to {to}")
    with transaction.atomic():
        row = Job.objects.filter(pk=job.pk, state=job.state, attempt=job.attempt)
        if not row.update(state=to, **changes):
            raise Stale(f"{job} is no longer {job.state} in attempt {job.attempt}")
        JobEvent.objects.create(job=job, kind=kind, stage=job.stage, text=text)
        # Before the commit: afterwards another worker may have it, whose attempt is not ours to know.
        job.refresh_from_db()


def claim(job_id: str, worker: str) -> Job | None:
    """Begin a new attempt at a queued job, or return None if it is not to be had. Only one caller wins."""
    job = Job.objects.filter(pk=job_id, state=State.QUEUED).first()
    if job is None:
        return None
    now = timezone.now()
    try:
        move(
            job,
            State.RUNNING,
            "A worker took the job."
            if not job.attempt
            else f"A worker took the job again (attempt {job.attempt + 1}).",
            attempt=job.attempt + 1,
            worker=worker,
            started=now,
            heartbeat=now,
            finished=None,
            stage="",
            progress={},
            error="",
            error_kind="",
        )
    except Stale:
        return None
    return job


def beat(job: Job) -> bool:
    """Say that the worker lives; return whether someone asked to cancel. Raises `Stale` like all of these."""
    _update(job, heartbeat=timezone.now())
    return Job.objects.filter(pk=job.pk, cancel_requested=True).exists()


def enter(job: Job, stage: Stage) -> None:
    """Begin a stage."""
    with transaction.atomic():
        _update(job, stage=stage, progress={})
        JobEvent.objects.create(job=job, kind=JobEvent.Kind.STAGE, stage=stage, text=f"{stage.label} began.")
    job.stage = stage


def record(job: Job, progress: dict[str, Any]) -> None:
    """Store the newest progress of the running stage."""
    _update(job, progress=progress)


def keep_plan(job: Job, plan: dict[str, Any]) -> None:
    """Store the plan, so that the page can show it before the work is done."""
    _update(job, plan=plan)


def log(job: Job, text: str) -> None:
    """Add a line to the job's log, which everybody can read."""
    JobEvent.objects.create(job=job, kind=JobEvent.Kind.LOG, stage=job.stage, text=without_paths(text))


def fail(job: Job, kind: Job.ErrorKind, text: str) -> None:
    """End a job without a result, with the sentence that says why."""
    move(
        job,
        State.FAILED,
        text,
        kind=JobEvent.Kind.ERROR,
        error=text,
        error_kind=kind,
        finished=timezone.now(),
        cancel_requested=False,
    )


def end_cancelled(job: Job) -> None:
    """End a running job that someone called off."""
    move(job, State.CANCELLED, "The job is cancelled.", finished=timezone.now(), cancel_requested=False)


def release(job: Job, text: str, **changes: Any) -> None:
    """Put a running job back into the queue."""
    move(job, State.QUEUED, text, stage="", progress={}, worker="", heartbeat=None, **changes)


def _update(job: Job, **changes: Any) -> None:
    row = Job.objects.filter(pk=job.pk, state=State.RUNNING, attempt=job.attempt)
    if not row.update(**changes):
        raise Stale(f"{job} is no longer running attempt {job.attempt}")
