"""The table of steps, the fence, and the log that every change leaves."""

import pytest

from hub.jobs import actions
from hub.jobs.models import STEPS, Job, State

ILLEGAL = [(a, b) for a in State for b in State if b not in STEPS[a]]
LEGAL = [(a, b) for a in State for b in State if b in STEPS[a]]


@pytest.mark.parametrize(("start", "end"), ILLEGAL)
def test_a_step_outside_the_table_is_refused(job, start, end):
    Job.objects.update(state=start)
    job.refresh_from_db()

    with pytest.raises(actions.IllegalStep):
        actions.move(job, end, "no")

    assert Job.objects.get().state == start


@pytest.mark.parametrize(("start", "end"), LEGAL)
def test_every_legal_step_leaves_a_line_in_the_log(job, start, end):
    Job.objects.update(state=start)
    job.refresh_from_db()

    actions.move(job, end, "so it goes")

    assert job.state == end
    assert job.events.last().text == "so it goes"


def test_only_one_worker_gets_a_job(job):
    first = actions.claim(job.pk, "one")
    second = actions.claim(job.pk, "two")

    assert (first.worker, first.attempt, first.state) == ("one", 1, State.RUNNING)
    assert second is None


def test_a_job_that_is_not_waiting_cannot_be_claimed(running):
    actions.fail(running, Job.ErrorKind.RETRY, "The disk is full.")

    assert actions.claim(running.pk, "worker") is None


@pytest.mark.parametrize(
    "write",
    [
        actions.beat,
        lambda job: actions.record(job, {"done": 1}),
        lambda job: actions.keep_plan(job, {"level": "Q4_K_M"}),
        lambda job: actions.enter(job, "plan"),
        lambda job: actions.fail(job, Job.ErrorKind.FAULT, "late"),
        lambda job: actions.release(job, "late"),
    ],
    ids=["beat", "record", "plan", "enter", "fail", "release"],
)
def test_whoever_works_for_an_older_attempt_can_write_nothing(running, write):
    straggler = Job.objects.get()
    actions.release(running, "lost")
    newer = actions.claim(running.pk, "another")

    with pytest.raises(actions.Stale):
        write(straggler)

    untouched = Job.objects.get()
    assert (untouched.state, untouched.attempt, untouched.plan) == (State.RUNNING, newer.attempt, {})


def test_a_failure_is_kept_with_its_sentence(running):
    actions.fail(running, Job.ErrorKind.REFUSED, "The row of 96 does not fit.")

    job = Job.objects.get()
    assert (job.state, job.error, job.error_kind) == (State.FAILED, "The row of 96 does not fit.", "refused")
    assert job.finished
    assert job.events.last().kind == "error"


def test_a_new_attempt_starts_with_a_clean_slate(running, alice):
    actions.record(running, {"done": 3})
    actions.fail(running, Job.ErrorKind.RETRY, "The disk is full.")

    actions.retry(alice, running)
    again = actions.claim(running.pk, "worker")

    assert (again.attempt, again.error, again.error_kind, again.progress) == (2, "", "", {})
    assert again.finished is None
