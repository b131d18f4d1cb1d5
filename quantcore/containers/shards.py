"""A model in several GGUF files: which tensors go where, and a set of files that appears all or none.

The first file has the metadata; all say which one they are, of how many, and how many tensors there are in
all. Names and keys are llama.cpp's: https://github.com/ggml-org/llama.cpp/tree/master/tools/gguf-split.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from quantcore.atomic import publish
from quantcore.containers.gguf import GGUFSink, alignment_of, encode_header, file_nbytes, padding
from quantcore.errors import InputError
from quantcore.ggufkv import DEFAULT_ALIGNMENT, Value, ValueType
from quantcore.tensors import TensorInfo

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

MAX_SHARDS = 65_535  # split.count has 16 bits
OTHER_FILES = 256  # what a process has open beside the parts, at most
_PART = re.compile(r"-\d{5}-of-\d{5}$")


@dataclass(frozen=True)
class Shard:
    """One file of a model: what stands in its header. A model in one file is one shard."""

    metadata: Mapping[str, Value]
    tensors: tuple[TensorInfo, ...]

    @property
    def nbytes(self) -> int:
        """Return the exact size of the file."""
        header = encode_header(self.metadata, self.tensors)
        return file_nbytes(len(header), self.tensors, alignment_of(self.metadata))


def shard_path(path: Path, number: int, count: int) -> Path:
    """Return the name of part `number` (from 0) of a model that is called `path` in one piece."""
    stem = _PART.sub("", path.name.removesuffix(".gguf"))
    return path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")


def shard_paths(path: Path, counts: Sequence[int]) -> tuple[Path, ...]:
    """Return the names of all files of a model in `counts` parts; without counts it has the name given."""
    return tuple(shard_path(path, number, len(counts)) for number in range(len(counts))) or (path,)


def lay_out(
    metadata: Mapping[str, Value],
    tensors: Sequence[TensorInfo],
    counts: Sequence[int] = (),
    *,
    kept: bool = False,
) -> tuple[Shard, ...]:
    """Return the files of a model whose parts hold `counts` tensors each; without counts it is not split.

    `kept` says that the parts are those of the source: llama-quantize puts the split keys of such files in
    another order than llama-gguf-split.
    """
    if not counts or (kept and len(counts) == 1):
        return (Shard(metadata, tuple(tensors)),)
    if len(counts) > MAX_SHARDS:
        raise InputError(f"{len(counts)} parts are more than the {MAX_SHARDS} that a split model may have")
    shards = []
    for number, share in enumerate(_shares(tensors, counts)):
        keys = _split_keys(number, len(counts), len(tensors), kept=kept)
        shards.append(Shard({**metadata, **keys} if number == 0 else keys, share))
    return tuple(shards)


def _shares(tensors: Sequence[TensorInfo], counts: Sequence[int]) -> Iterator[tuple[TensorInfo, ...]]:
    begin = 0
    for count in counts:
        yield tuple(tensors[begin : begin + count])
        begin += count


def _split_keys(number: int, count: int, n_tensors: int, *, kept: bool) -> dict[str, Value]:
    keys = {
        "split.no": Value(ValueType.UINT16, number),
        "split.count": Value(ValueType.UINT16, count),
        "split.tensors.count": Value(ValueType.INT32, n_tensors),
    }
    if not kept:  # llama-gguf-split learns the count last
        keys["split.count"] = keys.pop("split.count")
    return keys


def counts_by_size(tensors: Sequence[TensorInfo], max_bytes: int) -> tuple[int, ...]:
    """Return how many tensors go into each part of at most `max_bytes` of data.

    A tensor that is larger gets a part of its own.
    """
    counts, room = [0], max_bytes
    for info in tensors:
        nbytes = info.nbytes + padding(info.nbytes, DEFAULT_ALIGNMENT)
        if nbytes > room and counts[-1]:
            counts.append(0)
            room = max_bytes
        counts[-1] += 1
        room -= nbytes
    return tuple(counts)


def counts_by_number(n_tensors: int, most: int) -> tuple[int, ...]:
    """Return how many tensors go into each part of at most `most` of them."""
    return tuple(min(most, n_tensors - begin) for begin in range(0, n_tensors, most)) or (0,)


@dataclass(frozen=True)
class WrittenFile:
    """A finished file: where it is, its exact size, its SHA-256."""

    path: Path
    file_bytes: int
    sha256: str


def _allow_open_files(count: int) -> None:
    """Raise this process's limit where so many parts at once would break it, as far as it may be raised.

    Raises `InputError` where it may not.
    """
    if resource is None or count < 1:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHER_FILES
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise InputError(
            f"{count} parts are more than the {hard - OTHER_FILES} files that may be open at once here; "
            "make larger parts, or raise the limit (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class ShardSink:
    """Take the bytes of each tensor in the planned order and write them into the files of a model.

    Use as a context manager: leaving it by an exception removes everything, `commit` makes all files appear
    at once. Raises `NotEnoughSpace` when the planned files do not fit on the disk.
    """

    def __init__(self, paths: Sequence[Path], shards: Sequence[Shard]) -> None:
        self.sinks = [
            GGUFSink(path, shard.metadata, shard.tensors) for path, shard in zip(paths, shards, strict=True)
        ]
        self._open = ExitStack()
        self._at = 0

    def __enter__(self) -> Self:
        _allow_open_files(len(self.sinks))
        with ExitStack() as opened:
            for sink in self.sinks:
                opened.enter_context(sink)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def write(self, name: str, data: memoryview | bytes) -> None:
        """Append bytes of the tensor that is next in order."""
        while self.sinks[self._at].whole:
            self._at += 1
        self.sinks[self._at].write(name, data)

    def commit(self) -> tuple[WrittenFile, ...]:
        """Make all files visible under their names."""
        digests = [sink.finish() for sink in self.sinks]
        publish([sink.file for sink in self.sinks])
        return tuple(
            WrittenFile(sink.file.path, sink.nbytes, digest)
            for sink, digest in zip(self.sinks, digests, strict=True)
        )
