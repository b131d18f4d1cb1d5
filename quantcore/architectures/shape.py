"""The sizes of a model, and what they make of each tensor's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: `embedding` and `feed_forward` are vector lengths.

    `wide_norms` tells that norms of queries and keys are as wide as all heads together.
    """

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    wide_norms: bool = False

    def of(self, tensor: str) -> tuple[int, ...]:
        """Return the shape, (outputs, inputs) for a matrix, that `tensor` must have."""
        part, kind = tensor.split(".")[-2:]  # of blk.N.attn_q.weight or output.weight
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        wide: Mapping[str, tuple[int, int]] = {
            "token_embd": (self.vocab, self.embedding),
            "output": (self.vocab, self.embedding),
            "attn_q": (q, self.embedding),
            "attn_k": (kv, self.embedding),
            "attn_v": (kv, self.embedding),
            "attn_output": (self.embedding, q),
            "ffn_gate": (self.feed_forward, self.embedding),
            "ffn_up": (self.feed_forward, self.embedding),
            "ffn_down": (self.embedding, self.feed_forward),
        }
        if part in wide:
            return wide[part] if kind == "weight" else wide[part][:1]
        heads = {"attn_q_norm": self.heads, "attn_k_norm": self.kv_heads}
        if part in heads:
            return (self.head_size * (heads[part] if self.wide_norms else 1),)
        return (self.embedding,)
