"""ggml as the reference of bytes: the one inside xllamacpp's wheel, or that of GGML_BASE_LIBRARY.

ggml's x86-64 builds do strictly sequential float32 arithmetic; other processors fuse some operations.
"""

import ctypes
import os
import platform
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from quantcore.ggmltypes import type_number

FLOATS = ctypes.POINTER(ctypes.c_float)
ROW = 1024


def library():
    """Return the path of a library that exports ggml_quantize_chunk, if there is one."""
    if named := os.environ.get("GGML_BASE_LIBRARY"):
        return named
    wheel = find_spec("xllamacpp")
    found = sorted(Path(wheel.origin).parent.glob("*.so")) if wheel and wheel.origin else []
    return str(found[0]) if found and platform.machine() in {"x86_64", "AMD64"} else None


needs_ggml = pytest.mark.skipif(not library(), reason="there is no ggml library for x86-64 here")


@cache
def _chunk():
    call = ctypes.CDLL(library()).ggml_quantize_chunk
    call.argtypes = [ctypes.c_int, FLOATS, ctypes.c_void_p, *[ctypes.c_int64] * 3, FLOATS]
    return call


def quantize(fmt, x, importance=None):
    """Return what ggml makes of float32 `(rows, row_length)`, uint8 `(rows, row_bytes)`."""
    out = np.empty((x.shape[0], x.shape[1] // fmt.block * fmt.block_bytes), np.uint8)
    where = None if importance is None else importance.ctypes.data_as(FLOATS)
    _chunk()(type_number(fmt.name), x.ctypes.data_as(FLOATS), out.ctypes.data, 0, *x.shape, where)
    return out


def rows(rng, n=12):
    """Return float32 (6 * n, 1024): bells, heavy tails, sparse rows, lattices, unlike groups, oddities."""
    bell, heavy = rng.normal(size=(n, ROW)), rng.standard_t(2, size=(n, ROW))
    sparse = np.where(rng.random((n, ROW)) < 0.8, 0.0, bell)
    lattice = np.round(bell * 5) / rng.integers(1, 9, (n, 1))
    uneven = bell * np.repeat(10.0 ** rng.uniform(-12, 2, (n, ROW // 16)), 16, axis=1)
    return np.clip(np.concatenate([bell, heavy, sparse, lattice, uneven, odd(rng, n)]), -1e4, 1e4).astype(
        np.float32
    )


def odd(rng, n):
    """Return (n, 1024) rows that are zero, constant, denormal, or small but for single outliers."""
    x = np.zeros((n, ROW))
    x[1::6] = rng.choice([-0.25, 0.7, 3.0])
    x[2::6] = rng.normal(size=ROW) * 1e-40
    x[3::6] = np.where(rng.random(ROW) < 0.01, 50.0, 0.001) * rng.normal(size=ROW)
    x[4::6] = np.repeat(rng.normal(size=ROW // 32), 32)
    x[5::6] = np.where(rng.random(ROW) < 0.5, 0.02, -0.02)
    return x
