"""How busy other programs kept the processors while something was timed.

1. proc(5), `/proc/stat`: jiffies of every processor since the system started.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_IDLE = slice(3, 5)  # idle, and waiting for a disk
_COUNTED = 8  # user to steal; what guests use is part of user


class Others:
    """Begin to watch; `share` says what the time since then was like."""

    def __init__(self) -> None:
        self._busy, self._own, self._began = _busy_seconds(), _own_seconds(), time.monotonic()

    def share(self) -> float | None:
        """Return the share of all processors' time, 0 to 1, that neither this process nor its children used.

        None where the system does not tell, as any but Linux. Children count once they have ended.
        """
        busy, seconds = _busy_seconds(), time.monotonic() - self._began
        if busy is None or self._busy is None or seconds <= 0:
            return None
        others = busy - self._busy - (_own_seconds() - self._own)
        return min(1.0, max(0.0, others / (seconds * (os.cpu_count() or 1))))


def _busy_seconds() -> float | None:
    try:
        first = Path("/proc/stat").read_text().partition("\n")[0]
        jiffies = [int(text) for text in first.split()[1 : 1 + _COUNTED]]
    except (OSError, ValueError):
        return None
    return (sum(jiffies) - sum(jiffies[_IDLE])) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
