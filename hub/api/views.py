"""JSON over the actions and queries that the pages use; no rule lives here."""

from __future__ import annotations

import logging
from typing import Annotated, Any
from urllib.parse import urlencode

from django.db.models import Prefetch, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404
from ninja import NinjaAPI, Path, Status
from ninja.errors import HttpError, ValidationError
from pydantic import Field

from hub.api.auth import WriteToken
from hub.api.schemas import (
    EventOut,
    JobDetail,
    JobOut,
    ModelLine,
    ModelList,
    ModelOut,
    Problem,
    QuantOut,
    RequestIn,
    RequestOut,
    RevisionOut,
    TensorErrorsOut,
)
from hub.catalog import queries
from hub.catalog.models import Model, Quant
from hub.jobs import actions
from hub.jobs.models import Job, Request

MOST = 100
# What every database takes for a number.
LAST = 2**31 - 1
logger = logging.getLogger(__name__)
api = NinjaAPI(title="Quanthub", version="1", urls_namespace="api-1")
write = WriteToken()


@api.exception_handler(ValidationError)
def _invalid(request: HttpRequest, exc: ValidationError) -> HttpResponse:
    problems = [f"{'.'.join(str(part) for part in error['loc'][1:])}: {error['msg']}" for error in exc.errors]
    return api.create_response(request, {"detail": "; ".join(problems)}, status=422)


@api.exception_handler(actions.Refused)
def _refused(request: HttpRequest, exc: actions.Refused) -> HttpResponse:
    return api.create_response(request, {"detail": str(exc)}, status=422)


@api.exception_handler(Http404)
def _not_found(request: HttpRequest, exc: Http404) -> HttpResponse:
    return api.create_response(request, {"detail": str(exc) or "There is no such thing here."}, status=404)


@api.exception_handler(Exception)
def _fault(request: HttpRequest, exc: Exception) -> HttpResponse:
    logger.error("%s %s failed", request.method, request.path, exc_info=exc)
    return api.create_response(request, {"detail": "Something went wrong in the hub itself."}, status=500)


@api.get("/models", response=ModelList)
def list_models(
    request: HttpRequest,
    search: str = "",
    limit: Annotated[int, Field(ge=1, le=MOST)] = 20,
    offset: Annotated[int, Field(ge=0, le=LAST)] = 0,
) -> ModelList:
    """List models, newest first; `search` takes words that must all occur."""
    found = list(Model.objects.matching(search)[offset : offset + limit + 1])
    following = None
    if len(found) > limit:
        query = urlencode({"search": search, "limit": limit, "offset": offset + limit})
        following = request.build_absolute_uri(f"{request.path}?{query}")
    return ModelList(items=[ModelLine.of(model) for model in found[:limit]], next=following)


@api.get("/models/{owner}/{name}", response={200: ModelOut, 404: Problem})
def one_model(request: HttpRequest, owner: str, name: str) -> ModelOut:
    """Show a model with its quants and their measurements."""
    model = _model(f"{owner}/{name}")
    revision = model.latest_revision
    quants = _whole_quants().filter(revision__model=model)
    return ModelOut(
        **ModelLine.of(model).model_dump(),
        revision=RevisionOut.of(revision) if revision else None,
        quants=[QuantOut.of(request, quant) for quant in quants],
    )


@api.get("/quants/{quant_id}/errors", response={200: TensorErrorsOut, 404: Problem})
def quant_errors(
    request: HttpRequest,  # noqa: ARG001 ninja passes it
    quant_id: Annotated[int, Path(ge=1, le=LAST)],
) -> TensorErrorsOut:
    """Show how far each tensor of a quant is from its source's; quants name this as `errors_url`."""
    return TensorErrorsOut.of(queries.errors_or_404(quant_id))


@api.post("/requests", response={201: RequestOut, 422: Problem}, auth=write)
def make_request(request: HttpRequest, body: RequestIn) -> Status[RequestOut]:
    """Ask for a quant of each level; what exists or is under way is joined."""
    revision = _model(body.model).latest_revision
    if revision is None:
        raise HttpError(422, f"{body.model} has no files yet.")
    token: Any = request.auth  # type: ignore[attr-defined]
    made = actions.submit(token.user, revision, body.levels)
    return Status(201, RequestOut.of(request, _request(made.pk)))


@api.get("/requests/{request_id}", response={200: RequestOut, 404: Problem})
def one_request(request: HttpRequest, request_id: str) -> RequestOut:
    """Show how far a request has come."""
    return RequestOut.of(request, _request(request_id))


@api.get("/jobs/{job_id}", response={200: JobDetail, 404: Problem})
def one_job(request: HttpRequest, job_id: str) -> JobDetail:
    """Show a job with its plan and its log."""
    jobs = Job.objects.prefetch_related("events", Prefetch("quant", _whole_quants()))
    job = get_object_or_404(jobs, pk=job_id)
    return JobDetail(
        **JobOut.of(job).model_dump(),
        plan=job.plan,
        events=[EventOut.of(event) for event in job.events.all()],
        quant=QuantOut.of(request, job.quant) if job.quant else None,
    )


def _model(model_id: str) -> Model:
    model = Model.objects.named(model_id).first()
    if model is None:
        raise Http404(f"No model is called {model_id}.")
    return model


def _request(request_id: str) -> Request:
    jobs = Job.objects.defer("plan").prefetch_related(Prefetch("quant", _whole_quants()))
    found = Request.objects.select_related("revision__model").prefetch_related(Prefetch("jobs", jobs))
    request = found.filter(pk=request_id).first()
    if request is None:
        raise Http404(f"There is no request {request_id}.")
    return request


def _whole_quants() -> QuerySet[Quant]:
    """Return quants with all that is shown of them, without one query for each."""
    return (
        Quant.objects.defer("plan", "tensor_errors__columns")
        .select_related("revision__model", "tensor_errors")
        .prefetch_related("files", "measurements")
    )


def nothing_here(_request: HttpRequest, rest: str) -> JsonResponse:
    """Answer in JSON for what no route knows; a client of the API has no use for a page."""
    return JsonResponse({"detail": f"The API has nothing at {rest}."}, status=404)
