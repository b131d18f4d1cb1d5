"""Importance matrices: how much each column of a weight matrix counts, as measured on a text.

Two kinds of file are read, told apart by their first bytes. The GGUF kind has for a weight `NAME` two
tensors: `NAME.in_sum2`, the sums of the squared inputs of each column, float32 `(n_matrices, row_length)`,
and `NAME.counts`, how many inputs were summed, float32 `(n_matrices, 1)`; a stack of experts has one matrix
for each. The older kind (`.dat`, little-endian) has a number of entries, then for each the length of its
name, the name, a number of calls, a number of values, and as many float32; then a number of chunks and the
text's name.

Values stay in the file and are read tensor by tensor: those of a large mixture of experts are gigabytes. Each
of them has been looked at once when the file was opened.

1. llama.cpp, `tools/imatrix` and `common/imatrix-loader.cpp` (release 0.5.0-dev).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from quantcore.errors import InputError, UnreadableFile
from quantcore.ggufkv import MAGIC, ValueType
from quantcore.sources.gguf import Header, read_header
from quantcore.tensors import TensorInfo

Floats = npt.NDArray[np.float32]

SUMS, COUNTS = ".in_sum2", ".counts"
KEYS = ("imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size")
LONGEST_VALUE = 127  # bytes of a text that llama-quantize keeps in a file's metadata
MAX_NAME = 65_535
MAX_MATRICES = 65_536  # experts in one stack; models of today have hundreds
_PIECE = 1 << 22  # bytes looked at in one go
# llama-quantize lets the importance of these be of another size, and then goes without it.
_FORGIVEN = frozenset({"token_embd.weight", "per_layer_token_embd.weight"})


@dataclass(frozen=True)
class Entry:
    """Where the values of one weight stand: `n_values` float32 at `offset`, to be divided by `counts`."""

    offset: int
    n_values: int
    counts: tuple[float, ...]


@dataclass(frozen=True)
class ImportanceMatrix:
    """The importance of the columns of weights, read from `path` on demand.

    `given` is the path as the user wrote it, which goes into files made with it; `datasets` name the texts it
    was measured on, in `n_chunks` chunks (0 if the file does not say). Files of the older kind count chunks
    where others count inputs (`counts_chunks`). Tensors are asked for by the names
    they had when they were measured: where layers were cut since, by `Source.former_names`.
    """

    path: Path
    given: str
    entries: Mapping[str, Entry]
    datasets: tuple[str, ...] = ()
    n_chunks: int = 0
    counts_chunks: bool = False

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def largest_nbytes(self) -> int:
        """Return the bytes of the entry that has most."""
        return max((4 * entry.n_values for entry in self.entries.values()), default=0)

    def covers(self, name: str, shape: tuple[int, ...]) -> bool:
        """Say whether there is an entry for a tensor of `shape` (numpy order).

        Raises `InputError` naming the tensor where the entry is of another size.
        """
        entry = self.entries.get(name)
        if entry is None:
            return False
        wanted = n_matrices(shape) * (shape[-1] if shape else 1)
        if entry.n_values == wanted:
            return True
        if name in _FORGIVEN:
            return False
        raise InputError(
            f"{self.path}: {name}: the importance matrix has {entry.n_values} values where the tensor needs "
            f"{wanted}; it was made for another model"
        )

    def get(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """Return the importance of a tensor of `shape`, float32 `(n_matrices, row_length)`, or None.

        Raises `InputError` for an entry of another size, `UnreadableFile` for a file that has changed.
        """
        if not self.covers(name, shape):
            return None
        entry = self.entries[name]
        with _opened(self.path) as file:
            values = _values(file, entry, self.path, name)
        return _mean(values, entry.counts).reshape(n_matrices(shape), -1)  # (n_matrices, row_length)

    def sums(self, name: str, chunk_size: int) -> tuple[Floats, Floats]:
        """Return the sums of an entry, float32 `(n_matrices, row_length)`, and how many inputs they are of.

        The counts are float32 `(n_matrices,)`. Files of the older kind count chunks, here of `chunk_size`.
        """
        entry = self.entries[name]
        with _opened(self.path) as file:
            values = _values(file, entry, self.path, name)
        scale = np.float32(chunk_size if self.counts_chunks else 1)
        counts = np.array(entry.counts, dtype=np.float32)
        return values.reshape(len(counts), -1) * scale, counts * scale

    def selected(self, *, include: Collection[str] = (), exclude: Collection[str] = ()) -> ImportanceMatrix:
        """Return the entries whose names contain one of `include` (if given) and none of `exclude`."""
        kept = {
            name: entry
            for name, entry in self.entries.items()
            if not any(part in name for part in exclude)
            and (not include or any(part in name for part in include))
        }
        return replace(self, entries=kept)

    def metadata(self) -> dict[str, str | int]:
        """Return the keys that llama-quantize writes into a file made with this matrix, and their values."""
        made: dict[str, str | int] = {"quantize.imatrix.file": _cut(self.given)}
        if self.datasets:
            made["quantize.imatrix.dataset"] = _cut(self.datasets[0])
        made["quantize.imatrix.entries_count"] = len(self.entries)
        if self.n_chunks > 0:
            made["quantize.imatrix.chunks_count"] = self.n_chunks
        return made


def n_matrices(shape: tuple[int, ...]) -> int:
    """Return how many matrices a tensor stacks: one for each expert."""
    return shape[-3] if len(shape) > 2 else 1


def open_imatrix(path: str | Path) -> ImportanceMatrix:
    """Open an importance matrix of either kind; raises `UnreadableFile` naming file and entry."""
    place = Path(path)
    with _opened(place) as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
        read = _read_gguf if is_gguf else _read_legacy
        found = replace(read(file, place), given=str(path))
        if not found.entries:
            raise UnreadableFile(f"{place}: holds no entry of an importance matrix")
        for name, entry in found.entries.items():
            _check(file, entry, place, name)
    return found


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as exc:
        raise UnreadableFile(f"{path}: {exc.strerror}") from exc


def _cut(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape").partition(b"\0")[0]
    return raw[:LONGEST_VALUE].decode("utf-8", "surrogateescape")


def _exactly(file: BinaryIO, count: int, path: Path, what: str) -> bytes:
    try:
        data = file.read(count)
    except OSError as exc:
        raise UnreadableFile(f"{path}: {exc.strerror}") from exc
    if len(data) != count:
        raise UnreadableFile(f"{path}: truncated: {what} needs {count} bytes, {len(data)} are left")
    return data


def _values(file: BinaryIO, entry: Entry, path: Path, name: str) -> Floats:
    file.seek(entry.offset)
    data = _exactly(file, 4 * entry.n_values, path, f"entry {name}")
    return np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)  # (n_values,)


def _check(file: BinaryIO, entry: Entry, path: Path, name: str) -> None:
    """Look at each value once: one that is no mean of squares would come out as noise, or not at all."""
    file.seek(entry.offset)
    left = 4 * entry.n_values
    while left:
        data = _exactly(file, min(left, _PIECE), path, f"entry {name}")
        piece = np.frombuffer(data, dtype="<f4")
        # NaN passes through minimum and maximum, and fails both comparisons.
        if not (piece.min() >= 0 and piece.max() < np.inf):
            raise UnreadableFile(
                f"{path}: entry {name} holds values that are negative, infinite or not numbers"
            )
        left -= len(data)


def _mean(values: Floats, counts: tuple[float, ...]) -> Floats:
    """Return the means of sums; experts that no token reached count alike in all columns."""
    sums = values.reshape(len(counts), -1)  # (n_counts, values of each)
    divisors = np.array(counts, dtype=np.float32)[:, None]  # (n_counts, 1)
    means = np.ones_like(sums)
    np.divide(sums, divisors, out=means, where=divisors > 0)
    return means


def _read_gguf(file: BinaryIO, path: Path) -> ImportanceMatrix:
    header = read_header(path)
    missing = [key for key in KEYS if key not in header.metadata]
    if missing:
        raise UnreadableFile(
            f"{path}: not an importance matrix: {', '.join(missing)} missing in its metadata"
        )
    datasets, chunks, _size = (header.metadata[key] for key in KEYS)
    if datasets.type is not ValueType.ARRAY or datasets.item is not ValueType.STRING:
        raise UnreadableFile(f"{path}: imatrix.datasets is not a list of names")
    for key in KEYS[1:]:
        if header.metadata[key].type is not ValueType.UINT32:
            raise UnreadableFile(f"{path}: {key} is {header.metadata[key].value!r}, not a 32-bit count")
    entries = dict(_gguf_entries(file, path, header))
    return ImportanceMatrix(path, str(path), entries, tuple(datasets.value), chunks.value)


def _gguf_entries(file: BinaryIO, path: Path, header: Header) -> Iterator[tuple[str, Entry]]:
    found = {info.name: (info, offset) for info, offset in header.tensors}
    # As a set: a file may have a hundred thousand entries.
    names = {
        name.removesuffix(end)
        for name in found
        for end in (SUMS, COUNTS)
        if name.endswith(end) and name != end
    }
    for name in sorted(names):
        sums, counts = found.get(name + SUMS), found.get(name + COUNTS)
        if sums is None or counts is None:
            raise UnreadableFile(f"{path}: entry {name} has {'counts' if sums is None else 'sums'} alone")
        yield name, _gguf_entry(file, path, name, sums, counts)


def _gguf_entry(
    file: BinaryIO, path: Path, name: str, sums: tuple[TensorInfo, int], counts: tuple[TensorInfo, int]
) -> Entry:
    (info, offset), (count_info, count_offset) = sums, counts
    if info.type != "F32" or count_info.type != "F32":
        raise UnreadableFile(f"{path}: entry {name} is {info.type} with {count_info.type} counts, not F32")
    n_values, n_counts = prod(info.shape), prod(count_info.shape)
    if not n_values or not 0 < n_counts <= MAX_MATRICES or n_values % n_counts:
        raise UnreadableFile(f"{path}: entry {name} has {n_values} sums for {n_counts} counts")
    found = _values(file, Entry(count_offset, n_counts, ()), path, name)
    if not (found.min() >= 0 and found.max() < np.inf):
        raise UnreadableFile(f"{path}: entry {name} has counts that are negative, infinite or not numbers")
    return Entry(offset, n_values, tuple(np.floor(found.astype(np.float64) + 0.5).tolist()))


def _read_legacy(file: BinaryIO, path: Path) -> ImportanceMatrix:
    size = path.stat().st_size
    n_entries = _int(file, path, "the number of entries")
    # The shortest entry has a name of one letter and one value.
    if not 0 < n_entries <= size // 17:
        raise UnreadableFile(f"{path}: not an importance matrix: it would hold {n_entries} entries")
    entries: dict[str, Entry] = {}
    for number in range(1, n_entries + 1):
        name, entry = _legacy_entry(file, path, f"entry {number} of {n_entries}", size)
        if name in entries:
            raise UnreadableFile(f"{path}: damaged: entry {name} stands twice")
        entries[name] = entry
    n_chunks, datasets = _legacy_trailer(file, path, size)
    return ImportanceMatrix(path, str(path), entries, datasets, n_chunks, counts_chunks=True)


def _legacy_entry(file: BinaryIO, path: Path, what: str, size: int) -> tuple[str, Entry]:
    length = _int(file, path, f"{what}, length of its name")
    if not 0 < length <= MAX_NAME:
        raise UnreadableFile(f"{path}: damaged: {what} has a name of {length} bytes")
    raw = _exactly(file, length, path, f"{what}, its name")
    name = raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    n_calls = _int(file, path, f"{what} ({name}), number of calls")
    n_values = _int(file, path, f"{what} ({name}), number of values")
    if n_calls < 0 or n_values < 1:
        raise UnreadableFile(f"{path}: damaged: {what} ({name}) has {n_values} values of {n_calls} calls")
    offset = file.tell()
    if 4 * n_values > size - offset:
        raise UnreadableFile(
            f"{path}: truncated: {what} ({name}) has {n_values} values, {size - offset} bytes left"
        )
    file.seek(4 * n_values, 1)
    # Values of no call are taken as they are.
    return name, Entry(offset, n_values, (float(max(1, n_calls)),))


def _legacy_trailer(file: BinaryIO, path: Path, size: int) -> tuple[int, tuple[str, ...]]:
    """Return how many chunks were measured and of which text; the oldest files say neither."""
    if size - file.tell() < 8:
        return (_int(file, path, "number of chunks") if size - file.tell() >= 4 else 0), ()
    n_chunks = _int(file, path, "number of chunks")
    length = _int(file, path, "length of the text's name")
    if length <= 0:
        return n_chunks, ()
    left = size - file.tell()
    if length > left:
        raise UnreadableFile(f"{path}: truncated: the text's name has {length} bytes, {left} are left")
    raw = _exactly(file, length, path, "the text's name")
    return n_chunks, (raw.partition(b"\0")[0].decode("utf-8", "surrogateescape"),)


def _int(file: BinaryIO, path: Path, what: str) -> int:
    return int(struct.unpack("<i", _exactly(file, 4, path, what))[0])
