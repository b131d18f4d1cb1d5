"""The search of `quantcore.methods.gridfit` compiled: all scales that one group tries, side by side.

A try stands in each lane. Neighbouring tries mostly round a piece of a group, 4 or 8 weights, to the same
lattice point; where that is off the grid its choices are gone through once for all tries of such a run, each
lane adding up what the choice costs at its own scale. What a level costs is calculated beforehand.

A word holds the levels of a piece, two or three bits for each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from quantcore.kernels.lanes import (
    as_bits,
    float_bits,
    lane_numbers,
    part,
    root,
    shared,
    smallest_int,
    splat,
    splat_int,
    to_float,
    where,
)
from quantcore.kernels.memory import floats, ints, load, move, store

_ZERO = np.float32(0)
_ONE = np.float32(1)
_HALF = np.float32(0.5)
_HUGE = np.float32(3.4028234663852886e38)
# 1.5 * 2**23: adding it leaves the nearest integer in the low bits; beyond 2**22 it wraps around, as in ggml.
_MAGIC = np.float32(12582912)
_BITS = np.int32(0x007FFFFF)
_OFFSET = np.int32(0x00400000)


@dataclass(frozen=True)
class Rule:
    """The parameters of `quantcore.methods.gridfit.GridRule`; `group` weights have one scale."""

    group: int
    size: int
    levels: int
    tries: int
    step: float
    project: str = "off"

    @property
    def pieces(self) -> int:
        return self.group // self.size

    @property
    def bits(self) -> int:
        """Bits of a level in a word."""
        return 2 if self.levels == 3 else 3


@part
def nearest_lanes(x):
    """Return the nearest integers, as `quantcore.methods.gridstart.nearest_wrapped`."""
    return (as_bits(x + _MAGIC) & _BITS) - _OFFSET


@part
def odd_code(x, half_inverse, top):
    """Return the number 0 to `top` whose odd number is nearest to x * 2 * half_inverse, of scalars."""
    bits = float_bits(np.float32(np.float32(x * half_inverse - _HALF) + _MAGIC))
    code = np.int64(bits & _BITS) - np.int64(_OFFSET)
    return min(max(code, np.int64(0)), np.int64(top))


def words_of(rule: Rule):
    """Return three parts: the words of a piece for sixteen tries, that for one scale, and a word's place."""
    size = rule.size
    bits = rule.bits
    top = rule.levels - 1
    in_threes = rule.levels == 3

    @part
    def lane_words(x, half_inverse):
        words = splat_int(0)
        for i in range(size):
            level = nearest_lanes(x[i] * half_inverse - _HALF)
            level = where(level < 0, 0, level)
            level = where(level > top, top, level)
            words = words | (level << (bits * i))
        return words

    @part
    def one_word(x, half_inverse):
        word = np.int64(0)
        for i in range(size):
            word |= odd_code(x[i], half_inverse, top) << (bits * i)
        return word

    @part
    def packed(word):
        """Return the lattice point of a word as the tables number it."""
        if in_threes:
            pairs = (word & 0x3333) + 3 * ((word >> 2) & 0x3333)
            fours = (pairs & 0x0F0F) + 9 * ((pairs >> 4) & 0x0F0F)
            word = (fours & 0xFF) + 81 * (fours >> 8)
        return word

    return lane_words, one_word, packed


