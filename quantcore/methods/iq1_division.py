"""The best division of a few numbers into three levels, found among all: the search behind IQ1_S and IQ1_M.

Levels are -1, 0 and 1, all moved up or down by an eighth, times a scale. In ascending order the elements of
one level stand together, so that a division is two borders, and its merit some operations on prefix sums of w
and w x. ggml tries all divisions one after another and keeps the first of the best. Here each is tried for
thousands of blocks at once by a shorter formula, which differs from ggml's in the last bits; those that come
out near the best are compared by ggml's formula, and where even then there is doubt, by its procedure.

1. ggml, `ggml-quants.c`: `quantize_row_iq1_s_impl`, `quantize_row_iq1_m_impl`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Any

from quantcore.methods.columns import to_columns

SHIFT = 0.125
# Divisions whose merits differ by less than this part may be ranked otherwise by ggml's formula: with A the
# sum of w |x| and W that of w, roundings take at most 8 A 2**-24 from sum(w x q) and 13 W 2**-24 from
# sum(w q q). Near the best, the former is at least 0.78 A sqrt(sum(w q q) / W), the latter never below
# W / 64: together less than 6e-5 in each of the two merits.
_QUICK = 1.3e-4
# By ggml's own formula, this lead is more than the roundings in its comparison of two merits.
_EXACT = 2e-6
# A column whose near divisions have more first borders or combinations of shifts than this is in doubt.
_ROWS = 6
# Beyond these, merits or what they are made of may have lost digits to underflow, or overflowed.
_SAFE = (1e-33, 1e33)
# Blocks searched again at a time: there is a number for each of about a thousand divisions.
_AGAIN = 128
_LOWEST = -3.4028234663852886e38


@dataclass(frozen=True)
class Division:
    """Levels as uint8 0, 1, 2 `(n, k)`, their scale, float32 `(n,)` and never negative, and their shifts.

    `lowered`, bool `(parts, n)`, tells where the levels of a part of the block are moved down instead of up.
    Blocks that are not `found`, bool `(n,)`, are zero, or count for nothing; they have scale 0.
    """

    levels: Any
    scale: Any
    lowered: Any
    found: Any


@dataclass(frozen=True)
class Sums:
    """Sums of w x and of w, one for each part of a block: `(parts, ..., n)`."""

    wx: Any
    w: Any

    def take(self, index: Any) -> Sums:
        return Sums(self.wx[index], self.w[index])

    def upto(self, border: Any, *, xp: Any) -> Sums:
        """Return of prefix sums `(parts, k + 1, n)` those up to the `border` `(n,)` of each block."""
        column = xp.arange(border.shape[0], dtype=xp.int32)
        return self.take((slice(None), border, column))


def divide(x: Any, w: Any, *, parts: int, nothing: float, xp: Any) -> Division:
    """Divide each row of float32 `x` `(n, k)` with weights `w`; `parts` equal parts have a shift each. Rows
    whose magnitudes are all below `nothing` count as zero.

    Of all divisions and shifts the one of largest sum(w x q)**2 / sum(w q q) wins, q being the moved levels.
    """
    n, k = x.shape
    keys = _ascending(x, xp)
    order = keys.copy()
    order.sort(axis=1)  # (n, k)
    sums = _prefix_sums(x, w, order, parts, xp)
    live = xp.abs(x).max(axis=1) >= xp.float32(nothing)
    choice, first, second = _quick_search(sums, xp)
    again = xp.flatnonzero(live & (choice < xp.int32(0)))
    for at in range(0, again.size, _AGAIN):
        some = again[at : at + _AGAIN]
        answers = _search(sums.take((slice(None), slice(None), some)), xp)
        choice[some], first[some], second[some] = answers
    found = live & (choice >= xp.int32(0))
    lowered = _combinations(parts, xp)[:, choice]  # (parts, n)
    total = sums.take((slice(None), k))
    wxq, wqq = _merit(sums.upto(first, xp=xp), sums.upto(second, xp=xp), total, lowered, xp)
    scale = xp.where(found, wxq / wqq, xp.float32(0))

    row = xp.arange(n, dtype=xp.int32)
    edges = xp.empty((n, k + 1), dtype=xp.int64)
    edges[:, :k], edges[:, k] = order, xp.int64(1 << 62)
    levels = (keys >= edges[row, first].reshape(-1, 1)).astype(xp.uint8)
    levels += keys >= edges[row, second].reshape(-1, 1)
    flip = scale < xp.float32(0)
    levels = xp.where(flip.reshape(-1, 1), xp.uint8(2) - levels, levels)
    return Division(levels, xp.abs(scale), (lowered ^ flip) & found, found)


def _ascending(x: Any, xp: Any) -> Any:
    """Return int64 keys `(n, k)` that sort like the elements, equal ones by their place, which ends each key.

    ggml leaves the order of equal elements to the C library, and glibc's qsort keeps it.
    """
    bits = (x + xp.float32(0)).view(xp.int32)  # no -0.0
    mirrored = bits ^ ((bits >> xp.int32(31)) & xp.int32(0x7FFFFFFF))
    keys = mirrored.astype(xp.int64)
    xp.left_shift(keys, xp.int64(5), out=keys)
    return xp.add(keys, xp.arange(x.shape[1], dtype=xp.int64), out=keys)


def _prefix_sums(x: Any, w: Any, order: Any, parts: int, xp: Any) -> Sums:
    """Return sums over the first i elements in ascending order, `(parts, k + 1, n)`."""
    n, k = x.shape
    place = (order & xp.int64(31)).astype(xp.int32)  # (n, k)
    flat = place + xp.arange(0, n * k, k, dtype=xp.int32).reshape(-1, 1)
    size = xp.int32(k // parts)
    part = to_columns(place, k, xp=xp) // size if parts > 1 else None  # (k, n)
    both = []
    for values in (w * x, w):
        ordered = to_columns(xp.take(values.reshape(-1), flat), k, xp=xp)  # (k, n)
        sums = xp.zeros((parts, k + 1, n), dtype=xp.float32)
        for i in range(parts):
            own = ordered if part is None else ordered * (part == xp.int32(i))
            xp.cumsum(own, axis=0, out=sums[i, 1:])
        both.append(sums)
    return Sums(*both)


def _combinations(parts: int, xp: Any) -> Any:
    """Return which parts are lowered in each combination of shifts, bool `(parts, combinations)`."""
    return xp.asarray(list(product((False, True), repeat=parts)), dtype=xp.bool_).T


def _quick_search(sums: Sums, xp: Any) -> tuple[Any, Any, Any]:
    """Return combination of shifts and both borders of each block, int32 `(n,)`; combination -1 is doubt.

    With s(i) the sum of the first i elements, S that of all, and a shift of d, sum(w x q) is
    S (1 + d) - s(i1) - s(i2) over w x, and sum(w q q) over w is
    S (1 + d)**2 + (1 - 2 d) s(i1) - (1 + 2 d) s(i2).
    """
    rows, n = sums.wx.shape[1:]
    wx = sums.wx.sum(axis=0)  # (k + 1, n)
    terms = [_terms(sums, wx, down.reshape(-1, 1), xp) for down in _combinations(sums.wx.shape[0], xp).T]
    merits = xp.empty((len(terms), rows, n), dtype=xp.float32)
    room, room2 = xp.empty((rows, n), dtype=xp.float32), xp.empty((rows, n), dtype=xp.float32)
    for merit, (late, late2, early2) in zip(merits, terms, strict=True):
        for i in range(rows):
            wxq, wqq = room[: rows - i], room2[: rows - i]
            xp.subtract(late[i:], wx[i], out=wxq)
            xp.multiply(wxq, wxq, out=wxq)
            xp.add(late2[i:], early2[i], out=wqq)
            xp.divide(wxq, wqq, out=wxq)
            wxq.max(axis=0, out=merit[i])
    return _rank(sums, merits.reshape(-1, n), xp)


def _terms(sums: Sums, wx: Any, down: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return what the second border adds to sum(w x q) and sum(w q q), and the first to the latter.

    Each is `(k + 1, n)`; `down` is bool `(parts, 1)`.
    """
    d = xp.where(down, xp.float32(-SHIFT), xp.float32(SHIFT))  # (parts, 1)
    high = xp.float32(1) + d
    late = (sums.wx[:, -1] * high).sum(axis=0) - wx
    squares = (sums.w[:, -1] * high * high).sum(axis=0)  # (n,)
    d = (d + d).reshape(-1, 1, 1)
    late2 = squares - (sums.w * (xp.float32(1) + d)).sum(axis=0)
    return late, late2, (sums.w * (xp.float32(1) - d)).sum(axis=0)


