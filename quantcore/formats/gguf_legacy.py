"""Q8_0, Q4_0, Q4_1, Q5_0, Q5_1: blocks of 32 with one 16-bit scale, and in the _1 types a 16-bit minimum.

    Q8_0  d:f16  q:int8[32]                          x = d * q
    Q4_0  d:f16  q:u4[32]                            x = d * (q - 8)
    Q4_1  d:f16  m:f16  q:u4[32]                     x = d * q + m
    Q5_0  d:f16  high:u1[32]  low:u4[32]             x = d * (q - 16)
    Q5_1  d:f16  m:f16  high:u1[32]  low:u4[32]      x = d * q + m

Nibbles: byte `i` holds element `i` in its low half and element `i + 16` in its high half. The fifth bits form
a little-endian 32-bit word, element `i` at bit `i`.

1. ggml, `ggml-common.h`: the block structures. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.formats.base import BlockFormat, register
from quantcore.formats.bits import half_bytes, half_scale, read_half, round_half_away
from quantcore.methods.columns import first_lowest, from_columns, signed_peak, to_columns
from quantcore.methods.kquant import scale_and_minimum, scale_by_ratio

BLOCK = 32


class Bytes(BlockFormat):
    """Eight-bit integers; the scale sends the largest magnitude to 127. Ignores importance."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        x = to_columns(blocks, BLOCK, xp=xp)
        # Adding zero: the peak of an all-zero block may come out as -0.0, whose sign would be stored.
        peak = xp.maximum(x.max(axis=0), -x.min(axis=0)) + xp.float32(0)  # (n,)
        d = peak / xp.float32(127)
        xp.multiply(x, inverse(d, xp=xp), out=x)
        out = xp.empty((blocks.shape[0], self.block_bytes), dtype=xp.uint8)
        out[:, :2] = half_bytes(half_scale(d, xp=xp), xp=xp)
        out[:, 2:] = round_half_away(x, xp=xp).astype(xp.int8).view(xp.uint8).T  # (n, 32)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        d = read_half(blocks[:, :2], xp=xp).reshape(-1, 1)  # (n, 1)
        return blocks[:, 2:].view(xp.int8) * d


