"""What a compiled kernel returns: whether it could make blocks of what it was given, as bits."""

from __future__ import annotations

from quantcore.errors import UnsupportedTensor

FINE = 0
TOO_LARGE = 1  # a scale does not fit its 16 bits
NOT_FINITE = 2
BEYOND_F16 = 4
BEYOND_BF16 = 8
TOO_SMALL = 16
SQUARES = 32

NOT_A_NUMBER = "no type can hold NaN or infinite values"
_REASONS = {
    TOO_LARGE: "values are too large for a 16-bit scale; keep this tensor in F32 or BF16",
    NOT_FINITE: NOT_A_NUMBER,
    BEYOND_F16: "F16 holds numbers up to 65504; use BF16 or F32",
    BEYOND_BF16: "BF16 holds numbers up to 3.39e38; use F32",
    SQUARES: "values are too large to be squared; keep this tensor in F32 or BF16",
    TOO_SMALL: "a block of weights of about 1e-38 has no scale of 8 bits; keep this tensor in another type",
}


def check(status: int) -> None:
    """Raise `UnsupportedTensor` with the reason unless `status` is `FINE`."""
    for bit, reason in _REASONS.items():
        if status & bit:
            raise UnsupportedTensor(reason)
