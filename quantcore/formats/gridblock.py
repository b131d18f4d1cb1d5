"""What the IQ2 and IQ3 types share: signs apart, magnitudes from a grid, 4-bit scales of a 16-bit scale.

Magnitudes are odd multiples of a scale, and scales are odd multiples of a common one. Where a byte of signs
has only seven bits, their number is even: the eighth follows from the others, and one element may have to
take the wrong sign, the one where that costs least.

1. ggml, `ggml-common.h`, `ggml-quants.c`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from quantcore.errors import NeedsCalibration, UnsupportedTensor
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.superblock import SUPER, SuperBlockFormat
from quantcore.methods.columns import to_columns
from quantcore.methods.gridfit import GridRule, fit_to_grid, round_to_levels
from quantcore.methods.grids import codebook, flat


@dataclass(frozen=True)
class GridFormat(SuperBlockFormat):
    """An IQ type whose blocks of `group` weights have one scale; `paired` signs have seven bits per eight.

    `stretch` is what the common scale is multiplied with in the end; `quarter` what it is divided by on
    decoding, since the grids of some types are stored as multiples of 4 or 8.
    """

    scratch: int = 260
    rule: GridRule = field(default_factory=lambda: GridRule("", 0, 0.0, 0.0))
    paired: bool = True
    stretch: float = 1.0
    quarter: float = 0.25

    def tables(self, *, xp: Any) -> Any:
        """Return the flat form of the codebook."""
        return xp.asarray(flat(self.rule.book))

    def own_weights(self, blocks: Any, *, xp: Any) -> Any:
        """Return the weights of a search without importance, float32 `(n, 256)`."""
        del blocks, xp
        raise NeedsCalibration(f"{self.name} cannot be made without an importance matrix")

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        n = blocks.shape[0]
        if weights is None:
            weights = self.own_weights(blocks, xp=xp)
        if n and not bool(xp.isfinite(weights.max())):
            raise UnsupportedTensor("values are too large to be squared; keep this tensor in F32 or BF16")
        size = codebook(self.rule.book).size
        x, w = (to_columns(part, self.group, xp=xp) for part in (blocks, weights))  # (group, groups * n)
        signs = self._take_signs(x, w, xp)  # (group / 8, groups * n)
        shape = (self.group // size, size, x.shape[1])
        fit = fit_to_grid(x.reshape(shape), w.reshape(shape), self.rule, xp=xp)
        signs = xp.where(fit.scale < xp.float32(0), ~signs, signs)
        signs &= xp.uint8(127 if self.paired else 255)
        signs = xp.where(fit.live, signs, xp.uint8(0))
        index = xp.where(fit.live, fit.index, 0)
        scale = xp.abs(fit.scale).reshape(SUPER // self.group, n)  # (groups, n)
        peak = scale.max(axis=0)  # (n,)
        d = peak / xp.float32(31)
        half = half_scale(d * xp.float32(self.stretch), xp=xp)
        s = round_to_levels(scale, xp.float32(1) / d, peak, 15, xp=xp).astype(xp.uint8)
        s[:, peak == xp.float32(0)] = xp.uint8(0)
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        out[:, :2] = half_bytes(half, xp=xp)
        index, signs = (part.reshape(part.shape[0], -1, n).transpose(2, 1, 0) for part in (index, signs))
        self.misplace(index, signs, fit.live.reshape(-1, n).T)  # (n, groups)
        self.pack(out[:, 2:], index, signs, s.T, xp=xp)
        return out

    def _take_signs(self, x: Any, w: Any, xp: Any) -> Any:
        """Take the signs off `x`, in place, and return them as bytes `(group / 8, n)`."""
        bits = xp.uint8(1) << xp.arange(8, dtype=xp.uint8).reshape(8, 1)  # (8, 1)
        x = x.reshape(-1, 8, x.shape[1])  # (group / 8, 8, n)
        negative = x < xp.float32(0)
        signs = (negative * bits).sum(axis=1, dtype=xp.uint8)  # (group / 8, n)
        if not self.paired:
            xp.abs(x, out=x)
            return signs
        cost = w.reshape(x.shape) * x * x
        xp.abs(x, out=x)
        odd = (negative.sum(axis=1, dtype=xp.uint8) & xp.uint8(1)) == xp.uint8(1)  # (group / 8, n)
        least = cost.min(axis=1)  # (group / 8, n)
        for i in range(8):
            flips = odd & (cost[:, i] == least)
            xp.copyto(x[:, i], -x[:, i], where=flips)
            signs ^= flips * bits[i]
            odd &= ~flips
        return signs

    def misplace(self, index: Any, signs: Any, live: Any) -> None:
        """Where a type's blocks have flaws that are part of its bytes: put them in, in place."""

    def pack(self, out: Any, index: Any, signs: Any, s: Any, *, xp: Any) -> None:
        """Fill `out`, all bytes after the common scale, from rows of groups.

        `index` is `(n, groups, pieces)`, `signs` uint8 `(n, groups, group / 8)`, `s` uint8 `(n, groups)`.
        """
        raise NotImplementedError

    def unpack(self, data: Any, *, xp: Any) -> tuple[Any, Any, Any]:
        """Return the inverse of `pack`; seven-bit signs come without the eighth."""
        raise NotImplementedError

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        book = codebook(self.rule.book)
        n = blocks.shape[0]
        index, signs, s = self.unpack(blocks[:, 2:], xp=xp)
        if self.paired:
            signs = signs | (parity(signs, xp=xp) << xp.uint8(7))
        step = read_half(blocks[:, :2], xp=xp).reshape(-1, 1) * (s.astype(xp.float32) + xp.float32(0.5))
        step = step * xp.float32(self.quarter)  # (n, groups)
        points = xp.asarray(book.values[book.points])  # (points, size)
        x = xp.take(points, index.reshape(n, -1), axis=0).reshape(n, step.shape[1], -1)  # (n, groups, group)
        xp.multiply(x, step.reshape(n, -1, 1), out=x)  # (n, groups, group)
        bits = signs.reshape(n, -1, 1) >> xp.arange(8, dtype=xp.uint8)  # (n, 32, 8)
        negative = (bits & xp.uint8(1)).reshape(x.shape)  # (n, groups, group)
        xp.multiply(x, xp.float32(1) - (negative + negative).astype(xp.float32), out=x)
        return x.reshape(n, SUPER)


def parity(bits: Any, *, xp: Any) -> Any:
    """Return whether an odd number of bits is set in each byte, as 0 or 1."""
    for shift in (4, 2, 1):
        bits = bits ^ (bits >> xp.uint8(shift))
    return bits & xp.uint8(1)


def words(values: list[Any], widths: list[int], *, xp: Any) -> Any:
    """Return little-endian 32-bit words with `values` side by side, lowest first, as bytes."""
    word, at = values[0].astype(xp.uint32), widths[0]
    for value, width in zip(values[1:], widths[1:], strict=True):
        word = word | (value.astype(xp.uint32) << xp.uint32(at))
        at += width
    return xp.ascontiguousarray(word).view(xp.uint8)


def nibbles(s: Any, *, xp: Any) -> Any:
    """Return codes `(n, k)` below 16 two to a byte, the first in the low half."""
    return s[:, 0::2] | (s[:, 1::2] << xp.uint8(4))  # (n, k / 2)


def from_nibbles(data: Any, *, xp: Any) -> Any:
    """Return the inverse of `nibbles`."""
    out = xp.empty((data.shape[0], 2 * data.shape[1]), dtype=xp.uint8)
    out[:, 0::2], out[:, 1::2] = data & xp.uint8(15), data >> xp.uint8(4)
    return out
