"""How much of a tensor is read, quantized and written in one go."""

from __future__ import annotations

# Weights in one slab: 4 MB as float32. Large enough that what a slab costs beside its weights vanishes, small
# enough that a dozen of them, with the temporaries of a search, stay far below 600 MB.
SLAB_WEIGHTS = 1 << 20


def rows_in_slab(row_length: int, weights: int = SLAB_WEIGHTS) -> int:
    """Return how many rows of `row_length` weights make a slab of about `weights`: one at least."""
    return max(1, weights // max(1, row_length))
