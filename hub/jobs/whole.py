"""One progress for a stage of several steps: a bar that fills once, and a time left for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hub.engine import Tell

SHARES = 1000
# Before this much is done, or this long has passed, a time left would be a guess.
TOLD_FROM_SHARE, TOLD_FROM_SECONDS = 0.02, 1.0


class Whole:
    """Turn the progress of each step into that of the stage.

    `steps` says what each step costs beside the others, in the order they are taken.
    """

    def __init__(
        self, tell: Tell, steps: Mapping[str, float], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.tell = tell
        self.steps = dict(steps)
        self.clock = clock
        self.began = clock()

    def step(self, name: str) -> Tell:
        """Return what the step of that name reports to."""
        return partial(self._report, name)

    def _report(self, name: str, progress: dict[str, Any]) -> None:
        names = list(self.steps)
        place = names.index(name)
        before = sum(self.steps[earlier] for earlier in names[:place])
        inside = progress["done"] / progress["total"] if progress["total"] else 1.0
        share = (before + self.steps[name] * inside) / sum(self.steps.values())
        seconds = self.clock() - self.began
        told = share >= TOLD_FROM_SHARE and seconds >= TOLD_FROM_SECONDS
        item = progress["item"]
        self.tell(
            {
                **progress,
                "done": round(share * SHARES),
                "total": SHARES,
                "unit": "shares",
                "seconds": seconds,
                "seconds_left": seconds * (1 - share) / share if told else None,
                "item": f"{name}: {item}" if item else name,
                "index": place + 1,
                "count": len(names),
            }
        )
