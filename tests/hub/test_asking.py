"""Asking for quants, asking again, calling it off."""

import pytest
from kombu.exceptions import OperationalError

from hub.jobs import actions, wake
from hub.jobs.models import Job, Request, State


def test_each_level_gets_a_job(alice, revision):
    request = actions.submit(alice, revision, ["Q4_K_M", "Q8_0"])

    assert {job.level for job in request.jobs.all()} == {"Q4_K_M", "Q8_0"}
    assert request.state == State.QUEUED


def test_the_same_level_named_twice_is_one_job(alice, revision):
    request = actions.submit(alice, revision, ["Q8_0", "q8_0"])

    assert request.jobs.count() == 1


def test_an_unknown_level_is_refused_with_the_levels_there_are(alice, revision):
    with pytest.raises(actions.Refused, match=r"'Q9_X'.*Q4_K_M"):
        actions.submit(alice, revision, ["Q4_K_M", "Q9_X"])

    assert not Request.objects.exists()


def test_nothing_asked_for_is_refused(alice, revision):
    with pytest.raises(actions.Refused, match="at least one"):
        actions.submit(alice, revision, [])


def test_asking_twice_joins_the_job_under_way(bob, job, revision):
    request = actions.submit(bob, revision, ["Q4_K_M"])

    assert request.jobs.get() == job
    assert Job.objects.count() == 1
    assert job.request.user.username == "alice"


def test_asking_for_what_exists_makes_no_work(alice, quant, revision):
    request = actions.submit(alice, revision, ["Q4_K_M"])

    assert request.state == State.DONE
    assert request.jobs.get().quant == quant


def test_a_failed_job_does_not_stand_in_the_way_of_a_new_request(bob, running, revision):
    actions.fail(running, Job.ErrorKind.RETRY, "The disk is full.")

    request = actions.submit(bob, revision, ["Q4_K_M"])

    assert request.jobs.get() != running
    assert request.state == State.QUEUED


@pytest.mark.parametrize("end", [State.RUNNING, State.QUEUED, State.DONE])
def test_only_what_failed_or_was_cancelled_can_be_tried_again(alice, job, end):
    Job.objects.update(state=end)
    job.refresh_from_db()

    with pytest.raises(actions.Refused, match="Only a failed or cancelled job"):
        actions.retry(alice, job)


def test_a_retry_while_another_job_makes_the_same_is_refused(alice, bob, running, revision):
    actions.fail(running, Job.ErrorKind.RETRY, "The disk is full.")
    actions.submit(bob, revision, ["Q4_K_M"])

    with pytest.raises(actions.Refused, match="Another job is making"):
        actions.retry(alice, running)


def test_a_retry_of_what_was_made_meanwhile_is_refused(alice, running, quant):
    actions.fail(running, Job.ErrorKind.RETRY, "The disk is full.")

    with pytest.raises(actions.Refused, match="made in the meantime"):
        actions.retry(alice, running)


def test_a_waiting_job_is_cancelled_at_once(alice, job):
    actions.cancel(alice, job)

    assert Job.objects.get().state == State.CANCELLED


def test_a_running_job_is_asked_to_stop(alice, running):
    actions.cancel(alice, running)

    assert Job.objects.get().state == State.RUNNING
    assert actions.beat(running)


def test_a_job_taken_at_the_moment_it_is_cancelled_is_asked_to_stop(alice, job):
    actions.claim(job.pk, "worker")

    actions.cancel(alice, job)

    assert (job.state, job.cancel_requested) == (State.RUNNING, True)


def test_a_job_put_back_at_the_moment_it_is_cancelled_does_not_start_again(alice, running):
    actions.release(Job.objects.get(), "The worker is stopping.")

    actions.cancel(alice, running)

    assert Job.objects.get().state == State.CANCELLED


def test_a_job_that_ends_at_the_moment_it_is_cancelled_says_so(alice, running):
    actions.fail(Job.objects.get(), Job.ErrorKind.FAULT, "A bug.")

    with pytest.raises(actions.Refused, match="ended already; it is failed"):
        actions.cancel(alice, running)


def test_levels_are_taken_in_one_order_whoever_asks(alice, bob, revision):
    """The usual level first, then those that lose least."""
    for user, levels in ((alice, ["Q4_K_M", "Q8_0", "Q2_K"]), (bob, ["Q4_0", "Q3_K_S"])):
        jobs = actions.submit(user, revision, levels[::-1]).jobs.order_by("created")
        assert [job.level for job in jobs] == levels


def test_a_job_that_ended_cannot_be_cancelled(alice, running):
    actions.fail(running, Job.ErrorKind.FAULT, "A bug.")

    with pytest.raises(actions.Refused, match="ended already"):
        actions.cancel(alice, running)


@pytest.mark.parametrize("act", [actions.cancel, actions.retry])
def test_other_people_may_not_touch_a_job(act, bob, job):
    with pytest.raises(actions.Refused, match="Only the person who asked"):
        act(bob, job)


def test_staff_may_cancel_any_job(grace, job):
    actions.cancel(grace, job)

    assert Job.objects.get().state == State.CANCELLED


def test_a_worker_is_woken_after_the_commit_and_not_before(
    alice, revision, settings, monkeypatch, django_capture_on_commit_callbacks
):
    sent = []
    settings.BROKER_URL = "redis://broker"
    monkeypatch.setattr(wake.app, "send_task", lambda name, args, **_: sent.append(args))

    with django_capture_on_commit_callbacks(execute=True):
        job = actions.submit(alice, revision, ["Q8_0"]).jobs.get()
        assert sent == []

    assert sent == [[job.pk]]


def test_asking_works_while_the_broker_is_down(
    alice, revision, settings, monkeypatch, django_capture_on_commit_callbacks
):
    def refuse(*_args, **_options):
        raise OperationalError("connection refused")

    settings.BROKER_URL = "redis://broker"
    monkeypatch.setattr(wake.app, "send_task", refuse)

    with django_capture_on_commit_callbacks(execute=True):
        request = actions.submit(alice, revision, ["Q8_0"])

    assert request.state == State.QUEUED
