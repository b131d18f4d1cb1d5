"""What a quant will take, told beforehand: the memory at its peak, and about how many seconds.

Memory follows from how `quantcore.pipeline` works: slabs of rows go through a pool of threads, and no tensor
is ever held whole. Seconds are an estimate from a table of speeds measured on one machine (an AMD Zen 4 core,
by `benchmarks/speeds.py`): another may be twice as fast or half.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from typing import Protocol

from quantcore.cores import usable_cores, usable_threads
from quantcore.ggmltypes import is_quantized
from quantcore.slabs import rows_in_slab
from quantcore.speeds import SPEEDS

FLOATS = (500.0, 500.0)  # conversions between floats, and plain copies
UNKNOWN = (2.0, 2.0)  # types that nobody has measured: about what the slowest grids take
START_SECONDS = 0.5  # Python, numpy, headers
WRITTEN_PER_SECOND = 1e9  # bytes hashed and written by the one thread that does it

BASE_BYTES = 46_000_000  # Python with numpy, and our code
# What a backend loads of its own; that of a card's library on the host was not measured.
BACKEND_BYTES = {"jit": 48_000_000, "cuda": 48_000_000}
TABLES_BYTES = 18_000_000  # grids and what is near each point, of the types that look up
HEADER_TIMES = 12  # a header's strings as Python's, as lists, and as bytes again


class Planned(Protocol):
    """What is to be known of a tensor."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def source_type(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def n_elements(self) -> int: ...


def peak_memory_bytes(
    tensors: Iterable[Planned],
    header_bytes: int,
    *,
    backend: str = "numpy",
    threads: int | None = None,
    importance_bytes: int = 0,
) -> int:
    """Return what `pipeline.quantize` holds at most, the interpreter included.

    `header_bytes` is the size of the file's header, which stands in memory several times over, and
    `importance_bytes` the importance of the tensor that has most.
    """
    workers = usable_threads(threads)
    source = made = work = tables = 0
    for tensor in tensors:
        row = tensor.shape[-1] if tensor.shape else 1
        slab = min(tensor.n_elements, row * rows_in_slab(row))
        bits = 8 * tensor.nbytes / max(1, tensor.n_elements)
        made = max(made, ceil(slab * bits / 8))
        source = max(source, slab * _bytes_of(tensor.source_type))
        if tensor.type != tensor.source_type:
            work = max(work, _arithmetic_bytes(tensor.type, slab, row, backend))
            if tensor.type.startswith("IQ"):
                tables = TABLES_BYTES
    # A slab that waits to be written is held as it was made, beside those being worked on.
    slabs = workers * (source + made + work) + 2 * made
    own = BASE_BYTES + BACKEND_BYTES.get(backend, 0) + tables
    return own + HEADER_TIMES * header_bytes + slabs + importance_bytes


def _arithmetic_bytes(kind: str, slab: int, row: int, backend: str) -> int:
    """Return what one thread holds beside a slab as it was read and as it will be written."""
    from quantcore.formats.base import BlockFormat, registry
    from quantcore.formats.compiled import CACHED

    fmt = registry().get(kind)
    if not isinstance(fmt, BlockFormat) or not is_quantized(kind):
        return 12 * slab  # float32 on its way, and as it is checked
    if backend != "numpy":
        return 4 * max(row, CACHED)
    return 4 * slab + fmt.scratch * min(slab, max(row, fmt.tile_weights))


def seconds(
    tensors: Iterable[Planned], *, backend: str = "numpy", threads: int | None = None, weighted: bool = False
) -> float:
    """Return about how many seconds the work will take with a backend (see `quantcore.backends`)."""
    work, written = 0.0, 0
    for tensor in tensors:
        written += tensor.nbytes
        work += tensor.n_elements / (1e6 * _speed(tensor, backend, weighted=weighted))
    workers = min(threads or usable_cores(), usable_cores())
    return START_SECONDS + work / workers + written / WRITTEN_PER_SECOND


def _speed(tensor: Planned, backend: str, *, weighted: bool) -> float:
    if tensor.type == tensor.source_type or not is_quantized(tensor.type):
        return FLOATS[weighted]
    of_numpy = SPEEDS["numpy"].get(tensor.type, UNKNOWN)
    # A card does not wait for the processor: the compiled kernels are the upper bound of what it takes.
    found = SPEEDS["numpy" if backend == "numpy" else "jit"].get(tensor.type, of_numpy)
    return found[weighted]


def _bytes_of(kind: str) -> int:
    """Return the bytes of one weight as it is read; those of quantized types are less than one of a half."""
    return {"F64": 8, "F32": 4}.get(kind, 2)
