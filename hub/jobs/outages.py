"""A database that is away for a moment, or busy for long, must not cost the work of hours."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from django.db import InterfaceError, OperationalError, close_old_connections

AWAY = (OperationalError, InterfaceError)
logger = logging.getLogger(__name__)


@contextmanager
def tolerated(what: str) -> Iterator[None]:
    """Let a write fail that is soon made again anyway, such as a heartbeat."""
    try:
        yield
    except AWAY as exc:
        logger.warning("%s: the database does not answer (%s)", what, exc)
        # A broken connection would be used again for ever: only requests and tasks drop it by themselves.
        close_old_connections()
