"""What the compiled K-quants share: sixteen super-blocks of 256 weights at a time.

A search takes the groups of one or two super-blocks as columns, one group in each lane. What comes after it
for a whole super-block, the scales of its scales, is done with one super-block in each lane. The codes are
rounded once more with the scales as they are stored: element by element, in the order of the rows.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from quantcore.kernels.common import padded
from quantcore.kernels.lanes import part, root, shared, splat
from quantcore.kernels.memory import floats, load, move, store
from quantcore.kernels.shuffles import transpose

SUPER = 256
BATCH = 16

_ZERO = np.float32(0)


@part
def batch(x, first, blocks, spare):
    """Return where sixteen super-blocks from `first` on can be read; the last are copied, followed by 0."""
    return padded(x, first * SUPER, blocks * SUPER, BATCH * SUPER, spare)


@part
def clear(room, count):
    """Set `count` floats, a multiple of 16, to zero."""
    for i in range(0, count, 16):
        store(room, i, splat(_ZERO))


@shared
def square_sums(source):
    """Return the sum of squares of each of sixteen super-blocks, added up in order."""
    columns = floats(256)
    total = splat(_ZERO)
    for at in range(0, SUPER, 16):
        transpose(move(source, at), SUPER, columns)
        for i in range(16):
            xi = load(columns, 16 * i)
            total = total + xi * xi
    return total


@shared
def weigh(source, importance, mean, w):
    """Put importance * sqrt(mean + x**2) of one super-block into `w`."""
    for i in range(0, SUPER, 16):
        xi = load(source, i)
        store(w, i, root(xi * xi + mean) * load(importance, i))


@cache
def gathering(group: int):
    """Return a function that turns 16 groups, one after another, into 16 columns."""

    @shared
    def gather_groups(source, columns):
        for at in range(0, group, 16):
            transpose(move(source, at), group, move(columns, 16 * at))

    return gather_groups


@shared
def by_block(groups, values, columns):
    """Turn `groups` values of each of sixteen super-blocks into `groups` rows of sixteen super-blocks."""
    if groups == 16:
        transpose(values, 16, columns)
    else:
        for g in range(groups):
            for b in range(BATCH):
                columns[16 * g + b] = values[groups * b + g]


@part
def put_rows(rows, count, b, target):
    """Write lane `b` of `count` rows of sixteen ints as bytes."""
    for i in range(count):
        target[i] = rows[16 * i + b]


@shared
def two_bit_plane(codes, shift, target):
    """Write bits `shift` and `shift + 1` of 256 codes: byte `i` of a half holds elements i, i + 32, ..."""
    for half in range(2):
        for at in range(0, 32, 16):
            place = move(codes, 128 * half + at)
            byte = (load(place, 0) >> shift) & 3
            for quarter in range(1, 4):
                byte = byte | (((load(place, 32 * quarter) >> shift) & 3) << (2 * quarter))
            store(target, 32 * half + at, byte)


@shared
def one_bit_plane(codes, shift, target):
    """Write bit `shift` of 256 codes: byte `i` holds elements i, i + 32, ..."""
    for at in range(0, 32, 16):
        byte = (load(codes, at) >> shift) & 1
        for eighth in range(1, 8):
            byte = byte | (((load(codes, at + 32 * eighth) >> shift) & 1) << eighth)
        store(target, at, byte)
