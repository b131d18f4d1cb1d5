"""The best grid point for groups that round to a lattice point off the grid, for many scales at once.

Among the choices of a lattice point that with the least d = sum(w * (scale * q - x)**2), summed in order in
float32, wins, the first of equals. To calculate all of these is nearly all the work of an IQ search. But with

    a = sum(w * q * q),  b = sum(w * q * x),  d / scale = scale * a - 2 * b + the same for all choices

each choice is a line over the scales. A search tries rising scales, and a group rounds to the same lattice
point for several of them in a row: for such a run each choice costs one a and one b, and at each scale one
multiplication. `d` itself is calculated only where two lines come so close that rounding could matter, or
where a weight is so close to the border of two levels that a choice which was sieved out could win.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.methods.grids import Neighbours, codebook, neighbours, once, sieved

_WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 320)
# Above how much, relative to all terms that enter, a difference of lines cannot come from rounding: a sum of
# 8 products and what follows err by less than 32 half units in the last place.
_DOUBT = 32 * 2.0**-24
# Below, rounding errors are no longer relative.
_TINY = 1e-36
# This many choices at a time keep the scratch arrays in the outer cache.
_CHOICES = 1 << 17
# Tries of a run at a time.
_TRIES = 4
# The odd numbers of the point that fills up short lists: so far off that it hardly ever wins.
_FAR = np.float32(1e6)
_BEYOND = np.float32(np.inf)
_BYTES = 255


@dataclass(frozen=True)
class Lists:
    """The choices of lattice points, those that have about equally many in one table.

    `kind` and `column` say in which table a packed lattice point is found, and where; `tables` are grid
    indices `(width, points)`. Shorter lists are filled up with the number of grid points, which is none.
    """

    kind: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]
    tables: tuple[npt.NDArray[np.intp], ...]


def _lists(near: Neighbours, nothing: int) -> Lists:
    counts = near.counts
    kind = np.searchsorted(_WIDTHS, counts).astype(np.intp)
    column = np.zeros(len(counts), np.intp)
    made = []
    for i, width in enumerate(_WIDTHS):
        points = np.flatnonzero((kind == i) & (counts > 0))
        column[points] = np.arange(len(points))
        rank = np.arange(width).reshape(-1, 1) + np.zeros_like(points)  # (width, points)
        spare = rank >= counts[points]
        choices = near.choices[near.start[points] + np.where(spare, 0, rank)]
        made.append(np.where(spare, nothing, choices).astype(np.intp))
    return Lists(kind, column, tuple(made))


@once
def all_lists(name: str) -> Lists:
    """Return all choices of an IQ type."""
    return _lists(neighbours(name), len(codebook(name).points))


@once
def sieved_lists(name: str) -> Lists:
    """Return the choices that can win where no weight is close to the border of two levels."""
    return _lists(sieved(name), len(codebook(name).points))


class Choices:
    """Groups `x` with weights `w`, float32 `(pieces, size, n)`, before the codebook `name`.

    Group `c` of piece `k` is number `k * n + c`.
    """

    def __init__(self, name: str, x: Any, w: Any, *, xp: Any) -> None:
        book = codebook(name)
        self._xp, self._name, self._nothing = xp, name, len(book.points)
        self._index = xp.asarray(neighbours(name).index)
        odd = np.append(2 * book.points.T.astype(np.float32) + 1, np.full((book.size, 1), _FAR), axis=1)
        self.q = xp.asarray(odd)  # (size, points + 1)
        self._x, self._w = (
            xp.ascontiguousarray(part.transpose(1, 0, 2)).reshape(book.size, -1)  # (size, pieces * n)
            for part in (x, w)
        )
        self._wx = self._w * self._x
        self._top = xp.float32(2 * book.levels - 1)

    def choose(self, packed: Any, scale: Any, border: Any | None) -> Any:
        """Return grid indices, int32 `(pieces * n, tries)`, for packed lattice points of the same shape.

        `packed` is of type intp, `scale` float32 `(n, tries)`, falling. `border`, bool of the shape of
        `packed`, tells where a weight is close to the border of two levels; it is needed where `sieved`
        leaves anything out.
        """
        xp, (groups, tries) = self._xp, packed.shape
        first = xp.empty((groups, tries), dtype=xp.bool_)
        first[:, 0] = True
        xp.not_equal(packed[:, 1:], packed[:, :-1], out=first[:, 1:])
        packed, scale = packed.reshape(-1), scale.reshape(-1)  # (groups * tries,), (n * tries,)
        found = xp.take(self._index, packed)  # (groups * tries,)
        again = xp.zeros(0, dtype=xp.intp)
        if border is not None:
            again = xp.flatnonzero(border.reshape(-1))
            again = again[found[again] < xp.int32(0)]
        begin = xp.flatnonzero(first.reshape(-1))
        end = xp.concatenate([begin[1:], xp.asarray([groups * tries], dtype=begin.dtype)])
        off = xp.flatnonzero(found[begin] < xp.int32(0))
        begin, end = begin[off], end[off]
        if begin.size:
            self._choose_by_lines(packed[begin], begin, end - begin, scale.reshape(-1, tries), found)
        rest = xp.concatenate([again, xp.flatnonzero(found < xp.int32(0))])
        if rest.size:
            own = xp.take(scale, rest % scale.size)
            found[rest] = self._exact(packed[rest], rest // tries, own)
        return found.reshape(groups, tries)

    def _margins(self, scale: Any) -> Any:
        """Return how far below others the best line of a group must be for sure, float32 `(groups,)`.

        `scale` is `(n, tries)`, falling; what holds at all is larger than need be by a half at most.
        """
        xp = self._xp
        pieces = self._x.shape[1] // len(scale)
        most, least = (
            xp.broadcast_to(part, (pieces, len(scale))).reshape(-1)  # (groups,)
            for part in (scale[:, 0], scale[:, -1])
        )
        squares = self._top * self._top * self._w.sum(axis=0) * most
        products = xp.float32(2) * self._top * xp.abs(self._wx).sum(axis=0)
        rest = (self._wx * self._x).sum(axis=0)
        margin = xp.float32(_DOUBT) * (squares + products + rest / least)
        return xp.where(xp.float32(_DOUBT) * rest > xp.float32(_TINY), margin, xp.float32(3e38))

    def _parts(self, lists: Lists, points: Any) -> Iterator[tuple[slice, Any]]:
        """Yield parts of `points`, which stand by their table, and the choices there, `(width, part)`."""
        xp = self._xp
        kinds = xp.take(xp.asarray(lists.kind), points)
        columns = xp.take(xp.asarray(lists.column), points)
        counts = [int((kinds == kind).sum()) for kind in range(len(lists.tables))]
        begin = 0
        for count, table in zip(counts, lists.tables, strict=True):
            step = max(1, _CHOICES // table.shape[0])
            for at in range(begin, begin + count, step):
                part = slice(at, min(begin + count, at + step))
                yield part, xp.take(xp.asarray(table), columns[part], axis=1)
            begin += count

    def _choose_by_lines(self, points: Any, begin: Any, length: Any, scale: Any, found: Any) -> None:
        """Put into `found` the grid index of the best choice for all tries of runs, -1 where in doubt."""
        xp, tries, lists = self._xp, scale.shape[1], sieved_lists(self._name)
        # By table, and there the longest first: those that go on are then always the first ones.
        order = xp.argsort(xp.take(xp.asarray(lists.kind), points) * (tries + 1) - length)
        points, begin, length = points[order], begin[order], length[order]
        group, at = begin // tries, begin % scale.size
        margins = xp.take(self._margins(scale), group)
        # A run that ends within a block of tries is carried on to its end, and what is past it forgotten.
        scale = xp.concatenate([scale.reshape(-1), *[scale[-1, -1:]] * _TRIES])
        for part, choices in self._parts(lists, points):
            start, left = begin[part], length[part]
            a, b = self._lines(choices, group[part])
            # How many runs are longer than so many tries; from the longest on, none.
            longer = xp.searchsorted(-left, xp.arange(0, -tries - _TRIES, -1)).tolist()
            for t in range(0, int(left[0]), _TRIES):
                counts = longer[t : t + _TRIES]
                n = counts[0]
                s = xp.take(scale, at[part][:n] + (xp.arange(_TRIES).reshape(-1, 1) + t))
                best = self._best_lines(a[:, :, :n], b[:, :, :n], s, margins[part][:n], choices)
                for i, count in enumerate(counts):
                    found[start[:count] + (t + i)] = best[i, :count]

    def _best_lines(self, a: Any, b: Any, s: Any, margin: Any, choices: Any) -> Any:
        """Return the grid index of the best line at scales `s` `(tries, n)`, int32, -1 where in doubt."""
        xp, (width, total) = self._xp, choices.shape
        line = xp.multiply(a, s)  # (width, tries, n)
        xp.subtract(line, b, out=line)
        close = (line <= line.min(axis=0) + margin).view(xp.uint8)
        # Ranks beyond a byte wrap around; a single one that is close is still told from many.
        rank = xp.arange(width, dtype=xp.int32).reshape(-1, 1, 1)
        number = close.sum(axis=0, dtype=xp.uint8 if width <= _BYTES else xp.int32)  # (tries, n)
        narrow = rank.astype(xp.uint8) if width <= _BYTES else rank
        place = xp.multiply(close, narrow).sum(axis=0, dtype=narrow.dtype)  # (tries, n)
        place = xp.multiply(place, xp.intp(total), dtype=xp.intp) + xp.arange(s.shape[1], dtype=xp.intp)
        sure = number == 1
        index = xp.take(choices.reshape(-1), xp.where(sure, place, xp.intp(0)))
        sure = sure & (index != xp.intp(self._nothing))
        return xp.where(sure, index, xp.intp(-1)).astype(xp.int32)

    def _lines(self, choices: Any, group: Any) -> tuple[Any, Any]:
        """Return a and 2 * b of choices `(width, groups)`, each `(width, 1, groups)`."""
        xp, shape = self._xp, (choices.shape[0], 1, choices.shape[1])
        a, b = xp.zeros(choices.shape, dtype=xp.float32), xp.zeros(choices.shape, dtype=xp.float32)
        term = xp.empty(choices.shape, dtype=xp.float32)
        for q, w, wx in zip(self.q, self._w, self._wx, strict=True):
            own = xp.take(q, choices)
            xp.multiply(own, xp.take(wx, group), out=term)
            xp.add(b, term, out=b)
            xp.multiply(own, own, out=own)
            xp.multiply(own, xp.take(w, group), out=own)
            xp.add(a, own, out=a)
        return a.reshape(shape), xp.add(b, b, out=b).reshape(shape)

    def _exact(self, points: Any, group: Any, scale: Any) -> Any:
        """Return the grid index of least distance among all choices, the first of equals."""
        xp, lists = self._xp, all_lists(self._name)
        order = xp.argsort(xp.take(xp.asarray(lists.kind), points))
        out = xp.empty(points.shape, dtype=xp.int32)
        for part, choices in self._parts(lists, points[order]):
            some = order[part]
            there, s = group[some], scale[some]
            total = xp.zeros(choices.shape, dtype=xp.float32)
            for q, x, w in zip(self.q, self._x, self._w, strict=True):
                diff = xp.take(q, choices)
                xp.multiply(diff, s, out=diff)
                xp.subtract(diff, xp.take(x, there), out=diff)
                term = xp.multiply(diff, xp.take(w, there))
                xp.multiply(term, diff, out=term)
                xp.add(total, term, out=total)
            xp.copyto(total, xp.float32(_BEYOND), where=choices == xp.intp(self._nothing))
            rank = xp.arange(len(choices), dtype=xp.intp).reshape(-1, 1)  # (width, 1)
            best = xp.where(total == total.min(axis=0), rank, len(choices) - 1).min(axis=0)  # (some,)
            out[some] = choices[best, xp.arange(some.size)]
        return out
