"""The forward pass in numpy float32: every layer is dequantized once and applied to all chunks of text.

Chunks are independent sequences from position 0. Their hidden states stay in memory together, so a group of
chunks is as large as `GROUP_BYTES` allows; what a layer needs in between exists for a few chunks only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from quantcore.architectures.base import Gate, NormKind
from quantcore.architectures.scales import Scales
from quantcore.architectures.shape import Shape
from quantcore.evaluate.activations import EXACT, Activations, Inputs, Rounded
from quantcore.evaluate.blas import workers
from quantcore.evaluate.head import Head
from quantcore.evaluate.meter import Meter
from quantcore.evaluate.ops import Doubles, Floats, choose, sigmoid
from quantcore.evaluate.rope import Rope, make_rope
from quantcore.evaluate.steps import Steps, best_steps
from quantcore.evaluate.weights import Weights
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source

T = TypeVar("T")
Tokens = npt.NDArray[np.int32]


class Watcher(Protocol):
    """Who wants to see what the matrices of layers are multiplied with."""

    def measure(self, names: tuple[str, ...], x: Floats) -> Any:
        """Return what is to be kept of inputs `x` `(rows, inputs)` of `names`; called by several threads."""

    def add(self, names: tuple[str, ...], measured: Any) -> None:
        """Take what was measured of the input that the matrices `names` share: in the order of the text."""

    def add_expert(self, names: tuple[str, ...], expert: int, experts: int, measured: Any) -> None:
        """Take what was measured of the input of one of a stack of `experts` matrices."""


GROUP_BYTES = 1 << 29  # hidden states of all chunks of a group
TASK_ROWS = 512  # tokens that one worker takes through a layer: large matrices, bounded temporaries

# The matrices of a layer by what they share as input: those that a watcher sees.
ATTENTION_IN, ATTENTION_OUT = ("attn_q", "attn_k", "attn_v"), ("attn_output",)
FEED_IN, FEED_OUT = ("ffn_gate", "ffn_up"), ("ffn_down",)
ROUTER = ("ffn_gate_inp",)
EXPERTS_IN, EXPERTS_OUT = ("ffn_gate_exps", "ffn_up_exps"), ("ffn_down_exps",)
SHARED_IN, SHARED_OUT = ("ffn_gate_inp_shexp", "ffn_gate_shexp", "ffn_up_shexp"), ("ffn_down_shexp",)
# By what they wait for: the inputs of those of a stage depend on the weights of all stages before.
STAGES = (
    ("attn_qkv", *ATTENTION_IN),
    ATTENTION_OUT,
    (*FEED_IN, *ROUTER),
    (*EXPERTS_IN, *SHARED_IN),
    (*FEED_OUT, *EXPERTS_OUT, *SHARED_OUT),
)
MATRICES = tuple(part for stage in STAGES for part in stage)

# What a watcher measured of the inputs that some matrices share, and of which expert they are.
Seen = list[tuple[tuple[str, ...], int | None, Any]]


@dataclass(frozen=True)
class Passed:
    """What leaves a layer: hidden states, and what a watcher measured on the way."""

    states: Floats
    seen: Seen


@dataclass(frozen=True)
class Layer:
    """One layer ready to run: dequantized `weights` by part, the sliding `window` and the `rope`, if any.

    `inputs` rounds what matrices are multiplied with, and keys and values, where that is wanted.
    Matrices among the weights may be in the form that `steps` made of them. `norm` is the kind of norms,
    `eps` their epsilon. A `watcher` measures inputs; what it found is returned with the states.
    """

    index: int
    weights: Mapping[str, Any]
    shape: Shape
    norm: NormKind
    eps: float
    rope: Rope | None
    window: int | None
    scales: Scales
    gate: Gate
    shares_add_up: bool
    feed_norm: str
    watcher: Watcher | None
    steps: Steps
    inputs: Inputs = EXACT

    def linear(self, name: str, x: Floats) -> Floats:
        """Return `x` `(rows, inputs)` times the transposed weights `name`, plus its bias if there is one."""
        y = self.steps.product(self.inputs.of(name, x), self.weights[f"{name}.weight"])
        bias = self.weights.get(f"{name}.bias")
        if bias is not None:
            y += bias
        return y

    def run(self, x: Floats, start: int) -> Passed:
        """Return the hidden states of rows `start:` after this layer, `(chunks, rows - start, embedding)`."""
        seen: Seen = []
        chunks, rows, _ = x.shape
        normed = self._normed("attn_norm", x)
        self._see(seen, ATTENTION_IN, _flat(normed))
        late = normed[:, start:]
        q = self._heads("attn_q", late, self.shape.heads, start)
        k = self._heads("attn_k", normed, self.shape.kv_heads, 0)
        v = self.linear("attn_v", _flat(normed)).reshape(chunks, rows, self.shape.kv_heads, -1)
        k, v = self.inputs.kept(k), self.inputs.kept(v)
        sinks = self.weights.get("attn_sinks.weight")
        scales = self.scales
        mixed = self.steps.attend(q, k, v, start, self.window, scales.attention, scales.attention_cap, sinks)
        self._see(seen, ATTENTION_OUT, _flat(mixed))
        attended = self.linear("attn_output", _flat(mixed)).reshape(late.shape)
        if self.feed_norm != "post_attention_norm":
            attended = self._normed("post_attention_norm", attended)
        x = np.add(x[:, start:], self._scaled(attended), out=attended)
        normed = late if self._side_by_side else self._normed(self.feed_norm, x)
        fed = self._feed_forward(_flat(normed), seen).reshape(x.shape)
        x += self._scaled(self._normed("post_ffw_norm", fed))
        return Passed(x, seen)

    def _normed(self, name: str, x: Floats) -> Floats:
        """Return `x` after the norm of that name, or itself where the layer has none."""
        return self.steps.after_norm(self.norm, self.weights, name, x, self.eps)

    @property
    def _side_by_side(self) -> bool:
        """Say whether the feed-forward part reads what attention reads: no norm stands between them."""
        return not {f"{self.feed_norm}.weight", "post_attention_norm.weight"} & self.weights.keys()

    def _scaled(self, x: Floats) -> Floats:
        if self.scales.residual != 1.0:
            x *= np.float32(self.scales.residual)
        return x

    def _see(self, seen: Seen, parts: tuple[str, ...], x: Floats, expert: int | None = None) -> None:
        if self.watcher is not None:
            parts = tuple(dict.fromkeys(self.shape.whole(part) for part in parts))
            names = tuple(f"blk.{self.index}.{part}.weight" for part in parts)
            seen.append((names, expert, self.watcher.measure(names, x)))

    def _heads(self, name: str, x: Floats, heads: int, start: int) -> Floats:
        """Return queries or keys `(chunks, rows, heads, head_size)`, normed if need be, rotated."""
        y = self.linear(name, _flat(x))
        if self.shape.wide_norms:
            y = self._normed(f"{name}_norm", y)
        y = y.reshape(*x.shape[:2], heads, self.shape.head_size)
        if not self.shape.wide_norms:
            y = self._normed(f"{name}_norm", y)
        if self.rope is not None:
            self.rope.rotate(y, start)
        return y

    def _feed_forward(self, x: Floats, seen: Seen) -> Floats:
        if not self.shape.experts:
            return self._dense(x, seen)
        out = self._mixture(x, seen)
        if self.shape.shared_feed_forward:
            out += self._shared(x, seen)
        return out

    def _mixture(self, x: Floats, seen: Seen) -> Floats:
        """Return what the chosen experts make of each row, by their shares."""
        self._see(seen, ROUTER, x)
        chosen, shares = choose(self.linear("ffn_gate_inp", x), self.shape.experts_used, self.shares_add_up)
        out = np.zeros_like(x)
        for expert in range(self.shape.experts):
            rows, nth = np.nonzero(chosen == expert)
            if not len(rows):
                continue
            own = x[rows]
            self._see(seen, EXPERTS_IN, own, expert)
            gate, up = (self._linear_of(f"ffn_{part}_exps", expert, own) for part in ("gate", "up"))
            inner = self.steps.gated(gate, up, self.gate)
            self._see(seen, EXPERTS_OUT, inner, expert)
            out[rows] += self._linear_of("ffn_down_exps", expert, inner) * shares[rows, nth][:, None]
        return out

    def _linear_of(self, name: str, expert: int, x: Floats) -> Floats:
        """Return what `linear` does, with the weights and bias of one expert."""
        y = self.steps.product(self.inputs.of(name, x), self.weights[f"{name}.weight"][expert])
        bias = self.weights.get(f"{name}.bias")
        if bias is not None:
            y += bias[expert]
        return y

    def _shared(self, x: Floats, seen: Seen) -> Floats:
        self._see(seen, SHARED_IN, x)
        inner = self.steps.gated(self.linear("ffn_gate_shexp", x), self.linear("ffn_up_shexp", x), self.gate)
        self._see(seen, SHARED_OUT, inner)
        out = self.linear("ffn_down_shexp", inner)
        out *= sigmoid(x @ self.weights["ffn_gate_inp_shexp.weight"].reshape(-1, 1))
        return out

    def _dense(self, x: Floats, seen: Seen) -> Floats:
        self._see(seen, FEED_IN, x)
        gate = self.steps.gated(self.linear("ffn_gate", x), self.linear("ffn_up", x), self.gate)
        self._see(seen, FEED_OUT, gate)
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
    report: Report = ignore,
    steps: Steps | None = None,
    activations: Activations = "float32",
) -> list[T]:
    """Run all chunks `tokens` `(chunks, n_ctx)` and return `each(chunk, logits)` for every chunk, in order.

    `logits` is float32 `(n_ctx - 1 - first, vocab)`: those of positions `first` to the last but one, which
    predict the token that follows them. It belongs to `each`, which is called by several threads.
    """
    run = Run(Weights(source), tokens, first, None, report, steps, activations)
    with workers(threads, len(tokens)) as pool:
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
    with workers(threads, len(tokens)) as pool:
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
    with workers(threads, len(run.tasks(len(tokens))), blas=1) as pool:
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
        self.ropes = check(weights, tokens.shape[1])
        # The last layer is needed for the scored positions only.
        self.starts = [0] * (weights.shape.layers - 1) + [first]
        chunks, n_ctx = tokens.shape
        scored = n_ctx - 1 - first if watcher is None else 0
        stage = "evaluate" if watcher is None else "calibrate"
        self.meter = Meter(weights.shape, chunks, n_ctx, self.starts, scored, report, stage)

    def groups(self) -> Iterator[range]:
        """Yield the chunks whose hidden states are in memory together."""
        size = max(1, GROUP_BYTES // (self.tokens.shape[1] * self.weights.shape.embedding * 4))
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
        tasks = [x[place] for place in self.tasks(len(chunks))]
        for index, start in enumerate(self.starts):
            layer = self.ready(self.layer(index, pool), pool)
            results = []
            for passed in pool.map(layer.run, tasks, [start] * len(tasks)):
                results.append(passed.states)
                self._tell(passed.seen)
                self.meter.layer(index, chunks, len(passed.states))
            tasks = results
        return [states for task in tasks for states in task]

    def ready(self, layer: Layer, pool: Executor) -> Layer:
        """Return the layer with its matrices in the form that products are fastest with."""
        names = [name for name in layer.weights if name.removesuffix(".weight") in MATRICES]
        matrices = pool.map(self.steps.ready, [layer.weights[name] for name in names])
        return replace(layer, weights={**layer.weights, **dict(zip(names, matrices, strict=True))})

    def _tell(self, seen: Seen) -> None:
        if self.watcher is None:
            return
        for names, expert, measured in seen:
            if expert is None:
                self.watcher.add(names, measured)
            else:
                self.watcher.add_expert(names, expert, self.weights.shape.experts, measured)

    def layer(self, index: int, pool: Executor) -> Layer:
        """Return layer `index`, dequantized."""
        weights = self.weights
        family = weights.architecture
        return Layer(
            index=index,
            weights=weights.layer(index, pool),
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
