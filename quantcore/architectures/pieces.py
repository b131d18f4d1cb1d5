"""How the tensors of a checkpoint hold those of a family, where they are not the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Every `step`-th output of a stored tensor from `first` on, which goes by `name`.

    `inputs_first` says that matrices stand as (inputs, outputs), if they are plain numbers.
    """

    name: str
    first: int = 0
    step: int = 1
    inputs_first: bool = False
