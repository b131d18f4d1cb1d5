"""Q4_0, Q4_1, Q5_0, Q5_1 compiled, with importance: searches that take sixteen blocks side by side.

They are those of `quantcore.methods.kquant`; layout and numpy form are in `quantcore.formats.gguf_legacy`.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import half_lanes
from quantcore.kernels.cpu._linesearch import (
    INVERSE,
    MINIMUM,
    ORIGIN,
    SCALE,
    SETS,
    STATE,
    line_search,
    round_above,
)
from quantcore.kernels.cpu._ratiosearch import ratio_search, rounding
from quantcore.kernels.lanes import (
    cut,
    part,
    root,
    shared,
    splat,
    splat_int,
    where,
)
from quantcore.kernels.memory import as_halves, byte_room, floats, ints, load, move, store
from quantcore.kernels.shuffles import transpose
from quantcore.kernels.status import FINE, TOO_LARGE

_ZERO = np.float32(0)
_COLUMNS = SETS * 512  # sixteen blocks of 32 for each set
_STATES = SETS * STATE
_HALVES = SETS * 32


@shared
def mean_squares(x, n_rows, row_length, out):
    """Put the mean square of up to 16 rows into `out`, each added up in order."""
    if n_rows == 16:
        columns = floats(256)
        total = splat(_ZERO)
        for start in range(0, row_length, 16):
            transpose(move(x, start), row_length, columns)
            for i in range(16):
                xi = load(columns, 16 * i)
                total = total + xi * xi
        store(out, 0, total / np.float32(row_length))
    else:
        for row in range(n_rows):
            total = _ZERO
            for i in range(row * row_length, (row + 1) * row_length):
                total += x[i] * x[i]
            out[row] = total / np.float32(row_length)


@part
def gather_blocks(x, importance, means, first, blocks, row_length, columns, w):
    """Put sixteen blocks and their weights into columns; lanes beyond `blocks` hold nothing.

    A weight is the importance times the root of mean square of the row + square of the element.
    """
    source = floats(512)
    counts = floats(512)
    mean = floats(16)
    per_row = row_length // 32
    for b in range(16):
        block = first + b
        place = 32 * (block % per_row)
        store(counts, 32 * b, load(importance, place))
        store(counts, 32 * b + 16, load(importance, place + 16))
        if b < blocks:
            mean[b] = means[block // per_row]
            store(source, 32 * b, load(x, 32 * block))
            store(source, 32 * b + 16, load(x, 32 * block + 16))
        else:
            mean[b] = _ZERO
            store(source, 32 * b, splat(_ZERO))
            store(source, 32 * b + 16, splat(_ZERO))
    transpose(source, 32, columns)
    transpose(move(source, 16), 32, move(columns, 256))
    transpose(counts, 32, w)
    transpose(move(counts, 16), 32, move(w, 256))
    for i in range(32):
        xi = load(columns, 16 * i)
        store(w, 16 * i, load(w, 16 * i) * root(load(mean, 0) + xi * xi))


def packing(levels: int, signed: bool):
    """Return the bytes of a block, and a part that writes blocks whose codes are given as columns."""
    header = 2 if signed else 4
    fifths = levels == 32
    size = header + (20 if fifths else 16)

    @part
    def pack(codes, halves, blocks, target):
        """Write `blocks` blocks from `codes` (32 rows of 16) and `halves` (scales, then minima)."""
        word = splat_int(0)
        words = ints(16)
        nibbles = byte_room(256)
        for i in range(16):
            low = cut(load(codes, 16 * i))
            high = cut(load(codes, 16 * i + 256))
            if fifths:
                word = word | ((low >> 4) << i) | ((high >> 4) << (i + 16))
                low = low & 15
            store(nibbles, 16 * i, low | (high << 4))
        store(words, 0, word)
        for b in range(blocks):
            place = move(target, b * size)
            as_halves(place)[0] = halves[b]
            if not signed:
                as_halves(place)[1] = halves[16 + b]
            if fifths:
                fifth = as_halves(move(place, header))
                fifth[0] = words[b] & 0xFFFF
                fifth[1] = (words[b] >> 16) & 0xFFFF
            for i in range(16):
                place[size - 16 + i] = nibbles[16 * i + b]

    return size, pack


def scales_of(levels: int):
    """Return what fits `SETS` times 16 columns of 32 by a scale: codes and scales, as float16 bits."""
    half = levels // 2
    search = ratio_search(32, half)
    round_signed = rounding(half)
    middle = np.float32(half)

    @shared
    def encode(x, w, codes, halves):
        fit = floats(32)
        for k in range(SETS):
            at = 512 * k
            # What the search needs as room becomes the codes.
            search(move(x, at), move(w, at), move(codes, at), fit)
            inverse = load(fit, 16)
            for i in range(at, at + 512, 16):
                code = round_signed(load(x, i), inverse) + middle
                store(codes, i, where(inverse == _ZERO, _ZERO, code))
            store(halves, 32 * k, half_lanes(load(fit, 0)))

    return encode


def lines_of(levels: int):
    """Return what fits `SETS` times 16 columns of 32 by scale and minimum, as `scales_of` does."""
    search = line_search(32, by_magnitude=False)
    top = np.float32(levels - 1)

    @shared
    def encode(x, w, codes, halves):
        state = floats(_STATES)
        search(x, w, codes, state, top, np.float32(-0.9), np.float32(0.05), 36)
        for k in range(SETS):
            found = move(state, k * STATE)
            inverse = load(found, INVERSE)
            origin = load(found, ORIGIN)
            for i in range(512 * k, 512 * k + 512, 16):
                store(codes, i, round_above(load(x, i), origin, inverse, top))
            store(halves, 32 * k, half_lanes(load(found, SCALE)))
            store(halves, 32 * k + 16, half_lanes(load(found, MINIMUM)))

    return encode


def kernel_of(levels: int, signed: bool):
    """Return the kernel of one of the four types."""
    size, pack = packing(levels, signed)
    encode = scales_of(levels) if signed else lines_of(levels)

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        means = floats(16)
        columns = floats(_COLUMNS)
        w = floats(_COLUMNS)
        codes = floats(_COLUMNS)
        halves = ints(_HALVES)
        per_row = row_length // 32
        status = FINE
        for top_row in range(0, n_rows, 16):
            rows = min(16, n_rows - top_row)
            source = move(x, top_row * row_length)
            target = move(out, top_row * per_row * size)
            mean_squares(source, rows, row_length, means)
            for start in range(0, rows * per_row, SETS * 16):
                for k in range(SETS):
                    first = start + 16 * k
                    blocks = rows * per_row - first
                    at = 512 * k
                    part_x, part_w = move(columns, at), move(w, at)
                    gather_blocks(source, importance, means, first, blocks, row_length, part_x, part_w)
                encode(columns, w, codes, halves)
                for k in range(SETS):
                    first = start + 16 * k
                    blocks = min(16, rows * per_row - first)
                    found = move(halves, 32 * k)
                    for b in range(blocks):
                        if (found[b] & 0x7C00) == 0x7C00:
                            status = TOO_LARGE
                        if not signed and (found[16 + b] & 0x7C00) == 0x7C00:
                            status = TOO_LARGE
                    pack(move(codes, 512 * k), found, blocks, move(target, first * size))
        return status

    return kernel


KERNELS = {
    "Q4_0": (None, kernel_of(16, signed=True)),
    "Q4_1": (None, kernel_of(16, signed=False)),
    "Q5_0": (None, kernel_of(32, signed=True)),
    "Q5_1": (None, kernel_of(32, signed=False)),
}
