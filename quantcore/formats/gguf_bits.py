"""Q1_0: one bit per weight, its sign, for models trained with two levels.

    Q1_0  d:f16  s:u1[128]      x = d where the bit is set, -d elsewhere

The scale is the mean magnitude, which is the best one for signs. Importance is not looked at. Byte `i` holds
the elements `8 * i` to `8 * i + 7`, the first at bit 0.

1. ggml, `ggml-quants.c`. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from typing import Any

from quantcore.formats.base import BlockFormat, register
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.superblock import planes
from quantcore.methods.columns import column_sum, to_columns

BLOCK = 128


class Signs(BlockFormat):
    """Signs and their mean magnitude, added up in order."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        x = to_columns(blocks, BLOCK, xp=xp)  # (128, n)
        d = column_sum(xp.abs(x, out=x), xp=xp) / xp.float32(BLOCK)
        out = xp.empty((blocks.shape[0], self.block_bytes), dtype=xp.uint8)
        out[:, :2] = half_bytes(half_scale(d, xp=xp), xp=xp)
        # Eight truth values at the lowest bits of a little-endian word fold into its lowest byte.
        bits = (blocks >= xp.float32(0)).view(xp.uint32)  # (n, 32)
        bits |= bits >> xp.uint32(7)
        bits |= bits >> xp.uint32(14)
        four = bits.astype(xp.uint8)  # (n, 32)
        low = four.view(xp.uint16) & xp.uint16(0x0F0F)  # (n, 16)
        out[:, 2:] = (low | (low >> xp.uint16(4))).astype(xp.uint8)  # (n, 16)
        return out

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        d = read_half(blocks[:, :2], xp=xp).reshape(-1, 1)  # (n, 1)
        bits = xp.empty((blocks.shape[0], 16, 8), dtype=xp.bool_)
        for i, plane in enumerate(planes(blocks[:, 2:], 8, 1, xp=xp)):
            bits[:, :, i] = plane
        return xp.where(bits.reshape(-1, BLOCK), d, -d)  # (n, 128)


register(Signs("Q1_0", "Q1_0", "One bit per weight: for models trained with two levels.", BLOCK, 18))
