"""Sliding windows: which layers of a family have one, and how those are rotated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Windows:
    """Say which layers of a family see no more than a window of the text, and how long that is.

    Every `every`-th layer sees all earlier tokens. `length`, in tokens, is that of a file that states none: 0
    for no window in any layer, None if it must state one. Layers with a window are rotated as all others are,
    unless `base` gives them a rope base of their own, and no scaling. Files may say otherwise, under
    `attention.sliding_window`, `attention.sliding_window_pattern` and `rope.freq_base_swa`.
    """

    every: int
    length: int | None = None
    base: float | None = None

    def hides(self, layer: int) -> bool:
        """Return whether a layer has a window."""
        return (layer + 1) % self.every != 0

    def layer_types(self, layers: int) -> list[str]:
        """Return what Hugging Face calls the attention of each of so many layers."""
        return ["sliding_attention" if self.hides(layer) else "full_attention" for layer in range(layers)]
