"""MXFP4 and NVFP4: four-bit floats with a shared eight-bit scale.

    MXFP4  e:u8  q:f4[32]          x = 2**(e - 127) * q
    NVFP4  d:f8[4]  q:f4[64]       x = d * q, one d for each 16 weights

f4 has a sign, two bits of exponent and one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4, 6. f8 has no sign, four bits
of exponent (bias 7) and three of mantissa. Nibbles: byte `i` of a scale's codes holds element `i` in its low
half and in its high half the element half a group further on.

The scale follows from the largest magnitude alone; importance is not looked at. All is calculated with the
levels doubled, which are whole, and scales halved.

1. ggml, `ggml-quants.c`. https://github.com/ggml-org/ggml
2. OCP Microscaling Formats (MX) Specification 1.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcore.errors import UnsupportedTensor
from quantcore.formats.base import BlockFormat, register
from quantcore.formats.superblock import as_bytes
from quantcore.methods.columns import from_columns, to_columns

LEVELS = (0, 1, 2, 3, 4, 6, 8, 12)
# What lies above these becomes the next level; what lies exactly on one, the level below.
MIDDLES = (0.5, 1.5, 2.5, 3.5, 5, 7, 10)
# From 2**20 scales on, the rounding of a difference may hide which level is nearest.
FAR = 2.0**20
NO_SCALE = 255


@dataclass(frozen=True)
class SmallFloats(BlockFormat):
    """Four-bit floats in groups of `group` that share a scale of one byte."""

    group: int = 32

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        n, scales = blocks.shape[0], self.block // self.group
        x = to_columns(blocks, self.group, xp=xp)  # (group, scales * n)
        negative = (x < xp.float32(0)).view(xp.uint8) << xp.uint8(3)
        magnitude = xp.abs(x, out=x)
        peak = magnitude.max(axis=0)  # (scales * n,)
        code = self.encode_scale(peak, xp=xp)
        step = xp.take(self.scale_values(xp=xp), code)
        q = nearest_level(magnitude, peak, step, xp=xp)
        # A negative zero is never made.
        q |= negative * (q != xp.uint8(0))
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        out[:, :scales] = code.astype(xp.uint8).reshape(scales, n).T  # (n, scales)
        half = self.group // 2
        nibbles = q[:half] | (q[half:] << xp.uint8(4))
        out[:, scales:] = as_bytes(nibbles.reshape(half, scales, n), n)  # (n, block / 2)
        return out

    def encode_scale(self, peak: Any, *, xp: Any) -> Any:
        """Return the scale byte for groups of largest magnitude `peak` `(k,)`, as int32."""
        raise NotImplementedError

    def scale_values(self, *, xp: Any) -> Any:
        """Return half the value of each scale byte, float32 `(256,)`."""
        raise NotImplementedError

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        n, scales, half = blocks.shape[0], self.block // self.group, self.group // 2
        nibbles = to_columns(blocks[:, scales:], half, xp=xp)  # (half, scales * n)
        q = xp.concatenate([nibbles & xp.uint8(15), nibbles >> xp.uint8(4)])  # (group, scales * n)
        levels = xp.asarray((*LEVELS, *(-level for level in LEVELS)), dtype=xp.float32)
        x = xp.take(levels, q)
        step = xp.take(self.scale_values(xp=xp), xp.ascontiguousarray(blocks[:, :scales].T).reshape(-1))
        return from_columns(xp.multiply(x, step, out=x), n, xp=xp)


class SharedExponent(SmallFloats):
    """MXFP4."""

    def encode_scale(self, peak: Any, *, xp: Any) -> Any:
        """Return the biased exponent of the largest magnitude, less two: the exponent of 6 is 2.

        Groups of nothing but numbers below 2**-126 wrap around to large exponents, and their codes are 0. The
        byte 255, that stands for no number, would come from peaks of 2**-126 to 2**-125.
        """
        tiny = peak < xp.float32(2.0**-126)
        bits = xp.where(tiny, peak * xp.float32(2.0**24), peak).view(xp.int32)
        exponent = (bits >> xp.int32(23)) - xp.int32(127) - tiny * xp.int32(24)
        # ggml takes the logarithm in float32: just below a power of two it is rounded up to a whole number.
        ends = self.tables(xp=xp)
        exponent += peak.view(xp.int32) >= xp.take(ends, (exponent + xp.int32(152)).clip(xp.int32(0)))
        code = xp.where(peak == xp.float32(0), xp.int32(0), (exponent + xp.int32(125)) & xp.int32(255))
        if bool((code == xp.int32(NO_SCALE)).any()):
            raise UnsupportedTensor(
                "a block of weights of about 1e-38 has no scale of 8 bits; keep this tensor in another type"
            )
        return code

    def tables(self, *, xp: Any) -> Any:
        """Return from which number on a logarithm is rounded up to `j - 151`, as bits, int32 `(281,)`.

        Bits of positive numbers have the order of the numbers.
        """
        return xp.asarray(ROUNDED_UP)

    def scale_values(self, *, xp: Any) -> Any:
        """Return 2**(e - 128), float32 `(256,)`."""
        return xp.asarray(np.ldexp(np.float32(1), np.arange(256) - 128))  # (256,)


class SharedFloat(SmallFloats):
    """NVFP4."""

    def encode_scale(self, peak: Any, *, xp: Any) -> Any:
        """Return the 8-bit float for a sixth of the peak, halves rounded up; from 248 on always 448."""
        scale = peak / xp.float32(6)
        eighths = (scale.view(xp.int32) >> xp.int32(19)) + xp.int32(1)
        code = (eighths >> xp.int32(1)) - xp.int32(120 << 3)
        code = xp.where(code >= xp.int32(0x78), xp.int32(0x7E), code)
        # Below 2**-6 there are no more exponents, only steps of 2**-9.
        small = scale < xp.float32(2.0**-6)
        steps = (scale * xp.float32(512) + xp.float32(0.5)).clip(xp.float32(0), xp.float32(7))
        return xp.where(small, steps.astype(xp.int32), code)

    def scale_values(self, *, xp: Any) -> Any:
        """Return half of each 8-bit float, float32 `(256,)`; 127, not a number, counts as 0 here.

        The highest bit is not looked at but by the check for 127.
        """
        code = np.arange(256)
        exponent, mantissa = code >> 3 & 15, code & 7
        value = np.where(
            exponent == 0, np.ldexp(mantissa, -10), np.ldexp(1 + mantissa / 8, exponent - 8)
        )  # (256,)
        return xp.asarray(np.where(code == 127, 0, value).astype(np.float32))


def nearest_level(magnitude: Any, peak: Any, step: Any, *, xp: Any) -> Any:
    """Return the index of the level nearest to `magnitude` `(group, k)`, uint8, for each column's `step`.

    Of two equally near levels the lower one. Differences are those of float32: far beyond the highest level
    several are equal, and of these too the lowest counts.
    """
    q = xp.zeros(magnitude.shape, dtype=xp.uint8)
    for middle in MIDDLES:
        q += (magnitude > step * xp.float32(middle)).view(xp.uint8)
    q[:, xp.flatnonzero(step == xp.float32(0))] = 0
    far = xp.flatnonzero(peak > step * xp.float32(FAR))
    if far.size:
        q[:, far] = _by_difference(magnitude[:, far], step[far], xp)
    return q


def _by_difference(magnitude: Any, step: Any, xp: Any) -> Any:
    q = xp.zeros(magnitude.shape, dtype=xp.uint8)
    best = magnitude
    for index, level in enumerate(LEVELS):
        difference = xp.abs(step * xp.float32(level) - magnitude)
        wins = difference < best
        xp.copyto(q, xp.uint8(index), where=wins)
        best = xp.where(wins, difference, best)
    return q


def _rounded_up() -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """Return the bits of the numbers from which on log2 in float32 is `j - 151`, int32 `(281,)`."""
    ends = []
    for whole in range(-151, 130):
        # Half way to the float32 before it; ties go to the whole number, which is even.
        before = float(np.nextafter(np.float32(whole), np.float32(-np.inf)))
        end = math.ldexp(2.0 ** ((before + whole) / 2 - whole), whole)
        near = np.float32(end if whole <= 128 else np.inf)
        ends.append(near if float(near) >= end else np.nextafter(near, np.float32(np.inf)))
    return np.array(ends, dtype=np.float32).view(np.int32)


ROUNDED_UP = _rounded_up()

register(SharedExponent("MXFP4", "MXFP4", "Four-bit floats with a shared power of two per 32.", 32, 17))
register(SharedFloat("NVFP4", "NVFP4", "Four-bit floats with a shared 8-bit float per 16.", 64, 36, group=16))
