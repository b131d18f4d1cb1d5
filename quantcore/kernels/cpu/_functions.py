"""Functions of lanes that forward passes need."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import clamp
from quantcore.kernels.lanes import cut, from_bits, fused, lane, nearest, part, splat

_LOG2E = np.float32(1.44269504)
# The natural logarithm of two: few bits, so that multiples are exact, and the rest.
_LN2, _REST = np.float32(-0.693359375), np.float32(2.12194440e-4)
_LOWEST, _HIGHEST = np.float32(-87.33), np.float32(88.37)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1)


@part
def exponential(x):
    """Return e**x to float32's last digit; below -87.33, minus infinity included, 1.2e-38.

    1. Moshier, Cephes library, expf: reduction to half of ln 2 around zero, polynomial.
    """
    x = clamp(x, _LOWEST, _HIGHEST)
    n = nearest(x * _LOG2E)
    r = fused(n, splat(_REST), fused(n, splat(_LN2), x))
    p = fused(splat(_C0), r, splat(_C1))
    p = fused(p, r, splat(_C2))
    p = fused(p, r, splat(_C3))
    p = fused(p, r, splat(_C4))
    p = fused(p, r, splat(np.float32(0.5)))
    p = fused(p, r * r, r + np.float32(1))
    return p * from_bits((cut(n) + 127) << 23)


@part
def total(x):
    """Return the sum of sixteen lanes as float64, one after another."""
    found = 0.0
    for i in range(16):
        found += lane(x, i)
    return found
