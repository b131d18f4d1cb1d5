"""The sizes of a model, and what they make of each tensor's shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Shape:
    """The sizes of a model: `embedding` and `feed_forward` are vector lengths.

    `wide_norms` tells that norms of queries and keys are as wide as all heads together, `stacked_norms` that
    each head has its own. `fused` matrices hold others, one below the other. Of a mixture's
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
    stacked_norms: bool = False
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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
        meant = self._matrices.get(part)
        if part in self.fused:
            meant = (sum(self.rows(piece) for piece in self.fused[part]), self.embedding)
        if meant is not None:
            return meant if kind == "weight" else meant[:-1]
        if part == "attn_sinks":
            return (self.heads,)
        heads = {"attn_q_norm": self.heads, "attn_k_norm": self.kv_heads}
        if part not in heads:
            return (self.embedding,)
        if self.stacked_norms:
            return (heads[part], self.head_size)
        return (self.head_size * (heads[part] if self.wide_norms else 1),)

    def rows(self, part: str) -> int:
        """Return the outputs of the matrix `part` where it stands alone."""
        return self._matrices[part][0]

    def whole(self, part: str) -> str:
        """Return the matrix that holds `part`: itself, unless it is fused with others."""
        return next((whole for whole, pieces in self.fused.items() if part in pieces), part)

    @property
    def _matrices(self) -> Mapping[str, tuple[int, ...]]:
        q, kv = self.heads * self.head_size, self.kv_heads * self.head_size
        inner, shared = self.expert_feed_forward, self.shared_feed_forward
        return {
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


def same_shape(shape: tuple[int, ...], meant: tuple[int, ...]) -> bool:
    """Return whether a tensor's shape is the one that is meant; a vector may be a matrix of one row."""
    return shape in {meant, (1, *meant)} if len(meant) == 1 else shape == meant
