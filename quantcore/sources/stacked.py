"""Matrices of one shape, stored one by one, seen as one tensor with an axis more: the experts of a layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import UnreadableFile
from quantcore.sources.safetensors import StoredTensor


@dataclass(frozen=True)
class Stacked:
    """A tensor `(len(parts), *shape of each)`; `name` is what the parts have in common."""

    name: str
    parts: tuple[StoredTensor, ...]

    @property
    def path(self) -> Path:
        return self.parts[0].path

    @property
    def dtype(self) -> str:
        return self.parts[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.parts), *self.parts[0].shape)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def read_rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start:stop` as `StoredTensor.read_rows` does; they may lie in several parts."""
        each = prod(self.parts[0].shape[:-1])
        pieces = [self.parts[number].read_rows(low, high) for number, low, high in spans(start, stop, each)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def spans(start: int, stop: int, each: int) -> Iterator[tuple[int, int, int]]:
    """Yield for rows `start:stop` of stacked matrices of `each` rows the number of a matrix and its own rows.

    Of no rows, no rows of one matrix.
    """
    for number in range(start // each, max(start // each + 1, -(-stop // each))):
        first = number * each
        low, high = max(start, first) - first, min(stop, first + each) - first
        yield number, low, max(low, high)


def stack(name: str, parts: dict[int, StoredTensor], count: int) -> Stacked:
    """Return matrices 0 to `count - 1` as one; raises `UnreadableFile` where one is missing or unlike."""
    first = parts[min(parts)]
    for number in range(count):
        part = parts.get(number)
        if part is None:
            raise UnreadableFile(f"{first.path}: {name} lacks number {number} of {count}")
        if (part.shape, part.dtype) != (first.shape, first.dtype):
            raise UnreadableFile(
                f"{part.path}: {part.name} is {part.dtype} {list(part.shape)}, others are {first.dtype} "
                f"{list(first.shape)}"
            )
    if len(parts) > count:
        raise UnreadableFile(f"{first.path}: {name} has number {max(parts)}, config.json means {count}")
    return Stacked(name, tuple(parts[number] for number in range(count)))
