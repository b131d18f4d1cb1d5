"""Tensors as files store them: what numbers they are, and their way into a format."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from quantcore.errors import UnknownFormat
from quantcore.formats.base import BlockFormat, Bytes, Floats, Format, Packed, registry
from quantcore.formats.compiled import fill_compiled, find_compiled
from quantcore.formats.floats import bfloat_to_float, half_to_float
from quantcore.kernels import Kernels, Streamed
from quantcore.tensors import TensorInfo


def to_float(info: TensorInfo, rows: Any, *, pool: Executor | None = None) -> Floats:
    """Return storage `rows`, as `Tensor.read_rows` gives them, as float32 `(rows, row_length)`.

    float32 rows come back as they are, without a copy. Raises `UnknownFormat` for integers (I8 to I64) and
    for types that nothing here can decode.
    """
    plain = _PLAIN.get(info.type)
    if plain is not None:
        return plain(rows)
    fmt = registry().get(info.type)
    if not isinstance(fmt, BlockFormat):
        raise UnknownFormat(f"{info.name}: type {info.type} cannot be decoded to numbers")
    packed = Packed(info.type, (rows.shape[0], info.row_length), {"blocks": rows})
    values: Floats = fmt.dequantize(packed, pool=pool)
    return values


def quantize_rows(
    info: TensorInfo, rows: Any, fmt: Format, importance: Any = None, *, kernels: Kernels | None = None
) -> Bytes:
    """Return storage `rows`, as `Tensor.read_rows` gives them, as blocks: uint8 `(rows, row_bytes)`.

    Where compiled kernels know both types, a tile of rows at a time goes through the cache and float32 never
    reaches memory. Raises what `to_float` and `Format.quantize` raise.
    """
    if isinstance(kernels, Streamed):
        streamed: Bytes = kernels.convert_rows(fmt, rows, info, importance)
        return streamed
    compiled = find_compiled(kernels, fmt.name, info.type, weighted=importance is not None)
    if compiled is None or not isinstance(fmt, BlockFormat):
        blocks: Bytes = fmt.quantize(to_float(info, rows), importance, kernels=kernels).parts["blocks"]
        return blocks
    row = info.row_length
    fmt.check_shape((rows.shape[0], row), info.name)
    if rows.shape[1] != row:
        raise AssertionError(f"{info.name}: rows of {rows.shape[1]}, not {row}")
    if importance is not None:
        importance = fmt.importance(importance, row, xp=np)
    out = np.empty((rows.shape[0], row // fmt.block * fmt.block_bytes), dtype=np.uint8)
    fill_compiled(fmt, compiled, rows, importance, out, None)
    return out


def _narrow(rows: Any) -> Floats:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
        return np.asarray(rows, dtype=np.float32)


_PLAIN: dict[str, Callable[[Any], Floats]] = {
    "F32": lambda rows: np.asarray(rows, dtype=np.float32),
    "F64": _narrow,
    "F16": lambda rows: half_to_float(np.ascontiguousarray(rows), xp=np),
    "BF16": lambda rows: bfloat_to_float(np.ascontiguousarray(rows), xp=np),
}
