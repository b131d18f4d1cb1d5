"""The search of `quantcore.methods.iq1_division` compiled: sixteen groups side by side.

Unlike the numpy form, this visits all divisions by ggml's own formula, one after another: a comparison here
costs less than keeping what it would take to avoid it.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.lanes import any_of, ones, part, shared, splat, splat_int, where
from quantcore.kernels.memory import floats, load, move, store

_ZERO = np.float32(0)
_SHIFT = np.float32(0.125)
# Magnitudes of levels that are moved up; of those that are moved down they are the other way round.
_LOW, _HIGH = np.float32(0.875), np.float32(1.125)
_LOWEST = np.float32(-3.4028234663852886e38)
_NONE = -1
# A division as one number: (first border * 64 + second) * 4 + combination of shifts.
BORDER = 64


def ranking(group: int):
    """Return a function that ranks the elements of 16 columns, equal ones in the order they have."""

    @shared
    def rank(x, ranks):
        for i in range(group):
            store(ranks, 16 * i, splat_int(0))
        for i in range(1, group):
            xi = load(x, 16 * i)
            own = splat_int(0)
            for j in range(i):
                after = ones(load(x, 16 * j) <= xi)
                own = own + after
                store(ranks, 16 * j, load(ranks, 16 * j) + 1 - after)
            store(ranks, 16 * i, own)

    return rank


def prefixes(group: int, parts: int):
    """Return a function that sums w x and w in ascending order: `parts` times `group + 1` rows of each."""
    rows = group + 1
    own = group // parts

    @shared
    def sum_up(x, w, ranks, wx_sums, w_sums):
        for i in range(parts * rows):
            store(wx_sums, 16 * i, splat(_ZERO))
            store(w_sums, 16 * i, splat(_ZERO))
        products = floats(512)
        for i in range(group):
            store(products, 16 * i, load(w, 16 * i) * load(x, 16 * i))
        for i in range(group):
            base = (i // own * rows + 1) * 16
            for lane in range(16):
                at = base + 16 * ranks[16 * i + lane] + lane
                wx_sums[at] = products[16 * i + lane]
                w_sums[at] = w[16 * i + lane]
        for p in range(parts):
            wx = splat(_ZERO)
            total = splat(_ZERO)
            for i in range(p * rows + 1, (p + 1) * rows):
                wx = wx + load(wx_sums, 16 * i)
                total = total + load(w_sums, 16 * i)
                store(wx_sums, 16 * i, wx)
                store(w_sums, 16 * i, total)

    return sum_up


@part
def beats(wxq, wqq, best):
    """Return where a division is better than the best so far."""
    return (wqq > _ZERO) & (wxq * wxq > best * wqq)


@part
def compete(wxq, wqq, code, best, scale, chosen):
    """Return best merit, scale and number of the division so far, once another one is compared."""
    wins = beats(wxq, wqq, best)
    own = wxq / wqq
    best = where(wins, own * wxq, best)
    return best, where(wins, own, scale), where(wins, splat_int(code), chosen)


def whole_search():
    """Return the search over groups of 32 with one shift.

    It puts scales into `out`, and the numbers of the divisions, or -1 where none has a merit, into `numbers`.
    """
    group = 32
    sum_up = prefixes(group, 1)

    @shared
    def search(x, w, ranks, out, numbers):
        s = floats(528)
        t = floats(528)
        sum_up(x, w, ranks, s, t)
        ends = floats(2112)
        all_wx = load(s, 16 * group)
        all_w = load(t, 16 * group)
        for j in range(group + 1):
            rest = all_wx - load(s, 16 * j)
            mass = all_w - load(t, 16 * j)
            store(ends, 64 * j, rest * _HIGH)
            store(ends, 64 * j + 16, mass * _HIGH * _HIGH)
            store(ends, 64 * j + 32, rest * _LOW)
            store(ends, 64 * j + 48, mass * _LOW * _LOW)
        best = splat(_LOWEST)
        scale = splat(_ZERO)
        chosen = splat_int(_NONE)
        for i in range(group + 1):
            s1 = load(s, 16 * i)
            t1 = load(t, 16 * i)
            up = -(s1 * _LOW)
            up2 = t1 * _LOW * _LOW
            down = -(s1 * _HIGH)
            down2 = t1 * _HIGH * _HIGH
            for j in range(i, group + 1):
                middle = (load(s, 16 * j) - s1) * _SHIFT
                middle2 = (load(t, 16 * j) - t1) * _SHIFT * _SHIFT
                code = (i * BORDER + j) * 4
                p = up + middle + load(ends, 64 * j)
                p2 = up2 + middle2 + load(ends, 64 * j + 16)
                m = down - middle + load(ends, 64 * j + 32)
                m2 = down2 + middle2 + load(ends, 64 * j + 48)
                # Most divisions win in no lane, and this branch is guessed right.
                if any_of(beats(p, p2, best) | beats(m, m2, best)):
                    best, scale, chosen = compete(p, p2, code, best, scale, chosen)
                    best, scale, chosen = compete(m, m2, code + 1, best, scale, chosen)
        store(out, 0, scale)
        store(numbers, 0, chosen)

    return search


def halves_search():
    """Return the search over groups of 16 whose halves have a shift each; `_` marks the second half."""
    group = 16
    rows = 16 * (group + 1)
    sum_up = prefixes(group, 2)
    first_up, second_up = np.float32(0.75), np.float32(1.25)

    @shared
    def search(x, w, ranks, out, numbers):
        s = floats(544)
        t = floats(544)
        sum_up(x, w, ranks, s, t)
        s_ = move(s, rows)
        t_ = move(t, rows)
        wx = load(s, 16 * group)
        wx_ = load(s_, 16 * group)
        mass = load(t, 16 * group)
        mass_ = load(t_, 16 * group)
        up = wx * _HIGH
        up_ = wx_ * _HIGH
        down = wx * _LOW
        down_ = wx_ * _LOW
        up2 = mass * _HIGH * _HIGH
        up2_ = mass_ * _HIGH * _HIGH
        down2 = mass * _LOW * _LOW
        down2_ = mass_ * _LOW * _LOW
        best = splat(_LOWEST)
        scale = splat(_ZERO)
        chosen = splat_int(_NONE)
        for i in range(group + 1):
            s1 = load(s, 16 * i)
            s1_ = load(s_, 16 * i)
            a = up2 + load(t, 16 * i) * first_up
            a_ = up2_ + load(t_, 16 * i) * first_up
            b = down2 + load(t, 16 * i) * second_up
            b_ = down2_ + load(t_, 16 * i) * second_up
            for j in range(i, group + 1):
                both = s1 + load(s, 16 * j)
                both_ = s1_ + load(s_, 16 * j)
                t2 = load(t, 16 * j)
                t2_ = load(t_, 16 * j)
                p = up - both
                p_ = up_ - both_
                m = down - both
                m_ = down_ - both_
                p2 = a - t2 * second_up
                p2_ = a_ - t2_ * second_up
                m2 = b - t2 * first_up
                m2_ = b_ - t2_ * first_up
                code = (i * BORDER + j) * 4
                one = beats(p + p_, p2 + p2_, best) | beats(p + m_, p2 + m2_, best)
                two = beats(m + p_, m2 + p2_, best) | beats(m + m_, m2 + m2_, best)
                if any_of(one | two):
                    best, scale, chosen = compete(p + p_, p2 + p2_, code, best, scale, chosen)
                    best, scale, chosen = compete(p + m_, p2 + m2_, code + 1, best, scale, chosen)
                    best, scale, chosen = compete(m + p_, m2 + p2_, code + 2, best, scale, chosen)
                    best, scale, chosen = compete(m + m_, m2 + m2_, code + 3, best, scale, chosen)
        store(out, 0, scale)
        store(numbers, 0, chosen)

    return search
