"""What an importance matrix looks like, tensor by tensor: which columns count, and how alike layers are.

The figures are those of `llama-imatrix --show-statistics`. They are of the mean squared inputs of columns,
without those of experts that no token reached; similarity is that of the sums, as there.

1. llama.cpp, `tools/imatrix` (release 0.5.0-dev).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantcore.imatrix import ImportanceMatrix

Doubles = npt.NDArray[np.float64]

INACTIVE = 1e-5  # mean squared input up to which a column does nothing
_LAYER = re.compile(r"blk\.(\d+)\.")


@dataclass(frozen=True)
class EntryStatistics:
    """The mean squared inputs of one weight's columns, `elements` of them.

    `active` is the share of columns above `INACTIVE`, `z_share` that of those more than a standard deviation
    above the mean; `entropy` is in bits, were the values parts of a whole, and `entropy_share` its share of
    what equal values would have, None of a single one. `cosine` compares with the same tensor of the layer
    before, None where there is none of that size.
    """

    name: str
    layer: int | None
    part: str
    total: float
    smallest: float
    largest: float
    mean: float
    deviation: float
    active: float
    elements: int
    entropy: float
    entropy_share: float | None
    z_share: float
    cosine: float | None


@dataclass(frozen=True)
class LayerStatistics:
    """The means over a layer's tensors, each counted by its elements; `cosine` over those that have one."""

    layer: int
    total: float
    z_share: float
    cosine: float | None


def entry_statistics(imatrix: ImportanceMatrix) -> list[EntryStatistics]:
    """Return the figures of all entries, by part of a layer, and of a part the largest sums first.

    Entries that no token reached are left out.
    """
    found = list(_each(imatrix))
    return sorted(found, key=lambda entry: (entry.part, -entry.total, entry.name))


def layer_statistics(entries: list[EntryStatistics]) -> list[LayerStatistics]:
    """Return the means of each layer, in order; entries outside of layers count for none."""
    layers: dict[int, list[EntryStatistics]] = {}
    for entry in entries:
        if entry.layer is not None:
            layers.setdefault(entry.layer, []).append(entry)
    return [
        LayerStatistics(
            layer,
            total=_weighted_mean([(entry.total, entry.elements) for entry in found]) or 0.0,
            z_share=_weighted_mean([(entry.z_share, entry.elements) for entry in found]) or 0.0,
            cosine=_weighted_mean([(e.cosine, e.elements) for e in found if e.cosine is not None]),
        )
        for layer, found in sorted(layers.items())
    ]


def _weighted_mean(pairs: list[tuple[float, int]]) -> float | None:
    count = sum(weight for _, weight in pairs)
    return sum(value * weight for value, weight in pairs) / count if count else None


def _each(imatrix: ImportanceMatrix) -> Iterator[EntryStatistics]:
    for name in imatrix.entries:
        sums, counts = imatrix.sums(name, 1)
        reached = counts > 0
        if reached.any():
            means = sums[reached].astype(np.float64) / counts[reached, None]  # (n_reached, row_length)
            yield _statistics(name, means.ravel(), _cosine(imatrix, name, sums.astype(np.float64)))


def _statistics(name: str, values: Doubles, cosine: float | None) -> EntryStatistics:
    total, mean, deviation = float(values.sum()), float(values.mean()), float(values.std())
    parts = values[values > 0] / total if total > 0 else values[:0]
    entropy = float(-(parts * np.log2(parts)).sum())
    layer = _LAYER.search(name)
    return EntryStatistics(
        name=name,
        layer=int(layer[1]) if layer else None,
        part=_part(name),
        total=total,
        smallest=float(values.min()),
        largest=float(values.max()),
        mean=mean,
        deviation=deviation,
        active=float((values > INACTIVE).mean()),
        elements=values.size,
        entropy=entropy,
        entropy_share=entropy / float(np.log2(values.size)) if values.size > 1 else None,
        z_share=float((values > mean + deviation).mean()) if deviation else 0.0,
        cosine=cosine,
    )


def _part(name: str) -> str:
    """Return what stands before `weight` in a name, such as `attn_q`; the whole name where nothing does."""
    words = name.split(".")
    return words[words.index("weight") - 1] if "weight" in words[1:] else name


def _cosine(imatrix: ImportanceMatrix, name: str, sums: Doubles) -> float | None:
    layer = _LAYER.search(name)
    if layer is None:
        return None
    before = f"{name[: layer.start(1)]}{int(layer[1]) - 1}{name[layer.end(1) :]}"
    if before not in imatrix.entries:
        return None
    others = imatrix.sums(before, 1)[0].astype(np.float64)
    norms = np.linalg.norm(sums) * np.linalg.norm(others)
    if others.size != sums.size or not norms:
        return None
    return float((sums.ravel() * others.ravel()).sum() / norms)
