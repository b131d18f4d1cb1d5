"""How far apart the numbers of two tensors are, in sums over slabs of rows, whatever their types.

What a slab adds up to is float64, and slabs are added in their order: figures do not depend on threads, nor
memory on the tensors. No BLAS is used, whose sums depend on its own threads.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from quantcore.formats import to_float
from quantcore.ggmltypes import INTEGER_TYPES
from quantcore.progress import Progress, Report, seconds_left
from quantcore.slabs import rows_in_slab
from quantcore.tensors import Tensor, TensorInfo

SLAB_WEIGHTS = 1 << 18  # of each side: 1 MB as float32, 2 as float64, some ten in all while they are compared
Doubles = npt.NDArray[np.float64]
T = TypeVar("T")
_INTEGERS = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True)
class Distance:
    """What rows of A and B add up to: `squares` are of the differences, `power` of each side's numbers.

    The weighted sums count each column by its importance, 0 where none is known. NaN facing a number makes
    the figures NaN.
    """

    count: int = 0
    largest: float = 0.0
    squares: float = 0.0
    power_a: float = 0.0
    power_b: float = 0.0
    product: float = 0.0
    weighted_squares: float = 0.0
    weighted_power: float = 0.0

    @classmethod
    def total(cls, parts: Iterable[Distance]) -> Distance:
        """Return the sums of all parts, added in their order."""
        found = list(parts)
        largest = [part.largest for part in found]
        sums = {
            name: sum(getattr(part, name) for part in found)
            for name in cls.__dataclass_fields__
            if name != "largest"
        }
        return cls(largest=nan if any(map(isnan, largest)) else max(largest, default=0.0), **sums)

    @property
    def rmse(self) -> float:
        """Return the root mean square of the differences."""
        return sqrt(self.squares / (self.count or 1))

    @property
    def relative(self) -> float | None:
        """Return ||A - B|| / ||A||; None where A is all zeros and B is not."""
        return _root_of_ratio(self.squares, self.power_a)

    @property
    def weighted(self) -> float | None:
        """Return the same with each column's square counted by its importance; None where none is known."""
        return _root_of_ratio(self.weighted_squares, self.weighted_power) if self.weighted_power else None

    @property
    def cosine(self) -> float | None:
        """Return A.B / (||A|| ||B||); of equal numbers 1, None where one side is all zeros."""
        if self.squares == 0:
            return 1.0
        if not self.power_a or not self.power_b:
            return None
        # Rounding may lead past 1; NaN passes through both.
        return max(min(self.product / (sqrt(self.power_a) * sqrt(self.power_b)), 1.0), -1.0)


def badness(relative: float | None) -> float:
    """Return what the worst have most of: whatever no error can be told of comes before any error."""
    return inf if relative is None or isnan(relative) else relative


def _root_of_ratio(part: float, whole: float) -> float | None:
    if not whole:
        return 0.0 if part == 0 else None
    return sqrt(part / whole)


class Slabs:
    """Goes through the rows of a tensor in slabs, a few of them under way at a time."""

    def __init__(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        self.pool = pool
        self.ahead = ahead

    def each(self, info: TensorInfo, work: Callable[[int, int], T]) -> Iterator[T]:
        """Yield `work(start, stop)` for all rows, in their order; what is not asked for is not done."""
        step = rows_in_slab(info.row_length, SLAB_WEIGHTS)
        waiting: deque[Future[T]] = deque()
        try:
            for start in range(0, info.n_rows, step):
                waiting.append(self.pool.submit(work, start, min(info.n_rows, start + step)))
                if len(waiting) >= self.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def rows_equal(a: Tensor, b: Tensor, start: int, stop: int) -> bool:
    """Say whether rows `start:stop` have the same bytes; for tensors of one type and shape."""
    return bool(np.array_equal(_bytes(a.read_rows(start, stop)), _bytes(b.read_rows(start, stop))))


def distance_of_rows(
    a: Tensor, b: Tensor, start: int, stop: int, *, importance: Doubles | None = None
) -> Distance:
    """Return how far rows `start:stop` of two tensors of one shape are apart.

    `importance` is float64 `(n_matrices, row_length)`: the rows of each stacked matrix have their own. Raises
    `UnknownFormat` naming a tensor that cannot be decoded.
    """
    numbers = _numbers(a.info, a.read_rows(start, stop))
    others = _numbers(b.info, b.read_rows(start, stop))
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(numbers - others)
        # Also two infinities, whose difference is NaN.
        apart[(numbers == others) | (np.isnan(numbers) & np.isnan(others))] = 0
        weighted = (0.0, 0.0)
        if importance is not None:
            rows_of_each = a.info.n_rows // len(importance)
            weighted = _weighted(apart, numbers, importance, start, rows_of_each)
        return Distance(
            apart.size,
            float(apart.max(initial=0.0)),
            _product(apart, apart),
            _product(numbers, numbers),
            _product(others, others),
            _product(numbers, others),
            *weighted,
        )


def _product(x: Doubles, y: Doubles) -> float:
    return float(np.einsum("ij,ij->", x, y))


def _weighted(
    apart: Doubles, numbers: Doubles, importance: Doubles, start: int, rows_of_each: int
) -> tuple[float, float]:
    """Return the weighted sums of the squares of both; the first row is row `start` of its tensor."""
    squares = power = 0.0
    first = 0
    while first < len(apart):
        matrix = (start + first) // rows_of_each
        last = min(len(apart), (matrix + 1) * rows_of_each - start)
        for_each = importance[matrix]  # (row_length,)
        squares += float((np.einsum("ij,ij->j", apart[first:last], apart[first:last]) * for_each).sum())
        power += float((np.einsum("ij,ij->j", numbers[first:last], numbers[first:last]) * for_each).sum())
        first = last
    return squares, power


def _bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


def _numbers(info: TensorInfo, rows: npt.NDArray[Any]) -> Doubles:
    """Return rows as float64 `(rows, row_length)`, which holds the differences of all other types."""
    if info.type in INTEGER_TYPES:
        whole = np.ascontiguousarray(rows).view(_INTEGERS[info.type])
        return whole.astype(np.float64)
    if info.type == "F64":
        return rows.astype(np.float64)
    return to_float(info, rows).astype(np.float64)


class Teller:
    """Turn tensors that are done into progress of a stage."""

    def __init__(self, stage: str, total: int, count: int, report: Report) -> None:
        self.stage = stage
        self.total = total
        self.count = count
        self.report = report
        self.done = 0
        self.index = 0
        self.began = time.monotonic()

    def __call__(self, name: str, weights: int) -> None:
        self.done += weights
        self.index += 1
        seconds = time.monotonic() - self.began
        self.report(
            Progress(
                stage=self.stage,
                done=self.done,
                total=self.total,
                unit="weights",
                seconds=seconds,
                seconds_left=seconds_left(self.done, self.total, seconds),
                item=name,
                index=self.index,
                count=self.count,
            )
        )
