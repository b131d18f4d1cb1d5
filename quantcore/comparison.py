"""Compare two models tensor by tensor: same bytes, or how far apart in numbers, whatever the types.

Both are read in slabs of rows by a few threads, so that memory depends on neither. Each side may be a GGUF
file, a split one, or a Hugging Face directory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import isnan, nan, sqrt
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from quantcore.cores import usable_threads
from quantcore.errors import UnknownFormat
from quantcore.formats import to_float
from quantcore.ggmltypes import INTEGER_TYPES
from quantcore.ggufkv import LAYOUT_KEYS, Value, ValueType, encode
from quantcore.progress import Progress, Report, ignore, seconds_left
from quantcore.slabs import rows_in_slab
from quantcore.sources.base import Source
from quantcore.tensors import Tensor, TensorInfo

SLAB_WEIGHTS = 1 << 18  # of each side: 1 MB as float32, 2 as float64, some ten in all while they are compared
T = TypeVar("T")
_INTEGERS = {"I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


@dataclass(frozen=True)
class TensorDifference:
    """How one tensor of A differs from that of B. Shapes are in numpy order.

    `identical` means same type, shape and bytes. `max_abs` and `rmse` are of the decoded numbers, `relative`
    is `rmse` as a share of the root mean square of A; all None where the numbers cannot be compared: a tensor
    that only one side has, two shapes, a type that cannot be decoded. NaN facing a number makes them NaN.
    """

    name: str
    identical: bool
    type_a: str | None
    type_b: str | None
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    max_abs: float | None = None
    rmse: float | None = None
    relative: float | None = None


@dataclass(frozen=True)
class KeyDifference:
    """A metadata key with two values; None where a side lacks it."""

    key: str
    a: Value | None
    b: Value | None

    @property
    def first_item(self) -> int | None:
        """Return from which item on two lists differ, None where the values are no lists."""
        one, other = _items(self.a), _items(self.b)
        if one is None or other is None:
            return None
        pairs = enumerate(zip(one, other, strict=False))
        return next((at for at, (x, y) in pairs if not _same(x, y)), min(len(one), len(other)))


def _items(value: Value | None) -> list[Value] | None:
    if value is None or value.type is not ValueType.ARRAY or value.item is None:
        return None
    if value.item is ValueType.ARRAY:
        return list(value.value)
    return [Value(value.item, item) for item in value.value]


def _same(a: Value | None, b: Value | None) -> bool:
    # As a file would hold them: a 32-bit float is what is left of a Python float, NaN is the same as NaN.
    return a is not None and b is not None and encode("", a) == encode("", b)


@dataclass(frozen=True)
class Comparison:
    """All tensors of both models, in the order of A, then those that only B has; and keys that differ."""

    tensors: tuple[TensorDifference, ...]
    metadata: tuple[KeyDifference, ...]

    @property
    def tensors_identical(self) -> bool:
        return all(tensor.identical for tensor in self.tensors)

    @property
    def identical(self) -> bool:
        """Whether both are the same model: all tensors' bytes and all keys, the division in files aside."""
        return self.tensors_identical and not self.metadata


@dataclass(frozen=True)
class _Sums:
    """What the rows of a slab add up to."""

    count: int
    largest: float = 0.0
    squares: float = 0.0  # of the differences
    power: float = 0.0  # of A


def compare_models(
    a: Source, b: Source, *, threads: int | None = None, report: Report = ignore
) -> Comparison:
    """Return how two models differ. Raises what reading raises, naming the file."""
    names = dict.fromkeys([tensor.name for tensor in (*a.tensors, *b.tensors)])
    workers = usable_threads(threads)
    tell = _Teller(sum(info.n_elements for info in a.infos), len(names), report)
    found: list[TensorDifference] = []
    with ThreadPoolExecutor(workers) as pool:
        slabs = _Slabs(pool, workers + 1)
        for name in names:
            one, other = a.tensor(name), b.tensor(name)
            found.append(_compare(name, one, other, slabs))
            tell(name, one.info.n_elements if one else 0)
    return Comparison(tuple(found), differing_keys(a.metadata, b.metadata))


