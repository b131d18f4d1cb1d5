"""The weights of a model as float32, a layer at a time, with their shapes checked against the metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.architectures import Architecture, by_name
from quantcore.architectures.base import SHARED
from quantcore.architectures.scales import Scales
from quantcore.architectures.shape import Shape, same_shape
from quantcore.errors import UnknownArchitecture, UnreadableFile
from quantcore.evaluate.ops import Floats, after_norm
from quantcore.evaluate.windows import layer_windows
from quantcore.formats import to_float
from quantcore.sources.base import Source
from quantcore.tensors import Tensor

# Weights in one piece of work: small enough to spread a layer over all cores.
SLAB_WEIGHTS = 1 << 20

Read = Callable[[Tensor, Executor], Any]


@dataclass(frozen=True)
class Weights:
    """Give the weights of `source` as float32 on demand; nothing is kept."""

    source: Source

    @cached_property
    def architecture(self) -> Architecture:
        try:
            return by_name(self.source.architecture)
        except UnknownArchitecture as exc:
            raise UnknownArchitecture(f"{self.source.path}: general.architecture: {exc}") from exc

    @cached_property
    def shape(self) -> Shape:
        """Return the sizes in the metadata; raises `UnreadableFile` naming a key that is missing."""
        heads = self._size("attention.head_count")
        kv_heads = self._size("attention.head_count_kv", heads)
        if heads % kv_heads:
            raise UnreadableFile(f"{self.source.path}: {heads} heads cannot share {kv_heads} keys evenly")
        embedding = self._size("embedding_length")
        embeddings = self._tensor("token_embd.weight").info
        return Shape(
            layers=self._size("block_count"),
            embedding=embedding,
            feed_forward=self._size("feed_forward_length"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=self._size("attention.key_length", embedding // heads),
            vocab=embeddings.n_rows,
            wide_norms=self.architecture.wide_norms,
            stacked_norms=self.architecture.stacked_norms,
            fused=self.architecture.fused,
            **self._expert_sizes,
        )

    @cached_property
    def _expert_sizes(self) -> dict[str, int]:
        count = self.source.count("expert_count", 0)
        if not count:
            return {}
        used = self._size("expert_used_count")
        if used > count:
            raise UnreadableFile(f"{self.source.path}: {used} of {count} experts cannot be used")
        whole = self._size("feed_forward_length")
        inner = whole // used if self.architecture.splits_length else whole
        has_shared = set(SHARED) <= set(self.architecture.experts)
        return {
            "experts": count,
            "experts_used": used,
            "expert_feed_forward": self._size("expert_feed_forward_length", inner),
            "shared_feed_forward": self._size("expert_shared_feed_forward_length", whole)
            if has_shared
            else 0,
        }

    @cached_property
    def parts(self) -> tuple[str, ...]:
        """Return the tensors that every layer must have, after `blk.N.`."""
        try:
            return self.architecture.parts(self.source.count("expert_count", 0))
        except UnknownArchitecture as exc:
            raise UnknownArchitecture(f"{self.source.path}: {exc}") from exc

    @cached_property
    def scales(self) -> Scales:
        """Return the factors and caps that follow from the metadata."""
        return self.architecture.scales(self.source.number, self.shape)

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """Return the sliding window of each layer, None for one that sees all earlier tokens."""
        return layer_windows(self.source, self.architecture.windows, self.shape.layers)

    @cached_property
    def eps(self) -> float:
        """Return the epsilon of the norms."""
        kind = "layer_norm" if self.architecture.norm == "layer" else "layer_norm_rms"
        return self.source.number(f"attention.{kind}_epsilon", 1e-6, positive=True)

    def check(self) -> None:
        """Refuse a model one of whose tensors is missing or has another shape, before any work."""
        for key in self.architecture.unknown_keys:
            if self.source.count(key, 0):
                name = self.architecture.name
                raise UnknownArchitecture(f"{self.source.path}: {name} with {name}.{key} is not known")
        # The family first: one that is unknown would lack fields too.
        parts = (*self.parts, *self.architecture.optional)
        layers = self.shape.layers
        if layers > len(self.source.tensors):  # else the names alone could fill the memory
            raise UnreadableFile(
                f"{self.source.path}: has {len(self.source.tensors)} tensors, too few for {layers} layers"
            )
        blocks = [f"blk.{index}.{part}" for index in range(layers) for part in parts]
        for name in (*self.architecture.outer, "output.weight", *blocks):
            if self.source.tensor(name) is not None or not self._optional(name):
                self._checked(name)

    def _optional(self, name: str) -> bool:
        return name == "output.weight" or name.split(".", 2)[-1] in self.architecture.optional

    def _size(self, key: str, default: int | None = None) -> int:
        value = self.source.hparam(key, default)
        if not isinstance(value, int) or value <= 0:
            raise self.source.bad_hparam(key, value, "a size")
        return value

    def _tensor(self, name: str) -> Tensor:
        tensor = self.source.tensor(name)
        if tensor is None:
            raise UnreadableFile(f"{self.source.path}: has no tensor {name}")
        return tensor

    def layer(
        self, index: int, pool: Executor, read: Read | None = None, *, with_experts: bool = True
    ) -> dict[str, Any]:
        """Return the tensors of layer `index` by the part of their name after `blk.N.`, fused ones split.

        They are float32, or what `read` makes of those that are not split. Those of matrices that experts
        have may be left out, see `expert`.
        """
        parts: dict[str, Any] = {}
        for part in (*self.parts, *self.architecture.optional):
            name = f"blk.{index}.{part}"
            if part.endswith("_exps.weight") and not with_experts:
                continue
            if part in self.architecture.optional and self.source.tensor(name) is None:
                continue
            fused = part.removesuffix(".weight") in self.architecture.fused
            parts[part] = (read_float if fused or read is None else read)(self._checked(name), pool)
        return self.split(parts)

    def expert(self, index: int, part: str, number: int) -> Floats:
        """Return the matrix of one expert of layer `index`, float32 `(outputs, inputs)`."""
        tensor = self._checked(f"blk.{index}.{part}")
        rows, inputs = tensor.info.shape[-2:]
        out = np.empty((rows, inputs), dtype=np.float32)
        step = max(1, SLAB_WEIGHTS // inputs)
        for start in range(0, rows, step):
            stop, first = min(start + step, rows), number * rows
            out[start:stop] = to_float(tensor.info, tensor.read_rows(first + start, first + stop))
        return out

    def split(self, parts: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return the tensors of a layer with fused matrices in pieces."""
        found = dict(parts)
        for whole, pieces in self.architecture.fused.items():
            ends = np.cumsum([self.shape.rows(piece) for piece in pieces])[:-1]
            for kind in [kind for kind in ("weight", "bias") if f"{whole}.{kind}" in parts]:
                split = zip(pieces, np.split(found.pop(f"{whole}.{kind}"), ends), strict=True)
                found |= {f"{piece}.{kind}": rows for piece, rows in split}
        return found

    def joined(self, parts: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return what `split` was given: the tensors of a layer as the file has them."""
        found = dict(parts)
        for whole, pieces in self.architecture.fused.items():
            for kind in [kind for kind in ("weight", "bias") if f"{pieces[0]}.{kind}" in parts]:
                found[f"{whole}.{kind}"] = np.concatenate([found.pop(f"{piece}.{kind}") for piece in pieces])
        return found

    def output(self, pool: Executor) -> Floats:
        """Return the output matrix `(vocab, embedding)`."""
        return read_float(self._output, pool)

    @property
    def output_type(self) -> str:
        """Return the type of the output matrix."""
        return self._output.info.type

    def output_rows(self, start: int, stop: int) -> Floats:
        """Return some rows of the output matrix."""
        return to_float(self._output.info, self._output.read_rows(start, stop))

    @cached_property
    def _output(self) -> Tensor:
        """Return the output matrix: the embeddings where the file has no other."""
        name = "output.weight" if self.source.tensor("output.weight") is not None else "token_embd.weight"
        return self._checked(name)

    def output_norm(self, pool: Executor) -> Callable[[Floats], Floats]:
        """Return the last norm, a function of hidden states `(..., embedding)`."""
        family, eps = self.architecture, self.eps
        names = [name for name in family.outer if name.startswith("output_norm.")]
        weights = {name: read_float(self._checked(name), pool) for name in names}
        return lambda x: after_norm(family.norm, weights, "output_norm", x, eps)

    def embed(self, tokens: npt.NDArray[np.int32]) -> Floats:
        """Return the embeddings of `tokens`, float32 `(*tokens.shape, embedding)`.

        Only the rows that occur are dequantized, though all are read past.
        """
        tensor = self._checked("token_embd.weight")
        wanted, places = np.unique(tokens, return_inverse=True)
        if len(wanted) and not 0 <= wanted[0] <= wanted[-1] < self.shape.vocab:
            lost = wanted[0] if wanted[0] < 0 else wanted[-1]
            raise UnreadableFile(
                f"{self.source.path}: token {lost} has no embedding; there are {self.shape.vocab}"
            )
        rows = np.empty((len(wanted), self.shape.embedding), dtype=np.float32)
        step = max(1, SLAB_WEIGHTS // self.shape.embedding)
        for start in range(0, self.shape.vocab, step):
            first, last = np.searchsorted(wanted, (start, start + step))
            if first < last:
                stored = tensor.read_rows(start, min(start + step, self.shape.vocab))
                rows[first:last] = to_float(tensor.info, stored[wanted[first:last] - start])
        if self.scales.embedding != 1.0:
            rows *= np.float32(self.scales.embedding)
        return rows[places.reshape(tokens.shape)]

    def _checked(self, name: str) -> Tensor:
        """Return a tensor of the shape that the metadata mean."""
        tensor, shape = self._tensor(name), self.shape.of(name)
        if not same_shape(tensor.info.shape, shape):
            raise UnreadableFile(
                f"{self.source.path}: {name} is {list(tensor.info.shape)}, the metadata mean {list(shape)}"
            )
        return tensor


def read_float(tensor: Tensor, pool: Executor) -> Floats:
    """Return a whole tensor as float32, dequantized in slabs by `pool`."""
    info = tensor.info
    out = np.empty((info.n_rows, info.row_length), dtype=np.float32)
    step = max(1, SLAB_WEIGHTS // info.row_length)

    def fill(start: int) -> None:
        stop = min(start + step, info.n_rows)
        out[start:stop] = to_float(info, tensor.read_rows(start, stop))

    for _ in pool.map(fill, range(0, info.n_rows, step)):
        pass
    return out.reshape(info.shape)
