"""What people asked for and how far it has come. The database is the truth; the broker only wakes workers."""

from __future__ import annotations

import secrets

from django.conf import settings
from django.db import models
from django.urls import reverse

from hub.catalog.models import Quant, Revision


class Stage(models.TextChoices):
    """The journey of a job, in order."""

    FETCH = "fetch", "Fetch"
    CALIBRATE = "calibrate", "Calibrate"
    PLAN = "plan", "Plan"
    QUANTIZE = "quantize", "Quantize"
    VERIFY = "verify", "Verify"
    MEASURE = "measure", "Measure"
    PUBLISH = "publish", "Publish"


class State(models.TextChoices):
    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    DONE = "done", "Done"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


# The legal steps; `actions.move` refuses any other. Running returns to queued when its worker is lost.
STEPS: dict[str, frozenset[str]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED, State.FAILED}),
    State.RUNNING: frozenset({State.DONE, State.FAILED, State.CANCELLED, State.QUEUED}),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.DONE: frozenset(),
}
ENDED = frozenset({State.DONE, State.FAILED, State.CANCELLED})


def new_id() -> str:
    """Return a short id that is safe in an address and cannot be guessed."""
    return secrets.token_hex(8)


class Request(models.Model):
    """One ask: a revision and one or more levels, a job each.

    `jobs` are all that it waits for; a job which another request had started is joined, not made twice.
    """

    id = models.CharField(primary_key=True, max_length=16, default=new_id, editable=False)
    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="requests")
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, on_delete=models.SET_NULL, related_name="requests"
    )
    jobs: models.ManyToManyField[Job, Job] = models.ManyToManyField("Job", related_name="requests")
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-created"]

    def __str__(self) -> str:
        return f"request {self.id}"

    @property
    def state(self) -> str:
        """The state of its jobs taken together: what still moves comes first, then what went wrong."""
        states = {job.state for job in self.jobs.all()}
        order = (State.RUNNING, State.QUEUED, State.FAILED, State.CANCELLED)
        return next((state for state in order if state in states), State.DONE)


class JobQuerySet(models.QuerySet["Job"]):
    def active(self) -> JobQuerySet:
        return self.filter(state__in=[State.QUEUED, State.RUNNING])

    def ended(self) -> JobQuerySet:
        return self.filter(state__in=ENDED)


class Job(models.Model):
    """One quant being made.

    `attempt` fences writers: whoever works for an older attempt finds that its updates match no row.
    `progress` is the newest `Progress` of the running stage as JSON, with `started_at`, when the stage began.
    `heartbeat` is set by the worker every few seconds.
    """

    class ErrorKind(models.TextChoices):
        REFUSED = "refused", "Refused"  # the user can mend it
        RETRY = "retry", "Worth another try"  # disk, network, lost worker
        FAULT = "fault", "Our fault"  # a bug; the reference finds it in the log

    id = models.CharField(primary_key=True, max_length=16, default=new_id, editable=False)
    request = models.ForeignKey(
        Request, on_delete=models.CASCADE, related_name="own_jobs", help_text="The first that asked for it."
    )
    revision = models.ForeignKey(Revision, on_delete=models.CASCADE, related_name="jobs")
    level = models.CharField(max_length=32)
    recipe_fingerprint = models.CharField(max_length=64, db_index=True)
    state = models.CharField(max_length=12, choices=State.choices, default=State.QUEUED, db_index=True)
    stage = models.CharField(max_length=12, choices=Stage.choices, blank=True)
    attempt = models.PositiveIntegerField(default=0)
    lost = models.PositiveIntegerField(default=0, help_text="How many times its worker vanished.")
    progress = models.JSONField(default=dict)
    plan = models.JSONField(default=dict)
    error = models.TextField(blank=True)
    error_kind = models.CharField(max_length=8, choices=ErrorKind.choices, blank=True)
    cancel_requested = models.BooleanField(default=False)
    worker = models.CharField(max_length=128, blank=True)
    heartbeat = models.DateTimeField(null=True, blank=True)
    quant = models.ForeignKey(Quant, null=True, blank=True, on_delete=models.SET_NULL, related_name="jobs")
    created = models.DateTimeField(auto_now_add=True)
    started = models.DateTimeField(null=True, blank=True)
    finished = models.DateTimeField(null=True, blank=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        ordering = ["-created", "-pk"]
        constraints = [
            # One live job per recipe: asking twice joins the job that is under way.
            models.UniqueConstraint(
                fields=["revision", "recipe_fingerprint"],
                condition=models.Q(state__in=["queued", "running"]),
                name="one_live_job_per_recipe",
            )
        ]

    def __str__(self) -> str:
        return f"job {self.id}"

    def get_absolute_url(self) -> str:
        return reverse("jobs:job", args=[self.pk])

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class JobEvent(models.Model):
    """A line of a job's log: each change of state or stage, and what the engine had to say."""

    class Kind(models.TextChoices):
        STATE = "state", "State"
        STAGE = "stage", "Stage"
        LOG = "log", "Log"
        ERROR = "error", "Error"

    job = models.ForeignKey(Job, on_delete=models.CASCADE, related_name="events")
    at = models.DateTimeField(auto_now_add=True)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    stage = models.CharField(max_length=12, choices=Stage.choices, blank=True)
    text = models.TextField()

    class Meta:
        ordering = ["pk"]

    def __str__(self) -> str:
        return self.text