def differing_keys(a: Mapping[str, Value], b: Mapping[str, Value]) -> tuple[KeyDifference, ...]:
    """Return the keys whose types or values differ, those that only speak of the division in files aside."""
    keys = [key for key in dict.fromkeys((*a, *b)) if key not in LAYOUT_KEYS]
    return tuple(
        KeyDifference(key, a.get(key), b.get(key)) for key in keys if not _same(a.get(key), b.get(key))
    )


class _Slabs:
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


def _compare(name: str, a: Tensor | None, b: Tensor | None, slabs: _Slabs) -> TensorDifference:
    if a is None or b is None or a.info.shape != b.info.shape:
        return _unlike(name, a.info if a else None, b.info if b else None)
    if a.info.type == b.info.type and all(slabs.each(a.info, partial(_rows_equal, a, b))):
        return _difference(a.info, b.info, [], identical=True)
    try:
        sums = list(slabs.each(a.info, partial(_distance_of_rows, a, b)))
    except UnknownFormat:  # nothing here can decode the type
        return _unlike(a.name, a.info, b.info)
    return _difference(a.info, b.info, sums, identical=False)


def _unlike(name: str, a: TensorInfo | None, b: TensorInfo | None) -> TensorDifference:
    return TensorDifference(
        name=name,
        identical=False,
        type_a=a.type if a else None,
        type_b=b.type if b else None,
        shape_a=a.shape if a else None,
        shape_b=b.shape if b else None,
    )


def _difference(a: TensorInfo, b: TensorInfo, sums: list[_Sums], *, identical: bool) -> TensorDifference:
    count = sum(part.count for part in sums) or 1
    rmse = sqrt(sum(part.squares for part in sums) / count)
    scale = sqrt(sum(part.power for part in sums) / count)
    return TensorDifference(
        name=a.name,
        identical=identical,
        type_a=a.type,
        type_b=b.type,
        shape_a=a.shape,
        shape_b=b.shape,
        max_abs=_largest([part.largest for part in sums]),
        rmse=rmse,
        relative=rmse / scale if scale else (0.0 if rmse == 0 else None),
    )


def _largest(values: list[float]) -> float:
    return nan if any(map(isnan, values)) else max(values, default=0.0)


def _rows_equal(a: Tensor, b: Tensor, start: int, stop: int) -> bool:
    return bool(np.array_equal(_bytes(a.read_rows(start, stop)), _bytes(b.read_rows(start, stop))))


def _distance_of_rows(a: Tensor, b: Tensor, start: int, stop: int) -> _Sums:
    numbers = _numbers(a.info, a.read_rows(start, stop))
    return _distance(numbers, _numbers(b.info, b.read_rows(start, stop)))


def _bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8)


def _numbers(info: TensorInfo, rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return rows as float64 `(rows, row_length)`, which holds the differences of all other types."""
    if info.type in INTEGER_TYPES:
        whole = np.ascontiguousarray(rows).view(_INTEGERS[info.type])
        return whole.astype(np.float64)
    if info.type == "F64":
        return rows.astype(np.float64)
    return to_float(info, rows).astype(np.float64)


def _distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> _Sums:
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(a - b)
        apart[(a == b) | (np.isnan(a) & np.isnan(b))] = 0  # also two infinities, whose difference is NaN
        return _Sums(
            count=apart.size,
            largest=float(apart.max(initial=0.0)),
            squares=float(np.vdot(apart, apart)),
            power=float(np.vdot(a, a)),
        )


class _Teller:
    """Turn compared tensors into progress."""

    def __init__(self, total: int, count: int, report: Report) -> None:
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
                stage="compare",
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
