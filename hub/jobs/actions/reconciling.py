"""Putting right what crashes, lost messages and pulled plugs have left. Safe at any time, by anyone."""

from __future__ import annotations

import logging
import shutil
from datetime import timedelta
from pathlib import Path

from django.conf import settings
from django.utils import timezone

from hub.jobs import wake, workspace
from hub.jobs.actions.steps import Stale, end_cancelled, fail, release
from hub.jobs.models import Job, Stage, State

MOST_LOSSES = 3
logger = logging.getLogger(__name__)


def reconcile() -> None:
    """Requeue jobs whose worker fell silent, wake workers for those that wait, wipe orphaned folders."""
    _recover_lost()
    _resend_waiting()
    _wipe_orphans()


def _recover_lost() -> None:
    silent = timezone.now() - timedelta(seconds=settings.LEASE_SECONDS)
    for job in Job.objects.filter(state=State.RUNNING, heartbeat__lt=silent):
        try:
            _recover(job)
        except Stale:
            continue  # It came to an end, or another reconciler was quicker.


def _recover(job: Job) -> None:
    losses = job.lost + 1
    if job.cancel_requested:
        end_cancelled(job)
    elif losses >= MOST_LOSSES:
        stage = Stage(job.stage).label.lower() if job.stage else "the start"
        fail(
            job,
            Job.ErrorKind.RETRY,
            f"The job's worker was lost {losses} times, last during {stage}; "
            "often the machine ran out of memory.",
        )
    else:
        logger.warning("job %s: worker %s fell silent", job.pk, job.worker)
        release(job, "The job's worker fell silent; the job waits for another one.", lost=losses)


def _resend_waiting() -> None:
    """Wake workers for waiting jobs, but only once the broker holds no message, or its queue would grow."""
    waiting = list(Job.objects.filter(state=State.QUEUED).order_by("created").values_list("pk", flat=True))
    if waiting and wake.waiting_messages() == 0:
        for job_id in waiting:
            wake.send(job_id)


def _wipe_orphans() -> None:
    root = Path(settings.WORK_DIR)
    if not root.is_dir():
        return
    # The listing comes first: a folder that appears later belongs to a job that is running by then.
    folders = [folder for folder in root.iterdir() if folder.is_dir()]
    running = {
        workspace.folder_name(job_id, attempt)
        for job_id, attempt in Job.objects.filter(state=State.RUNNING).values_list("pk", "attempt")
    }
    for folder in folders:
        if folder.name not in running:
            shutil.rmtree(folder, ignore_errors=True)
