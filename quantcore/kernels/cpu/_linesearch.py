"""The search of `quantcore.methods.kquant.scale_and_minimum` compiled: lines through sixteen groups.

A candidate depends on who won before, so that a group is one long chain of dependent sums and divisions. Two
sets of sixteen groups take turns: while one waits for its division the other one adds up.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from quantcore.kernels.common import clamp, larger, smaller
from quantcore.kernels.lanes import absolute, nearest, part, shared, splat, where
from quantcore.kernels.memory import load, move, store

SETS = 2

# A set's state, rows of sixteen: what was found, and what the steps pass on.
SCALE, MINIMUM, INVERSE, ORIGIN, SUM_W = 0, 16, 32, 48, 64
_SUM_X, _HIGH, _ERROR, _TRIAL = 80, 96, 112, 128
_SUM_L, _SUM_L2, _SUM_XL = 144, 160, 176
_SOLVABLE, _NEW_SCALE, _NEW_MINIMUM = 192, 208, 224
STATE = 240

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITE = np.float32(np.inf)


@part
def over(number, span):
    """Return number / span; spans of zero, or so small that this overflows, give 0 and all codes 0."""
    inverse = number / span
    return where(absolute(inverse) < _INFINITE, inverse, _ZERO)


@part
def round_above(x, origin, inverse, top):
    """Return the codes of `x`."""
    return clamp(nearest(inverse * (x - origin)), _ZERO, top)


@cache
def line_search(group: int, *, by_magnitude: bool):
    """Return the search over groups of `group`; `by_magnitude` measures sum(w * abs(error))."""
    size = 16 * group

    @part
    def weigh_error(diff, w):
        if by_magnitude:
            return w * absolute(diff)
        return w * (diff * diff)

    @part
    def begin(x, w, state, top):
        low = load(x, 0)
        high = low
        sum_w = load(w, 0)
        sum_x = sum_w * low
        for i in range(1, group):
            xi = load(x, 16 * i)
            wi = load(w, 16 * i)
            low = smaller(low, xi)
            high = larger(high, xi)
            sum_w = sum_w + wi
            sum_x = sum_x + wi * xi
        minimum = where(low > _ZERO, _ZERO, low)
        inverse = over(top, high - minimum)
        scale = over(_ONE, inverse)
        error = splat(_ZERO)
        for i in range(group):
            xi = load(x, 16 * i)
            diff = scale * round_above(xi, minimum, inverse, top) + minimum - xi
            error = error + weigh_error(diff, load(w, 16 * i))
        store(state, SCALE, scale)
        store(state, MINIMUM, minimum)
        store(state, INVERSE, inverse)
        store(state, ORIGIN, minimum)
        store(state, SUM_W, sum_w)
        store(state, _SUM_X, sum_x)
        store(state, _HIGH, high)
        store(state, _ERROR, error)

    @part
    def add_up(x, w, codes, state, reach, top):
        minimum = load(state, MINIMUM)
        trial = over(reach, load(state, _HIGH) - minimum)
        sum_l = splat(_ZERO)
        sum_l2 = splat(_ZERO)
        sum_xl = splat(_ZERO)
        for i in range(group):
            xi = load(x, 16 * i)
            code = round_above(xi, minimum, trial, top)
            store(codes, 16 * i, code)
            wl = load(w, 16 * i) * code
            sum_l = sum_l + wl
            sum_l2 = sum_l2 + wl * code
            sum_xl = sum_xl + wl * xi
        store(state, _TRIAL, trial)
        store(state, _SUM_L, sum_l)
        store(state, _SUM_L2, sum_l2)
        store(state, _SUM_XL, sum_xl)

    @part
    def solve(state):
        sum_w = load(state, SUM_W)
        sum_x = load(state, _SUM_X)
        sum_l = load(state, _SUM_L)
        sum_l2 = load(state, _SUM_L2)
        sum_xl = load(state, _SUM_XL)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        above = minimum > _ZERO
        store(state, _SOLVABLE, determinant)
        store(state, _NEW_SCALE, where(above, sum_xl / sum_l2, scale))
        store(state, _NEW_MINIMUM, where(above, _ZERO, minimum))

    @part
    def judge(x, w, codes, state):
        new_scale = load(state, _NEW_SCALE)
        new_minimum = load(state, _NEW_MINIMUM)
        new_error = splat(_ZERO)
        for i in range(group):
            diff = new_scale * load(codes, 16 * i) + new_minimum - load(x, 16 * i)
            new_error = new_error + weigh_error(diff, load(w, 16 * i))
        error = load(state, _ERROR)
        wins = (load(state, _SOLVABLE) > _ZERO) & (new_error < error)
        minimum = load(state, MINIMUM)
        store(state, SCALE, where(wins, new_scale, load(state, SCALE)))
        store(state, MINIMUM, where(wins, new_minimum, minimum))
        store(state, INVERSE, where(wins, load(state, _TRIAL), load(state, INVERSE)))
        store(state, ORIGIN, where(wins, minimum, load(state, ORIGIN)))
        store(state, _ERROR, where(wins, new_error, error))

    @shared
    def search(x, w, codes, state, top, first, step, steps):
        """Fill `state` for `SETS` times sixteen columns `x` with weights `w`; `codes` is room for as much.

        Codes are 0 to `top`; the candidates put the largest element at top + first, and on by `step`.
        """
        for k in range(SETS):
            begin(move(x, k * size), move(w, k * size), move(state, k * STATE), top)
        for s in range(steps + 1):
            reach = first + step * np.float32(s) + top
            for k in range(SETS):
                at = k * size
                add_up(move(x, at), move(w, at), move(codes, at), move(state, k * STATE), reach, top)
            for k in range(SETS):
                solve(move(state, k * STATE))
            for k in range(SETS):
                at = k * size
                judge(move(x, at), move(w, at), move(codes, at), move(state, k * STATE))

    return search
