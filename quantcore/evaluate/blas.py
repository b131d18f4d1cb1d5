"""Threads: one pool of workers, each with its share of BLAS threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def workers(threads: int | None, tasks: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of at most `threads` workers for `tasks` independent pieces of work.

    Workers run whole pieces side by side with BLAS kept to what threads are left over, since element-wise
    numpy would else leave all cores but one idle. Leaving by an exception drops what has not begun.
    """
    threads = threads or usable_cores()
    count = max(1, min(threads, tasks))
    with threadpool_limits(limits=max(1, threads // count), user_api="blas"):
        pool = ThreadPoolExecutor(count, thread_name_prefix="quantcore")
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
