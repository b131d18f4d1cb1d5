"""Q4_K, Q5_K and Q2_K compiled; their layout and numpy form are in `quantcore.formats.gguf_k_line`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from quantcore.kernels.common import clamp, fits, half_lanes, half_values
from quantcore.kernels.cpu._descent import scale_of_peak, scale_of_scales
from quantcore.kernels.cpu._linesearch import (
    INVERSE,
    MINIMUM,
    ORIGIN,
    SCALE,
    SETS,
    STATE,
    SUM_W,
    line_search,
    round_above,
)
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
from quantcore.kernels.lanes import absolute, cut, nearest, part, root, shared, splat
from quantcore.kernels.memory import as_halves, floats, ints, load, move, store
from quantcore.kernels.status import FINE

_ZERO = np.float32(0)

# What a batch keeps of the searches: a table of 256 groups for each of these.
_SCALES, _FLOORS, _INVERSES, _ORIGINS, _TOTALS = (256 * i for i in range(5))


@dataclass(frozen=True)
class Lines:
    """The parameters of `quantcore.formats.gguf_k_line.Lines`, and the sizes of a stored super-block."""

    size: int
    group: int = 32
    top: int = 15
    limit: int = 63
    spread: int = 2
    first: float = -1.0
    steps: int = 20

    @property
    def groups(self) -> int:
        return SUPER // self.group

    @property
    def is_two_bit(self) -> bool:
        return self.top == 3

    def steps_of(self, weighted: bool):
        """Return where the candidates of a search start, how far they are apart, the last one's number."""
        first, step, steps = (-0.9, 0.05, 36) if weighted else (self.first, 0.1, self.steps)
        return np.float32(first), np.float32(step), steps

    def outer(self, weighted: bool):
        """Return the search over the scales of a super-block."""
        search = scale_of_scales if weighted else scale_of_peak
        return search(self.groups, self.limit)


@cache
def own_weights(group: int, *, bare: bool):
    """Return a part that puts the weights of a search without importance into columns `w`."""

    @shared
    def weights(columns, w):
        shift = splat(_ZERO)
        if not bare:
            squares = splat(_ZERO)
            for i in range(group):
                xi = load(columns, 16 * i)
                squares = squares + xi * xi
            shift = root(squares / np.float32(group))
        for i in range(group):
            size = absolute(load(columns, 16 * i))
            store(w, 16 * i, size if bare else shift + size)

    return weights


def searching(lines: Lines, weighted: bool):
    """Return a part that searches all groups of a batch and leaves what it found in `found`."""
    group = lines.group
    groups = lines.groups
    size = 16 * group  # of a set
    in_set = size // SUPER  # super-blocks
    spread = np.float32(lines.spread)
    top = np.float32(lines.top)
    first_step, step, steps = lines.steps_of(weighted)
    search = line_search(group, by_magnitude=lines.is_two_bit and not weighted)
    weights = own_weights(group, bare=lines.is_two_bit)
    gather_groups = gathering(group)

    @part
    def search_all(source, blocks, first, per_row, importance, found):
        columns = floats(1024)
        w = floats(1024)
        codes = floats(1024)
        weighed = floats(512)
        state = floats(480)
        means = floats(16)
        if weighted:
            store(means, 0, spread * square_sums(source) / np.float32(SUPER))
        for start in range(0, blocks, SETS * in_set):
            for k in range(SETS):
                block = start + k * in_set
                gather_groups(move(source, SUPER * block), move(columns, k * size))
                if weighted:
                    for j in range(in_set):
                        place = SUPER * ((first + block + j) % per_row)
                        weigh(
                            move(source, SUPER * (block + j)),
                            move(importance, place),
                            means[block + j],
                            move(weighed, SUPER * j),
                        )
                    gather_groups(weighed, move(w, k * size))
                else:
                    weights(move(columns, k * size), move(w, k * size))
            search(columns, w, codes, state, top, first_step, step, steps)
            for k in range(SETS):
                at = (start + k * in_set) * groups
                got = move(state, k * STATE)
                store(found, _SCALES + at, load(got, SCALE))
                store(found, _FLOORS + at, -load(got, MINIMUM))
                store(found, _INVERSES + at, load(got, INVERSE))
                store(found, _ORIGINS + at, load(got, ORIGIN))
                store(found, _TOTALS + at, load(got, SUM_W))

    return search_all


@shared
def scale_bytes(s, m, rows):
    """Put the bytes of 8 scales and 8 minima of 6 bits each, rows of sixteen, into 12 rows."""
    for g in range(4):
        low_s = cut(load(s, 16 * g))
        low_m = cut(load(m, 16 * g))
        high_s = cut(load(s, 16 * g + 64))
        high_m = cut(load(m, 16 * g + 64))
        store(rows, 16 * g, low_s | ((high_s >> 4) << 6))
        store(rows, 16 * g + 64, low_m | ((high_m >> 4) << 6))
        store(rows, 16 * g + 128, (high_s & 15) | ((high_m & 15) << 4))


