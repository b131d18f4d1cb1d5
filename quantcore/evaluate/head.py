"""What follows the last layer: a norm, the output matrix in slabs of the vocabulary, and what logits say.

The matrix of a large vocabulary is as large as several layers. Each slab of its rows is dequantized by the
worker that multiplies with it, once for all chunks where losses are wanted, for which logits of a slab are
enough: largest and sum of exponentials of each slab are put together at the end. Whoever wants logits gets
those of a few chunks at a time, as many as `LOGITS_BYTES` hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from quantcore.evaluate.activations import EXACT, Activations, Rounded
from quantcore.evaluate.ops import Doubles, Floats, soft_cap
from quantcore.evaluate.steps import Steps
from quantcore.evaluate.weights import Weights

T = TypeVar("T")

SLAB_WEIGHTS = 1 << 20  # of the output matrix: 4 MB as float32
WIDEST = 8160  # rows of it: as many logits of each position are in memory
KEPT_BYTES = 1 << 27  # an output matrix up to this size is dequantized once, however many batches there are
LOGITS_BYTES = 1 << 28  # logits that are in memory together
_ROUND = 48  # rows of a slab come in whole tiles of a compiled product


@dataclass(frozen=True)
class Losses:
    """What one slab says of rows: its largest logit, the sum of e**(x - largest) and the token's logit.

    Each is float64 `(rows,)`; the last is 0 for tokens of other slabs.
    """

    largest: Doubles
    total: Doubles
    chosen: Doubles


class Head:
    """The end of a model: `weights` applied by `steps`, to inputs rounded as `activations` says."""

    def __init__(self, weights: Weights, steps: Steps, activations: Activations = "float32") -> None:
        self.weights, self.steps = weights, steps
        self.inputs = EXACT if activations == "float32" else Rounded({"output": weights.output_type})
        rows = min(max(1, SLAB_WEIGHTS // weights.shape.embedding), WIDEST)
        step = -(-rows // _ROUND) * _ROUND
        vocab = weights.shape.vocab
        self.slabs = [slice(start, min(start + step, vocab)) for start in range(0, vocab, step)]

    def normed(self, states: Sequence[Floats], pool: Executor) -> list[Floats]:
        """Return `states`, each `(rows, embedding)`, after the last norm, as the output matrix gets them."""
        norm = self.weights.output_norm(pool)
        homely = (self.steps.home(rows) for rows in states)
        return [self.steps.put(self.inputs.of("output", norm(rows))) for rows in homely]

    def matrix(self, slab: slice) -> Any:
        """Return rows of the output matrix, ready for products."""
        return self.steps.matrix(self.weights.output_rows(slab.start, slab.stop))

    def logits(self, normed: Floats, matrix: Any) -> Floats:
        """Return the logits of `normed` `(rows, embedding)` for all rows of `matrix`."""
        found = self.steps.product(normed, matrix)
        scales = self.weights.scales
        if scales.logits != 1.0:
            found *= np.float32(scales.logits)
        soft_cap(found, scales.logits_cap, xp=self.steps.xp)
        return found

    def losses(
        self,
        normed: Sequence[Floats],
        tokens: npt.NDArray[np.int32],
        pool: Executor,
        tell: Callable[[int], None],
    ) -> list[Doubles]:
        """Return -log softmax(logits)[token] of each row of each chunk, tokens being `(chunks, rows)`.

        `tell` is told how many slabs are done.
        """

        def score(slab: slice) -> list[Losses]:
            matrix = self.matrix(slab)
            return [
                self._score(self.logits(rows, matrix), slab, wanted)
                for rows, wanted in zip(normed, tokens, strict=True)
            ]

        found = []
        for done, scored in enumerate(pool.map(score, self.slabs), start=1):
            found.append(scored)
            tell(done)
        return [_together(chunk) for chunk in zip(*found, strict=True)]

    def _score(self, logits: Floats, slab: slice, tokens: npt.NDArray[np.int32]) -> Losses:
        own = np.flatnonzero((tokens >= slab.start) & (tokens < slab.stop))
        chosen = np.zeros(len(tokens))
        rows, places = (self.steps.put(it) for it in (own, tokens[own] - slab.start))
        chosen[own] = self.steps.home(logits[rows, places])
        largest, total = self.steps.partition(logits)
        return Losses(largest, total, chosen)

    def each(self, normed: Sequence[Floats], use: Callable[[int, Floats], T], pool: Executor) -> Iterator[T]:
        """Yield `use(place, logits)` for each chunk, in order; `logits` `(rows, vocab)` are its own."""
        vocab = self.weights.shape.vocab
        size = max(1, LOGITS_BYTES // max(1, 4 * vocab * len(normed[0])))
        matrices: list[Any] = []
        if 4 * vocab * self.weights.shape.embedding <= KEPT_BYTES:
            matrices = list(pool.map(self.matrix, self.slabs))
        for first in range(0, len(normed), size):
            places = range(first, min(first + size, len(normed)))
            logits = [np.empty((len(normed[place]), vocab), dtype=np.float32) for place in places]

            def fill(number: int, first: int = first, logits: list[Floats] = logits) -> None:
                slab = self.slabs[number]
                matrix = matrices[number] if matrices else self.matrix(slab)
                for place, out in enumerate(logits, start=first):
                    out[:, slab] = self.steps.home(self.logits(normed[place], matrix))

            for _ in pool.map(fill, range(len(self.slabs))):
                pass
            yield from pool.map(use, places, logits)


def _together(slabs: Sequence[Losses]) -> Doubles:
    """Return the losses of rows from what each slab says of them."""
    largest = np.stack([slab.largest for slab in slabs])  # (slabs, rows)
    total = np.stack([slab.total for slab in slabs])  # (slabs, rows)
    peak = largest.max(axis=0)  # (rows,)
    with np.errstate(all="ignore"):  # predictions that are no numbers are judged by whoever gets them
        whole = (total * np.exp(largest - peak)).sum(axis=0)  # (rows,)
        return np.asarray(np.log(whole) + peak - sum(slab.chosen for slab in slabs), dtype=np.float64)
