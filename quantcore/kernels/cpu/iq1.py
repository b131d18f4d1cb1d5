"""IQ1_S and IQ1_M compiled: all divisions of sixteen groups side by side, then their way onto the grid."""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import half_bits, larger
from quantcore.kernels.cpu._divisions import BORDER, halves_search, ranking, whole_search
from quantcore.kernels.cpu._superblocks import BATCH, SUPER, batch, gathering, square_sums, weigh
from quantcore.kernels.lanes import absolute, ones, part, shared, splat, splat_int, to_float, where
from quantcore.kernels.memory import as_bytes, as_halves, floats, gather, ints, load, move, store
from quantcore.kernels.status import FINE, TOO_LARGE

_ZERO = np.float32(0)
_ONE = np.float32(1)
_SHIFT = np.float32(0.125)
_HUGE = np.float32(3.4028234663852886e38)


@shared
def nearest_choice(costs, lane, packed, tables):
    """Return the grid index of the cheapest choice of one group, `packed` being its entry in the map.

    `costs` are 24 rows of sixteen groups: three levels for each of eight places.
    """
    first = packed >> 5
    chunks = packed & 31
    levels = move(as_bytes(move(tables, tables[2])), first * 128)
    best = splat(_HUGE)
    found = splat_int(0)
    for c in range(chunks):
        total = splat(_ZERO)
        for i in range(8):
            level = load(levels, 128 * c + 16 * i)
            at = 48 * i + lane
            cost = where(level == 1, splat(costs[at + 16]), splat(costs[at + 32]))
            total = total + where(level == 0, splat(costs[at]), cost)
        wins = total < best
        best = where(wins, total, best)
        found = where(wins, splat_int(c), found)
    least = floats(16)
    chunk = ints(16)
    store(least, 0, best)
    store(chunk, 0, found)
    low = _HUGE
    place = np.int64(0)
    for k in range(16):
        own = np.int64(16 * chunk[k] + k)
        if least[k] < low or (least[k] == low and own < place):
            low = least[k]
            place = own
    return tables[tables[1] + 16 * first + place]