def _rank(sums: Sums, merits: Any, xp: Any) -> tuple[Any, Any, Any]:
    """Return what `_quick_search` does, given the merits of all combinations and first borders, `(rows, n)`.

    Rows that come near a column's largest merit are looked through by ggml's formula; a column is in doubt
    where even so the best division has no clear lead.
    """
    n, borders = merits.shape[1], sums.wx.shape[1]
    pairs = xp.flatnonzero(merits >= merits.max(axis=0) * xp.float32(1 - _QUICK)).astype(xp.int32)
    row, column = pairs // xp.int32(n), pairs % xp.int32(n)
    lead, runner = xp.zeros(n, dtype=xp.float32), xp.zeros(n, dtype=xp.float32)
    choice, first, second, pick = (xp.zeros(n, dtype=xp.int32) for _ in range(4))
    late = xp.arange(borders, dtype=xp.int32).reshape(-1, 1)
    pick[column] = row  # of several rows one stays, whichever
    c, searched = xp.arange(n, dtype=xp.int32), sums
    for _ in range(_ROWS):
        at, shifts = pick[c] % xp.int32(borders), pick[c] // xp.int32(borders)
        merit = _exact_merits(searched, shifts, at, xp)
        xp.copyto(merit, xp.float32(0), where=late < at)  # (borders, c)
        to, own = merit.argmax(axis=0), xp.arange(c.size)
        best = merit[to, own]
        merit[to, own] = xp.float32(0)
        old, wins = lead[c], best > lead[c]
        other = xp.maximum(xp.where(wins, old, best), merit.max(axis=0))
        runner[c], lead[c] = xp.maximum(runner[c], other), xp.where(wins, best, old)
        won = c[wins]
        choice[won], first[won], second[won] = shifts[wins], at[wins], to[wins]
        later = pick[column] != row
        row, column = row[later], column[later]
        if not row.size:
            break
        pick[column] = row
        c = column[pick[column] == row]
        searched = sums.take((slice(None), slice(None), c))
    clear = (runner < lead * xp.float32(1 - _EXACT)) & _safe(lead, sums.w[:, -1].sum(axis=0), xp)
    clear[column] = False
    return xp.where(clear, choice, xp.int32(-1)), first, second


