"""IQ2_XXS, IQ2_XS and IQ2_S: groups of eight magnitudes 1, 3 or 5 from a grid, signs apart.

    IQ2_XXS  d:f16  (index:u8[4]  signs:u7[4]  s:u4)[8]                       x = d * (2 s + 1) / 8 * g * sign
    IQ2_XS   d:f16  (index:u9  signs:u7)[32]  s:u4[16]                        s per 16 weights
    IQ2_S    d:f16  low:u8[32]  signs:u8[32]  high:u2[32]  s:u4[16]           index = low + 256 * high

`g` are the values of the grid point, 8, 25 or 43. The common scale of a block is chosen for 1, 3 and 5, eight
times less. All little-endian.

1. ggml, `ggml-common.h`: the block structures. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from typing import Any

from quantcore.formats.base import register
from quantcore.formats.gridblock import GridFormat, from_nibbles, nibbles, words
from quantcore.formats.superblock import SUPER, interleave, planes
from quantcore.methods.columns import column_sum, to_columns
from quantcore.methods.gridfit import GridRule

# The many steps of a search are worth their calls only on large tiles.
LARGE = 1 << 19


class Small(GridFormat):
    """IQ2_XXS."""

    def pack(self, out: Any, index: Any, signs: Any, s: Any, *, xp: Any) -> None:
        parts = out.reshape(-1, 8, 8)  # (n, groups, 8)
        parts[:, :, :4] = index
        data = words([*(signs[:, :, k] for k in range(4)), s], [7, 7, 7, 7, 4], xp=xp)
        parts[:, :, 4:] = data.reshape(-1, 8, 4)  # (n, groups, 4)

    def unpack(self, data: Any, *, xp: Any) -> tuple[Any, Any, Any]:
        parts = data.reshape(-1, 8, 8)  # (n, groups, 8)
        word = xp.ascontiguousarray(parts[:, :, 4:]).view(xp.uint32)  # (n, groups, 1)
        signs = word >> xp.asarray([0, 7, 14, 21], dtype=xp.uint32) & xp.uint32(127)  # (n, groups, 4)
        return parts[:, :, :4], signs.astype(xp.uint8), (word[:, :, 0] >> xp.uint32(28)).astype(xp.uint8)


class Middle(GridFormat):
    """IQ2_XS."""

    def pack(self, out: Any, index: Any, signs: Any, s: Any, *, xp: Any) -> None:
        codes = index.astype(xp.uint16) | (signs.astype(xp.uint16) << xp.uint16(9))  # (n, 16, 2)
        out[:, :64] = xp.ascontiguousarray(codes).view(xp.uint8).reshape(-1, 64)  # (n, 64)
        out[:, 64:] = nibbles(s, xp=xp)

    def unpack(self, data: Any, *, xp: Any) -> tuple[Any, Any, Any]:
        codes = xp.ascontiguousarray(data[:, :64]).view(xp.uint16)  # (n, 32)
        signs = (codes >> xp.uint16(9)).astype(xp.uint8)
        return codes & xp.uint16(511), signs, from_nibbles(data[:, 64:], xp=xp)


class Large(GridFormat):
    """IQ2_S."""

    def own_weights(self, blocks: Any, *, xp: Any) -> Any:
        """Return half the mean square of the super-block + x**2."""
        squares = blocks * blocks
        total = column_sum(to_columns(squares, SUPER, xp=xp), xp=xp)  # (n,)
        mean = xp.float32(2) * total / xp.float32(SUPER)
        return xp.float32(0.25) * mean.reshape(-1, 1) + squares  # (n, 256)

    def pack(self, out: Any, index: Any, signs: Any, s: Any, *, xp: Any) -> None:
        index = index.reshape(-1, 32)  # (n, 32)
        out[:, :32] = index & 255
        out[:, 32:64] = signs.reshape(-1, 32)  # (n, 32)
        high = (index >> 8).astype(xp.uint8).reshape(-1, 8, 4)  # (n, 8, 4)
        out[:, 64:72] = interleave([high[:, :, k] for k in range(4)], 2, xp=xp)
        out[:, 72:] = nibbles(s, xp=xp)

    def unpack(self, data: Any, *, xp: Any) -> tuple[Any, Any, Any]:
        index = data[:, :32].astype(xp.uint16).reshape(-1, 8, 4)  # (n, 8, 4)
        for k, high in enumerate(planes(data[:, 64:72], 4, 2, xp=xp)):
            index[:, :, k] |= high.astype(xp.uint16) << xp.uint16(8)
        return index, data[:, 32:64], from_nibbles(data[:, 72:], xp=xp)


register(
    Small(
        "IQ2_XXS", "IQ2_XXS", "About 2.1 bits from a grid of 256 points.", SUPER, 66,
        tile_weights=LARGE, scratch=130, needs_calibration=True, group=32, spread=1,
        rule=GridRule("IQ2_XXS", 6, 0.1, 1e-15, searched=True, project="always"),
    )
)  # fmt: skip
register(
    Middle(
        "IQ2_XS", "IQ2_XS", "About 2.3 bits from a grid of 512 points.", SUPER, 74,
        tile_weights=LARGE, scratch=130, needs_calibration=True, group=16, spread=1,
        rule=GridRule("IQ2_XS", 9, 0.1, 1e-15),
    )
)  # fmt: skip
register(
    Large(
        "IQ2_S", "IQ2_S", "About 2.6 bits from a grid of 1024 points.", SUPER, 82,
        tile_weights=LARGE, scratch=130, group=16, spread=2,
        rule=GridRule("IQ2_S", 9, 0.1, 1e-8), paired=False, stretch=0.9875,
    )
)  # fmt: skip
