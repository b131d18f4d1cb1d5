"""The journey of a file: read rows, quantize them, write them, a slab at a time.

Slabs of rows are read and quantized by a pool of threads and written in order by the caller's thread, so
reading, arithmetic, hashing and writing overlap. Only a few slabs exist at any moment: memory depends on the
number of threads, not on the size of the model or of its largest tensor.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantcore.containers.gguf import GGUFSink
from quantcore.cores import usable_cores
from quantcore.errors import InputError, UnreadableFile, UnsupportedTensor
from quantcore.formats import get_format, to_float
from quantcore.plan import Plan, TensorPlan, output_metadata
from quantcore.progress import Progress, Report, ignore, seconds_left
from quantcore.sources.base import Source
from quantcore.sources.gguf import open_gguf
from quantcore.tensors import Tensor

# Weights in one slab: 8 MB as float32. Large enough to keep a thread busy for tens of milliseconds, small
# enough that a dozen of them, with the temporaries of a search, stay far below 600 MB.
SLAB_WEIGHTS = 1 << 21
MOST_PER_CORE = 4  # threads; whoever asks for more gets these


@dataclass(frozen=True)
class Result:
    """A finished file: where it is, its exact size, its SHA-256, and the seconds it took."""

    path: Path
    file_bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class _Slab:
    path: Path
    tensor: Tensor
    plan: TensorPlan
    start: int
    stop: int


def _slabs(source: Source, plan: Plan) -> Iterator[_Slab]:
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
        step = max(1, SLAB_WEIGHTS // max(1, tensor.info.row_length))
        for start in range(0, rows, step):
            yield _Slab(source.path, tensor, tensor_plan, start, min(rows, start + step))


def _convert(slab: _Slab) -> npt.NDArray[np.uint8]:
    """Return the bytes of a slab in its new type."""
    info = slab.tensor.info
    rows = slab.tensor.read_rows(slab.start, slab.stop)
    if slab.plan.type == info.type:
        return rows.reshape(-1).view(np.uint8)
    try:
        packed = get_format(slab.plan.type).quantize(to_float(info, rows))
    except UnsupportedTensor as exc:
        raise UnsupportedTensor(f"{slab.path}: tensor {info.name}: {exc}") from exc
    blocks: npt.NDArray[np.uint8] = packed.parts["blocks"]
    return blocks.reshape(-1)


def _in_order(
    pool: ThreadPoolExecutor, slabs: Iterator[_Slab], ahead: int
) -> Iterator[tuple[_Slab, npt.NDArray[np.uint8]]]:
    """Yield converted slabs in file order, at most `ahead` of them under way."""
    waiting: deque[tuple[_Slab, Future[npt.NDArray[np.uint8]]]] = deque()
    try:
        for slab in slabs:
            waiting.append((slab, pool.submit(_convert, slab)))
            if len(waiting) >= ahead:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


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


def _refuse_overwriting(source: Source, destination: Path) -> None:
    if destination.exists() and any(file.samefile(destination) for file in source.files):
        raise InputError(f"{destination}: is a file of the source; give another name")


def quantize(
    source: Source, plan: Plan, destination: Path, *, threads: int | None = None, report: Report = ignore
) -> Result:
    """Make the planned file at `destination`, replacing one that is there only when the new one is whole.

    Raises what reading and writing raise, naming file and tensor, and leaves nothing behind then; `report`
    may raise `Cancelled` to stop.
    """
    _refuse_overwriting(source, destination)
    # More threads than cores gain nothing and hold a slab each.
    workers = min(threads or usable_cores(), MOST_PER_CORE * usable_cores())
    meter = _Meter(plan, report)
    metadata = output_metadata(source, plan.file_type)
    infos = [tensor.info for tensor in plan.tensors]
    with GGUFSink(destination, metadata, infos) as sink, ThreadPoolExecutor(workers) as pool:
        for slab, data in _in_order(pool, _slabs(source, plan), workers + 2):
            sink.write(slab.plan.name, data.data)
            meter.add(slab)
        digest = sink.commit()
    return Result(destination, sink.nbytes, digest, meter.seconds)


def verify(path: Path, plan: Plan) -> None:
    """Read a finished file back through the public reader and compare it with its plan.

    Raises `UnreadableFile` naming the first tensor that differs.
    """
    size = path.stat().st_size
    if size != plan.file_bytes:
        raise UnreadableFile(f"{path}: has {size} bytes, planned were {plan.file_bytes}")
    written = open_gguf(path)
    for tensor in plan.tensors:
        found = written.tensor(tensor.name)
        if found is None or found.info != tensor.info:
            raise UnreadableFile(f"{path}: tensor {tensor.name} is not what was planned")
    if len(written.tensors) != len(plan.tensors):
        raise UnreadableFile(f"{path}: has {len(written.tensors)} tensors, planned were {len(plan.tensors)}")
