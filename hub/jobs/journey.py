"""The stages of a job: fetch, calibrate (if the level asks), plan, quantize, verify, measure, publish."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.utils import timezone

from hub import blobs, engine
from hub.catalog.templatetags.figures import duration, size
from hub.files import without_paths
from hub.jobs import actions, importance, measuring, outages, workspace
from hub.jobs.models import Job, Stage
from hub.jobs.queries import stages_of
from hub.layout import lay_out, without_folder

SMALL = 64 << 20
SECONDS_BETWEEN_RECORDS = 1.0
logger = logging.getLogger(__name__)


def make(job: Job) -> None:
    """Walk a running job through its stages, or end it with the sentence that says why not."""
    try:
        try:
            if not actions.settle_for_existing(job):
                with workspace.fresh(job) as folder:
                    Journey(job, folder).walk()
        except actions.Stale:
            raise
        except Exception as exc:
            logger.exception("job %s failed", job.pk)
            outages.drop_broken_connection()
            actions.fail(job, *_why(exc, job))
    except actions.Stale:
        logger.warning("job %s: attempt %s was taken away", job.pk, job.attempt)


def _why(exc: Exception, job: Job) -> tuple[Job.ErrorKind, str]:
    """Return whose turn it is, and the sentence that the page shows."""
    if isinstance(exc, engine.EngineError | blobs.BlobError):
        return Job.ErrorKind(exc.kind), without_paths(without_folder(str(exc), workspace.folder(job)))
    if isinstance(exc, outages.AWAY):
        return Job.ErrorKind.RETRY, "The hub's database did not answer in time. Try again."
    if isinstance(exc, OSError):
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        what = "The disk is full" if full else f"The machine refused a file operation ({exc.strerror or exc})"
        return Job.ErrorKind.RETRY, f"{what}. Once that is mended, try again."
    log = workspace.log_file(job).name
    text = f"Something went wrong in the hub itself. For whoever runs it: log jobs/{log}."
    return Job.ErrorKind.FAULT, text


class Recorder:
    """Store the progress of the running stage, at most once a second; its first and last word always."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.restart()

    def restart(self) -> None:
        self.started = time.monotonic()
        self.started_at = timezone.now().isoformat()
        self.recorded = float("-inf")

    def __call__(self, progress: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self.recorded >= SECONDS_BETWEEN_RECORDS or progress["done"] == progress["total"]:
            own = {"stage": self.job.stage, "started_at": self.started_at}
            with outages.tolerated(f"progress of job {self.job.pk}"):
                actions.record(self.job, progress | own)
            self.recorded = now

    def tell(self, done: int, total: int, unit: str, item: str, index: int = 0, count: int = 0) -> None:
        """Report a step of the hub's own in the shape of the engine's progress."""
        seconds = time.monotonic() - self.started
        self(
            {
                "stage": self.job.stage,
                "done": done,
                "total": total,
                "unit": unit,
                "seconds": seconds,
                "seconds_left": seconds * (total - done) / done if done else None,
                "item": item,
                "index": index,
                "count": count,
            }
        )


class Journey:
    """One attempt at a job, in its own folder."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job = job
        self.folder = folder
        self.record = Recorder(job)
        self.revision = job.revision
        self.importance: engine.Importance | None = None
        self.lacking = ""  # why no importance matrix can be measured
        self.destination = folder / f"{self.revision.model.name}-{job.level}.gguf"

    def walk(self) -> None:
        steps: dict[Stage, Callable[[], None]] = {
            Stage.FETCH: self.fetch,
            Stage.CALIBRATE: self.calibrate,
            Stage.PLAN: self.plan,
            Stage.QUANTIZE: self.quantize,
            Stage.VERIFY: self.verify,
            Stage.MEASURE: self.measure,
            Stage.PUBLISH: self.publish,
        }
        for stage in stages_of(self.job.level):
            actions.enter(self.job, stage)
            self.record.restart()
            steps[stage]()

    def fetch(self) -> None:
        """Lay the source out under its own names, having checked that every byte is there."""
        files = list(self.revision.files.select_related("blob"))
        total, done = sum(file.blob.size for file in files), 0
        for index, file in enumerate(files, 1):
            self.record.tell(done, total, "bytes", file.path, index, len(files))
            blobs.check(file.blob, read=file.blob.size <= SMALL)
            done += file.blob.size
        self.record.tell(done, total, "bytes", "", len(files), len(files))
        self.source = engine.open_source(lay_out(self.revision, self.folder))

    def calibrate(self) -> None:
        """Measure which columns of the weights count, unless that was done for another level."""
        try:
            promised = engine.promised_importance(self.revision, self.source)
        except engine.Refused as exc:
            # The plan will refuse what is noise without; others are only worse.
            actions.log(self.job, f"No importance matrix can be measured of this model: {exc}")
            self.lacking = str(exc)
            return
        # What is not possible anyway is known before the long work.
        engine.make_plan(self.source, self.job.level, promised)
        found = importance.load(self.revision, self.folder)
        how = "kept from before" if found else "measured"
        self.importance = found or importance.measure(self.revision, self.source, self.folder, self.record)
        text = f"{len(self.importance)} entries, {self.importance.n_chunks} chunks of {engine.CALIBRATION}"
        actions.log(self.job, f"Importance matrix, {how}: {text}.")

    def plan(self) -> None:
        self.planned = engine.make_plan(self.source, self.job.level, self.importance, self.lacking)
        self.job.plan = engine.plan_document(self.planned)
        actions.keep_plan(self.job, self.job.plan)
        for warning in self.planned.warnings:
            actions.log(self.job, f"Note: {warning}.")
        actions.log(
            self.job,
            f"{len(self.planned.tensors)} tensors, {size(self.planned.file_bytes)}, "
            f"{self.planned.bpw:.2f} bits per weight.",
        )

    def quantize(self) -> None:
        self.made = engine.quantize(self.source, self.planned, self.destination, self.record, self.importance)
        actions.log(self.job, f"Quantized in {duration(self.made.seconds)}; SHA-256 {self.made.sha256}.")

    def verify(self) -> None:
        engine.verify(self.made.path, self.planned)

    def measure(self) -> None:
        self.found = measuring.measure(self.job, self.source, self.made.path, self.importance, self.record)

    def publish(self) -> None:
        artifact = actions.Artifact(
            path=self.made.path,
            sha256=self.made.sha256,
            file_bytes=self.made.file_bytes,
            bpw=self.planned.bpw,
            seconds=self.made.seconds,
            made_with=engine.versions() | self._importance_document(),
            figures=self.found.figures,
            errors=self.found.errors,
            not_measured=self.found.missed,
        )
        actions.publish(self.job, artifact)

    def _importance_document(self) -> dict[str, Any]:
        if self.importance is None:
            return {}
        return {"imatrix": engine.importance_method(self.importance)}
