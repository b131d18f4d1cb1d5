"""Read GGUF files: the header once, with every number checked, then tensor rows on demand.

The header is parsed here and not by `gguf.GGUFReader`: that one builds numpy views for each string of the
vocabulary, and believes the numbers it reads. Rows are read with plain reads instead of through a memory map,
so that a file cut short while a job runs is an error and not a crash of the process, and so that the memory
of a job does not grow with the file.

Layout: GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import re
import reprlib
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.errors import QuantcoreError, UnreadableFile
from quantcore.ggmltypes import storage_nbytes, type_name
from quantcore.ggufkv import DEFAULT_ALIGNMENT, MAGIC, SCALARS, Value, ValueType
from quantcore.sources.base import Source
from quantcore.tensors import RowReader, Tensor, TensorInfo

MAX_DIMS = 4
MAX_NAME = 65_535
_SPLIT_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")
_STORAGE = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
MAX_ALIGNMENT = 1 << 20
# The largest vocabulary of today has a million values in all, in a header of 20 MB; a file of a few gigabytes
# of zeros could otherwise claim as many strings.
MAX_ITEMS = 1 << 21
MAX_HEADER = 1 << 27
MAX_STRING = 1 << 24


@dataclass(frozen=True)
class Header:
    """What stands before the data of one file: metadata, tensors with their absolute offsets, alignment."""

    metadata: dict[str, Value]
    tensors: tuple[tuple[TensorInfo, int], ...]
    alignment: int
    data_offset: int


class _Cursor:
    """Walks over the header bytes and refuses to leave them."""

    def __init__(self, buffer: Any, size: int, path: Path) -> None:
        self.buffer = buffer
        self.size = size
        self.path = path
        self.at = 0
        self.items = 0

    def fail(self, message: str) -> UnreadableFile:
        return UnreadableFile(f"{self.path}: {message}")

    def skip(self, count: int, what: str) -> int:
        """Move over `count` bytes and return where they began."""
        start = self.at
        if count < 0 or count > self.size - start:
            raise self.fail(
                f"truncated or damaged: {what} needs {count} bytes at {start}, the file has {self.size}"
            )
        if start + count > MAX_HEADER:
            raise self.fail(f"damaged: {what} ends beyond {MAX_HEADER} bytes, where no header does")
        self.at = start + count
        return start

    def expect(self, count: int, nbytes: int, what: str) -> None:
        """Refuse a claimed count of things of at least `nbytes` each that the file has no room for."""
        self.items += count
        if count > (self.size - self.at) // nbytes or self.items > MAX_ITEMS:
            raise self.fail(f"truncated or damaged: {what}")

    def number(self, code: str, what: str) -> int:
        start = self.skip(struct.calcsize(code), what)
        return int(struct.unpack_from(code, self.buffer, start)[0])

    def raw_string(self, what: str) -> bytes:
        length = self.number("<Q", what)
        start = self.skip(length, what)
        if length > MAX_STRING:
            raise self.fail(f"damaged: {what} is a string of {length} bytes")
        return bytes(self.buffer[start : start + length])

    def string(self, what: str) -> str:
        # surrogateescape keeps the few files whose strings are not UTF-8 unchanged from reading to writing.
        return self.raw_string(what).decode("utf-8", "surrogateescape")

    def strings(self, count: int, what: str) -> list[str]:
        """Return strings in a row: what `string` does, half as long, for vocabularies."""
        buffer, at, end = self.buffer, self.at, min(self.size, MAX_HEADER)
        read_length = struct.Struct("<Q").unpack_from
        found: list[str] = []
        for _ in range(count):
            begin = at + 8
            if begin > end:
                break
            at = begin + read_length(buffer, at)[0]
            if at > end or at - begin > MAX_STRING:
                break
            found.append(buffer[begin:at].decode("utf-8", "surrogateescape"))
        else:
            self.at = at
            return found
        raise self.fail(f"truncated or damaged: {what} ends at {at}, which is too far")


def _read_scalar(cursor: _Cursor, kind: ValueType, key: str) -> Any:
    if kind is ValueType.STRING:
        return cursor.string(f"value of {key}")
    dtype = np.dtype(SCALARS[kind])
    start = cursor.skip(dtype.itemsize, f"value of {key}")
    value = np.frombuffer(cursor.buffer, dtype=dtype, count=1, offset=start)[0].item()
    return bool(value) if kind is ValueType.BOOL else value


def _read_array(cursor: _Cursor, key: str, depth: int) -> Value:
    item = _value_type(cursor, key)
    count = cursor.number("<Q", f"length of {key}")
    if item is ValueType.STRING:
        cursor.expect(count, 8, f"{key} claims {count} strings")
        return Value(ValueType.ARRAY, cursor.strings(count, f"value of {key}"), item)
    if item is ValueType.ARRAY:
        if depth >= 2:
            raise cursor.fail(f"damaged: {key} nests arrays too deeply")
        cursor.expect(count, 12, f"{key} claims {count} arrays")
        return Value(ValueType.ARRAY, [_read_array(cursor, key, depth + 1) for _ in range(count)], item)
    dtype = np.dtype(SCALARS[item])
    cursor.expect(count, dtype.itemsize, f"{key} claims {count} values")
    start = cursor.skip(count * dtype.itemsize, f"value of {key}")
    values = np.frombuffer(cursor.buffer, dtype=dtype, count=count, offset=start)
    if item is ValueType.BOOL:
        values = values.astype(bool)
    return Value(ValueType.ARRAY, values.tolist(), item)


def _value_type(cursor: _Cursor, key: str) -> ValueType:
    number = cursor.number("<I", f"type of {key}")
    try:
        return ValueType(number)
    except ValueError:
        raise cursor.fail(f"damaged: {key} has value type {number}, which does not exist") from None


def _read_metadata(cursor: _Cursor, count: int) -> dict[str, Value]:
    cursor.expect(count, 13, f"it claims {count} metadata keys")
    metadata: dict[str, Value] = {}
    for _ in range(count):
        key = cursor.string("a metadata key")
        if key in metadata:
            raise cursor.fail(f"damaged: metadata key {key!r} stands twice")
        kind = _value_type(cursor, key)
        metadata[key] = (
            _read_array(cursor, key, 0)
            if kind is ValueType.ARRAY
            else Value(kind, _read_scalar(cursor, kind, key))
        )
    return metadata


def _read_info(cursor: _Cursor) -> tuple[TensorInfo, int]:
    name = cursor.string("a tensor name")
    if not name or len(name) > MAX_NAME:
        raise cursor.fail(f"damaged: a tensor name of {len(name)} characters")
    n_dims = cursor.number("<I", f"dimensions of {name}")
    if n_dims > MAX_DIMS:
        raise cursor.fail(f"damaged: tensor {name} has {n_dims} dimensions")
    shape = tuple(cursor.number("<Q", f"shape of {name}") for _ in range(n_dims))[::-1]
    if prod(shape) >= 2**62 or max(shape, default=0) >= 2**62:
        raise cursor.fail(f"damaged: tensor {name} has the impossible shape {list(shape)}")
    number = cursor.number("<I", f"type of {name}")
    offset = cursor.number("<Q", f"offset of {name}")
    try:
        kind = type_name(number)
        nbytes = storage_nbytes(kind, shape)
    except QuantcoreError as exc:
        raise cursor.fail(f"tensor {name}: {exc}") from None
    return TensorInfo(name, shape, kind, nbytes), offset


def _read_infos(cursor: _Cursor, count: int) -> list[tuple[TensorInfo, int]]:
    cursor.expect(count, 24, f"it claims {count} tensors")
    infos = [_read_info(cursor) for _ in range(count)]
    names = {info.name for info, _ in infos}
    if len(names) != len(infos):
        raise cursor.fail("damaged: two tensors have the same name")
    return infos


def _alignment(cursor: _Cursor, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment")
    alignment = DEFAULT_ALIGNMENT if value is None else value.value
    sound = isinstance(alignment, int) and 0 < alignment <= MAX_ALIGNMENT
    if not sound or alignment & (alignment - 1):
        raise cursor.fail(f"damaged: general.alignment is {alignment!r}, not a power of two in reason")
    return alignment


def _place(cursor: _Cursor, infos: list[tuple[TensorInfo, int]], alignment: int) -> int:
    """Check that all tensors lie aligned, inside the file and apart; return where the data begins."""
    begin = -(-cursor.at // alignment) * alignment
    end = begin
    for info, offset in sorted(infos, key=lambda pair: pair[1]):
        if offset % alignment:
            raise cursor.fail(
                f"damaged: tensor {info.name} starts at {offset}, not a multiple of {alignment}"
            )
        if begin + offset < end:
            raise cursor.fail(f"damaged: tensor {info.name} overlaps the one before it")
        end = begin + offset + info.nbytes
        if end > cursor.size:
            raise cursor.fail(f"truncated: tensor {info.name} ends at byte {end}, the file has {cursor.size}")
    return begin


def read_header(path: Path) -> Header:
    """Read and check all that stands before the data. Raises `UnreadableFile` naming file and field."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise UnreadableFile(f"{path}: not a GGUF file but {'a folder' if path.is_dir() else 'a device'}")
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise UnreadableFile(f"{path}: not a GGUF file ({size} bytes)")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                return _parse(_Cursor(buffer, len(buffer), path))
    except OSError as exc:
        raise UnreadableFile(f"{path}: {exc.strerror}") from exc


