"""The end of a good job: the quant, its file, its figures and the job's last step, all or nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from django.db import transaction
from django.utils import timezone

from hub import blobs
from hub.catalog.models import Measurement, Model, Quant, QuantFile, TensorErrors
from hub.files import without_paths
from hub.jobs.actions.steps import move
from hub.jobs.models import Job, State


@dataclass(frozen=True)
class Measured:
    """A figure on its way into the database."""

    metric: Measurement.Metric
    value: float
    unit: str
    deviation: float | None
    method: dict[str, Any]
    hardware: dict[str, Any]
    engine: dict[str, Any]
    statistics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasuredErrors:
    """The errors of a quant's tensors on their way into the database."""

    relative: float | None
    columns: dict[str, list[Any]]
    method: dict[str, Any]
    hardware: dict[str, Any]
    engine: dict[str, Any]


@dataclass(frozen=True)
class Artifact:
    """What a job made, still in its working folder."""

    path: Path
    sha256: str
    file_bytes: int
    bpw: float
    seconds: float
    made_with: dict[str, Any]
    format: str = "gguf"
    figures: tuple[Measured, ...] = field(default=())
    errors: MeasuredErrors | None = None
    not_measured: tuple[str, ...] = ()


def publish(job: Job, artifact: Artifact) -> Quant:
    """Make a job's result visible. Raises `Stale` if the job was taken away; then nothing is left behind."""
    # Reading takes long, and a transaction holds up everybody else's writes.
    blobs.require(artifact.path, artifact.sha256)
    try:
        with transaction.atomic():
            quant = _record(job, artifact)
            # Before the bytes move: whoever lost the job must not touch the store.
            move(job, State.DONE, f"{quant.level} is published.", quant=quant, finished=timezone.now())
            _attach(quant, artifact)
    except BaseException:
        blobs.discard_unreferenced(artifact.sha256)
        raise
    return quant


def settle_for_existing(job: Job) -> bool:
    """End a job with the quant that was published before it started, if there is one, and say so."""
    quant = Quant.objects.filter(revision=job.revision, recipe_fingerprint=job.recipe_fingerprint).first()
    if quant is None:
        return False
    text = f"{quant.level} had been made already."
    move(job, State.DONE, text, quant=quant, plan=quant.plan, finished=timezone.now())
    return True


def _record(job: Job, artifact: Artifact) -> Quant:
    return Quant.objects.create(
        revision=job.revision,
        level=job.level,
        format=artifact.format,
        file_bytes=artifact.file_bytes,
        bpw=artifact.bpw,
        plan=job.plan,
        recipe_fingerprint=job.recipe_fingerprint,
        made_by=job.request.user,
        made_with=artifact.made_with,
        not_measured=[without_paths(sentence) for sentence in artifact.not_measured],
        seconds=artifact.seconds,
    )


def _attach(quant: Quant, artifact: Artifact) -> None:
    blob = blobs.adopt(artifact.path, artifact.sha256)
    # The catalog lists first what changed last.
    Model.objects.filter(pk=quant.revision.model_id).update(updated=timezone.now())
    QuantFile.objects.create(quant=quant, path=artifact.path.name, blob=blob)
    Measurement.objects.bulk_create(Measurement(quant=quant, **vars(figure)) for figure in artifact.figures)
    if artifact.errors is not None:
        TensorErrors.objects.create(quant=quant, **vars(artifact.errors))