def choosing(rule: Rule):
    """Return two functions that choose for a piece off the grid: for a run of tries, and for one scale."""
    size = rule.size
    bits = rule.bits
    levels = rule.levels
    vectors = -(-(2 * rule.tries + 1) // 16)
    width = 16 * vectors
    mask = (1 << bits) - 1

    @shared
    def price(x, roots, scales, costs):
        """Put into `costs` what each level of each element costs at all scales."""
        for v in range(vectors):
            scale = load(scales, 16 * v)
            for i in range(size):
                for level in range(levels):
                    miss = scale * np.float32(2 * level + 1) - x[i]
                    store(costs, (i * levels + level) * width + 16 * v, roots[i] * miss * miss)

    @shared
    def choose_for_run(costs, listed, count, begin, end, words):
        """Put the word of the cheapest of `count` choices, the first of equals, where the run stands."""
        for v in range(begin >> 4, ((end - 1) >> 4) + 1):
            column = move(costs, 16 * v)
            best = splat(_HUGE)
            found = splat_int(listed[0])
            for n in range(count):
                word = np.int64(listed[n])
                total = load(column, (word & mask) * width)
                for i in range(1, size):
                    total = total + load(column, (i * levels + ((word >> (bits * i)) & mask)) * width)
                wins = total < best
                best = where(wins, total, best)
                found = where(wins, splat_int(word), found)
            lanes = lane_numbers() + 16 * v
            mine = (lanes >= begin) & (lanes < end)
            store(words, 16 * v, where(mine, found, load(words, 16 * v)))

    @shared
    def choose_for_one(x, roots, scale, listed, count):
        """Return the word of the cheapest of `count` choices, the first of equals."""
        best = splat(_HUGE)
        found = splat_int(0)
        for at in range(0, count, 16):
            listed_here = load(listed, at)
            total = splat(_ZERO)
            for i in range(size):
                level = (listed_here >> (bits * i)) & mask
                miss = to_float(level + level + 1) * scale - x[i]
                total = total + roots[i] * miss * miss
            wins = (total < best) & (lane_numbers() < count - at)
            best = where(wins, total, best)
            found = where(wins, splat_int(at), found)
        # Of numbers that are not negative the bits have the same order.
        cheapness = as_bits(best)
        place = where(cheapness == smallest_int(cheapness), found + lane_numbers(), 0x7FFFFFFF)
        return np.int64(listed[smallest_int(place)])

    return price, choose_for_run, choose_for_one


def fitting(rule: Rule):
    """Return a function that finds scale and grid points of one group, given where the search starts."""
    group = rule.group
    size = rule.size
    pieces = rule.pieces
    bits = rule.bits
    mask = (1 << bits) - 1
    count = 2 * rule.tries + 1
    tries = rule.tries
    vectors = -(-count // 16)
    width = 16 * vectors
    every_word = pieces * width
    prices = size * rule.levels * width
    step = np.float32(rule.step)
    middle = np.float32(2 * rule.levels - 1)
    in_all = rule.project == "all"
    always = rule.project == "always"
    lane_words, one_word, packed = words_of(rule)
    price, choose_for_run, choose_for_one = choosing(rule)

    @shared
    def round_piece(x, roots, half_inverses, scales, tables, costs, words):
        """Put the words of a piece at all tries into `words`; return, as bits, which were off the grid."""
        for v in range(vectors):
            store(words, 16 * v, lane_words(x, load(half_inverses, 16 * v)))
        mapped = move(tables, tables[0])
        starts = move(tables, tables[4])
        off = np.int64(0)
        begin = 0
        while begin < count:
            word = words[begin]
            end = begin + 1
            while end < count and words[end] == word:
                end += 1
            point = packed(np.int64(word))
            if mapped[point] < 0:
                if off == 0:
                    price(x, roots, scales, costs)
                off |= (np.int64(1) << end) - (np.int64(1) << begin)
                start = np.int64(starts[point])
                listed = move(tables, tables[5] + start)
                choose_for_run(costs, listed, np.int64(starts[point + 1]) - start, begin, end, words)
            begin = end
        return off

    @part
    def add_up(x, w, wx, words, v):
        """Return sum(w x q) and sum(w q q) of sixteen tries."""
        sum_qx = splat(_ZERO)
        sum_q2 = splat(_ZERO)
        for k in range(pieces):
            word = load(words, k * width + 16 * v)
            for i in range(size):
                level = (word >> (bits * i)) & mask
                q = to_float(level + level + 1)
                sum_qx = sum_qx + wx[k * size + i] * q
                sum_q2 = sum_q2 + w[k * size + i] * q * q
        return sum_qx, sum_q2

    @shared
    def project(x, w, wx, roots, scale, groups, tables, chosen):
        """Round the pieces in `groups` once more, with the scale found; return the scale fitted to that."""
        mapped = move(tables, tables[0])
        starts = move(tables, tables[4])
        half_inverse = _ONE / scale * _HALF
        for k in range(pieces):
            if groups >> k & 1:
                word = one_word(move(x, k * size), half_inverse)
                point = packed(word)
                if mapped[point] < 0:
                    start = np.int64(starts[point])
                    listed = move(tables, tables[5] + start)
                    many = np.int64(starts[point + 1]) - start
                    word = choose_for_one(move(x, k * size), move(roots, k * size), scale, listed, many)
                chosen[k] = word
        sum_qx = _ZERO
        sum_q2 = _ZERO
        for k in range(pieces):
            word = np.int64(chosen[k])
            for i in range(size):
                q = np.float32(2 * ((word >> (bits * i)) & mask) + 1)
                sum_qx += wx[k * size + i] * q
                sum_q2 += w[k * size + i] * q * q
        return sum_qx / sum_q2 if sum_q2 > _ZERO else scale

    @shared
    def fit(x, w, peak, scale, tables, index):
        """Return the scale of a group that is more than nothing, and put its grid points into `index`.

        `peak` is rounded to the top level by the middle one of the tries; `scale` is what counts when no try
        explains anything.
        """
        half_inverses = floats(32)
        scales = floats(32)
        roots = floats(32)
        wx = floats(32)
        costs = floats(prices)
        words = ints(every_word)
        off = ints(8)
        chosen = ints(8)
        sums_qx = floats(32)
        sums_q2 = floats(32)
        for v in range(vectors):
            number = to_float(lane_numbers() + (16 * v - tries))
            inverse = (number * step + middle) / peak
            store(half_inverses, 16 * v, inverse * _HALF)
            store(scales, 16 * v, _ONE / inverse)
        for i in range(0, group, 16):
            store(roots, i, root(load(w, i)))
            store(wx, i, load(w, i) * load(x, i))
        for k in range(pieces):
            at = k * size
            off[k] = round_piece(
                move(x, at), move(roots, at), half_inverses, scales, tables, costs, move(words, k * width)
            )
        for v in range(vectors):
            sum_qx, sum_q2 = add_up(x, w, wx, words, v)
            store(sums_qx, 16 * v, sum_qx)
            store(sums_q2, 16 * v, sum_q2)
        best = _ZERO
        winner = -1
        for t in range(count):
            if sums_q2[t] > _ZERO and sums_qx[t] * sums_qx[t] > best * sums_q2[t]:
                scale = sums_qx[t] / sums_q2[t]
                best = scale * sums_qx[t]
                winner = t
        groups = np.int64(0)
        for k in range(pieces):
            # Groups that no try has placed are at level zero, which is on every grid.
            chosen[k] = 0
            if winner >= 0:
                chosen[k] = words[k * width + winner]
                groups |= ((np.int64(off[k]) >> winner) & 1) << k
        if always or (in_all and (groups != 0 or winner < 0)):
            groups = np.int64((1 << pieces) - 1)
        if groups != 0 and scale > _ZERO:
            scale = project(x, w, wx, roots, scale, groups, tables, chosen)
        mapped = move(tables, tables[0])
        for k in range(pieces):
            index[k] = mapped[packed(np.int64(chosen[k]))]
        return scale

    return fit
