"""Q6_K and Q3_K: super-blocks of 256 with a signed scale for each 16 weights.

    Q6_K  low:u4[256]  high:u2[256]  s:int8[16]  d:f16        x = d * s * (q - 32)
    Q3_K  high:u1[256]  low:u2[256]  s:u6[16]  d:f16          x = d * (s - 32) * (q - 4)

Bit planes (1): the two-bit plane of each half of 128 has 32 bytes; byte `i` holds elements i, i + 32, i + 64
and i + 96, from its lowest bits up. The four-bit plane of a half has 64 bytes: byte `i` holds elements i and
i + 64. The one-bit plane has 32 bytes: byte `i` holds elements i, i + 32, ... of the whole super-block.

1. ggml, `ggml-common.h`: the block structures. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quantcore.formats.base import register
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.floats import half_to_float
from quantcore.formats.superblock import SUPER, SuperBlockFormat, as_bytes, interleave, planes, quarters
from quantcore.methods.columns import column_sum, from_columns, reciprocal, signed_peak, to_columns
from quantcore.methods.kquant import NOTHING, ScaleFit, scale_by_ratio
from quantcore.methods.kquant_descent import scale_by_descent


class SixBit(SuperBlockFormat):
    """Q6_K."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        n = blocks.shape[0]
        x = to_columns(blocks, 16, xp=xp)  # (16, 16 * n)
        w = x * x if weights is None else to_columns(weights, 16, xp=xp)
        fit = scale_by_ratio(x, w, 32, xp=xp)
        scales = fit.scale.reshape(16, n)  # (groups, n)
        peak = signed_peak(scales, xp=xp)
        inverse = xp.float32(-128) / peak
        s = xp.rint(scales * inverse).clip(xp.float32(-128), xp.float32(127))
        d = half_scale(reciprocal(xp.float32(1), inverse, xp=xp), xp=xp)
        codes = round_by_step(x, half_to_float(d, xp=xp) * s, 32, _searched(fit, x, xp), xp=xp)
        out = self._pack(d, s.astype(xp.int8), codes.astype(xp.uint8), xp)
        out[xp.abs(peak) < xp.float32(NOTHING)] = xp.uint8(0)
        return out

    def _pack(self, d: Any, s: Any, codes: Any, xp: Any) -> Any:
        n = d.shape[0]
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        q = quarters(codes, n)
        low, high = q & xp.uint8(15), q >> xp.uint8(4)
        out[:, :128] = as_bytes(low[:, :, :2] | (low[:, :, 2:] << xp.uint8(4)), n)  # (n, 128)
        out[:, 128:192] = as_bytes(interleave([high[:, :, i] for i in range(4)], 2, xp=xp), n)  # (n, 64)
        out[:, 192:208] = s.T.view(xp.uint8)  # (n, 16)
        out[:, 208:] = half_bytes(d, xp=xp)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        n = blocks.shape[0]
        low = to_columns(blocks[:, :128], 16, xp=xp).reshape(16, 2, 2, 2, n)  # (16, half, quarter, pair, n)
        high = to_columns(blocks[:, 128:192], 16, xp=xp).reshape(16, 2, 2, n)  # (16, half, pair, n)
        q = xp.empty((16, 2, 4, 2, n), dtype=xp.uint8)
        q[:, :, :2] = low & xp.uint8(15)
        q[:, :, 2:] = low >> xp.uint8(4)
        for i in range(4):
            q[:, :, i] |= ((high >> xp.uint8(2 * i)) & xp.uint8(3)) << xp.uint8(4)
        s = blocks[:, 192:208].T.view(xp.int8).astype(xp.float32)  # (16, n)
        step = read_half(blocks[:, 208:], xp=xp) * s
        return scaled(q, 32, step, n, xp=xp)


