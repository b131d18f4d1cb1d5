"""Whatever becomes of the child process, the job says it in a sentence."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.db import OperationalError

from hub.jobs import actions, supervise, workspace
from hub.jobs.models import Job, State


def python(code):
    return [sys.executable, "-c", code]


def run(job, code, stopping=None):
    supervise.supervise(job, stopping or threading.Event(), python(code))
    return Job.objects.get()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (signal.SIGKILL, "killed by signal 9 while quantizing; often the machine ran out of memory."),
        (signal.SIGSEGV, "killed by signal 11 while quantizing; a native library crashed."),
        (signal.SIGTERM, "killed by signal 15 while quantizing."),
    ],
)
def test_a_killed_child_is_a_failed_job_that_may_be_tried_again(running, alice, number, hint):
    Job.objects.update(stage="quantize")

    job = run(running, f"import os; os.kill(os.getpid(), {int(number)})")

    assert (job.state, job.error_kind) == (State.FAILED, "retry")
    assert job.error == f"The job's process was {hint}"
    actions.retry(alice, job)


def test_a_child_that_fails_to_start_points_at_its_log(running, settings):
    job = run(running, "raise SystemExit(3)")

    assert (job.state, job.error_kind) == (State.FAILED, "fault")
    assert "status 3" in job.error
    assert f"jobs/{running.pk}-1.log" in job.error


def test_what_the_child_prints_is_kept(running, settings):
    run(running, "print('out of luck'); raise SystemExit(3)")

    assert "out of luck" in (settings.LOG_DIR / "jobs" / f"{running.pk}-1.log").read_text()


def test_a_cancelled_job_stops_within_five_seconds(running, alice):
    actions.cancel(alice, running)
    began = time.monotonic()

    job = run(running, "import time; time.sleep(60)")

    assert job.state == State.CANCELLED
    assert time.monotonic() - began < 5


def test_a_child_that_ignores_the_request_to_stop_is_killed(running, alice, monkeypatch):
    monkeypatch.setattr(supervise, "GRACE_SECONDS", 0.3)
    actions.cancel(alice, running)

    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    assert run(running, code).state == State.CANCELLED


def test_a_stopping_worker_puts_its_job_back(running):
    stopping = threading.Event()
    stopping.set()

    job = run(running, "import time; time.sleep(60)", stopping)

    assert (job.state, job.lost) == (State.QUEUED, 0)


def test_a_job_taken_away_is_not_touched_and_its_child_ends(running):
    newer = Job.objects.get()
    actions.release(newer, "lost")
    actions.claim(newer.pk, "another")
    began = time.monotonic()

    job = run(running, "import time; time.sleep(60)")

    assert (job.state, job.attempt, job.worker) == (State.RUNNING, 2, "another")
    assert time.monotonic() - began < 10


def test_a_job_taken_away_while_its_child_ends_is_left_to_the_newer_attempt(running, monkeypatch):
    def take_away(job, _child, _stopping):
        newer = Job.objects.get()
        actions.release(newer, "lost")
        workspace.folder(actions.claim(newer.pk, "another")).mkdir(parents=True)
        return ""

    monkeypatch.setattr(supervise, "_watch", take_away)

    job = run(running, "")

    assert (job.state, job.attempt, job.error) == (State.RUNNING, 2, "")
    assert workspace.folder(job).exists()


def test_a_database_that_is_away_for_a_moment_costs_a_heartbeat_and_not_the_work(running, monkeypatch):
    beats = []

    def away_at_first(job):
        beats.append(job)
        if len(beats) == 1:
            raise OperationalError("database is locked")
        return False

    monkeypatch.setattr(actions, "beat", away_at_first)
    monkeypatch.setattr(supervise, "BEAT_SECONDS", 0.05)

    job = run(running, "import time; time.sleep(1); raise SystemExit(3)")

    assert len(beats) > 1
    assert "status 3" in job.error


def test_a_process_that_cannot_be_started_is_a_failed_job_that_may_be_tried_again(running):
    supervise.supervise(running, threading.Event(), ["/nowhere/python"])

    job = Job.objects.get()
    assert (job.state, job.error_kind) == (State.FAILED, "retry")
    assert "could not run the job's process (No such file or directory)" in job.error


def test_nothing_is_left_in_the_working_folder(running, settings):
    place = workspace.folder(running)
    write = f"import os; os.makedirs({str(place)!r}); open({str(place / 'half')!r}, 'w');"
    run(running, f"{write} os.kill(os.getpid(), 9)")

    assert list(settings.WORK_DIR.iterdir()) == []


WAITS_FOR_PARENT = (
    "from hub.jobs import runner; runner._die_with_parent();print(1, flush=True); import time; time.sleep(60)"
)


def test_the_child_ends_by_itself_when_its_parent_is_killed():
    start = (
        "import subprocess, sys;"
        f"p = subprocess.Popen([sys.executable, '-c', {WAITS_FOR_PARENT!r}], stdin=subprocess.PIPE);"
        "print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen(python(start), stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "1\n"
        parent.kill()

    deadline = time.monotonic() + 5
    while _lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(child)


def _lives(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
