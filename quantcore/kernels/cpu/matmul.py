"""Products of activations and weights, where registers hold sixteen numbers and there are 32 of them.

Weights are packed once, in groups of sixteen outputs `[group][input][16]` and groups to a multiple of three;
activations a block at a time, in the same way. A tile of 8 rows and 48 outputs stays in registers while all
inputs of a block pass. All is float32.

1. Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication, 2008.
"""

from __future__ import annotations

import numpy as np

from quantcore.kernels.lanes import shared
from quantcore.kernels.llvm import has_avx512
from quantcore.kernels.memory import as_floats, floats, load, move, store
from quantcore.kernels.shuffles import transpose
from quantcore.kernels.status import FINE
from quantcore.kernels.tiles import multiply_8x3

ROWS, DEPTH = 128, 768  # of a block of activations: 384 KB, which an outer cache holds
WIDTH = 48
_ZERO = np.float32(0)


@shared
def pack_group(source, stride, rows, depth, target):
    """Turn `rows` rows, 16 at most, into columns of 16, zeros where there is no row."""
    whole = depth // 16 * 16 if rows == 16 else 0
    for k in range(0, whole, 16):
        transpose(move(source, k), stride, move(target, 16 * k))
    for k in range(whole, depth):
        for row in range(16):
            target[16 * k + row] = source[row * stride + k] if row < rows else _ZERO


@shared
def pack(x, n_rows, row_length, importance, tables, out):
    """Pack weights `(n_rows, row_length)`; `out` has room for groups to a multiple of three."""
    target = as_floats(out)
    for group in range((n_rows + WIDTH - 1) // WIDTH * 3):
        first = min(16 * group, n_rows)
        rows = min(16, n_rows - first)
        place = move(target, group * 16 * row_length)
        pack_group(move(x, first * row_length), row_length, rows, row_length, place)
    return FINE


@shared
def _finish(tile, rows, width, target, stride, adds):
    """Put a tile of sums where it belongs, or add it to what is there."""
    if width == WIDTH:
        for row in range(rows):
            for column in range(0, WIDTH, 16):
                value = load(tile, WIDTH * row + column)
                if adds:
                    value = value + load(target, row * stride + column)
                store(target, row * stride + column, value)
        return
    for row in range(rows):
        for column in range(width):
            before = target[row * stride + column] if adds else _ZERO
            target[row * stride + column] = before + tile[WIDTH * row + column]


@shared
def product(x, n_rows, row_length, importance, tables, out):
    """Fill `out` `(n_rows, tables[0])` with `x` times packed weights, given as `importance`."""
    target, outputs = as_floats(out), np.int64(tables[0])
    packed, tile = floats(98304), floats(384)
    blocks = (row_length + DEPTH - 1) // DEPTH
    step = ((row_length + blocks - 1) // blocks + 15) // 16 * 16
    for first in range(0, n_rows, ROWS):
        rows = min(ROWS, n_rows - first)
        for start in range(0, row_length, step):
            depth = min(step, row_length - start)
            for group in range(0, rows, 16):
                source = move(x, (first + group) * row_length + start)
                pack_group(source, row_length, min(16, rows - group), depth, move(packed, group * depth))
            for column in range(0, outputs, WIDTH):
                weights = move(importance, (column * row_length) + 16 * start)
                width = min(WIDTH, outputs - column)
                for row in range(0, rows, 8):
                    inputs = move(packed, row // 16 * 16 * depth + row % 16)
                    multiply_8x3(inputs, 16, weights, 16, 16 * row_length, depth, tile)
                    place = move(target, (first + row) * outputs + column)
                    _finish(tile, min(8, rows - row), width, place, outputs, start > 0)
    return FINE


STEPS = {"pack": pack, "product": product} if has_avx512() else {}
