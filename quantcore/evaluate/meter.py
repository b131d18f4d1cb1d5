"""How far a forward pass is: work counted in what it costs, told in layers and chunks."""

from __future__ import annotations

import time

from quantcore.architectures.shape import Shape
from quantcore.progress import Progress, Report, seconds_left

# A softmax costs about as much for each of its numbers as this many multiply-adds of a matrix product.
SOFTMAX_COST = 64


def layer_cost(shape: Shape, rows: int, start: int) -> int:
    """Return the multiply-adds that a layer takes for rows `start:` of a chunk of `rows` tokens.

    Keys and values are made of all rows. A window is not counted: few models have one, and it is wider than
    most chunks.
    """
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    late = rows - start
    early = rows * 2 * kv * shape.embedding
    wide = late * (2 * q + 3 * shape.active_feed_forward) * shape.embedding
    seen = late * (start + 1 + rows) // 2  # pairs of a position and one that it sees
    return early + wide + seen * (2 * q + shape.heads * SOFTMAX_COST)


def logits_cost(shape: Shape, rows: int) -> int:
    """Return the multiply-adds of the output projection of `rows` tokens, and of the softmax after it."""
    return rows * shape.vocab * (shape.embedding + SOFTMAX_COST)


class Meter:
    """Turn finished layers and chunks into progress.

    Its unit is tokens: as many are done as the work that is done would have taken from start to end.
    `starts` is the first row that each layer works out, `scored` the number of rows with logits.
    """

    def __init__(
        self,
        shape: Shape,
        chunks: int,
        rows: int,
        starts: list[int],
        scored: int,
        report: Report,
        stage: str = "evaluate",
    ) -> None:
        self.stage = stage
        self.chunks, self.tokens, self.report = chunks, chunks * rows, report
        self.layers = [layer_cost(shape, rows, start) for start in starts]
        self.output = logits_cost(shape, scored)
        self.total = chunks * (sum(self.layers) + self.output)
        self.done, self.started = 0, time.monotonic()

    def begin_at(self, layer: int) -> None:
        """Leave out the layers before: another pass went through them."""
        self.total -= self.chunks * sum(self.layers[:layer])

    def layer(self, index: int, group: range, count: int) -> None:
        """Report that `count` more chunks of `group` have passed layer `index`."""
        item = f"layer {index + 1} of {len(self.layers)}, {_chunks(group)}"
        self._add(count * self.layers[index], group.start + 1, item)

    def logits(self, chunk: int) -> None:
        """Report that `chunk` is done."""
        self._add(self.output, chunk + 1, f"chunk {chunk + 1} of {self.chunks}")

    def slab(self, number: int, slabs: int, group: range) -> None:
        """Report that one more of `slabs` parts of the vocabulary was done for all chunks of `group`."""
        before, now = (self.output * len(group) * n // slabs for n in (number - 1, number))
        self._add(now - before, group.stop, f"part {number} of {slabs} of the vocabulary, {_chunks(group)}")

    def _add(self, work: int, index: int, item: str) -> None:
        self.done += work
        seconds = time.monotonic() - self.started
        self.report(
            Progress(
                stage=self.stage,
                done=self.tokens * self.done // self.total,
                total=self.tokens,
                unit="tokens",
                seconds=seconds,
                seconds_left=seconds_left(self.done, self.total, seconds),
                item=item,
                index=index,
                count=self.chunks,
            )
        )


def _chunks(group: range) -> str:
    first, last = group.start + 1, group.stop
    return f"chunks {first}-{last}" if last > first else f"chunk {first}"