def _safe(merit: Any, total: Any, xp: Any) -> Any:
    """Return where merits and the squares behind them, at most `merit * total`, keep all their digits."""
    safe = xp.isfinite(merit)
    for size in (merit, total, merit * total):
        safe &= (size > xp.float32(_SAFE[0])) & (size < xp.float32(_SAFE[1]))
    return safe


def _exact_merits(sums: Sums, combination: Any, first: Any, xp: Any) -> Any:
    """Return the merits of all second borders `(k + 1, n)`, by ggml's formula."""
    parts, borders, n = sums.wx.shape
    lowered = _combinations(parts, xp)[:, combination].reshape(parts, 1, n)
    one = sums.upto(first, xp=xp)
    one = Sums(one.wx.reshape(parts, 1, n), one.w.reshape(parts, 1, n))
    wxq, wqq = _merit(one, sums, sums.take((slice(None), slice(borders - 1, borders))), lowered, xp)
    return wxq / wqq * wxq


def _merit(at1: Sums, at2: Sums, total: Sums, lowered: Any, xp: Any) -> tuple[Any, Any]:
    """Return sum(w x q) and sum(w q q), to the last bit as ggml does."""
    return (_merit_whole if len(lowered) == 1 else _merit_halves)(at1, at2, total, lowered, xp)


