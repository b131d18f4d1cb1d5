"""Choose one of several options for each of many things, at the least total cost within a total size.

This is the multiple-choice knapsack problem. A multiplier on size that is the same for all (Lagrange) bounds
what any choice can reach; dynamic programming over sizes finds one near that bound.

1. H. Kellerer, U. Pferschy, D. Pisinger, Knapsack Problems, chapter 11. Springer 2004.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
import numpy.typing as npt

Sizes = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]

CELLS = 1 << 16  # steps of size that are told apart, where sizes have no common divisor
SWEEPS = 100  # halvings of the multiplier: far beyond what float64 can tell apart


@dataclass(frozen=True)
class Group:
    """The options for one thing: `sizes` int64 and `costs` float64 `(options,)`, none of them below zero."""

    sizes: Sizes
    costs: Costs


@dataclass(frozen=True)
class Choice:
    """The option taken in each group, their total size and cost, and what no choice can cost less than."""

    picks: tuple[int, ...]
    size: int
    cost: float
    bound: float


def smallest(groups: Sequence[Group]) -> int:
    """Return the least total size there is."""
    return sum(int(group.sizes.min()) for group in groups)


def choose(groups: Sequence[Group], budget: int) -> Choice:
    """Return the cheapest choice found whose total size is at most `budget`.

    Raises `ValueError` where even the smallest options are larger.
    """
    least = smallest(groups)
    if budget < least:
        raise ValueError(f"the smallest options take {least}, more than {budget}")
    # What no choice can fill would only make the cells coarser.
    budget = min(budget, sum(int(group.sizes.max()) for group in groups))
    picks = _fill(groups, _by_dynamic_programming(groups, budget - least), budget)
    return Choice(tuple(picks), *_total(groups, picks), lower_bound(groups, budget))


def lower_bound(groups: Sequence[Group], budget: int) -> float:
    """Return the largest value of the Lagrangian dual: no choice within `budget` costs less."""
    low, high = 0.0, _steepest(groups)
    for _ in range(SWEEPS):
        middle = (low + high) / 2
        if sum(int(_relaxed(group, middle)[1]) for group in groups) > budget:
            low = middle
        else:
            high = middle
    values = [
        sum(_relaxed(group, weight)[0] for group in groups) - weight * budget for weight in (0.0, low, high)
    ]
    return max(values)


def _relaxed(group: Group, weight: float) -> tuple[float, int]:
    """Return the least of cost + weight * size, and the size of the smallest option that has it."""
    values = group.costs + weight * group.sizes
    least = float(values.min())
    return least, int(group.sizes[values <= least * (1 + 1e-12)].min())


def _steepest(groups: Sequence[Group]) -> float:
    """Return a multiplier at which every group takes its smallest option."""
    return 1.0 + max((float(np.ptp(group.costs)) for group in groups), default=0.0)


def _by_dynamic_programming(groups: Sequence[Group], room: int) -> list[int]:
    """Return the options that are cheapest with sizes rounded up to cells."""
    extras = [group.sizes - group.sizes.min() for group in groups]
    common = gcd(*(int(extra) for own in extras for extra in own)) if extras else 1
    cell = max(1, common if common and room // common < 4 * CELLS else -(-room // CELLS))
    cells = room // cell
    best = np.zeros(cells + 1)  # least cost of the groups so far, by the cells that they may take
    taken = np.zeros((len(groups), cells + 1), dtype=np.uint8)
    for place, (group, extra) in enumerate(zip(groups, extras, strict=True)):
        best, taken[place] = _with_group(best, group.costs, -(-extra // cell))
    picks, left = [0] * len(groups), cells
    for place in reversed(range(len(groups))):
        picks[place] = int(taken[place, left])
        left -= int(-(-extras[place][picks[place]] // cell))
    return picks


def _with_group(best: Costs, costs: Costs, cells: Sizes) -> tuple[Costs, npt.NDArray[np.uint8]]:
    """Return the least costs with one more group, and the option that has them."""
    found = np.full(len(best), np.inf)
    taken = np.zeros(len(best), dtype=np.uint8)
    for option in np.argsort(cells, kind="stable"):
        size = int(cells[option])
        if size >= len(best):
            break
        values = best[: len(best) - size] + costs[option]
        better = values < found[size:]
        found[size:][better] = values[better]
        taken[size:][better] = option
    return found, taken


def _fill(groups: Sequence[Group], picks: list[int], budget: int) -> list[int]:
    """Spend what rounding left over: take the best step up that fits, until none does."""
    left = budget - _total(groups, picks)[0]
    while True:
        steps = [
            (float(group.costs[pick] - group.costs[other]), place, other)
            for place, (group, pick) in enumerate(zip(groups, picks, strict=True))
            for other in range(len(group.sizes))
            if group.costs[other] < group.costs[pick] and group.sizes[other] - group.sizes[pick] <= left
        ]
        if not steps:
            return picks
        _gain, place, other = max(steps)
        left -= int(groups[place].sizes[other] - groups[place].sizes[picks[place]])
        picks[place] = other


def _total(groups: Sequence[Group], picks: Sequence[int]) -> tuple[int, float]:
    chosen = list(zip(groups, picks, strict=True))
    return sum(int(g.sizes[p]) for g, p in chosen), float(sum(g.costs[p] for g, p in chosen))
