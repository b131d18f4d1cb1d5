"""The contract of a quantization format, and the template that block formats share.

A format knows bits and arithmetic, never files: it turns a float32 matrix into packed parts and back. It is a
frozen instance, since many formats differ by one parameter only. Instances register themselves when their
module is imported; `quantcore.formats` imports every module of this folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quantcore.errors import UnknownFormat, UnsupportedTensor
from quantcore.formats.compiled import fill_compiled, find_compiled
from quantcore.formats.floats import as_float32
from quantcore.kernels import Kernel, Kernels
from quantcore.kernels.status import NOT_A_NUMBER

Container = Literal["gguf", "safetensors", "onnx"]


@dataclass(frozen=True)
class Packed:
    """A quantized tensor: the format's name, the shape it came from, and its named parts.

    Block formats have one part, `blocks`: uint8 `(n_rows, bytes_per_row)`. Group formats name theirs
    (`codes`, `scales`, `zeros`, ...).
    """

    format: str
    shape: tuple[int, ...]
    parts: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return sum(int(part.nbytes) for part in self.parts.values())


@runtime_checkable
class Format(Protocol):
    """What the rest of quantcore and the hub may ask of a format."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def bits(self) -> float: ...
    @property
    def block(self) -> int: ...
    @property
    def container(self) -> Container: ...
    @property
    def engines(self) -> tuple[str, ...]: ...
    @property
    def needs_calibration(self) -> bool: ...
    @property
    def can_quantize(self) -> bool: ...

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the exact packed size in bytes of a tensor of `shape` (numpy order)."""

    def quantize(
        self,
        tensor: Any,
        calibration: Any = None,
        *,
        xp: Any = np,
        pool: Executor | None = None,
        kernels: Kernels | None = None,
    ) -> Packed:
        """Quantize `(..., row_length)`; `calibration` is the importance, float32 `(row_length,)`.

        `kernels` are accelerated forms, taken where they have one of this format; the bytes are the same.
        """

    def dequantize(self, packed: Packed, *, xp: Any = np) -> Any:
        """Return float32 of `packed.shape`."""


# A tile is about this many weights: large enough that numpy's cost per call vanishes, small enough that the
# handful of scratch arrays of a search stay in the outer cache.
TILE_WEIGHTS = 1 << 18


@dataclass(frozen=True)
class BlockFormat:
    """Template of formats that pack each row in independent blocks: all GGUF types.

    A subclass writes the arithmetic of blocks only: `quantize_blocks` takes float32 `(n, block)` and optional
    weights of the same shape and returns uint8 `(n, block_bytes)`; `dequantize_blocks` is its inverse. Both
    use only functions of `xp`. The template owns shapes, tiling, threads and the checks on input and output.
    """

    name: str
    title: str
    summary: str
    block: int
    block_bytes: int
    family: str = "gguf"
    container: Container = "gguf"
    engines: tuple[str, ...] = ("llama.cpp", "Ollama", "LM Studio")
    needs_calibration: bool = False
    can_quantize: bool = True
    tile_weights: int = field(default=TILE_WEIGHTS, repr=False)
    scratch: int = field(default=36, repr=False)  # bytes that numpy's arithmetic takes per weight of a tile

    @property
    def bits(self) -> float:
        """True bits per weight, scales included."""
        return self.block_bytes * 8 / self.block

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the exact packed size in bytes of a tensor of `shape`."""
        self.check_shape(shape)
        return prod(shape) // self.block * self.block_bytes

    def check_shape(self, shape: tuple[int, ...], name: str = "tensor") -> None:
        """Refuse a shape whose rows are not whole blocks, naming the tensor."""
        row = shape[-1] if shape else 1
        if row % self.block:
            raise UnsupportedTensor(
                f"{name}: row of {row} is not a multiple of {self.block}, the block of {self.name}"
            )

    def quantize_blocks(self, blocks: Any, weights: Any | None, *, xp: Any) -> Any:
        """Return uint8 `(n, block_bytes)` for float32 `blocks` `(n, block)`."""
        raise NotImplementedError

    def dequantize_blocks(self, blocks: Any, *, xp: Any) -> Any:
        """Return float32 `(n, block)` for uint8 `blocks` `(n, block_bytes)`."""
        raise NotImplementedError

    def weigh(self, rows: Any, calibration: Any, *, xp: Any) -> Any:
        """Return how much each error counts, float32 of the shape of `rows` `(rows, row_length)`.

        `calibration` is `(row_length,)`. Formats that temper it by the values override this.
        """
        return xp.broadcast_to(calibration, rows.shape)

    def tables(self, *, xp: Any) -> Any | None:
        """Return the tables that accelerated kernels of this format read, int32 `(n,)`, or None."""
        del xp
        return None

    def quantize(
        self,
        tensor: Any,
        calibration: Any = None,
        *,
        xp: Any = np,
        pool: Executor | None = None,
        kernels: Kernels | None = None,
    ) -> Packed:
        """Quantize floats `(..., row_length)`; see `Format.quantize`.

        Raises `UnsupportedTensor` for rows that are not whole blocks and for NaN or infinite values.
        """
        if not self.can_quantize:
            raise UnknownFormat(f"{self.name} can be read but not made here")
        shape = tuple(int(n) for n in tensor.shape)
        self.check_shape(shape)
        row = shape[-1] if shape else 1
        rows = tensor.reshape(-1, row)  # (rows, row_length)
        if calibration is not None:
            calibration = self.importance(calibration, row, xp=xp)
        packed = xp.empty((rows.shape[0], row // self.block * self.block_bytes), dtype=xp.uint8)
        weighted = calibration is not None
        kind = "F16" if rows.dtype == np.float16 else "F32"
        compiled = find_compiled(kernels, self.name, kind, weighted=weighted)
        if compiled is not None:
            fill_compiled(self, compiled, rows, calibration, packed, pool)
            return Packed(self.name, shape, {"blocks": packed})
        on_card = xp is not np and kernels is not None
        kernel = kernels.find(self.name, weighted=weighted) if on_card and kernels else None

        def work(tile: slice) -> None:
            if kernel is None:
                packed[tile] = self._quantize_tile(rows[tile], calibration, xp)
            else:
                self._run_on_card(kernel, rows[tile], calibration, packed[tile], xp)

        self._for_each_tile(work, rows.shape[0], row, pool)
        return Packed(self.name, shape, {"blocks": packed})

    def importance(self, calibration: Any, row: int, *, xp: Any) -> Any:
        """Return the importance of a row's columns as contiguous float32; refuse another number of them."""
        if calibration.shape != (row,):
            raise UnsupportedTensor(
                f"{self.name}: importance of shape {tuple(calibration.shape)} for rows of {row} weights"
            )
        return xp.ascontiguousarray(calibration, dtype=xp.float32)

    def dequantize(self, packed: Packed, *, xp: Any = np, pool: Executor | None = None) -> Any:
        """Return float32 of `packed.shape`."""
        row = packed.shape[-1] if packed.shape else 1
        blocks = packed.parts["blocks"].reshape(-1, row // self.block * self.block_bytes)  # (rows, row_bytes)
        values = xp.empty((blocks.shape[0], row), dtype=xp.float32)

        def work(tile: slice) -> None:
            # Scales in a file may be infinite; what they decode to is the file's affair, not a warning.
            with np.errstate(all="ignore"):
                tiled = self.dequantize_blocks(blocks[tile].reshape(-1, self.block_bytes), xp=xp)
            values[tile] = tiled.reshape(-1, row)  # (rows, row_length)

        self._for_each_tile(work, blocks.shape[0], row, pool)
        return values.reshape(packed.shape)

    def _for_each_tile(self, work: Callable[[slice], None], n: int, row: int, pool: Executor | None) -> None:
        # An odd number of rows keeps the column stride of a tile off the powers of two, where all rows of a
        # column fall into the same few cache sets and a transpose is five times slower.
        step = max(1, self.tile_weights // max(1, row)) | 1
        tiles = [slice(start, start + step) for start in range(0, n, step)]
        for _ in map(work, tiles) if pool is None else pool.map(work, tiles):
            pass

    def _run_on_card(self, kernel: Kernel, rows: Any, calibration: Any, packed: Any, xp: Any) -> None:
        values = as_float32(rows, xp=xp)
        # The extremes tell as much as a look at every value, at a fraction of its cost; both pass NaN on.
        if values.size and not bool(xp.isfinite(values.max()) & xp.isfinite(values.min())):
            raise UnsupportedTensor(NOT_A_NUMBER)
        kernel(values, calibration, self.tables(xp=xp), packed)

    def _quantize_tile(self, rows: Any, calibration: Any, xp: Any) -> Any:
        values = as_float32(rows, xp=xp)
        if not bool(xp.isfinite(values).all()):
            raise UnsupportedTensor(NOT_A_NUMBER)
        # Searches divide by spans and sums that may be zero and discard the result, quietly.
        with np.errstate(all="ignore"):
            weights = None
            if calibration is not None:
                weights = self.weigh(values, calibration, xp=xp).reshape(-1, self.block)  # (n, block)
            packed = self.quantize_blocks(values.reshape(-1, self.block), weights, xp=xp)  # (n, block_bytes)
        if packed.dtype != xp.uint8 or packed.shape[-1] != self.block_bytes:
            raise AssertionError(f"{self.name}.quantize_blocks returned {packed.dtype} {packed.shape}")
        return packed.reshape(rows.shape[0], -1)  # (rows, row_bytes)


_registry: dict[str, Format] = {}


def register(fmt: Format) -> Format:
    """Add a format under its name; two of one name are a mistake in the code."""
    if fmt.name in _registry:
        raise ValueError(f"format {fmt.name} is registered twice")
    _registry[fmt.name] = fmt
    return fmt


def registry() -> Mapping[str, Format]:
    """Return the formats registered so far, by name."""
    return _registry


Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
