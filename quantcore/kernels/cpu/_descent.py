"""The searches of `quantcore.methods.kquant_descent` compiled: they move one code at a time."""

from __future__ import annotations

from functools import cache

import numpy as np

from quantcore.kernels.common import clamp, larger
from quantcore.kernels.cpu._linesearch import over
from quantcore.kernels.cpu._ratiosearch import NOTHING, signed_peak
from quantcore.kernels.lanes import absolute, all_of, any_of, nearest, part, shared, splat, where
from quantcore.kernels.memory import load, move, store

WALKS = 5

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITE = np.float32(np.inf)


def walking(group: int, low_code: int, high_code: int, *, rest_positive: bool):
    """Return three parts of a walk over the codes of 16 columns: the sums, one code the first time, the rest.

    All change `codes` in place and pass on the sums w x l and w l l.
    """
    low = np.float32(low_code)
    high = np.float32(high_code)

    @part
    def start(x, w, codes):
        sum_lx = splat(_ZERO)
        sum_l2 = splat(_ZERO)
        for i in range(group):
            code = load(codes, 16 * i)
            wi = load(w, 16 * i)
            sum_lx = sum_lx + wi * load(x, 16 * i) * code
            sum_l2 = sum_l2 + wi * code * code
        return sum_lx, sum_l2

    @part
    def propose(x, w, codes, i, sum_lx, sum_l2):
        """Return the sums without code `i`, and what it should be, given these."""
        xi = load(x, 16 * i)
        wi = load(w, 16 * i)
        code = load(codes, 16 * i)
        rest_lx = sum_lx - wi * xi * code
        rest_l2 = sum_l2 - wi * code * code
        new = clamp(nearest(xi * rest_l2 / rest_lx), low, high)
        return rest_lx, rest_l2, where(rest_lx > _ZERO, new, code)

    @part
    def change(x, w, codes, i, sums, proposal):
        """Change code `i` where that is better; return the new sums, and where."""
        sum_lx, sum_l2 = sums
        rest_lx, rest_l2, new = proposal
        wi = load(w, 16 * i)
        code = load(codes, 16 * i)
        new_lx = rest_lx + wi * load(x, 16 * i) * new
        new_l2 = rest_l2 + wi * new * new
        # Conditions one after another into the number compared: truth values joined by `&` are slow on AVX2.
        share = where(new != code, new_lx * new_lx * sum_l2, -_INFINITE)
        share = where((rest_l2 if rest_positive else new_l2) > _ZERO, share, -_INFINITE)
        wins = share > sum_lx * sum_lx * new_l2
        store(codes, 16 * i, where(wins, new, code))
        return where(wins, new_lx, sum_lx), where(wins, new_l2, sum_l2), wins

    @part
    def attempt(x, w, codes, i, sum_lx, sum_l2):
        proposal = propose(x, w, codes, i, sum_lx, sum_l2)
        sum_lx, sum_l2, _ = change(x, w, codes, i, (sum_lx, sum_l2), proposal)
        return sum_lx, sum_l2

    @part
    def finish(x, w, codes, sum_lx, sum_l2):
        """Walk all but the first time; return the scale."""
        for _ in range(WALKS - 1):
            moved = False
            for i in range(group):
                proposal = propose(x, w, codes, i, sum_lx, sum_l2)
                # By now most stay as they are, and the next code need not wait for this one's division.
                if any_of(proposal[2] != load(codes, 16 * i)):
                    sum_lx, sum_l2, wins = change(x, w, codes, i, (sum_lx, sum_l2), proposal)
                    moved |= any_of(wins)
            if not moved:
                break
        return where(sum_l2 > _ZERO, sum_lx / sum_l2, _ZERO)

    return start, attempt, finish


def scale_by_descent(group: int, half: int):
    """Return the search of that name, for two sets of columns, one after another in `x`, `w` and `codes`.

    The codes are `-half ... half - 1`; the scales go into `scales`, those of the second set to `apart`.
    """
    low = np.float32(-half)
    high = np.float32(half - 1)
    size = 16 * group
    start, attempt, finish = walking(group, -half, half - 1, rest_positive=False)

    @shared
    def begin(x, w, codes):
        inverse = low / signed_peak(x, group)
        for i in range(group):
            xi = load(x, 16 * i)
            store(w, 16 * i, xi * xi)
            store(codes, 16 * i, clamp(nearest(xi * inverse), low, high))

    @shared
    def end(x, w, codes, sum_lx, sum_l2):
        scale = finish(x, w, codes, sum_lx, sum_l2)
        live = absolute(signed_peak(x, group)) >= NOTHING
        if not all_of(live):
            for i in range(group):
                store(codes, 16 * i, where(live, load(codes, 16 * i), low))
        return where(live, scale, _ZERO)

    @shared
    def search(x, w, codes, scales, apart):
        y, v, beside = move(x, size), move(w, size), move(codes, size)
        begin(x, w, codes)
        begin(y, v, beside)
        lx, l2 = start(x, w, codes)
        ly, m2 = start(y, v, beside)
        # The first walk changes much. Two at a time: each is a chain of divisions that wait for one another.
        for i in range(group):
            lx, l2 = attempt(x, w, codes, i, lx, l2)
            ly, m2 = attempt(y, v, beside, i, ly, m2)
        store(scales, 0, end(x, w, codes, lx, l2))
        store(scales, apart, end(y, v, beside, ly, m2))

    return search


@cache
def scale_of_scales(group: int, top_code: int):
    """Return the search of that name for scales; codes `0 ... top_code` go into `codes`."""
    top = np.float32(top_code)
    steps = [0, *range(-4, 0), *range(1, 5)]
    reach = np.array([np.float32(0.1) * np.float32(i) + np.float32(top_code) for i in steps], np.float32)
    tries = len(reach)
    start, attempt, finish = walking(group, 0, top_code, rest_positive=True)

    @shared
    def search(x, w, codes):
        peak = load(x, 0)
        for i in range(1, group):
            peak = larger(peak, load(x, 16 * i))
        inverse = splat(_ZERO)
        best = splat(_ZERO)
        for t in range(tries):
            trial = reach[t] / peak
            step = _ONE / trial
            error = splat(_ZERO)
            for i in range(group):
                xi = load(x, 16 * i)
                diff = xi - clamp(nearest(xi * trial), _ZERO, top) * step
                error = error + load(w, 16 * i) * diff * diff
            if t == 0:
                best = error
                inverse = trial
            else:
                wins = error < best
                best = where(wins, error, best)
                inverse = where(wins, trial, inverse)
        for i in range(group):
            store(codes, 16 * i, clamp(nearest(load(x, 16 * i) * inverse), _ZERO, top))
        sum_lx, sum_l2 = start(x, w, codes)
        for i in range(group):
            sum_lx, sum_l2 = attempt(x, w, codes, i, sum_lx, sum_l2)
        scale = finish(x, w, codes, sum_lx, sum_l2)
        live = peak >= NOTHING
        for i in range(group):
            store(codes, 16 * i, where(live, load(codes, 16 * i), _ZERO))
        return where(live, scale, _ZERO)

    return search


@cache
def scale_of_peak(group: int, top_code: int):
    """Return the search of that name, in the form of `scale_of_scales`; `w` is not read."""
    top = np.float32(top_code)

    @shared
    def search(x, w, codes):
        peak = splat(_ZERO)
        for i in range(group):
            peak = larger(peak, load(x, 16 * i))
        inverse = over(top, peak)
        for i in range(group):
            store(codes, 16 * i, clamp(nearest(load(x, 16 * i) * inverse), _ZERO, top))
        return peak / top

    return search
