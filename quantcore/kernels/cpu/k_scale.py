"""Q6_K and Q3_K compiled; their layout and numpy form are in `quantcore.formats.gguf_k_scale`."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import clamp, fits, half_lanes, half_values
from quantcore.kernels.cpu._descent import scale_by_descent
from quantcore.kernels.cpu._linesearch import over
from quantcore.kernels.cpu._ratiosearch import NOTHING, ratio_search, rounding, signed_peak
from quantcore.kernels.cpu._superblocks import (
    BATCH,
    SUPER,
    batch,
    by_block,
    clear,
    gathering,
    one_bit_plane,
    put_rows,
    square_sums,
    two_bit_plane,
    weigh,
)
from quantcore.kernels.lanes import absolute, cut, nearest, part, shared, splat, where
from quantcore.kernels.memory import as_halves, floats, ints, load, move, store
from quantcore.kernels.status import FINE

_ZERO = np.float32(0)
_ONE = np.float32(1)

# What a batch keeps of the searches: a table of 256 groups for each of these.
_SCALES, _INVERSES, _TOTALS = (256 * i for i in range(3))
_KEPT = 768

_gather = gathering(16)


def rounding_by_step(half: int):
    """Return a function that puts the codes of one super-block, with the scales as stored, into `codes`."""
    round_signed = rounding(half)
    low = np.float32(-half)
    high = np.float32(half - 1)
    middle = np.float32(half)

    @shared
    def round_block(x, b, steps, found, codes):
        for g in range(16):
            step = steps[16 * g + b]
            xi = load(x, 16 * g)
            if step == _ZERO:
                # The codes mean nothing then, but they are stored: those of the search, 0 if there are none.
                inverse = found[_INVERSES + 16 * b + g]
                code = round_signed(xi, inverse) + middle
                if inverse == _ZERO:
                    code = splat(_ZERO)
            else:
                code = clamp(nearest(xi / step), low, high) + middle
            store(codes, 16 * g, cut(code))

    return round_block


@part
def weigh_groups(source, importance, mean, w):
    """Put importance * sqrt(mean + x**2) of one super-block into columns `w`."""
    weighed = floats(256)
    weigh(source, importance, mean, weighed)
    _gather(weighed, w)


@shared
def six_bit_plane(codes, target):
    """Write the low four bits of 256 codes: byte `i` of a half holds elements i and i + 64."""
    for half in range(2):
        for at in range(0, 64, 16):
            place = move(codes, 128 * half + at)
            store(target, 64 * half + at, (load(place, 0) & 15) | ((load(place, 64) & 15) << 4))


def six_bits(*, weighted: bool):
    """Return the kernel of Q6_K; its weights are the squares, or the bare importance."""
    search = ratio_search(16, 32)
    round_block = rounding_by_step(32)

    @part
    def search_all(source, blocks, first, per_row, importance, found):
        columns = floats(256)
        w = floats(256)
        wx = floats(256)
        fit = floats(32)
        for b in range(blocks):
            _gather(move(source, SUPER * b), columns)
            if weighted:
                _gather(move(importance, SUPER * ((first + b) % per_row)), w)
            else:
                for i in range(0, 256, 16):
                    xi = load(columns, i)
                    store(w, i, xi * xi)
            search(columns, w, wx, fit)
            store(found, _SCALES + 16 * b, load(fit, 0))
            store(found, _INVERSES + 16 * b, load(fit, 16))

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(4096)
        found = floats(768)
        scales = floats(256)
        rows = ints(256)
        halves = ints(16)
        peaks = floats(16)
        codes = ints(256)
        per_row = row_length // SUPER
        n = n_rows * per_row
        status = FINE
        for first in range(0, n, BATCH):
            blocks = min(BATCH, n - first)
            source = batch(x, first, blocks, spare)
            if blocks < BATCH:
                clear(found, _KEPT)
            search_all(source, blocks, first, per_row, importance, found)
            by_block(16, move(found, _SCALES), scales)
            peak = signed_peak(scales, 16)
            inverse = np.float32(-128) / peak
            d = half_lanes(over(_ONE, inverse))
            store(halves, 0, d)
            store(peaks, 0, absolute(peak))
            step = half_values(d)
            for i in range(0, 256, 16):
                s = clamp(nearest(load(scales, i) * inverse), np.float32(-128), np.float32(127))
                # Without a peak there is no scale; the block is cleared below.
                s = where(absolute(peak) >= NOTHING, s, _ZERO)
                store(rows, i, cut(s))
                store(scales, i, step * s)
            for b in range(blocks):
                target = move(out, (first + b) * 210)
                if peaks[b] < NOTHING:
                    for i in range(210):
                        target[i] = 0
                else:
                    round_block(move(source, SUPER * b), b, scales, found, codes)
                    six_bit_plane(codes, target)
                    two_bit_plane(codes, 4, move(target, 128))
                    put_rows(rows, 16, b, move(target, 192))
                    as_halves(move(target, 208))[0] = halves[b]
            status |= fits(d)
        return status

    return kernel


@shared
def three_bit_scales(s, rows):
    """Put the bytes of 16 scales of 6 bits each, rows of sixteen, into 12 rows."""
    for g in range(8):
        low = cut(load(s, 16 * g))
        high = cut(load(s, 16 * g + 128))
        store(rows, 16 * g, (low & 15) | ((high & 15) << 4))
    for g in range(4):
        byte = cut(load(s, 16 * g)) >> 4
        for quarter in range(1, 4):
            byte = byte | ((cut(load(s, 16 * g + 64 * quarter)) >> 4) << (2 * quarter))
        store(rows, 16 * g + 128, byte)


@shared
def put_three_bits(codes, rows, half, b, target):
    """Write one super-block of Q3_K."""
    one_bit_plane(codes, 2, target)
    two_bit_plane(codes, 0, move(target, 32))
    put_rows(rows, 12, b, move(target, 96))
    as_halves(move(target, 108))[0] = half


@shared
def three_bits(x, n_rows, row_length, importance, tables, out):
    """Q3_K without importance: codes and scales are found by descent."""
    spare = floats(4096)
    columns = floats(512)
    w = floats(512)
    kept = floats(4096)
    row = floats(16)
    found = floats(256)
    scales = floats(256)
    s = floats(256)
    rows = ints(256)
    halves = ints(16)
    whole = ints(256)
    n = n_rows * row_length // SUPER
    status = FINE
    for first in range(0, n, BATCH):
        blocks = min(BATCH, n - first)
        source = batch(x, first, blocks, spare)
        if blocks < BATCH:
            clear(found, 256)
        for b in range(0, blocks, 2):
            _gather(move(source, SUPER * b), columns)
            _gather(move(source, SUPER * (b + 1)), move(columns, SUPER))
            _descend(columns, w, move(kept, SUPER * b), move(found, 16 * b), 16)
        by_block(16, found, scales)
        peak = signed_peak(scales, 16)
        inverse = over(np.float32(-32), peak)
        d = half_lanes(over(_ONE, inverse))
        store(halves, 0, d)
        step = half_values(d)
        for i in range(0, 256, 16):
            code = clamp(nearest(load(scales, i) * inverse), np.float32(-32), np.float32(31)) + np.float32(32)
            code = where(inverse != _ZERO, code, _ZERO)
            store(s, i, code)
            store(scales, i, step * (code - np.float32(32)))
        three_bit_scales(s, rows)
        for b in range(blocks):
            for g in range(16):
                step_ = scales[16 * g + b]
                if step_ == _ZERO:
                    # The codes mean nothing then, but they are stored: those of the search.
                    for i in range(16):
                        row[i] = kept[SUPER * b + 16 * i + g]
                    code = load(row, 0)
                else:
                    code = nearest(load(source, SUPER * b + 16 * g) / step_)
                    code = clamp(code, np.float32(-4), np.float32(3))
                store(whole, 16 * g, cut(code + np.float32(4)))
            put_three_bits(whole, rows, halves[b], b, move(out, (first + b) * 110))
        status |= fits(d)
    return status


_descend = scale_by_descent(16, 4)
_search = ratio_search(16, 4)
_search_scales = ratio_search(16, 32)
_round_scales = rounding(32)
_round_block = rounding_by_step(4)


@shared
def three_bits_weighted(x, n_rows, row_length, importance, tables, out):
    """Q3_K with importance: the scales are fitted like weights, by the weight of each group."""
    spare = floats(4096)
    columns = floats(256)
    w = floats(256)
    wx = floats(256)
    fit = floats(32)
    found = floats(768)
    scales = floats(256)
    totals = floats(256)
    s = floats(256)
    rows = ints(256)
    halves = ints(16)
    means = floats(16)
    codes = ints(256)
    per_row = row_length // SUPER
    n = n_rows * per_row
    status = FINE
    for first in range(0, n, BATCH):
        blocks = min(BATCH, n - first)
        source = batch(x, first, blocks, spare)
        if blocks < BATCH:
            clear(found, _KEPT)
        store(means, 0, np.float32(2) * square_sums(source) / np.float32(SUPER))
        for b in range(blocks):
            _gather(move(source, SUPER * b), columns)
            place = move(importance, SUPER * ((first + b) % per_row))
            weigh_groups(move(source, SUPER * b), place, means[b], w)
            total = load(w, 0)
            for i in range(16, 256, 16):
                total = total + load(w, i)
            _search(columns, w, wx, fit)
            store(found, _SCALES + 16 * b, load(fit, 0))
            store(found, _INVERSES + 16 * b, load(fit, 16))
            store(found, _TOTALS + 16 * b, total)
        by_block(16, move(found, _SCALES), scales)
        by_block(16, move(found, _TOTALS), totals)
        _search_scales(scales, totals, wx, fit)
        inverse = load(fit, 16)
        d = half_lanes(load(fit, 0))
        store(halves, 0, d)
        step = half_values(d)
        for i in range(0, 256, 16):
            code = _round_scales(load(scales, i), inverse) + np.float32(32)
            code = where(inverse == _ZERO, _ZERO, code)
            store(s, i, code)
            store(scales, i, step * (code - np.float32(32)))
        three_bit_scales(s, rows)
        for b in range(blocks):
            _round_block(move(source, SUPER * b), b, scales, found, codes)
            put_three_bits(codes, rows, halves[b], b, move(out, (first + b) * 110))
        status |= fits(d)
    return status


KERNELS = {
    "Q6_K": (six_bits(weighted=False), six_bits(weighted=True)),
    "Q3_K": (three_bits, three_bits_weighted),
}
