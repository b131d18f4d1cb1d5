"""What people do: ask for quants, ask again, call it off."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from django.db import IntegrityError, transaction
from django.utils import timezone

from hub import engine
from hub.accounts.models import User
from hub.catalog.models import Quant, Revision
from hub.jobs import wake
from hub.jobs.actions.steps import Stale, log, move
from hub.jobs.models import Job, JobEvent, Request, State


class Refused(Exception):
    """Not allowed or not possible; the message is a sentence for the person who asked."""


@transaction.atomic
def submit(user: User | None, revision: Revision, levels: Sequence[str]) -> Request:
    """Ask for a quant of each level. What exists or is under way already is joined, not made twice."""
    wanted = _known_levels(levels)
    request = Request.objects.create(user=user, revision=revision)
    for level in wanted:
        request.jobs.add(_job_for(request, level))
    return request


def retry(user: User | None, job: Job) -> None:
    """Put a failed or cancelled job back into the queue."""
    _require_manager(user, job)
    if job.state not in {State.FAILED, State.CANCELLED}:
        raise Refused(f"Only a failed or cancelled job can be tried again; this one is {job.state}.")
    if _quant(job.revision, job.recipe_fingerprint):
        raise Refused(f"{job.level} of this revision has been made in the meantime.")
    try:
        with transaction.atomic():
            move(
                job, State.QUEUED, f"{_name(user)} asked to try again.",
                cancel_requested=False, lost=0, finished=None, stage="", progress={}, error="", error_kind="",
            )  # fmt: skip
    except IntegrityError as exc:
        raise Refused(f"Another job is making {job.level} of this revision already.") from exc
    except Stale as exc:
        raise Refused("The job has changed in the meantime. Look at it again.") from exc
    wake.send(job.pk)


def cancel(user: User | None, job: Job) -> None:
    """Call a job off: at once while it waits, within seconds while it runs."""
    _require_manager(user, job)
    while not job.has_ended:
        if _called_off(job, _name(user)):
            return
        job.refresh_from_db()  # It was taken, or put back, just now.
    raise Refused(f"The job has ended already; it is {job.state}.")


def _called_off(job: Job, name: str) -> bool:
    """Try to call a job off in the state it is known to be in."""
    if job.state == State.QUEUED:
        with suppress(Stale):
            move(job, State.CANCELLED, f"{name} cancelled the job.", finished=timezone.now())
            return True
        return False
    asked = Job.objects.filter(pk=job.pk, state=State.RUNNING).update(cancel_requested=True)
    if asked:
        log(job, f"{name} asked to cancel the job.")
        job.refresh_from_db()
    return bool(asked)


def may_manage(user: User | None, job: Job) -> bool:
    """Say whether a person may retry or cancel a job: who asked for it, and staff. None is the operator."""
    return user is None or user.is_staff or (user.is_authenticated and job.request.user_id == user.pk)


def _require_manager(user: User | None, job: Job) -> None:
    if not may_manage(user, job):
        raise Refused("Only the person who asked for this job, or an administrator, may do that.")


def _known_levels(levels: Sequence[str]) -> list[str]:
    known = {level.name.upper(): level.name for level in engine.levels()}
    if not levels:
        raise Refused("Name at least one level.")
    strange = [level for level in levels if level.upper() not in known]
    if strange:
        named, there_are = " or ".join(map(repr, strange)), ", ".join(known.values())
        kept = " Nothing was asked for." if len(levels) > 1 else ""
        raise Refused(f"No level is called {named}. There are {there_are}.{kept}")
    wanted = {level.upper() for level in levels}
    # In one order for all: two requests for the same levels cannot wait for each other in the database. The
    # level that most people want is made first, and of the others those that lose least.
    usual = [level.name for level in engine.levels() if level.usual]
    return [name for name in dict.fromkeys((*usual, *known.values())) if name.upper() in wanted]


def _job_for(request: Request, level: str) -> Job:
    """Return the job that makes or has made this level, creating one where there is none."""
    fingerprint = engine.fingerprint(level)
    quant = _quant(request.revision, fingerprint)
    if quant:
        return quant.jobs.filter(state=State.DONE).first() or _done_job(request, quant)
    try:
        with transaction.atomic():
            job = Job.objects.create(
                request=request, revision=request.revision, level=level, recipe_fingerprint=fingerprint
            )
            JobEvent.objects.create(
                job=job, kind=JobEvent.Kind.STATE, text=f"{_name(request.user)} asked for it."
            )
    except IntegrityError:
        # The constraint "one live job per recipe" spoke: someone else's job is under way, or was just now.
        live = Job.objects.active().filter(revision=request.revision, recipe_fingerprint=fingerprint).first()
        return live or _job_for(request, level)
    wake.send(job.pk)
    return job


def _done_job(request: Request, quant: Quant) -> Job:
    """Record that a quant was there already, where the job that made it is gone."""
    return Job.objects.create(
        request=request,
        revision=quant.revision,
        level=quant.level,
        recipe_fingerprint=quant.recipe_fingerprint,
        state=State.DONE,
        plan=quant.plan,
        quant=quant,
        finished=timezone.now(),
    )


def _quant(revision: Revision, fingerprint: str) -> Quant | None:
    return Quant.objects.filter(revision=revision, recipe_fingerprint=fingerprint).first()


def _name(user: User | None) -> str:
    return user.get_username() if user else "The operator"
