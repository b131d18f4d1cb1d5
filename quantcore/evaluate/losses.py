"""How much of a tensor each type loses: the weighted error of rounding it, measured on a sample of its rows.

The error of a type is sum(w (q - x)^2) / sum(w x^2) over weights x that it stores as q, with the importance w
of the columns: the share of a matrix product's energy that becomes noise, where columns are independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from quantcore.evaluate.ops import Floats
from quantcore.formats import get_format, to_float
from quantcore.imatrix import n_matrices
from quantcore.kernels import Kernels
from quantcore.tensors import Tensor

SAMPLE = 1 << 18  # weights of a tensor that are looked at
PIECES = 16  # places of a tensor that they are taken from


def rounded(values: Floats, kind: str, importance: Floats | None, kernels: Kernels | None) -> Floats:
    """Return what storing `values` `(..., row_length)` as `kind` leaves of them, float32 of the same shape.

    `importance` is float32 `(n_matrices, row_length)`, each for its share of the rows.
    """
    row = values.shape[-1]
    rows = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, row)  # (rows, row_length)
    share = len(rows) // (1 if importance is None else len(importance))
    pieces = []
    for matrix, start in enumerate(range(0, len(rows), share)):
        own = None if importance is None else importance[matrix]
        pieces.append(_round(rows[start : start + share], kind, own, kernels))
    return np.concatenate(pieces).reshape(values.shape)


def _round(rows: Floats, kind: str, importance: Floats | None, kernels: Kernels | None) -> Floats:
    fmt = get_format(kind)
    kept: Floats = fmt.dequantize(fmt.quantize(rows, importance, kernels=kernels))
    return kept


def errors(
    tensor: Tensor,
    kinds: Sequence[str],
    importance: Floats | None,
    *,
    kernels: Kernels | None = None,
    pool: Executor | None = None,
) -> dict[str, float]:
    """Return the relative squared error of `tensor` in each of `kinds`.

    `importance` is float32 `(n_matrices, row_length)`, or None for columns that count alike.
    """
    samples = list(_samples(tensor, importance))
    total = sum(_energy(rows, weight) for rows, weight in samples)

    def error(kind: str) -> float:
        if kind == tensor.info.type:
            return 0.0  # copied
        lost = sum(_energy(_round(rows, kind, w, kernels) - rows, w) for rows, w in samples)
        return lost / total if total else 0.0

    found = map(error, kinds) if pool is None else pool.map(error, kinds)
    return dict(zip(kinds, found, strict=True))


def _samples(tensor: Tensor, importance: Floats | None) -> Iterator[tuple[Floats, Floats | None]]:
    """Yield rows as float32 with the importance of their columns: of each matrix, evenly spread pieces."""
    info = tensor.info
    matrices = n_matrices(info.shape)
    rows = info.n_rows // matrices
    wanted = max(1, SAMPLE // info.row_length // PIECES)  # rows of a piece
    places = np.linspace(0, info.n_rows - 1, PIECES).astype(np.int64)
    if info.n_rows <= wanted * PIECES:
        places, wanted = np.arange(matrices) * rows, rows
    for place in places:
        matrix = int(place) // rows
        start = min(int(place), max(matrix * rows, (matrix + 1) * rows - wanted))
        stop = min(start + wanted, (matrix + 1) * rows)
        weight = None if importance is None else importance[matrix if len(importance) > 1 else 0]
        yield to_float(info, tensor.read_rows(start, stop)), weight


def _energy(rows: Floats, weight: Floats | None) -> float:
    squares: npt.NDArray[np.float64] = np.einsum("ij,ij->j", rows, rows).astype(np.float64)  # (row_length,)
    return float(squares.sum() if weight is None else squares @ weight.astype(np.float64))
