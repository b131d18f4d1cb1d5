"""The list of models and the page of one model."""

from __future__ import annotations

from django.core.paginator import Paginator
from django.http import HttpResponse
from django.views.decorators.http import require_safe
from django_htmx.http import trigger_client_event

from hub.catalog import queries
from hub.jobs.queries import live_jobs_of
from hub.pages import PageRequest, page

PAGE_SIZE = 20


@require_safe
def catalog(request: PageRequest) -> HttpResponse:
    text = request.GET.get("q", "").strip()
    found = Paginator(queries.search(text), PAGE_SIZE).get_page(request.GET.get("page"))
    context = {"text": text, "page": found, "cards": queries.cards(found.object_list)}
    return page(request, "catalog/list.html", context, parts={"models": "catalog/_models.html"})


@require_safe
def model(request: PageRequest, owner: str, name: str) -> HttpResponse:
    """Show a model. Its jobs poll; when one ends, the table of quants is told to load itself again."""
    revision = queries.revision_or_404(owner, name, request.GET.get("revision", ""))
    jobs = live_jobs_of(revision)
    context = {
        "model": revision.model,
        "revision": revision,
        "revisions": revision.model.revisions.order_by("-created", "-pk"),
        "rows": queries.rows_of(revision),
        "source": queries.figures_of(revision.measurements.all()),
        "source_bits": queries.bits_per_weight(revision),
        # Only an older revision must be named by its commit; `main` is the address that people keep.
        "ref": revision.commit if request.GET.get("revision") else "main",
        "jobs": jobs,
    }
    parts = {"model-jobs": "catalog/_jobs.html", "model-quants": "catalog/_quants.html"}
    response = page(request, "catalog/model.html", context, parts=parts)
    if request.GET.get("jobs", str(len(jobs))) != str(len(jobs)):
        trigger_client_event(response, "quants-changed")
    return response


@require_safe
def errors(request: PageRequest, owner: str, name: str, quant_id: int) -> HttpResponse:
    """Show the error of each tensor of a quant; the model's page takes the table alone."""
    found = queries.errors_or_404(quant_id, owner, name)
    context = {"errors": found, "quant": found.quant, "tensors": queries.worst_first(found)}
    parts = {f"errors-{quant_id}-table": "catalog/_errors.html"}
    return page(request, "catalog/errors.html", context, parts=parts)
