"""The codebooks of the IQ types: groups of 4 or 8 levels that must be one of some hundred grid points.

A search rounds the elements of a group to levels one by one. The result, a lattice point, is seldom on
the grid; then all grid points near by are tried. Which are near is fixed per lattice point: those within the
smallest `reach` distinct squared distances, ordered by (distance, index). That order decides among equals,
and so is part of the bytes. Only levels that occur make up the lattice: three for IQ1 and IQ2, eight for IQ3.

Tables are computed once per process, in a fraction of a second.

The points are those of the decoder; they lie in the folder `codebooks`.

1. ggml, `ggml-quants.c`: `iq2xs_init_impl`, `iq3xs_init_impl`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from threading import RLock
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_FOLDER = Path(__file__).parent / "codebooks"
# Elements of a point, what each level stands for, and how many distinct distances are near.
_TWO_BITS = (8, 25, 43)
_BOOKS = {
    "IQ1_S": (8, (-1, 0, 1), 3),
    "IQ2_XXS": (8, _TWO_BITS, 2),
    "IQ2_XS": (8, _TWO_BITS, 2),
    "IQ2_S": (8, _TWO_BITS, 1),
    "IQ3_XXS": (4, (4, 12, 20, 28, 36, 44, 52, 62), 2),
    "IQ3_S": (4, (1, 3, 5, 7, 9, 11, 13, 15), 3),
}
_SAME = {"IQ1_M": "IQ1_S"}
_TILE = 64
_FARTHEST = np.int16(2**15 - 1)
_PAIRS = 1 << 18
LANES = 16


T = TypeVar("T")
_lock = RLock()


def once(make: Callable[[str], T]) -> Callable[[str], T]:
    """Keep what a function makes of a name; threads that want it at the same time wait for the first."""
    kept = cache(make)

    @wraps(make)
    def get(name: str) -> T:
        with _lock:
            return kept(name)

    return get


@dataclass(frozen=True)
class Codebook:
    """Grid points as levels, uint8 `(n, size)`, and the value of each level, float32 `(levels,)`.

    A lattice point is packed as sum(level[i] * levels**i): `places` are the powers, int32 `(size,)`.
    """

    points: Bytes
    values: Floats
    reach: int

    @property
    def size(self) -> int:
        """Elements of a point, 4 or 8."""
        return int(self.points.shape[1])

    @property
    def levels(self) -> int:
        return len(self.values)

    @property
    def places(self) -> Ints:
        return np.array([self.levels**i for i in range(self.size)], np.int32)

    @property
    def packed(self) -> Ints:
        """The grid points as packed lattice points, int32 `(n,)`."""
        return self.points.astype(np.int32) @ self.places

    @property
    def lattice(self) -> Bytes:
        """All lattice points in the order of their packed form, uint8 `(levels**size, size)`."""
        packed = np.arange(self.levels**self.size, dtype=np.int32)
        return (packed[:, None] // self.places % self.levels).astype(np.uint8)


@dataclass(frozen=True)
class Neighbours:
    """What a search may choose for each lattice point.

    `index`, int32 `(levels**size,)`: the grid index of a packed lattice point, -1 off the grid. The choices
    of point `p` are the grid indices `choices[start[p] : start[p + 1]]`, nearest first; none on the grid.
    """

    index: Ints
    start: Ints
    choices: Ints

    @property
    def counts(self) -> Ints:
        """How many choices each lattice point has."""
        return np.diff(self.start)


@once
def codebook(name: str) -> Codebook:
    """Return the codebook of an IQ type."""
    if name in _SAME:
        return codebook(_SAME[name])
    size, values, reach = _BOOKS[name]
    points = np.frombuffer((_FOLDER / f"{name.lower()}.bin").read_bytes(), np.uint8).reshape(-1, size)
    return Codebook(points, np.array(values, np.float32), reach)


@once
def neighbours(name: str) -> Neighbours:
    """Return the choices for each lattice point of an IQ type."""
    if name in _SAME:
        return neighbours(_SAME[name])
    book = codebook(name)
    index = np.full(book.levels**book.size, -1, np.int32)
    index[book.packed] = np.arange(len(book.points), dtype=np.int32)
    lattice = book.lattice
    counts = np.zeros(len(lattice), np.int32)
    choices = []
    for at in range(0, len(lattice), _TILE):
        tile = slice(at, at + _TILE)
        row, column = _near(lattice[tile], book)
        off_grid = index[tile][row] < 0
        counts[tile] = np.bincount(row[off_grid], minlength=len(lattice[tile]))
        choices.append(column[off_grid].astype(np.int32))
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return Neighbours(index, start, np.concatenate(choices))


@once
def sieved(name: str) -> Neighbours:
    """Return the choices without those that cannot win over a nearer one.

    One whose elements all lie between those of the lattice point and those of another choice is closer than
    that to whatever rounds to the lattice point, whatever the weights; equal at most on the very border of
    two levels.
    """
    if name in _SAME:
        return sieved(_SAME[name])
    book, near = codebook(name), neighbours(name)
    if book.reach == 1:
        return near  # all are equally far
    steps = _steps(book, near)
    kept = np.ones(len(near.choices), bool)
    counts = near.counts
    for width in np.unique(counts[counts > 1]):
        starts = near.start[np.flatnonzero(counts == width)]
        for at in range(0, len(starts), max(1, _PAIRS // width**2)):
            places = (
                starts[at : at + max(1, _PAIRS // width**2)] + np.arange(width)[:, None]
            )  # (width, points)
            there = steps[places]
            beyond = (there[:, None] & ~there) == 0  # (width, width, points)
            kept[places] = beyond.sum(axis=0) == 1  # only by itself
    start = np.concatenate([[0], np.cumsum(kept)])[near.start].astype(np.int32)
    return Neighbours(near.index, start, near.choices[kept])


def _steps(book: Codebook, near: Neighbours) -> npt.NDArray[np.uint64]:
    """Return for each choice, as bits, which steps up or down lead to it from its lattice point."""
    owner = np.repeat(np.arange(len(near.counts)), near.counts)
    away = book.points[near.choices].astype(np.int8) - book.lattice[owner].astype(np.int8)  # (choices, size)
    taken = np.zeros(len(owner), np.uint64)
    for i in range(book.size):
        for sign in (1, -1):
            for step in range(1, book.levels):
                taken = (taken << np.uint64(1)) | (sign * away[:, i] >= step)
    return taken


def _near(lattice: Bytes, book: Codebook) -> tuple[Any, Any]:
    """Return pairs of lattice row and near grid index, ordered by (row, distance, index)."""
    # Distances are below 400. A product of matrices would have the BLAS library keep tens of megabytes.
    distance = np.zeros((len(lattice), len(book.points)), np.int16)
    for a, b in zip(lattice.T.astype(np.int16), book.points.T.astype(np.int16), strict=True):
        away = a[:, None] - b  # (rows, n)
        away *= away
        distance += away
    limit = distance.min(axis=1, keepdims=True)  # (rows, 1)
    for _ in range(book.reach - 1):
        limit = np.where(distance > limit, distance, _FARTHEST).min(axis=1, keepdims=True)  # (rows, 1)
    row, column = np.nonzero(distance <= limit)
    order = np.lexsort((distance[row, column], row))
    return row[order], column[order]


def word_bits(levels: int) -> int:
    """Return how many bits of a word one of so many levels takes."""
    return (levels - 1).bit_length()


@once
def flat(name: str) -> Ints:
    """Return codebook and choices as one int32 array for compiled kernels.

    Its first ints say where the rest starts, in ints:

        0  map       one int for each packed lattice point: a grid index, or -1 - (32 * first + chunks)
        1  indices   16 ints for each chunk: grid indices of up to 16 choices
        2  levels    `size` times 16 bytes for each chunk: byte j of row i is element i of choice j
        3  points    `size` ints for each grid point: its levels
        4  starts    one int for each packed lattice point, and one more: where its list of words is
        5  words     one int for each choice: its levels, `word_bits` for each, the first one lowest

    Choices are in order; the last chunk of a list is filled up with its first choice, which changes nothing.
    Sixteen words can be read from any choice on.
    """
    if name in _SAME:
        return flat(_SAME[name])
    book, near = codebook(name), neighbours(name)
    chunks = -(-near.counts // LANES)
    first = np.cumsum(chunks, dtype=np.int32) - chunks
    slots = LANES * int(chunks.sum())
    lengths = [len(near.index), slots, slots * book.size // 4, book.points.size, len(near.start)]
    lengths += [len(near.choices), LANES]
    ends = np.cumsum([len(lengths), *lengths], dtype=np.int32)
    out = np.zeros(ends[-1], np.int32)
    out[: len(lengths)] = ends[:-1]
    # Each is put in its place as soon as it is made: this is where a process that quantizes has its peak.
    mapped, indices, rows, points, starts, words = np.split(out, ends)[1:-2]
    mapped[:] = np.where(near.index >= 0, near.index, -1 - (32 * first + chunks))
    indices[:] = _in_chunks(near, chunks, first)
    levels = rows.view(np.uint8).reshape(-1, book.size, LANES).transpose(0, 2, 1)  # (chunks, 16, size)
    np.take(book.points, indices.reshape(-1, LANES), axis=0, out=levels)
    points[:] = book.points.reshape(-1)
    starts[:] = near.start
    shifts = np.arange(book.size, dtype=np.int32) * word_bits(book.levels)
    np.take((book.points.astype(np.int32) << shifts).sum(axis=1, dtype=np.int32), near.choices, out=words)
    return out


def _in_chunks(near: Neighbours, chunks: Ints, first: Ints) -> Ints:
    """Return the choices of all lattice points, each list filled up to whole chunks with its first one."""
    # In narrow numbers and few arrays: this is what a process that quantizes holds at its peak.
    owner = np.repeat(np.arange(len(chunks), dtype=np.int32), chunks * LANES)
    rank = np.arange(len(owner), dtype=np.int32)
    rank -= first[owner] * np.int32(LANES)
    rank[rank >= near.counts[owner]] = 0
    rank += near.start[owner]
    return near.choices[rank]