class ThreeBit(SuperBlockFormat):
    """Q3_K."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        n = blocks.shape[0]
        x = to_columns(blocks, 16, xp=xp)  # (16, 16 * n)
        if weights is None:
            d, s, searched = self._search(x, n, xp)
        else:
            d, s, searched = self._search_weighted(x, to_columns(weights, 16, xp=xp), n, xp)
        step = half_to_float(d, xp=xp) * (s - xp.float32(32))
        codes = round_by_step(x, step, 4, searched, xp=xp)
        return self._pack(d, s.astype(xp.uint8), codes.astype(xp.uint8), xp)

    def _search(self, x: Any, n: int, xp: Any) -> tuple[Any, Any, Any]:
        """Return d, the scales' codes and the search's codes; the largest scale gets the code 0."""
        fit = scale_by_descent(x, 4, xp=xp)
        scales = fit.scale.reshape(16, n)  # (groups, n)
        peak = signed_peak(scales, xp=xp)
        inverse = reciprocal(xp.float32(-32), peak, xp=xp)
        s = xp.rint(scales * inverse).clip(xp.float32(-32), xp.float32(31)) + xp.float32(32)
        s *= inverse != xp.float32(0)
        d = half_scale(reciprocal(xp.float32(1), inverse, xp=xp), xp=xp)
        return d, s, lambda columns: fit.codes[:, columns] + xp.float32(4)

    def _search_weighted(self, x: Any, w: Any, n: int, xp: Any) -> tuple[Any, Any, Any]:
        """The same, with the scales of the groups fitted like weights, by the weight of each group."""
        fit = scale_by_ratio(x, w, 4, xp=xp)
        scales = fit.scale.reshape(16, n)  # (groups, n)
        outer = scale_by_ratio(scales, column_sum(w, xp=xp).reshape(16, n), 32, xp=xp)  # (groups, n)
        return half_scale(outer.scale, xp=xp), outer.codes(scales, xp=xp), _searched(fit, x, xp)

    def _pack(self, d: Any, s: Any, codes: Any, xp: Any) -> Any:
        n = d.shape[0]
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        q = quarters(codes, n)
        low, high = q & xp.uint8(3), q >> xp.uint8(2)
        eighths = [high[:, i // 4, i % 4] for i in range(8)]
        out[:, :32] = as_bytes(interleave(eighths, 1, xp=xp), n)  # (n, 32)
        out[:, 32:96] = as_bytes(interleave([low[:, :, i] for i in range(4)], 2, xp=xp), n)  # (n, 64)
        out[:, 96:104] = ((s[:8] & xp.uint8(15)) | (s[8:] << xp.uint8(4))).T  # (n, 8)
        fours = (s >> xp.uint8(4)).reshape(4, 4, n)  # (quarter of the groups, group in it, n)
        out[:, 104:108] = interleave(list(fours), 2, xp=xp).T  # (n, 4)
        out[:, 108:] = half_bytes(d, xp=xp)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        n = blocks.shape[0]
        high = to_columns(blocks[:, :32], 16, xp=xp).reshape(16, 2, n)  # (16, pair, n)
        low = to_columns(blocks[:, 32:96], 16, xp=xp).reshape(16, 2, 2, n)  # (16, half, pair, n)
        q = xp.empty((16, 2, 4, 2, n), dtype=xp.uint8)
        for i, bits in enumerate(planes(low, 4, 2, xp=xp)):
            q[:, :, i] = bits
        for i, bit in enumerate(planes(high, 8, 1, xp=xp)):
            q[:, i // 4, i % 4] |= bit << xp.uint8(2)
        nibbles, pairs = blocks[:, 96:104].T, blocks[:, 104:108].T  # (8, n), (4, n)
        s = xp.concatenate([nibbles & xp.uint8(15), nibbles >> xp.uint8(4)])  # (16, n)
        s |= xp.concatenate(planes(pairs, 4, 2, xp=xp)) << xp.uint8(4)
        step = read_half(blocks[:, 108:], xp=xp) * (s.astype(xp.float32) - xp.float32(32))
        return scaled(q, 4, step, n, xp=xp)


def round_by_step(x: Any, step: Any, half: int, searched: Callable[[Any], Any], *, xp: Any) -> Any:
    """Return codes `round(x / step) + half` within `0 ... 2 * half - 1`, float32 like `x`.

    Where the step came out as zero the codes mean nothing, but they are stored: those of the search, which
    `searched(columns)` returns.
    """
    step = step.reshape(-1)  # (groups * n,)
    codes = xp.divide(x, step)
    xp.rint(codes, out=codes)
    codes.clip(xp.float32(-half), xp.float32(half - 1), out=codes)
    xp.add(codes, xp.float32(half), out=codes)
    lost = xp.flatnonzero(step == xp.float32(0))
    if lost.size:
        codes[:, lost] = searched(lost)
    return codes


def _searched(fit: ScaleFit, x: Any, xp: Any) -> Callable[[Any], Any]:
    return lambda columns: fit.at(columns).codes(x[:, columns], xp=xp)


def scaled(codes: Any, half: int, step: Any, n: int, *, xp: Any) -> Any:
    """Return `step * (codes - half)` as float32 `(n, 256)`; codes in columns, `step` `(groups, n)`."""
    x = codes.reshape(codes.shape[0], -1).astype(xp.float32)  # (16, groups * n)
    xp.subtract(x, xp.float32(half), out=x)
    xp.multiply(x, step.reshape(-1), out=x)  # (groups * n,)
    return from_columns(x, n, xp=xp)


register(SixBit("Q6_K", "Q6_K", "Six bits: very close to the original.", SUPER, 210))
# Its walk is one step after another over single rows: larger tiles make each of them worth its call.
register(
    ThreeBit("Q3_K", "Q3_K", "Three bits with searched scales.", SUPER, 110, spread=2, tile_weights=1 << 20)
)
