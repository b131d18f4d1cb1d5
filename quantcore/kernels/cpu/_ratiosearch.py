"""The search of `quantcore.methods.kquant.scale_by_ratio` compiled: the scales of sixteen groups."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import clamp
from quantcore.kernels.lanes import absolute, nearest, part, shared, splat, where
from quantcore.kernels.memory import load, store

# Below this magnitude a group counts as zero.
NOTHING = np.float32(1e-15)

_ZERO = np.float32(0)


@part
def signed_peak(x, group):
    """Return from each of 16 columns the value of largest magnitude; the first of equals, 0 if all are."""
    peak = splat(_ZERO)
    size = splat(_ZERO)
    for i in range(group):
        xi = load(x, 16 * i)
        magnitude = absolute(xi)
        above = magnitude > size
        peak = where(above, xi, peak)
        size = where(above, magnitude, size)
    return peak


def rounding(half: int):
    """Return a part that rounds to codes `-half ... half - 1`."""
    low = np.float32(-half)
    high = np.float32(half - 1)

    @part
    def round_signed(x, inverse):
        return clamp(nearest(x * inverse), low, high)

    return round_signed


def ratio_search(group: int, half: int):
    """Return the search over groups of `group` with codes `-half ... half - 1`."""
    steps = [0, *range(-9, 0), *range(1, 10)]
    reach = np.array([-(np.float32(half) + np.float32(0.1) * np.float32(i)) for i in steps], np.float32)
    tries = len(reach)
    round_signed = rounding(half)

    @shared
    def search(x, w, wx, fit):
        """Put scale and inverse of 16 columns `x` with weights `w` into `fit`; `wx` is room for as much."""
        for i in range(group):
            store(wx, 16 * i, load(w, 16 * i) * load(x, 16 * i))
        peak = signed_peak(x, group)
        scale = splat(_ZERO)
        best = splat(_ZERO)
        inverse = splat(_ZERO)
        for t in range(tries):
            trial = reach[t] / peak
            sum_lx = splat(_ZERO)
            sum_l2 = splat(_ZERO)
            for i in range(group):
                code = round_signed(load(x, 16 * i), trial)
                sum_lx = sum_lx + load(wx, 16 * i) * code
                sum_l2 = sum_l2 + load(w, 16 * i) * code * code
            ratio = sum_lx / sum_l2
            if t == 0:
                # The first counts whatever it explains.
                scale = where(sum_l2 != _ZERO, ratio, _ZERO)
                best = scale * sum_lx
                inverse = trial
            else:
                wins = (sum_l2 > _ZERO) & (sum_lx * sum_lx > best * sum_l2)
                scale = where(wins, ratio, scale)
                best = where(wins, ratio * sum_lx, best)
                inverse = where(wins, trial, inverse)
        live = absolute(peak) >= NOTHING
        store(fit, 0, where(live, scale, _ZERO))
        store(fit, 16, where(live, inverse, _ZERO))

    return search
