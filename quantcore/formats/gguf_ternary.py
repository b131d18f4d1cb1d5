"""TQ1_0, TQ2_0 and Q2_0: for models trained with three levels, the scale is the largest magnitude.

    TQ1_0  a:t5[32]  b:t5[16]  c:t4[4]  d:f16      x = d * (t - 1), blocks of 256
    TQ2_0  q:u2[256]  d:f16                        x = d * (q - 1), blocks of 256
    Q2_0   d:f16  q:u2[64]                         x = d * (q - 1), blocks of 64

t5: five digits of base 3 in a byte, the first one highest, as a fraction of 243 in 256ths, rounded up, so
that multiplying by 3 brings out one digit after the other; t4 has four digits and a zero. Byte `i` of `a`
holds the elements `i + 32 * k`, of `b` `160 + i + 16 * k`, of `c` `240 + i + 4 * k`, digit `k` each. In TQ2_0
each 32 bytes hold 128 elements, byte `i` the elements `i + 32 * k` at bit `2 * k`; in Q2_0 byte `i` holds
four in a row.

None of them looks at importance: with the scale given, the nearest level is the best one.

1. ggml, `ggml-quants.c`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.formats.base import BlockFormat, register
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.superblock import SUPER, interleave, planes

# Where the groups of TQ1_0 begin, how many bytes they are, and how many digits are in each byte.
DIGITS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))


@dataclass(frozen=True)
class ThreeLevels(BlockFormat):
    """Codes 0, 1, 2 for -d, 0, d; `lost` is the code of everything where 1 / d is beyond float32."""

    lost: int = 1

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        d, codes = self._round(blocks, xp)
        out = xp.empty((blocks.shape[0], self.block_bytes), dtype=xp.uint8)
        self.pack(half_bytes(half_scale(d, xp=xp), xp=xp), codes, out, xp=xp)
        return out

    def _round(self, x: Any, xp: Any) -> tuple[Any, Any]:
        """Return d `(n,)` and codes, uint8 `(n, block)`; halves go away from zero."""
        # Adding zero: the peak of an all-zero block may come out as -0.0, whose sign would be stored.
        d = xp.maximum(x.max(axis=1), -x.min(axis=1)) + xp.float32(0)  # (n,)
        inverse = xp.where(d == xp.float32(0), xp.float32(0), xp.float32(1) / d)
        y = x * inverse.reshape(-1, 1)  # (n, block)
        codes = (y >= xp.float32(0.5)).view(xp.uint8)
        xp.subtract(codes, (y <= xp.float32(-0.5)).view(xp.uint8), out=codes)
        xp.add(codes, xp.uint8(1), out=codes)
        codes[xp.flatnonzero(xp.isinf(inverse))] = self.lost
        return d, codes

    def pack(self, d: Any, codes: Any, out: Any, *, xp: Any) -> None:
        """Fill `out`, uint8 `(n, block_bytes)`, with scales as bytes `(n, 2)` and codes `(n, block)`."""
        raise NotImplementedError


class Digits(ThreeLevels):
    """TQ1_0."""

    def pack(self, d: Any, codes: Any, out: Any, *, xp: Any) -> None:
        """Fill `out`, uint8 `(n, 54)`."""
        at = 0
        for start, width, count in DIGITS:
            group = codes[:, start : start + width * count].reshape(-1, count, width)  # (n, digit, byte)
            number = group[:, 0].astype(xp.uint16)  # (n, byte)
            for k in range(1, 5):
                number *= xp.uint16(3)
                if k < count:
                    number += group[:, k]
            out[:, at : at + width] = (number * xp.uint16(256) + xp.uint16(242)) // xp.uint16(243)
            at += width
        out[:, 52:] = d

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        codes = xp.empty((blocks.shape[0], SUPER), dtype=xp.uint8)
        at = 0
        for start, width, count in DIGITS:
            left = blocks[:, at : at + width].copy()
            for k in range(count):
                # The multiple of 3 above 256 is the digit, the rest the fraction that is left.
                tripled = left.astype(xp.uint16) * xp.uint16(3)
                codes[:, start + k * width : start + (k + 1) * width] = tripled >> xp.uint16(8)
                left = tripled.astype(xp.uint8)
            at += width
        return signed(codes, blocks[:, 52:], xp=xp)


class Pairs(ThreeLevels):
    """TQ2_0."""

    def pack(self, d: Any, codes: Any, out: Any, *, xp: Any) -> None:
        """Fill `out`, uint8 `(n, 66)`."""
        q = codes.reshape(-1, 2, 4, 32)  # (n, half, quarter, 32)
        out[:, :64] = interleave([q[:, :, k] for k in range(4)], 2, xp=xp).reshape(-1, 64)  # (n, 64)
        out[:, 64:] = d

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        q = xp.empty((blocks.shape[0], 2, 4, 32), dtype=xp.uint8)
        for k, bits in enumerate(planes(blocks[:, :64].reshape(-1, 2, 32), 4, 2, xp=xp)):  # (n, half, 32)
            q[:, :, k] = bits
        return signed(q.reshape(-1, SUPER), blocks[:, 64:], xp=xp)  # (n, 256)


class PairsInARow(ThreeLevels):
    """Q2_0; its code 3, for 2 * d, is read but never made."""

    def pack(self, d: Any, codes: Any, out: Any, *, xp: Any) -> None:
        """Fill `out`, uint8 `(n, 18)`."""
        # Four codes at the lowest bits of a little-endian word fold into its lowest byte.
        four = codes.view(xp.uint32)  # (n, 16)
        four |= four >> xp.uint32(6)
        four |= four >> xp.uint32(12)
        out[:, 2:] = four.astype(xp.uint8)
        out[:, :2] = d

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        q = xp.empty((blocks.shape[0], 16, 4), dtype=xp.uint8)
        for k, bits in enumerate(planes(blocks[:, 2:], 4, 2, xp=xp)):
            q[:, :, k] = bits
        return signed(q.reshape(-1, 64), blocks[:, :2], xp=xp)  # (n, 64)


def signed(codes: Any, d: Any, *, xp: Any) -> Any:
    """Return `d * (codes - 1)` as float32 `(n, block)`; d as bytes `(n, 2)`."""
    x = codes.astype(xp.float32)
    xp.subtract(x, xp.float32(1), out=x)
    return xp.multiply(x, read_half(d, xp=xp).reshape(-1, 1), out=x)  # (n, block)


register(Digits("TQ1_0", "TQ1_0", "Ternary, 1.7 bits: for models trained with three levels.", SUPER, 54))
register(Pairs("TQ2_0", "TQ2_0", "Ternary, 2.1 bits: for models trained with three levels.", SUPER, 66))
register(
    PairsInARow(
        "Q2_0", "Q2_0", "Ternary, 2.25 bits, one scale per 64: for models trained so.", 64, 18, lost=0
    )
)
