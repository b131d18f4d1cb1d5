"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S compiled.

Their layouts and numpy forms are in `quantcore.formats.gguf_iq2` and `gguf_iq3`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcore.kernels.common import half_bits, larger
from quantcore.kernels.cpu._gridsearch import Rule, fitting, odd_code
from quantcore.kernels.cpu._gridstart import starting
from quantcore.kernels.cpu._superblocks import BATCH, SUPER, batch, gathering, square_sums, weigh
from quantcore.kernels.lanes import absolute, any_of, bits_of, largest, part, shared, splat
from quantcore.kernels.memory import as_halves, floats, ints, load, move, store
from quantcore.kernels.status import FINE, SQUARES, TOO_LARGE

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_LARGEST = np.float32(3.4028234663852886e38)


@dataclass(frozen=True)
class Type:
    """One type: its search, the parameters of `GridFormat`, and how blocks are written.

    `own` gives the weight of an element without importance, of its square and the mean square of its block,
    and is None where the type is not made without. `pack(index, signs, s, target)` writes what follows the
    common scale.
    """

    rule: Rule
    size: int
    pack: Callable[..., Any]
    own: Callable[..., Any] | None = None
    spread: int = 2
    nothing: float = 1e-8
    stretch: float = 1.0
    paired: bool = True
    searched: bool = False
    closes_up: bool = False


