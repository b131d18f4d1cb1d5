"""Whether compiled steps do what numpy's do: tried on each processor before they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.evaluate.ops import Floats
from quantcore.evaluate.steps import CompiledSteps, Steps
from quantcore.kernels.library import Library

TOLERANCE = 2e-5  # of numbers about 1 in size

# Does the same with numpy's steps and with compiled ones.
Trial = Callable[[Steps, np.random.Generator], list[npt.NDArray[Any]]]


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _products(steps: Steps, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    # Whole tiles and blocks, one more, one less.
    sizes = ((1, 1, 1), (8, 48, 16), (9, 49, 17), (129, 100, 770), (16, 96, 768))
    pairs = [(_normal(rng, rows, inputs), _normal(rng, outputs, inputs)) for rows, outputs, inputs in sizes]
    return [steps.product(x, steps.matrix(w)) / np.sqrt(np.float32(x.shape[1])) for x, w in pairs]


def _norms(steps: Steps, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    return [
        steps.rms_norm(_normal(rng, 3, n), _normal(rng, n), eps)
        for n, eps in ((1, 1e-5), (16, 1e-6), (1100, 0.5))
    ]


def _gates(steps: Steps, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    found = [steps.gated(8 * _normal(rng, 3, n), _normal(rng, 3, n), "silu") for n in (1, 15, 16, 100)]
    wide = np.array([[-1000, -88, -20, 0, 20, 88, 1000]], dtype=np.float32)
    return [*found, steps.gated(wide, np.full_like(wide, 1e-3), "silu")]


def _attention(steps: Steps, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    # Chunks, queries, keys, heads, heads of keys, size, window: of one block of keys and of several.
    sizes = (
        (2, 24, 24, 4, 2, 8, None), (1, 20, 50, 4, 1, 16, None), (1, 60, 530, 3, 3, 80, None),
        (1, 60, 1100, 6, 2, 64, 100), (1, 9, 700, 2, 2, 256, 600),
    )  # fmt: skip
    found = []
    for chunks, rows, keys, heads, kv_heads, size, window in sizes:
        q = 2 * _normal(rng, chunks, rows, heads, size)
        k, v = (_normal(rng, chunks, keys, kv_heads, size) for _ in range(2))
        found.append(steps.attend(q, k, v, keys - rows, window, None, None, None))
    return found


def _partitions(steps: Steps, rng: np.random.Generator) -> list[npt.NDArray[Any]]:
    found = []
    for n in (1, 15, 17, 3001):
        largest, total = steps.partition(8 * _normal(rng, 4, n))
        found += [largest, np.log(total)]
    return found


TRIALS: Mapping[str, Trial] = {
    "pack": _products,
    "product": _products,
    "rms_norm": _norms,
    "gated": _gates,
    "pack_keys": _attention,
    "attend": _attention,
    "partition": _partitions,
}


def differs(kernels: Library, name: str) -> bool:
    """Say whether a compiled step finds other numbers than numpy, beyond rounding."""
    found, expected = (
        TRIALS[name](steps, np.random.default_rng(0)) for steps in (CompiledSteps(kernels), Steps())
    )
    pairs = zip(found, expected, strict=True)
    return not all(np.allclose(ours, numpy, rtol=TOLERANCE, atol=TOLERANCE) for ours, numpy in pairs)
