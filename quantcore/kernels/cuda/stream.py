"""Rows of tensors to a CUDA card and back, so that copies in, arithmetic and copies out overlap.

A lane is a CUDA stream with pinned buffers of its own. Every call takes a free lane and waits for nothing but
its own stream: two or more threads that call side by side keep the card and the bus busy in both directions.
"""

from __future__ import annotations

from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import BoundedSemaphore, Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from quantcore.errors import UnsupportedTensor
from quantcore.formats.base import BlockFormat, Bytes, Packed, registry
from quantcore.formats.floats import bfloat_to_float
from quantcore.kernels.status import NOT_A_NUMBER
from quantcore.tensors import TensorInfo

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quantcore.kernels.cuda import CudaKernel

# More gain nothing: one copies in, one calculates, one copies out.
LANES = 3


def widen(info: TensorInfo, rows: Any, *, xp: Any) -> Any:
    """Return storage `rows` on the card, as `Tensor.read_rows` gives them, as float32 `(rows, row_length)`.

    Unlike `quantcore.formats.to_float` this never waits for the card where rows are not quantized.
    """
    if info.type in {"F32", "F64", "F16"}:
        return rows.astype(xp.float32, copy=False)
    if info.type == "BF16":
        return bfloat_to_float(rows, xp=xp)
    fmt = registry().get(info.type)
    if not isinstance(fmt, BlockFormat):
        raise UnsupportedTensor(f"{info.name}: type {info.type} cannot be decoded to numbers")
    packed = Packed(info.type, (rows.shape[0], info.row_length), {"blocks": rows})
    return fmt.dequantize(packed, xp=xp)


class _Lane:
    """A stream and its pinned buffers, which grow as needed."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self.stream = xp.cuda.Stream(non_blocking=True)
        self._memory: dict[str, Any] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a pinned array; the one of this name that was given before is void then."""
        count = int(np.prod(shape))
        nbytes = count * np.dtype(dtype).itemsize
        memory = self._memory.get(name)
        if memory is None or memory.size() < nbytes:
            memory = self._memory[name] = self._xp.cuda.alloc_pinned_memory(max(1, nbytes))
        return np.frombuffer(memory, dtype, count).reshape(shape)

    def to_card(self, rows: Any) -> Any:
        """Return rows on the card, once the stream has come so far."""
        staged = self.buffer("in", rows.shape, rows.dtype)
        np.copyto(staged, rows)
        there = self._xp.empty(rows.shape, dtype=rows.dtype)
        there.set(staged)
        return there

    def to_host(self, name: str, there: Any) -> Any:
        """Return a pinned array that holds `there` once the stream has come so far."""
        staged = self.buffer(name, there.shape, there.dtype)
        there.get(out=staged, blocking=False)
        return staged


class Lanes:
    """The lanes of a card, made when first needed, and the tables of formats that lie there."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self._free: SimpleQueue[_Lane] = SimpleQueue()
        self._room = BoundedSemaphore(LANES)
        self._tables: dict[str, Any] = {}
        self._lock = Lock()

    @contextmanager
    def _lane(self) -> Iterator[_Lane]:
        with self._room:
            try:
                lane = self._free.get_nowait()
            except Empty:
                lane = _Lane(self._xp)
            try:
                with lane.stream:
                    yield lane
            finally:
                # An error may leave copies under way from or to its buffers.
                lane.stream.synchronize()
                self._free.put(lane)

    def _tables_of(self, fmt: BlockFormat, lane: _Lane) -> Any | None:
        with self._lock:
            if fmt.name not in self._tables:
                self._tables[fmt.name] = fmt.tables(xp=self._xp)
                lane.stream.synchronize()  # other streams will read them
            return self._tables[fmt.name]

    def convert(
        self, fmt: BlockFormat, kernel: CudaKernel, rows: Any, info: TensorInfo, importance: Any | None
    ) -> tuple[Bytes, int]:
        """Return storage `rows` as blocks, uint8 `(rows, row_bytes)`, and the status of the kernel.

        Raises `UnsupportedTensor` for NaN and infinite values.
        """
        xp = self._xp
        fmt.check_shape((rows.shape[0], info.row_length), info.name)
        row_bytes = info.row_length // fmt.block * fmt.block_bytes
        with self._lane() as lane:
            values = widen(info, lane.to_card(rows), xp=xp)
            weights = None if importance is None else xp.asarray(importance, dtype=xp.float32)
            out = xp.empty((rows.shape[0], row_bytes), dtype=xp.uint8)
            status = xp.zeros(1, dtype=xp.int32)
            kernel.launch(values, weights, self._tables_of(fmt, lane), out, status)
            finite = lane.to_host("finite", xp.isfinite(values).all().reshape(1))
            told = lane.to_host("status", status)
            blocks = lane.to_host("out", out)
            lane.stream.synchronize()
            if not finite[0]:
                raise UnsupportedTensor(NOT_A_NUMBER)
            return blocks.copy(), int(told[0])
