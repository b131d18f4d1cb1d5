"""The array functions that kernels may use: those that numpy and cupy share and that we have looked at.

A kernel that needs another one gets it by a line here, once it is clear that cupy has it and means the same.
"""

from types import SimpleNamespace

import numpy as np

DTYPES = "bool_ float16 float32 int8 int16 int32 int64 intp uint8 uint16 uint32"
MAKE = "arange asarray ascontiguousarray broadcast_to concatenate copyto empty empty_like zeros"
COMPUTE = "abs add cumsum divide floor isfinite isinf maximum multiply not_equal rint sqrt subtract trunc"
PICK = "argsort flatnonzero searchsorted take where"
BITS = "bitwise_and bitwise_or left_shift right_shift"

NARROW = SimpleNamespace(
    **{name: getattr(np, name) for name in f"{DTYPES} {MAKE} {COMPUTE} {PICK} {BITS}".split()}
)
