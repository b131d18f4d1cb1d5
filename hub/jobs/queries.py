"""What the queue, the job page and the model page show of jobs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db.models import QuerySet
from django.utils import timezone

from hub import engine
from hub.catalog.models import Revision
from hub.catalog.templatetags.figures import size
from hub.jobs.models import Job, JobEvent, Stage, State

ORDER = [stage.value for stage in Stage]
RECENT = 30


@dataclass(frozen=True)
class Step:
    """A stage as the stepper shows it. `look` is one of done, now, next, failed, stopped."""

    stage: Stage
    look: str
    seconds: float | None = None

    @property
    def word(self) -> str:
        """Return what the colour says, for whoever does not see it."""
        return {"now": "under way", "next": "not begun"}.get(self.look, self.look)


@dataclass(frozen=True)
class Gauge:
    """The progress bar. `done` is None while nobody can tell how far it is."""

    done: float | None
    total: float
    count: str = ""


@dataclass(frozen=True)
class Tensor:
    """A line of the plan. `look` is one of done, now, next."""

    number: int
    name: str
    shape: list[int]
    type: str
    nbytes: int
    reason: str
    look: str

    @property
    def word(self) -> str:
        return {"done": "written", "now": "being written"}.get(self.look, "")


@dataclass(frozen=True)
class Seen:
    """What the browser shows already, so that an answer brings only what is new."""

    state: str
    stage: str
    event: int
    tensors: int

    @classmethod
    def read(cls, values: Any) -> Seen:
        """Read it from a query string; nonsense counts as nothing seen."""

        def whole(name: str) -> int:
            text = values.get(name, "")
            return int(text) if text.isdecimal() and len(text) < 19 else 0

        return cls(values.get("state", ""), values.get("stage", ""), whole("event"), whole("tensors"))


def queue() -> tuple[list[Job], list[Job]]:
    """Return the jobs under way, oldest first, and those that ended of late."""
    jobs = with_model(Job.objects.all())
    active = sorted(jobs.active(), key=lambda job: (job.state != State.RUNNING, job.created))
    return active, list(jobs.ended().order_by("-finished", "-created")[:RECENT])


def with_model(jobs: QuerySet[Job]) -> Any:
    return jobs.select_related("revision__model", "request__user")


def live_jobs_of(revision: Revision) -> list[Job]:
    """Return the jobs under way for any revision of a model."""
    jobs = Job.objects.active().filter(revision__model=revision.model_id)
    return list(with_model(jobs).order_by("created"))


def newest_by_level(revision: Revision) -> dict[str, Job]:
    """Return the live job of each level of a revision that has one."""
    return {job.level: job for job in Job.objects.active().filter(revision=revision)}


def steps(job: Job, events: Iterable[JobEvent]) -> list[Step]:
    """Return the stages of a job with how long each took in the newest attempt."""
    starts = _starts(job, events)
    order = stages_of(job.level)
    if job.state == State.DONE and Stage.CALIBRATE not in starts:  # made before there was such a stage
        order = [stage for stage in order if stage != Stage.CALIBRATE]
    now = order.index(Stage(job.stage)) if job.stage in order else -1
    ends = _ends(job, starts)
    return [Step(stage, _look(job, place, now), ends.get(stage)) for place, stage in enumerate(order)]


def stages_of(level: str) -> list[Stage]:
    """Return the stages that a job for a level goes through."""
    return [stage for stage in Stage if stage != Stage.CALIBRATE or engine.is_weighed(level)]


def _starts(job: Job, events: Iterable[JobEvent]) -> dict[str, datetime]:
    if not job.stage:
        # Put back into the queue, or just taken: what the log tells of stages belongs to an attempt before.
        return {}
    begun = job.started or job.created
    return {e.stage: e.at for e in events if e.kind == JobEvent.Kind.STAGE and e.at >= begun}


def _ends(job: Job, starts: dict[str, datetime]) -> dict[str, float]:
    """Return each stage's seconds: until the next one began, or the job ended, or now."""
    names = sorted(starts, key=lambda name: starts[name])
    stops = [*(starts[name] for name in names), job.finished or timezone.now()][1:]
    return {name: (stop - starts[name]).total_seconds() for name, stop in zip(names, stops, strict=True)}


def _look(job: Job, place: int, now: int) -> str:
    if job.state == State.DONE or place < now:
        return "done"
    if place > now or job.state == State.QUEUED:
        return "next"
    return {State.FAILED: "failed", State.CANCELLED: "stopped"}.get(State(job.state), "now")


def gauge(job: Job) -> Gauge:
    """Return how far the stage under way has come; an ended job keeps its last reading."""
    if job.state == State.DONE:
        return Gauge(1, 1)
    if job.state == State.QUEUED:
        ahead = Job.objects.active().filter(created__lt=job.created).count()
        return Gauge(0, 1, f"{ahead} job{'s' * (ahead != 1)} ahead" if ahead else "Next in line")
    at = job.progress
    if not at.get("total"):
        return Gauge(None if job.state == State.RUNNING else 0, 1)
    return Gauge(at["done"], at["total"], _count(at))


def _count(at: dict[str, Any]) -> str:
    parts = [f"{at['index']} of {at['count']}"] if at.get("count") else []
    if at.get("unit") == "bytes":
        parts.append(f"{size(at['done'])} of {size(at['total'])}")
    else:
        # Weights and shares are how the engine counts, not how a person does.
        parts.append(f"{100 * at['done'] // at['total']} %")
    return " · ".join(parts)


# What to do about a job that failed, by whose turn it is.
ADVICE = {
    Job.ErrorKind.REFUSED: "Trying again will end the same way until what it names has changed.",
    Job.ErrorKind.RETRY: "Nothing is wrong with the request. Try again, now or when the cause has passed.",
    Job.ErrorKind.FAULT: "This is not your doing. Pass the reference on to whoever runs this hub.",
}


def advice(job: Job) -> str:
    """Return what a person can do about a failure."""
    return ADVICE[Job.ErrorKind(job.error_kind)] if job.error_kind else ""


def tensors(job: Job) -> list[Tensor]:
    """Return the plan's tensors; they are written in the plan's order, so one number says which are done."""
    written = tensors_written(job)
    current = job.state == State.RUNNING and job.stage == Stage.QUANTIZE
    found = []
    for place, tensor in enumerate(job.plan.get("tensors", [])):
        look = "done" if place < written else "now" if current and place == written else "next"
        found.append(
            Tensor(
                number=place + 1,
                name=str(tensor.get("name", "")),
                shape=list(tensor.get("shape", [])),
                type=str(tensor.get("type", "")),
                nbytes=int(tensor.get("nbytes", 0)),
                reason=str(tensor.get("reason", "")),
                look=look,
            )
        )
    return found


def tensors_written(job: Job) -> int:
    """Return how many tensors of the plan lie in the file; what failed or was called off has left none."""
    total = len(job.plan.get("tensors", []))
    if job.state == State.DONE:
        return total
    if job.state != State.RUNNING:
        return 0
    if job.stage not in ORDER or ORDER.index(job.stage) < ORDER.index(Stage.QUANTIZE):
        return 0
    if job.stage != Stage.QUANTIZE:
        return total
    return min(total, max(0, int(job.progress.get("index", 0)) - 1))
