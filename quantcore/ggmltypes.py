"""Block and byte sizes of every tensor type that a GGUF file may hold, quantizable here or not."""

from __future__ import annotations

from math import prod

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from quantcore.errors import UnknownFormat, UnsupportedTensor

FLOAT_TYPES = frozenset({"F32", "F16", "BF16", "F64"})
INTEGER_TYPES = frozenset({"I8", "I16", "I32", "I64"})


def _find(name: str) -> GGMLQuantizationType:
    try:
        return GGMLQuantizationType[name]
    except KeyError:
        raise UnknownFormat(f"no GGUF tensor type is called {name!r}") from None


def type_name(number: int) -> str:
    """Return the name of a type number; raises `UnknownFormat` for one that this version does not know."""
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        raise UnknownFormat(
            f"tensor type {number} is unknown; the file may be newer than this version"
        ) from None


def type_number(name: str) -> int:
    """Return the number that stands for a type in a file."""
    return int(_find(name))


def block_and_bytes(name: str) -> tuple[int, int]:
    """Return how many weights make a block of this type, and how many bytes the block takes."""
    block, size = GGML_QUANT_SIZES[_find(name)]
    return block, size


def is_quantized(name: str) -> bool:
    """Say whether the type is a quantized one, as opposed to plain floats and integers."""
    return name not in FLOAT_TYPES and name not in INTEGER_TYPES


def row_bytes(name: str, row_length: int) -> int:
    """Return the bytes of one row; raises `UnsupportedTensor` if it is not whole blocks."""
    block, size = block_and_bytes(name)
    if row_length % block:
        raise UnsupportedTensor(f"row of {row_length} is not a multiple of {block}, the block of {name}")
    return row_length // block * size


def storage_nbytes(name: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of `shape` (numpy order) stored as this type."""
    row = shape[-1] if shape else 1
    return prod(shape[:-1]) * row_bytes(name, row)
