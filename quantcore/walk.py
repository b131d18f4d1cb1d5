"""Walk through a model layer by layer with all of a text, telling what goes into every matrix.

All chunks pass a layer before the next is read, so that what is told of it is complete, and only one layer's
weights and statistics are in memory. Whoever is told may change the layer: later ones then see what comes out
of the changed one. That is what layer-wise quantization needs.

1. Frantar et al., GPTQ, https://arxiv.org/abs/2210.17323, section 3.3 on inputs of partly quantized models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from quantcore.checkpoint import Checkpoint
from quantcore.cores import usable_threads
from quantcore.evaluate.blas import workers
from quantcore.evaluate.forward import Run, Tokens
from quantcore.evaluate.layer import EXPERTS_IN, EXPERTS_OUT, MATRICES, STAGES, Layer
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.weights import Weights
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source
from quantcore.states import MEMORY, States
from quantcore.statistics.collector import Collector, Heard
from quantcore.statistics.tally import Collect, Shared


@dataclass(frozen=True)
class Stage:
    """What a visitor is told: all of a layer, or the part of it that `true_sequential` has come to.

    `weights` are all tensors of layer `layer` as they are now, float32, by their names; `inputs` the
    statistics, of the matrices of this stage only. `last` tells that no other stage of the layer follows.
    """

    layer: int
    weights: Mapping[str, Floats]
    inputs: tuple[Shared, ...]
    last: bool


# Returns the tensors of the layer that are to be others from now on, by name; None for no change.
Visit = Callable[[Stage], Mapping[str, Floats] | None]


def walk(
    source: Source,
    tokens: Tokens,
    collect: Collect,
    visit: Visit,
    *,
    replaces: bool = False,
    true_sequential: bool = False,
    seed: int = 0,
    threads: int | None = None,
    report: Report = ignore,
    states: States | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Call `visit` with each layer of `source`, with what all chunks `tokens` `(chunks, n_ctx)` put into it.

    Only with `replaces` may `visit` return tensors to go on with, which costs a second run of each layer.
    With `true_sequential` too it is called four times for each: for the matrices that attention begins with,
    the one that it ends with, those that the feed-forward part begins with, and those that it ends with; in a
    mixture five times, for the router before experts begin. Each time inputs are those after what was
    returned before. BLAS has all its threads meanwhile, and what a stage holds is freed after it, if the
    visitor keeps none of it.

    `seed` decides which inputs are kept as samples. `states` is where hidden states lie, in memory if they
    are not many. With a `checkpoint` they are stored after each layer, and a walk that was stopped begins
    behind the last layer whose visit ended.

    Raises `InputError` naming a matrix whose inputs are no numbers, and what reading the model raises.
    """
    walker = _Walker(source, tokens, collect, seed, threads, report)
    shape = (*tokens.shape, walker.weights.shape.embedding)
    with States(shape) if states is None else states as held:
        begun = checkpoint.load(held) if checkpoint is not None else 0
        walker.begin(held, begun)
        for index in range(begun, walker.weights.shape.layers):
            walker.layer(held, index, visit, replaces=replaces, true_sequential=true_sequential)
            if checkpoint is not None:
                checkpoint.store(held, index + 1)
    if checkpoint is not None:
        checkpoint.remove()


@dataclass(frozen=True)
class _Wanted:
    """Whose inputs to tell in one run, `parts`, and whether the layer's outputs then replace its inputs."""

    parts: frozenset[str]
    last: bool = True
    outputs: bool = False


_OUTPUTS = _Wanted(frozenset(), outputs=True)
_MANY_TIMES = frozenset((*EXPERTS_IN, *EXPERTS_OUT))  # heard once for each expert


def _stages(layer: Layer, replaces: bool, true_sequential: bool) -> list[_Wanted]:
    """Return what to tell of a layer, in order: of the matrices that it has."""
    there = frozenset(layer.shape.whole(name.removesuffix(".weight")) for name in layer.weights)
    if not (replaces and true_sequential):
        return [_Wanted(there.intersection(MATRICES), outputs=not replaces)]
    stages = [parts for stage in STAGES if (parts := there.intersection(stage))]
    return [_Wanted(parts, last=parts is stages[-1]) for parts in stages]


class _Enough(Exception):
    """What was wanted of a run has been heard; no error."""


class _Ear:
    """A watcher of one run of a layer, which it ends by `_Enough` if nothing wanted can follow."""

    def __init__(self, wanted: _Wanted) -> None:
        self._wanted = wanted.parts
        self._left = None if wanted.outputs or wanted.parts & _MANY_TIMES else set(wanted.parts)
        self.heard: list[Heard] = []

    def measure(self, names: tuple[str, ...], x: Floats) -> Floats | None:
        parts = set(map(_part, names))
        if not parts & self._wanted:
            return None
        # A copy: some inputs are hidden states themselves, which the layer goes on to change.
        kept = x.copy()
        self.heard.append((names, None, kept))  # runs that are ended early have met no expert
        if self._left is not None:
            self._left -= parts
            if not self._left:
                raise _Enough
        return kept

    def add(self, names: tuple[str, ...], measured: Any) -> None:
        raise NotImplementedError  # what is measured leaves with the layer's outputs

    def add_expert(self, names: tuple[str, ...], expert: int, experts: int, measured: Any) -> None:
        raise NotImplementedError


