"""IQ1_S and IQ1_M: ternary codes, eight to a point of a codebook of 2048, in super-blocks of 256.

    IQ1_S  d:f16  low:u8[32]  high:u16[8]                 each of `high` serves 32 weights:
           three bits for each of four points, three bits s of scale, one for the direction of the shift
    IQ1_M  low:u8[32]  high:u8[16]  scales:u16[4]         each of `high` serves 16 weights:
           three bits for each of two points with the direction of its shift on top; each of `scales` four
           groups' three bits s, and on top four bits of d:f16

    x = d * (2 s + 1) * (level +- 1/8)

Neither is made without importance. The searches are in `quantcore.methods.iq1_division` and `iq1_grid`.

1. ggml, `ggml-common.h`: the block structures. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.errors import NeedsCalibration
from quantcore.formats.base import register
from quantcore.formats.bits import half_bytes, half_scale, read_half
from quantcore.formats.floats import half_to_float
from quantcore.formats.superblock import SUPER, SuperBlockFormat
from quantcore.methods.grids import codebook, flat
from quantcore.methods.iq1_division import SHIFT, divide
from quantcore.methods.iq1_grid import fit_sums, grid_values, project

# Both types share the codebook of the former.
BOOK = "IQ1_S"


@dataclass(frozen=True)
class Thirds(SuperBlockFormat):
    """What both types share; `parts` shifts to a group, and `fudge`, by which ggml enlarges the scale."""

    needs_calibration: bool = True
    scratch: int = 220
    spread: int = 2
    parts: int = 1
    nothing: float = 1e-12
    fudge: float = 1.125

    def tables(self, *, xp: Any) -> Any | None:
        return xp.asarray(flat(BOOK))

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        if weights is None:
            raise NeedsCalibration(
                f"{self.name} cannot be made without importance; give an importance matrix"
            )
        n = blocks.shape[0]
        x, w = blocks.reshape(-1, self.group), weights.reshape(-1, self.group)  # (groups * n, group)
        found = divide(x, w, parts=self.parts, nothing=self.nothing, xp=xp)
        index, scale = project(found, x, w, BOOK, xp=xp)
        lowered = found.lowered.T.reshape(n, -1, self.parts)  # (n, groups, parts)
        scale = scale.reshape(n, -1)  # (n, groups)
        peak = scale.max(axis=1)  # (n,)
        d = peak / xp.float32(15)
        s = xp.float32(0.5) * ((xp.float32(1) / d).reshape(-1, 1) * scale - xp.float32(1))
        s = xp.where(xp.isfinite(s), xp.rint(s), xp.float32(0)).clip(
            xp.float32(0), xp.float32(7)
        )  # (n, groups)
        lowered = lowered & (peak > xp.float32(0)).reshape(-1, 1, 1)
        d = self.refit(d, blocks, weights, index.reshape(n, -1), s, lowered, xp)
        return self.pack(
            half_scale(d * xp.float32(self.fudge), xp=xp),
            s.astype(xp.uint16),
            index.reshape(n, -1),
            lowered,
            xp=xp,
        )

    def refit(self, d: Any, x: Any, w: Any, index: Any, s: Any, lowered: Any, xp: Any) -> Any:
        """Return the scale of super-blocks, float32 `(n,)`, once everything else is known."""
        del x, w, index, s, lowered, xp
        return d

    def pack(self, d: Any, s: Any, index: Any, lowered: Any, *, xp: Any) -> Any:
        """Return uint8 `(n, block_bytes)`.

        `d` is float16 `(n,)`, `s` uint16 `(n, groups)`, `index` int32 `(n, 32)`, `lowered` bool
        `(n, groups, parts)`.
        """
        raise NotImplementedError

    def unpack(self, blocks: Any, *, xp: Any) -> tuple[Any, Any, Any, Any]:
        """Return float32 d `(n,)`, uint16 s `(n, groups)`, grid indices and bool shifts `(n, 32)`."""
        raise NotImplementedError

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        d, s, index, lowered = self.unpack(blocks, xp=xp)
        n = len(blocks)
        shift = xp.where(lowered, xp.float32(-SHIFT), xp.float32(SHIFT))
        values = grid_values(index, shift, codebook(BOOK), xp=xp).reshape(
            n, -1, self.group
        )  # (n, groups, group)
        step = d.reshape(-1, 1) * (s + s + xp.uint16(1)).astype(xp.float32)  # (n, groups)
        return (values * step.reshape(n, -1, 1)).reshape(n, SUPER)


@dataclass(frozen=True)
class OneShift(Thirds):
    def pack(self, d: Any, s: Any, index: Any, lowered: Any, *, xp: Any) -> Any:
        n = d.shape[0]
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        out[:, :2], out[:, 2:34] = half_bytes(d, xp=xp), index & xp.int32(255)
        tops = (index >> xp.int32(8)).reshape(n, 8, 4)  # (n, groups, points)
        high = s | (lowered[:, :, 0].astype(xp.uint16) << xp.uint16(3))
        high = high << xp.uint16(12)
        for i in range(4):
            high |= tops[:, :, i].astype(xp.uint16) << xp.uint16(3 * i)
        out[:, 34:] = high.view(xp.uint8)  # (n, 16)
        return out

    def unpack(self, blocks: Any, *, xp: Any) -> tuple[Any, Any, Any, Any]:
        n = blocks.shape[0]
        high = xp.ascontiguousarray(blocks[:, 34:]).view(xp.uint16)  # (n, 8)
        index = blocks[:, 2:34].astype(xp.int32).reshape(n, 8, 4)
        for i in range(4):
            index[:, :, i] |= (((high >> xp.uint16(3 * i)) & xp.uint16(7)) << xp.uint16(8)).astype(xp.int32)
        lowered = xp.broadcast_to((high >> xp.uint16(15)).astype(xp.bool_).reshape(n, 8, 1), (n, 8, 4))
        s = (high >> xp.uint16(12)) & xp.uint16(7)
        return read_half(blocks[:, :2], xp=xp), s, index.reshape(n, 32), lowered.reshape(n, 32)


@dataclass(frozen=True)
class TwoShifts(Thirds):
    def refit(self, d: Any, x: Any, w: Any, index: Any, s: Any, lowered: Any, xp: Any) -> Any:
        n = d.shape[0]
        shift = xp.where(lowered.reshape(n, 32), xp.float32(-SHIFT), xp.float32(SHIFT))
        values = grid_values(index, shift, codebook(BOOK), xp=xp).reshape(
            n, -1, self.group
        )  # (n, groups, group)
        values *= (s + s + xp.float32(1)).reshape(n, -1, 1)
        wxq, wqq = fit_sums(x, w, values.reshape(n, SUPER), xp=xp)
        return xp.where((wqq > xp.float32(0)) & (d > xp.float32(0)), wxq / wqq, d)

    def pack(self, d: Any, s: Any, index: Any, lowered: Any, *, xp: Any) -> Any:
        n = d.shape[0]
        out = xp.empty((n, self.block_bytes), dtype=xp.uint8)
        out[:, :32] = index & xp.int32(255)
        tops = (index >> xp.int32(8)).astype(xp.uint8) | (
            lowered.reshape(n, 32).astype(xp.uint8) << xp.uint8(3)
        )
        out[:, 32:48] = tops[:, ::2] | (tops[:, 1::2] << xp.uint8(4))
        bits = d.view(xp.uint16).reshape(-1, 1)  # (n, 1)
        s = s.reshape(n, 4, 4)
        scales = (bits >> (xp.arange(4, dtype=xp.uint16) * xp.uint16(4))) << xp.uint16(12)  # (n, 4)
        for i in range(4):
            scales |= s[:, :, i] << xp.uint16(3 * i)
        out[:, 48:] = scales.view(xp.uint8)  # (n, 8)
        return out

    def unpack(self, blocks: Any, *, xp: Any) -> tuple[Any, Any, Any, Any]:
        n = blocks.shape[0]
        tops = xp.empty((n, 16, 2), dtype=xp.uint8)
        tops[:, :, 0], tops[:, :, 1] = blocks[:, 32:48] & xp.uint8(15), blocks[:, 32:48] >> xp.uint8(4)
        tops = tops.reshape(n, 32)
        index = blocks[:, :32].astype(xp.int32) | ((tops & xp.uint8(7)).astype(xp.int32) << xp.int32(8))
        scales = xp.ascontiguousarray(blocks[:, 48:]).view(xp.uint16)  # (n, 4)
        bits = scales >> xp.uint16(12)
        d = (
            bits[:, 0]
            | (bits[:, 1] << xp.uint16(4))
            | (bits[:, 2] << xp.uint16(8))
            | (bits[:, 3] << xp.uint16(12))
        )
        s = xp.empty((n, 4, 4), dtype=xp.uint16)
        for i in range(4):
            s[:, :, i] = (scales >> xp.uint16(3 * i)) & xp.uint16(7)
        d = half_to_float(d.view(xp.float16), xp=xp)
        return d, s.reshape(n, 16), index, (tops & xp.uint8(8)).astype(xp.bool_)


register(
    OneShift(
        name="IQ1_S",
        title="IQ1_S",
        summary="About 1.6 bits, ternary codes from a grid.",
        block=SUPER,
        block_bytes=50,
        group=32,
    )
)
register(
    TwoShifts(
        name="IQ1_M",
        title="IQ1_M",
        summary="About 1.75 bits, ternary codes from a grid with finer scales.",
        block=SUPER,
        block_bytes=56,
        group=16,
        parts=2,
        nothing=1e-7,
        fudge=1.1125,
    )
)
