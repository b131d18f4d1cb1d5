"""TQ1_0, TQ2_0, Q2_0 and Q1_0 compiled.

Their layout and numpy form are in `quantcore.formats.gguf_ternary` and `gguf_bits`.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import fits, half_bits, half_lanes, larger, padded
from quantcore.kernels.lanes import absolute, bits_of, ones, part, shared, splat
from quantcore.kernels.memory import as_halves, floats, ints, load, move, store
from quantcore.kernels.shuffles import transpose
from quantcore.kernels.status import FINE, TOO_LARGE

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_INFINITE = np.float32(np.inf)


@part
def magnitude(x, count, room):
    """Return the largest magnitude of `count` elements."""
    largest = absolute(load(x, 0))
    for i in range(16, count, 16):
        largest = larger(largest, absolute(load(x, i)))
    store(room, 0, largest)
    for half in (8, 4, 2, 1):
        for i in range(half):
            room[i] = max(room[i], room[i + half])
    return room[0]


@part
def inverse_of(d):
    """Return 1 / d; 0 where d is 0 or so small that this is beyond float32."""
    inverse = np.float32(1) / d
    return _ZERO if inverse == _INFINITE else inverse


@part
def three_levels(x, inverse):
    """Return 0, 1 or 2 for what is nearest to -1, 0 or 1 inverses, halves away from zero."""
    y = x * inverse
    return ones(y >= _HALF) + ones(~(y <= -_HALF))


@part
def put_scale(d, target):
    half = half_bits(d)
    as_halves(target)[0] = half
    return TOO_LARGE if (half & 0x7C00) == 0x7C00 else FINE


@part
def digits(number):
    """Return numbers of five digits of base 3 as 256ths of 243, rounded up: ceil(256 / 243 * number)."""
    return number + (((number * 13 + 242) * 4316) >> 20)


@part
def put_digits(x, inverse, width, target):
    """Write sixteen bytes of five digits each, `width` elements apart."""
    number = three_levels(load(x, 0), inverse)
    for k in range(1, 5):
        number = number * 3 + three_levels(load(x, k * width), inverse)
    store(target, 0, digits(number))


@shared
def tq1_0(x, n_rows, row_length, importance, tables, out):
    room = floats(16)
    codes = ints(16)
    status = FINE
    for block in range(n_rows * row_length // 256):
        source = move(x, block * 256)
        target = move(out, block * 54)
        d = magnitude(source, 256, room)
        inverse = splat(inverse_of(d))
        status |= put_scale(d, move(target, 52))
        put_digits(source, inverse, 32, target)
        put_digits(move(source, 16), inverse, 32, move(target, 16))
        put_digits(move(source, 160), inverse, 16, move(target, 32))
        store(codes, 0, three_levels(load(source, 240), inverse))
        for i in range(4):
            number = 3 * (codes[i + 12] + 3 * (codes[i + 8] + 3 * (codes[i + 4] + 3 * codes[i])))
            target[48 + i] = number + (((number * 13 + 242) * 4316) >> 20)
    return status


@shared
def tq2_0(x, n_rows, row_length, importance, tables, out):
    room = floats(16)
    status = FINE
    for block in range(n_rows * row_length // 256):
        source = move(x, block * 256)
        target = move(out, block * 66)
        d = magnitude(source, 256, room)
        inverse = splat(inverse_of(d))
        status |= put_scale(d, move(target, 64))
        for half in range(2):
            for at in range(0, 32, 16):
                place = move(source, 128 * half + at)
                byte = three_levels(load(place, 0), inverse)
                for k in range(1, 4):
                    byte = byte | (three_levels(load(place, 32 * k), inverse) << (2 * k))
                store(target, 32 * half + at, byte)
    return status


@part
def spread(bits):
    """Return 16 bits with a zero before each."""
    bits = np.uint32(bits)
    bits = (bits | (bits << np.uint32(8))) & np.uint32(0x00FF00FF)
    bits = (bits | (bits << np.uint32(4))) & np.uint32(0x0F0F0F0F)
    bits = (bits | (bits << np.uint32(2))) & np.uint32(0x33333333)
    return (bits | (bits << np.uint32(1))) & np.uint32(0x55555555)


@shared
def q2_0(x, n_rows, row_length, importance, tables, out):
    room = floats(16)
    status = FINE
    for block in range(n_rows * row_length // 64):
        source = move(x, block * 64)
        target = as_halves(move(out, block * 18))
        d = magnitude(source, 64, room)
        inverse = inverse_of(d)
        # Of a block so small that 1 / d overflows all codes become 0, but where d itself is 0 the middle one.
        lost = inverse == _ZERO and d != _ZERO
        status |= put_scale(d, move(out, block * 18))
        for i in range(4):
            y = load(source, 16 * i) * inverse
            above = bits_of(y >= _HALF)
            middle = 0 if lost else bits_of(~(y <= -_HALF)) & ~above
            word = spread(middle) | (spread(above) << np.uint32(1))
            target[1 + 2 * i] = word
            target[2 + 2 * i] = word >> np.uint32(16)
    return status


@shared
def q1_0(x, n_rows, row_length, importance, tables, out):
    spare = floats(2048)
    columns = floats(256)
    halves = ints(16)
    n = n_rows * row_length // 128
    status = FINE
    for first in range(0, n, 16):
        blocks = min(16, n - first)
        source = padded(x, 128 * first, 128 * blocks, 2048, spare)
        total = splat(_ZERO)
        for at in range(0, 128, 16):
            transpose(move(source, at), 128, columns)
            for i in range(16):
                total = total + absolute(load(columns, 16 * i))
        half = half_lanes(total / np.float32(128))
        status |= fits(half)
        store(halves, 0, half)
        for b in range(blocks):
            target = as_halves(move(out, (first + b) * 18))
            target[0] = halves[b]
            for i in range(8):
                target[1 + i] = bits_of(load(source, 128 * b + 16 * i) >= _ZERO)
    return status


KERNELS = {
    "TQ1_0": (tq1_0, tq1_0),
    "TQ2_0": (tq2_0, tq2_0),
    "Q2_0": (q2_0, q2_0),
    "Q1_0": (q1_0, q1_0),
}
