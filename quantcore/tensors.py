"""What a tensor is before anyone has read it: a name, a shape, a type, and a way to read rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy.typing as npt


@dataclass(frozen=True)
class TensorInfo:
    """Describe one tensor.

    `shape` is in numpy order: outermost axis first, row length last (GGUF stores the reverse).
    `type` is the GGUF name of the storage type ("F16", "BF16", "Q4_K", ...); `nbytes` its size in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int

    @property
    def n_elements(self) -> int:
        return prod(self.shape)

    @property
    def row_length(self) -> int:
        """Length of the contiguous axis: what quantization blocks run along."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return self.n_elements // self.row_length if self.row_length else 0


RowReader = Callable[[int, int], npt.NDArray[Any]]


@dataclass(frozen=True)
class Tensor:
    """A tensor that is read on demand, in slabs of rows, so that memory never depends on its size.

    `read_rows(start, stop)` returns rows `start:stop` of the tensor seen as a matrix of `n_rows` rows, in
    storage form: float64, float32 or float16 `(rows, row_length)` for F64, F32 and F16, uint16 bit patterns
    for BF16, and uint8 `(rows, bytes_per_row)` for all other types. The array belongs to the caller.
    """

    info: TensorInfo
    read_rows: RowReader

    @property
    def name(self) -> str:
        return self.info.name

    def read(self) -> npt.NDArray[Any]:
        """Return all rows at once; for tensors known to be small."""
        return self.read_rows(0, self.info.n_rows)
