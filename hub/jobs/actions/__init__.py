"""Every write to requests and jobs: asking, a job's steps, its publication, putting right what was lost."""

from hub.jobs.actions.asking import Refused, cancel, may_manage, retry, submit
from hub.jobs.actions.publishing import Artifact, Measured, MeasuredErrors, publish, settle_for_existing
from hub.jobs.actions.reconciling import reconcile
from hub.jobs.actions.steps import (
    IllegalStep,
    Stale,
    beat,
    claim,
    end_cancelled,
    enter,
    fail,
    keep_plan,
    log,
    move,
    record,
    release,
)

__all__ = [
    "Artifact",
    "IllegalStep",
    "Measured",
    "MeasuredErrors",
    "Refused",
    "Stale",
    "beat",
    "cancel",
    "claim",
    "end_cancelled",
    "enter",
    "fail",
    "keep_plan",
    "log",
    "may_manage",
    "move",
    "publish",
    "reconcile",
    "record",
    "release",
    "retry",
    "settle_for_existing",
    "submit",
]