def taking_signs(paired: bool):
    """Return a function that takes the signs off 256 weights, in place, and keeps them as 32 bytes."""

    @shared
    def take_signs(x, w, signs):
        cost = floats(16)
        for at in range(0, SUPER, 16):
            xi = load(x, at)
            sixteen = bits_of(xi < _ZERO)
            store(x, at, absolute(xi))
            if paired:
                store(cost, 0, load(w, at) * xi * xi)
            for half in range(2):
                byte = np.int64(sixteen >> (8 * half)) & 255
                if paired:
                    odd = byte ^ (byte >> 4)
                    odd ^= odd >> 2
                    if (odd ^ (odd >> 1)) & 1:
                        # The one that costs least takes the wrong sign.
                        least = 8 * half
                        for i in range(8 * half + 1, 8 * half + 8):
                            if cost[i] < cost[least]:
                                least = i
                        x[at + least] = -x[at + least]
                        byte ^= np.int64(1) << (least - 8 * half)
                    byte &= 127
                signs[at // 8 + half] = byte

    return take_signs


def weighing(kind: Type, weighted: bool):
    """Return a part that puts the weights of one super-block into `w` and returns each lane's largest."""
    own = kind.own

    @part
    def put_weights(source, importance, mean, w):
        if weighted:
            weigh(source, importance, mean, w)
        else:
            for i in range(0, SUPER, 16):
                xi = load(source, i)
                store(w, i, own(xi * xi, mean))
        worst = load(w, 0)
        for i in range(16, SUPER, 16):
            worst = larger(worst, load(w, i))
        return worst

    return put_weights


@shared
def close_up(index, signs, live, groups, pieces):
    """Let low bytes and signs of groups that are not zero close up, as ggml does in IQ3_S."""
    eights = 32 // groups
    to = 0
    for g in range(groups):
        if live[g] != 0:
            for k in range(pieces):
                kept = index[to * pieces + k] & 256
                index[to * pieces + k] = kept | (index[g * pieces + k] & 255)
            for k in range(eights):
                signs[to * eights + k] = signs[g * eights + k]
            to += 1
    for i in range(to * pieces, groups * pieces):
        index[i] = index[i] & 256
    for i in range(to * eights, 32):
        signs[i] = 0


def kernel_of(kind: Type, *, weighted: bool):
    """Return the kernel of one type."""
    group = kind.rule.group
    groups = SUPER // group
    pieces = kind.rule.pieces
    eights = group // 8
    all_pieces = groups * pieces
    spread = np.float32(kind.spread)
    nothing = np.float32(kind.nothing)
    stretch = np.float32(kind.stretch)
    top = np.float32(2 * kind.rule.levels - 1)
    levels = np.float32(kind.rule.levels)
    bytes_of_block = kind.size
    every_sign = 127 if kind.paired else 255
    paired = kind.paired
    searched = kind.searched
    closes_up = kind.closes_up
    pack = kind.pack
    fit = fitting(kind.rule)
    take_signs = taking_signs(paired)
    put_weights = weighing(kind, weighted)
    start_scale = starting(kind.rule.levels + 1, kind.nothing)
    gather = gathering(32)

    @part
    def begin(x, g, starts):
        """Return the peak that a search starts from, the scale that goes with it, and whether it is none."""
        peak = largest(larger(load(x, 0), load(x, group - 16)))
        if searched:
            scale = starts[g]
            peak = scale * levels
            return peak, scale, peak > _ZERO
        return peak, peak / top, peak >= nothing and peak > _ZERO

    @part
    def fit_groups(x, w, signs, starts, tables, index, scales, live):
        for g in range(groups):
            peak, scale, is_live = begin(move(x, group * g), g, starts)
            live[g] = 1 if is_live else 0
            if is_live:
                place = move(index, pieces * g)
                scale = fit(move(x, group * g), move(w, group * g), peak, scale, tables, place)
                if scale < _ZERO:
                    # Single elements are negative, and may make a scale so.
                    scale = -scale
                    for k in range(eights):
                        signs[eights * g + k] = signs[eights * g + k] ^ every_sign
            else:
                scale = _ZERO
                for k in range(pieces):
                    index[pieces * g + k] = 0
                for k in range(eights):
                    signs[eights * g + k] = 0
            scales[g] = scale

    @part
    def write(scales, index, signs, live, target):
        """Write one super-block and return its status."""
        s = ints(16)
        peak = _ZERO
        for g in range(groups):
            peak = max(peak, scales[g])
        d = peak / np.float32(31)
        half = half_bits(d * stretch)
        as_halves(target)[0] = half
        if closes_up:
            close_up(index, signs, live, groups, pieces)
        half_inverse = _ONE / d * _HALF
        for g in range(groups):
            s[g] = odd_code(scales[g], half_inverse, 15) if peak > _ZERO else 0
        if paired and not peak > _ZERO:
            for i in range(all_pieces):
                index[i] = 0
            for i in range(32):
                signs[i] = 0
        pack(index, signs, s, move(target, 2))
        return TOO_LARGE if half & 0x7C00 == 0x7C00 else FINE

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(4096)
        means = floats(16)
        values = floats(512)
        w = floats(512)
        columns = floats(512)
        weight_columns = floats(512)
        starts = floats(16)
        signs = ints(64)
        index = ints(64)
        scales = floats(16)
        live = ints(16)
        per_row = row_length // SUPER
        n = n_rows * per_row
        status = FINE
        store(starts, 0, splat(_ZERO))
        worst = splat(_ZERO)
        for first in range(0, n, BATCH):
            blocks = min(BATCH, n - first)
            source = batch(x, first, blocks, spare)
            store(means, 0, spread * square_sums(source) / np.float32(SUPER))
            for at in range(0, blocks, 2):
                for b in range(2):
                    own = move(source, SUPER * (at + b))
                    block_w = move(w, SUPER * b)
                    place = SUPER * ((first + at + b) % per_row) if weighted else 0
                    counts = move(importance, place)
                    worst = larger(worst, put_weights(own, counts, means[at + b], block_w))
                    for i in range(0, SUPER, 16):
                        store(values, SUPER * b + i, load(own, i))
                    take_signs(move(values, SUPER * b), block_w, move(signs, 32 * b))
                if searched:
                    gather(values, columns)
                    gather(w, weight_columns)
                    store(starts, 0, start_scale(columns, weight_columns))
                for b in range(min(2, blocks - at)):
                    block_signs = move(signs, 32 * b)
                    fit_groups(
                        move(values, SUPER * b),
                        move(w, SUPER * b),
                        block_signs,
                        move(starts, 8 * b),
                        tables,
                        index,
                        scales,
                        live,
                    )
                    target = move(out, (first + at + b) * bytes_of_block)
                    status |= write(scales, index, block_signs, live, target)
        return status | (SQUARES if any_of(~(worst <= _LARGEST)) else FINE)

    return kernel


@part
def put_word(signs, s, target):
    """Write four times seven signs and a scale of four bits."""
    word = signs[0] | (signs[1] << 7) | (signs[2] << 14) | (signs[3] << 21) | (s << 28)
    as_halves(target)[0] = word & 0xFFFF
    as_halves(target)[1] = (word >> 16) & 0xFFFF


@part
def put_nibbles(s, count, target):
    for i in range(count // 2):
        target[i] = s[2 * i] | (s[2 * i + 1] << 4)


@part
def pack_iq2_xxs(index, signs, s, target):
    for g in range(8):
        for k in range(4):
            target[8 * g + k] = index[4 * g + k]
        put_word(move(signs, 4 * g), s[g], move(target, 8 * g + 4))


@part
def pack_iq2_xs(index, signs, s, target):
    for k in range(32):
        as_halves(target)[k] = index[k] | (signs[k] << 9)
    put_nibbles(s, 16, move(target, 64))


@part
def pack_iq2_s(index, signs, s, target):
    for k in range(32):
        target[k] = index[k] & 255
        target[32 + k] = signs[k]
    for k in range(8):
        high = index[4 * k] >> 8
        for i in range(1, 4):
            high |= (index[4 * k + i] >> 8) << (2 * i)
        target[64 + k] = high
    put_nibbles(s, 16, move(target, 72))


@part
def pack_iq3_xxs(index, signs, s, target):
    for k in range(64):
        target[k] = index[k]
    for g in range(8):
        put_word(move(signs, 4 * g), s[g], move(target, 64 + 4 * g))


@part
def pack_iq3_s(index, signs, s, target):
    for k in range(64):
        target[k] = index[k] & 255
    for k in range(8):
        high = index[8 * k] >> 8
        for i in range(1, 8):
            high |= (index[8 * k + i] >> 8) << i
        target[64 + k] = high
    for k in range(32):
        target[72 + k] = signs[k]
    put_nibbles(s, 8, move(target, 104))


@part
def shifted_square(square, mean):
    return square + np.float32(0.25) * mean


@part
def bare_square(square, mean):
    return square


_TYPES = {
    "IQ2_XXS": Type(
        Rule(32, 8, 3, 6, 0.1, project="always"), 66, pack_iq2_xxs, spread=1, nothing=1e-15, searched=True
    ),
    "IQ2_XS": Type(Rule(16, 8, 3, 9, 0.1), 74, pack_iq2_xs, spread=1, nothing=1e-15),
    "IQ2_S": Type(Rule(16, 8, 3, 9, 0.1), 82, pack_iq2_s, shifted_square, stretch=0.9875, paired=False),
    "IQ3_XXS": Type(Rule(32, 4, 8, 15, 0.2), 98, pack_iq3_xxs, bare_square, stretch=1.0125),
    "IQ3_S": Type(
        Rule(32, 4, 8, 9, 0.2, project="all"), 110, pack_iq3_s, bare_square,
        nothing=0.0, stretch=1.033, paired=False, closes_up=True,
    ),
}  # fmt: skip

KERNELS = {
    name: (kernel_of(kind, weighted=False) if kind.own else None, kernel_of(kind, weighted=True))
    for name, kind in _TYPES.items()
}
