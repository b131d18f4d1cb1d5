"""F32, F16 and BF16: one number per block, stored as it is or rounded."""

from __future__ import annotations

from typing import Any

from quantcore.errors import UnsupportedTensor
from quantcore.formats.base import BlockFormat, register
from quantcore.formats.floats import bfloat_to_float, float_to_bfloat, float_to_half, half_to_float


class F32(BlockFormat):
    """IEEE 754 binary32, little endian."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        return blocks.view(xp.uint8)  # (n, 4)

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        return xp.ascontiguousarray(blocks).view(xp.float32)  # (n, 1)


class F16(BlockFormat):
    """IEEE 754 binary16, rounded to nearest, ties to even."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        # From here on numbers round to 65536, which float16 does not have.
        if blocks.size and float(xp.abs(blocks).max()) >= 65520:
            raise UnsupportedTensor("F16 holds numbers up to 65504; use BF16 or F32")
        return float_to_half(blocks, xp=xp).view(xp.uint8)  # (n, 2)

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        return half_to_float(xp.ascontiguousarray(blocks).view(xp.float16), xp=xp)  # (n, 1)


class BF16(BlockFormat):
    """The upper half of binary32, rounded to nearest, ties to even."""

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:  # noqa: ARG002
        pattern = float_to_bfloat(blocks, xp=xp)
        # Rounding carries the largest float32 numbers into the pattern of infinity.
        if bool(((pattern & xp.uint16(0x7F80)) == xp.uint16(0x7F80)).any()):
            raise UnsupportedTensor("BF16 holds numbers up to 3.39e38; use F32")
        return pattern.view(xp.uint8)  # (n, 2)

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        return bfloat_to_float(xp.ascontiguousarray(blocks).view(xp.uint16), xp=xp)  # (n, 1)


register(F32("F32", "F32", "Full precision: 32-bit floats.", 1, 4))
register(F16("F16", "F16", "Half precision: what most checkpoints are published in.", 1, 2))
register(
    BF16("BF16", "BF16", "The range of F32 at 8 bits of precision: what most models are trained in.", 1, 2)
)
