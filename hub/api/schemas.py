"""The JSON of the API. Fields may be added, never renamed."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.http import HttpRequest
from django.urls import reverse
from ninja import Schema

from hub.catalog.models import Measurement, Model, Quant, Revision, TensorErrors
from hub.jobs.models import Job, JobEvent, Request, State


class Problem(Schema):
    detail: str


class MeasurementOut(Schema):
    metric: str
    value: float
    unit: str
    deviation: float | None
    statistics: dict[str, Any]
    method: dict[str, Any]
    hardware: dict[str, Any]
    engine: dict[str, Any]
    created: datetime

    @classmethod
    def of(cls, measurement: Measurement) -> MeasurementOut:
        return cls.model_validate({name: getattr(measurement, name) for name in cls.model_fields})


class TensorErrorsOut(Schema):
    """`relative` is of all weights together; each of `tensors` has its own figures, null if not known."""

    level: str
    relative: float | None
    tensors: list[dict[str, Any]]
    method: dict[str, Any]
    hardware: dict[str, Any]
    engine: dict[str, Any]
    created: datetime

    @classmethod
    def of(cls, errors: TensorErrors) -> TensorErrorsOut:
        plain = {name: getattr(errors, name) for name in cls.model_fields if name != "level"}
        return cls(level=errors.quant.level, **plain)


class QuantOut(Schema):
    level: str
    format: str
    sha256: str
    file_bytes: int
    bpw: float
    path: str
    url: str
    created: datetime
    seconds: float
    made_with: dict[str, Any]
    measurements: list[MeasurementOut]
    not_measured: list[str]
    errors_url: str | None

    @classmethod
    def of(cls, http: HttpRequest, quant: Quant) -> QuantOut:
        model, file = quant.revision.model, quant.files.all()[0]
        address = reverse(
            "registry:resolve", args=[model.owner, model.name, quant.revision.commit, file.path]
        )
        return cls(
            level=quant.level,
            format=quant.format,
            sha256=file.blob_id,
            file_bytes=quant.file_bytes,
            bpw=quant.bpw,
            path=file.path,
            url=http.build_absolute_uri(address),
            created=quant.created,
            seconds=quant.seconds,
            made_with=quant.made_with,
            measurements=[MeasurementOut.of(m) for m in quant.measurements.all()],
            not_measured=quant.not_measured,
            errors_url=_errors_url(http, quant),
        )


def _errors_url(http: HttpRequest, quant: Quant) -> str | None:
    if not hasattr(quant, "tensor_errors"):
        return None
    return http.build_absolute_uri(reverse("api-1:quant_errors", args=[quant.pk]))


class ModelLine(Schema):
    id: str
    summary: str
    licence: str
    architecture: str
    parameters: int
    n_ctx_train: int
    updated: datetime

    @classmethod
    def of(cls, model: Model) -> ModelLine:
        return cls(id=str(model), **{name: getattr(model, name) for name in cls.model_fields if name != "id"})


class ModelList(Schema):
    items: list[ModelLine]
    next: str | None


class RevisionOut(Schema):
    commit: str
    source_format: str
    file_bytes: int
    tensor_type: str
    created: datetime
    measurements: list[MeasurementOut]

    @classmethod
    def of(cls, revision: Revision) -> RevisionOut:
        plain = {name: getattr(revision, name) for name in cls.model_fields if name != "measurements"}
        return cls(**plain, measurements=[MeasurementOut.of(m) for m in revision.measurements.all()])


class ModelOut(ModelLine):
    revision: RevisionOut | None
    quants: list[QuantOut]


class JobOut(Schema):
    id: str
    level: str
    state: str
    stage: str
    progress: dict[str, Any]
    error: str
    error_kind: str
    cancel_requested: bool
    created: datetime
    started: datetime | None
    finished: datetime | None

    @classmethod
    def of(cls, job: Job) -> JobOut:
        return cls.model_validate({name: getattr(job, name) for name in cls.model_fields})


class EventOut(Schema):
    at: datetime
    kind: str
    stage: str
    text: str

    @classmethod
    def of(cls, event: JobEvent) -> EventOut:
        return cls.model_validate({name: getattr(event, name) for name in cls.model_fields})


class JobDetail(JobOut):
    plan: dict[str, Any]
    events: list[EventOut]
    quant: QuantOut | None


class RequestIn(Schema):
    model: str
    levels: list[str]


class RequestOut(Schema):
    id: str
    state: str
    model: str
    created: datetime
    jobs: list[JobOut]
    quants: list[QuantOut]

    @classmethod
    def of(cls, http: HttpRequest, request: Request) -> RequestOut:
        jobs = sorted(request.jobs.all(), key=lambda job: (job.created, job.pk))
        quants = [QuantOut.of(http, job.quant) for job in jobs if job.state == State.DONE and job.quant]
        return cls(
            id=request.pk,
            state=request.state,
            model=str(request.revision.model),
            created=request.created,
            jobs=[JobOut.of(job) for job in jobs],
            quants=quants,
        )
