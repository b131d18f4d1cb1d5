"""Bytes against ggml itself on many rows: the one inside xllamacpp's wheel, or that of GGML_BASE_LIBRARY.

ggml's x86-64 builds do strictly sequential float32 arithmetic; other processors fuse some operations.
"""

import ctypes
import os
import platform
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from quantcore.formats import get_format


def library() -> str | None:
    """Return the path of a library that exports ggml_quantize_chunk, if there is one."""
    if named := os.environ.get("GGML_BASE_LIBRARY"):
        return named
    wheel = find_spec("xllamacpp")
    found = sorted(Path(wheel.origin).parent.glob("*.so")) if wheel and wheel.origin else []
    return str(found[0]) if found and platform.machine() in {"x86_64", "AMD64"} else None


LIBRARY = library()
ROW = 1024
FLOATS = ctypes.POINTER(ctypes.c_float)

pytestmark = pytest.mark.skipif(not LIBRARY, reason="there is no ggml library for x86-64 here")


@pytest.fixture(scope="module")
def chunk():
    call = ctypes.CDLL(LIBRARY).ggml_quantize_chunk
    call.argtypes = [ctypes.c_int, FLOATS, ctypes.c_void_p, *[ctypes.c_int64] * 3, FLOATS]
    return call


def rows(rng):
    """Return float32 (60, 1024): bells, heavy tails, sparse rows, lattices, groups of unlike size."""
    bell, heavy = rng.normal(size=(12, ROW)), rng.standard_t(2, size=(12, ROW))
    sparse = np.where(rng.random((12, ROW)) < 0.8, 0.0, bell)
    lattice = np.round(bell * 5) / rng.integers(1, 9, (12, 1))
    uneven = bell * np.repeat(10.0 ** rng.uniform(-12, 2, (12, ROW // 16)), 16, axis=1)
    return np.clip(np.concatenate([bell, heavy, sparse, lattice, uneven]), -1e4, 1e4).astype(np.float32)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])
@pytest.mark.parametrize(
    "name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
)
def test_bytes_are_those_of_the_library(chunk, name, weighted):
    rng = np.random.default_rng(20)
    x, importance = rows(rng), rng.gamma(0.5, size=ROW).astype(np.float32)
    where = importance.ctypes.data_as(FLOATS) if weighted else None

    ours = get_format(name).quantize(x, importance if weighted else None).parts["blocks"]

    theirs = np.empty_like(ours)
    chunk(GGMLQuantizationType[name], x.ctypes.data_as(FLOATS), theirs.ctypes.data, 0, *x.shape, where)
    differing = np.flatnonzero((ours != theirs).any(axis=1))
    assert not differing.size, x[differing[0]].tolist()
