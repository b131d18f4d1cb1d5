"""Numbers, block and byte sizes of every tensor type that a GGUF file may hold, quantizable here or not.

Our own table and not that of the `gguf` package, which lacks the newest types and gives Q8_1 other bytes than
ggml does.

1. ggml, `ggml.h` (numbers) and `ggml-common.h` (blocks). https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from quantcore.errors import UnknownFormat, UnsupportedTensor

FLOAT_TYPES = frozenset({"F32", "F16", "BF16", "F64"})
INTEGER_TYPES = frozenset({"I8", "I16", "I32", "I64"})


class TensorType(NamedTuple):
    """The number of a type in files, the weights of a block, and the bytes of a block."""

    number: int
    block: int
    nbytes: int


TYPES = {
    "F32": TensorType(0, 1, 4),
    "F16": TensorType(1, 1, 2),
    "Q4_0": TensorType(2, 32, 18),
    "Q4_1": TensorType(3, 32, 20),
    "Q5_0": TensorType(6, 32, 22),
    "Q5_1": TensorType(7, 32, 24),
    "Q8_0": TensorType(8, 32, 34),
    "Q8_1": TensorType(9, 32, 36),
    "Q2_K": TensorType(10, 256, 84),
    "Q3_K": TensorType(11, 256, 110),
    "Q4_K": TensorType(12, 256, 144),
    "Q5_K": TensorType(13, 256, 176),
    "Q6_K": TensorType(14, 256, 210),
    "Q8_K": TensorType(15, 256, 292),
    "IQ2_XXS": TensorType(16, 256, 66),
    "IQ2_XS": TensorType(17, 256, 74),
    "IQ3_XXS": TensorType(18, 256, 98),
    "IQ1_S": TensorType(19, 256, 50),
    "IQ4_NL": TensorType(20, 32, 18),
    "IQ3_S": TensorType(21, 256, 110),
    "IQ2_S": TensorType(22, 256, 82),
    "IQ4_XS": TensorType(23, 256, 136),
    "I8": TensorType(24, 1, 1),
    "I16": TensorType(25, 1, 2),
    "I32": TensorType(26, 1, 4),
    "I64": TensorType(27, 1, 8),
    "F64": TensorType(28, 1, 8),
    "IQ1_M": TensorType(29, 256, 56),
    "BF16": TensorType(30, 1, 2),
    "TQ1_0": TensorType(34, 256, 54),
    "TQ2_0": TensorType(35, 256, 66),
    "MXFP4": TensorType(39, 32, 17),
    "NVFP4": TensorType(40, 64, 36),
    "Q1_0": TensorType(41, 128, 18),
    "Q2_0": TensorType(42, 64, 18),
}
# Numbers that stood for types which ggml has withdrawn, and what became of them.
WITHDRAWN = {
    **dict.fromkeys((4, 5), "an early 4-bit type"),
    **dict.fromkeys((31, 32, 33), "a repacked form of Q4_0"),
    **dict.fromkeys((36, 37, 38), "a repacked form of IQ4_NL"),
}
_NAMES = {kind.number: name for name, kind in TYPES.items()}


def _find(name: str) -> TensorType:
    try:
        return TYPES[name]
    except KeyError:
        raise UnknownFormat(f"no GGUF tensor type is called {name!r}") from None


def type_name(number: int) -> str:
    """Return the name of a type number; raises `UnknownFormat` for one that this version does not know."""
    if number in WITHDRAWN:
        raise UnknownFormat(
            f"tensor type {number} was {WITHDRAWN[number]} and is gone from GGUF; convert the model anew"
        )
    if number not in _NAMES:
        raise UnknownFormat(f"tensor type {number} is unknown; the file may be newer than this version")
    return _NAMES[number]


def type_number(name: str) -> int:
    """Return the number that stands for a type in a file."""
    return _find(name).number


def block_and_bytes(name: str) -> tuple[int, int]:
    """Return how many weights make a block of this type, and how many bytes the block takes."""
    kind = _find(name)
    return kind.block, kind.nbytes


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
