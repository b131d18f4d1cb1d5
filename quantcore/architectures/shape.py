"""The sizes of a model, and what they make of each tensor's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: `embedding` and `feed_forward` are vector lengths.

    `wide_norms` tells that norms of queries and keys are as wide as all heads together. Of a mixture's
    `experts`, with a feed-forward part of length `expert_feed_forward` each, a token takes `experts_used`;
    `shared_feed_forward` is that of the expert that all tokens share, 0 if there is none.
    """

    layers: int
    embedding: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int
    wide_norms: bool = False
    experts: int = 0
    experts_used: int = 0
    expert_feed_forward: int = 0
    shared_feed_forward: int = 0

    @property
    def active_feed_forward(self) -> int:
        """Return the length of what a token goes through in a layer's feed-forward part."""
        if not self.experts:
            return self.feed_forward
        return self.experts_used * self.expert_feed_forward + self.shared_feed_forward

    def of(self, tensor: str) -> tuple[int, ...]:
        """Return the shape, (outputs, inputs) for a matrix, that `tensor` must have."""
        part, kind = tensor.split(".")[-2:]  # of blk.N.attn_q.weight or output.weight
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        inner, shared = self.expert_feed_forward, self.shared_feed_forward
        wide: Mapping[str, tuple[int, ...]] = {
            "token_embd": (self.vocab, self.embedding),
            "output": (self.vocab, self.embedding),
            "attn_q": (q, self.embedding),
            "attn_k": (kv, self.embedding),
            "attn_v": (kv, self.embedding),
            "attn_output": (self.embedding, q),
            "ffn_gate": (self.feed_forward, self.embedding),
            "ffn_up": (self.feed_forward, self.embedding),
            "ffn_down": (self.embedding, self.feed_forward),
            "ffn_gate_inp": (self.experts, self.embedding),
            "ffn_gate_exps": (self.experts, inner, self.embedding),
            "ffn_up_exps": (self.experts, inner, self.embedding),
            "ffn_down_exps": (self.experts, self.embedding, inner),
            "ffn_gate_shexp": (shared, self.embedding),
            "ffn_up_shexp": (shared, self.embedding),
            "ffn_down_shexp": (self.embedding, shared),
        }
        if part in wide:
            return wide[part] if kind == "weight" else wide[part][:-1]
        if part == "attn_sinks":
            return (self.heads,)
        heads = {"attn_q_norm": self.heads, "attn_k_norm": self.kv_heads}
        if part in heads:
            return (self.head_size * (heads[part] if self.wide_norms else 1),)
        return (self.embedding,)


def same_shape(shape: tuple[int, ...], meant: tuple[int, ...]) -> bool:
    """Return whether a tensor's shape is the one that is meant; a vector may be a matrix of one row."""
    return shape in {meant, (1, *meant)} if len(meant) == 1 else shape == meant
