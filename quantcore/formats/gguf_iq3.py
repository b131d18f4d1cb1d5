"""IQ3_XXS and IQ3_S: groups of four magnitudes, odd numbers up to 15, from a grid, signs apart.

    IQ3_XXS  d:f16  index:u8[64]  (signs:u7[4]  s:u4)[8]                x = d * (2 s + 1) / 4 * g * sign
    IQ3_S    d:f16  low:u8[64]  high:u1[64]  signs:u8[32]  s:u4[8]      x = d * (2 s + 1) * g * sign

`g` are the values of the grid point; those of IQ3_XXS are about four times the odd numbers. `s` is per 32
weights. All little-endian.

1. ggml, `ggml-common.h`: the block structures. https://github.com/ggml-org/ggml
"""

from __future__ import annotations

from typing import Any

from quantcore.formats.base import register
from quantcore.formats.gridblock import GridFormat, from_nibbles, nibbles, words
from quantcore.formats.superblock import SUPER, interleave, planes
from quantcore.methods.gridfit import GridRule


class Squares(GridFormat):
    """A type that takes x**2 for weights without importance."""

    def own_weights(self, blocks: Any, *, xp: Any) -> Any:
        """Return x**2."""
        del xp
        return blocks * blocks


class Small(Squares):
    """IQ3_XXS."""

    def pack(self, out: Any, index: Any, signs: Any, s: Any, *, xp: Any) -> None:
        out[:, :64] = index.reshape(-1, 64)  # (n, 64)
        data = words([*(signs[:, :, k] for k in range(4)), s], [7, 7, 7, 7, 4], xp=xp)
        out[:, 64:] = data.reshape(-1, 32)  # (n, 32)

    def unpack(self, data: Any, *, xp: Any) -> tuple[Any, Any, Any]:
        word = xp.ascontiguousarray(data[:, 64:]).view(xp.uint32).reshape(-1, 8, 1)  # (n, groups, 1)
        signs = word >> xp.asarray([0, 7, 14, 21], dtype=xp.uint32) & xp.uint32(127)  # (n, groups, 4)
        return data[:, :64], signs.astype(xp.uint8), (word[:, :, 0] >> xp.uint32(28)).astype(xp.uint8)


class Large(Squares):
    """IQ3_S."""

    def misplace(self, index: Any, signs: Any, live: Any) -> None:
        """Let low bytes and signs of groups that are not zero close up, as ggml does.

        It moves on in both only behind groups that are not zero. So a super-block in which some are, but
        not those at its end, decodes to other weights than were meant; other readers and we ourselves
        cannot tell.
        """
        for row in (~live.all(axis=1)).nonzero()[0].tolist():
            kept = live[row].nonzero()[0].tolist()
            high = index[row] & 256
            for part, fill in ((index, 255), (signs, 255)):
                closed = part[row, kept] & fill
                part[row] = 0
                part[row, : len(kept)] = closed
            index[row] |= high

    def pack(self, out: Any, index: Any, signs: Any, s: Any, *, xp: Any) -> None:
        out[:, :64] = (index & 255).reshape(-1, 64)  # (n, 64)
        high = (index >> 8).astype(xp.uint8)  # (n, groups, 8)
        out[:, 64:72] = interleave([high[:, :, k] for k in range(8)], 1, xp=xp)
        out[:, 72:104] = signs.reshape(-1, 32)  # (n, 32)
        out[:, 104:] = nibbles(s, xp=xp)

    def unpack(self, data: Any, *, xp: Any) -> tuple[Any, Any, Any]:
        index = data[:, :64].astype(xp.uint16).reshape(-1, 8, 8)  # (n, groups, 8)
        for k, high in enumerate(planes(data[:, 64:72], 8, 1, xp=xp)):
            index[:, :, k] |= high.astype(xp.uint16) << xp.uint16(8)
        return index, data[:, 72:104], from_nibbles(data[:, 104:], xp=xp)


register(
    Small(
        "IQ3_XXS", "IQ3_XXS", "About 3.1 bits from a grid of 256 points.", SUPER, 98,
        group=32, spread=2, rule=GridRule("IQ3_XXS", 15, 0.2, 1e-8), stretch=1.0125, quarter=0.5,
    )
)  # fmt: skip
register(
    Large(
        "IQ3_S", "IQ3_S", "About 3.4 bits from a grid of 512 points.", SUPER, 110,
        group=32, spread=2, rule=GridRule("IQ3_S", 9, 0.2, 0.0, project="all"), paired=False, stretch=1.033,
        quarter=2.0,
    )
)  # fmt: skip
