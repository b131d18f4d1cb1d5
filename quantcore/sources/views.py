"""A model seen otherwise: without some layers, with other metadata, in the parts of its source.

Each view is a `Source` again, so that planning, writing and comparing need not know of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace

from quantcore.errors import InputError
from quantcore.ggufkv import LAYOUT_KEYS, Value, ValueType, boolean, f32, string, u32
from quantcore.sources.base import Source
from quantcore.tensorrules import file_order
from quantcore.tensors import Tensor

MAX_U32 = 2**32 - 1
MAX_TEXT = 127  # bytes of an override's text that llama.cpp keeps
_LAYER = re.compile(r"blk\.(\d{1,9})\.")


def overridden(source: Source, overrides: Mapping[str, Value]) -> Source:
    """Return the source with other metadata; the values stand last in a file made of it."""
    for key, value in overrides.items():
        if key in LAYOUT_KEYS:
            raise InputError(f"{key} says how the file is laid out and cannot be overridden")
        if key == "general.architecture" and value.type is not ValueType.STRING:
            raise InputError(f"{key} names a family of models and has to be of type str")
    metadata = {**source.metadata, **overrides}
    return replace(source, metadata=metadata, overrides={**source.overrides, **overrides})


def override_value(kind: str, text: str) -> Value:
    """Return the value of KEY=KIND:TEXT, of the type that llama-quantize gives it.

    Raises `InputError` for a text that is none of its kind.
    """
    if kind == "int":
        if not re.fullmatch(r"[+-]?\d{1,20}", text, re.ASCII) or not 0 <= int(text) <= MAX_U32:
            raise InputError(f"{text!r} is not a whole number from 0 to {MAX_U32}")
        return u32(int(text))
    if kind == "float":
        return f32(_float(text))
    if kind == "bool":
        if text not in {"true", "false"}:
            raise InputError(f"{text!r} is neither true nor false")
        return boolean(text == "true")
    if kind == "str":
        if len(text.encode("utf-8", "surrogateescape")) > MAX_TEXT:
            raise InputError(f"a text of an override has at most {MAX_TEXT} bytes")
        return string(text)
    raise InputError(f"the type {kind!r} is none of int, float, bool, str")


def _float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{text!r} is not a number") from None
    if not math.isfinite(value) or abs(value) > 3.4028235e38:
        raise InputError(f"{text!r} is not a finite number of 32 bits")
    return value


def pruned(source: Source, layers: Collection[int]) -> Source:
    """Return the source without these layers; those behind a gap take the numbers that became free.

    Raises `InputError` for a layer that the model does not have, and when none would be left.
    """
    if not layers:
        return source
    there = _layers(source)
    for layer in sorted(layers):
        if layer not in there:
            raise InputError(f"{source.path}: has no layer {layer}; its layers are {_ranges(there)}")
    kept = [layer for layer in there if layer not in layers]
    if not kept:
        raise InputError(f"{source.path}: no layer would be left")
    numbers = _numbers(there, set(layers))
    tensors: list[Tensor] = []
    former: dict[str, str] = {}
    counts: list[int] = []
    for part in _by_part(source):
        left = [(tensor, _renumbered(tensor.name, numbers)) for tensor in part]
        counts.append(sum(name is not None for _, name in left))
        for tensor, name in left:
            if name is not None:
                tensors.append(replace(tensor, info=replace(tensor.info, name=name)))
                if name != tensor.name:
                    former[name] = source.former_names.get(tensor.name, tensor.name)
    left_layers = max(number for number in numbers.values() if number is not None) + 1
    return replace(
        source,
        tensors=tuple(tensors),
        parts=_without_last_gaps(counts) if source.parts else (),
        layers_left=left_layers,
        former_names=former,
    )


def _layers(source: Source) -> list[int]:
    """Return the numbers of the layers that have tensors, in the order of llama.cpp's walk over them."""
    names = sorted((tensor.name for tensor in source.tensors), key=file_order)
    found = (_LAYER.search(name) for name in names)
    return list(dict.fromkeys(int(match[1]) for match in found if match))


def _numbers(there: list[int], cut: Collection[int]) -> dict[int, int | None]:
    """Return the new number of each layer, None for those that are cut.

    Layers before the first cut keep theirs, whatever gaps the model has; those behind it follow on.
    """
    first = min(cut)
    following = 0
    numbers: dict[int, int | None] = {}
    for layer in there:
        if layer in cut:
            numbers[layer] = None
            continue
        numbers[layer] = layer if layer < first else following
        following = (layer if layer < first else following) + 1
    return numbers


def _renumbered(name: str, numbers: Mapping[int, int | None]) -> str | None:
    match = _LAYER.search(name)
    if not match:
        return name
    number = numbers[int(match[1])]
    return None if number is None else f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"


def _by_part(source: Source) -> list[tuple[Tensor, ...]]:
    parts, begin = [], 0
    for count in source.parts or (len(source.tensors),):
        parts.append(source.tensors[begin : begin + count])
        begin += count
    return parts


def _without_last_gaps(counts: list[int]) -> tuple[int, ...]:
    while counts and not counts[-1]:
        counts.pop()
    return tuple(counts)


def _ranges(numbers: list[int]) -> str:
    first, last = min(numbers, default=0), max(numbers, default=0)
    return f"{first} to {last}" if numbers else "none"


def parse_layers(text: str) -> frozenset[int]:
    """Return the layers of a list such as `2,5-7`; raises `InputError` where it is none."""
    layers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:\s*-\s*(\d{1,6}))?\s*", part, re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise InputError(f"{part.strip()!r} is neither a layer's number nor a range of them such as 5-7")
        layers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(layers)


def in_its_parts(source: Source) -> Source:
    """Return the source with the wish that a file made of it comes in the same parts, in the same order."""
    parts = source.parts or (len(source.tensors),)
    return replace(source, parts=parts, keeps_parts=True)
