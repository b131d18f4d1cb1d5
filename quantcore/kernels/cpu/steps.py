"""The steps of a forward pass between its matrix products, each in one pass over memory.

They do what `quantcore.evaluate.ops` does by numpy. Numbers that are not whole come as bits of float32 in
`tables`.
"""

from __future__ import annotations

import math

import numpy as np

from quantcore.kernels.common import larger
from quantcore.kernels.cpu._functions import exponential, total
from quantcore.kernels.lanes import bits_float, fused, largest, shared, splat
from quantcore.kernels.memory import as_doubles, as_floats, floats, load, move, store
from quantcore.kernels.status import FINE

_ZERO, _ONE = np.float32(0), np.float32(1)
_LOWEST = np.float32(-3.0e38)
CHUNK = 1024  # numbers that are added up in float32, sixteen sums side by side


@shared
def _squares(x, n):
    found = 0.0
    for first in range(0, n // 16 * 16, CHUNK):
        sums = splat(_ZERO)
        for i in range(first, min(first + CHUNK, n // 16 * 16), 16):
            value = load(x, i)
            sums = fused(value, value, sums)
        found += total(sums)
    for i in range(n // 16 * 16, n):
        found += np.float64(x[i]) * np.float64(x[i])
    return found


@shared
def rms_norm(x, n_rows, row_length, importance, tables, out):
    """Fill `out` with rows over their root mean square, times `importance`; epsilon is `tables[0]`."""
    eps = np.float64(bits_float(tables[0]))
    whole = row_length // 16 * 16
    for row in range(n_rows):
        source, target = move(x, row * row_length), move(as_floats(out), row * row_length)
        factor = np.float32(1.0 / math.sqrt(_squares(source, row_length) / row_length + eps))
        for i in range(0, whole, 16):
            store(target, i, load(source, i) * factor * load(importance, i))
        for i in range(whole, row_length):
            target[i] = source[i] * factor * importance[i]
    return FINE


@shared
def gated(x, n_rows, row_length, importance, tables, out):
    """Fill `out` with silu(x) times `importance`, of the same shape."""
    target = as_floats(out)
    n = n_rows * row_length
    for i in range(0, n - 15, 16):
        gate = load(x, i)
        store(target, i, gate / (exponential(-gate) + _ONE) * load(importance, i))
    rest = n // 16 * 16
    if rest < n:
        spare = floats(16)
        store(spare, 0, splat(_ZERO))
        for i in range(rest, n):
            spare[i - rest] = x[i]
        gate = load(spare, 0)
        store(spare, 0, gate / (exponential(-gate) + _ONE))
        for i in range(rest, n):
            target[i] = spare[i - rest] * importance[i]
    return FINE


@shared
def _padded(x, first, n, spare):
    """Return where sixteen numbers from `x[first]` on are, the lowest there is standing for those missing."""
    if first + 16 <= n:
        return move(x, first)
    store(spare, 0, splat(_LOWEST))
    for i in range(first, n):
        spare[i - first] = x[i]
    return spare


@shared
def partition(x, n_rows, row_length, importance, tables, out):
    """Fill `out`, float64 `(n_rows, 2)`, with the largest of each row and the sum of e**(x - largest)."""
    found, spare = as_doubles(out), floats(16)
    for row in range(n_rows):
        source = move(x, row * row_length)
        top = splat(_LOWEST)
        for i in range(0, row_length, 16):
            top = larger(top, load(_padded(source, i, row_length, spare), 0))
        peak = largest(top)
        summed = 0.0
        for first in range(0, row_length, CHUNK):
            sums = splat(_ZERO)
            for i in range(first, min(first + CHUNK, row_length), 16):
                sums = sums + exponential(load(_padded(source, i, row_length, spare), 0) - peak)
            summed += total(sums)
        found[2 * row] = np.float64(peak)
        found[2 * row + 1] = summed
    return FINE


STEPS = {"rms_norm": rms_norm, "gated": gated, "partition": partition}
