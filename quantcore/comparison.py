"""Compare two models tensor by tensor: same bytes, or how far apart in numbers, whatever the types.

Both are read in slabs of rows by a few threads, so that memory depends on neither. Each side may be a GGUF
file, a split one, or a Hugging Face directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from quantcore.cores import usable_threads
from quantcore.distance import Distance, Slabs, Teller, distance_of_rows, rows_equal
from quantcore.errors import UnknownFormat
from quantcore.ggufkv import LAYOUT_KEYS, Value, ValueType, encode
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source
from quantcore.tensors import Tensor, TensorInfo


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


def compare_models(
    a: Source, b: Source, *, threads: int | None = None, report: Report = ignore
) -> Comparison:
    """Return how two models differ. Raises what reading raises, naming the file."""
    names = dict.fromkeys([tensor.name for tensor in (*a.tensors, *b.tensors)])
    workers = usable_threads(threads)
    tell = Teller("compare", sum(info.n_elements for info in a.infos), len(names), report)
    found: list[TensorDifference] = []
    with ThreadPoolExecutor(workers) as pool:
        slabs = Slabs(pool, workers + 1)
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


def _compare(name: str, a: Tensor | None, b: Tensor | None, slabs: Slabs) -> TensorDifference:
    if a is None or b is None or a.info.shape != b.info.shape:
        return _unlike(name, a.info if a else None, b.info if b else None)
    if a.info.type == b.info.type and all(slabs.each(a.info, partial(rows_equal, a, b))):
        return _difference(a.info, b.info, Distance(), identical=True)
    try:
        apart = Distance.total(slabs.each(a.info, partial(distance_of_rows, a, b)))
    except UnknownFormat:  # nothing here can decode the type
        return _unlike(a.name, a.info, b.info)
    return _difference(a.info, b.info, apart, identical=False)


def _unlike(name: str, a: TensorInfo | None, b: TensorInfo | None) -> TensorDifference:
    return TensorDifference(
        name=name,
        identical=False,
        type_a=a.type if a else None,
        type_b=b.type if b else None,
        shape_a=a.shape if a else None,
        shape_b=b.shape if b else None,
    )


def _difference(a: TensorInfo, b: TensorInfo, apart: Distance, *, identical: bool) -> TensorDifference:
    return TensorDifference(
        name=a.name,
        identical=identical,
        type_a=a.type,
        type_b=b.type,
        shape_a=a.shape,
        shape_b=b.shape,
        max_abs=apart.largest,
        rmse=apart.rmse,
        relative=apart.relative,
    )
