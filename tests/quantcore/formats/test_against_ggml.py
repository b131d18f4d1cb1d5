"""Bytes against ggml itself on many rows, by numpy and by the compiled kernels."""

import numpy as np
import pytest

from quantcore.formats import formats
from quantcore.formats.base import BlockFormat
from tests.quantcore.formats import ggml
from tests.quantcore.kernels import compiled, needs_numba

pytestmark = ggml.needs_ggml
QUANTIZED = [f for f in formats().values() if isinstance(f, BlockFormat) and f.can_quantize and f.block > 1]
CASES = [
    pytest.param(fmt, weighted, id=f"{fmt.name}-{'importance' if weighted else 'plain'}")
    for fmt in QUANTIZED
    for weighted in (False, True)
    if weighted or not fmt.needs_calibration
]


def importance(weighted):
    return np.random.default_rng(21).gamma(0.5, size=ggml.ROW).astype(np.float32) if weighted else None


def compare(fmt, weighted, kernels):
    x = ggml.rows(np.random.default_rng(20))
    theirs = ggml.quantize(fmt, x, importance(weighted))

    ours = fmt.quantize(x, importance(weighted), kernels=kernels).parts["blocks"]

    differing = np.flatnonzero((ours != theirs).any(axis=1))
    assert not differing.size, (
        f"{differing.size} of {len(x)} rows, first {differing[0]}: {x[differing[0]][:64]}"
    )


@pytest.mark.parametrize(("fmt", "weighted"), CASES)
def test_bytes_are_those_of_the_library(fmt, weighted):
    compare(fmt, weighted, None)


@needs_numba
@pytest.mark.parametrize(("fmt", "weighted"), CASES)
def test_bytes_of_compiled_kernels_are_those_of_the_library(fmt, weighted):
    if compiled().find(fmt.name, weighted=weighted) is None:
        pytest.skip(f"{fmt.name} has no compiled kernel")
    compare(fmt, weighted, compiled())


@needs_numba
@pytest.mark.parametrize(("fmt", "weighted"), CASES)
def test_compiled_kernels_give_what_numpy_gives(fmt, weighted):
    """Other rows than above, and row counts that fill no vector."""
    if compiled().find(fmt.name, weighted=weighted) is None:
        pytest.skip(f"{fmt.name} has no compiled kernel")
    rng = np.random.default_rng(22)
    for row_length, count in ((256, 1), (256, 7), (768, 5)):
        x = ggml.rows(rng)[rng.permutation(72)[:count], :row_length].copy()
        weights = rng.gamma(0.5, size=row_length).astype(np.float32) if weighted else None

        ours = fmt.quantize(x, weights, kernels=compiled()).parts["blocks"]

        assert (ours == fmt.quantize(x, weights).parts["blocks"]).all()
