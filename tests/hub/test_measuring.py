"""What goes into the database is a number that every database takes."""

import json
from dataclasses import replace
from math import inf, nan

import numpy as np

from hub import engine
from hub.catalog.models import Measurement
from hub.engine import measuring as figures
from hub.jobs import measuring
from quantcore.evaluate.spread import spread

Metric = Measurement.Metric


def test_bits_per_byte_that_are_no_number_are_left_out():
    quality = engine.Quality(engine.Figure(5.0, 0.1), engine.Figure(nan, nan), np.ones(3), {})

    assert [figure.metric for figure in measuring._absolute(quality)] == [Metric.PPL]


def test_percentiles_that_are_no_number_are_left_out():
    found = figures._spread(replace(spread(np.arange(4.0)), max=inf))

    assert "max" not in found
    assert found["median"] == 1.5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_errors_of_tensors_have_null_for_what_is_no_number():
    assert [figures._rounded(value) for value in (nan, inf, None, 0.123456789)] == [
        None,
        None,
        None,
        0.1234568,
    ]