class _Walker:
    """One walk: the model, the text, and how both are taken through a layer."""

    def __init__(
        self, source: Source, tokens: Tokens, collect: Collect, seed: int, threads: int | None, report: Report
    ) -> None:
        self.weights, self.tokens = Weights(source), tokens
        self._pass = Run(self.weights, tokens, 0, _Ear(_OUTPUTS), report)
        self._collect, self._seed = collect, seed
        self._threads = usable_threads(threads)
        self._places = self._pass.tasks(len(tokens))

    def begin(self, states: States, layer: int) -> None:
        """Fill `states` with embeddings, unless the walk begins at a later `layer`."""
        self._pass.meter.begin_at(layer)
        if layer:
            return
        step = max(1, MEMORY // (4 * self.tokens.shape[1] * self.weights.shape.embedding))
        for first in range(0, len(self.tokens), step):
            chunks = slice(first, first + step)
            states.write(chunks, self.weights.embed(self.tokens[chunks]))

    def layer(
        self, states: States, index: int, visit: Visit, *, replaces: bool, true_sequential: bool
    ) -> None:
        """Take the text through one layer, telling of each stage."""
        with self._pool() as pool:
            layer = self._pass.layer(index, pool)
        for wanted in _stages(layer, replaces, true_sequential):
            layer = self._visited(states, layer, wanted, visit)
        if replaces:
            with self._pool() as pool:
                self._run(states, layer, _OUTPUTS, pool)

    def _pool(self) -> AbstractContextManager[Executor]:
        """Return the workers of one run: the visitor gets BLAS back in between.

        One thread to a product: how many there are must not show in what is measured.
        """
        return workers(self._threads, self._threads, blas=1)

    def _visited(self, states: States, layer: Layer, wanted: _Wanted, visit: Visit) -> Layer:
        """Return the layer as the visitor would have it."""
        with self._pool() as pool:
            inputs = self._run(states, layer, wanted, pool)
        # A visitor knows the tensors that the file has, some of which the layer runs in pieces.
        whole = self.weights.joined(layer.weights)
        tensors = {f"blk.{layer.index}.{part}": it for part, it in whole.items()}
        replaced = visit(Stage(layer.index, tensors, inputs, wanted.last))
        if not replaced:
            return layer
        if wanted.outputs:
            raise ValueError(f"layer {layer.index} was replaced in a walk that does not go on with it")
        parts = {name.split(".", 2)[2]: _fitting(name, tensors[name], replaced) for name in tensors}
        return replace(layer, weights=self.weights.split(parts))

    def _run(self, states: States, layer: Layer, wanted: _Wanted, pool: Executor) -> tuple[Shared, ...]:
        """Return what was heard in one run of all chunks through the layer."""
        collector = Collector(self._collect, self._seed, self.weights.shape.experts)
        hear = partial(self._hear, states, self._pass.ready(layer, pool), wanted)
        for places in self._turns():
            heard = [each for piece in pool.map(hear, places) for each in piece]
            collector.take(heard, pool)
            if wanted.outputs:
                chunks = range(len(self.tokens))
                self._pass.meter.layer(layer.index, chunks, sum(len(chunks[place]) for place in places))
        inputs = collector.finish(pool)
        silent = wanted.parts.difference(_part(name) for shared in inputs for name in shared.names)
        if silent:  # a matrix that a family has and its forward pass does not show
            raise AssertionError(
                f"layer {layer.index}: nobody told the inputs of {', '.join(sorted(silent))}"
            )
        return inputs

    def _turns(self) -> Iterator[list[slice]]:
        """Yield a piece of text for each thread: their inputs stay in memory until they were added up."""
        for first in range(0, len(self._places), self._threads):
            yield self._places[first : first + self._threads]

    @staticmethod
    def _hear(states: States, layer: Layer, wanted: _Wanted, chunks: slice) -> list[Heard]:
        """Take some chunks through the layer; return what was heard."""
        ear = _Ear(wanted)
        try:
            passed = replace(layer, watcher=ear).run(states.read(chunks), 0)
        except _Enough:
            return ear.heard
        if wanted.outputs:
            states.write(chunks, passed.states)
        return [each for each in passed.seen if each[2] is not None]


def _part(name: str) -> str:
    """Return what a tensor of a layer is: `attn_q` of `blk.0.attn_q.weight`."""
    return name.split(".")[2]


def _fitting(name: str, before: Floats, replaced: Mapping[str, Floats]) -> Floats:
    """Return a tensor as it is from now on, of the shape that it was."""
    now = np.asarray(replaced.get(name, before), dtype=np.float32)
    if now.shape != before.shape:
        raise ValueError(f"{name} was replaced by {list(now.shape)}, it is {list(before.shape)}")
    return now
