"""How far a piece of work has come: what the terminal, the queue and the page all show."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

FIRST_SHARE, FIRST_SECONDS = 0.01, 0.5  # of the work and of time, before a pace is one


@dataclass(frozen=True)
class Progress:
    """Say where a stage stands.

    `done` and `total` count `unit` (bytes, chunks, runs); `item` is what is being worked on, the
    `index`-th (from 1) of `count`. `seconds` have passed since the stage began; `seconds_left` is None until
    it can be told.
    """

    stage: str
    done: int
    total: int
    unit: str
    seconds: float
    seconds_left: float | None = None
    item: str = ""
    index: int = 0
    count: int = 0

    @property
    def share(self) -> float:
        """Return the share done, 0 to 1."""
        return self.done / self.total if self.total else 1.0


# A callback may raise `errors.Cancelled` to stop the work; whoever calls it cleans up and lets it pass.
Report = Callable[[Progress], None]


def ignore(_progress: Progress) -> None:
    """Report to nobody."""


def seconds_left(done: int, total: int, seconds: float) -> float | None:
    """Return the time left at the average pace so far, or None while the pace is a guess.

    Opening files and starting threads is most of the first moments: before half a second and a hundredth of
    the work have passed, it would be told as the pace of the rest.
    """
    if done < total * FIRST_SHARE or seconds < FIRST_SECONDS:
        return None
    return (total - done) * seconds / done if done else None
