"""The journey of a file: read rows, quantize them, write them, a slab at a time.

Slabs of rows are read and quantized by several threads and written in order by the caller's thread, which
quantizes too when there is nothing to write, so that reading, arithmetic, hashing and writing overlap. Only a
few slabs exist at any moment: memory depends on the number of threads, not on the size of the model or of its
largest tensor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from quantcore.allocator import keep_freed_memory
from quantcore.atomic import refuse_overwriting
from quantcore.containers.shards import ShardSink, WrittenFile, lay_out, shard_paths
from quantcore.cores import usable_threads
from quantcore.errors import InputError, UnreadableFile, UnsupportedTensor
from quantcore.formats import get_format, quantize_rows
from quantcore.ggmltypes import is_quantized
from quantcore.kernels import Kernels
from quantcore.plan import Plan, TensorPlan, output_metadata
from quantcore.progress import Progress, Report, ignore, seconds_left
from quantcore.slabs import SLAB_WEIGHTS, rows_in_slab
from quantcore.sources.base import Source
from quantcore.sources.gguf import open_gguf
from quantcore.tensors import Tensor


@dataclass(frozen=True)
class Result:
    """A finished file: where it is, its exact size, its SHA-256, and the seconds it took.

    A model in parts has several `files`: `path` and `sha256` are then those of the first, by which the model
    is opened, and `file_bytes` is the sum.
    """

    path: Path
    file_bytes: int
    sha256: str
    seconds: float
    files: tuple[WrittenFile, ...] = ()


@dataclass(frozen=True)
class _Slab:
    path: Path
    tensor: Tensor
    plan: TensorPlan
    start: int
    stop: int
    importance: npt.NDArray[np.float32] | None = None  # (row_length,)


Part = npt.NDArray[np.uint8]  # the bytes of a slab


class Importance(Protocol):
    """What an importance matrix answers; `path` is its file."""

    @property
    def path(self) -> Path: ...

    def metadata(self) -> Mapping[str, str | int]:
        """Return the keys that a file made with it has, as in `Plan.added`."""

    def get(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
        """Return float32 `(n_matrices, row_length)` for a tensor of `shape` (numpy order), or None."""


def _slabs(source: Source, plan: Plan, imatrix: Importance | None) -> Iterator[_Slab]:
    for tensor_plan in plan.tensors:
        tensor = source.tensor(tensor_plan.name)
        if (
            tensor is None
            or tensor.info.shape != tensor_plan.shape
            or tensor.info.type != tensor_plan.source_type
        ):
            raise UnreadableFile(
                f"{source.path}: tensor {tensor_plan.name} is not what the plan was made for"
            )
        rows = tensor.info.n_rows
        step = rows_in_slab(tensor.info.row_length, SLAB_WEIGHTS)
        importance = None
        if imatrix is not None and is_quantized(tensor_plan.type):
            former = source.former_names.get(tensor_plan.name, tensor_plan.name)
            importance = imatrix.get(former, tensor_plan.shape)
        # Each matrix of a stack (one per expert) has its own importance: no slab may hold rows of two.
        matrix = rows if importance is None else rows // len(importance)
        for first in range(0, rows, max(1, matrix)):
            mine = None if importance is None else importance[first // matrix]
            for start in range(first, first + matrix, step):
                stop = min(first + matrix, start + step)
                yield _Slab(source.path, tensor, tensor_plan, start, stop, mine)


def _convert(slab: _Slab, kernels: Kernels | None = None) -> Part:
    """Return the bytes of a slab in its new type."""
    info = slab.tensor.info
    rows = slab.tensor.read_rows(slab.start, slab.stop)
    if slab.plan.type == info.type:
        return rows.reshape(-1).view(np.uint8)
    try:
        fmt = get_format(slab.plan.type)
        return quantize_rows(info, rows, fmt, slab.importance, kernels=kernels).reshape(-1)
    except UnsupportedTensor as exc:
        raise UnsupportedTensor(f"{slab.path}: tensor {info.name}: {exc}") from exc


class _Crew:
    """A number of threads, the caller's among them, that convert slabs; the caller gets them in order.

    While the caller waits for a slab it converts one that nobody has begun, so that `threads` are as many
    cores as are ever busy: with one thread there is no other.
    """

    def __init__(self, threads: int, convert: Callable[[_Slab], Part]) -> None:
        self._others = ThreadPoolExecutor(threads - 1) if threads > 1 else None
        self._ahead = 2 * threads if threads > 1 else 1
        self._convert = convert
        self._waiting: deque[tuple[_Slab, Future[Part]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for _slab, future in self._waiting:
            future.cancel()
        if self._others is not None:
            self._others.shutdown()

    def in_order(self, slabs: Iterator[_Slab]) -> Iterator[tuple[_Slab, Part]]:
        """Yield converted slabs in the order of `slabs`; only a few are under way at any time."""
        for slab in slabs:
            self._waiting.append((slab, self._begin(slab)))
            if len(self._waiting) >= self._ahead:
                yield self._next()
        while self._waiting:
            yield self._next()

    def _begin(self, slab: _Slab) -> Future[Part]:
        return Future() if self._others is None else self._others.submit(self._convert, slab)

    def _next(self) -> tuple[_Slab, Part]:
        while not self._waiting[0][1].done():
            mine = next((n for n, (_, future) in enumerate(self._waiting) if future.cancel()), None)
            if mine is None:
                break
            slab = self._waiting[mine][0]
            done: Future[Part] = Future()
            done.set_result(self._convert(slab))
            self._waiting[mine] = slab, done
        slab, future = self._waiting.popleft()
        return slab, future.result()


class _Meter:
    """Turn slabs into progress, counted in weights."""

    def __init__(self, plan: Plan, report: Report) -> None:
        self.report = report
        self.total = sum(tensor.n_elements for tensor in plan.tensors)
        self.count = len(plan.tensors)
        self.index = {tensor.name: place for place, tensor in enumerate(plan.tensors, 1)}
        self.done = 0
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def add(self, slab: _Slab) -> None:
        self.done += (slab.stop - slab.start) * slab.plan.info.row_length
        left = seconds_left(self.done, self.total, self.seconds)
        name = slab.plan.name
        self.report(
            Progress(
                stage="quantize",
                done=self.done,
                total=self.total,
                unit="weights",
                seconds=self.seconds,
                seconds_left=left,
                item=name,
                index=self.index[name],
                count=self.count,
            )
        )


def _require_planned(imatrix: Importance | None, plan: Plan) -> None:
    """Refuse to make a file that would say something else of its importance matrix than what is true."""
    given = dict(imatrix.metadata()) if imatrix is not None else {}
    if given != dict(plan.added):
        planned = plan.added.get("quantize.imatrix.file", "none")
        raise InputError(
            f"{plan.level} was planned with another importance matrix: {planned}, "
            f"given is {imatrix.path if imatrix is not None else 'none'}"
        )


def quantize(
    source: Source,
    plan: Plan,
    destination: Path,
    *,
    threads: int | None = None,
    report: Report = ignore,
    kernels: Kernels | None = None,
    imatrix: Importance | None = None,
) -> Result:
    """Make the planned file at `destination`, replacing one that is there only when the new one is whole.

    `kernels` are those of a backend (numpy does without), `imatrix` says how much each column of a weight
    counts.

    A plan in parts makes as many files, DESTINATION-00001-of-0000N.gguf and so on, which appear together.

    Raises what reading and writing raise, naming file and tensor, and leaves nothing behind then; `report`
    may raise `Cancelled` to stop.
    """
    if kernels is None:
        keep_freed_memory()
    paths = shard_paths(destination, plan.parts)
    inputs = {"a file of the source": source.files}
    if imatrix is not None:
        inputs["the importance matrix"] = (imatrix.path,)
    for path in paths:
        refuse_overwriting(path, inputs)
    _require_planned(imatrix, plan)
    workers = usable_threads(threads)
    meter = _Meter(plan, report)
    metadata = output_metadata(source, plan.file_type, plan.added, converted=plan.converted)
    infos = [tensor.info for tensor in plan.tensors]
    shards = lay_out(metadata, infos, plan.parts, kept=source.keeps_parts)
    convert = partial(_convert, kernels=kernels)
    with ShardSink(paths, shards) as sink, _Crew(workers, convert) as crew:
        for slab, data in crew.in_order(_slabs(source, plan, imatrix)):
            sink.write(slab.plan.name, data.data)
            meter.add(slab)
        files = sink.commit()
    total = sum(file.file_bytes for file in files)
    return Result(files[0].path, total, files[0].sha256, meter.seconds, files)


def verify(path: Path, plan: Plan) -> None:
    """Read a finished file (the first of several) back through the public reader and compare with its plan.

    Raises `UnreadableFile` naming the first tensor that differs.
    """
    written = open_gguf(path)
    size = sum(file.stat().st_size for file in written.files)
    if size != plan.file_bytes:
        raise UnreadableFile(f"{path}: has {size} bytes, planned were {plan.file_bytes}")
    for tensor in plan.tensors:
        found = written.tensor(tensor.name)
        if found is None or found.info != tensor.info:
            raise UnreadableFile(f"{path}: tensor {tensor.name} is not what was planned")
    if len(written.tensors) != len(plan.tensors):
        raise UnreadableFile(f"{path}: has {len(written.tensors)} tensors, planned were {len(plan.tensors)}")
