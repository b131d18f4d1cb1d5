"""The search behind IQ4_NL and IQ4_XS: the scale for which sixteen uneven levels fit a block best.

Same conventions and reference as `quantcore.methods.kquant`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcore.methods.columns import column_sum, signed_peak
from quantcore.methods.kquant import NOTHING

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
TRIES = 7
# Twice the middle between two levels is whole, so what counts is the whole part of twice a number. These
# tables are looked up with that, negative numbers from the end; the search asks for no more than
# 2 * (127 + TRIES).
_REACH = 2 * (127 + TRIES) + 2
_DOUBLED = (*range(_REACH), *range(-_REACH, 0))
_MIDDLES = (np.add(LEVELS[1:], LEVELS[:-1]) / 2).astype(np.float32)  # (15,)
_CODES = np.searchsorted(2 * _MIDDLES, _DOUBLED, side="right").astype(np.uint8)  # (2 * _REACH,)
_VALUES = np.array(LEVELS, dtype=np.float32)[_CODES]  # (2 * _REACH,)


def scale_by_levels(x: Any, w: Any, *, xp: Any) -> Any:
    """Return the scale for which the nearest of `LEVELS` fit each column of `x` best, float32 `(n,)`.

    What a scale explains is sum(w x l)**2 / sum(w l l): the largest wins among 16 ways to round, the peak of
    the block landing at 127 first and then at -134 to -120. The model is `quantize_row_iq4_nl_impl` of [1]_.
    """
    peak = signed_peak(x, xp=xp)
    live = xp.abs(peak) >= xp.float32(NOTHING)
    inverse = xp.float32(1) / (peak / xp.float32(-LEVELS[0]))
    wlx, wll = _products(x, w, _places(x, xp.where(live, inverse, xp.float32(0)), xp), xp)
    sum_lx, sum_l2 = column_sum(wlx, xp=xp), column_sum(wll, xp=xp)
    scale = xp.where(sum_l2 > xp.float32(0), sum_lx / sum_l2, xp.float32(0))
    best = scale * sum_lx

    # Over the tries that follow the quotients shrink by a tenth, which takes them past one middle at most:
    # the sums of each are those of the one before with a few terms exchanged.
    places = _places(x, _inverse(-TRIES, peak, live, xp), xp)
    wlx, wll = _products(x, w, places, xp)
    late = xp.take(xp.asarray(_CODES), _places(x, _inverse(TRIES, peak, live, xp), xp))
    change = _changes(x, w, peak, xp.take(xp.asarray(_CODES), places), late, xp)
    for i in range(-TRIES, TRIES + 1):
        due = xp.flatnonzero(change.when == xp.int8(i))
        wlx.reshape(-1)[change.where[due]] = change.wlx[due]  # (columns * 32,)
        wll.reshape(-1)[change.where[due]] = change.wll[due]  # (columns * 32,)
        sum_lx, sum_l2 = column_sum(wlx, xp=xp), column_sum(wll, xp=xp)
        wins = (sum_l2 > xp.float32(0)) & (sum_lx * sum_lx > best * sum_l2)
        ratio = sum_lx / sum_l2
        xp.copyto(scale, ratio, where=wins)
        xp.copyto(best, ratio * sum_lx, where=wins)
    return xp.where(live, scale, xp.float32(0))


@dataclass(frozen=True)
class _Changes:
    """Elements whose code changes: their flat index, the first try with the new code, and its terms."""

    where: Any
    when: Any
    wlx: Any
    wll: Any


def _inverse(i: int, peak: Any, live: Any, xp: Any) -> Any:
    return xp.where(live, xp.float32(i + LEVELS[0]) / peak, xp.float32(0))


def _places(x: Any, inverse: Any, xp: Any) -> Any:
    """Return where in the tables the quotients are found."""
    doubled = xp.multiply(x, inverse * xp.float32(2))
    return xp.floor(doubled, out=doubled).astype(xp.intp)


def _products(x: Any, w: Any, places: Any, xp: Any) -> tuple[Any, Any]:
    """Return w l x and w l l."""
    levels = xp.take(xp.asarray(_VALUES), places)
    weighted = xp.multiply(w, levels)
    xp.multiply(weighted, levels, out=levels)
    return xp.multiply(weighted, x, out=weighted), levels


def _changes(x: Any, w: Any, peak: Any, early: Any, late: Any, xp: Any) -> _Changes:
    """Find the elements whose code is not the same in the first try (`early`) and in the last (`late`)."""
    where = xp.flatnonzero(early != late)
    values, weights = x.reshape(-1)[where], w.reshape(-1)[where]  # (changes,)
    peaks = peak[where % x.shape[1]]
    codes = late.reshape(-1)[where]  # (changes,)
    # Neighbours add up to an odd number, half of which is the lower one.
    middle = xp.take(xp.asarray(_MIDDLES), (early.reshape(-1)[where] + codes) >> xp.uint8(1))
    # The try that comes closest to the middle is looked at exactly; for all others the side is clear.
    close = xp.rint(middle * peaks / values).clip(xp.float32(-127 - TRIES), xp.float32(-127 + TRIES))
    still = (values * (close / peaks) >= middle) == (middle > xp.float32(0))
    when = close + xp.float32(127) + still
    levels = xp.take(xp.asarray(LEVELS, dtype=xp.float32), codes)
    weighted = weights * levels
    return _Changes(where, when.astype(xp.int8), weighted * values, weighted * levels)


def nearest_codes(x: Any, scale: Any, *, xp: Any) -> Any:
    """Return the codes of the levels nearest to `x / scale`, uint8 of the shape of `x`; 8 where scale is 0.

    Of two equally near levels the upper one. The quotient is a product with `1 / scale`.
    """
    inverse = xp.where(scale != xp.float32(0), xp.float32(1) / scale, xp.float32(0))
    doubled = xp.multiply(x, inverse)
    xp.multiply(doubled, xp.float32(2), out=doubled)
    xp.floor(doubled, out=doubled)
    low, high = 2 * LEVELS[0], 2 * LEVELS[-1]
    doubled.clip(xp.float32(low), xp.float32(high), out=doubled)
    beyond = xp.flatnonzero(xp.isinf(inverse))
    if beyond.size:  # zeros are not a number then, and get the highest code
        lost = doubled[:, beyond]
        doubled[:, beyond] = xp.where(lost == lost, lost, xp.float32(high))  # noqa: PLR0124
    return xp.take(xp.asarray(_CODES), doubled.astype(xp.intp))
