"""Compiled steps do what numpy does, of every size, and what does something else is found out."""

from __future__ import annotations

import math

import numpy as np
import pytest

from quantcore.errors import MissingEngine
from quantcore.evaluate import ops, steps
from quantcore.evaluate.proof import TRIALS, differs
from quantcore.evaluate.steps import CompiledSteps, Panels, Steps, best_steps
from tests.quantcore.kernels import compiled, needs_numba

KINDS = ["numpy", pytest.param("compiled", marks=needs_numba)]


@pytest.fixture(params=KINDS)
def either(request):
    return Steps() if request.param == "numpy" else CompiledSteps(compiled())


def normal(*shape):
    return np.random.default_rng(11).standard_normal(shape, dtype=np.float32)


class Erring:
    """Kernels one of which gets the last number of what it fills wrong, by a thousandth."""

    def __init__(self, name):
        self.name = name

    def step(self, name):
        kernel = compiled().step(name)

        def wrong(values, importance, tables, out):
            kernel(values, importance, tables, out)
            out.reshape(-1)[-1] *= 1.001

        return wrong if name == self.name else kernel


@needs_numba
@pytest.mark.parametrize("name", TRIALS)
def test_compiled_steps_pass_their_trial(name):
    if compiled().step(name) is None:
        pytest.skip("this processor has too few registers")
    assert not differs(compiled(), name)


@needs_numba
@pytest.mark.parametrize("name", ["product", "rms_norm", "gated", "attend", "partition"])
def test_a_step_that_errs_in_one_number_fails_its_trial(name):
    if compiled().step(name) is None:
        pytest.skip("this processor has too few registers")
    assert differs(Erring(name), name)


@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (8, 48, 16), (129, 97, 769), (24, 144, 1600)])
def test_products_are_sums_of_products(either, shape):
    rows, outputs, inputs = shape
    x, matrix = normal(rows, inputs), normal(outputs, inputs)

    found = either.product(x, either.matrix(matrix))

    exact = x.astype(np.float64) @ matrix.T.astype(np.float64)
    assert found.shape == exact.shape
    assert np.allclose(found, exact, rtol=1e-5, atol=2e-4)


def test_a_row_of_a_stack_is_multiplied_alone(either):
    stack = normal(3, 10, 6)

    ready = either.ready(stack)

    for matrix, one in zip(stack, ready, strict=True):
        assert np.allclose(either.product(normal(4, 6), one), normal(4, 6) @ matrix.T, atol=1e-5)


def test_a_vector_stays_a_vector(either):
    assert either.ready(normal(1, 8)).shape == (1, 8)
    assert either.ready(normal(8)).shape == (8,)


def test_norms_have_the_root_mean_square_of_their_weights(either):
    x, weight = 30 * normal(5, 3, 100), np.full(100, 2, dtype=np.float32)

    found = either.rms_norm(x, weight, 0.0)

    assert found.shape == x.shape
    assert np.sqrt((found**2).mean(axis=-1)) == pytest.approx(np.full((5, 3), 2.0), rel=1e-6)
    assert found / x == pytest.approx(np.broadcast_to((found / x)[..., :1], x.shape), rel=1e-6)


def test_gates_are_silu_times_the_other(either):
    gate = np.array([[-2000, -30, -1, 0, 1, 30, 2000]], dtype=np.float32)
    exact = [g / (1 + math.exp(-g)) if g > -700 else 0.0 for g in gate[0].tolist()]

    found = either.gated(gate.copy(), np.full_like(gate, 3), "silu")

    assert found[0] == pytest.approx([3 * value for value in exact], rel=1e-6, abs=1e-9)


