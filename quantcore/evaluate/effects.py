"""What rounding one tensor does to a model's predictions: the KL divergence that it alone makes.

A model with one tensor rounded differs from the model itself in that tensor's layer and all later ones only,
so the variants of all tensors are carried through the layers together, and each layer is dequantized once for
all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from quantcore.evaluate.blas import workers
from quantcore.evaluate.changed import Rounding, divergences
from quantcore.evaluate.forward import Run, Tokens
from quantcore.evaluate.head import Head
from quantcore.evaluate.layer import Layer
from quantcore.evaluate.meter import layer_cost, logits_cost
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.weights import Weights
from quantcore.progress import Progress, Report, ignore, seconds_left
from quantcore.sources.base import Source

STATES_BYTES = 1 << 29  # hidden states of the variants that are carried together
EMBEDDINGS, OUTPUT = "token_embd.weight", "output.weight"


@dataclass
class Variant:
    """The model with one tensor rounded: its hidden states, and the rounding of its output matrix, if any."""

    name: str
    states: Floats
    rounding: Rounding | None = None


def effects(
    source: Source,
    tokens: Tokens,
    roundings: Mapping[str, Rounding],
    *,
    threads: int | None = None,
    report: Report = ignore,
) -> dict[str, float]:
    """Return the mean KL divergence in nats per token that each of `roundings` makes alone, by tensor.

    Scored are the positions of the second half of each of the chunks `tokens` `(chunks, n_ctx)`.
    """
    return _Effects(source, tokens, roundings, report).measure(threads)


class _Effects:
    def __init__(
        self, source: Source, tokens: Tokens, roundings: Mapping[str, Rounding], report: Report
    ) -> None:
        self.weights = Weights(source)
        self.tokens, self.roundings = tokens, roundings
        self.first = tokens.shape[1] // 2
        self.run = Run(self.weights, tokens, self.first, None, ignore)
        self.layers = self.weights.shape.layers
        self.spans = self._spans()
        self.meter = _Meter(self, report)

    def measure(self, threads: int | None) -> dict[str, float]:
        found: dict[str, float] = {}
        with workers(threads, len(self.roundings)) as pool:
            states = self.weights.embed(self.tokens)  # (chunks, n_ctx, embedding)
            for span in self.spans:
                states, made = self._span(span, states, pool)
                found |= made
        return found

    def _spans(self) -> list[range]:
        """Return the layers whose variants are carried together."""
        nbytes = self.tokens.size * self.weights.shape.embedding * 4 * len(self.weights.parts)
        step = max(1, STATES_BYTES // nbytes)
        return [range(start, min(start + step, self.layers)) for start in range(0, self.layers, step)]

    def own(self, index: int) -> list[str]:
        """Return the tensors of a layer that are to be rounded."""
        return [name for name in self.roundings if name.startswith(f"blk.{index}.")]

    def _span(self, span: range, states: Floats, pool: Executor) -> tuple[Floats, dict[str, float]]:
        """Return the model's states behind the layers `span`, and the effects of their tensors."""
        behind = states
        variants = self._embedded(states) if span.start == 0 else []
        for index in range(span.start, self.layers):
            raw = self.run.layer(index, pool)
            layer = self.run.ready(raw, pool)
            started = [(layer, states), *((layer, variant.states) for variant in variants)]
            if index in span:
                started += [(self._rounded(raw, layer, name), states) for name in self.own(index)]
                variants += [Variant(name, states) for name in self.own(index)]
            states, *passed = pool.map(
                _run, *zip(*started, strict=True), [self.run.starts[index]] * len(started)
            )
            for variant, now in zip(variants, passed, strict=True):
                variant.states = now
            self.meter.layer(index, len(started))
            if index == span.stop - 1:
                behind = states
        if span.start == 0 and OUTPUT in self.roundings:
            variants.append(Variant(OUTPUT, states, self.roundings[OUTPUT]))
        return behind, self._scored(states, variants, pool)

    def _rounded(self, raw: Layer, ready: Layer, name: str) -> Layer:
        """Return the layer `ready` with one of its `raw` weights, or what it was split into, rounded."""
        part = name.split(".", 2)[2]
        whole = part.removesuffix(".weight")
        pieces = self.weights.architecture.fused.get(whole)
        parts = [f"{piece}.weight" for piece in pieces] if pieces else [part]
        changed = {
            one: self.run.steps.ready(self.roundings[name](np.ascontiguousarray(raw.weights[one])))
            for one in parts
        }
        return replace(ready, weights={**ready.weights, **changed})

    def _embedded(self, states: Floats) -> list[Variant]:
        """Return the variant with rounded embeddings, if asked for: as the output too, if they are it."""
        rounding = self.roundings.get(EMBEDDINGS)
        if rounding is None:
            return []
        scale = np.float32(self.weights.scales.embedding)
        rows = states.reshape(-1, states.shape[-1]) / scale  # (chunks * n_ctx, embedding)
        tied = self.weights.source.tensor(OUTPUT) is None
        return [
            Variant(EMBEDDINGS, (rounding(rows) * scale).reshape(states.shape), rounding if tied else None)
        ]

    def _scored(self, states: Floats, variants: list[Variant], pool: Executor) -> dict[str, float]:
        """Return the mean divergence of each variant over the scored positions."""
        head, count = Head(self.weights, self.run.steps), self.tokens.shape[1] - 1 - self.first
        rows = len(self.tokens) * count

        def late(states: Floats) -> Floats:
            return states[:, :count].reshape(rows, -1)  # (chunks * scored, embedding)

        base, *others = head.normed([late(states), *(late(it.states) for it in variants)], pool)
        roundings = [variant.rounding for variant in variants]
        share = rows / (2 * len(head.slabs))
        found = divergences(
            head, base, others, roundings, pool, lambda: self.meter.logits(share, len(variants))
        )
        return {variant.name: float(kld.mean()) for variant, kld in zip(variants, found, strict=True)}


