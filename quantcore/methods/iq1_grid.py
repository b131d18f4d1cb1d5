"""From levels chosen freely to points of a codebook: the last step of IQ1_S and IQ1_M.

Groups of eight levels that are no grid point take the one of least sum(w * (scale * level - x)**2) among the
near ones, some hundred; the first of equals wins. What a level costs at a place is calculated once, summed up
for all combinations of the first and of the last four places, and looked up. That adds up in another order
than ggml does, so where two choices come out nearly equal they are added up again in order.

1. ggml, `ggml-quants.c`: `iq1_find_best_neighbour2`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from functools import cache
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.methods.columns import column_sum, to_columns
from quantcore.methods.grids import Codebook, Neighbours, codebook, neighbours
from quantcore.methods.iq1_division import SHIFT, Division

# Sums of eight numbers that are not negative differ by less than this part, whatever their order.
_DOUBT = 3e-6
_CHUNK = 16
# Groups looked up at a time: their sums stay in the cache.
_WIDTH = 256

Ints = npt.NDArray[np.int64]


class Choices:
    """The choices of each lattice point, sixteen to a chunk, as grid index and as combinations of halves.

    `low` and `high` are `(chunks, 16)`, combinations times `_WIDTH`. The chunks of lattice point `p` start at
    `first[p]`, `count[p]` in number; the last is filled up with the combination 81, whose cost is infinite.
    """

    def __init__(self, book: Codebook, near: Neighbours) -> None:
        self.count: Ints = -(-near.counts.astype(np.int64) // _CHUNK)
        self.first: Ints = np.cumsum(self.count) - self.count
        owner = np.repeat(np.arange(len(self.count)), self.count * _CHUNK)
        rank = np.arange(len(owner)) - self.first[owner] * _CHUNK
        spare = rank >= near.counts[owner]
        rank[spare] = 0
        self.index = near.choices[near.start[owner] + rank].reshape(-1, _CHUNK)
        packed = book.packed[self.index]
        self.low = (packed % 81 * _WIDTH).astype(np.int16)
        high = np.where(spare.reshape(-1, _CHUNK), 81, packed // 81)
        self.high = (high * _WIDTH).astype(np.int16)


@cache
def choices(name: str) -> Choices:
    """Return the choices of a type's lattice points."""
    return Choices(codebook(name), neighbours(name))


