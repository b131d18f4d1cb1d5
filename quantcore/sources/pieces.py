"""Stored tensors taken apart and turned round: a part of one, seen as a tensor of its own."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantcore.errors import UnreadableFile
from quantcore.sources.safetensors import StoredTensor
from quantcore.sources.stacked import spans


class Stored(Protocol):
    """What is known of a tensor in a checkpoint, wherever its rows come from.

    `read_rows` returns rows as `Tensor.read_rows` does.
    """

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> Path: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    def read_rows(self, start: int, stop: int) -> npt.NDArray[Any]: ...


@dataclass(frozen=True)
class _View:
    """A stored tensor seen otherwise: under its name, in its type."""

    stored: Stored

    @property
    def name(self) -> str:
        return self.stored.name

    @property
    def path(self) -> Path:
        return self.stored.path

    @property
    def dtype(self) -> str:
        return self.stored.dtype


@dataclass(frozen=True)
class Turned(_View):
    """Matrices stored as (inputs, outputs), seen as (outputs, inputs)."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        *outer, inputs, outputs = self.stored.shape
        return (*outer, outputs, inputs)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def read_rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start:stop`: of each matrix only the columns that they are."""
        inputs, outputs = self.stored.shape[-2:]
        columns = [
            self.stored.read_columns(number * inputs, (number + 1) * inputs, low, high)
            for number, low, high in spans(start, stop, outputs)
        ]
        return np.concatenate([np.ascontiguousarray(block.T) for block in columns])  # (rows, inputs)


@dataclass(frozen=True)
class Outputs(_View):
    """Every `step`-th output of matrices or biases from `first` on, under the name of all."""

    first: int
    step: int

    @property
    def shape(self) -> tuple[int, ...]:
        shape = list(self.stored.shape)
        place = self._axis
        shape[place] = len(range(self.first, shape[place], self.step))
        return tuple(shape)

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes * prod(self.shape) // max(1, prod(self.stored.shape))

    @property
    def _axis(self) -> int:
        """Outputs are the rows of a matrix of each expert, and the columns of their biases."""
        return -2 if len(self.stored.shape) > 2 else -1

    def read_rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start:stop`; those between, which others will ask for, are read and left."""
        if self._axis == -1:
            return np.ascontiguousarray(self.stored.read_rows(start, stop)[:, self.first :: self.step])
        begin, end = self.first + start * self.step, self.first + (stop - 1) * self.step + 1
        return np.ascontiguousarray(self.stored.read_rows(begin, max(begin, end))[:: self.step])


def outputs(tensor: Stored, first: int, step: int, *, inputs_first: bool) -> Stored:
    """Return every `step`-th output of a stored tensor from `first` on.

    With `inputs_first` matrices of plain numbers stand as (inputs, outputs). Raises `UnreadableFile` for what
    is neither matrices nor their biases.
    """
    if inputs_first and isinstance(tensor, StoredTensor) and len(tensor.shape) > 1:
        tensor = Turned(tensor)
    if step == 1:
        return tensor
    if len(tensor.shape) < 2:
        raise UnreadableFile(f"{tensor.path}: {tensor.name} is {list(tensor.shape)}, not matrices of experts")
    return Outputs(tensor, first, step)