def _merit_whole(at1: Sums, at2: Sums, total: Sums, lowered: Any, xp: Any) -> tuple[Any, Any]:
    shift = xp.where(lowered[0], xp.float32(-SHIFT), xp.float32(SHIFT))
    low, high = shift - xp.float32(1), shift + xp.float32(1)
    one, two, all_ = (at1.take(0), at2.take(0), total.take(0))
    wxq = one.wx * low + (two.wx - one.wx) * shift + (all_.wx - two.wx) * high
    wqq = one.w * low * low + (two.w - one.w) * shift * shift + (all_.w - two.w) * high * high
    return wxq, wqq


def _merit_halves(at1: Sums, at2: Sums, total: Sums, lowered: Any, xp: Any) -> tuple[Any, Any]:
    shift = xp.where(lowered, xp.float32(-SHIFT), xp.float32(SHIFT))
    high, double = xp.float32(1) + shift, shift + shift
    wxq = total.wx * high - (at1.wx + at2.wx)
    wqq = total.w * high * high + at1.w * (xp.float32(1) - double) + at2.w * (xp.float32(-1) - double)
    return wxq[0] + wxq[1], wqq[0] + wqq[1]


def _search(sums: Sums, xp: Any) -> tuple[Any, Any, Any]:
    """Return what `_quick_search` does by visiting the divisions in ggml's order; -1 where none has a merit.

    A division wins when wxq**2 > best * wqq; best is the winner's wxq / wqq * wxq, with its roundings.
    """
    rows, n = sums.wx.shape[1:]
    one = xp.arange(rows, dtype=xp.int32)
    borders = xp.flatnonzero(one.reshape(-1, 1) <= one).astype(xp.int32)
    first, second = borders // xp.int32(rows), borders % xp.int32(rows)
    lowered = _combinations(sums.wx.shape[0], xp)
    count = lowered.shape[1]
    # (parts, divisions, 1, n)
    at1, at2, total = (sums.take((slice(None), i, None)) for i in (first, second, slice(rows - 1, rows)))
    wxq, wqq = _merit(at1, at2, total, lowered.reshape(-1, 1, count, 1), xp)
    wxq, wqq = wxq.reshape(-1, n), wqq.reshape(-1, n)  # (divisions * combinations, n)
    square = xp.where(wqq > xp.float32(0), wxq * wxq, xp.float32(-inf))
    xp.copyto(square, xp.float32(-inf), where=_beaten(wxq / wqq * wxq, sums.w[:, -1].sum(axis=0), xp))
    best = xp.zeros(n, dtype=xp.float32) + xp.float32(_LOWEST)
    chosen = xp.zeros(n, dtype=xp.int32) - xp.int32(1)
    row, column = xp.arange(square.shape[0], dtype=xp.int32).reshape(-1, 1), xp.arange(n, dtype=xp.int32)
    while True:
        wins = (square > best * wqq) & (row > chosen)
        at = wins.argmax(axis=0).astype(xp.int32)
        won = wins[at, column]
        if not bool(won.any()):
            break
        q = wxq[at, column]
        best = xp.where(won, q / wqq[at, column] * q, best)
        chosen = xp.where(won, at, chosen)
    division = chosen // xp.int32(count)
    combination = xp.where(chosen < xp.int32(0), xp.int32(-1), chosen % xp.int32(count))
    return combination, first[division], second[division]


def _beaten(merits: Any, total: Any, xp: Any) -> Any:
    """Return which divisions, `(divisions, n)`, can be left out without a change of the winner.

    Those behind a gap that is wider than the roundings in a comparison: the first one before the gap always
    wins over all that are behind it, and none of these ever wins again.
    """
    best = merits.max(axis=0)  # (n,)
    left_out = xp.zeros(merits.shape, dtype=xp.bool_)
    unsettled = _safe(best, total, xp)
    for width in (1, 3, 9, 27):
        ahead = merits >= best * xp.float32(1 - width * _EXACT)
        behind = merits < best * xp.float32(1 - (width + 1) * _EXACT)
        gap = unsettled & (ahead | behind).all(axis=0)
        left_out |= behind & gap
        unsettled &= ~gap
    return left_out
