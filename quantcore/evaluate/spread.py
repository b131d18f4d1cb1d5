"""How the values of a measurement's tokens are spread: mean, extremes and what lies between."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """A mean with its standard error, and percentiles: 95 % of the values are at most `p95`, 0.1 % `p001`."""

    mean: float
    stderr: float
    min: float
    p001: float
    p01: float
    p05: float
    p10: float
    p25: float
    median: float
    p75: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


PERCENTILES = {
    "min": 0.0,
    "p001": 0.1,
    "p01": 1.0,
    "p05": 5.0,
    "p10": 10.0,
    "p25": 25.0,
    "median": 50.0,
    "p75": 75.0,
    "p90": 90.0,
    "p95": 95.0,
    "p99": 99.0,
    "p999": 99.9,
    "max": 100.0,
}


def spread(values: Doubles) -> Spread:
    """Return how `values` `(n,)` are spread; between two of them percentiles are on the line."""
    found = np.percentile(values, list(PERCENTILES.values()))
    return Spread(
        mean=float(values.mean()),
        stderr=standard_error(values),
        **{name: float(value) for name, value in zip(PERCENTILES, found, strict=True)},
    )


def standard_error(values: Doubles) -> float:
    """Return the standard error of the mean."""
    return math.sqrt(max(0.0, values.var()) / (len(values) - 1)) if len(values) > 1 else 0.0
