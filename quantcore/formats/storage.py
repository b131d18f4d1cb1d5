"""Tensors as files store them: what numbers they are, and their way into a format."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from quantcore.errors import UnknownFormat
from quantcore.formats.base import CACHED, BlockFormat, Bytes, Floats, Format, Packed, registry
from quantcore.formats.floats import bfloat_to_float, half_to_float
from quantcore.kernels import Addressed, Kernels, Streamed
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
    """Return storage `rows` as the bytes of a format, uint8 `(rows, row_bytes)`.

    Where compiled kernels know both types, a tile of rows at a time goes through the cache and float32 never
    reaches memory. Raises what `to_float` and `Format.quantize` raise.
    """
    if isinstance(kernels, Streamed):
        streamed: Bytes = kernels.convert_rows(fmt, rows, info, importance)
        return streamed
    kernel = kernels.find(fmt.name, weighted=importance is not None) if kernels else None
    read = kernels.reader(info.type) if kernels else None
    if read is None or not isinstance(kernel, Addressed) or not isinstance(fmt, BlockFormat):
        blocks: Bytes = fmt.quantize(to_float(info, rows), importance, kernels=kernels).parts["blocks"]
        return blocks
    n, row = rows.shape[0], info.row_length
    fmt.check_shape(info.shape, info.name)
    if importance is not None:
        importance = np.ascontiguousarray(importance, dtype=np.float32)
    tables = fmt.tables(xp=np)
    weights, table = (None if part is None else part.ctypes.data for part in (importance, tables))
    out = np.empty((n, row // fmt.block * fmt.block_bytes), dtype=np.uint8)
    step = max(1, CACHED // max(1, row))
    ready = info.type == "F32"  # only to be checked
    room = np.empty((0 if ready else min(step, n), row), dtype=np.float32)
    source, middle, target = (array.ctypes.data for array in (rows, room, out))
    for start in range(0, n, step):
        count = min(step, n - start)
        stored = source + start * rows.strides[0]
        read.at(stored, count, row, None, None, None if ready else middle)
        kernel.at(stored if ready else middle, count, row, weights, table, target + start * out.strides[0])
    return out


_PLAIN: dict[str, Callable[[Any], Floats]] = {
    "F32": lambda rows: np.asarray(rows, dtype=np.float32),
    "F64": lambda rows: np.asarray(rows, dtype=np.float32),
    "F16": lambda rows: half_to_float(np.ascontiguousarray(rows), xp=np),
    "BF16": lambda rows: bfloat_to_float(np.ascontiguousarray(rows), xp=np),
}
