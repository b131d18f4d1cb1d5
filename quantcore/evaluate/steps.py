"""The steps of a forward pass, by numpy or by compiled kernels: whoever runs a layer is given either.

`Steps` calls the functions of `quantcore.evaluate.ops`; `CompiledSteps` does the same sums, rounded
differently in the last digit, several times faster where kernels were built and fall back on numpy for what
they have none of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from quantcore.architectures.base import Gate, NormKind
from quantcore.arrays import namespace, to_host
from quantcore.errors import MissingEngine
from quantcore.evaluate import ops
from quantcore.evaluate.ops import Doubles, Floats
from quantcore.evaluate.weights import SLAB_WEIGHTS, read_float
from quantcore.formats import to_float
from quantcore.kernels import library
from quantcore.kernels.library import Compiled, Library
from quantcore.tensors import Tensor

GROUPS, LANES = 3, 16  # a tile's width in groups of outputs; see `quantcore.kernels.cpu.matmul`
LARGEST_HEAD = 256
NO_WINDOW = 1 << 30
SHARE = 48  # rows, or a multiple, that one of several threads takes: whole tiles, and blocks of queries
SPARE = 64  # numbers that may be read behind the last value


@dataclass(frozen=True)
class Panels:
    """A matrix `(outputs, inputs)` as the compiled product takes it: float32 `(groups, inputs, 16)`."""

    outputs: int
    values: Floats


class Steps:
    """The steps by numpy, or by another namespace `xp`, whose arrays lie on a card."""

    def __init__(self, xp: Any = np) -> None:
        self.xp = xp

    @property
    def away(self) -> bool:
        """Whether arrays are not numpy's."""
        return self.xp is not np

    def put(self, x: Any) -> Any:
        """Return an array where the steps are done."""
        return self.xp.asarray(x)

    def home(self, x: Any) -> Any:
        """Return an array of numpy's."""
        return to_host(x) if self.away else x

    @contextmanager
    def helped(self, callers: int, threads: int) -> Iterator[None]:
        """Let each of some callers have so many threads for a step; numpy's products have those of BLAS."""
        del callers, threads
        yield

    def matrix(self, weight: Floats) -> Any:
        """Return a matrix `(outputs, inputs)` in the form that `product` is fastest with."""
        return self.put(weight)

    def ready(self, weight: Any) -> Any:
        """Return a matrix in that form, or each of a stack; what is ready stays as it is."""
        if not isinstance(weight, np.ndarray):
            return weight
        if weight.ndim == 3:
            return tuple(self.matrix(one) for one in weight)
        return self.matrix(weight) if _is_matrix(weight.shape) else self.put(weight)

    def read(self, tensor: Tensor, pool: Executor) -> Any:
        """Return a tensor as float32, or in that form if there is a way that takes less memory."""
        return self.ready(read_float(tensor, pool))

    def reuse(self, weights: Iterable[Any]) -> None:
        """Let the memory of a layer's weights, which nobody needs any more, become that of another's."""

    def product(self, x: Floats, matrix: Any) -> Floats:
        """Return `x` `(rows, inputs)` times the transposed `matrix` `(outputs, inputs)`."""
        found: Floats = x @ matrix.T
        return found

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        """Return what `ops.rms_norm` does."""
        return ops.rms_norm(x, weight, eps, xp=self.xp)

    def after_norm(
        self, kind: NormKind, weights: Mapping[str, Floats], name: str, x: Floats, eps: float
    ) -> Floats:
        """Return what `ops.after_norm` does."""
        weight = weights.get(f"{name}.weight")
        if weight is None or kind != "rms":
            return ops.after_norm(kind, weights, name, x, eps, xp=self.xp)
        return self.rms_norm(x, weight, eps)

    def gated(self, gate: Floats, up: Floats, kind: Gate) -> Floats:
        """Return what `ops.gated` does; `gate` may be overwritten."""
        return ops.gated(gate, up, kind, xp=self.xp)

    def attend(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        start: int,
        window: int | None,
        scale: float | None,
        cap: float | None,
        sinks: Floats | None,
    ) -> Floats:
        """Return what `ops.attend` does."""
        return ops.attend(q, k, v, start, window, scale, cap, sinks, xp=self.xp)

    def partition(self, logits: Floats) -> tuple[Doubles, Doubles]:
        """Return what `ops.partition` does; `logits` may be overwritten."""
        largest, total = ops.partition(logits, xp=self.xp)
        return self.home(largest), self.home(total)


