"""Searches that move one code at a time: for the symmetric 3-bit blocks, and for the scales of scales.

Both start from a plain rounding and then walk over the codes of each column, changing one wherever that makes
sum(w x l)**2 / sum(w l l) larger, at most five times over. A walk is sequential along a column; all columns
walk side by side. Same conventions and reference as `quantcore.methods.kquant`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from quantcore.methods.columns import column_sum, reciprocal, signed_peak
from quantcore.methods.kquant import NOTHING

WALKS = 5


@dataclass(frozen=True)
class CodesFit:
    """x is about scale * codes, codes float32 `(k, n)`."""

    scale: Any
    codes: Any


def scale_by_descent(x: Any, half: int, *, xp: Any) -> CodesFit:
    """Find scale and codes `-half ... half - 1` for `x` with weights x**2.

    Zero columns get the code -half. The model is `make_q3_quants` of [1]_.
    """
    peak = signed_peak(x, xp=xp)
    live = xp.abs(peak) >= xp.float32(NOTHING)
    w = x * x
    codes = x * (xp.float32(-half) / peak)
    xp.rint(codes, out=codes)
    codes.clip(xp.float32(-half), xp.float32(half - 1), out=codes)
    walk = _Walk.of(x, w, codes, low=-half, high=half - 1, rest_positive=False, xp=xp)
    codes[:, ~live] = xp.float32(-half)
    return CodesFit(xp.where(live, walk.scale(xp), xp.float32(0)), codes)


def scale_of_scales(x: Any, w: Any, top: int, *, xp: Any) -> CodesFit:
    """Find scale and codes `0 ... top` for non-negative `x` with weights `w`.

    Tries nine roundings first and walks from the best. The model is `make_qp_quants` of [1]_, but for one
    case: importance that varies by many orders of magnitude within a group can make a fitted scale negative
    by rounding error. The model's unsigned code then wraps around into its neighbours; here it is 0.
    """
    peak = x.max(axis=0)  # (n,)
    live = peak >= xp.float32(NOTHING)
    inverse = xp.float32(top) / peak
    best = _rounding_error(x, w, inverse, top, xp)
    for i in (*range(-4, 0), *range(1, 5)):
        trial = (xp.float32(0.1) * xp.float32(i) + xp.float32(top)) / peak
        error = _rounding_error(x, w, trial, top, xp)
        wins = error < best
        xp.copyto(best, error, where=wins)
        xp.copyto(inverse, trial, where=wins)
    codes = xp.rint(x * inverse).clip(xp.float32(0), xp.float32(top))
    walk = _Walk.of(x, w, codes, low=0, high=top, rest_positive=True, xp=xp)
    codes[:, ~live] = xp.float32(0)
    return CodesFit(xp.where(live, walk.scale(xp), xp.float32(0)), codes)


def scale_of_peak(x: Any, top: int, *, xp: Any) -> CodesFit:
    """Return scale and codes `0 ... top` for non-negative `x` with the largest of a column at `top`."""
    peak = x.max(axis=0)  # (n,)
    peak = xp.where(peak > xp.float32(0), peak, xp.float32(0))
    codes = xp.rint(x * reciprocal(xp.float32(top), peak, xp=xp))
    return CodesFit(peak / xp.float32(top), codes.clip(xp.float32(0), xp.float32(top), out=codes))


def _rounding_error(x: Any, w: Any, inverse: Any, top: int, xp: Any) -> Any:
    codes = xp.rint(x * inverse).clip(xp.float32(0), xp.float32(top))
    error = x - codes * (xp.float32(1) / inverse)
    return column_sum(w * error * error, xp=xp)


@dataclass
class _Walk:
    """The state of a walk: codes, which change in place, and the sums that they give."""

    x: Any
    w: Any
    codes: Any
    sum_lx: Any
    sum_l2: Any
    low: int
    high: int
    rest_positive: bool

    @classmethod
    def of(cls, x: Any, w: Any, codes: Any, *, low: int, high: int, rest_positive: bool, xp: Any) -> _Walk:
        """Return the walk over `codes`, finished."""
        sum_lx = column_sum(w * x * codes, xp=xp)
        sum_l2 = column_sum(w * codes * codes, xp=xp)
        walk = cls(x, w, codes, sum_lx, sum_l2, low, high, rest_positive)
        walk.run(WALKS, xp)
        return walk

    def scale(self, xp: Any) -> Any:
        """Return the best scale for the codes as they are now."""
        return xp.where(self.sum_l2 > xp.float32(0), self.sum_lx / self.sum_l2, xp.float32(0))

    def run(self, times: int, xp: Any) -> None:
        """Walk over all codes, then again in the columns that changed: the others would stay as they are."""
        moved = xp.zeros(self.x.shape[1], dtype=xp.bool_)
        for i in range(self.x.shape[0]):
            moved[self._step(i, xp)] = True
        active = xp.flatnonzero(moved)
        if times == 1 or not active.size:
            return
        again = replace(
            self,
            x=xp.take(self.x, active, axis=1),
            w=xp.take(self.w, active, axis=1),
            codes=xp.take(self.codes, active, axis=1),
            sum_lx=self.sum_lx[active],
            sum_l2=self.sum_l2[active],
        )
        again.run(times - 1, xp)
        self.codes[:, active] = again.codes
        self.sum_lx[active], self.sum_l2[active] = again.sum_lx, again.sum_l2

    def _step(self, i: int, xp: Any) -> Any:
        """Reconsider code `i` of every column, given all others; return the columns that changed."""
        x, w, code, zero = self.x[i], self.w[i], self.codes[i], xp.float32(0)
        wx = w * x
        rest_lx = self.sum_lx - wx * code
        rest_l2 = self.sum_l2 - w * code * code
        new = xp.rint(x * rest_l2 / rest_lx)
        new.clip(xp.float32(self.low), xp.float32(self.high), out=new)
        tried = xp.flatnonzero((new != code) & (rest_lx > zero))
        # Few columns get here: what remains is done for them alone.
        w, wx, new, rest_lx, rest_l2 = (part[tried] for part in (w, wx, new, rest_lx, rest_l2))
        old_lx, old_l2 = self.sum_lx[tried], self.sum_l2[tried]
        new_lx = rest_lx + wx * new
        new_l2 = rest_l2 + w * new * new
        wins = new_lx * new_lx * old_l2 > old_lx * old_lx * new_l2
        wins &= (rest_l2 if self.rest_positive else new_l2) > zero
        won = tried[wins]
        code[won], self.sum_lx[won], self.sum_l2[won] = new[wins], new_lx[wins], new_l2[wins]
        return won
