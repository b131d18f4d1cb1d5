"""The statistics of one layer's inputs in a safetensors file.

It has for an input of N matrices (1, or as many as there are experts), under the first name that shares it:

    .rows         I64 (N,)                        how many inputs were seen
    .squares      F64 (N, width)                  sums of squares by channel
    .magnitudes   F64 (N, width)                  sums of magnitudes by channel
    .largest      F32 (N, width)                  largest magnitudes by channel
    .hessian      F32 (N, width * (width + 1) / 2)  X'X on and below its diagonal, row by row
    .sample       F32 (kept, width)               inputs as they were, those of the first matrix first
    .sample_keys  U64 (kept,)                     what they were chosen by
    .sample_rows  I64 (N,)                        how many of them are of each matrix

The header's `__metadata__` say what the statistics are of, and which names share an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.containers.safetensors import SafetensorsSink, stored
from quantcore.errors import InputError, UnreadableFile
from quantcore.sources.safetensors import StoredTensor, read_header
from quantcore.statistics.gram import Gram, packed_size
from quantcore.statistics.sample import Sample
from quantcore.statistics.tally import Collect, Shared, Tally
from quantcore.tensors import TensorInfo

Numbers = npt.NDArray[Any]
Pieces = Callable[[], Iterable[Numbers]]

_BYTES = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U64": "<u8"}
_BY_CHANNEL = {"squares": "F64", "magnitudes": "F64", "largest": "F32"}


def save_layer(path: Path, metadata: Mapping[str, str], inputs: Iterable[Shared]) -> int:
    """Write the file, whole or not at all; return its size in bytes."""
    parts = [part for shared in inputs for part in _parts(shared)]
    data = {info.name: pieces for info, pieces in parts}
    with SafetensorsSink(path, metadata, [info for info, _ in parts]) as sink:
        for info in sink.tensors:
            for piece in data[info.name]():
                sink.write(_encoded(piece, info))
        sink.commit()
    return sink.nbytes


def _encoded(numbers: Numbers, info: TensorInfo) -> bytes:
    """Return the bytes of numbers; raises `InputError` where they are too large for the file."""
    with np.errstate(over="ignore"):
        narrow = numbers.astype(_BYTES[info.type], copy=False)
    if not np.isfinite(narrow).all():
        raise InputError(f"{info.name}: sums beyond what a file can hold; the model must be damaged")
    return narrow.tobytes()


def _parts(shared: Shared) -> Iterator[tuple[TensorInfo, Pieces]]:
    """Yield the tensors that an input becomes, with what gives their numbers in pieces."""
    stem, tallies = shared.stem, shared.tallies
    n, width, first = len(tallies), tallies[0].width, tallies[0]
    yield stored(f"{stem}.rows", (n,), "I64"), lambda: [np.array([tally.rows for tally in tallies])]
    for end, dtype in _BY_CHANNEL.items():
        if getattr(first, end) is not None:
            yield stored(f"{stem}.{end}", (n, width), dtype), _Of(tallies, end)
    if first.gram is not None:
        grams = [tally.gram for tally in tallies if tally.gram is not None]
        yield (
            stored(f"{stem}.hessian", (n, packed_size(width)), "F32"),
            lambda: (piece for gram in grams for piece in gram.packed()),
        )
    if first.sample is not None:
        samples = [tally.sample for tally in tallies if tally.sample is not None]
        kept = [len(sample.keys) for sample in samples]
        yield stored(f"{stem}.sample", (sum(kept), width), "F32"), lambda: [it.rows for it in samples]
        yield stored(f"{stem}.sample_keys", (sum(kept),), "U64"), lambda: [it.keys for it in samples]
        yield stored(f"{stem}.sample_rows", (n,), "I64"), lambda: [np.array(kept)]


@dataclass(frozen=True)
class _Of:
    """One field of all tallies."""

    tallies: tuple[Tally, ...]
    field: str

    def __call__(self) -> list[Numbers]:
        return [getattr(tally, self.field) for tally in self.tallies]


@dataclass(frozen=True)
class LayerReader:
    """Read what was `collect`ed of one layer, believing nothing that the file says of sizes."""

    path: Path
    collect: Collect
    tensors: Mapping[str, StoredTensor]

    @classmethod
    def opened(cls, path: Path, collect: Collect) -> LayerReader:
        """Return the reader of a file whose header is one."""
        return cls(path, collect, read_header(path))

    def shared(self, names: tuple[str, ...], width: int) -> Shared:
        """Return what was found of one input; raises `UnreadableFile` naming what is wrong."""
        stem = Shared(names, ()).stem
        rows = self._whole(f"{stem}.rows", "I64", None)
        tallies = tuple(Tally(width, rows=int(count)) for count in rows)
        self._by_channel(stem, tallies)
        if self.collect.hessians:
            tensor = self._tensor(f"{stem}.hessian", "F32", (len(tallies), packed_size(width)))
            sizes = Gram(width).packed_sizes()
            for number, tally in enumerate(tallies):
                tally.gram = Gram.unpacked(width, _pieces(tensor, number, sizes))
        if self.collect.samples:
            self._samples(stem, tallies)
        if (rows < 0).any() or not all(tally.finite() for tally in tallies):
            raise UnreadableFile(f"{self.path}: {stem} has negative counts, or numbers that are not finite")
        return Shared(names, tallies)

    def _by_channel(self, stem: str, tallies: tuple[Tally, ...]) -> None:
        asked = {"squares"} if self.collect.importance else set()
        asked |= {"magnitudes", "largest"} if self.collect.activations else set()
        for end in sorted(asked):
            found = self._whole(f"{stem}.{end}", _BY_CHANNEL[end], (len(tallies), tallies[0].width))
            for tally, values in zip(tallies, found, strict=True):
                setattr(tally, end, values)

    def _samples(self, stem: str, tallies: tuple[Tally, ...]) -> None:
        kept = self._whole(f"{stem}.sample_rows", "I64", (len(tallies),))
        if (kept < 0).any() or (kept > self.collect.samples).any():
            raise UnreadableFile(f"{self.path}: {stem}.sample_rows are not what a sample can have")
        total = int(kept.sum())
        rows = self._whole(f"{stem}.sample", "F32", (total, tallies[0].width))
        keys = self._whole(f"{stem}.sample_keys", "U64", (total,))
        first = 0
        for tally, count in zip(tallies, kept.tolist(), strict=True):
            tally.sample = Sample(tally.width, self.collect.samples, seed=0)
            own = slice(first, first + count)
            tally.sample.rows, tally.sample.keys = rows[own], keys[own]
            first += count

    def _whole(self, name: str, dtype: str, shape: tuple[int, ...] | None) -> Numbers:
        tensor = self._tensor(name, dtype, shape)
        return _flat(tensor).read_rows(0, prod(tensor.shape)).reshape(tensor.shape)

    def _tensor(self, name: str, dtype: str, shape: tuple[int, ...] | None) -> StoredTensor:
        """Return a tensor of that type and shape, or of one axis where it tells how many matrices are."""
        tensor = self.tensors.get(name)
        if tensor is None:
            raise UnreadableFile(f"{self.path}: has no tensor {name}")
        counts = shape is None and len(tensor.shape) == 1 and tensor.shape[0] > 0
        if tensor.dtype != dtype or not (counts or tensor.shape == shape):
            wanted = "counts" if shape is None else str(list(shape))
            raise UnreadableFile(
                f"{self.path}: {name} is {tensor.dtype} {list(tensor.shape)}, not {dtype} {wanted}"
            )
        return tensor


def _flat(tensor: StoredTensor) -> StoredTensor:
    return replace(tensor, shape=(prod(tensor.shape), 1))


def _pieces(tensor: StoredTensor, row: int, sizes: list[int]) -> Iterator[npt.NDArray[np.float32]]:
    """Yield one row of a tensor in pieces of `sizes` numbers."""
    begin = row * tensor.shape[1]
    for size in sizes:
        yield _flat(tensor).read_rows(begin, begin + size)[:, 0]
        begin += size
