"""What the K-quants share: super-blocks of 256 weights in groups of 16 or 32, and their bit planes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quantcore.formats.base import BlockFormat
from quantcore.methods.columns import column_sum, to_columns

SUPER = 256


@dataclass(frozen=True)
class SuperBlockFormat(BlockFormat):
    """A K-quant: 256 weights in groups of `group`, each group with its own small scale.

    With importance, a weight is importance * sqrt(spread * mean square of the block + x**2); a `spread` of 0
    stands for the bare importance.
    """

    group: int = 16
    spread: int = 0

    def weigh(self, rows: Any, calibration: Any, *, xp: Any) -> Any:
        """Return how much each error counts, `(rows, row_length)`."""
        if not self.spread:
            return xp.broadcast_to(calibration, rows.shape)
        squares = (rows * rows).reshape(-1, self.block)  # (n, block)
        total = column_sum(to_columns(squares, self.block, xp=xp), xp=xp)  # (n,)
        mean = xp.float32(self.spread) * total / xp.float32(self.block)
        xp.add(squares, mean.reshape(-1, 1), out=squares)  # (n, block)
        xp.sqrt(squares, out=squares)
        return squares.reshape(rows.shape) * calibration


def interleave(parts: list[Any], width: int, *, xp: Any) -> Any:
    """Return bytes with part `i` at bit `i * width`."""
    packed = parts[0]
    for i, part in enumerate(parts[1:], start=1):
        packed = packed | (part << xp.uint8(i * width))
    return packed


def planes(packed: Any, count: int, width: int, *, xp: Any) -> list[Any]:
    """Return the `count` parts of `width` bits each: the inverse of `interleave`."""
    mask = xp.uint8((1 << width) - 1)
    return [(packed >> xp.uint8(i * width)) & mask for i in range(count)]


def quarters(codes: Any, n: int) -> Any:
    """Return codes `(16, 16 * n)` by the place they have in 2-bit planes: `(16, half, quarter, pair, n)`.

    Element `128 * half + 32 * quarter + 16 * pair + i` of a super-block stands at `[i, half, quarter, pair]`.
    """
    return codes.reshape(16, 2, 4, 2, n)


def as_bytes(columns: Any, n: int) -> Any:
    """Return `(16 or 32, ..., n)` as rows of bytes `(n, everything else)`, elements running fastest."""
    return columns.transpose(columns.ndim - 1, *range(1, columns.ndim - 1), 0).reshape(n, -1)
