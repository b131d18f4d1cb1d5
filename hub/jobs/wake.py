"""Waking workers. A message holds a job's id alone; when one is lost, the reconciler sends another."""

from __future__ import annotations

import logging
from typing import Any

from django.conf import settings
from django.db import transaction
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from hub.celery import app

TASK = "hub.jobs.tasks.work"
logger = logging.getLogger(__name__)


def send(job_id: str) -> None:
    """Wake a worker for a job once the current transaction is committed."""
    transaction.on_commit(lambda: _send_now(job_id))


def _send_now(job_id: str) -> None:
    if not settings.BROKER_URL:
        logger.info("job %s: no broker is configured; it waits for a worker to look", job_id)
        return
    try:
        app.send_task(TASK, args=[job_id], retry=False)
    except (OperationalError, OSError) as exc:
        logger.warning("job %s: the broker does not answer (%s); it waits for a worker to look", job_id, exc)


def waiting_messages() -> int:
    """Return how many messages the broker holds; 0 where there is no queue yet or no broker."""
    if not settings.BROKER_URL:
        return 0
    try:
        with app.connection_for_read() as connection, connection.channel() as opened:
            channel: Any = opened  # Each transport has its own class.
            return int(channel.queue_declare(app.conf.task_default_queue, durable=True).message_count)
    except (OperationalError, OSError, RedisError):
        return 0
