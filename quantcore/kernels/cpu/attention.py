"""Causal attention of one sequence, 48 queries and up to 512 keys at a time.

Rows of queries are pairs of a position and one of the heads that share a key. Scores stand with a key in each
row and 48 queries side by side, so that a softmax goes down columns: no lanes are exchanged. Where there are
more keys, what was mixed so far is scaled to the new peak.

1. Dao et al., FlashAttention, 2022, https://arxiv.org/abs/2205.14135.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.common import larger
from quantcore.kernels.cpu._functions import exponential
from quantcore.kernels.cpu.matmul import pack_group
from quantcore.kernels.lanes import bits_float, shared, splat, where
from quantcore.kernels.llvm import has_avx512
from quantcore.kernels.memory import as_floats, floats, load, move, store
from quantcore.kernels.status import FINE
from quantcore.kernels.tiles import multiply_6x4, multiply_8x3

QUERIES, KEYS = 48, 512
LARGEST_HEAD = 256
_ZERO, _ONE = np.float32(0), np.float32(1)
_HIDDEN = np.float32(-3.0e38)


@shared
def pack_keys(x, n_rows, row_length, importance, tables, out):
    """Pack keys `(n_rows, row_length)` of `tables[0]` heads as `[head][group][element][16]`."""
    heads = np.int64(tables[0])
    size, groups = row_length // heads, (n_rows + 15) // 16
    for head in range(heads):
        for group in range(groups):
            source = move(x, 16 * group * row_length + head * size)
            target = move(as_floats(out), (head * groups + group) * 16 * size)
            pack_group(source, row_length, min(16, n_rows - 16 * group), size, target)
    return FINE


@shared
def _hide(scores, first_key, begin, keys, positions, window):
    """Hide from 48 queries, at `positions`, the keys that are later, or a window's length before."""
    for v in range(0, QUERIES, 16):
        place = load(positions, v)
        for key in range(begin, keys):
            ahead = splat(np.float32(first_key + key)) - place
            hidden = (ahead > _ZERO) | (ahead <= -window)
            store(scores, key * QUERIES + v, where(hidden, _HIDDEN, load(scores, key * QUERIES + v)))


@shared
def _soften(scores, keys, peaks, sums, scales):
    """Replace scores by e**(score - peak), peaks and sums being kept; `scales` is what older sums lose."""
    for v in range(0, QUERIES, 16):
        before = load(peaks, v)
        peak = before
        for key in range(keys):
            peak = larger(peak, load(scores, key * QUERIES + v))
        scale = exponential(before - peak)
        summed = load(sums, v) * scale
        for key in range(keys):
            share = exponential(load(scores, key * QUERIES + v) - peak)
            store(scores, key * QUERIES + v, share)
            summed = summed + share
        store(peaks, v, peak)
        store(sums, v, summed)
        store(scales, v, scale)


@shared
def _mix(scores, keys, values, stride, size, scales, mixed, tile):
    """Add values `(keys, size)` by their shares to what is mixed, `(48, size)`, once that is scaled."""
    for column in range(0, size, 64):
        width = min(64, size - column)
        for row in range(0, QUERIES, 6):
            multiply_6x4(move(scores, row), QUERIES, move(values, column), stride, 16, keys, tile)
            for r in range(6):
                target, source = move(mixed, (row + r) * size + column), move(tile, 64 * r)
                scale = scales[row + r]
                for i in range(width):
                    target[i] = target[i] * scale + source[i]


@shared
def _take_queries(source, pair, pairs, group, row_length, size, scale, packed):
    """Pack 48 pairs from `pair` on, of a position and one of the heads at `source`, and scale them.

    Rows of their own stand behind what is packed.
    """
    rows = move(packed, QUERIES * size)
    for r in range(QUERIES):
        target = move(rows, r * size)
        if pair + r < pairs:
            head = move(source, (pair + r) // group * row_length + (pair + r) % group * size)
            for i in range(size):
                target[i] = head[i] * scale
        else:
            for i in range(size):
                target[i] = _ZERO
    for g in range(3):
        pack_group(move(rows, 16 * g * size), size, 16, size, move(packed, 16 * g * size))


@shared
def _score(packed_keys, first, keys, size, queries, scores):
    """Fill scores `(keys, 48)` of keys `first` on; up to seven more rows are written."""
    for key in range(0, keys, 8):
        place = first + key
        source = move(packed_keys, place // 16 * 16 * size + place % 16)
        multiply_8x3(source, 16, queries, 16, 16 * size, size, move(scores, key * QUERIES))


@shared
def attend(x, n_rows, row_length, importance, tables, out):
    """Fill `out`, as large as `x` `(n_rows, heads * size)`, with what queries see.

    `tables` has heads, heads of keys, the position of the first query, keys, a window's length and the scale
    of scores. `importance` has packed keys, then values `(keys, heads of keys * size)` and 64 more numbers.
    """
    heads, kv_heads, start, n_keys = (
        np.int64(tables[0]), np.int64(tables[1]), np.int64(tables[2]), np.int64(tables[3]),
    )  # fmt: skip
    window, scale = np.int64(tables[4]), bits_float(tables[5])
    size, group = row_length // heads, heads // kv_heads
    key_groups, pairs = (n_keys + 15) // 16, n_rows * group
    scores, mixed = floats(24576), floats(12288)
    queries, tile = floats(24576), floats(384)
    positions, peaks, sums, scales = floats(48), floats(48), floats(48), floats(48)
    for kv_head in range(kv_heads):
        packed_keys = move(importance, kv_head * key_groups * 16 * size)
        source = move(x, kv_head * group * size)
        values = move(importance, kv_heads * key_groups * 16 * size + kv_head * size)
        for pair in range(0, pairs, QUERIES):
            _take_queries(source, pair, pairs, group, row_length, size, scale, queries)
            last = min(pair + QUERIES, pairs) - 1
            earliest, latest = start + pair // group, start + last // group
            for r in range(QUERIES):
                positions[r] = np.float32(start + min(pair + r, last) // group)
                peaks[r], sums[r] = _HIDDEN, _ZERO
            for i in range(QUERIES * size):
                mixed[i] = _ZERO
            for first in range(max(0, earliest - window + 1) // 16 * 16, latest + 1, KEYS):
                keys = min(KEYS, latest + 1 - first)
                _score(packed_keys, first, keys, size, queries, scores)
                open_until = earliest + 1 - first if latest - first < window else 0
                _hide(scores, first, min(max(0, open_until), keys), keys, positions, np.float32(window))
                _soften(scores, keys, peaks, sums, scales)
                row_of_values = move(values, first * kv_heads * size)
                _mix(scores, keys, row_of_values, kv_heads * size, size, scales, mixed, tile)
            for r in range(last + 1 - pair):
                place = (pair + r) // group * row_length + (kv_head * group + (pair + r) % group) * size
                target, found = move(as_floats(out), place), move(mixed, r * size)
                share = _ONE / sums[r]
                for i in range(size):
                    target[i] = found[i] * share
    return FINE


STEPS = {"pack_keys": pack_keys, "attend": attend} if has_avx512() else {}
