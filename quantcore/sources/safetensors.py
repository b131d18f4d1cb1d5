"""Read safetensors files: headers are checked in full, rows are read on demand with pread.

Nothing is mapped into memory: pages of a mapped file count as resident while they are hot, and a file that
shrinks under a mapping kills the process with SIGBUS instead of raising an error.

Layout: https://huggingface.co/docs/safetensors/index#format
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import UnreadableFile
from quantcore.sources.jsonfiles import parse_object, read_object

MAX_HEADER = 100_000_000  # the limit of the reference implementation
INDEX = "model.safetensors.index.json"

ITEM_SIZES: dict[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip

# Storage form of the types that weights may have; BF16 travels as its bit pattern.
STORAGE: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# Of all types that can be read: statistics have wider numbers than weights, and packed weights are bytes.
READABLE = STORAGE | {"F64": np.float64, "I64": np.int64, "U64": np.uint64, "U8": np.uint8}


@dataclass(frozen=True)
class StoredTensor:
    """Say where a tensor lies: `begin` is the offset of its first byte in the file `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    begin: int

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * ITEM_SIZES[self.dtype]

    @property
    def row_length(self) -> int:
        return self.shape[-1] if self.shape else 1

    def read_rows(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return rows `start:stop` as a fresh `(rows, row_length)` array of the storage type."""
        rows = np.empty((stop - start, self.row_length), dtype=READABLE[self.dtype])
        row_bytes = self.row_length * ITEM_SIZES[self.dtype]
        _read_into(self.path, [(self.begin + start * row_bytes, rows)], self.name)
        return rows

    def read_columns(self, start: int, stop: int, first: int, last: int) -> npt.NDArray[Any]:
        """Return columns `first:last` of rows `start:stop`, having read no others."""
        columns = np.empty((stop - start, last - first), dtype=READABLE[self.dtype])
        size = ITEM_SIZES[self.dtype]
        begin, row_bytes = self.begin + first * size, self.row_length * size
        offsets = range(begin + start * row_bytes, begin + stop * row_bytes, row_bytes)
        _read_into(self.path, zip(offsets, columns, strict=True), self.name)
        return columns


def _read_into(path: Path, pieces: Iterable[tuple[int, npt.NDArray[Any]]], name: str) -> None:
    """Fill arrays from the file, each at its offset, or raise `UnreadableFile` naming the tensor."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise UnreadableFile(f"{path}: cannot be opened: {exc.strerror}") from exc
    try:
        for offset, out in pieces:
            if out.size:
                _fill(fd, offset, out.data.cast("B"), f"{path}: file ends inside tensor {name}")
    finally:
        os.close(fd)


def _fill(fd: int, offset: int, left: memoryview, failed: str) -> None:
    while left:
        count = os.preadv(fd, [left], offset)
        if count == 0:
            raise UnreadableFile(f"{failed}, {len(left)} bytes short")
        left, offset = left[count:], offset + count


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Return the tensors of one file, ordered by name, after checking that each lies inside it."""
    header, data_start, data_size = _load_header(path)
    tensors: dict[str, StoredTensor] = {}
    ranges: list[tuple[int, int, str]] = []
    for name in sorted(header):
        if name != "__metadata__":
            begin, end, tensor = _check_entry(path, name, header[name], data_start, data_size)
            tensors[name] = tensor
            ranges.append((begin, end, name))
    _refuse_overlap(path, sorted(ranges))
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return what a file's header says of the file as a whole."""
    found = _load_header(path)[0].get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise UnreadableFile(f"{path}: __metadata__ is no object of strings")
    return found


def _load_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, the offset where data begin, and how many bytes of data there are."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            if len(prefix) < 8:
                raise UnreadableFile(f"{path}: not a safetensors file: it has only {size} bytes")
            (length,) = struct.unpack("<Q", prefix)
            if length > min(size - 8, MAX_HEADER):
                raise UnreadableFile(
                    f"{path}: truncated or not a safetensors file: "
                    f"the header should have {length} bytes, the file has {size}"
                )
            raw = file.read(length)
    except OSError as exc:
        raise UnreadableFile(f"{path}: cannot be read: {exc.strerror}") from exc
    return parse_object(raw, f"{path}: the header is"), 8 + length, size - 8 - length


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_entry(
    path: Path, name: str, entry: Any, data_start: int, data_size: int
) -> tuple[int, int, StoredTensor]:
    """Return begin and end within the data, and the tensor."""
    if not isinstance(entry, dict):
        raise UnreadableFile(f"{path}: tensor {name}: its header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise UnreadableFile(f"{path}: tensor {name}: unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise UnreadableFile(f"{path}: tensor {name}: bad shape {shape!r}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise UnreadableFile(f"{path}: tensor {name}: bad data_offsets {offsets!r}")
    begin, end = offsets
    tensor = StoredTensor(name, dtype, tuple(shape), path, data_start + begin)
    if end - begin != tensor.nbytes:
        raise UnreadableFile(
            f"{path}: tensor {name}: {dtype} {shape} needs {tensor.nbytes} bytes, "
            f"its offsets {begin}..{end} hold {end - begin}"
        )
    if end > data_size:
        raise UnreadableFile(
            f"{path}: truncated: tensor {name} ends at byte {end} of the data, the file holds {data_size}"
        )
    return begin, end, tensor


def _refuse_overlap(path: Path, ranges: list[tuple[int, int, str]]) -> None:
    for (_, end, name), (begin, _, follower) in pairwise(ranges):
        if begin < end:
            raise UnreadableFile(f"{path}: tensors {name} and {follower} overlap")


def open_directory(directory: Path) -> tuple[dict[str, StoredTensor], tuple[Path, ...]]:
    """Return all tensors of a model directory, single file or shards, and the files they are in."""
    index = directory / INDEX
    if index.is_file():
        weight_map = _load_index(index)
        files = tuple(directory / name for name in sorted(set(weight_map.values())))
    else:
        weight_map = None
        files = tuple(sorted(directory.glob("model*.safetensors")))
    if not files:
        raise UnreadableFile(f"{directory}: no model.safetensors and no {INDEX} in this directory")
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for name, tensor in read_header(path).items():
            if name in tensors:
                raise UnreadableFile(f"{path}: tensor {name} is also in {tensors[name].path.name}")
            tensors[name] = tensor
    if weight_map is not None:
        _check_index(index, weight_map, tensors)
    return tensors, files


def _load_index(index: Path) -> dict[str, str]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise UnreadableFile(f"{index}: not a safetensors index: it has no 'weight_map'")
    for name in weight_map.values():
        # The index comes from strangers: a name with a path in it would read files outside the model.
        if not isinstance(name, str) or Path(name).name != name:
            raise UnreadableFile(f"{index}: {name!r} is not a file name")
    for name in set(weight_map.values()):
        if not (index.parent / name).is_file():
            raise UnreadableFile(f"{index.parent / name}: missing, though {index.name} lists it")
    return weight_map


def _check_index(index: Path, weight_map: Mapping[str, str], tensors: Mapping[str, StoredTensor]) -> None:
    for name, file in weight_map.items():
        if name not in tensors:
            raise UnreadableFile(
                f"{index.parent / file}: tensor {name} is missing, though {index.name} lists it"
            )
