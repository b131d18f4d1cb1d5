"""What is to be known of the inputs of a matrix, and the sums that it is made of.

1. llama.cpp, `tools/imatrix` (release 0.5.0-dev): sums of squares.
2. Lin et al., AWQ, https://arxiv.org/abs/2306.00978: mean magnitudes, and a sample of inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from quantcore.errors import InputError
from quantcore.statistics.gram import Gram
from quantcore.statistics.sample import Sample

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

# Rows of one product at least: of fewer, as experts get at a time, the sums would cost more than the product.
PRODUCT_ROWS = 512


@dataclass(frozen=True)
class Collect:
    """What to collect of the inputs of every matrix.

    `importance`: sums of squares by channel; `hessians`: X'X; `activations`: mean and largest magnitude by
    channel; `samples`: how many inputs to keep as they are, at most.
    """

    importance: bool = False
    hessians: bool = False
    activations: bool = False
    samples: int = 0

    def __post_init__(self) -> None:
        if self.samples < 0:
            raise InputError(f"{self.samples} samples cannot be kept; ask for 0 or more")


@dataclass
class Tally:
    """What was found of the inputs of one matrix, or of one expert's.

    `rows` inputs were seen. By channel, `(width,)`: `squares` and `magnitudes` are the sums of squares and of
    magnitudes, float64, and `largest` the largest magnitude, float32. None where it was not asked for.
    """

    width: int
    rows: int = 0
    squares: Doubles | None = None
    magnitudes: Doubles | None = None
    largest: Floats | None = None
    gram: Gram | None = None
    sample: Sample | None = None
    _waiting: list[Floats] = field(default_factory=list, repr=False)

    @classmethod
    def empty(cls, width: int, collect: Collect, seed: int) -> Tally:
        """Return a tally of no inputs; `seed` decides which of them will be kept."""
        return cls(
            width,
            squares=np.zeros(width) if collect.importance else None,
            magnitudes=np.zeros(width) if collect.activations else None,
            largest=np.zeros(width, dtype=np.float32) if collect.activations else None,
            gram=Gram(width) if collect.hessians else None,
            sample=Sample(width, collect.samples, seed) if collect.samples else None,
        )

    @property
    def means(self) -> Doubles:
        """Return the mean magnitude of each channel, float64 `(width,)`: zeros if there were no inputs."""
        if self.magnitudes is None:
            raise ValueError("magnitudes were not collected")
        return self.magnitudes / max(self.rows, 1)

    def hessian(self) -> Doubles:
        """Return X'X, float64 `(width, width)`, made anew each time."""
        if self.gram is None:
            raise ValueError("Hessians were not collected")
        return self.gram.square()

    def by_channel(self, batches: list[Floats]) -> None:
        """Take the next inputs, in the order of the text, for all but X'X."""
        for x in batches:  # (rows, width)
            if self.squares is not None:
                self.squares += np.einsum("ij,ij->j", x, x).astype(np.float64)
            if self.magnitudes is not None and self.largest is not None:
                magnitudes = np.abs(x)
                self.magnitudes += magnitudes.sum(axis=0, dtype=np.float32).astype(np.float64)
                np.maximum(self.largest, magnitudes.max(axis=0), out=self.largest)
            if self.sample is not None:
                self.sample.offer(x, self.rows)
            self.rows += len(x)

    def products(self, batches: list[Floats], *, last: bool = False) -> list[Callable[[], None]]:
        """Take the next inputs for X'X; return the work to do, which may be done in any order.

        Fewer rows than make a product wait for more, until the `last`. Work of one call must be done before
        the next.
        """
        if self.gram is None:
            return []
        whole: list[Floats] = []
        for x in batches:
            self._waiting.append(x)
            if sum(map(len, self._waiting)) >= PRODUCT_ROWS:
                whole.append(self._gathered())
        if last and self._waiting:
            whole.append(self._gathered())
        return [_Strip(self.gram, strip, whole) for strip in range(len(self.gram))] if whole else []

    def _gathered(self) -> Floats:
        rows = self._waiting[0] if len(self._waiting) == 1 else np.concatenate(self._waiting)
        self._waiting = []
        return rows

    def merge(self, other: Tally) -> None:
        """Add what another tally of as many channels found; what either lacks is lost."""
        self.squares = _sum(self.squares, other.squares)
        self.magnitudes = _sum(self.magnitudes, other.magnitudes)
        if self.largest is not None:
            self.largest = None if other.largest is None else np.maximum(self.largest, other.largest)
        if self.gram is not None and other.gram is not None:
            self.gram.merge(other.gram)
        else:
            self.gram = None
        self.sample = self.sample.merged(other.sample) if self.sample and other.sample else None
        self.rows += other.rows

    def finite(self) -> bool:
        """Say whether all that was found is finite numbers."""
        found = [self.squares, self.magnitudes, self.largest]
        found += [self.gram.diagonal()] if self.gram else []
        found += [self.sample.rows] if self.sample else []
        return all(np.isfinite(numbers).all() for numbers in found if numbers is not None)


@dataclass(frozen=True)
class _Strip:
    """Rows to add to one strip of X'X, in order."""

    gram: Gram
    strip: int
    batches: list[Floats]

    def __call__(self) -> None:
        for x in self.batches:
            self.gram.add(self.strip, x)


def _sum(ours: Doubles | None, theirs: Doubles | None) -> Doubles | None:
    return ours + theirs if ours is not None and theirs is not None else None


@dataclass(frozen=True)
class Shared:
    """What was found of an input that the matrices `names` share: one tally, or one for each expert."""

    names: tuple[str, ...]
    tallies: tuple[Tally, ...]

    @property
    def stem(self) -> str:
        """Return what files call it: the first name, without its end."""
        return self.names[0].removesuffix(".weight")

    def require_numbers(self) -> None:
        """Raise `InputError` naming a matrix whose inputs are no finite numbers."""
        if not all(tally.finite() for tally in self.tallies):
            raise InputError(f"{self.names[0]}: its inputs are no finite numbers; the model must be damaged")
