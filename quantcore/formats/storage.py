"""Tensors as files store them: how many bytes they take, and what numbers they are."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from math import prod
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quantcore.errors import UnknownFormat, UnsupportedTensor
from quantcore.formats.base import BlockFormat, Floats, Packed, registry
from quantcore.formats.floats import bfloat_to_float, half_to_float
from quantcore.tensors import TensorInfo


def storage_nbytes(type_name: str, shape: tuple[int, ...]) -> int:
    """Return the bytes that a tensor of `shape` (numpy order) takes in a GGUF file as `type_name`.

    Knows every type of the format, also those that cannot be made or read here, such as I32.
    """
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    except KeyError:
        raise UnknownFormat(f"no GGUF tensor type is called {type_name!r}") from None
    row = shape[-1] if shape else 1
    if row % block:
        raise UnsupportedTensor(f"row of {row} is not a multiple of {block}, the block of {type_name}")
    return prod(shape) // block * block_bytes


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