class CompiledSteps(Steps):
    """The steps by compiled kernels, as many as there are."""

    def __init__(self, kernels: Library) -> None:
        super().__init__()
        names = ("pack", "product", "rms_norm", "gated", "pack_keys", "attend", "partition")
        found = {name: kernels.step(name) for name in names}
        self._kernels: dict[str, Compiled] = {name: it for name, it in found.items() if it is not None}
        self._spare: dict[tuple[int, ...], list[Floats]] = {}
        self._helpers: Executor | None = None
        self._shares = 1

    @contextmanager
    def helped(self, callers: int, threads: int) -> Iterator[None]:
        if threads < 2:
            yield
            return
        with ThreadPoolExecutor(callers * threads) as helpers:
            self._helpers, self._shares = helpers, threads
            try:
                yield
            finally:
                self._helpers, self._shares = None, 1

    def _in_shares(self, work: Callable[[slice], None], rows: int) -> None:
        """Call `work` for all rows, shared out among helpers: no row's numbers depend on how."""
        step = -(-rows // self._shares // SHARE) * SHARE or SHARE
        shares = [slice(first, min(first + step, rows)) for first in range(0, rows, step)]
        helpers = self._helpers if len(shares) > 1 else None
        for _ in map(work, shares) if helpers is None else helpers.map(work, shares):
            pass

    @property
    def _packs(self) -> bool:
        return {"pack", "product"} <= self._kernels.keys()

    def matrix(self, weight: Floats) -> Any:
        if not self._packs:
            return weight
        panels = self._room(*weight.shape)
        self._kernels["pack"](_whole(weight), None, None, panels.values)
        return panels

    def read(self, tensor: Tensor, pool: Executor) -> Any:
        info = tensor.info
        if not self._packs or not _is_matrix(info.shape):
            return super().read(tensor, pool)
        panels = self._room(*info.shape)
        tile = GROUPS * LANES
        step = -(-max(1, SLAB_WEIGHTS // info.row_length) // tile) * tile

        def fill(start: int) -> None:
            rows = to_float(info, tensor.read_rows(start, min(start + step, info.n_rows)))
            groups = panels.values[start // LANES : (start + step) // LANES]
            self._kernels["pack"](_whole(rows), None, None, groups)

        for _ in pool.map(fill, range(0, info.n_rows, step)):
            pass
        return panels

    def _room(self, outputs: int, inputs: int) -> Panels:
        """Return panels of any content, in memory that was in use before if there is some."""
        shape = (-(-outputs // (GROUPS * LANES)) * GROUPS, inputs, LANES)
        try:
            values = self._spare[shape].pop()
        except (KeyError, IndexError):
            values = np.empty(shape, dtype=np.float32)
        return Panels(outputs, values)

    def reuse(self, weights: Iterable[Any]) -> None:
        # Pages that the system has to zero and map anew for each layer cost more than packing.
        spare: dict[tuple[int, ...], list[Floats]] = {}
        for weight in weights:
            for panels in weight if isinstance(weight, tuple) else (weight,):
                if isinstance(panels, Panels):
                    spare.setdefault(panels.values.shape, []).append(panels.values)
        self._spare = spare

    def product(self, x: Floats, matrix: Any) -> Floats:
        if not isinstance(matrix, Panels):
            return super().product(x, matrix)
        if x.shape[1] != matrix.values.shape[1]:
            raise AssertionError(f"{x.shape} times panels of {matrix.values.shape}")
        out = np.empty((len(x), matrix.outputs), dtype=np.float32)
        sizes = np.array([matrix.outputs], dtype=np.int32)
        x, product = _whole(x), self._kernels["product"]
        self._in_shares(lambda rows: product(x[rows], matrix.values, sizes, out[rows]), len(x))
        return out

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        kernel = self._kernels.get("rms_norm")
        if kernel is None or weight.size != x.shape[-1]:  # each head may have weights of its own
            return super().rms_norm(x, weight, eps)
        x, weight = _whole(x), _whole(weight)
        out = np.empty_like(x)
        kernel(_rows(x), weight, np.array([_bits(eps)], dtype=np.int32), out)
        return out

    def gated(self, gate: Floats, up: Floats, kind: Gate) -> Floats:
        kernel = self._kernels.get("gated")
        if kernel is None or kind != "silu":
            return super().gated(gate, up, kind)
        gate, up = _whole(gate), _whole(up)
        if gate.shape != up.shape:
            raise AssertionError(f"gates of {gate.shape} for {up.shape}")
        kernel(_rows(gate), up, None, gate)
        return gate

    def attend(
        self,
        q: Floats,
        k: Floats,
        v: Floats,
        start: int,
        window: int | None,
        scale: float | None,
        cap: float | None,
        sinks: Floats | None,
    ) -> Floats:
        there = {"attend", "pack_keys"} <= self._kernels.keys()
        if not there or cap is not None or sinks is not None or q.shape[3] > LARGEST_HEAD:
            return super().attend(q, k, v, start, window, scale, cap, sinks)
        chunks, rows, heads, size = q.shape
        keys, kv_heads = k.shape[1:3]
        if not (k.shape == v.shape == (chunks, keys, kv_heads, size) and start + rows <= keys):
            raise AssertionError(f"queries {q.shape} from {start}, keys {k.shape}, values {v.shape}")
        factor = _bits(1 / math.sqrt(size) if scale is None else scale)
        out = np.empty((chunks, rows, heads * size), dtype=np.float32)
        for chunk in range(chunks):
            seen, asked = self._keys_and_values(k[chunk], v[chunk]), _whole(q[chunk]).reshape(rows, -1)

            def some(share: slice, chunk: int = chunk, seen: Floats = seen, asked: Floats = asked) -> None:
                sizes = [heads, kv_heads, start + share.start, keys, window or NO_WINDOW, factor]
                table = np.array(sizes, dtype=np.int32)
                self._kernels["attend"](asked[share], seen, table, out[chunk, share])

            self._in_shares(some, rows)
        return out

    def _keys_and_values(self, k: Floats, v: Floats) -> Floats:
        """Return packed keys, then values `(keys, kv_heads * size)`, then what may be read behind them."""
        keys, kv_heads, size = k.shape
        packed = kv_heads * -(-keys // LANES) * LANES * size
        seen = np.empty(packed + v.size + SPARE, dtype=np.float32)
        heads = np.array([kv_heads], dtype=np.int32)
        self._kernels["pack_keys"](_whole(k).reshape(keys, -1), None, heads, seen)
        seen[packed : packed + v.size] = v.reshape(-1)
        seen[packed + v.size :] = 0
        return seen

    def partition(self, logits: Floats) -> tuple[Doubles, Doubles]:
        kernel = self._kernels.get("partition")
        if kernel is None:
            return super().partition(logits)
        found = np.empty((len(logits), 2), dtype=np.float64)
        kernel(_whole(logits), None, None, found)
        return found[:, 0], found[:, 1]


def steps_of(device: str) -> Steps:
    """Return the steps of a device, "cpu" or "cuda"; raises `MissingEngine` without cupy or a card."""
    return best_steps() if device == "cpu" else Steps(namespace(device))


def best_steps() -> Steps:
    """Return the compiled steps where kernels were built for this processor, those of numpy elsewhere."""
    try:
        kernels = library.load()
    except MissingEngine:  # never required
        return Steps()
    return Steps() if kernels is None else CompiledSteps(kernels)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    """Say whether a shape is a matrix's; a vector may be a matrix of one row."""
    return len(shape) == 2 and shape[0] > 1


def _whole(x: Floats) -> Floats:
    """Return `x` as kernels take it: float32, one number after another."""
    return np.ascontiguousarray(x, dtype=np.float32)


def _rows(x: Floats) -> Floats:
    return x.reshape(-1, x.shape[-1])  # (rows, inputs)


def _bits(value: float) -> np.int32:
    """Return the bits of a float32, as kernels take it among whole numbers."""
    return np.float32(value).view(np.int32)
