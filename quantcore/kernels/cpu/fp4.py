"""MXFP4 and NVFP4 compiled; their layout and numpy form are in `quantcore.formats.gguf_fp4`."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import clamp, larger, padded
from quantcore.kernels.lanes import (
    absolute,
    any_of,
    as_bits,
    bits_of,
    cut,
    from_bits,
    ones,
    part,
    shared,
    splat,
    to_float,
    where,
)
from quantcore.kernels.memory import byte_room, floats, gather, ints, load, move, store
from quantcore.kernels.shuffles import row_magnitude, transpose
from quantcore.kernels.status import FINE, TOO_SMALL

_ZERO = np.float32(0)
_FAR = np.float32(2.0**20)
_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12], dtype=np.float32)


@part
def codes(x, step):
    """Return the codes nearest to x / step, of two equally near ones the smaller; `step` is one number."""
    size = absolute(x)
    q = ones(size > step * np.float32(0.5))
    q = q + ones(size > step * np.float32(1.5))
    q = q + ones(size > step * np.float32(2.5))
    q = q + ones(size > step * np.float32(3.5))
    q = q + ones(size > step * np.float32(5))
    q = q + ones(size > step * np.float32(7))
    q = q + ones(size > step * np.float32(10))
    return q + where((x < _ZERO) & (q > 0), 8, q - q)


@part
def exponents(peak, ends):
    """Return the scale bytes of sixteen groups: floor(log2(peak)) - 2 + 127, as ggml's rounding has it.

    `ends[j + 151]` has the bits of the number below 2**j from which the logarithm is rounded up to j.
    """
    tiny = peak < np.float32(2.0**-126)
    bits = as_bits(where(tiny, peak * np.float32(2.0**24), peak))
    exponent = (bits >> 23) - where(tiny, 127 + 24, bits - bits + 127)
    place = exponent + 152
    place = where(place < 0, 0, place)
    exponent = exponent + ones(as_bits(peak) >= gather(ends, place))
    return where(peak == _ZERO, 0, (exponent + 125) & 255)


@shared
def mxfp4(x, n_rows, row_length, importance, tables, out):
    spare = floats(512)
    scales = ints(16)
    steps = floats(16)
    n = n_rows * row_length // 32
    status = FINE
    for first in range(0, n, 16):
        blocks = min(16, n - first)
        source = padded(x, 32 * first, 32 * blocks, 512, spare)
        scale = exponents(row_magnitude(source, 32), tables)
        if any_of(scale == 255):
            status = TOO_SMALL
        store(scales, 0, scale)
        # 2**(e - 128), which is subnormal for 0 and 1.
        subnormal = where(scale == 0, 0x00200000, scale - scale + 0x00400000)
        store(steps, 0, from_bits(where(scale < 2, subnormal, (scale - 1) << 23)))
        for b in range(blocks):
            target = move(out, (first + b) * 17)
            target[0] = scales[b]
            step = splat(steps[b])
            low = codes(load(source, 32 * b), step)
            high = codes(load(source, 32 * b + 16), step)
            store(target, 1, low | (high << 4))
    return status


@part
def small_floats(peak):
    """Return the nearest 8-bit floats to a sixth of the peaks, as `gguf_fp4` does."""
    scale = peak / np.float32(6)
    rounded = (((as_bits(scale) >> 19) + 1) >> 1) - (120 << 3)
    rounded = where(rounded >= 0x78, 0x7E, rounded)
    small = cut(clamp(scale * np.float32(512) + np.float32(0.5), _ZERO, np.float32(7)))
    return where(scale < np.float32(2.0**-6), small, rounded)


@part
def half_of(code):
    """Return half the values of 8-bit floats below 127."""
    exponent = code >> 3
    mantissa = code & 7
    normal = from_bits(((exponent + (127 - 8)) << 23) | (mantissa << 20))
    return where(exponent == 0, to_float(mantissa) * np.float32(2.0**-10), normal)


@shared
def by_difference(x, step, q):
    """Find the codes of 16 weights far beyond the highest level, where float32 hides differences."""
    for i in range(16):
        size = abs(x[i])
        best = size
        code = 0
        for k in range(1, 8):
            difference = abs(_LEVELS[k] * step - size)
            if difference < best:
                best = difference
                code = k
        q[i] = code + 8 if x[i] < _ZERO and code else code


@shared
def nvfp4(x, n_rows, row_length, importance, tables, out):
    spare = floats(256)
    columns = floats(256)
    steps = floats(16)
    scales = ints(16)
    q = byte_room(256)
    n = n_rows * row_length // 64
    for first in range(0, n, 4):
        blocks = min(4, n - first)
        source = padded(x, 64 * first, 64 * blocks, 256, spare)
        transpose(source, 16, columns)
        peak = absolute(load(columns, 0))
        for i in range(1, 16):
            peak = larger(peak, absolute(load(columns, 16 * i)))
        scale = small_floats(peak)
        step = half_of(scale)
        store(scales, 0, scale)
        # Where the scale is 0 so are all codes: nothing is above an infinite step.
        store(steps, 0, where(scale == 0, np.float32(np.inf), step))
        for g in range(16):
            store(q, 16 * g, codes(load(source, 16 * g), splat(steps[g])))
        far = bits_of((peak > step * _FAR) & (scale != 0))
        if far:
            for g in range(16):
                if far >> g & 1:
                    by_difference(move(source, 16 * g), steps[g], move(q, 16 * g))
        for b in range(blocks):
            target = move(out, (first + b) * 36)
            for g in range(4):
                target[g] = scales[4 * b + g]
                for i in range(8):
                    k = 64 * b + 16 * g + i
                    target[4 + 8 * g + i] = q[k] | (q[k + 8] << 4)
    return FINE


KERNELS = {"MXFP4": (mxfp4, mxfp4), "NVFP4": (nvfp4, nvfp4)}
