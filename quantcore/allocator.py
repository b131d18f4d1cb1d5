"""Keep freed memory for what comes next.

The searches of the numpy path ask for arrays of a few megabytes and free them again, hundreds of times a
second. Left alone, glibc gives such blocks back to the system each time, and every page of the next one is
zeroed and mapped anew, which costs up to a third of the time.
"""

from __future__ import annotations

import ctypes

# From glibc's malloc.h: above which size a block is mapped for itself, and how much may lie free at the end.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 1 << 25  # glibc takes no more
MOST_KEPT = 1 << 28


def keep_freed_memory() -> None:
    """Let the C library keep what is freed; does nothing where it is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_TRIM_THRESHOLD, MOST_KEPT)
