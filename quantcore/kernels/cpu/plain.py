"""F16, BF16 and F32: read to float32, checked for NaN and infinities on the way, and written.

`READERS` have the form of kernels: `x` is what a file holds, `out` takes float32 of the same shape. The one
of F32 only checks.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import half_lanes, larger
from quantcore.kernels.lanes import (
    absolute,
    any_of,
    as_bits,
    from_bits,
    part,
    shared,
    splat,
    splat_int,
    where,
)
from quantcore.kernels.memory import as_floats, as_halves, floats, ints, load, store
from quantcore.kernels.status import BEYOND_BF16, BEYOND_F16, FINE, NOT_FINITE

_REBIAS = np.float32(2.0**112)
_BEYOND_HALF = np.float32(65536)


@part
def widen_half(pattern):
    """Return float16 patterns as float32; infinities and NaN become 65536 and more.

    A pattern moved into place has an exponent that is too small by 112; multiplying sets it right, of
    subnormal numbers too.
    """
    return from_bits((pattern << 16 >> 3) & np.int32(-0x70002000)) * _REBIAS


@shared
def from_f16(x, n_rows, row_length, importance, tables, out):
    source, target = as_halves(x), as_floats(out)
    n = n_rows * row_length
    worst = splat(np.float32(0))
    for i in range(0, n - 15, 16):
        value = widen_half(load(source, i))
        worst = larger(worst, absolute(value))
        store(target, i, value)
    rest, ended = ints(16), floats(16)
    store(rest, 0, splat_int(0))
    for i in range(n % 16):
        rest[i] = source[n - n % 16 + i]
    value = widen_half(load(rest, 0))
    worst = larger(worst, absolute(value))
    store(ended, 0, value)
    for i in range(n % 16):
        target[n - n % 16 + i] = ended[i]
    return NOT_FINITE if any_of(worst >= _BEYOND_HALF) else FINE


@shared
def from_bf16(x, n_rows, row_length, importance, tables, out):
    source, target = as_halves(x), as_floats(out)
    n = n_rows * row_length
    worst = splat_int(0)
    for i in range(0, n - 15, 16):
        pattern = load(source, i)
        magnitude = pattern & 0x7FFF
        worst = where(magnitude > worst, magnitude, worst)
        store(target, i, from_bits(pattern << 16))
    rest, ended = ints(16), floats(16)
    store(rest, 0, splat_int(0))
    for i in range(n % 16):
        rest[i] = source[n - n % 16 + i]
    pattern = load(rest, 0)
    magnitude = pattern & 0x7FFF
    worst = where(magnitude > worst, magnitude, worst)
    store(ended, 0, from_bits(pattern << 16))
    for i in range(n % 16):
        target[n - n % 16 + i] = ended[i]
    return NOT_FINITE if any_of(worst >= 0x7F80) else FINE


@shared
def from_f32(x, n_rows, row_length, importance, tables, out):
    n = n_rows * row_length
    worst = splat_int(0)
    for i in range(0, n - 15, 16):
        magnitude = as_bits(load(x, i)) & 0x7FFFFFFF
        worst = where(magnitude > worst, magnitude, worst)
    rest = floats(16)
    store(rest, 0, splat(np.float32(0)))
    for i in range(n % 16):
        rest[i] = x[n - n % 16 + i]
    magnitude = as_bits(load(rest, 0)) & 0x7FFFFFFF
    worst = where(magnitude > worst, magnitude, worst)
    return NOT_FINITE if any_of(worst >= 0x7F800000) else FINE


@part
def bfloat_lanes(x):
    """Return the bits of the bfloat16 nearest to each lane, ties to even."""
    bits = as_bits(x)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def writer(narrow, beyond: int, problem: int):
    """Return the kernel that stores what `narrow` gives; magnitudes of the pattern `beyond` are refused."""

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        target = as_halves(out)
        n = n_rows * row_length
        worst = splat_int(0)
        for i in range(0, n - 15, 16):
            pattern = narrow(load(x, i))
            magnitude = pattern & 0x7FFF
            worst = where(magnitude > worst, magnitude, worst)
            store(target, i, pattern)
        rest, ended = floats(16), ints(16)
        store(rest, 0, splat(np.float32(0)))
        for i in range(n % 16):
            rest[i] = x[n - n % 16 + i]
        pattern = narrow(load(rest, 0))
        magnitude = pattern & 0x7FFF
        worst = where(magnitude > worst, magnitude, worst)
        store(ended, 0, pattern)
        for i in range(n % 16):
            target[n - n % 16 + i] = ended[i]
        return problem if any_of(worst >= beyond) else FINE

    return kernel


_to_f16 = writer(half_lanes, 0x7C00, BEYOND_F16)
_to_bf16 = writer(bfloat_lanes, 0x7F80, BEYOND_BF16)
KERNELS = {"F16": (_to_f16, _to_f16), "BF16": (_to_bf16, _to_bf16)}
READERS = {"F16": from_f16, "BF16": from_bf16, "F32": from_f32}
