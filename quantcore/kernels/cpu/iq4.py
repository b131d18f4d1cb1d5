"""IQ4_NL and IQ4_XS compiled: the search of `quantcore.methods.uneven`, sixteen groups of 32 side by side."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import clamp, fits, half_lanes, larger, padded
from quantcore.kernels.cpu._superblocks import SUPER, batch, square_sums, weigh
from quantcore.kernels.lanes import (
    absolute,
    any_of,
    nearest,
    ones,
    part,
    root,
    shared,
    splat,
    splat_int,
    to_int,
    where,
)
from quantcore.kernels.memory import as_halves, floats, ints, load, move, store
from quantcore.kernels.shuffles import transpose
from quantcore.kernels.status import FINE, TOO_LARGE

_ZERO = np.float32(0)
_ONE = np.float32(1)
_INFINITE = np.float32(np.inf)
_NOTHING = np.float32(1e-15)  # groups below this magnitude count as zero
_LOWEST = np.float32(-127)
_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)
_MIDDLES = (_LEVELS[1:] + _LEVELS[:-1]) / np.float32(2)
_STEPS = _LEVELS[1:] - _LEVELS[:-1]


@part
def level(quotient):
    """Return the nearest level, of two equally near ones the upper."""
    nearest_one = splat(_LOWEST)
    for k in range(15):
        nearest_one = nearest_one + where(quotient >= _MIDDLES[k], splat(_STEPS[k]), _ZERO)
    return nearest_one


@part
def code(quotient):
    """Return the index of the nearest level; what is not a number gets the highest, as with ggml."""
    index = splat_int(0)
    for k in range(15):
        index = index + ones(~(quotient < _MIDDLES[k]))
    return index


@part
def signed_peak(x):
    """Return the first of the 32 elements of each column that has the largest magnitude."""
    size = splat(_ZERO)
    peak = size
    for i in range(32):
        xi = load(x, 16 * i)
        more = absolute(xi) > size
        size = where(more, absolute(xi), size)
        peak = where(more, xi, peak)
    return peak


@part
def keep_better(sum_lx, sum_l2, best, scale):
    """Return what is explained and the scale, those of the new sums in the lanes where these explain more."""
    wins = (sum_l2 > _ZERO) & (sum_lx * sum_lx > best * sum_l2)
    ratio = sum_lx / sum_l2
    return where(wins, ratio * sum_lx, best), where(wins, ratio, scale)


@shared
def prepare_terms(x, w, early, late, terms):
    """Put what an element adds to the sums into five rows of `terms`, for two levels and what parts them.

    The quotients of the tries from -7 to 7 pass one middle between two levels at most. Rows: that middle,
    w l x above and below it, w l l above and below it.
    """
    for i in range(32):
        xi = load(x, 16 * i)
        wi = load(w, 16 * i)
        first = level(early * xi)
        last = level(late * xi)
        upper = larger(first, last)
        lower = where(first < last, first, last)
        w_upper = wi * upper
        w_lower = wi * lower
        row = move(terms, 80 * i)
        store(row, 0, (upper + lower) * np.float32(0.5))
        store(row, 16, w_upper * xi)
        store(row, 32, w_lower * xi)
        store(row, 48, w_upper * upper)
        store(row, 64, w_lower * lower)


@shared
def search(x, w, terms, out):
    """Fit scales to 16 columns of 32; `out` gets 16 of them."""
    peak = signed_peak(x)
    live = absolute(peak) >= _NOTHING
    inverse = _ONE / (peak / -_LOWEST)
    sum_lx = splat(_ZERO)
    sum_l2 = splat(_ZERO)
    for i in range(32):
        xi = load(x, 16 * i)
        q = level(inverse * xi)
        wq = load(w, 16 * i) * q
        sum_lx = sum_lx + wq * xi
        sum_l2 = sum_l2 + wq * q
    scale = where(sum_l2 > _ZERO, sum_lx / sum_l2, _ZERO)
    best = scale * sum_lx
    prepare_terms(x, w, np.float32(-134) / peak, np.float32(-120) / peak, terms)
    for five in range(3):
        # Five tries at a time share what they read.
        first = np.float32(-134 + 5 * five)
        inverse0 = first / peak
        inverse1 = (first + np.float32(1)) / peak
        inverse2 = (first + np.float32(2)) / peak
        inverse3 = (first + np.float32(3)) / peak
        inverse4 = (first + np.float32(4)) / peak
        lx0 = lx1 = lx2 = lx3 = lx4 = splat(_ZERO)
        ll0 = ll1 = ll2 = ll3 = ll4 = splat(_ZERO)
        for i in range(32):
            row = move(terms, 80 * i)
            xi = load(x, 16 * i)
            middle = load(row, 0)
            lx_upper = load(row, 16)
            lx_lower = load(row, 32)
            ll_upper = load(row, 48)
            ll_lower = load(row, 64)
            above = inverse0 * xi >= middle
            lx0 = lx0 + where(above, lx_upper, lx_lower)
            ll0 = ll0 + where(above, ll_upper, ll_lower)
            above = inverse1 * xi >= middle
            lx1 = lx1 + where(above, lx_upper, lx_lower)
            ll1 = ll1 + where(above, ll_upper, ll_lower)
            above = inverse2 * xi >= middle
            lx2 = lx2 + where(above, lx_upper, lx_lower)
            ll2 = ll2 + where(above, ll_upper, ll_lower)
            above = inverse3 * xi >= middle
            lx3 = lx3 + where(above, lx_upper, lx_lower)
            ll3 = ll3 + where(above, ll_upper, ll_lower)
            above = inverse4 * xi >= middle
            lx4 = lx4 + where(above, lx_upper, lx_lower)
            ll4 = ll4 + where(above, ll_upper, ll_lower)
        best, scale = keep_better(lx0, ll0, best, scale)
        best, scale = keep_better(lx1, ll1, best, scale)
        best, scale = keep_better(lx2, ll2, best, scale)
        best, scale = keep_better(lx3, ll3, best, scale)
        best, scale = keep_better(lx4, ll4, best, scale)
    store(out, 0, where(live, scale, _ZERO))


@part
def as_columns(source, columns):
    """Turn 16 groups of 32, one after another, into columns."""
    transpose(source, 32, columns)
    transpose(move(source, 16), 32, move(columns, 256))


@part
def reciprocal(d):
    """Return 1 / d, and 0 where d is 0."""
    return where(d != _ZERO, _ONE / d, _ZERO)


@part
def pack_codes(x, inverse, target):
    """Write the codes of 32 weights as 16 bytes."""
    per_step = splat(inverse)
    low = code(load(x, 0) * per_step)
    high = code(load(x, 16) * per_step)
    store(target, 0, low | (high << 4))


def blocks_of_32(weighted: bool):
    """Return the kernel of IQ4_NL."""

    @part
    def weigh_blocks(source, columns, importance, first, per_row, w):
        if weighted:
            mean = floats(16)
            rows = floats(512)
            total = splat(_ZERO)
            for i in range(32):
                xi = load(columns, 16 * i)
                total = total + xi * xi
            store(mean, 0, np.float32(2) * total / np.float32(32))
            for b in range(16):
                counts = move(importance, 32 * ((first + b) % per_row))
                for half in range(0, 32, 16):
                    xi = load(source, 32 * b + half)
                    store(rows, 32 * b + half, root(splat(mean[b]) + xi * xi) * load(counts, half))
            as_columns(rows, w)
        else:
            for i in range(32):
                xi = load(columns, 16 * i)
                store(w, 16 * i, xi * xi)

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(512)
        columns = floats(512)
        w = floats(512)
        terms = floats(2560)
        scales = floats(16)
        halves = ints(16)
        per_row = row_length // 32
        n = n_rows * per_row
        status = FINE
        for first in range(0, n, 16):
            blocks = min(16, n - first)
            source = padded(x, 32 * first, 32 * blocks, 512, spare)
            as_columns(source, columns)
            weigh_blocks(source, columns, importance, first, per_row, w)
            search(columns, w, terms, scales)
            half = half_lanes(load(scales, 0))
            status |= fits(half)
            store(halves, 0, half)
            store(scales, 0, reciprocal(load(scales, 0)))
            for b in range(blocks):
                target = move(out, (first + b) * 18)
                as_halves(target)[0] = halves[b]
                pack_codes(move(source, 32 * b), scales[b], move(target, 2))
        return status

    return kernel


@part
def times_of(scale, inverse):
    """Return scale * inverse rounded to -32 ... 31."""
    quotient = scale * inverse
    times = clamp(nearest(quotient), np.float32(-32), np.float32(31))
    # Where 1 / d is beyond float32 the block decodes to zeros; ggml's way of rounding gives these then.
    size = absolute(quotient)
    lost = where(size == _INFINITE, splat(np.float32(-32)), _ZERO)
    return where(size < _INFINITE, times, lost)


@shared
def share_scales(scales, d_bits, times, inverses):
    """Make the scales of 16 blocks, `scales[8 * b + g]`, multiples of one per block.

    `d_bits` gets that one, `times` the multiples and `inverses` what to round with, at `[16 * g + b]`.
    """
    row = floats(16)
    size = splat(_ZERO)
    peak = size
    status = FINE
    for g in range(8):
        for b in range(16):
            row[b] = scales[8 * b + g]
        s = load(row, 0)
        more = absolute(s) > size
        size = where(more, absolute(s), size)
        peak = where(more, s, peak)
        if any_of(~(absolute(s) <= _INFINITE)):
            status = TOO_LARGE
    d = -peak / np.float32(32)
    store(d_bits, 0, half_lanes(d))
    inverse = reciprocal(d)
    for g in range(8):
        for b in range(16):
            row[b] = scales[8 * b + g]
        t = times_of(load(row, 0), inverse)
        store(times, 16 * g, to_int(t) + 32)
        store(inverses, 16 * g, reciprocal(d * t))
    return status | fits(load(d_bits, 0))


def blocks_of_256(weighted: bool):
    """Return the kernel of IQ4_XS."""

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(4096)
        rows = floats(512)
        columns = floats(512)
        w = floats(512)
        terms = floats(2560)
        means = floats(16)
        scales = floats(128)
        inverses = floats(128)
        d_bits = ints(16)
        times = ints(128)
        per_row = row_length // SUPER
        n = n_rows * per_row
        status = FINE
        for first in range(0, n, 16):
            blocks = min(16, n - first)
            source = batch(x, first, blocks, spare)
            if weighted:
                store(means, 0, np.float32(2) * square_sums(source) / np.float32(SUPER))
            for two in range(0, blocks, 2):
                groups = move(source, SUPER * two)
                as_columns(groups, columns)
                if weighted:
                    for b in range(two, two + 2):
                        counts = move(importance, SUPER * ((first + b) % per_row))
                        weigh(move(source, SUPER * b), counts, means[b], move(rows, SUPER * (b - two)))
                    as_columns(rows, w)
                else:
                    for i in range(32):
                        xi = load(columns, 16 * i)
                        store(w, 16 * i, xi * xi)
                search(columns, w, terms, move(scales, 8 * two))
            for i in range(8 * blocks, 128):
                scales[i] = _ZERO
            status |= share_scales(scales, d_bits, times, inverses)
            for b in range(blocks):
                target = move(out, (first + b) * 136)
                as_halves(target)[0] = d_bits[b]
                upper = 0
                for g in range(8):
                    upper |= (times[16 * g + b] >> 4) << (2 * g)
                as_halves(target)[1] = upper
                for g in range(0, 8, 2):
                    target[4 + g // 2] = (times[16 * g + b] & 15) | ((times[16 * g + 16 + b] & 15) << 4)
                for g in range(8):
                    pack_codes(
                        move(source, SUPER * b + 32 * g), inverses[16 * g + b], move(target, 8 + 16 * g)
                    )
        return status

    return kernel


KERNELS = {
    "IQ4_NL": (blocks_of_32(weighted=False), blocks_of_32(weighted=True)),
    "IQ4_XS": (blocks_of_256(weighted=False), blocks_of_256(weighted=True)),
}
