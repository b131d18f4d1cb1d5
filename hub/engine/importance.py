"""Importance matrices: measured once for each revision, on the hub's own text."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

import quantcore
from hub.engine.exchanged import N_CTX, Tell, reporter, translated

if TYPE_CHECKING:
    from hub.catalog.models import Revision
    from hub.engine.exchanged import Importance, Source

CALIBRATION = "calibration.txt"


def calibration_protocol() -> dict[str, Any]:
    """Return what two importance matrices of a model must share to be the same."""
    return {
        "dataset": CALIBRATION,
        "dataset_sha256": hashlib.sha256(settings.CALIBRATION_TEXT.read_bytes()).hexdigest(),
        "n_ctx": N_CTX,
        "chunks_wanted": settings.CALIBRATION_CHUNKS,
    }


def promised_importance(revision: Revision, source: Source) -> Importance:
    """Return what `calibrate` will make, without its values; raises `Refused` where it cannot be measured."""
    with translated():
        return quantcore.promised_importance(source, importance_name(revision), CALIBRATION)


def importance_name(revision: Revision) -> str:
    """Return what files made with a revision's importance matrix call it."""
    return f"{revision.model.name}.imatrix.gguf"


def calibrate(source: Source, destination: Path, tell: Tell) -> None:
    """Measure the importance matrix of a model on the hub's text and write it, whole or not at all."""
    raw = settings.CALIBRATION_TEXT.read_bytes()
    with translated():
        sums = quantcore.importance(
            source,
            raw.decode().removesuffix("\n"),
            CALIBRATION,
            digest=hashlib.sha256(raw).hexdigest(),
            n_ctx=N_CTX,
            n_chunks=settings.CALIBRATION_CHUNKS,
            threads=settings.JOB_THREADS,
            report=reporter(tell),
        )
        sums.save(destination)


def open_importance(revision: Revision, path: Path) -> Importance:
    """Open a measured importance matrix of a revision."""
    with translated():
        return dataclasses.replace(quantcore.open_imatrix(path), given=importance_name(revision))


def importance_method(importance: Importance) -> dict[str, Any]:
    """Return how an importance matrix of this hub was measured."""
    return calibration_protocol() | {"chunks": importance.n_chunks}
