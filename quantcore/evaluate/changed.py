"""The KL divergence from a model to variants of it, in slabs of the vocabulary: no logits are ever whole.

With logits l and m of the model and a variant, and Z and Y their sums of exponentials, the divergence of a
row is sum(p (l - m)) - log Z + log Y, where p = exp(l) / Z. A first pass over the slabs finds Z, a second one
all else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import numpy as np

from quantcore.evaluate.head import Head
from quantcore.evaluate.ops import Doubles, Floats

# Returns the rounded values of some rows of a tensor, of the same shape.
Rounding = Callable[[Floats], Floats]


class _Partition:
    """A running log of a sum of exponentials, for each row."""

    def __init__(self, rows: int) -> None:
        self.largest, self.total = np.full(rows, -np.inf), np.zeros(rows)

    def add(self, largest: Doubles, total: Doubles) -> None:
        peak = np.maximum(self.largest, largest)
        self.total = self.total * np.exp(self.largest - peak) + total * np.exp(largest - peak)
        self.largest = peak

    @property
    def log(self) -> Doubles:
        return np.asarray(np.log(self.total) + self.largest, dtype=np.float64)


def divergences(
    head: Head,
    base: Floats,
    others: Sequence[Floats],
    roundings: Sequence[Rounding | None],
    pool: Executor,
    tell: Callable[[], None],
) -> list[Doubles]:
    """Return the divergence of each row, float64 `(rows,)`, from the model to each of `others`.

    `base` and `others` are normed states `(rows, embedding)`; a variant whose output matrix is another too
    has its rounding. `tell` is called after each slab of each of the two passes.
    """
    rows = len(base)
    whole = _Partition(rows)
    for slab in head.slabs:
        whole.add(*head.steps.partition(head.logits(base, head.matrix(slab))))
        tell()
    partitions = [_Partition(rows) for _ in others]
    sums = [np.zeros(rows) for _ in others]
    log_total = whole.log

    def score(
        slab: slice, expected: Floats, share: Floats, matrix: object, place: int
    ) -> tuple[Doubles, Doubles, Doubles]:
        rounding = roundings[place]
        if rounding is not None:
            values = rounding(head.weights.output_rows(slab.start, slab.stop))
            matrix = head.steps.matrix(values)
        logits = head.logits(others[place], matrix)
        far = np.vecdot(share, expected - logits).astype(np.float64)  # (rows,)
        return (far, *head.steps.partition(logits))

    for slab in head.slabs:
        matrix = head.matrix(slab)
        expected = head.logits(base, matrix)
        share = np.exp(expected - log_total[:, None].astype(np.float32))  # (rows, slab)
        count = len(others)
        scored = pool.map(
            score, [slab] * count, [expected] * count, [share] * count, [matrix] * count, range(count)
        )
        for place, (far, largest, total) in enumerate(scored):
            sums[place] += far
            partitions[place].add(largest, total)
        tell()
    return [far - log_total + partition.log for far, partition in zip(sums, partitions, strict=True)]
