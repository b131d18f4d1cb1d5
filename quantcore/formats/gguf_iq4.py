"""IQ4_NL and IQ4_XS: four bits on an uneven scale that is finer around zero.

    IQ4_NL  d:f16  q:u4[32]                             x = d * level[q]
    IQ4_XS  d:f16  high:u2[8]  low:u4[8]  q:u4[256]     x = d * (s - 32) * level[q], s per 32 weights

Nibbles: byte `i` of 32 weights holds element `i` in its low half and element `i + 16` in its high half. In
IQ4_XS the upper two bits of the scale of group `g` stand at bit `2 * g` of a little-endian word, the lower
four in byte `g // 2`, even groups in the low half.

1. ggml, `ggml-quants.c`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from typing import Any

from quantcore.formats.base import register
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.superblock import SUPER, SuperBlockFormat, as_bytes, interleave
from quantcore.methods.columns import from_columns, signed_peak, to_columns
from quantcore.methods.uneven import LEVELS, nearest_codes, scale_by_levels

GROUP = 32


class Uneven(SuperBlockFormat):
    """IQ4_NL: one scale for each 32 weights."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        n = blocks.shape[0]
        x = to_columns(blocks, GROUP, xp=xp)  # (32, groups * n)
        w = x * x if weights is None else to_columns(weights, GROUP, xp=xp)
        scale = scale_by_levels(x, w, xp=xp)
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        used = self.pack_scales(scale, out, xp=xp)
        q = nearest_codes(x, used, xp=xp)
        nibbles = q[:16] | (q[16:] << xp.uint8(4))
        codes = out[:, -self.block // 2 :]
        codes[...] = as_bytes(nibbles.reshape(16, -1, n), n)  # (n, block / 2)
        return out

    def pack_scales(self, scale: Any, out: Any, *, xp: Any) -> Any:
        """Store the scales of all groups in `out`, uint8 `(n, block_bytes)`, and return what to divide by."""
        out[:, :2] = half_bytes(half_scale(scale, xp=xp), xp=xp)
        return scale

    def read_scales(self, blocks: Any, *, xp: Any) -> Any:
        """Return the scales of all groups, float32 `(groups * n,)`."""
        return read_half(blocks[:, :2], xp=xp)

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        nibbles = to_columns(blocks[:, -self.block // 2 :], 16, xp=xp)  # (16, groups * n)
        q = xp.concatenate([nibbles & xp.uint8(15), nibbles >> xp.uint8(4)])  # (32, groups * n)
        x = xp.take(xp.asarray(LEVELS, dtype=xp.float32), q)
        xp.multiply(x, self.read_scales(blocks, xp=xp), out=x)
        return from_columns(x, blocks.shape[0], xp=xp)


class UnevenScaled(Uneven):
    """IQ4_XS: scales of 32 weights as multiples of a common one, -32 to 31 times."""

    def pack_scales(self, scale: Any, out: Any, *, xp: Any) -> Any:
        """Store scale and multiples; codes are rounded with the scale as it was before it became 16 bits."""
        scales = scale.reshape(8, -1)  # (8, n)
        d = -signed_peak(scales, xp=xp) / xp.float32(32)  # (n,)
        out[:, :2] = half_bytes(half_scale(d, xp=xp), xp=xp)
        times = scales * xp.where(d != xp.float32(0), xp.float32(1) / d, xp.float32(0))
        # Where 1 / d is beyond float32 the block decodes to zeros; ggml's way of rounding gives these then.
        lost = xp.where(xp.isinf(times), xp.float32(-32), xp.float32(0))
        rounded = xp.rint(times).clip(xp.float32(-32), xp.float32(31))
        times = xp.where(xp.isfinite(times), rounded, lost)
        s = (times + xp.float32(32)).astype(xp.uint8)
        high = s >> xp.uint8(4)
        out[:, 2:4] = interleave([high.reshape(2, 4, -1)[:, k] for k in range(4)], 2, xp=xp).T  # (n, 2)
        low = (s & xp.uint8(15)).reshape(4, 2, -1)  # (4, 2, n)
        out[:, 4:8] = (low[:, 0] | (low[:, 1] << xp.uint8(4))).T  # (n, 4)
        return (d * times).reshape(-1)  # (8 * n,)

    def read_scales(self, blocks: Any, *, xp: Any) -> Any:
        """Return the scales of all groups, float32 `(8 * n,)`."""
        n = blocks.shape[0]
        s = xp.empty((4, 2, n), dtype=xp.uint8)
        low = blocks[:, 4:8].T  # (4, n)
        s[:, 0], s[:, 1] = low & xp.uint8(15), low >> xp.uint8(4)
        s = s.reshape(8, n)
        for g in range(8):
            upper = (blocks[:, 2 + g // 4] >> xp.uint8(g % 4 * 2)) & xp.uint8(3)
            s[g] |= upper << xp.uint8(4)
        times = s.astype(xp.float32) - xp.float32(32)
        return (read_half(blocks[:, :2], xp=xp) * times).reshape(-1)  # (8 * n,)


register(
    Uneven("IQ4_NL", "IQ4_NL", "Four bits on an uneven scale, blocks of 32.", GROUP, 18, spread=2, scratch=64)
)
register(
    UnevenScaled(
        "IQ4_XS", "IQ4_XS", "Four bits on an uneven scale, blocks of 256.", SUPER, 136, spread=2, scratch=64
    )
)
