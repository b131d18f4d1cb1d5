"""CUDA kernels give the bytes of ggml and of numpy: on a card, and without one as C++."""

import numpy as np
import pytest

from quantcore.errors import UnsupportedTensor
from quantcore.formats import formats, get_format
from quantcore.formats.base import BlockFormat
from quantcore.kernels.cuda import entries
from tests.quantcore.formats import ggml
from tests.quantcore.kernels_cuda.card import MACHINES, quantize

CASES = [
    pytest.param(get_format(name), weighted, id=f"{name}-{'importance' if weighted else 'plain'}")
    for name, weighted in sorted(entries())
    if name in formats() and (weighted or not get_format(name).needs_calibration)
]
every_case = pytest.mark.parametrize(("fmt", "weighted"), CASES)
on_each_machine = pytest.mark.parametrize("machine", MACHINES)


def importance(rng, weighted, row_length):
    return rng.gamma(0.5, size=row_length).astype(np.float32) if weighted else None


def test_every_block_format_has_its_kernels():
    blocks = [f for f in formats().values() if isinstance(f, BlockFormat) and f.can_quantize and f.block > 1]
    wanted = {(f.name, weighted) for f in blocks for weighted in (False, True)}

    assert wanted - set(entries()) == {(f.name, False) for f in blocks if f.needs_calibration}


@ggml.needs_ggml
@on_each_machine
@every_case
def test_bytes_are_those_of_the_library(machine, fmt, weighted):
    x = ggml.rows(np.random.default_rng(20))
    weights = importance(np.random.default_rng(21), weighted, ggml.ROW)

    ours = quantize(fmt, x, weights, machine())

    differing = np.flatnonzero((ours != ggml.quantize(fmt, x, weights)).any(axis=1))
    assert not differing.size, f"{differing.size} of {len(x)} rows, first {differing[0]}"


@on_each_machine
@pytest.mark.parametrize(("row_length", "count"), [(256, 1), (256, 19), (768, 5)])
@every_case
def test_bytes_are_those_of_numpy(machine, fmt, weighted, row_length, count):
    """Also where the weights do not fill a tile."""
    rng = np.random.default_rng(22)
    x = ggml.rows(rng)[rng.permutation(72)[:count], :row_length].copy()
    weights = importance(rng, weighted, row_length)

    ours = quantize(fmt, x, weights, machine())

    assert (ours == quantize(fmt, x, weights)).all()


@on_each_machine
@every_case
def test_groups_of_zeros_and_weights_that_do_not_count_are_as_with_numpy(machine, fmt, weighted):
    rng = np.random.default_rng(24)
    there = np.repeat(rng.random((24, 32)) < 0.6, 32, axis=1)
    x = (rng.normal(size=(24, 1024)) * there).astype(np.float32)
    weights = (rng.random(1024) * (rng.random(1024) < 0.4)).astype(np.float32) if weighted else None

    assert (quantize(fmt, x, weights, machine()) == quantize(fmt, x, weights)).all()


@on_each_machine
@every_case
def test_scales_beyond_16_bits_are_refused_like_by_numpy(machine, fmt, weighted):
    x = np.linspace(-1, 1, 512, dtype=np.float32).reshape(1, -1) * np.float32(3e8)
    weights = importance(np.random.default_rng(23), weighted, 512)
    try:
        theirs = quantize(fmt, x, weights)
    except UnsupportedTensor as refused:
        with pytest.raises(UnsupportedTensor, match=str(refused)):
            quantize(fmt, x, weights, machine())
    else:
        assert (quantize(fmt, x, weights, machine()) == theirs).all()


@on_each_machine
def test_shared_exponents_next_to_powers_of_two_are_those_of_numpy(machine):
    """There a logarithm in float32 is rounded up to a whole number."""
    powers = np.ldexp(np.float32(1), np.arange(-148, 128)).view(np.int32)
    peaks = (powers[:, None] + np.arange(-100, 101, dtype=np.int32)).reshape(-1).view(np.float32)
    peaks = peaks[(peaks >= 0) & ((peaks < 2.0**-126.1) | (peaks >= 2.0**-125))]
    x = peaks[:, None] * np.linspace(-1, 1, 32, dtype=np.float32)
    fmt = get_format("MXFP4")

    assert (quantize(fmt, x, None, machine()) == quantize(fmt, x, None)).all()


@on_each_machine
def test_weights_without_a_shared_exponent_are_refused(machine):
    with pytest.raises(UnsupportedTensor, match="has no scale"):
        quantize(get_format("MXFP4"), np.full((1, 32), 1.5e-38, np.float32), None, machine())
