"""Write GGUF version 3 files: one tensor after another, hashed on the way, visible only when whole.

Layout: GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from quantcore.atomic import AtomicFile
from quantcore.ggmltypes import type_number
from quantcore.ggufkv import DEFAULT_ALIGNMENT, MAGIC, VERSION, Value, encode, encode_string
from quantcore.tensors import TensorInfo


def alignment_of(metadata: Mapping[str, Value]) -> int:
    """Return the alignment that the metadata asks for, 32 bytes by default."""
    value = metadata.get("general.alignment")
    return DEFAULT_ALIGNMENT if value is None else int(value.value)


def padding(count: int, alignment: int) -> int:
    """Return the bytes from `count` to the next multiple of `alignment`."""
    return -count % alignment


def encode_header(metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> bytes:
    """Return all bytes before the data, padded so that the first tensor is aligned.

    Tensors lie in the order given, each padded to the alignment.
    """
    alignment = alignment_of(metadata)
    out = bytearray(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += encode(key, value)
    offset = 0
    for info in tensors:
        out += encode_string(info.name)
        out += struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
        out += struct.pack("<IQ", type_number(info.type), offset)
        offset += info.nbytes + padding(info.nbytes, alignment)
    return bytes(out + bytes(padding(len(out), alignment)))


def file_nbytes(header_nbytes: int, tensors: Sequence[TensorInfo], alignment: int) -> int:
    """Return the exact size of the file."""
    return header_nbytes + sum(info.nbytes + padding(info.nbytes, alignment) for info in tensors)


class GGUFSink:
    """Take the bytes of each tensor in the planned order and write them behind the header.

    Use as a context manager: leaving it by an exception removes everything, `commit` makes the file appear
    under its name at once. Raises `NotEnoughSpace` when the planned file does not fit on the disk.
    """

    def __init__(self, path: Path, metadata: Mapping[str, Value], tensors: Sequence[TensorInfo]) -> None:
        header = encode_header(metadata, tensors)
        self.alignment = alignment_of(metadata)
        self.tensors = tuple(tensors)
        self.nbytes = file_nbytes(len(header), tensors, self.alignment)
        self.file = AtomicFile(path, self.nbytes)
        self._hash = hashlib.sha256()
        self._header = header
        self._index = 0
        self._left = 0
        self._written = 0

    def __enter__(self) -> Self:
        self.file.open()
        try:
            self._put(self._header)
        except BaseException:
            self.file.discard()
            raise
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.discard()

    def write(self, name: str, data: memoryview | bytes) -> None:
        """Append bytes of the tensor that is next in order; pads when it is whole."""
        expected = self.tensors[self._index]
        if name != expected.name or len(data) > self._left:
            raise AssertionError(f"{name}: {len(data)} bytes, expected {self._left} more of {expected.name}")
        self._put(data)
        self._left -= len(data)
        if self._left == 0:
            self._put(bytes(padding(expected.nbytes, self.alignment)))
            self._index += 1
            self._begin()

    def _begin(self) -> None:
        """Go to the next tensor that has any bytes."""
        while self._index < len(self.tensors) and not self.tensors[self._index].nbytes:
            self._index += 1
        self._left = self.tensors[self._index].nbytes if self._index < len(self.tensors) else 0

    @property
    def whole(self) -> bool:
        """Whether every tensor was written."""
        return self._index == len(self.tensors) and self._written == self.nbytes

    def commit(self) -> str:
        """Make the file visible under its name and return its SHA-256."""
        digest = self.finish()
        self.file.commit()
        return digest

    def finish(self) -> str:
        """Return the SHA-256 of the whole file, which `atomic.publish` may then give its name."""
        if not self.whole:
            raise AssertionError(
                f"{self._index} of {len(self.tensors)} tensors, "
                f"{self._written} of {self.nbytes} bytes were written"
            )
        return self._hash.hexdigest()

    def _put(self, data: memoryview | bytes) -> None:
        self.file.write(data)
        self._hash.update(data)
        self._written += len(data)
