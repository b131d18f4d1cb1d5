"""Sums of products, samples and tallies: closed forms, and nothing that depends on how inputs came."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantcore.errors import InputError
from quantcore.statistics import gram as grams
from quantcore.statistics.collector import Collector
from quantcore.statistics.gram import Gram
from quantcore.statistics.sample import Sample, scrambled
from quantcore.statistics.tally import PRODUCT_ROWS, Collect, Tally

ALL = Collect(importance=True, hessians=True, activations=True, samples=8)


def draw(rows, width, seed=1):
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.fixture(params=[4, grams.STRIP])
def strip(request, monkeypatch):
    monkeypatch.setattr(grams, "STRIP", request.param)


@pytest.mark.parametrize("width", [1, 4, 5, 11])
def test_strips_make_the_whole_product(strip, width):
    x = draw(40, width)
    gram = Gram(width)

    for part in np.split(x, 4):
        for number in reversed(range(len(gram))):
            gram.add(number, part)

    wanted = x.astype(np.float64).T @ x
    assert np.allclose(gram.square(), wanted, rtol=1e-5, atol=1e-5)
    assert (gram.square() == gram.square().T).all()
    assert (gram.diagonal() == gram.square().diagonal()).all()


@pytest.mark.parametrize("width", [1, 5, 11])
def test_half_is_stored_and_the_whole_comes_back(strip, width):
    gram = Gram(width)
    for number in range(len(gram)):
        gram.add(number, draw(9, width))

    pieces = list(gram.packed())
    again = Gram.unpacked(width, pieces)

    assert [len(piece) for piece in pieces] == gram.packed_sizes()
    assert np.concatenate(pieces).tolist() == gram.square()[np.tri(width, dtype=bool)].tolist()
    assert (again.square() == gram.square()).all()


def test_sums_of_many_products_lose_no_more_than_one_does():
    """Float32 sums would be off by a thousandth: each number is 2^24 times what is added to it."""
    gram = Gram(1)

    gram.add(0, np.array([[4096.0]], np.float32))
    for _ in range(1000):
        gram.add(0, np.array([[0.5]], np.float32))

    assert gram.square() == [[2.0**24 + 250]]


def test_the_same_stream_gives_the_same_sample_however_it_is_cut():
    x = draw(1000, 3)
    whole, cut = Sample(3, 16, seed=5), Sample(3, 16, seed=5)

    whole.offer(x, 0)
    for first in range(0, 1000, 7):
        cut.offer(x[first : first + 7], first)

    assert (whole.rows == cut.rows).all()
    assert len({tuple(row) for row in whole.rows} & {tuple(row) for row in x}) == 16
    assert (np.sort(whole.rows, axis=0) != np.sort(x[:16], axis=0)).any()


def test_every_place_has_the_same_chance():
    """Of 10000 places a tenth is kept: as many of each tenth as chance would have it."""
    sample = Sample(1, 1000, seed=9)

    sample.offer(np.arange(10_000, dtype=np.float32)[:, None], 0)

    tenths = np.histogram(sample.rows, bins=10, range=(0, 10_000))[0]
    assert tenths.sum() == 1000
    assert np.abs(tenths - 100).max() < 30


def test_keys_are_those_of_splitmix64():
    """The first numbers of the reference implementation for seed 1234567."""
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]

    assert scrambled(np.arange(3, dtype=np.uint64), 1234567).tolist() == wanted


def test_a_merged_sample_prefers_no_stream():
    left, right = Sample(1, 64, seed=1), Sample(1, 64, seed=2)
    left.offer(np.zeros((4000, 1), np.float32), 0)
    right.offer(np.ones((4000, 1), np.float32), 0)

    both = left.merged(right)

    assert both.rows.shape == (64, 1)
    assert 20 < both.rows.sum() < 44
    assert (both.keys == np.sort(np.concatenate([left.keys, right.keys]))[:64]).all()


def collected(heard, turns, threads=1, experts=3):
    collector = Collector(ALL, 7, experts)
    with ThreadPoolExecutor(threads) as pool:
        for first in range(0, len(heard), turns):
            collector.take(heard[first : first + turns], pool)
        return {shared.names: shared.tallies for shared in collector.finish(pool)}


def heard_of(batches=12, rows=100, width=6):
    dense = [(("a", "b"), None, draw(rows, width, seed)) for seed in range(batches)]
    experts = [(("e",), seed % 2, draw(3, width, seed)) for seed in range(batches)]
    return [each for pair in zip(dense, experts, strict=True) for each in pair]


def test_what_is_collected_is_what_one_sum_gives():
    found = collected(heard_of(), 5)

    x = np.concatenate([draw(100, 6, seed) for seed in range(12)]).astype(np.float64)
    (tally,) = found["a", "b"]
    assert tally.rows == 1200 > 2 * PRODUCT_ROWS
    assert np.allclose(tally.squares, (x**2).sum(axis=0), rtol=1e-6)
    assert np.allclose(tally.means, np.abs(x).mean(axis=0), rtol=1e-6)
    assert (tally.largest == np.abs(x).max(axis=0)).all()
    assert np.allclose(tally.hessian(), x.T @ x, rtol=1e-5, atol=1e-3)


def test_experts_have_their_own_and_one_without_inputs_has_zeros():
    none, *_ = reversed(collected(heard_of(), 5)[("e",)])

    assert [tally.rows for tally in collected(heard_of(), 5)[("e",)]] == [18, 18, 0]
    assert not none.hessian().any()
    assert not none.means.any()
    assert none.sample.rows.shape == (0, 6)


@pytest.mark.parametrize(("turns", "threads"), [(1, 1), (4, 3), (100, 2)])
def test_neither_turns_nor_threads_change_a_bit(turns, threads):
    expected, found = collected(heard_of(), 6), collected(heard_of(), turns, threads)

    for names, tallies in expected.items():
        for ours, theirs in zip(found[names], tallies, strict=True):
            assert (ours.hessian() == theirs.hessian()).all()
            assert (ours.squares == theirs.squares).all()
            assert (ours.magnitudes == theirs.magnitudes).all()
            assert (ours.sample.rows == theirs.sample.rows).all()


def test_two_tallies_merged_are_one_of_both():
    one, two = (collected([(("a",), None, draw(90, 6, seed))], 1)[("a",)][0] for seed in (1, 2))
    both = collected([(("a",), None, draw(90, 6, seed)) for seed in (1, 2)], 1)[("a",)][0]

    one.merge(two)

    assert one.rows == 180
    assert np.allclose(one.hessian(), both.hessian(), rtol=1e-6, atol=1e-4)
    assert np.allclose(one.means, both.means, rtol=1e-6)
    assert (one.largest == both.largest).all()


def test_what_one_of_two_tallies_lacks_the_sum_lacks():
    whole, bare = Tally.empty(3, ALL, 0), Tally.empty(3, Collect(importance=True), 0)

    whole.merge(bare)

    assert whole.squares is not None
    assert (whole.magnitudes, whole.largest, whole.gram, whole.sample) == (None,) * 4


def test_inputs_that_are_no_numbers_are_named():
    with pytest.raises(InputError, match="a: its inputs are no finite numbers"):
        collected([(("a",), None, np.full((2, 3), np.nan, np.float32))], 1)


def test_fewer_than_no_samples_cannot_be_kept():
    with pytest.raises(InputError, match="-1 samples cannot be kept"):
        Collect(samples=-1)
