"""Q8_0, Q4_0, Q4_1, Q5_0, Q5_1 compiled; their layout and numpy form are in `quantcore.formats.gguf_legacy`.

Without importance the work is little more than reading memory: the extremes of sixteen blocks are taken side
by side, then each block is rounded for itself, its elements in the lanes. With importance the searches of
`quantcore.methods.kquant` take sixteen blocks side by side.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import fits, half_lanes, padded, smaller
from quantcore.kernels.lanes import (
    absolute,
    any_of,
    bits_of,
    cut,
    lane,
    part,
    shared,
    splat,
    where,
    with_sign,
)
from quantcore.kernels.memory import as_halves, floats, ints, load, move, store
from quantcore.kernels.shuffles import row_largest, row_magnitude, row_smallest
from quantcore.kernels.status import FINE

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITE = np.float32(np.inf)
_NOTHING = np.float32(1e-15)  # blocks below this magnitude count as zero in a search
_BELOW_HALF = np.float32(0.49999997)  # the largest float32 below one half


@part
def half_away(x):
    """Return the nearest integers, halves away from zero; exact for magnitudes below 2**22."""
    return cut(x + with_sign(splat(_BELOW_HALF), x))


@shared
def q8_0(x, n_rows, row_length, importance, tables, out):
    spare = floats(512)
    inverses = floats(16)
    halves = ints(16)
    n = n_rows * row_length // 32
    status = FINE
    for first in range(0, n, 16):
        blocks = min(16, n - first)
        source = padded(x, 32 * first, 32 * blocks, 512, spare)
        d = row_magnitude(source, 32) / np.float32(127)
        inverse = _ONE / d
        half = half_lanes(d)
        status |= fits(half)
        # Of a block of nothing, or so little that 1/d overflows, all codes become 0.
        store(inverses, 0, where(inverse == _INFINITE, _ZERO, inverse))
        store(halves, 0, half)
        for b in range(blocks):
            target = move(out, (first + b) * 34)
            inverse = splat(inverses[b])
            as_halves(target)[0] = halves[b]
            store(target, 2, half_away(load(source, 32 * b) * inverse))
            store(target, 18, half_away(load(source, 32 * b + 16) * inverse))
    return status


@part
def first_of_magnitude(source, size):
    """Return the first of 32 elements that has the magnitude `size`."""
    for i in range(32):
        if abs(source[i]) == size:
            return source[i]
    return _ZERO


def packing(levels: int, signed: bool):
    """Return the bytes of a block, and a part that writes the codes of one."""
    header = 2 if signed else 4

    @part
    def pack(low, high, target):
        """Write codes 0-15 and 16-31 of a block, given as lanes."""
        if levels == 32:
            fifth = as_halves(move(target, header))
            fifth[0] = bits_of(low > 15)
            fifth[1] = bits_of(high > 15)
            low = low & 15
            store(target, header + 4, low | (high << 4))
        else:
            store(target, header, low | (high << 4))

    return header + (20 if levels == 32 else 16), pack


def by_peak(levels: int):
    """Return the kernel of Q4_0 or Q5_0: the element of largest magnitude becomes the lowest code."""
    size, pack = packing(levels, signed=True)
    lowest = np.float32(-levels // 2)
    middle = np.float32(levels // 2 + 0.5)
    top = np.float32(levels - 1)

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(512)
        inverses = floats(16)
        middles = floats(16)
        halves = ints(16)
        n = n_rows * row_length // 32
        status = FINE
        for first in range(0, n, 16):
            blocks = min(16, n - first)
            source = padded(x, 32 * first, 32 * blocks, 512, spare)
            high = row_largest(source, 32)
            low = row_smallest(source, 32)
            # Adding zero turns the -0.0 of a block of nothing into the 0.0 that ggml starts from.
            peak = where(high > -low, high, low) + _ZERO
            tied = (high == -low) & (high != _ZERO)
            if any_of(tied):
                store(inverses, 0, peak)
                ties = bits_of(tied)
                for b in range(16):
                    if ties >> b & 1:
                        inverses[b] = first_of_magnitude(move(source, 32 * b), lane(high, b))
                peak = load(inverses, 0)
            d = peak / lowest
            inverse = _ONE / d
            half = half_lanes(d)
            status |= fits(half)
            tiny = absolute(inverse) == _INFINITE
            store(inverses, 0, where(tiny, _ZERO, inverse))
            # Where 1/d overflows all codes become 0, but where d itself is 0 the middle one.
            store(middles, 0, where(tiny & (d != _ZERO), _ZERO, splat(middle)))
            store(halves, 0, half)
            for b in range(blocks):
                target = move(out, (first + b) * size)
                inverse = splat(inverses[b])
                shift = splat(middles[b])
                as_halves(target)[0] = halves[b]
                codes = load(source, 32 * b) * inverse + shift
                other = load(source, 32 * b + 16) * inverse + shift
                pack(cut(smaller(codes, splat(top))), cut(smaller(other, splat(top))), target)
        return status

    return kernel


def by_span(levels: int):
    """Return the kernel of Q4_1 or Q5_1: the smallest element becomes code 0, the largest the highest."""
    size, pack = packing(levels, signed=False)
    top = np.float32(levels - 1)
    half_step = np.float32(0.5)

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(512)
        inverses = floats(16)
        lows = floats(16)
        halves = ints(32)
        n = n_rows * row_length // 32
        status = FINE
        for first in range(0, n, 16):
            blocks = min(16, n - first)
            source = padded(x, 32 * first, 32 * blocks, 512, spare)
            low = row_smallest(source, 32)
            # Adding zero: the span of a block of nothing may come out as -0.0.
            d = (row_largest(source, 32) - low) / top + _ZERO
            nothing = low == _ZERO
            if any_of(nothing):
                # Of 0.0 and -0.0 the first counts: its sign is stored.
                store(lows, 0, low)
                zeros = bits_of(nothing)
                for b in range(16):
                    if zeros >> b & 1:
                        lows[b] = first_of_magnitude(move(source, 32 * b), _ZERO)
                low = load(lows, 0)
            inverse = _ONE / d
            half = half_lanes(d)
            minimum = half_lanes(low)
            status |= fits(half) | fits(minimum)
            # Of a block of equals, or of a span so small that 1/d overflows, all codes become 0.
            store(inverses, 0, where(inverse == _INFINITE, _ZERO, inverse))
            store(lows, 0, low)
            store(halves, 0, half)
            store(halves, 16, minimum)
            for b in range(blocks):
                target = move(out, (first + b) * size)
                inverse = splat(inverses[b])
                low = splat(lows[b])
                as_halves(target)[0] = halves[b]
                as_halves(target)[1] = halves[16 + b]
                codes = (load(source, 32 * b) - low) * inverse + half_step
                other = (load(source, 32 * b + 16) - low) * inverse + half_step
                pack(cut(smaller(codes, splat(top))), cut(smaller(other, splat(top))), target)
        return status

    return kernel


KERNELS = {
    "Q8_0": (q8_0, q8_0),
    "Q4_0": (by_peak(16), None),
    "Q4_1": (by_span(16), None),
    "Q5_0": (by_peak(32), None),
    "Q5_1": (by_span(32), None),
}