def projecting(group: int):
    """Return a function that takes sixteen divided groups to the grid and returns their scales.

    `levels` are rows of 0, 1, 2 and follow the groups that move; `shifts` and `index`, which gets the grid
    indices, have a row for each eight.
    """
    eights = group // 8

    @shared
    def project(x, w, scale, found, shifts, levels, tables, index):
        costs = floats(384)
        moved = ints(16)
        store(moved, 0, splat_int(0))
        # Groups with nothing in them have grid point 0.
        none = move(tables, tables[3])
        for i in range(group):
            store(levels, 16 * i, where(found, load(levels, 16 * i), none[i % 8]))
        for k in range(eights):
            shift = load(shifts, 16 * k)
            number = load(levels, 128 * k + 112)
            for i in range(6, -1, -1):
                number = number * 3 + load(levels, 128 * k + 16 * i)
            packed = gather(move(tables, tables[0]), number)
            store(index, 16 * k, where(found, packed, splat_int(0)))
            for i in range(8):
                xi = load(x, 128 * k + 16 * i)
                wi = load(w, 128 * k + 16 * i)
                for level in range(3):
                    miss = scale * (shift + np.float32(level - 1)) - xi
                    store(costs, 48 * i + 16 * level, wi * miss * miss)
            for lane in range(16):
                entry = index[16 * k + lane]
                if entry < 0:
                    chosen = nearest_choice(costs, lane, -1 - entry, tables)
                    index[16 * k + lane] = chosen
                    moved[lane] = 1
                    points = move(tables, tables[3] + 8 * chosen)
                    for i in range(8):
                        levels[128 * k + 16 * i + lane] = points[i]
        wxq = splat(_ZERO)
        wqq = splat(_ZERO)
        for i in range(group):
            q = to_float(load(levels, 16 * i)) + (load(shifts, i // 8 * 16) - _ONE)
            wq = load(w, 16 * i) * q
            wxq = wxq + wq * load(x, 16 * i)
            wqq = wqq + wq * q
        good = (load(moved, 0) == 1) & (wxq > _ZERO) & (wqq > _ZERO)
        return where(good, wxq / wqq, scale)

    return project


def fitting(group: int, nothing: float, parts: int):
    """Return a function that fits sixteen groups, columns x and w.

    It returns the scales and leaves rows of levels, shifts, grid indices and combinations of shifts.
    """
    eights = group // 8
    last = 2**parts - 1
    rank = ranking(group)
    search = whole_search() if parts == 1 else halves_search()
    project = projecting(group)
    least = np.float32(nothing)

    @shared
    def fit(x, w, tables, levels, shifts, index, combination):
        ranks = ints(512)
        scales = floats(16)
        numbers = ints(16)
        rank(x, ranks)
        search(x, w, ranks, scales, numbers)
        peak = splat(_ZERO)
        for i in range(group):
            peak = larger(peak, absolute(load(x, 16 * i)))
        number = load(numbers, 0)
        found = (number >= 0) & (peak >= least)
        first = number >> 8
        second = (number >> 2) & (BORDER - 1)
        scale = where(found, load(scales, 0), _ZERO)
        flip = scale < _ZERO
        for i in range(group):
            place = load(ranks, 16 * i)
            level = ones(place >= first) + ones(place >= second)
            store(levels, 16 * i, where(flip, 2 - level, level))
        chosen = where(found, number & last, 0)
        chosen = where(flip, last - chosen, chosen)
        store(combination, 0, chosen)
        for k in range(eights):
            down = chosen & 1 if parts == 1 or k == 1 else chosen >> 1
            store(shifts, 16 * k, where(down == 1, splat(-_SHIFT), splat(_SHIFT)))
        return project(x, w, absolute(scale), found, shifts, levels, tables, index)

    return fit


@part
def three_bits(inverse, scale):
    """Return the number 0 to 7 for which 2 s + 1 is nearest to scale * inverse."""
    s = np.float32(0.5) * (inverse * scale - _ONE)
    # Infinity and no number, of scales that are next to nothing, give 0.
    return min(7, int(np.rint(s))) if s > _ZERO and s < np.float32(1e6) else 0


_fit32 = fitting(32, 1e-12, 1)
_fit16 = fitting(16, 1e-7, 2)
_gather32 = gathering(32)
_gather16 = gathering(16)


@shared
def pack_one_shift(scales, combination, index, b, target):
    """Write one super-block of IQ1_S, whose eight groups are the lanes from 8 * b on; return the status."""
    peak = _ZERO
    for g in range(8):
        peak = max(peak, scales[8 * b + g])
    d = peak / np.float32(15)
    half = half_bits(d * np.float32(1.125))
    as_halves(target)[0] = half
    inverse = _ONE / d
    for g in range(8):
        lane = 8 * b + g
        high = 0
        for k in range(4):
            point = index[16 * k + lane]
            target[2 + 4 * g + k] = point & 255
            high |= (point >> 8) << (3 * k)
        if peak > _ZERO:
            high |= (three_bits(inverse, scales[lane]) | (combination[lane] << 3)) << 12
        as_halves(move(target, 34))[g] = high
    return TOO_LARGE if half & 0x7C00 == 0x7C00 else FINE


@shared
def one_shift(x, n_rows, row_length, importance, tables, out):
    spare = floats(4096)
    means = floats(16)
    weighed = floats(512)
    columns = floats(512)
    w = floats(512)
    levels = ints(512)
    shifts = floats(64)
    index = ints(64)
    combination = ints(16)
    scales = floats(16)
    per_row = row_length // SUPER
    n = n_rows * per_row
    status = FINE
    for first in range(0, n, BATCH):
        blocks = min(BATCH, n - first)
        source = batch(x, first, blocks, spare)
        store(means, 0, np.float32(2) * square_sums(source) / np.float32(SUPER))
        for at in range(0, blocks, 2):
            for b in range(2):
                place = SUPER * ((first + at + b) % per_row)
                own = move(source, SUPER * (at + b))
                weigh(own, move(importance, place), means[at + b], move(weighed, SUPER * b))
            _gather32(move(source, SUPER * at), columns)
            _gather32(weighed, w)
            store(scales, 0, _fit32(columns, w, tables, levels, shifts, index, combination))
            for b in range(min(2, blocks - at)):
                target = move(out, (first + at + b) * 50)
                status |= pack_one_shift(scales, combination, index, b, target)
    return status


@shared
def refit(x, w, levels, shifts, factors):
    """Return sum(w q x) and sum(w q q) over sixteen columns of 16, one column after another."""
    products = floats(512)
    for i in range(16):
        q = (to_float(load(levels, 16 * i)) + (load(shifts, i // 8 * 16) - _ONE)) * load(factors, 0)
        wq = load(w, 16 * i) * q
        store(products, 16 * i, wq * load(x, 16 * i))
        store(products, 256 + 16 * i, wq * q)
    wxq = _ZERO
    wqq = _ZERO
    for g in range(16):
        for i in range(16):
            wxq += products[16 * i + g]
            wqq += products[256 + 16 * i + g]
    return wxq, wqq


@shared
def pack_two_shifts(x, w, scales, levels, shifts, combination, index, target):
    """Write one super-block of IQ1_M; return the status."""
    peak = _ZERO
    for g in range(16):
        peak = max(peak, scales[g])
    d = peak / np.float32(15)
    inverse = _ONE / d
    factors = floats(16)
    words = ints(16)
    for g in range(4):
        words[g] = 0
    for g in range(16):
        high = (index[g] >> 8) | ((index[16 + g] >> 8) << 4)
        if peak > _ZERO:
            s = three_bits(inverse, scales[g])
            words[g // 4] |= s << (3 * (g % 4))
            factors[g] = np.float32(2 * s + 1)
            high |= ((combination[g] & 2) << 2) | ((combination[g] & 1) << 7)
        target[2 * g] = index[g] & 255
        target[2 * g + 1] = index[16 + g] & 255
        target[32 + g] = high
    half = np.int64(0)
    if peak > _ZERO:
        wxq, wqq = refit(x, w, levels, shifts, factors)
        if wqq > _ZERO:
            d = wxq / wqq
        half = half_bits(d * np.float32(1.1125))
    for g in range(4):
        as_halves(move(target, 48))[g] = words[g] | (((half >> (4 * g)) & 15) << 12)
    return TOO_LARGE if half & 0x7C00 == 0x7C00 else FINE


@shared
def two_shifts(x, n_rows, row_length, importance, tables, out):
    spare = floats(4096)
    means = floats(16)
    weighed = floats(256)
    columns = floats(256)
    w = floats(256)
    levels = ints(256)
    shifts = floats(32)
    index = ints(32)
    combination = ints(16)
    scales = floats(16)
    per_row = row_length // SUPER
    n = n_rows * per_row
    status = FINE
    for first in range(0, n, BATCH):
        blocks = min(BATCH, n - first)
        source = batch(x, first, blocks, spare)
        store(means, 0, np.float32(2) * square_sums(source) / np.float32(SUPER))
        for b in range(blocks):
            place = SUPER * ((first + b) % per_row)
            own = move(source, SUPER * b)
            weigh(own, move(importance, place), means[b], weighed)
            _gather16(own, columns)
            _gather16(weighed, w)
            scale = _fit16(columns, w, tables, levels, shifts, index, combination)
            store(scales, 0, scale)
            target = move(out, (first + b) * 56)
            status |= pack_two_shifts(columns, w, scales, levels, shifts, combination, index, target)
    return status


KERNELS = {"IQ1_S": (None, one_shift), "IQ1_M": (None, two_shifts)}
