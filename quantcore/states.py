"""Hidden states of all chunks: in memory, or beyond a limit in a file without a name.

The file is read and written, not mapped: mapped pages count as memory of the process while they are hot, and
a full disk would end it with SIGBUS instead of an exception.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from quantcore.errors import CannotWrite, NotEnoughSpace

Floats = npt.NDArray[np.float32]

MEMORY = 1 << 29  # bytes of hidden states


class States:
    """Float32 `shape` (chunks, n_ctx, embedding), of which whole chunks are read and replaced.

    Different chunks may be read and replaced by several threads. What takes more than `memory` bytes lies in
    a file of `folder`, or of the system's folder for such files; raises `NotEnoughSpace` where it is full.
    """

    def __init__(
        self, shape: tuple[int, int, int], *, memory: int = MEMORY, folder: Path | None = None
    ) -> None:
        self.shape = shape
        self.nbytes = 4 * prod(shape)
        self._array: Floats | None = None
        self._fd = -1
        self._folder = Path(tempfile.gettempdir() if folder is None else folder)
        self.in_file = self.nbytes > memory

    def __enter__(self) -> Self:
        if not self.in_file:
            self._array = np.empty(self.shape, dtype=np.float32)
            return self
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                self._fd = os.dup(file.fileno())
            self._reserve()
        except OSError as exc:
            self._close()
            raise self._refused(exc) from exc
        return self

    def _reserve(self) -> None:
        """Take the space now: hours later would be late to find that there is none."""
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(self._fd, 0, self.nbytes)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV):
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        self._array = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, chunks: slice) -> Floats:
        """Return the states of `chunks`, `(chunks, n_ctx, embedding)`, not to be changed."""
        if self._array is not None:
            view = self._array[chunks]
            view.flags.writeable = False
            return view
        first, last, _ = chunks.indices(self.shape[0])
        out = np.empty((last - first, *self.shape[1:]), dtype=np.float32)
        left, offset = out.data.cast("B"), first * self._chunk_nbytes
        while left:
            count = os.preadv(self._fd, [left], offset)
            if not count:
                raise CannotWrite(f"{self._folder}: a temporary file of hidden states was cut short")
            left, offset = left[count:], offset + count
        return out

    def write(self, chunks: slice, states: Floats) -> None:
        """Replace the states of `chunks`."""
        if self._array is not None:
            self._array[chunks] = states
            return
        left = np.ascontiguousarray(states).data.cast("B")
        offset = chunks.indices(self.shape[0])[0] * self._chunk_nbytes
        try:
            while left:
                count = os.pwrite(self._fd, left, offset)
                left, offset = left[count:], offset + count
        except OSError as exc:
            raise self._refused(exc) from exc

    @property
    def _chunk_nbytes(self) -> int:
        return 4 * prod(self.shape[1:])

    def _refused(self, exc: OSError) -> CannotWrite | NotEnoughSpace:
        """Return the error that says why there is no such file."""
        if exc.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            free = shutil.disk_usage(self._folder).free
            return NotEnoughSpace(
                f"{self._folder}: hidden states need {self.nbytes / 1e6:,.1f} MB, "
                f"there are {free / 1e6:,.1f} MB free"
            )
        return CannotWrite(f"{self._folder}: a temporary file cannot be written: {exc.strerror}")
