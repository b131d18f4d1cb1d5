"""Parts that several kernels are made of."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.lanes import any_of, as_bits, bits_float, float_bits, from_bits, part, where
from quantcore.kernels.memory import move
from quantcore.kernels.status import FINE, TOO_LARGE

_ZERO = np.float32(0)


@part
def larger(a, b):
    """Return `b` in the lanes where it is larger than `a`."""
    return where(a < b, b, a)


@part
def smaller(a, b):
    """Return `b` in the lanes where it is smaller than `a`."""
    return where(b < a, b, a)


@part
def clamp(x, low, high):
    """Return `x` between `low` and `high`."""
    # In two steps, each of which is one instruction; nested the other way round they are compares and blends.
    above = where(x < low, low, x)
    return where(above > high, high, above)


@part
def half_bits(value):
    """Return the bits of the float16 nearest to a scalar float32, ties to even; infinity if too large."""
    bits = np.int64(float_bits(value)) & np.int64(0xFFFFFFFF)
    sign = (bits >> 16) & 0x8000
    bits &= 0x7FFFFFFF
    if bits >= 0x47800000 - 0x1000:  # 65520 and more
        return sign | 0x7C00
    if bits < 0x38800000:  # subnormal: adding one half puts the ten bits at the end of the mantissa
        shifted = bits_float(np.int32(bits)) + np.float32(0.5)
        return sign | (np.int64(float_bits(shifted)) - 0x3F000000)
    odd = (bits >> 13) & 1
    return sign | ((bits - 0x38000000 + 0xFFF + odd) >> 13)


@part
def half_value(bits):
    """Return the scalar float32 of a finite float16 given as bits."""
    shifted = np.int32((bits & 0x7FFF) << 13)
    value = bits_float(shifted) * np.float32(2.0**112)
    return -value if bits & 0x8000 else value


@part
def half_lanes(x):
    """Return the bits of the float16 nearest to each lane, as `half_bits` does for one number."""
    bits = as_bits(x)
    sign = (bits >> 16) & 0x8000
    bits = bits & 0x7FFFFFFF
    normal = (bits - (0x38000000 - 0xFFF) + ((bits >> 13) & 1)) >> 13
    subnormal = as_bits(from_bits(bits) + np.float32(0.5)) - 0x3F000000
    half = where(bits < 0x38800000, subnormal, normal)
    return where(bits >= 0x47800000 - 0x1000, 0x7C00, half) | sign


@part
def half_values(bits):
    """Return the float32 of finite float16 given as bits, as `half_value` does for one number."""
    size = as_bits(from_bits((bits & 0x7FFF) << 13) * np.float32(2.0**112))
    return from_bits(size | ((bits & 0x8000) << 16))


@part
def fits(half):
    """Return the status of sixteen scales, as float16 bits."""
    return TOO_LARGE if any_of((half & 0x7C00) == 0x7C00) else FINE


@part
def padded(x, start, count, total, spare):
    """Return where `total` numbers from `x[start]` on can be read.

    Where there are no more than `count` these are copied into `spare` and followed by zeros.
    """
    source = move(x, start)
    if count < total:
        for i in range(count):
            spare[i] = source[i]
        for i in range(count, total):
            spare[i] = _ZERO
        source = spare
    return source