def _run(layer: Layer, states: Floats, start: int) -> Floats:
    return layer.run(states, start).states


class _Meter:
    """Turn layers and logits into progress, counted in multiply-adds and told in tensors."""

    def __init__(self, work: _Effects, report: Report) -> None:
        shape, (chunks, n_ctx) = work.weights.shape, work.tokens.shape
        self.report, self.count = report, len(work.roundings)
        self.layers = [chunks * layer_cost(shape, n_ctx, start) for start in work.run.starts]
        self.row = logits_cost(shape, 1)
        scored = chunks * (n_ctx - 1 - work.first)
        self.total = sum(self._span(work, span, scored) for span in work.spans)
        self.done, self.began = 0.0, time.monotonic()

    def _span(self, work: _Effects, span: range, scored: int) -> int:
        carried = sum(name in work.roundings for name in (EMBEDDINGS, OUTPUT)) if span.start == 0 else 0
        cost = 0
        for index in range(span.start, work.layers):
            carried += len(work.own(index)) if index in span else 0
            cost += (1 + carried) * self.layers[index]
        return cost + (1 + carried) * scored * self.row

    def layer(self, index: int, variants: int) -> None:
        """Report that so many variants passed a layer."""
        self._add(variants * self.layers[index], f"layer {index + 1} of {len(self.layers)}")

    def logits(self, rows: float, variants: int) -> None:
        """Report that so many rows of each variant were scored."""
        self._add((1 + variants) * rows * self.row, "predictions")

    def _add(self, work: float, item: str) -> None:
        self.done += work
        share, seconds = min(1.0, self.done / self.total), time.monotonic() - self.began
        left = seconds_left(int(self.done), self.total, seconds)
        done = int(share * self.count)
        self.report(Progress("weigh", done, self.count, "tensors", seconds, left, item))
