"""Codebooks of the IQ types: the package's points, and choices that always include the best one."""

import gguf.quants
import numpy as np
import pytest

from quantcore.methods.gridchoice import Choices
from quantcore.methods.grids import codebook, neighbours, sieved

NAMES = ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
SEARCHED = NAMES[1:]  # IQ1 rounds in another way
every_book = pytest.mark.parametrize("name", NAMES)
every_searched = pytest.mark.parametrize("name", SEARCHED)


@every_book
def test_points_are_those_of_the_decoder(name):
    table = getattr(gguf.quants, name)
    table.init_grid()

    book = codebook(name)

    assert (book.values[book.points] == table.grid.reshape(table.grid_shape)).all()


@every_book
def test_choices_are_all_points_within_the_nearest_distances_nearest_first(name):
    book, near = codebook(name), neighbours(name)
    points, lattice = book.points.astype(int), book.lattice.astype(int)
    for place in np.random.default_rng(1).choice(len(lattice), 60, replace=False):
        distance = ((points - lattice[place]) ** 2).sum(axis=1)
        reach = np.unique(distance)[: book.reach][-1]
        wanted = sorted(np.flatnonzero(distance <= reach), key=lambda index: (distance[index], index))
        choices = near.choices[near.start[place] : near.start[place + 1]]

        if near.index[place] >= 0:
            assert not choices.size
            assert distance[near.index[place]] == 0
        else:
            assert choices.tolist() == wanted


@every_searched
def test_what_is_sieved_out_never_wins(name):
    """For numbers anywhere in the cell of a lattice point, and any weights."""
    book, near, few = codebook(name), neighbours(name), sieved(name)
    rng = np.random.default_rng(2)
    points = 2.0 * book.points + 1
    for place in rng.choice(np.flatnonzero(near.counts > 1), 200):
        inside = 2.0 * book.lattice[place] + 1 + rng.uniform(-1, 1, book.size)
        # Beyond the outer levels cells have no end.
        inside = np.where(book.lattice[place] == 0, inside - rng.exponential(2, book.size), inside)
        inside = np.where(
            book.lattice[place] == book.levels - 1, inside + rng.exponential(2, book.size), inside
        )
        weights = 10.0 ** rng.uniform(-6, 2, book.size)
        every = near.choices[near.start[place] : near.start[place + 1]]
        errors = (weights * (points[every] - inside) ** 2).sum(axis=1)

        assert every[errors.argmin()] in few.choices[few.start[place] : few.start[place + 1]]


def one_by_one(name, x, w, packed, scale):
    """Return what a search that goes through all choices at every try finds, in float32."""
    near, points = neighbours(name), (2 * codebook(name).points + 1).astype(np.float32)
    index = near.index[packed]
    for row, t in zip(*np.nonzero(index < 0), strict=True):
        choices = near.choices[near.start[packed[row, t]] : near.start[packed[row, t] + 1]]
        total = np.zeros(len(choices), np.float32)
        for q, xi, wi in zip(points[choices].T, x[:, row], w[:, row], strict=True):
            diff = scale[row % len(scale), t] * q - xi
            total += wi * diff * diff
        index[row, t] = choices[total.argmin()]
    return index


def groups(kind, rng, size, n):
    """Return x and weights, float32 `(1, size, n)`; `border`: halfway between two levels, or nearly."""
    x, w = np.abs(rng.standard_t(4, (1, size, n))), rng.gamma(0.5, size=(1, size, n))
    if kind == "border":
        x = 2.0 * rng.integers(0, 4, x.shape) * (1 + rng.integers(-2, 3, x.shape) * 2.0**-24)
    if kind == "lattice":
        x = np.round(x * 3) / 3
    if kind == "some weights are nothing":
        w *= rng.random(w.shape) < 0.5
    if kind == "tiny":
        x, w = x * 1e-18, w * 1e-12
    return x.astype(np.float32), w.astype(np.float32)


@every_searched
@pytest.mark.parametrize("kind", ["bell", "border", "lattice", "some weights are nothing", "tiny"])
def test_choosing_for_many_scales_is_choosing_for_each(name, kind):
    book = codebook(name)
    x, w = groups(kind, np.random.default_rng(3), book.size, 120)
    top = 2 * book.levels - 1
    peak = top if kind == "border" else x.max(axis=(0, 1))
    inverse = (np.arange(-6, 7, dtype=np.float32)[:, None] * np.float32(0.1) + np.float32(top)) / peak
    inverse = (inverse * np.ones(120, np.float32)).astype(np.float32)  # (tries, n)
    if kind == "border":
        inverse[3:9] = 1  # where all are on the border
    exact = x[0] * inverse[:, None] * np.float32(0.5) - np.float32(0.5)  # (tries, size, n)
    levels = np.rint(exact).clip(0, book.levels - 1).astype(np.intp)
    packed = np.ascontiguousarray((levels * book.places[:, None]).sum(axis=1).T)  # (n, tries)
    border = (np.abs(exact - np.rint(exact)).max(axis=1) > 0.49999).T  # (n, tries)
    scale = np.ascontiguousarray((np.float32(1) / inverse).T)

    found = Choices(name, x, w, xp=np).choose(packed, scale, border)

    assert (found == one_by_one(name, x[0], w[0], packed, scale)).all()


@pytest.mark.parametrize("tries", [1, 3])
@every_searched
def test_what_fills_up_short_lists_is_never_chosen(name, tries):
    """Groups that lie a million times above the scale are nearer to it than to any grid point."""
    book, off = codebook(name), np.flatnonzero(neighbours(name).index < 0)
    x = np.full((1, book.size, off.size), 0.05, np.float32)
    scale = np.full((off.size, tries), 1e-9, np.float32)
    choices = Choices(name, x, np.ones_like(x), xp=np)

    found = choices.choose(np.repeat(off[:, None], tries, axis=1), scale, np.zeros((off.size, tries), bool))

    assert found.max() < len(book.points)
