"""The weights of a model as float32, a layer at a time, with their shapes checked against the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from quantcore.architectures import Architecture, by_name
from quantcore.errors import UnreadableFile
from quantcore.evaluate.ops import Floats
from quantcore.formats import to_float
from quantcore.sources.base import Source
from quantcore.tensors import Tensor

# Weights in one piece of work: small enough to spread a layer over all cores.
SLAB_WEIGHTS = 1 << 21


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: `embedding` and `feed_forward` are vector lengths, `eps` the norm's epsilon."""

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    eps: float

    def of(self, part: str) -> tuple[int, ...]:
        """Return the shape (outputs, inputs) that `part` of a layer, such as `attn_q.weight`, must have."""
        name, _, kind = part.rpartition(".")
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        wide: Mapping[str, tuple[int, int]] = {
            "attn_q": (q, self.embedding),
            "attn_k": (kv, self.embedding),
            "attn_v": (kv, self.embedding),
            "attn_output": (self.embedding, q),
            "ffn_gate": (self.feed_forward, self.embedding),
            "ffn_up": (self.feed_forward, self.embedding),
            "ffn_down": (self.embedding, self.feed_forward),
        }
        if name in wide:
            return wide[name] if kind == "weight" else wide[name][:1]
        return (self.head_size,) if name in ("attn_q_norm", "attn_k_norm") else (self.embedding,)


@dataclass(frozen=True)
class Weights:
    """Give the weights of `source` as float32 on demand; nothing is kept."""

    source: Source

    @cached_property
    def architecture(self) -> Architecture:
        return by_name(self.source.architecture)

    @cached_property
    def shape(self) -> Shape:
        """Return the sizes in the metadata; raises `UnreadableFile` naming a key that is missing."""
        heads = self._size("attention.head_count")
        kv_heads = self._size("attention.head_count_kv", heads)
        if heads % kv_heads:
            raise UnreadableFile(f"{self.source.path}: {heads} heads cannot share {kv_heads} keys evenly")
        embedding = self._size("embedding_length")
        return Shape(
            layers=self._size("block_count"),
            embedding=embedding,
            feed_forward=self._size("feed_forward_length"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=self._size("attention.key_length", embedding // heads),
            vocab=self._tensor("token_embd.weight").info.shape[0],
            eps=float(self.source.hparam("attention.layer_norm_rms_epsilon", 1e-6)),
        )

    def _size(self, key: str, default: int | None = None) -> int:
        value = self.source.hparam(key, default)
        if not isinstance(value, int) or value <= 0:
            raise UnreadableFile(
                f"{self.source.path}: {self.source.architecture}.{key} is {value!r}, not a size"
            )
        return value

    def _tensor(self, name: str) -> Tensor:
        tensor = self.source.tensor(name)
        if tensor is None:
            raise UnreadableFile(f"{self.source.path}: has no tensor {name}")
        return tensor

    def layer(self, index: int, pool: Executor) -> dict[str, Floats]:
        """Return the tensors of layer `index` by the part of their name after `blk.N.`."""
        parts = {}
        for part in (*self.architecture.block, *self.architecture.optional):
            name = f"blk.{index}.{part}"
            if part in self.architecture.optional and self.source.tensor(name) is None:
                continue
            parts[part] = self._checked(name, self.shape.of(part), pool)
        return parts

    def output(self, pool: Executor) -> Floats:
        """Return the output matrix `(vocab, embedding)`: the embeddings where the file has no other."""
        name = "output.weight" if self.source.tensor("output.weight") is not None else "token_embd.weight"
        return self._checked(name, (self.shape.vocab, self.shape.embedding), pool)

    def output_norm(self, pool: Executor) -> Floats:
        """Return the last norm's weights `(embedding,)`."""
        return self._checked("output_norm.weight", (self.shape.embedding,), pool)

    def embed(self, tokens: npt.NDArray[np.int32]) -> Floats:
        """Return the embeddings of `tokens`, float32 `(*tokens.shape, embedding)`.

        Only the rows that occur are dequantized, though all are read past.
        """
        tensor = self._tensor("token_embd.weight")
        wanted, places = np.unique(tokens, return_inverse=True)
        if len(wanted) and wanted[-1] >= self.shape.vocab:
            raise UnreadableFile(
                f"{self.source.path}: token {wanted[-1]} has no embedding; there are {self.shape.vocab}"
            )
        rows = np.empty((len(wanted), self.shape.embedding), dtype=np.float32)
        step = max(1, SLAB_WEIGHTS // self.shape.embedding)
        for start in range(0, self.shape.vocab, step):
            first, last = np.searchsorted(wanted, (start, start + step))
            if first < last:
                stored = tensor.read_rows(start, min(start + step, self.shape.vocab))
                rows[first:last] = to_float(tensor.info, stored[wanted[first:last] - start])
        return rows[places.reshape(tokens.shape)]

    def _checked(self, name: str, shape: tuple[int, ...], pool: Executor) -> Floats:
        tensor = self._tensor(name)
        if tensor.info.shape != shape:
            raise UnreadableFile(
                f"{self.source.path}: {name} is {list(tensor.info.shape)}, the metadata mean {list(shape)}"
            )
        return read_float(tensor, pool)


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
