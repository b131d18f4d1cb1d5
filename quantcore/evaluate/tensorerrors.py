"""How far each tensor of a quant is from its source's: the error of weights, without running the model.

With an importance matrix also the weighted error: each column's squares counted by the sum of the squared
inputs that a text gave it. That is the share of a matrix's output power that its error makes, were the inputs
uncorrelated. Stacked experts have their own inputs, so that one that no token reached counts nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np

from quantcore.cores import usable_threads
from quantcore.distance import Distance, Doubles, Slabs, Teller, badness, distance_of_rows
from quantcore.errors import InputError
from quantcore.imatrix import ImportanceMatrix
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source
from quantcore.tensors import Tensor


@dataclass(frozen=True)
class TensorError:
    """The error of one tensor. `shape` is in numpy order, `nbytes` the size in the quant.

    `relative` is ||q - w|| / ||w||, `weighted` the same with columns counted by importance, None where the
    matrix has none of the tensor; `max_abs` is the largest absolute error. None where nothing can be said:
    of a source tensor that is all zeros. NaN where NaN faces a number.
    """

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    nbytes: int
    rmse: float
    relative: float | None
    weighted: float | None
    cosine: float | None
    max_abs: float

    @property
    def bpw(self) -> float:
        """Return the bits that a weight takes, scales included."""
        return 8 * self.nbytes / (prod(self.shape) or 1)


@dataclass(frozen=True)
class TensorErrors:
    """The errors of all tensors, in the order of the source, and those of all weights together."""

    tensors: tuple[TensorError, ...]
    rmse: float
    relative: float | None
    cosine: float | None
    max_abs: float

    @property
    def worst_first(self) -> tuple[TensorError, ...]:
        """Return the tensors by relative error, falling."""
        return tuple(sorted(self.tensors, key=lambda error: badness(error.relative), reverse=True))


def tensor_errors(
    source: Source,
    quant: Source,
    *,
    imatrix: ImportanceMatrix | None = None,
    threads: int | None = None,
    report: Report = ignore,
) -> TensorErrors:
    """Return the error of each tensor of a quant against its source's.

    Raises `InputError` naming a tensor that only one of the two has, whose shapes differ, or that the
    importance matrix has in another size, before anything is read; later what reading raises.
    """
    pairs = _pairs(source, quant)
    # Importance goes by the names that tensors had when it was measured; see `Source.former_names`.
    former = {a.name: source.former_names.get(a.name, a.name) for a, _ in pairs}
    covered = {
        a.name for a, _ in pairs if imatrix is not None and imatrix.covers(former[a.name], a.info.shape)
    }
    workers = usable_threads(threads)
    tell = Teller("errors", sum(a.info.n_elements for a, _ in pairs), len(pairs), report)
    found: list[tuple[TensorError, Distance]] = []
    with ThreadPoolExecutor(workers) as pool:
        slabs = Slabs(pool, workers + 1)
        for a, b in pairs:
            weights = None
            if imatrix is not None and a.name in covered:
                weights = _importance(imatrix, former[a.name], a.info.row_length)
            work = partial(distance_of_rows, a, b, importance=weights)
            apart = Distance.total(slabs.each(a.info, work))
            found.append((_error(a, b, apart), apart))
            tell(a.name, a.info.n_elements)
    whole = Distance.total(apart for _, apart in found)
    errors = tuple(error for error, _ in found)
    return TensorErrors(errors, whole.rmse, whole.relative, whole.cosine, whole.largest)


def _pairs(source: Source, quant: Source) -> list[tuple[Tensor, Tensor]]:
    """Match the tensors of both by name; raises `InputError` where they are not the same."""
    pairs = []
    for a in source.tensors:
        b = quant.tensor(a.name)
        if b is None:
            raise InputError(f"{quant.path}: has no tensor {a.name}, which {source.path} has")
        if a.info.shape != b.info.shape:
            raise InputError(
                f"{quant.path}: {a.name} is {_lengths(b)}, in {source.path} {_lengths(a)}; they are not of "
                "one model"
            )
        pairs.append((a, b))
    for b in quant.tensors:
        if source.tensor(b.name) is None:
            raise InputError(f"{quant.path}: has tensor {b.name}, which {source.path} has not")
    return pairs


def _lengths(tensor: Tensor) -> str:
    """Return a shape as people read it of GGUF: row length first."""
    return " x ".join(map(str, reversed(tensor.info.shape)))


def _importance(imatrix: ImportanceMatrix, name: str, row_length: int) -> Doubles:
    """Return the sums of a tensor's squared inputs, float64 `(n_matrices, row_length)`."""
    # The older kind of file holds means times chunks: of such a stack no expert counts more than another.
    sums, _ = imatrix.sums(name, 1)
    return sums.astype(np.float64).reshape(-1, row_length)  # (n_matrices, row_length)


def _error(a: Tensor, b: Tensor, apart: Distance) -> TensorError:
    return TensorError(
        name=a.name,
        shape=a.info.shape,
        source_type=a.info.type,
        type=b.info.type,
        nbytes=b.info.nbytes,
        rmse=apart.rmse,
        relative=apart.relative,
        weighted=apart.weighted,
        cosine=apart.cosine,
        max_abs=apart.largest,
    )
