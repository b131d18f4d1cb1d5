"""What templates ask of a job beyond its columns."""

from __future__ import annotations

from django import template
from django.utils import timezone

from hub.jobs.models import Job, State

register = template.Library()


@register.filter
def took(job: Job) -> float | None:
    """Return the seconds of the newest attempt so far, or None if there was none."""
    if job.started is None:
        return None
    return ((job.finished or timezone.now()) - job.started).total_seconds()


@register.filter
def status(job: Job) -> str:
    """Return in a few words what a job is doing or how it ended."""
    if job.state == State.QUEUED:
        return "Waits for a worker"
    if job.state == State.RUNNING:
        return "Stopping" if job.cancel_requested else job.get_stage_display() or "Starting"
    if job.state == State.FAILED and job.stage:
        return f"Failed at {job.get_stage_display().lower()}"
    return job.get_state_display()
