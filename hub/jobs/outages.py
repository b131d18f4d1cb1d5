"""A database that is away for a moment, or busy for long, must not cost the work of hours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import InterfaceError, OperationalError, connection

AWAY = (OperationalError, InterfaceError)
logger = logging.getLogger(__name__)


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Let a write fail that is soon made again anyway, such as a heartbeat."""
    try:
        yield
    except AWAY as exc:
        logger.warning("%s: the database does not answer (%s)", what, exc)
        drop_broken_connection()


def drop_broken_connection() -> None:
    """See that the next query gets a connection that works; by itself Django does so once per request."""
    if not connection.in_atomic_block:
        connection.close_if_unusable_or_obsolete()
