"""The forward pass in numpy float32: every layer is dequantized once and applied to all chunks of text.

Chunks are independent sequences from position 0. Their hidden states stay in memory together, so a group of
chunks is as large as `GROUP_BYTES` allows; what a layer needs in between exists for a few chunks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from threading import Lock
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quantcore.architectures.shape import Shape
from quantcore.evaluate.blas import workers
from quantcore.evaluate.meter import Meter
from quantcore.evaluate.ops import Floats, attend, rms_norm, silu
from quantcore.evaluate.rope import Rope, make_rope
from quantcore.evaluate.weights import Weights
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source

T = TypeVar("T")
Tokens = npt.NDArray[np.int32]

# Called with a tensor's name and what it is multiplied with, float32 `(rows, inputs)`, one call at a time.
Observe = Callable[[str, Floats], None]

GROUP_BYTES = 1 << 29  # hidden states of all chunks of a group
TASK_ROWS = 512  # tokens that one worker takes through a layer: large matrices, bounded temporaries


@dataclass(frozen=True)
class Layer:
    """One layer ready to run: dequantized `weights` by part, and the sliding `window` or None.

    `eps` is the epsilon of its norms.
    """

    index: int
    weights: Mapping[str, Floats]
    shape: Shape
    eps: float
    rope: Rope
    window: int | None
    observe: Observe | None

    def linear(self, name: str, x: Floats) -> Floats:
        """Return `x` `(rows, inputs)` times the transposed weights `name`, plus its bias if there is one."""
        if self.observe is not None:
            self.observe(f"blk.{self.index}.{name}.weight", x)
        y = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        if bias is not None:
            y += bias
        return y

    def run(self, x: Floats, start: int) -> Floats:
        """Return the hidden states of rows `start:` after this layer, `(chunks, rows - start, embedding)`."""
        chunks, rows, _ = x.shape
        normed = rms_norm(x, self.weights["attn_norm.weight"], self.eps)
        late = normed[:, start:]
        q = self._heads("attn_q", late, self.shape.heads, start)
        k = self._heads("attn_k", normed, self.shape.kv_heads, 0)
        v = self.linear("attn_v", _flat(normed)).reshape(chunks, rows, self.shape.kv_heads, -1)
        mixed = attend(q, k, v, start, self.window)
        x = x[:, start:] + self.linear("attn_output", _flat(mixed)).reshape(late.shape)
        normed = rms_norm(x, self.weights["ffn_norm.weight"], self.eps)
        x += self._feed_forward(_flat(normed)).reshape(x.shape)
        return x

    def _heads(self, name: str, x: Floats, heads: int, start: int) -> Floats:
        """Return queries or keys `(chunks, rows, heads, head_size)`, normed if need be, rotated."""
        y = self.linear(name, _flat(x)).reshape(*x.shape[:2], heads, self.shape.head_size)
        norm = self.weights.get(f"{name}_norm.weight")
        if norm is not None:
            y = rms_norm(y, norm, self.eps)
        self.rope.rotate(y, start)
        return y

    def _feed_forward(self, x: Floats) -> Floats:
        gate = self.linear("ffn_gate", x)
        silu(gate)
        gate *= self.linear("ffn_up", x)
        return self.linear("ffn_down", gate)


def _flat(x: Floats) -> Floats:
    return x.reshape(x.shape[0] * x.shape[1], -1)  # (chunks * rows, inputs)


def map_logits(
    source: Source,
    tokens: Tokens,
    each: Callable[[int, Floats], T],
    *,
    first: int = 0,
    threads: int | None = None,
    observe: Observe | None = None,
    report: Report = ignore,
) -> list[T]:
    """Run all chunks `tokens` `(chunks, n_ctx)` and return `each(chunk, logits)` for every chunk, in order.

    `logits` is float32 `(n_ctx - 1 - first, vocab)`: those of positions `first` to the last but one, which
    predict the token that follows them. It belongs to `each`, which is called by several threads. `observe`
    sees the input of every matrix of every layer.
    """
    run = _Run(Weights(source), tokens, first, _one_at_a_time(observe), report)
    with workers(threads, len(tokens)) as pool:
        return [result for group in run.groups() for result in run.group(group, each, pool)]


def _one_at_a_time(observe: Observe | None) -> Observe | None:
    if observe is None:
        return None
    lock = Lock()

    def locked(name: str, x: Floats) -> None:
        with lock:
            observe(name, x)

    return locked


class _Run:
    """One pass over all chunks, and how far it is."""

    def __init__(
        self, weights: Weights, tokens: Tokens, first: int, observe: Observe | None, report: Report
    ) -> None:
        self.weights, self.tokens, self.first = weights, tokens, first
        self.observe = observe
        weights.check()
        self.rope = make_rope(
            weights.source, weights.architecture.rope, weights.shape.head_size, tokens.shape[1]
        )
        # Who watches wants every position; else the last layer is needed for the scored ones only.
        last = first if observe is None else 0
        self.starts = [0] * (weights.shape.layers - 1) + [last]
        chunks, n_ctx = tokens.shape
        self.meter = Meter(weights.shape, chunks, n_ctx, self.starts, n_ctx - 1 - first, report)

    def groups(self) -> Iterator[range]:
        """Yield the chunks whose hidden states are in memory together."""
        size = max(1, GROUP_BYTES // (self.tokens.shape[1] * self.weights.shape.embedding * 4))
        for start in range(0, len(self.tokens), size):
            yield range(start, min(start + size, len(self.tokens)))

    def group(self, chunks: range, each: Callable[[int, Floats], T], pool: Executor) -> Iterator[T]:
        states = self._states(chunks, pool)
        norm, matrix = self.weights.output_norm(pool), self.weights.output(pool)

        def logits(place: int) -> T:
            scored = states[place][: self.tokens.shape[1] - 1 - self.first]
            normed = rms_norm(scored, norm, self.weights.eps)
            return each(chunks[place], normed @ matrix.T)

        for chunk, result in zip(chunks, pool.map(logits, range(len(chunks))), strict=True):
            self.meter.logits(chunk)
            yield result

    def _states(self, chunks: range, pool: Executor) -> list[Floats]:
        """Return what leaves the last layer at the positions from `first` on, for each chunk."""
        x = self.weights.embed(self.tokens[chunks.start : chunks.stop])  # (chunks, n_ctx, embedding)
        per_task = max(1, TASK_ROWS // self.tokens.shape[1])
        tasks = [x[place : place + per_task] for place in range(0, len(chunks), per_task)]
        for index, start in enumerate(self.starts):
            layer = self._layer(index, pool)
            results = []
            for result in pool.map(layer.run, tasks, [start] * len(tasks)):
                results.append(result)
                self.meter.layer(index, chunks, len(result))
            tasks = results
        skip = 0 if self.observe is None else self.first
        return [states[skip:] for task in tasks for states in task]

    def _layer(self, index: int, pool: Executor) -> Layer:
        weights = self.weights
        window = weights.architecture.window(index)
        return Layer(
            index, weights.layer(index, pool), weights.shape, weights.eps, self.rope, window, self.observe
        )
