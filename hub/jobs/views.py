"""The queue, the page of one job, and asking for quants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from hub.accounts.models import User
from hub.catalog.models import Quant
from hub.catalog.queries import bits_per_weight, revision_or_404, row_of
from hub.jobs import actions, queries
from hub.jobs.forms import RequestForm
from hub.jobs.models import Job
from hub.pages import MemberRequest, PageRequest, leave_for, members_only, page


@require_safe
def queue(request: PageRequest) -> HttpResponse:
    active, recent = queries.queue()
    context = {"active": active, "recent": recent}
    return page(request, "jobs/queue.html", context, parts={"queue": "jobs/_queue.html"})


def _changed(rows: list[Any], seen: int, written: int) -> list[Any]:
    """Return the rows whose state changed: forwards while they are written, back when an attempt is over."""
    return rows[max(0, min(seen - 1, written)) : max(seen, written + 1)]


@require_safe
def job(request: PageRequest, pk: str) -> HttpResponse:
    """Show a job. While it lives, the page asks every second for what it has not seen yet."""
    found = get_object_or_404(queries.with_model(Job.objects.select_related("quant")), pk=pk)
    seen = queries.Seen.read(request.GET)
    events = list(found.events.all())
    tensors = queries.tensors(found)
    written = queries.tensors_written(found)
    context = {
        "job": found,
        "seen": seen,
        "steps": queries.steps(found, events),
        "gauge": queries.gauge(found),
        "advice": queries.advice(found),
        "events": events,
        "new_events": [event for event in events if event.pk > seen.event],
        "last_event": events[-1].pk if events else 0,
        "tensors": tensors,
        "new_tensors": _changed(tensors, seen.tensors, written) if seen.tensors else [],
        "written": written,
        "may_manage": request.user.is_authenticated and actions.may_manage(request.user, found),
        **(_result(found.quant) if found.quant else {}),
    }
    return page(request, "jobs/job.html", context, parts={"job-live": "jobs/_update.html"})


def _result(quant: Quant) -> dict[str, Any]:
    """Return what the table of quants needs to show one of them exactly as the model's page does."""
    row = row_of(quant)
    revision = row.quant.revision
    return {
        "rows": [row],
        "revision": revision,
        "model": revision.model,
        "source": row.source,
        "source_bits": bits_per_weight(revision),
    }


@members_only
@require_http_methods(["GET", "HEAD", "POST"])
def request_quants(request: MemberRequest, owner: str, name: str) -> HttpResponse:
    """Ask for quants: a dialog on the model's page, or a page of its own."""
    revision = revision_or_404(owner, name)
    form = RequestForm(request.POST if request.method == "POST" else None, revision)
    if form.is_valid():
        try:
            asked = actions.submit(request.user, revision, form.cleaned_data["levels"])
        except actions.Refused as refused:
            form.add_error(None, str(refused))
        else:
            jobs = list(asked.jobs.all())
            return leave_for(request, jobs[0] if len(jobs) == 1 else "jobs:list")
    context = {"form": form, "revision": revision, "model": revision.model}
    status = 422 if form.is_bound else 200
    return page(request, "jobs/request.html", context, parts={"dialog": "jobs/_request.html"}, status=status)


@members_only
@require_POST
def retry(request: MemberRequest, pk: str) -> HttpResponse:
    return _manage(request, pk, actions.retry)


@members_only
@require_POST
def cancel(request: MemberRequest, pk: str) -> HttpResponse:
    return _manage(request, pk, actions.cancel)


def _manage(request: MemberRequest, pk: str, action: Callable[[User, Job], None]) -> HttpResponse:
    found = get_object_or_404(queries.with_model(Job.objects.all()), pk=pk)
    try:
        action(request.user, found)
    except actions.Refused as refused:
        messages.error(request, str(refused))
    return redirect(found)
