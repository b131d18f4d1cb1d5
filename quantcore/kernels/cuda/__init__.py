"""The searches as raw CUDA kernels: compiled for the card at hand when first used, kept on disk by cupy.

The files of this folder say which kernels they hold, in lines `KERNEL(format, kind, threads, tile)`;
`common.cuh` tells the form they have. They need nothing but float32 arithmetic by IEEE 754 and are compiled
without fused multiplications, so the bytes are those of numpy.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from quantcore.arrays import namespace
from quantcore.errors import MissingEngine
from quantcore.formats import Format, to_float
from quantcore.formats.base import BlockFormat, Bytes
from quantcore.kernels.cuda.stream import Lanes
from quantcore.kernels.status import check
from quantcore.tensors import TensorInfo

_FOLDER = Path(__file__).parent
_KERNEL = re.compile(r"^KERNEL\((\w+), (plain|weighted|either), (\d+), (\d+)\)", re.MULTILINE)
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"$', re.MULTILINE)
_KINDS = {"plain": (False,), "weighted": (True,), "either": (False, True)}
_ROW_MEANS = "void row_means("
_ROWS = 32  # rows of a CUDA block of row_means, which has as many threads

# Other than cupy's defaults: no fused multiplications. Division and square root are IEEE's by default.
OPTIONS = ("--std=c++17", "--fmad=false")


@dataclass(frozen=True)
class Entry:
    """A kernel in its file: how many threads take how many weights; whether it needs the means of rows."""

    file: str
    function: str
    threads: int
    tile: int
    row_means: bool


@cache
def entries() -> dict[tuple[str, bool], Entry]:
    """Return every kernel by name of format and whether it takes importance into account."""
    found: dict[tuple[str, bool], Entry] = {}
    for path in sorted(_FOLDER.glob("*.cu")):
        text = path.read_text()
        for name, kind, threads, tile in _KERNEL.findall(text):
            means = kind == "weighted" and _ROW_MEANS in text
            entry = Entry(path.name, f"{name}_{kind}", int(threads), int(tile), means)
            found |= dict.fromkeys(((name, weighted) for weighted in _KINDS[kind]), entry)
    return found


@cache
def source(file: str) -> str:
    """Return a file with what it includes, each once: cupy's cache on disk looks at this text alone."""
    seen: set[str] = set()

    def inline(text: str) -> str:
        def include(match: re.Match[str]) -> str:
            if match[1] in seen:
                return ""
            seen.add(match[1])
            return inline((_FOLDER / match[1]).read_text())

        return _INCLUDE.sub(include, text)

    return inline((_FOLDER / file).read_text())


class CudaKernel:
    """One kernel on the card; see `quantcore.kernels.Kernel`. All arrays are cupy's."""

    def __init__(self, entry: Entry, module: Any, xp: Any) -> None:
        self._entry, self._xp = entry, xp
        self._function = module.get_function(entry.function)
        self._row_means = module.get_function("row_means") if entry.row_means else None

    def __call__(self, values: Any, importance: Any | None, tables: Any | None, out: Any) -> None:
        """Fill `out`, and wait for it."""
        status = self._xp.zeros(1, dtype=self._xp.int32)
        self.launch(values, importance, tables, out, status)
        check(int(status[0]))

    def launch(self, values: Any, importance: Any | None, tables: Any | None, out: Any, status: Any) -> None:
        """The same without waiting; `status`, int32 `(1,)`, holds afterwards what `check` looks at."""
        rows, row_length = values.shape
        if not values.size:
            return
        xp = self._xp
        nothing = xp.uint64(0)  # a null pointer
        means = nothing
        if self._row_means is not None:
            means = xp.empty(rows, dtype=xp.float32)
            grid = (-(-rows // _ROWS),)
            self._row_means(grid, (_ROWS,), (values, xp.int64(rows), xp.int32(row_length), means))
        optional = (nothing if part is None else part for part in (importance, tables))
        arguments = (values, xp.int64(values.size), xp.int32(row_length), *optional, means, out, status)
        self._function((-(-values.size // self._entry.tile),), (self._entry.threads,), arguments)


class CudaKernels:
    """The kernels of a CUDA card; see `quantcore.kernels.Kernels`.

    Raises `MissingEngine` without cupy or a card. `xp` stands in for cupy in tests.
    """

    name = "cuda"

    def __init__(self, xp: Any | None = None) -> None:
        self.xp = namespace("cuda") if xp is None else xp
        self._modules: dict[str, Any] = {}
        self._lock = Lock()
        self._lanes = Lanes(self.xp)

    def find(self, format_name: str, *, weighted: bool) -> CudaKernel | None:
        """Return the kernel of a format, compiled; None where there is none.

        Raises `MissingEngine` where the toolkit at hand cannot compile it.
        """
        entry = entries().get((format_name, weighted))
        return None if entry is None else CudaKernel(entry, self._module(entry.file), self.xp)

    def reader(self, type_name: str) -> None:
        """Return None: rows are widened by cupy, and there is no cache to keep them in."""

    def convert_rows(self, fmt: Format, rows: Any, info: TensorInfo, importance: Any | None = None) -> Bytes:
        """Return storage `rows`, as `Tensor.read_rows` gives them, as blocks: all in numpy's memory.

        uint8 `(rows, row_bytes)`; `importance` is float32 `(row_length,)`. May be called by several threads,
        whose copies and arithmetic then overlap. Types without a kernel are made on the host. Raises what
        `to_float` and `Format.quantize` raise.
        """
        kernel = self.find(fmt.name, weighted=importance is not None)
        if kernel is None or not isinstance(fmt, BlockFormat):
            blocks: Bytes = fmt.quantize(to_float(info, rows), importance).parts["blocks"]
            return blocks
        if not rows.shape[0]:
            return np.empty((0, info.row_length // fmt.block * fmt.block_bytes), dtype=np.uint8)
        blocks, status = self._lanes.convert(fmt, kernel, rows, info, importance)
        check(status)
        return blocks

    def _module(self, file: str) -> Any:
        with self._lock:
            if file not in self._modules:
                module = self.xp.RawModule(code=source(file), options=OPTIONS, backend="nvrtc")
                try:
                    module.compile()
                except self.xp.cuda.compiler.CompileException as exc:
                    why = str(exc).strip().partition("\n")[0]
                    raise MissingEngine(f"the CUDA kernels of {file} could not be compiled: {why}") from exc
                self._modules[file] = module
            return self._modules[file]
