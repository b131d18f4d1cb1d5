"""What an engine makes of the inputs of matrices before it multiplies.

Figures of a quant are those of its weights: inputs stay float32. llama.cpp on a processor rounds them too, to
8 bits in blocks where weights are quantized and to 16 bits where they are halves, and keeps keys and values
of attention in 16 bits. The divergence that it reports is therefore a few per cent larger; rounding as it
does is for comparing with it.

1. llama.cpp, `ggml-cpu.c` (`vec_dot_type`) and `ggml-quants.c` (`quantize_row_q8_0`, `_q8_1`, `_q8_K`;
   release 0.5.0-dev).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from quantcore.evaluate.ops import Floats
from quantcore.formats.floats import bfloat_to_float, float_to_bfloat
from quantcore.ggmltypes import block_and_bytes, is_quantized

Activations = Literal["float32", "llama.cpp"]
ACTIVATIONS: tuple[Activations, ...] = ("float32", "llama.cpp")

SUPER_BLOCK, BLOCK = 256, 32


class Inputs:
    """Leave inputs of matrices, and keys and values, as they are."""

    def of(self, _name: str, x: Floats) -> Floats:
        """Return the input `x` `(rows, inputs)` of the matrix of that name."""
        return x

    def kept(self, x: Floats) -> Floats:
        """Return keys or values."""
        return x


EXACT = Inputs()


@dataclass(frozen=True)
class Rounded(Inputs):
    """Round inputs as llama.cpp does for matrices of the types `kinds`, by the name of the matrix."""

    kinds: Mapping[str, str]

    def of(self, name: str, x: Floats) -> Floats:
        return rounded(x, self.kinds[name])

    def kept(self, x: Floats) -> Floats:
        return halves(x)


def rounded(x: Floats, kind: str) -> Floats:
    """Return `x` `(..., inputs)` as llama.cpp rounds it for a matrix of type `kind`; not always a copy."""
    if not is_quantized(kind):
        return halves(x) if kind == "F16" else _bfloats(x) if kind == "BF16" else x
    block = block_and_bytes(kind)[0]
    if block == SUPER_BLOCK:
        return _by_largest(x)
    # Blocks of 64 and 128 take two and four of these.
    return _by_magnitude(x)


def halves(x: Floats) -> Floats:
    """Return `x` in 16 bits and back, as keys and values are kept."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def _bfloats(x: Floats) -> Floats:
    found: Floats = bfloat_to_float(float_to_bfloat(x, xp=np), xp=np)
    return found


def _by_largest(x: Floats) -> Floats:
    """Round to Q8_K: steps of -1/127 of the number of largest magnitude in each 256, in float32."""
    blocks = x.reshape(-1, SUPER_BLOCK)  # (n, 256)
    places = np.abs(blocks).argmax(axis=-1, keepdims=True)  # (n, 1)
    largest = np.take_along_axis(blocks, places, axis=-1)  # (n, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.where(largest != 0, np.float32(-127) / largest, np.float32(0))  # (n, 1)
        step = np.where(inverse != 0, np.float32(1) / inverse, np.float32(0))  # (n, 1)
    codes = np.minimum(np.rint(inverse * blocks), np.float32(127))  # (n, 256)
    return (codes * step).reshape(x.shape)


def _by_magnitude(x: Floats) -> Floats:
    """Round to Q8_0: steps of 1/127 of the largest magnitude in each 32, kept in 16 bits."""
    blocks = x.reshape(-1, BLOCK)  # (n, 32)
    step = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)  # (n, 1)
    with np.errstate(divide="ignore"):
        inverse = np.where(step != 0, np.float32(1) / step, np.float32(0))  # (n, 1)
    codes = np.rint(blocks * inverse)  # (n, 32)
    return (codes * halves(step)).reshape(x.shape)
