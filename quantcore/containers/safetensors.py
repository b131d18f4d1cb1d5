"""Write safetensors files: one tensor after another, visible only when whole.

Layout: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from quantcore.atomic import AtomicFile
from quantcore.tensors import TensorInfo

ITEM_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "U8": 1}


def stored(name: str, shape: tuple[int, ...], dtype: str) -> TensorInfo:
    """Describe a tensor of a type of these files."""
    return TensorInfo(name, shape, dtype, ITEM_SIZES[dtype] * prod(shape))


def encode_header(metadata: Mapping[str, str], tensors: Sequence[TensorInfo]) -> bytes:
    """Return all bytes before the data, padded so that data begin at a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for info in tensors:
        place = [offset, offset + info.nbytes]
        header[info.name] = {"dtype": info.type, "shape": list(info.shape), "data_offsets": place}
        offset += info.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class SafetensorsSink:
    """Take the bytes of each of `tensors` in order: wide types first, so that all of them lie aligned.

    Use as a context manager: leaving it by an exception removes everything, `commit` makes the file appear
    under its name at once. Raises `NotEnoughSpace` when the file does not fit on the disk.
    """

    def __init__(self, path: Path, metadata: Mapping[str, str], tensors: Sequence[TensorInfo]) -> None:
        self.tensors = tuple(sorted(tensors, key=lambda info: -ITEM_SIZES[info.type]))
        self._header = encode_header(metadata, self.tensors)
        self.nbytes = len(self._header) + sum(info.nbytes for info in self.tensors)
        self._file = AtomicFile(path, self.nbytes)
        self._written = 0

    def __enter__(self) -> Self:
        self._file.open()
        try:
            self._put(self._header)
        except BaseException:
            self._file.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.discard()

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes of the tensor that is next in order, or a part of them."""
        self._put(data)

    def commit(self) -> None:
        """Make the file visible under its name."""
        if self._written != self.nbytes:
            raise AssertionError(f"{self._written} of {self.nbytes} bytes were written")
        self._file.commit()

    def _put(self, data: memoryview | bytes) -> None:
        self._file.write(data)
        self._written += memoryview(data).nbytes
