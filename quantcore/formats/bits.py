"""What the block formats share: 16-bit scales as bytes, and codes as bits."""

from __future__ import annotations

from typing import Any

from quantcore.errors import UnsupportedTensor
from quantcore.formats.floats import half_to_float


def half_scale(scale: Any, *, xp: Any) -> Any:
    """Return float32 `scale` as float16, refusing one that does not fit."""
    half = scale.astype(xp.float16)
    if not bool(xp.isfinite(half).all()):
        raise UnsupportedTensor("values are too large for a 16-bit scale; keep this tensor in F32 or BF16")
    return half


def half_bytes(half: Any, *, xp: Any) -> Any:
    """Return float16 `(n,)` as its bytes, uint8 `(n, 2)`."""
    return half.reshape(-1, 1).view(xp.uint8)  # (n, 2)


def read_half(data: Any, *, xp: Any) -> Any:
    """Return two byte columns `(n, 2)` as the float32 `(n,)` of the float16 they spell."""
    return half_to_float(xp.ascontiguousarray(data).view(xp.float16).reshape(-1), xp=xp)  # (n,)


def round_half_away(values: Any, *, xp: Any) -> Any:
    """Round float32 in place to the nearest integer, halves away from zero.

    The fraction is added once more and then cut off: both steps are exact, which adding one half would not be
    just below a half.
    """
    whole = xp.trunc(values)
    xp.subtract(values, whole, out=whole)
    xp.add(values, whole, out=values)
    return xp.trunc(values, out=values)
