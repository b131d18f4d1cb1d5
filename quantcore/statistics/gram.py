"""Sums of products of the columns of matrices, X'X: the Hessians of layer-wise quantization.

Half of such a matrix mirrors the other. Kept are strips of rows, each up to its last diagonal element: half
the memory, half the work, and pieces that several threads can add to at a time.

1. Frantar et al., GPTQ, https://arxiv.org/abs/2210.17323: H = 2 X'X; the factor is the user's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

STRIP = 512  # rows at most: a product of this size is as fast as any


class Gram:
    """X'X of all rows X that were added, float64, `(width, width)`.

    Each product is of float32, as many rows as are added at a time; products are summed in float64.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        count = -(-width // STRIP)
        self._edges = [width * place // count for place in range(count + 1)]
        # Zeros that nobody has written to take no memory: experts that no token reaches cost nothing.
        self._strips = [np.zeros((last - first, last)) for first, last in pairwise(self._edges)]

    def __len__(self) -> int:
        """Return the number of strips."""
        return len(self._strips)

    @property
    def packed_size(self) -> int:
        """Return how many numbers lie on or below the diagonal."""
        return packed_size(self.width)

    def add(self, strip: int, x: Floats) -> None:
        """Add the rows `x` `(rows, width)` to one strip; different strips may be added to at a time."""
        first, last = self._edges[strip], self._edges[strip + 1]
        own = x[:, first:last]  # (rows, last - first)
        sums = self._strips[strip]
        if first:
            sums[:, :first] += own.T @ x[:, :first]
        # Both factors are the same array: numpy asks BLAS for half of this product.
        sums[:, first:] += own.T @ own

    def merge(self, other: Gram) -> None:
        """Add the sums of another one of the same width."""
        for strip, more in enumerate(other._strips):
            self._strips[strip] += more

    def diagonal(self) -> Doubles:
        """Return the sums of squares, `(width,)`."""
        return np.concatenate(
            [sums.diagonal(first) for first, sums in zip(self._edges, self._strips, strict=False)]
        )

    def square(self) -> Doubles:
        """Return the whole matrix, float64 `(width, width)`."""
        out = np.empty((self.width, self.width))
        for (first, last), sums in zip(pairwise(self._edges), self._strips, strict=True):
            out[first:last, :last] = sums
            out[:first, first:last] = sums[:, :first].T
        return out

    def packed(self) -> Iterator[Doubles]:
        """Yield what lies on or below the diagonal, row by row, in pieces."""
        for (first, last), sums in zip(pairwise(self._edges), self._strips, strict=True):
            yield sums[_below(first, last)]

    @classmethod
    def unpacked(cls, width: int, pieces: Iterable[Floats]) -> Gram:
        """Return the sums that `packed` gave out, in pieces of `packed_sizes`; files have rounded them."""
        gram = cls(width)
        for (first, last), sums, piece in zip(pairwise(gram._edges), gram._strips, pieces, strict=True):
            sums[_below(first, last)] = piece
            sums[:, first:] += np.tril(sums[:, first:], -1).T
        return gram

    def packed_sizes(self) -> list[int]:
        """Return how many numbers each piece of `packed` has."""
        return [packed_size(last) - packed_size(first) for first, last in pairwise(self._edges)]


def packed_size(width: int) -> int:
    """Return how many numbers of a square of this width lie on or below the diagonal."""
    return width * (width + 1) // 2


def _below(first: int, last: int) -> npt.NDArray[np.bool_]:
    """Return which numbers of rows `first:last`, up to the last's diagonal, lie on or below the diagonal."""
    return np.tri(last - first, last, first, dtype=np.bool_)  # (last - first, last)
