"""A bounded sample of a stream of inputs: each has the same chance, and the same stream the same sample."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Keys = npt.NDArray[np.uint64]


class Sample:
    """At most `size` inputs: those whose keys are least. A key is a hash of the place in the stream.

    So samples of two streams can be merged, and which inputs are kept does not depend on how they came:
    `rows` are float32 `(kept, width)`, `keys` uint64 `(kept,)`, in ascending order.
    """

    def __init__(self, width: int, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.rows: Floats = np.empty((0, width), dtype=np.float32)
        self.keys: Keys = np.empty(0, dtype=np.uint64)

    def offer(self, x: Floats, place: int) -> None:
        """Take inputs `x` `(rows, width)`, the first of which is number `place` of the stream."""
        keys = scrambled(np.arange(place, place + len(x), dtype=np.uint64), self.seed)
        fit = np.arange(len(x)) if len(self.keys) < self.size else np.flatnonzero(keys < self.keys[-1])
        if len(fit):
            self._keep(np.concatenate([self.keys, keys[fit]]), np.concatenate([self.rows, x[fit]]))

    def merged(self, other: Sample) -> Sample:
        """Return a sample of both streams, as large as the smaller one: of more, one would be preferred."""
        both = Sample(self.rows.shape[1], min(self.size, other.size), self.seed)
        both._keep(np.concatenate([self.keys, other.keys]), np.concatenate([self.rows, other.rows]))
        return both

    def _keep(self, keys: Keys, rows: Floats) -> None:
        least = np.argsort(keys, kind="stable")[: self.size]
        self.keys, self.rows = keys[least], rows[least]


def scrambled(numbers: Keys, seed: int) -> Keys:
    """Return a number of 64 bits for each of `numbers`, as if drawn at random.

    Steele et al., Fast splittable pseudorandom number generators, 2014: SplitMix64's output function.
    """
    z = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
