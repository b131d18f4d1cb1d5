"""Typed GGUF metadata values and their bytes: the part of the format that reading and writing share.

Layout: GGUF specification version 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import reprlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np

from quantcore.errors import InputError

_LENGTH = struct.Struct("<Q")
MAGIC = b"GGUF"
VERSION = 3
DEFAULT_ALIGNMENT = 32
# Which part of a model a file is; together with the alignment, what says how files are laid out.
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
LAYOUT_KEYS = frozenset({"general.alignment", *SPLIT_KEYS})
QUANTIZATION_VERSION = 2  # of the layout of quantized blocks, in general.quantization_version


class ValueType(IntEnum):
    """Value types by their number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALARS: dict[ValueType, str] = {
    ValueType.UINT8: "<u1",
    ValueType.INT8: "<i1",
    ValueType.UINT16: "<u2",
    ValueType.INT16: "<i2",
    ValueType.UINT32: "<u4",
    ValueType.INT32: "<i4",
    ValueType.FLOAT32: "<f4",
    ValueType.BOOL: "<u1",
    ValueType.UINT64: "<u8",
    ValueType.INT64: "<i8",
    ValueType.FLOAT64: "<f8",
}


# The same for one value alone: unlike an array, `struct` takes neither lists nor numbers in quotes.
_CODES = {kind: f"<{np.dtype(code).char}" for kind, code in SCALARS.items()} | {
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
}


@dataclass(frozen=True)
class Value:
    """A metadata value with the type it has in the file.

    `value` is a Python int, float, bool or str, or a list of them when `type` is ARRAY (`item` is then the
    element type).
    """

    type: ValueType
    value: Any
    item: ValueType | None = None

    @cached_property
    def payload(self) -> bytes:
        """The bytes of the value, without key and type; kept, since a plan asks for them more than once.

        Vocabularies have a hundred thousand strings.
        """
        return _encode_payload(self)


def u32(value: int) -> Value:
    return Value(ValueType.UINT32, value)


def f32(value: float) -> Value:
    return Value(ValueType.FLOAT32, value)


def boolean(value: bool) -> Value:
    return Value(ValueType.BOOL, value)


def string(value: str) -> Value:
    return Value(ValueType.STRING, value)


def array(item: ValueType, values: Iterable[Any]) -> Value:
    return Value(ValueType.ARRAY, list(values), item)


def encode_string(text: str | bytes) -> bytes:
    """Return a length-prefixed string; bytes pass through, since old files hold text that is not UTF-8."""
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _encode_payload(value: Value) -> bytes:
    if value.type is ValueType.STRING:
        return encode_string(value.value)
    if value.type is ValueType.ARRAY:
        if value.item is None:
            raise ValueError("an array value needs its item type")
        head = struct.pack("<IQ", value.item, len(value.value))
        if value.item is ValueType.STRING:
            raw = [text.encode("utf-8", "surrogateescape") for text in value.value]
            return head + b"".join(
                chain.from_iterable(zip(map(_LENGTH.pack, map(len, raw)), raw, strict=True))
            )
        if value.item is ValueType.ARRAY:
            return head + b"".join(_encode_payload(inner) for inner in value.value)
        items = np.asarray(value.value, dtype=SCALARS[value.item])
        if items.ndim != 1:
            raise ValueError("an array holds single values")
        return head + items.tobytes()
    return struct.pack(_CODES[value.type], value.value)


def encode(key: str, value: Value) -> bytes:
    """Return the bytes of one key/value pair; raises `InputError` when the value is none of its type."""
    try:
        return encode_string(key) + struct.pack("<I", value.type) + value.payload
    except (struct.error, TypeError, ValueError, ArithmeticError, AttributeError) as exc:
        kind = value.type.name.lower()
        raise InputError(f"{key} cannot be {reprlib.repr(value.value)}, {kind} is wanted: {exc}") from exc