def _parse(cursor: _Cursor) -> Header:
    if bytes(cursor.buffer[:4]) != MAGIC:
        raise cursor.fail("not a GGUF file (it does not begin with GGUF)")
    cursor.at = 4
    version = cursor.number("<I", "version")
    if version not in (2, 3):
        hint = " (a big-endian file?)" if version & 0xFFFF == 0 else ""
        raise cursor.fail(f"GGUF version {version} is not supported, only 2 and 3{hint}")
    n_tensors = cursor.number("<Q", "tensor count")
    n_keys = cursor.number("<Q", "key count")
    metadata = _read_metadata(cursor, n_keys)
    infos = _read_infos(cursor, n_tensors)
    alignment = _alignment(cursor, metadata)
    begin = _place(cursor, infos, alignment)
    placed = tuple((info, begin + offset) for info, offset in infos)
    return Header(metadata, placed, alignment, begin)


def row_reader(path: Path, info: TensorInfo, offset: int) -> RowReader:
    """Return the function that reads rows of one tensor from `path`; see `Tensor` for what it returns."""
    row_nbytes = info.nbytes // info.n_rows if info.n_rows else 0
    dtype = np.dtype(_STORAGE.get(info.type, "u1"))

    def read_rows(start: int, stop: int) -> npt.NDArray[Any]:
        rows = np.empty((stop - start, row_nbytes // dtype.itemsize), dtype=dtype)
        view = rows.reshape(-1).view(np.uint8).data
        try:
            _read_into(view, path, offset + start * row_nbytes)
        except EOFError:
            raise UnreadableFile(f"{path}: cut short while being read, at tensor {info.name}") from None
        except OSError as exc:
            raise UnreadableFile(f"{path}: tensor {info.name} cannot be read: {exc.strerror}") from exc
        return rows  # (rows, row_length) or (rows, bytes_per_row)

    return read_rows


def _read_into(view: memoryview, path: Path, offset: int) -> None:
    """Fill `view` from the file's bytes at `offset`; raises `EOFError` where they end before that."""
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        done = 0
        while done < len(view):
            count = file.readinto(view[done:])
            if not count:
                raise EOFError
            done += count


def _parts(path: Path, header: Header) -> list[Path]:
    """Return all files of a model; more than one when the metadata says that it was split."""
    count = _whole(path, header, "split.count", 1)
    if count <= 1:
        return [path]
    match = _SPLIT_NAME.match(path.name)
    if not match or int(match["number"]) != 1 or int(match["count"]) != count:
        raise UnreadableFile(f"{path}: open a split model by its first part, NAME-00001-of-{count:05d}.gguf")
    return [path.with_name(f"{match['stem']}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]


def _whole(path: Path, header: Header, key: str, default: int, what: str = "files") -> int:
    value = header.metadata.get(key)
    if value is None:
        return default
    if not isinstance(value.value, int):
        raise UnreadableFile(f"{path}: {key} is {reprlib.repr(value.value)}, not a number of {what}")
    return value.value


def _check_parts(parts: list[Path], headers: list[Header]) -> None:
    """Refuse files that are parts of something else, or not all there is."""
    for number, (part, header) in enumerate(zip(parts, headers, strict=True)):
        for key, wanted in (("split.no", number), ("split.count", len(parts))):
            said = _whole(part, header, key, wanted)
            if said != wanted:
                raise UnreadableFile(f"{part}: {key} is {said}, by the file's name it should be {wanted}")
    found = sum(len(header.tensors) for header in headers)
    promised = _whole(parts[0], headers[0], "split.tensors.count", found, "tensors")
    if promised != found:
        raise UnreadableFile(
            f"{parts[0]}: split.tensors.count is {promised}, the {len(parts)} parts have {found} tensors"
        )


def open_gguf(path: Path) -> Source:
    """Open a GGUF file, or the first part of a split one, reading headers only.

    Raises `UnreadableFile` for anything that is not a whole, sound GGUF version 2 or 3.
    """
    first = read_header(path)
    parts = _parts(path, first)
    headers = [first, *(read_header(part) for part in parts[1:])]
    if len(parts) > 1:
        _check_parts(parts, headers)
    tensors = tuple(
        Tensor(info, row_reader(part, info, offset))
        for part, header in zip(parts, headers, strict=True)
        for info, offset in header.tensors
    )
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise UnreadableFile(f"{path}: a tensor stands in two parts of the split model")
    if not isinstance(getattr(first.metadata.get("general.architecture"), "value", None), str):
        raise UnreadableFile(f"{path}: general.architecture is missing")
    counts = tuple(len(header.tensors) for header in headers) if len(headers) > 1 else ()
    return Source(path, "gguf", first.metadata, tensors, tuple(parts), counts)