@dataclass(frozen=True)
class Nibbles(BlockFormat):
    """The 4- and 5-bit types; `levels` is 16 or 32, `signed` tells the _0 types from the _1 types."""

    levels: int = 16
    signed: bool = True

    @property
    def header(self) -> int:
        """Bytes before the codes: scale, minimum, fifth bits."""
        return self.block_bytes - BLOCK // 2

    def weigh(self, rows: Any, calibration: Any, *, xp: Any) -> Any:
        """Weight = importance * sqrt(mean square of the row + x**2), the mean added up in order."""
        squares = rows * rows
        mean = xp.cumsum(squares, axis=1)[:, -1:] / xp.float32(rows.shape[1])  # (rows, 1)
        xp.add(squares, mean, out=squares)
        xp.sqrt(squares, out=squares)
        return xp.multiply(squares, calibration, out=squares)

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        x = to_columns(blocks, BLOCK, xp=xp)
        if weights is not None:
            w = to_columns(weights, BLOCK, xp=xp)
            d, m, codes = self._search(x, w, xp)
        elif self.signed:
            d, m, codes = self._from_peak(x, xp)
        else:
            d, m, codes = self._from_span(x, xp)
        return self._pack(d, m, codes, xp)

    def _search(self, x: Any, w: Any, xp: Any) -> tuple[Any, Any, Any]:
        if self.signed:
            scale = scale_by_ratio(x, w, self.levels // 2, xp=xp)
            return scale.scale, None, scale.codes(x, xp=xp)
        fit = scale_and_minimum(x, w, self.levels - 1, first=-0.9, step=0.05, steps=36, xp=xp)
        return fit.scale, fit.minimum, fit.codes(x, xp=xp)

    def _from_peak(self, x: Any, xp: Any) -> tuple[Any, Any, Any]:
        """The element of largest magnitude becomes the lowest code, whichever sign it has."""
        d = signed_peak(x, xp=xp) / xp.float32(-self.levels // 2)
        self._divide(x, d, xp)
        xp.add(x, xp.float32(self.levels // 2 + 0.5), out=x)
        return d, None, x.clip(xp.float32(0), xp.float32(self.levels - 1), out=x)

    def _from_span(self, x: Any, xp: Any) -> tuple[Any, Any, Any]:
        """The smallest element becomes code 0 and the largest the highest code."""
        low = first_lowest(x, xp=xp)
        # Adding zero: the span of an all-zero block may come out as -0.0, whose sign would be stored.
        d = (x.max(axis=0) - low) / xp.float32(self.levels - 1) + xp.float32(0)  # (n,)
        xp.subtract(x, low, out=x)
        self._divide(x, d, xp)
        xp.add(x, xp.float32(0.5), out=x)
        return d, low, x.clip(xp.float32(0), xp.float32(self.levels - 1), out=x)

    def _divide(self, x: Any, d: Any, xp: Any) -> None:
        """Divide in place the way ggml does: by the reciprocal."""
        per_step = inverse(d, xp=xp)
        xp.multiply(x, per_step, out=x)
        tiny = xp.flatnonzero(xp.isinf(per_step))
        if tiny.size:  # numbers so small that 1/d overflows: all codes are to become 0
            x[:, tiny] = xp.float32(-self.levels)

    def _pack(self, d: Any, m: Any | None, codes: Any, xp: Any) -> Any:
        q = codes.astype(xp.uint8)
        out = xp.empty((q.shape[1], self.block_bytes), dtype=xp.uint8)
        out[:, :2] = half_bytes(half_scale(d, xp=xp), xp=xp)
        if m is not None:
            out[:, 2:4] = half_bytes(half_scale(m, xp=xp), xp=xp)
        if self.levels == 32:
            out[:, self.header - 4 : self.header] = gather_bits(q >> xp.uint8(4), xp=xp)
            q &= xp.uint8(15)
        out[:, self.header :] = (q[:16] | (q[16:] << xp.uint8(4))).T  # (n, 16)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        n = blocks.shape[0]
        nibbles = to_columns(blocks[:, self.header :], 16, xp=xp)  # (16, n)
        codes = xp.concatenate([nibbles & xp.uint8(15), nibbles >> xp.uint8(4)])  # (32, n)
        if self.levels == 32:
            codes |= scatter_bits(blocks[:, self.header - 4 : self.header], xp=xp) << xp.uint8(4)
        x = codes.astype(xp.float32)
        if self.signed:
            xp.subtract(x, xp.float32(self.levels // 2), out=x)
        xp.multiply(x, read_half(blocks[:, :2], xp=xp), out=x)
        if not self.signed:
            xp.add(x, read_half(blocks[:, 2:4], xp=xp), out=x)
        return from_columns(x, n, xp=xp)  # (n, 32)


def inverse(d: Any, *, xp: Any) -> Any:
    """Return 1/d, and 0 where d is 0."""
    return xp.where(d == xp.float32(0), xp.float32(0), xp.float32(1) / d)


def gather_bits(bits: Any, *, xp: Any) -> Any:
    """Return 0/1 `(32, n)` as little-endian words, uint8 `(n, 4)`."""
    planes = bits.reshape(4, 8, -1)  # (byte, bit, n)
    word = planes[:, 0]
    for i in range(1, 8):
        word = word | (planes[:, i] << xp.uint8(i))
    return word.T  # (n, 4)


def scatter_bits(words: Any, *, xp: Any) -> Any:
    """Return uint8 `(n, 4)` as 0/1 `(32, n)`: the inverse of `gather_bits`."""
    rows = xp.ascontiguousarray(words.T)  # (byte, n)
    planes = xp.empty((4, 8, rows.shape[1]), dtype=xp.uint8)
    for i in range(8):
        planes[:, i] = (rows >> xp.uint8(i)) & xp.uint8(1)  # (byte, n)
    return planes.reshape(32, -1)  # (32, n)


register(Bytes("Q8_0", "Q8_0", "Eight bits: practically lossless and quick to make.", BLOCK, 34))
register(Nibbles("Q4_0", "Q4_0", "Four bits, one scale per 32: simple and fast everywhere.", BLOCK, 18))
register(Nibbles("Q4_1", "Q4_1", "Four bits with a minimum per 32.", BLOCK, 20, signed=False))
register(Nibbles("Q5_0", "Q5_0", "Five bits, one scale per 32.", BLOCK, 22, levels=32))
register(Nibbles("Q5_1", "Q5_1", "Five bits with a minimum per 32.", BLOCK, 24, levels=32, signed=False))
