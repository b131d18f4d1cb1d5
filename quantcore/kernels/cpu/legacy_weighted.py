"""Q4_0, Q4_1, Q5_0, Q5_1 compiled, with importance: searches that take sixteen blocks side by side.

They are those of `quantcore.methods.kquant`; layout and numpy form are in `quantcore.formats.gguf_legacy`.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import clamp, half_lanes, larger, smaller
from quantcore.kernels.lanes import (
    absolute,
    any_of,
    as_halves,
    byte_room,
    cut,
    floats,
    ints,
    load,
    move,
    nearest,
    part,
    root,
    shared,
    splat,
    splat_int,
    store,
    transpose,
    where,
)
from quantcore.kernels.status import FINE, TOO_LARGE

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITE = np.float32(np.inf)
_NOTHING = np.float32(1e-15)  # blocks below this magnitude count as zero


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


def ratio_search(half: int):
    """Return the search of `quantcore.methods.kquant.scale_by_ratio` over 16 columns of 32."""
    lowest = np.float32(-half)
    top = np.float32(half - 1)
    middle = np.float32(half)
    steps = [i for i in range(-9, 10) if i != 0]
    reach = np.array(
        [np.float32(-half), *(-(np.float32(half) + np.float32(0.1) * np.float32(i)) for i in steps)],
        dtype=np.float32,
    )
    tries = len(reach)

    @shared
    def search(x, w, codes):
        """Return the scales; `codes` becomes the codes that won."""
        wx = floats(512)
        peak = splat(_ZERO)
        size = splat(_ZERO)
        for i in range(32):
            xi = load(x, 16 * i)
            store(wx, 16 * i, load(w, 16 * i) * xi)
            above = absolute(xi) > size
            peak = where(above, xi, peak)
            size = where(above, absolute(xi), size)
        scale = splat(_ZERO)
        best = splat(_ZERO)
        inverse = splat(_ZERO)
        for t in range(tries):
            trial = reach[t] / peak
            sum_lx = splat(_ZERO)
            sum_l2 = splat(_ZERO)
            for i in range(32):
                code = clamp(nearest(trial * load(x, 16 * i)), lowest, top)
                sum_lx = sum_lx + load(wx, 16 * i) * code
                sum_l2 = sum_l2 + load(w, 16 * i) * code * code
            if t == 0:
                # The first try counts even if it explains nothing.
                scale = where(sum_l2 != _ZERO, sum_lx / sum_l2, _ZERO)
                best = scale * sum_lx
                inverse = trial
            else:
                wins = (sum_l2 > _ZERO) & (sum_lx * sum_lx > best * sum_l2)
                if any_of(wins):
                    ratio = sum_lx / sum_l2
                    scale = where(wins, ratio, scale)
                    best = where(wins, ratio * sum_lx, best)
                    inverse = where(wins, trial, inverse)
        nothing = size < _NOTHING
        for i in range(32):
            code = clamp(nearest(inverse * load(x, 16 * i)), lowest, top) + middle
            store(codes, 16 * i, where(nothing, _ZERO, code))
        return where(nothing, _ZERO, scale)

    return search


def line_search(top_code: int):
    """Return the search of `quantcore.methods.kquant.scale_and_minimum` over 16 columns of 32."""
    top = np.float32(top_code)
    reach = np.array(
        [np.float32(-0.9) + np.float32(0.05) * np.float32(i) + np.float32(top_code) for i in range(37)],
        dtype=np.float32,
    )
    tries = len(reach)

    @part
    def over(number, span):
        """Return number / span; where that overflows 0, with which all codes become 0."""
        inverse = number / span
        return where(inverse == _INFINITE, _ZERO, inverse)

    @shared
    def search(x, w, codes, out):
        """Put scales and minima into `out`; `codes` becomes the codes that won."""
        low = load(x, 0)
        high = low
        sum_w = load(w, 0)
        sum_x = sum_w * low
        for i in range(1, 32):
            xi = load(x, 16 * i)
            wi = load(w, 16 * i)
            low = smaller(low, xi)
            high = larger(high, xi)
            sum_w = sum_w + wi
            sum_x = sum_x + wi * xi
        minimum = where(low > _ZERO, _ZERO, low)
        flat = high <= minimum
        start = minimum
        inverse = over(top, high - minimum)
        scale = over(_ONE, inverse)
        error = splat(_ZERO)
        for i in range(32):
            xi = load(x, 16 * i)
            code = clamp(nearest(inverse * (xi - minimum)), _ZERO, top)
            diff = scale * code + minimum - xi
            error = error + load(w, 16 * i) * (diff * diff)
        for t in range(tries):
            trial = over(reach[t], high - minimum)
            sum_l = splat(_ZERO)
            sum_l2 = splat(_ZERO)
            sum_xl = splat(_ZERO)
            for i in range(32):
                xi = load(x, 16 * i)
                code = clamp(nearest(trial * (xi - minimum)), _ZERO, top)
                store(codes, 16 * i, code)
                wl = load(w, 16 * i) * code
                sum_l = sum_l + wl
                sum_l2 = sum_l2 + wl * code
                sum_xl = sum_xl + wl * xi
            determinant = sum_w * sum_l2 - sum_l * sum_l
            new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            new_minimum = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            above = new_minimum > _ZERO
            new_minimum = where(above, _ZERO, new_minimum)
            new_scale = where(above, sum_xl / sum_l2, new_scale)
            new_error = splat(_ZERO)
            for i in range(32):
                diff = new_scale * load(codes, 16 * i) + new_minimum - load(x, 16 * i)
                new_error = new_error + load(w, 16 * i) * (diff * diff)
            wins = (determinant > _ZERO) & (new_error < error)
            start = where(wins, minimum, start)
            inverse = where(wins, trial, inverse)
            error = where(wins, new_error, error)
            scale = where(wins, new_scale, scale)
            minimum = where(wins, new_minimum, minimum)
        for i in range(32):
            code = clamp(nearest(inverse * (load(x, 16 * i) - start)), _ZERO, top)
            store(codes, 16 * i, where(flat, _ZERO, code))
        store(out, 0, where(flat, _ZERO, scale))
        store(out, 16, minimum)

    return search


def kernel_of(levels: int, signed: bool):
    """Return the kernel of one of the four types."""
    size, pack = packing(levels, signed)
    ratio = ratio_search(levels // 2)
    line = line_search(levels - 1)

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        means = floats(16)
        columns = floats(512)
        w = floats(512)
        codes = floats(512)
        fit = floats(32)
        halves = ints(32)
        per_row = row_length // 32
        status = FINE
        for top_row in range(0, n_rows, 16):
            rows = min(16, n_rows - top_row)
            source = move(x, top_row * row_length)
            target = move(out, top_row * per_row * size)
            mean_squares(source, rows, row_length, means)
            for first in range(0, rows * per_row, 16):
                blocks = min(16, rows * per_row - first)
                gather_blocks(source, importance, means, first, blocks, row_length, columns, w)
                if signed:
                    d = ratio(columns, w, codes)
                else:
                    line(columns, w, codes, fit)
                    d = load(fit, 0)
                    store(halves, 16, half_lanes(load(fit, 16)))
                store(halves, 0, half_lanes(d))
                for b in range(blocks):
                    if (halves[b] & 0x7C00) == 0x7C00:
                        status = TOO_LARGE
                    if not signed and (halves[16 + b] & 0x7C00) == 0x7C00:
                        status = TOO_LARGE
                pack(codes, halves, blocks, move(target, first * size))
        return status

    return kernel


KERNELS = {
    "Q4_0": (None, kernel_of(16, signed=True)),
    "Q4_1": (None, kernel_of(16, signed=False)),
    "Q5_0": (None, kernel_of(32, signed=True)),
    "Q5_1": (None, kernel_of(32, signed=False)),
}
