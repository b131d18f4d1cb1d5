"""Compiled kernels for tests: built once on this machine and kept, like those of the product."""

from functools import cache
from importlib.util import find_spec

import pytest

from quantcore.kernels import library

HAVE_NUMBA = find_spec("numba") is not None

needs_numba = pytest.mark.skipif(not HAVE_NUMBA, reason="compiled kernels need numba")


@cache
def compiled():
    """Return the compiled kernels, first building them where that was not done; None without numba."""
    return library.build() if HAVE_NUMBA else None
