"""A stage of several steps shows one bar and one time left."""

from __future__ import annotations

from hub.jobs.whole import Whole


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def progress(done, total, item=""):
    return {"stage": "measure", "done": done, "total": total, "item": item, "index": 9, "count": 9}


def test_the_bar_fills_once():
    """Steps weigh what they cost, and the share never falls back when the next one begins."""
    told = []
    whole = Whole(told.append, {"source": 1.0, "quant": 1.0, "speed": 0.5})

    for name in ("source", "quant", "speed"):
        for done in (0, 5, 10):
            whole.step(name)(progress(done, 10))

    assert [p["done"] for p in told] == [0, 200, 400, 400, 600, 800, 800, 900, 1000]
    assert {(p["index"], p["count"]) for p in told} == {(1, 3), (2, 3), (3, 3)}


def test_the_time_left_is_that_of_the_whole_stage():
    """Half of the first of two equal steps after 10 seconds leaves 30, not 10."""
    told, clock = [], Clock()
    whole = Whole(told.append, {"source": 1.0, "quant": 1.0}, clock)
    clock.now += 10

    whole.step("source")(progress(1, 2, "chunk 4 of 8"))

    assert told[0]["seconds_left"] == 30
    assert told[0]["item"] == "source: chunk 4 of 8"


def test_no_time_left_is_told_before_there_is_a_pace():
    told, clock = [], Clock()
    whole = Whole(told.append, {"source": 1.0}, clock)
    clock.now += 60

    whole.step("source")(progress(1, 1000))

    assert told[0]["seconds_left"] is None
