"""Bytes that ggml made, frozen: we make the same, and decode them to the same numbers, for ever."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from quantcore.formats import Packed, get_format

FROZEN = dict(np.load(Path(__file__).parents[2] / "golden" / "gguf_blocks.npz"))
X, WEIGHTS = FROZEN["x"], FROZEN["importance"]
DECODED = [key.removesuffix("=") for key in FROZEN if key.endswith("=")]
MADE = [name for name in DECODED if get_format(name).can_quantize]
PLAIN = [name for name in MADE if name in FROZEN]
WEIGHTED = [name for name in MADE if f"{name}+importance" in FROZEN]


def explain(ours, frozen):
    rows = np.flatnonzero((ours != frozen).any(axis=1))
    return f"rows {rows.tolist()} differ"


@pytest.mark.parametrize("name", PLAIN)
def test_bytes_are_those_of_ggml(name):
    ours = get_format(name).quantize(X).parts["blocks"]

    assert np.array_equal(ours, FROZEN[name]), explain(ours, FROZEN[name])


@pytest.mark.parametrize("name", WEIGHTED)
def test_bytes_with_importance_are_those_of_ggml(name):
    frozen = FROZEN[f"{name}+importance"]

    ours = get_format(name).quantize(X, WEIGHTS).parts["blocks"]

    assert np.array_equal(ours, frozen), explain(ours, frozen)


@pytest.mark.parametrize("name", MADE)
def test_a_single_block_gets_the_bytes_it_gets_among_others(name):
    """Sums run in the same order however many blocks stand side by side."""
    fmt = get_format(name)
    frozen, weights = (FROZEN[name], None) if name in PLAIN else (FROZEN[f"{name}+importance"], WEIGHTS)

    alone = fmt.quantize(X[2, : fmt.block], weights).parts["blocks"]

    assert np.array_equal(alone[0], frozen[2, : fmt.block_bytes])


@pytest.mark.parametrize("name", DECODED)
def test_frozen_bytes_decode_to_the_same_numbers(name):
    frozen = FROZEN[name] if name in FROZEN else FROZEN[f"{name}+importance"]

    values = get_format(name).dequantize(Packed(name, X.shape, {"blocks": frozen}))

    assert hashlib.sha256(values.tobytes()).digest() == FROZEN[f"{name}="].tobytes()
