"""How far a piece of work has come, and how long the rest will take."""

from __future__ import annotations

import pytest

from quantcore.progress import seconds_left


@pytest.mark.parametrize(
    ("done", "total", "seconds", "left"),
    [
        (0, 1000, 9.0, None),
        (9, 1000, 9.0, None),
        (500, 1000, 0.4, None),
        (10, 1000, 1.0, 99.0),
        (500, 1000, 3.0, 3.0),
        (1000, 1000, 3.0, 0.0),
        (0, 0, 3.0, None),
    ],
)
def test_time_left_is_told_once_there_is_a_pace(done, total, seconds, left):
    """Nothing is said before a hundredth of the work and half a second."""
    assert seconds_left(done, total, seconds) == left