def exact_attention(q, k, v, start, window, scale):
    """Return attention by plain sums in float64: one query, one head, one key at a time."""
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    for row, head in np.ndindex(q.shape[:2]):
        position = start + row
        keys = range(max(0, position - window + 1) if window else 0, position + 1)
        scores = [scale * float(q[row, head].astype(np.float64) @ k[key, head // group]) for key in keys]
        shares = [math.exp(score - max(scores)) for score in scores]
        for key, share in zip(keys, shares, strict=True):
            out[row, head] += share / sum(shares) * v[key, head // group]
    return out


@pytest.mark.parametrize(
    ("rows", "keys", "heads", "kv_heads", "size", "window"),
    [(24, 24, 4, 2, 8, None), (5, 40, 3, 3, 4, None), (50, 50, 5, 1, 6, 7), (3, 530, 2, 1, 64, None)],
)
def test_attention_is_what_plain_sums_are(either, rows, keys, heads, kv_heads, size, window):
    q, k, v = 2 * normal(rows, heads, size), normal(keys, kv_heads, size), normal(keys, kv_heads, size)[::-1]

    found = either.attend(q[None], k[None], v[None], keys - rows, window, 0.7, None, None)

    exact = exact_attention(q, k, v, keys - rows, window, 0.7)
    assert np.abs(found.reshape(exact.shape) - exact).max() < 2e-5


def test_chunks_have_attention_of_their_own(either):
    q, k, v = (normal(2, 20, 2, 8) * factor for factor in (1, 2, 3))

    both = either.attend(q, k, v, 0, None, None, None, None)

    alone = either.attend(q[1:], k[1:], v[1:], 0, None, None, None, None)
    assert np.array_equal(both[1:], alone)


@needs_numba
@pytest.mark.parametrize("window", [None, 70])
def test_helpers_change_no_number(window):
    """How many threads share a step must not show: not even in its last digit."""
    q, k, v = normal(1, 130, 6, 8), normal(1, 150, 2, 8), normal(1, 150, 2, 8)
    x, weight, fast = normal(200, 33), normal(70, 33), CompiledSteps(compiled())
    matrix = fast.matrix(weight)
    alone = fast.product(x, matrix), fast.attend(q, k, v, 20, window, None, None, None)

    with fast.helped(2, 3):
        helped = fast.product(x, matrix), fast.attend(q, k, v, 20, window, None, None, None)

    for one, other in zip(alone, helped, strict=True):
        assert np.array_equal(one, other)


@needs_numba
def test_what_kernels_have_not_is_done_by_numpy():
    q, k, v = (normal(1, 20, 2, 8) for _ in range(3))
    sinks = np.array([0.5, -1], dtype=np.float32)
    fast = CompiledSteps(compiled())

    capped = fast.attend(q, k, v, 0, None, None, 2.0, None)
    with_sinks = fast.attend(q, k, v, 0, None, None, None, sinks)

    assert np.array_equal(capped, ops.attend(q, k, v, 0, cap=2.0))
    assert np.array_equal(with_sinks, ops.attend(q, k, v, 0, sinks=sinks))
    assert np.array_equal(fast.gated(q.copy(), k, "gelu"), ops.gated(q.copy(), k, "gelu"))


def test_the_parts_of_a_softmax_are_exact(either):
    logits = 10 * normal(3, 5001)
    exact = logits.astype(np.float64)

    largest, total = either.partition(logits.copy())

    assert np.array_equal(largest, exact.max(axis=1))
    assert total == pytest.approx(np.exp(exact - exact.max(axis=1, keepdims=True)).sum(axis=1), rel=1e-6)


def test_predictions_that_are_no_numbers_stay_none(either):
    logits = normal(2, 100)
    logits[1, 50] = np.nan

    largest, total = either.partition(logits)

    assert np.isfinite(np.log(total) + largest).tolist() == [True, False]


@needs_numba
def test_arrays_of_other_sizes_never_reach_a_kernel():
    """Kernels have no bounds checks."""
    fast = CompiledSteps(compiled())
    panels = Panels(4, np.zeros((3, 5, 16), np.float32))

    for call in (
        lambda: fast.product(normal(2, 6), panels),
        lambda: fast.gated(normal(2, 6), normal(2, 5), "silu"),
        lambda: fast.attend(normal(1, 4, 2, 8), normal(1, 4, 2, 8), normal(1, 4, 1, 8), 0, *[None] * 4),
        lambda: fast.attend(normal(1, 4, 2, 8), *[normal(1, 4, 2, 8)] * 2, 1, *[None] * 4),
    ):
        with pytest.raises(AssertionError):
            call()


def test_without_usable_kernels_numpy_does_it(monkeypatch):
    def damaged():
        raise MissingEngine("damaged")

    monkeypatch.setattr(steps.library, "load", lambda: None)
    assert type(best_steps()) is Steps
    monkeypatch.setattr(steps.library, "load", damaged)
    assert type(best_steps()) is Steps
