"""What a load balancer and `quanthub up` ask: is this process alive, can it serve, does a worker listen?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from hub import blobs, broker
from hub.celery import app
from hub.jobs.models import Job

WORKER_SECONDS = 1.0


@require_safe
@never_cache
def alive(_request: HttpRequest) -> HttpResponse:
    """Answer as long as this process does."""
    return HttpResponse("ok\n", content_type="text/plain")


@require_safe
@never_cache
def ready(_request: HttpRequest) -> JsonResponse:
    """Answer 200 when pages and downloads can be served. Broker and worker are told but not required."""
    found = {name: _holds(check) for name, check in _CHECKS.items()}
    usable = found["database"] and found["storage"]
    return JsonResponse(found, status=200 if usable else 503)


def _holds(check: Callable[[], Any]) -> bool:
    try:
        return bool(check())
    except (DatabaseError, OSError, OperationalError, RedisError):
        return False


def _database() -> bool:
    # A table of ours, so that a database without our migrations is not taken for a good one.
    Job.objects.exists()
    return True


def _storage() -> bool:
    return blobs.can_write()


def _broker() -> bool:
    return bool(settings.BROKER_URL) and broker.answers(settings.BROKER_URL)


def _worker() -> bool:
    if not _broker():
        return False
    # One answer is enough; without a limit the whole second would pass.
    return bool(app.control.broadcast("ping", reply=True, timeout=WORKER_SECONDS, limit=1))


_CHECKS: dict[str, Callable[[], bool]] = {
    "database": _database,
    "storage": _storage,
    "broker": _broker,
    "worker": _worker,
}
