"""Rows through a compiled kernel: a tile at a time, from what files store to blocks.

Compiled kernels have no bounds checks. Here is where arrays become addresses, and where it is made sure that
these arrays are what kernels take them for.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from quantcore.kernels import Addressed, Kernels

# Kernels need no scratch: tiles of so many weights are for what they read to stay in the inner cache.
CACHED = 1 << 16
# What is read, as compiled code expects it.
STORED = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}


class Target(Protocol):
    """What is to be known of the format."""

    @property
    def block(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    def tables(self, *, xp: Any) -> Any | None: ...


@dataclass(frozen=True)
class Compiled:
    """A kernel, what makes float32 of the rows that it is given, and their type `kind`, one of `STORED`."""

    kernel: Addressed
    read: Addressed
    kind: str


def find_compiled(kernels: Kernels | None, format_name: str, kind: str, *, weighted: bool) -> Compiled | None:
    """Return the compiled kernel of a format for rows of a type, or None where there is none."""
    if kernels is None or kind not in STORED:
        return None
    kernel = kernels.find(format_name, weighted=weighted)
    read = kernels.reader(kind) if isinstance(kernel, Addressed) else None
    return Compiled(kernel, read, kind) if isinstance(kernel, Addressed) and read else None


def fill_compiled(
    fmt: Target, compiled: Compiled, rows: Any, importance: Any | None, out: Any, pool: Executor | None
) -> None:
    """Fill `out`, uint8 `(rows, row_bytes)`, with the blocks of `rows` `(rows, row_length)`.

    `importance` is contiguous float32 `(row_length,)`. Raises `UnsupportedTensor` for NaN and infinite
    values, and for those that the type cannot hold.
    """
    rows = np.ascontiguousarray(rows, dtype=STORED[compiled.kind])
    n, row = rows.shape
    if out.shape != (n, row // fmt.block * fmt.block_bytes) or not out.flags.c_contiguous:
        raise AssertionError(f"room of {out.shape} for {n} rows of {row}")
    if importance is not None and (importance.shape != (row,) or importance.dtype != np.float32):
        raise AssertionError(f"importance of {importance.shape} {importance.dtype} for rows of {row}")
    tables = fmt.tables(xp=np)
    weights, table = (None if part is None else part.ctypes.data for part in (importance, tables))
    step = max(1, CACHED // max(1, row))
    ready = compiled.kind == "F32"  # only to be checked
    source, target = rows.ctypes.data, out.ctypes.data

    def work(start: int) -> None:
        count = min(step, n - start)
        stored = source + start * rows.strides[0]
        room = np.empty((0 if ready else count, row), dtype=np.float32)
        compiled.read.at(stored, count, row, None, None, None if ready else room.ctypes.data)
        values = stored if ready else room.ctypes.data
        compiled.kernel.at(values, count, row, weights, table, target + start * out.strides[0])

    tiles = range(0, n, step)
    for _ in map(work, tiles) if pool is None else pool.map(work, tiles):
        pass
