"""Watching over the child process that does a job's work.

The work happens in a child because CUDA does not survive a fork and native code may crash: whatever happens
there is a failed job, never a lost worker.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from hub.jobs import actions, outages, workspace
from hub.jobs.models import Job, Stage, State

BEAT_SECONDS = 1.0
LOOK_SECONDS = 0.2
GRACE_SECONDS = 3.0
logger = logging.getLogger(__name__)


def runner_command(job: Job) -> list[str]:
    """Return the command line of the child."""
    return [sys.executable, "-m", "hub.jobs.runner", job.pk, str(job.attempt)]


def supervise(job: Job, stopping: threading.Event, command: Sequence[str] | None = None) -> None:
    """Run a claimed job's child to its end, and put into words what the child could not say itself."""
    try:
        log = workspace.log_file(job)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output, _child(command or runner_command(job), output) as child:
            why = _watch(job, child, stopping)
        _conclude(job, child.returncode, why)
    except actions.Stale:
        # The child has just ended the job itself, or another worker has it by now.
        logger.info("job %s: attempt %s is over", job.pk, job.attempt)
    except OSError as exc:
        logger.exception("job %s: its process could not be run", job.pk)
        reason = exc.strerror or type(exc).__name__
        text = f"The worker could not run the job's process ({reason}). Once that is mended, try again."
        with suppress(actions.Stale):
            actions.fail(job, Job.ErrorKind.RETRY, text)
    finally:
        workspace.wipe(job)


def _child(command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    # The child reads its standard input: when this process dies the pipe closes, and the child ends itself.
    # Its own session keeps a Ctrl-C in the terminal from reaching it before us.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


def _watch(job: Job, child: subprocess.Popen[bytes], stopping: threading.Event) -> str:
    """Wait for the child, beating the heart; return why it was stopped, or nothing if it ended by itself."""
    next_beat = 0.0
    try:
        while child.poll() is None:
            if stopping.is_set():
                return "stopping"
            if time.monotonic() >= next_beat:
                with outages.tolerated(f"heartbeat of job {job.pk}"):
                    if actions.beat(job):
                        return "cancelled"
                next_beat = time.monotonic() + BEAT_SECONDS
            stopping.wait(LOOK_SECONDS)
        return ""
    finally:
        _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    """See to it that the child and whatever it started are gone."""
    with suppress(subprocess.TimeoutExpired):
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)
            child.wait(GRACE_SECONDS)
    # Its group outlives a child that was killed while an engine ran in a process of its own.
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _conclude(job: Job, status: int, why: str) -> None:
    try:
        # Only our own attempt: a newer one is another worker's, and so is its folder.
        job.refresh_from_db(from_queryset=Job.objects.filter(state=State.RUNNING, attempt=job.attempt))
    except Job.DoesNotExist:
        return  # The child said itself how it ended, or the attempt was taken away.
    if why == "cancelled" or job.cancel_requested:
        actions.end_cancelled(job)
    elif why == "stopping":
        actions.release(job, "The worker is stopping; the job waits for its next start.")
    elif status < 0:
        actions.fail(job, Job.ErrorKind.RETRY, death_sentence(-status, job.stage))
    else:
        text = f"The job's process ended with status {status} without a word. Its log is "
        actions.fail(job, Job.ErrorKind.FAULT, f"{text}jobs/{workspace.log_file(job).name}.")


_DOING = {
    Stage.FETCH: "fetching the source",
    Stage.CALIBRATE: "measuring what weights count",
    Stage.PLAN: "planning",
    Stage.QUANTIZE: "quantizing",
    Stage.VERIFY: "verifying",
    Stage.MEASURE: "measuring",
    Stage.PUBLISH: "publishing",
}


def death_sentence(signal_number: int, stage: str) -> str:
    """Say that a signal killed the child, when, and what it often means."""
    doing = _DOING[Stage(stage)] if stage else "starting"
    sentence = f"The job's process was killed by signal {signal_number} while {doing}"
    if signal_number == signal.SIGKILL:
        return f"{sentence}; often the machine ran out of memory."
    if signal_number in {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGFPE}:
        return f"{sentence}; a native library crashed."
    return f"{sentence}."
