"""Tensors as files store them: what numbers they are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np

from quantcore.errors import UnknownFormat
from quantcore.formats.base import BlockFormat, Floats, Packed, registry
from quantcore.formats.floats import bfloat_to_float, half_to_float
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


_PLAIN: dict[str, Callable[[Any], Floats]] = {
    "F32": lambda rows: np.asarray(rows, dtype=np.float32),
    "F64": lambda rows: np.asarray(rows, dtype=np.float32),
    "F16": lambda rows: half_to_float(np.ascontiguousarray(rows), xp=np),
    "BF16": lambda rows: bfloat_to_float(np.ascontiguousarray(rows), xp=np),
}
