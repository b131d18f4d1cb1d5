"""Threads: one pool of workers, each with its share of BLAS threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
from threadpoolctl import threadpool_limits

from quantcore.cores import usable_cores


@contextmanager
def workers(threads: int | None, tasks: int, blas: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of at most `threads` workers for `tasks` independent pieces of work.

    Workers run whole pieces side by side with BLAS kept to what threads are left over, or to `blas`, since
    element-wise numpy would else leave all cores but one idle. Leaving by an exception drops what has not
    begun.
    """
    threads = threads or usable_cores()
    count = max(1, min(threads, tasks))
    with threadpool_limits(limits=blas or max(1, threads // count), user_api="blas"):
        # A damaged model overflows in many places; what comes of it is judged once, at the end.
        pool = ThreadPoolExecutor(
            count, thread_name_prefix="quantcore", initializer=np.seterr, initargs=("ignore",)
        )
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
