"""Q4_K, Q5_K and Q2_K: super-blocks of 256 with a scale and a minimum for each 32 or 16 weights.

    Q4_K  d:f16  m:f16  sm:u6[8 + 8]  q:u4[256]                    x = d * s * q - m * sm
    Q5_K  d:f16  m:f16  sm:u6[8 + 8]  high:u1[256]  low:u4[256]    the same
    Q2_K  sm:(u4 + u4)[16]  q:u2[256]  d:f16  m:f16                the same, groups of 16

Four-bit codes: the 64 weights of two groups share 32 bytes, the first group in the low halves. One-bit plane:
byte `i` holds element `i` of all eight groups, group `g` at bit `g`. Two-bit plane as in `gguf_k_scale`.

1. ggml, `ggml-common.h`: the block structures. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.formats.base import register
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.floats import half_to_float
from quantcore.formats.superblock import SUPER, SuperBlockFormat, as_bytes, interleave, planes, quarters
from quantcore.methods.columns import column_sum, from_columns, to_columns
from quantcore.methods.kquant import LineFit, scale_and_minimum
from quantcore.methods.kquant_descent import scale_of_peak, scale_of_scales


@dataclass(frozen=True)
class Lines(SuperBlockFormat):
    """A K-quant with minima: codes 0 to `top`, group scales and minima 0 to `limit`.

    `first` and `steps` are the roundings that a search without importance tries, `absolute` its measure.
    """

    top: int = 15
    limit: int = 63
    first: float = -1.0
    steps: int = 20
    absolute: bool = False

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        n, groups = blocks.shape[0], SUPER // self.group
        x = to_columns(blocks, self.group, xp=xp)  # (group, groups * n)
        if weights is None:
            w = self.own_weights(x, xp=xp)
            fit = scale_and_minimum(
                x, w, self.top, first=self.first, step=0.1, steps=self.steps, absolute=self.absolute, xp=xp
            )
            outer = [scale_of_peak(part.reshape(groups, n), self.limit, xp=xp) for part in _positive(fit)]
        else:
            w = to_columns(weights, self.group, xp=xp)
            fit = scale_and_minimum(x, w, self.top, first=-0.9, step=0.05, steps=36, xp=xp)
            total = column_sum(w, xp=xp).reshape(groups, n)  # (groups, n)
            parts = [part.reshape(groups, n) for part in _positive(fit)]
            outer = [scale_of_scales(part, total, self.limit, xp=xp) for part in parts]
        d, m = (half_scale(part.scale, xp=xp) for part in outer)
        s, sm = (part.codes for part in outer)
        steps, floors = half_to_float(d, xp=xp) * s, half_to_float(m, xp=xp) * sm
        codes = self._round(x, steps.reshape(-1), floors.reshape(-1), fit, xp)  # (groups * n,)
        codes = codes.astype(xp.uint8)
        return self.pack(d, m, s.astype(xp.uint8), sm.astype(xp.uint8), codes, xp=xp)

    def own_weights(self, x: Any, *, xp: Any) -> Any:
        """Return the weights of a search without importance: root mean square of the group + |x|."""
        mean = column_sum(x * x, xp=xp) / xp.float32(self.group)
        return xp.abs(x) + xp.sqrt(mean)

    def _round(self, x: Any, step: Any, floor: Any, fit: LineFit, xp: Any) -> Any:
        """Return codes `round((x + floor) / step)`; the search's where the step came out as zero."""
        codes = xp.add(x, floor)
        xp.divide(codes, step, out=codes)
        xp.rint(codes, out=codes)
        codes.clip(xp.float32(0), xp.float32(self.top), out=codes)
        lost = xp.flatnonzero(step == xp.float32(0))
        if lost.size:
            codes[:, lost] = fit.at(lost).codes(x[:, lost], xp=xp)
        return codes

    def pack(self, d: Any, m: Any, s: Any, sm: Any, codes: Any, *, xp: Any) -> Any:
        """Return uint8 `(n, block_bytes)`."""
        n = d.shape[0]
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        out[:, :2], out[:, 2:4] = half_bytes(d, xp=xp), half_bytes(m, xp=xp)
        out[:, 4:8] = (s[:4] | (s[4:] >> xp.uint8(4) << xp.uint8(6))).T  # (n, 4)
        out[:, 8:12] = (sm[:4] | (sm[4:] >> xp.uint8(4) << xp.uint8(6))).T  # (n, 4)
        out[:, 12:16] = ((s[4:] & xp.uint8(15)) | (sm[4:] << xp.uint8(4))).T  # (n, 4)
        q = codes.reshape(32, 4, 2, n)  # (32, two groups, group of the two, n)
        if self.top == 31:
            high = (q >> xp.uint8(4)).reshape(32, 8, n)  # (32, groups, n)
            out[:, 16:48] = interleave([high[:, i] for i in range(8)], 1, xp=xp).T  # (n, 32)
            q = q & xp.uint8(15)
        out[:, -128:] = as_bytes(q[:, :, 0] | (q[:, :, 1] << xp.uint8(4)), n)  # (n, 128)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        n = blocks.shape[0]
        low = to_columns(blocks[:, -128:], 32, xp=xp).reshape(32, 4, n)  # (32, two groups, n)
        q = xp.empty((32, 4, 2, n), dtype=xp.uint8)
        q[:, :, 0], q[:, :, 1] = low & xp.uint8(15), low >> xp.uint8(4)
        if self.top == 31:
            high = to_columns(blocks[:, 16:48], 32, xp=xp)  # (32, n)
            for i, bit in enumerate(planes(high, 8, 1, xp=xp)):
                q[:, i // 2, i % 2] |= bit << xp.uint8(4)
        a, b, c = (blocks[:, i : i + 4].T for i in (4, 8, 12))  # (4, n) each
        s = xp.concatenate([a & xp.uint8(63), (c & xp.uint8(15)) | (a >> xp.uint8(6) << xp.uint8(4))])
        sm = xp.concatenate([b & xp.uint8(63), (c >> xp.uint8(4)) | (b >> xp.uint8(6) << xp.uint8(4))])
        return lines(q, read_half(blocks[:, :2], xp=xp) * s, read_half(blocks[:, 2:4], xp=xp) * sm, xp=xp)


class TwoBit(Lines):
    """Q2_K: its own layout, and |x| as the weights of a search without importance."""

    def own_weights(self, x: Any, *, xp: Any) -> Any:
        """Return |x|."""
        return xp.abs(x)

    def pack(self, d: Any, m: Any, s: Any, sm: Any, codes: Any, *, xp: Any) -> Any:
        """Return uint8 `(n, 84)`."""
        n = d.shape[0]
        q = quarters(codes, n)
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        out[:, :16] = (s | (sm << xp.uint8(4))).T  # (n, 16)
        out[:, 16:80] = as_bytes(interleave([q[:, :, i] for i in range(4)], 2, xp=xp), n)  # (n, 64)
        out[:, 80:82], out[:, 82:] = half_bytes(d, xp=xp), half_bytes(m, xp=xp)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        n = blocks.shape[0]
        packed = to_columns(blocks[:, 16:80], 16, xp=xp).reshape(16, 2, 2, n)  # (16, half, pair, n)
        q = xp.empty((16, 2, 4, 2, n), dtype=xp.uint8)
        for i, bits in enumerate(planes(packed, 4, 2, xp=xp)):
            q[:, :, i] = bits
        s, sm = planes(blocks[:, :16].T, 2, 4, xp=xp)  # (16, n) each
        return lines(q, read_half(blocks[:, 80:82], xp=xp) * s, read_half(blocks[:, 82:], xp=xp) * sm, xp=xp)


def _positive(fit: LineFit) -> tuple[Any, Any]:
    """Return scale and the amount subtracted, neither of which is negative."""
    return fit.scale, -fit.minimum


def lines(codes: Any, step: Any, floor: Any, *, xp: Any) -> Any:
    """Return `step * codes - floor` as float32 `(n, 256)`; codes in columns, the rest `(groups, n)`."""
    x = codes.reshape(codes.shape[0], -1).astype(xp.float32)  # (group, groups * n)
    xp.multiply(x, step.reshape(-1), out=x)  # (groups * n,)
    xp.subtract(x, floor.reshape(-1), out=x)  # (groups * n,)
    return from_columns(x, step.shape[1], xp=xp)


register(Lines("Q4_K", "Q4_K", "Four bits with searched scales and minima.", SUPER, 144, group=32, spread=2))
register(
    Lines(
        "Q5_K", "Q5_K", "Five bits with searched scales and minima.", SUPER, 176,
        group=32, spread=2, top=31, first=-0.5, steps=15,
    )
)  # fmt: skip
register(
    TwoBit(
        "Q2_K", "Q2_K", "Two bits with searched scales and minima.", SUPER, 84,
        group=16, spread=1, top=3, limit=15, first=-0.5, steps=15, absolute=True,
    )
)  # fmt: skip
