"""How many processor cores there are to use, and how many threads make use of them."""

from __future__ import annotations

import os

MOST_PER_CORE = 4  # threads; whoever asks for more gets these: each holds rows and gains nothing


def usable_cores() -> int:
    """Return how many cores this process may use: fewer than the machine has, where it is confined."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_threads(wanted: int | None = None) -> int:
    """Return how many threads to start where `wanted` are asked for, None meaning one for each core."""
    return min(wanted or usable_cores(), MOST_PER_CORE * usable_cores())
