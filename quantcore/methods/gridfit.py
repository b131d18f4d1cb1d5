"""The search of the IQ types: the scale at which a block lies closest to points of a grid.

Levels stand for the odd numbers q = 2 * level + 1. As in the other searches the best scale for given levels
is sum(w x q) / sum(w q q), and what it explains decides among the tries; then groups that were off the grid
are projected once more with the scale found.

Blocks are float32 `(pieces, size, n)`: `n` blocks of `pieces` groups of `size` elements, made non-negative
but for single elements. Sums run over all elements of a block in order, in float32.

1. ggml, `ggml-quants.c`: `quantize_row_iq2_xxs_impl` and those after it. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.methods.gridchoice import Choices
from quantcore.methods.grids import codebook, neighbours, sieved
from quantcore.methods.gridstart import nearest_wrapped, start_scale

# Rounding errors move a quotient, in steps between levels, by far less than this.
_BORDER = 1e-5
# From here on the model's way of rounding wraps around.
_ROUNDABLE = 4e6


@dataclass(frozen=True)
class GridRule:
    """What differs between the types.

    `tries` steps of `step` to either side of rounding the peak to the top level. Blocks whose peak is below
    `nothing` are zero. `searched`: the peak is what a search for a scale without a grid found. `project`:
    which groups are projected once more: those `off` the grid, `all` of blocks with one off the grid, or
    `always` all.
    """

    book: str
    tries: int
    step: float
    nothing: float
    searched: bool = False
    project: str = "off"


@dataclass(frozen=True)
class GridFit:
    """x is about scale * q of the grid points `index`, int32 `(pieces, n)`; `live` blocks are not zero."""

    scale: Any
    index: Any
    live: Any


def fit_to_grid(x: Any, w: Any, rule: GridRule, *, xp: Any) -> GridFit:
    """Find the scale and grid points of blocks `x` with weights `w`."""
    if not x.shape[2]:
        nothing = xp.zeros(0, dtype=xp.float32)
        return GridFit(nothing, xp.zeros((x.shape[0], 0), dtype=xp.int32), nothing.astype(xp.bool_))
    search = _Search(x, w, rule, xp)
    search.run()
    search.project()
    return GridFit(xp.where(search.live, search.scale, xp.float32(0)), search.index, search.live)


class _Search:
    """The state of a search: the best scale of each block so far, and its grid points."""

    def __init__(self, x: Any, w: Any, rule: GridRule, xp: Any) -> None:
        book = codebook(rule.book)
        self.x, self.w, self.rule, self.xp = x, w, rule, xp
        self.wx = w * x
        self.top = book.levels - 1
        self.sieves = sieved(rule.book) is not neighbours(rule.book)
        self.places = xp.asarray(book.places, dtype=xp.float32)
        self.on_grid = xp.asarray(neighbours(rule.book).index) >= 0
        self.choices = Choices(rule.book, x, xp.sqrt(w), xp=xp)
        flat = x.reshape(-1, x.shape[2])  # (block, n)
        self.largest = xp.abs(flat).max(axis=0)  # (n,)
        peak = flat.max(axis=0)  # (n,)
        self.live = (peak >= xp.float32(rule.nothing)) & (peak > xp.float32(0))
        if rule.searched:
            scale = start_scale(flat, w.reshape(flat.shape), self.top + 2, xp=xp)  # (block, n)
            self.scale = xp.where(self.live, scale, xp.float32(0))
            peak = self.scale * xp.float32(self.top + 1)
            self.live = peak > xp.float32(0)
        else:
            self.scale = peak / xp.float32(2 * self.top + 1)
        self.peak = xp.where(self.live, peak, xp.float32(1))
        self.index = xp.zeros((x.shape[0], x.shape[2]), dtype=xp.int32)
        # Groups that no try has placed are at level zero, which is on every grid.
        self.off = xp.zeros(self.index.shape, dtype=xp.bool_) | (rule.project == "all")

    def pack_levels(self, inverse: Any) -> tuple[Any, Any]:
        """Return the lattice points that `x * inverse` rounds to, packed, float32 `(pieces, n)`.

        And, where that is asked for, bool `(pieces, n)`: a level is the next one but for rounding errors.
        """
        xp, border = self.xp, None
        exact = xp.multiply(self.x, inverse * xp.float32(0.5))
        xp.subtract(exact, xp.float32(0.5), out=exact)
        levels = xp.rint(exact)
        if self.sieves:
            xp.subtract(exact, levels, out=exact)
            xp.abs(exact, out=exact)
            border = exact.max(axis=1) > xp.float32(0.5 - _BORDER)  # (pieces, n)
        levels.clip(xp.float32(0), xp.float32(self.top), out=levels)
        far = wrap_far(self.x, inverse, self.largest, levels, self.top, xp=xp)
        if border is not None:
            border[:, far] = True
        return self.places @ levels, border  # (pieces, n)

    def sums(self, index: Any) -> tuple[Any, Any]:
        """Return sum(w x q) and sum(w q q) for grid points `(tries, pieces, n)`, each `(tries, n)`."""
        xp, (pieces, size, _) = self.xp, self.x.shape
        shape = (index.shape[0], index.shape[2])
        sum_qx, sum_q2 = xp.zeros(shape, dtype=xp.float32), xp.zeros(shape, dtype=xp.float32)
        for k in range(pieces):
            points = xp.asarray(index[:, k], dtype=xp.intp)
            for i in range(size):
                q = xp.take(self.choices.q[i], points)
                term = self.wx[k, i] * q
                xp.add(sum_qx, term, out=sum_qx)
                xp.multiply(self.w[k, i], q, out=term)
                xp.multiply(term, q, out=term)
                xp.add(sum_q2, term, out=sum_q2)
        return sum_qx, sum_q2

    def run(self) -> None:
        """Try all scales and keep the best of each block."""
        xp, rule = self.xp, self.rule
        pieces, _, n = self.x.shape
        steps = range(-rule.tries, rule.tries + 1)
        packed = xp.empty((pieces, n, len(steps)), dtype=xp.intp)
        border = xp.empty((pieces, n, len(steps)), dtype=xp.bool_) if self.sieves else None
        scale = xp.empty((n, len(steps)), dtype=xp.float32)
        for t, i in enumerate(steps):
            reach = xp.float32(2 * self.top + 1) + xp.float32(i) * xp.float32(rule.step)
            inverse = reach / self.peak
            scale[:, t] = xp.float32(1) / inverse
            packed[:, :, t], near = self.pack_levels(inverse)
            if border is not None:
                border[:, :, t] = near
        index = self.choices.choose(packed.reshape(pieces * n, -1), scale, border)  # (pieces * n, tries)
        index = xp.ascontiguousarray(index.reshape(pieces, n, -1).transpose(2, 0, 1))  # (tries, pieces, n)
        sum_qx, sum_q2 = self.sums(index)
        best, winner = xp.zeros(n, dtype=xp.float32), xp.zeros(n, dtype=xp.intp) - 1
        for t in range(len(steps)):
            qx, q2 = sum_qx[t], sum_q2[t]
            wins = (q2 > xp.float32(0)) & (qx * qx > best * q2)
            ratio = qx / q2
            xp.copyto(self.scale, ratio, where=wins)
            xp.copyto(best, ratio * qx, where=wins)
            xp.copyto(winner, t, where=wins)
        won = xp.flatnonzero(winner >= 0)
        self.index[:, won] = index[winner[won], :, won].T  # (pieces, won)
        self.off[:, won] = ~xp.take(self.on_grid, packed[:, won, winner[won]])  # (pieces, won)

    def project(self) -> None:
        """Round once more with the scale found, and fit the scale to that."""
        xp, n = self.xp, self.x.shape[2]
        inverse = xp.float32(1) / self.scale
        again = self.scale > xp.float32(0)
        groups = self.off
        if self.rule.project == "always":
            groups = xp.zeros(groups.shape, dtype=xp.bool_) | again
        elif self.rule.project == "all":
            groups = xp.zeros(groups.shape, dtype=xp.bool_) | groups.any(axis=0)  # (pieces, n)
        groups = groups & again
        if not bool(groups.any()):
            return
        packed, border = self.pack_levels(inverse)
        # What is not projected keeps its place: level zero is on the grid and costs no search.
        packed = xp.where(groups, packed, xp.float32(0)).astype(xp.intp).reshape(-1, 1)  # (pieces * n, 1)
        index = self.choices.choose(packed, self.scale.reshape(n, 1), border).reshape(groups.shape)
        self.index = xp.where(groups, index, self.index)
        sum_qx, sum_q2 = (part[0] for part in self.sums(self.index.reshape(1, *groups.shape)))  # (n,)
        fitted = groups.any(axis=0) & (sum_q2 > xp.float32(0))  # (n,)
        self.scale = xp.where(fitted, sum_qx / sum_q2, self.scale)


def round_to_levels(x: Any, inverse: Any, largest: Any, top: int, *, xp: Any) -> Any:
    """Return (x * inverse - 1) / 2, rounded to `0 ... top`; `largest` is that of each column of `x`."""
    levels = x * (inverse * xp.float32(0.5))
    xp.subtract(levels, xp.float32(0.5), out=levels)
    xp.rint(levels, out=levels)
    levels.clip(xp.float32(0), xp.float32(top), out=levels)
    wrap_far(x, inverse, largest, levels, top, xp=xp)
    return levels


def wrap_far(x: Any, inverse: Any, largest: Any, levels: Any, top: int, *, xp: Any) -> Any:
    """Set the levels of columns with quotients too large to be rounded to what ggml makes of them.

    Return which columns these are.
    """
    far = xp.flatnonzero(~(inverse * largest < xp.float32(_ROUNDABLE)))
    if far.size:
        exact = (x[..., far] * inverse[far] - xp.float32(1)) * xp.float32(0.5)
        levels[..., far] = nearest_wrapped(exact, xp=xp).clip(0, top)
    return far
