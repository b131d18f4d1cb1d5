"""`quantcore.methods.gridstart` compiled: where the search of IQ2_XXS starts, for sixteen groups of 32."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import larger
from quantcore.kernels.cpu._gridsearch import nearest_lanes
from quantcore.kernels.lanes import any_of, ones, shared, splat, splat_int, to_float, where
from quantcore.kernels.memory import floats, load, store

WALKS = 5
GROUP = 32

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITE = np.float32(np.inf)


def starting(top_code: int, nothing: float):
    """Return a function of columns x and w that gives the scales to start from; 0 where there is nothing."""
    top = np.float32(top_code)
    reach = np.array(
        [np.float32(0.1) * np.float32(i) + top for i in (*range(-4, 0), *range(1, 5))], np.float32
    )
    tries = len(reach)
    least = np.float32(nothing)

    @shared
    def start_scale(x, w):
        codes = floats(512)
        peak = load(x, 0)
        for i in range(1, GROUP):
            peak = larger(peak, load(x, 16 * i))
        inverse = top / peak
        step = _ONE / inverse
        best = splat(_ZERO)
        for i in range(GROUP):
            xi = load(x, 16 * i)
            # Codes of the few negative numbers come back from one unsigned byte.
            error = xi - step * to_float(nearest_lanes(inverse * xi) & 255)
            best = best + load(w, 16 * i) * error * error
        for t in range(tries):
            trial = reach[t] / peak
            step = _ONE / trial
            total = splat(_ZERO)
            for i in range(GROUP):
                xi = load(x, 16 * i)
                code = nearest_lanes(trial * xi)
                error = xi - step * to_float(where(code > top_code, top_code, code))
                total = total + load(w, 16 * i) * error * error
            wins = total < best
            best = where(wins, total, best)
            inverse = where(wins, trial, inverse)
        sum_lx = splat(_ZERO)
        sum_l2 = splat(_ZERO)
        for i in range(GROUP):
            wi = load(w, 16 * i)
            code = nearest_lanes(inverse * load(x, 16 * i))
            code = where(code > top_code, top_code, code)
            number = to_float(code)
            sum_lx = sum_lx + wi * load(x, 16 * i) * number
            sum_l2 = sum_l2 + wi * number * number
            store(codes, 16 * i, to_float(code & 255))
        for _ in range(WALKS):
            moved = splat_int(0)
            for i in range(GROUP):
                xi = load(x, 16 * i)
                wi = load(w, 16 * i)
                old = load(codes, 16 * i)
                rest_lx = sum_lx - wi * xi * old
                rest_l2 = sum_l2 - wi * old * old
                code = nearest_lanes(xi * rest_l2 / rest_lx)
                code = where(code > top_code, top_code, code)
                number = to_float(code)
                new_lx = rest_lx + wi * xi * number
                new_l2 = rest_l2 + wi * number * number
                share = where(number != old, new_lx * new_lx * sum_l2, -_INFINITE)
                share = where(rest_lx > _ZERO, share, -_INFINITE)
                share = where(rest_l2 > _ZERO, share, -_INFINITE)
                wins = share > sum_lx * sum_lx * new_l2
                store(codes, 16 * i, where(wins, to_float(code & 255), old))
                sum_lx = where(wins, new_lx, sum_lx)
                sum_l2 = where(wins, new_l2, sum_l2)
                moved = moved | ones(wins)
            if not any_of(moved > 0):
                break
        scale = where(sum_l2 > _ZERO, sum_lx / sum_l2, _ZERO)
        return where(peak >= least, scale, _ZERO)

    return start_scale
