"""The experts of a layer for all of a text: dequantized a few at a time, each once for all rows it is sent.

A layer's experts together are most of a mixture's weights, and no token needs more than a few. In memory are
those of one slab, which are few if they are large; the price are the inputs and outputs of the layer's
feed-forward part for all rows, which must wait while slab after slab adds to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.cores import usable_cores
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.steps import Steps
from quantcore.evaluate.weights import Weights

SLAB_BYTES = 1 << 26  # of experts dequantized together, if that is enough for all cores
ROWS = 256  # that go through an expert as one piece of work, however many threads there are
PARTS = ("gate", "up", "down")

Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Piece:
    """Rows that go to one expert, and the shares `(rows,)` that they have of it."""

    expert: int
    rows: Places
    shares: Floats


@dataclass(frozen=True)
class Routes:
    """Which rows go to which experts: `rows` and `shares` expert by expert, whose ends are `ends[expert]`."""

    rows: Places
    shares: Floats
    ends: Places

    @classmethod
    def of(cls, chosen: Places, shares: Floats, experts: int) -> Routes:
        """Return the routes of rows that have chosen experts, both arguments `(rows, used)`."""
        order = np.argsort(chosen, axis=None, kind="stable")  # (rows * used,)
        counts = np.bincount(chosen.reshape(-1), minlength=experts)
        return cls(order // chosen.shape[1], shares.reshape(-1)[order], np.cumsum(counts))

    def pieces(self, expert: int) -> list[Piece]:
        """Return the rows of one expert, in order."""
        begin, end = (int(self.ends[expert - 1]) if expert else 0), int(self.ends[expert])
        places = (slice(at, min(at + ROWS, end)) for at in range(begin, end, ROWS))
        return [Piece(expert, self.rows[place], self.shares[place]) for place in places]


@dataclass(frozen=True)
class Slab:
    """A few experts: `matrices` by number and part, and the `pieces` of work with them, in order."""

    matrices: Mapping[int, Mapping[str, Any]]
    pieces: list[Piece]


@dataclass(frozen=True)
class Experts:
    """The experts of layer `index`, in the form that `steps` multiplies with."""

    weights: Weights
    index: int
    steps: Steps

    def slabs(self, routes: Routes, pool: Executor) -> Iterator[Slab]:
        """Yield the experts that rows are sent to; those of a slab are dequantized when it is asked for."""
        pieces = {expert: found for expert in range(len(routes.ends)) if (found := routes.pieces(expert))}
        step, called = self._at_once(), list(pieces)
        for first in range(0, len(called), step):
            slab = called[first : first + step]
            wanted = [(expert, part) for expert in slab for part in PARTS]
            matrices: dict[int, dict[str, Any]] = {expert: {} for expert in slab}
            for (expert, part), matrix in zip(wanted, pool.map(self._matrix, wanted), strict=True):
                matrices[expert][part] = matrix
            yield Slab(matrices, [piece for expert in slab for piece in pieces[expert]])

    def _at_once(self) -> int:
        """Return how many experts make a slab: so many that all cores have a matrix to dequantize."""
        shape = self.weights.shape
        each = 4 * len(PARTS) * shape.expert_feed_forward * shape.embedding
        return max(SLAB_BYTES // each, -(-usable_cores() // len(PARTS)))

    def _matrix(self, wanted: tuple[int, str]) -> Any:
        expert, part = wanted
        return self.steps.matrix(self.weights.expert(self.index, f"ffn_{part}_exps.weight", expert))
