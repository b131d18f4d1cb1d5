"""Tiles of matrix products: the inner loop of `cpu.matmul`, in as many registers as AVX-512 has."""

from __future__ import annotations

from itertools import chain
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from quantcore.kernels.lanes import LANES, VECTOR, call_llvm
from quantcore.kernels.memory import address_of

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_FUSED = f"llvm.fma.v{LANES}f32"


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(VECTOR["F"], ir.Undefined)
    one = builder.insert_element(undefined, value, _i32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES))


def _lanes(builder: Any, pointer: Any, distance: Any) -> Any:
    return builder.bitcast(address_of(builder, pointer, distance), VECTOR["F"].as_pointer())


def _new_sums(builder: Any, rows: int, vectors: int) -> list[list[Any]]:
    """Return where sums are kept, all of them zero; LLVM turns these places into registers."""
    allocate: Any = cgutils.alloca_once
    sums = [[allocate(builder, VECTOR["F"]) for _ in range(vectors)] for _ in range(rows)]
    for place in chain.from_iterable(sums):
        builder.store(ir.Constant(VECTOR["F"], None), place)
    return sums


def _add_products(builder: Any, sums: list[list[Any]], a: Any, b: Any, b_next: Any) -> None:
    """Add the scalars at `a` times the lanes at `b`, `b_next` apart."""
    places = [_lanes(builder, b, builder.mul(b_next, _i64(v))) for v in range(len(sums[0]))]
    loaded = [builder.load(place, align=4) for place in places]
    for r, row in enumerate(sums):
        factor = _splat(builder, builder.load(address_of(builder, a, _i64(r))))
        for lanes, place in zip(loaded, row, strict=True):
            terms = [factor, lanes, builder.load(place)]
            builder.store(call_llvm(builder, _FUSED, VECTOR["F"], terms), place)


def _tile(name: str, rows: int, vectors: int) -> Any:
    """Return what adds up the products of `rows` scalars and `16 * vectors` lanes."""

    def typed(
        typingctx: Any, a: Any, a_step: Any, b: Any, b_step: Any, b_next: Any, depth: Any, c: Any
    ) -> Any:
        del typingctx, a_step, b_step, b_next, depth

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            del sig
            a, a_step, b, b_step, b_next, depth, c = args
            sums = _new_sums(builder, rows, vectors)
            with cgutils.for_range(builder, depth) as loop:
                scalars = address_of(builder, a, builder.mul(loop.index, a_step))
                lanes = address_of(builder, b, builder.mul(loop.index, b_step))
                _add_products(builder, sums, scalars, lanes, b_next)
            for i, place in enumerate(chain.from_iterable(sums)):
                builder.store(builder.load(place), _lanes(builder, c, _i64(i * LANES)), align=4)
            return context.get_dummy_value()

        return types.void(a, types.int64, b, types.int64, types.int64, types.int64, c), emit

    typed.__name__ = name
    return intrinsic(typed)


# multiply(a, a_step, b, b_step, b_next, depth, c): fill `c`, rows of 48 or 64 numbers, with the sums over
# `depth` of a[k * a_step + row] times the lanes of b[k * b_step + v * b_next], v one vector after another.
multiply_8x3 = _tile("multiply_8x3", 8, 3)
multiply_6x4 = _tile("multiply_6x4", 6, 4)
