"""The forward pass in numpy float32: every layer is dequantized once and applied to all chunks of text.

Chunks are independent sequences from position 0. Their hidden states stay in memory together, so a group of
chunks is as large as `GROUP_BYTES` allows; what a layer needs in between exists for a few chunks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from quantcore.cores import usable_cores
from quantcore.errors import InputError
from quantcore.evaluate.activations import EXACT, Activations, Inputs, Rounded
from quantcore.evaluate.blas import workers
from quantcore.evaluate.head import Head
from quantcore.evaluate.layer import MATRICES, Attended, Layer, Seen, Watcher
from quantcore.evaluate.meter import Meter
from quantcore.evaluate.mixture import Experts, Routes
from quantcore.evaluate.ops import Doubles, Floats
from quantcore.evaluate.rope import Rope, make_rope
from quantcore.evaluate.steps import Steps, best_steps
from quantcore.evaluate.weights import Weights, read_float
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source
from quantcore.tensors import Tensor

T = TypeVar("T")
Tokens = npt.NDArray[np.int32]

GROUP_BYTES = 1 << 28  # hidden states of all chunks of a group
_NOTHING = np.empty(0, dtype=np.float32)
TASK_ROWS = 512  # tokens that one worker takes through a layer: large matrices, bounded temporaries


def map_logits(
    source: Source,
    tokens: Tokens,
    each: Callable[[int, Floats], T],
    *,
    first: int = 0,
    threads: int | None = None,
    report: Report = ignore,
    steps: Steps | None = None,
    activations: Activations = "float32",
) -> list[T]:
    """Run all chunks `tokens` `(chunks, n_ctx)` and return `each(chunk, logits)` for every chunk, in order.

    `logits` is float32 `(n_ctx - 1 - first, vocab)`: those of positions `first` to the last but one, which
    predict the token that follows them. It belongs to `each`, which is called by several threads.
    """
    run = Run(Weights(source), tokens, first, None, report, steps, activations)
    with run.workers(threads, len(tokens)) as pool:
        return [result for group in run.groups() for result in run.group(group, each, pool)]


def losses(
    source: Source,
    tokens: Tokens,
    *,
    first: int = 0,
    threads: int | None = None,
    report: Report = ignore,
    steps: Steps | None = None,
    activations: Activations = "float32",
) -> list[Doubles]:
    """Run all chunks `tokens` `(chunks, n_ctx)` and return -log p of the tokens behind position `first`.

    Each is float64 `(n_ctx - 1 - first,)`, in order. No chunk's logits are ever whole.
    """
    run = Run(Weights(source), tokens, first, None, report, steps, activations)
    with run.workers(threads, len(tokens)) as pool:
        return [nll for group in run.groups() for nll in run.losses(group, pool)]


def watch(
    source: Source,
    tokens: Tokens,
    watcher: Watcher,
    *,
    threads: int | None = None,
    report: Report = ignore,
    steps: Steps | None = None,
) -> None:
    """Run all chunks `tokens` `(chunks, n_ctx)` through all layers, every position, and no further."""
    run = Run(Weights(source), tokens, 0, watcher, report, steps)
    # One thread to a product: how many there are must not show in what is measured.
    with run.workers(threads, len(run.tasks(len(tokens))), blas=1) as pool:
        for group in run.groups():
            run.states(group, pool)


def check(weights: Weights, positions: int = 1) -> tuple[Rope | None, ...]:
    """Refuse a model that cannot be run, before any work; return the rotation of each layer, for so many
    positions.
    """
    weights.check()
    family = weights.architecture
    kinds = {
        windows: make_rope(weights.source, family.rope, weights.shape.head_size, positions, windows=windows)
        for windows in {None, family.windows}
    }
    windowed = [None if window is None else family.windows for window in weights.windows]
    return tuple(kinds[it] if family.rotates(index) else None for index, it in enumerate(windowed))


class Run:
    """One pass over all chunks, and how far it is."""

    def __init__(
        self,
        weights: Weights,
        tokens: Tokens,
        first: int,
        watcher: Watcher | None,
        report: Report,
        steps: Steps | None = None,
        activations: Activations = "float32",
    ) -> None:
        self.weights, self.tokens, self.first = weights, tokens, first
        self.activations = activations
        self.watcher = watcher
        self.steps = steps or best_steps()
        if self.steps.away and (weights.shape.experts or activations != "float32"):
            raise InputError(
                f"{weights.source.path}: mixtures of experts, and inputs rounded as llama.cpp does, run on "
                "the processor only; leave out --device"
            )
        self.ropes = check(weights, tokens.shape[1])
        # The last layer is needed for the scored positions only.
        self.starts = [0] * (weights.shape.layers - 1) + [first]
        chunks, n_ctx = tokens.shape
        scored = n_ctx - 1 - first if watcher is None else 0
        stage = "evaluate" if watcher is None else "calibrate"
        self.meter = Meter(weights.shape, chunks, n_ctx, self.starts, scored, report, stage)

    @contextmanager
    def workers(self, threads: int | None, tasks: int, blas: int | None = None) -> Iterator[Executor]:
        """Yield what `workers` does; threads that are left over help with products and attention."""
        # One thread hands a card all that it can do.
        threads = 1 if self.steps.away else threads or usable_cores()
        count = max(1, min(threads, tasks))
        with workers(threads, tasks, blas) as pool, self.steps.helped(count, threads // count):
            yield pool

    def groups(self) -> Iterator[range]:
        """Yield the chunks whose hidden states are in memory together."""
        # Of a mixture what goes into the experts and what comes out is in memory too.
        held = 3 if self.weights.shape.experts else 1
        size = max(1, GROUP_BYTES // (held * self.tokens.shape[1] * self.weights.shape.embedding * 4))
        for start in range(0, len(self.tokens), size):
            yield range(start, min(start + size, len(self.tokens)))

    def tasks(self, count: int) -> list[slice]:
        """Return what one worker takes through a layer at a time, of `count` chunks."""
        step = max(1, TASK_ROWS // self.tokens.shape[1])
        return [slice(place, place + step) for place in range(0, count, step)]

    def group(self, chunks: range, each: Callable[[int, Floats], T], pool: Executor) -> Iterator[T]:
        head, scored = self._scored(chunks, pool)
        found = head.each(scored, lambda place, logits: each(chunks[place], logits), pool)
        for chunk, result in zip(chunks, found, strict=True):
            self.meter.logits(chunk)
            yield result

    def losses(self, chunks: range, pool: Executor) -> list[Doubles]:
        """Return the losses of each chunk."""
        head, scored = self._scored(chunks, pool)
        targets = self.tokens[chunks.start : chunks.stop, self.first + 1 :]
        return head.losses(scored, targets, pool, lambda done: self.meter.slab(done, len(head.slabs), chunks))

    def logits(self, normed: Floats, matrix: Any) -> Floats:
        """Return the logits `(rows, outputs)` of `normed` `(rows, embedding)`."""
        return Head(self.weights, self.steps, self.activations).logits(normed, matrix)

    def _scored(self, chunks: range, pool: Executor) -> tuple[Head, list[Floats]]:
        """Return the head, and what it takes of each chunk: all positions from `first` but the last."""
        head, count = Head(self.weights, self.steps, self.activations), self.tokens.shape[1] - 1 - self.first
        return head, head.normed([states[:count] for states in self.states(chunks, pool)], pool)

    def states(self, chunks: range, pool: Executor) -> list[Floats]:
        """Return what leaves the last layer at the positions from `first` on, for each chunk."""
        x = self.weights.embed(self.tokens[chunks.start : chunks.stop])  # (chunks, n_ctx, embedding)
        tasks = [self.steps.put(x[place]) for place in self.tasks(len(chunks))]
        del x  # it goes when the first layer is done
        through = self._through_experts if self.weights.shape.experts else self._through
        for index, start in enumerate(self.starts):
            tasks = through(index, tasks, start, chunks, pool)
        return [states for task in tasks for states in task]

    def _through(
        self, index: int, tasks: list[Floats], start: int, chunks: range, pool: Executor
    ) -> list[Floats]:
        """Return what leaves a layer."""
        layer = self.layer(index, pool, ready=True)
        for place, passed in enumerate(pool.map(layer.run, tasks, [start] * len(tasks))):
            tasks[place] = passed.states  # what went in is not needed any more
            self._tell(passed.seen)
            self.meter.layer(index, chunks, len(passed.states))
        self.steps.reuse(layer.weights.values())
        return tasks

    def _through_experts(
        self, index: int, tasks: list[Floats], start: int, chunks: range, pool: Executor
    ) -> list[Floats]:
        """Return what leaves a layer of a mixture, whose experts are never in memory together."""
        layer = self.layer(index, pool, ready=True, with_experts=False)
        sizes = [task.shape[0] * (task.shape[1] - start) for task in tasks]
        x = np.empty((sum(sizes), self.weights.shape.embedding), dtype=np.float32)
        ends = np.cumsum(sizes)[:-1]
        own = np.split(x, ends)  # the rows of each task

        def begin(place: int) -> tuple[Attended, npt.NDArray[np.intp], Floats]:
            attended = layer.attend(tasks[place], start)
            tasks[place] = _NOTHING  # what went into the layer, so that it goes
            own[place][:] = attended.normed
            attended = replace(attended, normed=own[place])
            return attended, *layer.choose(attended.normed, attended.seen)

        begun, chosen, shares = zip(*pool.map(begin, range(len(tasks))), strict=True)
        routes = Routes.of(np.concatenate(chosen), np.concatenate(shares), self.weights.shape.experts)
        out = self._fed(layer, x, routes, chunks, pool)
        results = []
        for passed in pool.map(layer.finish, begun, np.split(out, ends)):
            results.append(passed.states)
            self._tell(passed.seen)
            self.meter.layer(index, chunks, len(passed.states))
        return results

    def _fed(self, layer: Layer, x: Floats, routes: Routes, chunks: range, pool: Executor) -> Floats:
        """Return what the experts of a layer make of all rows of `x`, in the order of the experts."""
        out = np.zeros_like(x)
        for slab in Experts(self.weights, layer.index, self.steps).slabs(routes, pool):
            work = pool.map(partial(layer.of_slab, x, slab), slab.pieces)
            for piece, (added, seen) in zip(slab.pieces, work, strict=True):
                out[piece.rows] += added
                self._tell(seen)
            self.meter.layer(layer.index, chunks, 0)
            self.steps.reuse(matrix for own in slab.matrices.values() for matrix in own.values())
            del slab, work  # before the next is dequantized
        return out

    def ready(self, layer: Layer, pool: Executor) -> Layer:
        """Return the layer with its matrices in the form that products are fastest with."""
        weights = dict(layer.weights)
        self._make_ready(weights, pool)
        return replace(layer, weights=weights)

    def _read_ready(self, tensor: Tensor, pool: Executor) -> Any:
        """Return a tensor in the form that products are fastest with if it is a matrix, else as float32."""
        part = tensor.name.split(".", 2)[2].removesuffix(".weight")
        if part in MATRICES:
            return self.steps.read(tensor, pool)
        return self.steps.put(read_float(tensor, pool))

    def _make_ready(self, weights: dict[str, Any], pool: Executor) -> None:
        """Replace matrices one by one: what they were made of is not needed any more."""

        def replace_one(name: str) -> None:
            weights[name] = self.steps.ready(weights[name])

        names = [name for name in weights if name.removesuffix(".weight") in MATRICES]
        for _ in pool.map(replace_one, names):
            pass

    def _tell(self, seen: Seen) -> None:
        if self.watcher is None:
            return
        for names, expert, measured in seen:
            if expert is None:
                self.watcher.add(names, measured)
            else:
                self.watcher.add_expert(names, expert, self.weights.shape.experts, measured)

    def layer(self, index: int, pool: Executor, *, ready: bool = False, with_experts: bool = True) -> Layer:
        """Return layer `index`, dequantized; the matrices of its experts may be left out.

        If `ready`, it is as `ready` would return it, in less memory.
        """
        weights = self.weights
        family = weights.architecture
        parts = weights.layer(index, pool, self._read_ready if ready else None, with_experts=with_experts)
        if ready:
            self._make_ready(parts, pool)
        return Layer(
            index=index,
            weights=parts,
            shape=weights.shape,
            norm=family.norm,
            eps=weights.eps,
            rope=self.ropes[index],
            window=weights.windows[index],
            scales=weights.scales,
            gate=family.gate,
            shares_add_up=family.shares_add_up,
            feed_norm=family.feed_norm,
            watcher=self.watcher,
            steps=self.steps,
            inputs=self._inputs(index),
        )

    def _inputs(self, index: int) -> Inputs:
        """Return how inputs of the matrices of a layer are rounded."""
        if self.activations == "float32":
            return EXACT
        family, source = self.weights.architecture, self.weights.source
        kinds: dict[str, str] = {}
        for part in (*self.weights.parts, *family.optional):
            tensor = source.tensor(f"blk.{index}.{part}")
            if tensor is not None and part.endswith(".weight"):
                name = part.removesuffix(".weight")
                kinds |= dict.fromkeys(family.fused.get(name, (name,)), tensor.info.type)
        return Rounded(kinds)