def project(found: Division, x: Any, w: Any, name: str, *, xp: Any) -> tuple[Any, Any]:
    """Return grid indices, int32 `(n, k / 8)`, and scales, float32 `(n,)`, for divided blocks `x` `(n, k)`.

    Where a group had to move to a grid point, the block's scale is fitted again.
    """
    n, k = x.shape
    book = codebook(name)
    shift = xp.where(found.lowered.T, xp.float32(-SHIFT), xp.float32(SHIFT))  # (n, parts)
    shift = xp.broadcast_to(shift.reshape(n, -1, 1), (n, shift.shape[1], k // 8 // shift.shape[1])).reshape(
        -1
    )
    lattice = _packed(found.levels.reshape(-1, 8), book.levels, xp)  # (n * k / 8,)
    index = xp.asarray(neighbours(name).index)[lattice]
    index[xp.broadcast_to(~found.found.reshape(-1, 1), (n, k // 8)).reshape(-1)] = 0

    off = xp.flatnonzero(index < 0)
    off = off[xp.asarray(choices(name).count)[lattice[off]].argsort()]
    block = off // (k // 8)
    groups, weights = (xp.ascontiguousarray(part.reshape(-1, 8)[off].T) for part in (x, w))  # (8, off)
    index[off] = _nearest(groups, weights, found.scale[block], shift[off], lattice[off], name, xp)
    index = index.reshape(n, -1)
    moved = xp.zeros(n, dtype=xp.bool_)
    moved[block] = True
    again = xp.flatnonzero(moved)
    q = grid_values(index[again], shift.reshape(n, -1)[again], book, xp=xp)  # (again, k)
    wxq, wqq = fit_sums(x[again], w[again], q, xp=xp)
    good = (wxq > xp.float32(0)) & (wqq > xp.float32(0))
    scale = found.scale.copy()
    scale[again] = xp.where(good, wxq / wqq, scale[again])
    return index, scale


def grid_values(index: Any, shift: Any, book: Codebook, *, xp: Any) -> Any:
    """Return the moved levels of grid points `index` `(n, groups)`, float32 `(n, groups * 8)`."""
    levels = xp.asarray(book.points)[index].astype(xp.float32)  # (n, groups, 8)
    levels += (shift - xp.float32(1)).reshape(*shift.shape, 1)
    return levels.reshape(len(index), index.shape[1] * 8)


def fit_sums(x: Any, w: Any, q: Any, *, xp: Any) -> tuple[Any, Any]:
    """Return sum(w q x) and sum(w q q) of each row of float32 `(n, k)`, added from left to right."""
    q = to_columns(q, q.shape[1], xp=xp)  # (k, n)
    wq = to_columns(w, w.shape[1], xp=xp) * q
    return column_sum(wq * to_columns(x, x.shape[1], xp=xp), xp=xp), column_sum(wq * q, xp=xp)


def _packed(levels: Any, base: int, xp: Any) -> Any:
    """Return levels, uint8 `(n, 8)`, as the numbers of lattice points, int32 `(n,)`."""
    number = levels[:, 7].astype(xp.int32)
    for i in range(6, -1, -1):
        number = number * xp.int32(base) + levels[:, i]
    return number


def _nearest(x: Any, w: Any, scale: Any, shift: Any, lattice: Any, name: str, xp: Any) -> Any:
    """Return the grid index of the best choice for groups `x` `(8, n)` that rounded to `lattice` `(n,)`.

    The groups come in the order of how many choices they have.
    """
    table = choices(name)
    costs = xp.empty((8, 3, x.shape[1]), dtype=xp.float32)
    for level in range(3):
        miss = scale * (shift + xp.float32(level - 1)) - x  # (8, n)
        xp.multiply(w * miss, miss, out=costs[:, level])
    counts, first = xp.asarray(table.count)[lattice], xp.asarray(table.first)[lattice]
    index = xp.empty(x.shape[1], dtype=xp.int32)
    at = 0
    while at < len(index):
        chunks = counts[at]
        some = slice(at, at + min(_WIDTH, int((counts[at : at + _WIDTH] == chunks).sum())))
        rows = first[some].reshape(-1, 1) + xp.arange(int(chunks))
        index[some] = _cheapest(costs[:, :, some], rows, table, xp)
        at = some.stop
    return index


def _cheapest(costs: Any, rows: Any, table: Choices, xp: Any) -> Any:
    """Return for costs `(8, 3, n)` the grid index of the best choice in chunks `rows` `(n, chunks)`."""
    n = len(rows)
    group = xp.arange(n).reshape(-1, 1)
    half, sums = [], xp.empty((82, _WIDTH), dtype=xp.float32)
    sums[81] = xp.float32(inf)
    for codes, four in ((table.low, costs[:4]), (table.high, costs[4:])):
        sums[:81, :n] = _sums_of_four(four)
        places = xp.take(xp.asarray(codes), rows, axis=0).reshape(n, -1) + group  # (n, choices)
        half.append(xp.take(sums.reshape(-1), places))
    total = half[0] + half[1]
    near = total <= total.min(axis=1).reshape(-1, 1) * xp.float32(1 + _DOUBT)
    places = xp.flatnonzero(near)
    best = xp.zeros(n, dtype=xp.intp)
    best[places // total.shape[1]] = places % total.shape[1]
    if places.size != n:
        tied = xp.flatnonzero(near.sum(axis=1) != 1)
        best[tied] = _in_order(half[0][tied], costs[4:, :, tied], rows[tied], table, xp).argmin(axis=1)
    return xp.asarray(table.index)[rows[group[:, 0], best // _CHUNK], best % _CHUNK]


def _in_order(low: Any, costs: Any, rows: Any, table: Choices, xp: Any) -> Any:
    """Return sums `low` `(n, choices)` of four places with those of `costs` `(4, 3, n)` added in order."""
    group = xp.arange(len(rows)).reshape(-1, 1)
    codes = xp.asarray(table.high)[rows].reshape(low.shape) // xp.int16(_WIDTH)
    for i, cost in enumerate(costs):
        low = low + cost[codes // xp.int16(3**i) % xp.int16(3), group]
    return xp.where(codes == xp.int16(81), xp.float32(inf), low)


def _sums_of_four(costs: Any) -> Any:
    """Return the sums of costs `(4, 3, n)` for all levels of four places, added in order, `(81, n)`."""
    n = costs.shape[-1]
    sums = costs[0]
    for place in costs[1:]:
        sums = (sums + place.reshape(3, 1, n)).reshape(-1, n)  # (levels so far, n)
    return sums