@shared
def nibble_bytes(s, m, rows):
    """Put the bytes of 16 scales and 16 minima of 4 bits each into 16 rows."""
    for g in range(16):
        store(rows, 16 * g, cut(load(s, 16 * g)) | (cut(load(m, 16 * g)) << 4))


@shared
def nibble_plane(codes, target):
    """Write the low four bits of 256 codes: 32 bytes hold two groups."""
    for two in range(4):
        for at in range(0, 32, 16):
            low = load(codes, 64 * two + at) & 15
            store(target, 32 * two + at, low | ((load(codes, 64 * two + at + 32) & 15) << 4))


@cache
def rounding(group: int):
    """Return a function that puts the codes of one super-block, with the scales as stored, into `codes`."""
    groups = SUPER // group

    @shared
    def round_block(x, b, steps, floors, found, codes, top):
        for g in range(groups):
            step = steps[16 * g + b]
            floor = floors[16 * g + b]
            for at in range(group * g, group * (g + 1), 16):
                xi = load(x, at)
                if step == _ZERO:
                    # The codes mean nothing then, but they are stored: those of the search.
                    inverse = found[_INVERSES + groups * b + g]
                    origin = found[_ORIGINS + groups * b + g]
                    code = round_above(xi, origin, inverse, top)
                else:
                    code = clamp(nearest((xi + floor) / step), _ZERO, top)
                store(codes, at, cut(code))

    return round_block


def kernel_of(lines: Lines, *, weighted: bool):
    """Return the kernel of one type."""
    size = lines.size
    groups = lines.groups
    is_two_bit = lines.is_two_bit
    is_five_bit = lines.top == 31
    search_all = searching(lines, weighted)
    outer = lines.outer(weighted)
    top = np.float32(lines.top)
    round_block = rounding(lines.group)

    @shared
    def kernel(x, n_rows, row_length, importance, tables, out):
        spare = floats(4096)
        found = floats(1296)
        scales = floats(256)
        floors = floats(256)
        totals = floats(256)
        s = floats(256)
        m = floats(256)
        rows = ints(256)
        halves = ints(32)
        codes = ints(256)
        per_row = row_length // SUPER
        n = n_rows * per_row
        status = FINE
        for first in range(0, n, BATCH):
            blocks = min(BATCH, n - first)
            source = batch(x, first, blocks, spare)
            if blocks < BATCH:
                # Lanes without a super-block take part in what follows.
                clear(found, 1280)
            search_all(source, blocks, first, per_row, importance, found)
            by_block(groups, move(found, _SCALES), scales)
            by_block(groups, move(found, _FLOORS), floors)
            if weighted:
                by_block(groups, move(found, _TOTALS), totals)
            d = half_lanes(outer(scales, totals, s))
            floor = half_lanes(outer(floors, totals, m))
            store(halves, 0, d)
            store(halves, 16, floor)
            if is_two_bit:
                nibble_bytes(s, m, rows)
            else:
                scale_bytes(s, m, rows)
            for g in range(groups):
                store(scales, 16 * g, half_values(d) * load(s, 16 * g))
                store(floors, 16 * g, half_values(floor) * load(m, 16 * g))
            for b in range(blocks):
                target = move(out, (first + b) * size)
                round_block(move(source, SUPER * b), b, scales, floors, found, codes, top)
                if is_two_bit:
                    put_rows(rows, 16, b, target)
                    two_bit_plane(codes, 0, move(target, 16))
                    as_halves(move(target, 80))[0] = halves[b]
                    as_halves(move(target, 80))[1] = halves[16 + b]
                else:
                    as_halves(target)[0] = halves[b]
                    as_halves(target)[1] = halves[16 + b]
                    put_rows(rows, 12, b, move(target, 4))
                    if is_five_bit:
                        one_bit_plane(codes, 4, move(target, 16))
                    nibble_plane(codes, move(target, size - 128))
            status |= fits(d) | fits(floor)
        return status

    return kernel


_Q4_K = Lines(144)
_Q5_K = Lines(176, top=31, first=-0.5, steps=15)
_Q2_K = Lines(84, group=16, top=3, limit=15, spread=1, first=-0.5, steps=15)

KERNELS = {
    name: (kernel_of(lines, weighted=False), kernel_of(lines, weighted=True))
    for name, lines in (("Q4_K", _Q4_K), ("Q5_K", _Q5_K), ("Q2_K", _Q2_K))
}
