"""What a family multiplies embeddings, scores and logits by, and what bounds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from quantcore.architectures.shape import Shape


class Number(Protocol):
    """Give the number under a key of a model's metadata, after the family's name."""

    def __call__(self, key: str, default: float, *, positive: bool = False) -> float: ...


@dataclass(frozen=True)
class Scales:
    """What embeddings, what parts add to the stream, scores and logits are multiplied by.

    `attention` is None for the usual one, 1 / sqrt(head size). Scores and logits with a cap c become
    c * tanh(x / c), which comes close to c and never reaches it; None is for no cap.
    """

    embedding: float = 1.0
    residual: float = 1.0
    attention: float | None = None
    logits: float = 1.0
    attention_cap: float | None = None
    logits_cap: float | None = None


def unscaled(_number: Number, _shape: Shape) -> Scales:
    """Leave everything as it is."""
    return Scales()
