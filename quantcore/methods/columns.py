"""Blocks as columns, and reductions over them in a fixed order.

Kernels work on columns: element `i` of block `n` stands at `[i, n]`, so that each step of an algorithm over
the elements of a block is one operation over thousands of blocks, contiguous in memory.
"""

from __future__ import annotations

from typing import Any


def to_columns(blocks: Any, group: int, *, xp: Any) -> Any:
    """Return `(n, block)` as `(group, groups * n)`: group `g` of block `b` is column `g * n + b`."""
    n = blocks.shape[0]
    columns = xp.empty((group, blocks.shape[1] // group, n), dtype=blocks.dtype)
    columns[...] = blocks.reshape(n, blocks.shape[1] // group, group).transpose(2, 1, 0)  # (group, groups, n)
    return columns.reshape(group, -1)  # (group, groups * n)


def from_columns(columns: Any, n: int, *, xp: Any) -> Any:
    """Return `(group, groups * n)` as `(n, groups * group)`: the inverse of `to_columns`."""
    group = columns.shape[0]
    blocks = xp.empty((n, columns.shape[1] // n, group), dtype=columns.dtype)
    blocks[...] = columns.reshape(group, -1, n).transpose(2, 1, 0)  # (n, groups, group)
    return blocks.reshape(n, -1)  # (n, groups * group)


def column_sum(columns: Any, *, xp: Any) -> Any:
    """Return the sum of each column of float32 `(k, n)`, added strictly from top to bottom.

    The order is part of the result: ggml adds this way, and our bytes are to equal its bytes. A single column
    would be summed pairwise, hence the detour over the running sum.
    """
    if columns.shape[1] > 1:
        return columns.sum(axis=0)  # (n,)
    return xp.cumsum(columns, axis=0)[-1]  # (1,)


def signed_peak(columns: Any, *, xp: Any) -> Any:
    """Return from each column the value of largest magnitude, with its sign; the first of equals."""
    high = columns.max(axis=0)  # (n,)
    low = columns.min(axis=0)  # (n,)
    peak = xp.where(high > -low, high, low)
    ties = xp.flatnonzero(high == -low)
    if ties.size:
        tied = columns[:, ties]
        first = xp.abs(tied).argmax(axis=0)  # (ties,)
        # Adding zero turns the -0.0 of an all-zero column into the 0.0 that a search from zero upwards finds.
        peak[ties] = tied[first, xp.arange(ties.size)] + xp.float32(0)
    return peak


def first_lowest(x: Any, *, xp: Any) -> Any:
    """Return the minimum of each column; among zeros of both signs the first, whose sign is stored."""
    low = x.min(axis=0)  # (n,)
    zero = xp.flatnonzero(low == xp.float32(0))
    if zero.size:
        tied = x[:, zero]
        low[zero] = tied[tied.argmin(axis=0), xp.arange(zero.size)]
    return low


def reciprocal(reach: Any, span: Any, *, xp: Any) -> Any:
    """Return reach / span; spans of zero, or so small that this overflows, give 0 and with it all codes 0."""
    inverse = reach / span
    return xp.where(xp.isfinite(inverse), inverse, xp.float32(0))
