"""The child process that does one attempt at a job: `python -m hub.jobs.runner JOB_ID ATTEMPT`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback

import django

from hub.processes import end_with_parent

logger = logging.getLogger(__name__)


def main(argv: list[str]) -> int:
    """Do the work, or say on the job why it could not be done."""
    job_id, attempt = argv
    _die_with_parent()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")
    django.setup()
    from hub.jobs.journey import make
    from hub.jobs.models import Job, State

    job = Job.objects.filter(pk=job_id, attempt=int(attempt), state=State.RUNNING).first()
    if job is None:
        logger.warning("job %s: attempt %s is not running any more", job_id, attempt)
        return 0
    make(job)
    return 0


def _die_with_parent() -> None:
    """End this process when the worker ends, however it ends: nobody would record what is done here."""
    # The kernel does it even while native code holds the interpreter; the thread does where it cannot.
    end_with_parent(by=signal.SIGKILL)
    threading.Thread(target=_wait_for_parent, name="parent", daemon=True).start()


def _wait_for_parent() -> None:
    # The worker holds the other end of our standard input and never writes to it.
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Exception:  # noqa: BLE001 - the last place where anything can be said
        traceback.print_exc()
        sys.exit(70)
