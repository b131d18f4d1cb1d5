"""One layer of a model, ready to run: attention, then a feed-forward part or a mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quantcore.architectures.base import Gate, NormKind
from quantcore.architectures.scales import Scales
from quantcore.architectures.shape import Shape
from quantcore.evaluate.activations import EXACT, Inputs
from quantcore.evaluate.mixture import PARTS, Piece, Routes, Slab
from quantcore.evaluate.ops import Floats, choose, sigmoid
from quantcore.evaluate.rope import Rope
from quantcore.evaluate.steps import Steps


class Watcher(Protocol):
    """Who wants to see what the matrices of layers are multiplied with."""

    def measure(self, names: tuple[str, ...], x: Floats) -> Any:
        """Return what is to be kept of inputs `x` `(rows, inputs)` of `names`; called by several threads."""

    def add(self, names: tuple[str, ...], measured: Any) -> None:
        """Take what was measured of the input that the matrices `names` share: in the order of the text."""

    def add_expert(self, names: tuple[str, ...], expert: int, experts: int, measured: Any) -> None:
        """Take what was measured of the input of one of a stack of `experts` matrices."""


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
class Attended:
    """The middle of a layer: hidden states, and their `normed` form `(chunks * rows, embedding)`."""

    states: Floats
    normed: Floats
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
        attended = self.attend(x, start)
        return self._added(attended, self._feed_forward(attended.normed, attended.seen))

    def attend(self, x: Floats, start: int) -> Attended:
        """Return what the feed-forward part begins with: the first half of `run`."""
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
        attended = self._scaled(attended)
        attended += x[:, start:]
        x = attended
        normed = late if self._side_by_side else self._normed(self.feed_norm, x)
        return Attended(x, _flat(normed), seen)

    def finish(self, attended: Attended, fed: Floats) -> Passed:
        """Return what leaves a layer whose experts made `fed` `(chunks * rows, embedding)`."""
        return self._added(attended, self._with_shared(attended.normed, fed, attended.seen))

    def _added(self, attended: Attended, fed: Floats) -> Passed:
        x = attended.states
        x += self._scaled(self._normed("post_ffw_norm", fed.reshape(x.shape)))
        return Passed(x, attended.seen)

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
            seen.append((names, expert, self.watcher.measure(names, self.steps.home(x))))

    def _heads(self, name: str, x: Floats, heads: int, start: int) -> Floats:
        """Return queries or keys `(chunks, rows, heads, head_size)`, normed if need be, rotated."""
        y = self.linear(name, _flat(x))
        if self.shape.wide_norms:
            y = self._normed(f"{name}_norm", y)
        y = y.reshape(*x.shape[:2], heads, self.shape.head_size)
        if not self.shape.wide_norms:
            y = self._normed(f"{name}_norm", y)
        if self.rope is not None:
            self.rope.rotate(y, start, xp=self.steps.xp)
        return y

    def _feed_forward(self, x: Floats, seen: Seen) -> Floats:
        if not self.shape.experts:
            return self._dense(x, seen)
        return self._with_shared(x, self._mixture(x, seen), seen)

    def _with_shared(self, x: Floats, out: Floats, seen: Seen) -> Floats:
        """Return what the experts made of `x`, `out`, plus what the one makes that all tokens share."""
        if self.shape.shared_feed_forward:
            out += self._shared(x, seen)
        return out

    def choose(self, x: Floats, seen: Seen) -> tuple[npt.NDArray[np.intp], Floats]:
        """Return the experts that each row is sent to, and their shares, each `(rows, used)`."""
        self._see(seen, ROUTER, x)
        return choose(self.linear("ffn_gate_inp", x), self.shape.experts_used, self.shares_add_up)

    def _mixture(self, x: Floats, seen: Seen) -> Floats:
        """Return what the chosen experts make of each row, by their shares."""
        routes = Routes.of(*self.choose(x, seen), self.shape.experts)
        out = np.zeros_like(x)
        for expert in range(self.shape.experts):
            matrices = {part: self.weights[f"ffn_{part}_exps.weight"][expert] for part in PARTS}
            for piece in routes.pieces(expert):
                out[piece.rows] += self._expert(x, piece, matrices, seen)
        return out

    def of_slab(self, x: Floats, slab: Slab, piece: Piece) -> tuple[Floats, Seen]:
        """Return what an expert of a slab adds to its rows of `x`, and what was measured."""
        seen: Seen = []
        return self._expert(x, piece, slab.matrices[piece.expert], seen), seen

    def _expert(self, x: Floats, piece: Piece, matrices: Mapping[str, Any], seen: Seen) -> Floats:
        """Return what an expert adds to its rows of `x`; `matrices` are its own, by part."""
        own = x[piece.rows]
        self._see(seen, EXPERTS_IN, own, piece.expert)
        gate, up = (self._linear_of(part, own, matrices, piece.expert) for part in ("gate", "up"))
        inner = self.steps.gated(gate, up, self.gate)
        self._see(seen, EXPERTS_OUT, inner, piece.expert)
        return self._linear_of("down", inner, matrices, piece.expert) * piece.shares[:, None]

    def _linear_of(self, part: str, x: Floats, matrices: Mapping[str, Any], expert: int) -> Floats:
        """Return what `linear` does, with the weights and bias of one expert."""
        y = self.steps.product(self.inputs.of(f"ffn_{part}_exps", x), matrices[part])
        bias = self.weights.get(f"ffn_{part}_exps.bias")
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
