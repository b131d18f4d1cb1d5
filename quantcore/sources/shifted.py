"""Weights of norms that Hugging Face keeps without the 1 that is added to them, seen with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.tensors import RowReader, Tensor, TensorInfo


def plus_one(info: TensorInfo, read_rows: RowReader) -> Tensor:
    """Return a tensor of F32, F16 or BF16 plus 1, in F32.

    F16 is added to in F16 and stays it, as llama.cpp's converter does: other sums would be other weights.
    """
    if info.type == "F16":
        return Tensor(info, lambda start, stop: read_rows(start, stop) + np.float16(1))
    wide = TensorInfo(info.name, info.shape, "F32", 4 * info.n_elements)
    return Tensor(wide, lambda start, stop: _float32(read_rows(start, stop)) + np.float32(1))


def _float32(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return float32 rows as they are, and BF16, which is its upper half, as float32."""
    if rows.dtype == np.float32:
        return rows
    return (rows.astype(np.uint32) << np.uint32(16)).view(np.float32)
