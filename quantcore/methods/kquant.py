"""The searches behind the K-quants: the scale, or scale and minimum, that rounds with least error.

All work on float32 columns `(k, n)`: `n` blocks of `k` elements `x` with weights `w`, and return one fit per
column. They visit the same candidates in the same order as ggml's searches and add up in the same order, so
that the outcome is equal to the last bit; each docstring names its model.

A column whose elements are all (nearly) zero divides by zero on the way and is set right at the end: callers
silence floating-point warnings.

1. ggml, `ggml-quants.c`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.methods.columns import column_sum, first_lowest, reciprocal, signed_peak

# Below this magnitude a block counts as zero.
NOTHING = 1e-15


@dataclass(frozen=True)
class ScaleFit:
    """x is about scale * (code - half), code 0 to 2 * half - 1.

    `inverse` is what x was rounded with, not 1 / scale, which was fitted afterwards; 0 in zero columns.
    """

    scale: Any
    inverse: Any
    half: int

    def codes(self, x: Any, *, xp: Any) -> Any:
        """Return the codes that won the search, float32 `(k, n)`; all 0 in zero columns."""
        codes = _round_signed(x, self.inverse, self.half, xp.empty_like(x), xp)
        xp.add(codes, xp.float32(self.half), out=codes)
        codes[:, self.inverse == xp.float32(0)] = xp.float32(0)
        return codes

    def at(self, columns: Any) -> ScaleFit:
        """Return the fits of some columns only."""
        return ScaleFit(self.scale[columns], self.inverse[columns], self.half)


@dataclass(frozen=True)
class LineFit:
    """x is about scale * code + minimum, code 0 to top.

    `inverse` and `origin` are what x was rounded with: not 1 / scale and minimum, which were fitted
    afterwards.
    """

    scale: Any
    minimum: Any
    inverse: Any
    origin: Any
    top: int

    def codes(self, x: Any, *, xp: Any) -> Any:
        """Return the codes that won the search, float32 `(k, n)`."""
        return _round_above(x, self.origin, self.inverse, self.top, xp.empty_like(x), xp)

    def at(self, columns: Any) -> LineFit:
        """Return the fits of some columns only."""
        scale, minimum = self.scale[columns], self.minimum[columns]
        return LineFit(scale, minimum, self.inverse[columns], self.origin[columns], self.top)


def scale_by_ratio(x: Any, w: Any, half: int, *, xp: Any) -> ScaleFit:
    """Find the scale whose codes `-half ... half - 1` agree best with `x`.

    For given codes l the best scale is sum(w x l) / sum(w l l), and what it explains is sum(w x l)**2 /
    sum(w l l): the largest wins among 19 ways to round, the peak of the block landing at `half - 0.9` to
    `half + 0.9`. The model is `make_qx_quants` of [1]_.
    """
    peak = signed_peak(x, xp=xp)
    wx = w * x
    codes, scratch = xp.empty_like(x), xp.empty_like(x)
    inverse = xp.float32(-half) / peak
    sum_lx, sum_l2 = _ratio_sums(x, wx, w, inverse, half, codes, scratch, xp)
    scale = xp.where(sum_l2 != xp.float32(0), sum_lx / sum_l2, xp.float32(0))
    best = scale * sum_lx
    for i in (*range(-9, 0), *range(1, 10)):
        trial = -(xp.float32(half) + xp.float32(0.1) * xp.float32(i)) / peak
        sum_lx, sum_l2 = _ratio_sums(x, wx, w, trial, half, codes, scratch, xp)
        wins = (sum_l2 > xp.float32(0)) & (sum_lx * sum_lx > best * sum_l2)
        ratio = sum_lx / sum_l2
        xp.copyto(scale, ratio, where=wins)
        xp.copyto(best, ratio * sum_lx, where=wins)
        xp.copyto(inverse, trial, where=wins)
    live = xp.abs(peak) >= xp.float32(NOTHING)
    return ScaleFit(xp.where(live, scale, xp.float32(0)), xp.where(live, inverse, xp.float32(0)), half)


def _ratio_sums(
    x: Any, wx: Any, w: Any, inverse: Any, half: int, codes: Any, scratch: Any, xp: Any
) -> tuple[Any, Any]:
    _round_signed(x, inverse, half, codes, xp)
    sum_lx = column_sum(xp.multiply(wx, codes, out=scratch), xp=xp)
    xp.multiply(w, codes, out=scratch)
    return sum_lx, column_sum(xp.multiply(scratch, codes, out=scratch), xp=xp)


def scale_and_minimum(
    x: Any, w: Any, top: int, *, first: float, step: float, steps: int, absolute: bool = False, xp: Any
) -> LineFit:
    """Find the line scale * code + minimum, minimum <= 0, code 0 to `top`, closest to `x`.

    Round with a number of inverse scales, fit scale and minimum to each rounding by weighted least squares,
    keep the one of least sum(w * error**2), or sum(w * abs(error)) where `absolute`. A winner's minimum is
    where the next candidates start: the steps depend on each other and cannot be tried side by side. The
    model is `make_qkx2_quants` and `make_qkx3_quants` of [1]_.
    """
    high = x.max(axis=0)  # (n,)
    low = first_lowest(x, xp=xp)
    minimum = xp.where(low > xp.float32(0), xp.float32(0), low)
    sum_w, sum_x = column_sum(w, xp=xp), column_sum(w * x, xp=xp)
    codes, scratch, product = xp.empty_like(x), xp.empty_like(x), xp.empty_like(x)

    origin = minimum.copy()
    inverse = reciprocal(xp.float32(top), high - minimum, xp=xp)
    scale = reciprocal(xp.float32(1), inverse, xp=xp)
    _round_above(x, origin, inverse, top, codes, xp)
    error = _line_error(x, w, codes, scale, minimum, absolute, scratch, xp)
    for i in range(steps + 1):
        reach = xp.float32(first) + xp.float32(step) * xp.float32(i) + xp.float32(top)
        trial = reciprocal(reach, high - minimum, xp=xp)
        _round_above(x, minimum, trial, top, codes, xp)
        solvable, new_scale, new_minimum = _least_squares(x, w, codes, sum_w, sum_x, scratch, product, xp)
        new_error = _line_error(x, w, codes, new_scale, new_minimum, absolute, scratch, xp)
        wins = solvable & (new_error < error)
        xp.copyto(origin, minimum, where=wins)
        xp.copyto(inverse, trial, where=wins)
        xp.copyto(error, new_error, where=wins)
        xp.copyto(scale, new_scale, where=wins)
        xp.copyto(minimum, new_minimum, where=wins)
    return LineFit(scale, minimum, inverse, origin, top)


def _least_squares(
    x: Any, w: Any, codes: Any, sum_w: Any, sum_x: Any, scratch: Any, product: Any, xp: Any
) -> tuple[Any, Any, Any]:
    """Return whether a column determines a line, and its scale and minimum, the latter at most 0."""
    xp.multiply(w, codes, out=scratch)
    sum_l = column_sum(scratch, xp=xp)
    sum_xl = column_sum(xp.multiply(scratch, x, out=product), xp=xp)
    sum_l2 = column_sum(xp.multiply(scratch, codes, out=scratch), xp=xp)
    determinant = sum_w * sum_l2 - sum_l * sum_l
    scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
    minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
    above = minimum > xp.float32(0)
    xp.copyto(scale, sum_xl / sum_l2, where=above)
    xp.copyto(minimum, xp.float32(0), where=above)
    return determinant > xp.float32(0), scale, minimum


def _line_error(
    x: Any, w: Any, codes: Any, scale: Any, minimum: Any, absolute: bool, scratch: Any, xp: Any
) -> Any:
    xp.multiply(codes, scale, out=scratch)
    xp.add(scratch, minimum, out=scratch)
    xp.subtract(scratch, x, out=scratch)
    if absolute:
        xp.abs(scratch, out=scratch)
    else:
        xp.multiply(scratch, scratch, out=scratch)
    return column_sum(xp.multiply(scratch, w, out=scratch), xp=xp)


def _round_signed(x: Any, inverse: Any, half: int, out: Any, xp: Any) -> Any:
    xp.multiply(x, inverse, out=out)
    xp.rint(out, out=out)
    return out.clip(xp.float32(-half), xp.float32(half - 1), out=out)


def _round_above(x: Any, origin: Any, inverse: Any, top: int, out: Any, xp: Any) -> Any:
    xp.subtract(x, origin, out=out)
    xp.multiply(out, inverse, out=out)
    xp.rint(out, out=out)
    return out.clip(xp.float32(0), xp.float32(top), out=out)
