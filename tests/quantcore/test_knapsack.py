"""Choosing options within a size: as good as trying everything, and never under the bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from quantcore.knapsack import CELLS, Group, choose, lower_bound, smallest


def some_groups(seed, count=5, options=4, step=1):
    draw = np.random.default_rng(seed)
    groups = []
    for _ in range(count):
        sizes = draw.integers(1, 60, options) * step
        groups.append(Group(sizes, draw.random(options) / sizes))
    return groups


def best_of_all(groups, budget):
    """Return the least cost by trying every choice."""
    picks = product(*(range(len(group.sizes)) for group in groups))
    totals = [
        (
            sum(int(g.sizes[p]) for g, p in zip(groups, pick, strict=True)),
            sum(g.costs[p] for g, p in zip(groups, pick, strict=True)),
        )
        for pick in picks
    ]
    return min(cost for size, cost in totals if size <= budget)


@pytest.mark.parametrize("seed", range(12))
def test_the_choice_is_the_best_there_is(seed):
    groups = some_groups(seed)
    for budget in (smallest(groups), smallest(groups) + 17, 150, 400):
        if budget < smallest(groups):
            continue
        found = choose(groups, budget)

        assert found.size <= budget
        assert found.cost == pytest.approx(best_of_all(groups, budget))
        assert found.bound <= found.cost * (1 + 1e-9)


def test_the_bound_is_close_where_there_is_much_to_choose_from():
    groups = some_groups(1, count=300, options=12)
    budget = smallest(groups) * 3

    found = choose(groups, budget)

    assert found.bound <= found.cost <= found.bound * 1.01
    assert found.size > 0.995 * budget


def test_sizes_without_a_common_divisor_are_rounded_up_never_over_the_budget():
    groups = [
        Group(np.array([7, 100_003, 1_000_033]) * CELLS // 5, np.array([9.0, 4.0, place / 100]))
        for place in range(40)
    ]
    budget = smallest(groups) + 17 * CELLS * 100_003

    found = choose(groups, budget)

    assert found.size <= budget
    assert found.bound <= found.cost <= found.bound * 1.02


def test_of_options_that_cost_the_same_the_smallest_is_taken():
    assert choose([Group(np.array([4, 2, 3]), np.array([0.0, 0.0, 0.0]))], 10).size == 2


@pytest.mark.parametrize("budget", [1500, 10**12, 10**400])
def test_a_budget_beyond_everything_takes_the_cheapest_options(budget):
    groups = some_groups(4)

    found = choose(groups, budget)

    assert found.cost == pytest.approx(sum(group.costs.min() for group in groups))
    assert found.bound == pytest.approx(found.cost)


def test_a_budget_under_the_smallest_options_is_refused():
    groups = some_groups(2)
    with pytest.raises(ValueError, match=f"the smallest options take {smallest(groups)}, more than 3"):
        choose(groups, 3)


def test_the_bound_of_a_budget_for_everything_is_the_least_cost():
    groups = some_groups(3)
    assert lower_bound(groups, 10**6) == pytest.approx(sum(group.costs.min() for group in groups))
