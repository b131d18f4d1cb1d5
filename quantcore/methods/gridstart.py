"""Where the search of IQ2_XXS starts: the scale that fits best without a grid.

It is `make_qp_quants` of ggml, meant for non-negative values and unsigned codes, and given values of which
some are negative: their codes wrap around to 255 and below. That is part of the bytes, and so is how it
rounds numbers too large to be rounded.

1. ggml, `ggml-quants.c`: `make_qp_quants`, `nearest_int`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from typing import Any

from quantcore.methods.columns import column_sum

WALKS = 5
# 1.5 * 2**23: adding it leaves the nearest integer in the low bits of a float32.
_MAGIC = 12582912.0


def nearest_wrapped(values: Any, *, xp: Any) -> Any:
    """Return the integer nearest to float32 `values`, int32; beyond 2**22, whatever the low bits then are."""
    bits = (values + xp.float32(_MAGIC)).view(xp.int32)
    return (bits & xp.int32(0x007FFFFF)) - xp.int32(0x00400000)


def start_scale(x: Any, w: Any, top: int, *, xp: Any) -> Any:
    """Return the scale that rounds columns `x` to codes up to `top` with least error, float32 `(n,)`."""
    peak = x.max(axis=0)  # (n,)
    inverse = xp.float32(top) / peak
    codes = _wrap(nearest_wrapped(x * inverse, xp=xp), xp)
    best = _error(x, w, codes, inverse, xp)
    for i in (*range(-4, 0), *range(1, 5)):
        trial = (xp.float32(0.1) * xp.float32(i) + xp.float32(top)) / peak
        error = _error(x, w, _codes(x * trial, top, xp), trial, xp)
        wins = error < best
        xp.copyto(best, error, where=wins)
        xp.copyto(inverse, trial, where=wins)
    codes = _codes(x * inverse, top, xp)
    sum_lx, sum_l2 = column_sum(w * x * codes, xp=xp), column_sum(w * codes * codes, xp=xp)
    codes = _wrap(codes.astype(xp.int32), xp)
    active = xp.arange(x.shape[1])
    for _ in range(WALKS):
        # Columns that did not change would stay as they are.
        part = [each[:, active] for each in (x, w, codes)]
        sums = [sum_lx[active], sum_l2[active]]
        moved = _walk(part, sums, top, xp)
        codes[:, active], sum_lx[active], sum_l2[active] = part[2], *sums
        active = active[moved]
        if not active.size:
            break
    return xp.where(sum_l2 > xp.float32(0), sum_lx / sum_l2, xp.float32(0))


def _codes(values: Any, top: int, xp: Any) -> Any:
    return nearest_wrapped(values, xp=xp).clip(-(1 << 23), top).astype(xp.float32)


def _wrap(codes: Any, xp: Any) -> Any:
    """Return integer codes as they come back from one unsigned byte, float32."""
    return (codes & xp.int32(255)).astype(xp.float32)


def _error(x: Any, w: Any, codes: Any, inverse: Any, xp: Any) -> Any:
    error = x - (xp.float32(1) / inverse) * codes
    return column_sum(w * error * error, xp=xp)


def _walk(columns: list[Any], sums: list[Any], top: int, xp: Any) -> Any:
    """Move one code after the other where that explains more; return which columns changed.

    `columns` are x, w and codes, `sums` those of w x l and w l l; codes and sums change in place.
    """
    x, w, codes = columns
    sum_lx, sum_l2 = sums
    moved = xp.zeros(x.shape[1], dtype=xp.bool_)
    zero = xp.float32(0)
    for xi, wi, code in zip(x, w, codes, strict=True):
        wx = wi * xi
        lx, l2 = sum_lx - wx * code, sum_l2 - wi * code * code
        new = _codes(xi * l2 / lx, top, xp)
        changes = (lx > zero) & (l2 > zero) & (new != code)
        lx, l2 = lx + wx * new, l2 + wi * new * new
        changes &= lx * lx * sum_l2 > sum_lx * sum_lx * l2
        xp.copyto(code, _wrap(new.astype(xp.int32), xp), where=changes)
        xp.copyto(sum_lx, lx, where=changes)
        xp.copyto(sum_l2, l2, where=changes)
        moved |= changes
    return moved
