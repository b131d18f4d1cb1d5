"""Putting right what crashes have left."""

import os
import time
from datetime import timedelta

import pytest
from django.utils import timezone

from hub.jobs import actions, wake, workspace
from hub.jobs.actions.reconciling import MOST_LOSSES
from hub.jobs.models import Job, State


@pytest.fixture
def sent(settings, monkeypatch):
    """Record whom the reconciler wakes; the broker's queue is empty unless a test says otherwise."""
    ids = []
    settings.BROKER_URL = "redis://broker"
    monkeypatch.setattr(wake, "send", ids.append)
    monkeypatch.setattr(wake, "waiting_messages", lambda: 0)
    return ids


def fall_silent(settings):
    Job.objects.update(heartbeat=timezone.now() - timedelta(seconds=settings.LEASE_SECONDS + 1))


def test_a_job_whose_worker_fell_silent_waits_again(running, settings, sent):
    fall_silent(settings)

    actions.reconcile()

    job = Job.objects.get()
    assert (job.state, job.lost, job.worker) == (State.QUEUED, 1, "")
    assert sent == [job.pk]


def test_a_job_with_a_fresh_heartbeat_is_left_alone(running, sent):
    actions.reconcile()

    assert Job.objects.get().state == State.RUNNING


def test_a_job_that_loses_its_worker_again_and_again_fails_with_a_sentence(running, settings, sent):
    Job.objects.update(lost=MOST_LOSSES - 1, stage="quantize")
    fall_silent(settings)

    actions.reconcile()

    job = Job.objects.get()
    assert (job.state, job.error_kind) == (State.FAILED, "retry")
    assert "lost 3 times, last during quantize" in job.error


def test_a_job_lost_while_being_cancelled_does_not_start_again(alice, running, settings, sent):
    actions.cancel(alice, running)
    fall_silent(settings)

    actions.reconcile()

    assert Job.objects.get().state == State.CANCELLED


def test_waiting_jobs_are_not_sent_again_while_the_broker_holds_messages(job, sent, monkeypatch):
    monkeypatch.setattr(wake, "waiting_messages", lambda: 1)

    actions.reconcile()

    assert sent == []


def test_logs_of_attempts_are_kept_for_a_month(running):
    old, new = workspace.log_file(running), workspace.log_file(running).with_name("newer.log")
    old.parent.mkdir(parents=True)
    for path in (old, new):
        path.write_text("Traceback")
    os.utime(old, times=(time.time() - 31 * 24 * 3600,) * 2)

    workspace.drop_old_logs()

    assert list(old.parent.iterdir()) == [new]


def test_orphaned_folders_go_and_those_of_running_jobs_stay(running, settings):
    kept = workspace.folder(running)
    orphan = settings.WORK_DIR / workspace.folder_name(running.pk, running.attempt - 1)
    for folder in (kept, orphan):
        folder.mkdir()
        (folder / "half.gguf").write_bytes(b"GGUF")

    actions.reconcile()

    assert kept.exists()
    assert not orphan.exists()
