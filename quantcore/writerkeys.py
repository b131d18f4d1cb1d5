"""Take the metadata that gguf's own writer would write, so that keys and types are its choice, not ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf

from quantcore.ggufkv import Value, ValueType


def captured(fill: Callable[[gguf.GGUFWriter], object]) -> dict[str, Value]:
    """Return the key/value pairs that `fill` adds to a writer without a file."""
    writer = gguf.GGUFWriter(path=None, arch="none")
    fill(writer)
    pairs = writer.kv_data[0]
    return {key: _typed(pair) for key, pair in pairs.items() if key != "general.architecture"}


def _typed(pair: Any) -> Value:
    kind = ValueType(int(pair.type))
    if kind is not ValueType.ARRAY:
        return Value(kind, pair.value)
    item = pair.sub_type if pair.sub_type is not None else gguf.GGUFValueType.get_type(pair.value[0])
    return Value(kind, list(pair.value), ValueType(int(item)))
