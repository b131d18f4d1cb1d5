"""Lanes exchanged between vectors: rows turned into columns, and the extremes of sixteen rows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantcore.kernels.lanes import LANES, VECTOR, F, call_llvm
from quantcore.kernels.memory import address_of

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_f32 = ir.FloatType()


def _extreme(name: str, sign: str, magnitude: bool) -> Any:
    def typed(typingctx: Any, source: Any, stride: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source, stride = args
            vector = VECTOR["F"]

            def better(a: Any, b: Any) -> Any:
                return builder.select(builder.fcmp_ordered(sign, a, b), a, b)

            def row(j: int, half: int) -> Any:
                place = builder.add(builder.mul(stride, _i64(j)), _i64(half * LANES))
                address = builder.bitcast(address_of(builder, source, place), vector.as_pointer())
                value = builder.load(address, align=4)
                return call_llvm(builder, f"llvm.fabs.v{LANES}f32", vector, [value]) if magnitude else value

            def reduce(first: int, count: int) -> Any:
                """Put `count` rows into one vector, the lanes of which are shared out among them in order."""
                if count == 1:
                    return better(row(first, 0), row(first, 1))
                run = LANES // count
                a, b = reduce(first, count // 2), reduce(first + count // 2, count // 2)
                lanes = [k for k in range(2 * LANES) if k // run % 2 == 0]
                left = ir.Constant(ir.VectorType(_i32, LANES), lanes)
                right = ir.Constant(ir.VectorType(_i32, LANES), [k + run for k in lanes])
                return better(builder.shuffle_vector(a, b, left), builder.shuffle_vector(a, b, right))

            return reduce(0, LANES)

        return F(source, types.int64), emit

    typed.__name__ = name
    return intrinsic(typed)


# Of 16 rows of 32 float32 from `source` on, `stride` apart: the largest, the smallest and the largest
# magnitude of each, row `j` in lane `j`. Of 0.0 and -0.0 either may come out.
row_largest = _extreme("row_largest", ">", magnitude=False)
row_smallest = _extreme("row_smallest", "<", magnitude=False)
row_magnitude = _extreme("row_magnitude", ">", magnitude=True)


@intrinsic
def transpose(typingctx: Any, source: Any, stride: Any, target: Any) -> Any:
    """Turn 16 rows of 16 float32, `stride` apart, into columns: `target[16 * i + j]` is `i` of row `j`."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, stride, target = args
        four, eight = (ir.VectorType(_f32, n).as_pointer() for n in (4, 8))

        def mixed(a: Any, b: Any, places: list[int]) -> Any:
            return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_i32, 8), places))

        def quarter(row: int, column: int) -> Any:
            at = builder.add(builder.mul(stride, _i64(row)), _i64(column))
            return builder.load(builder.bitcast(address_of(builder, source, at), four), align=4)

        def halves(a: Any, b: Any) -> tuple[Any, Any]:
            return mixed(a, b, [0, 8, 1, 9, 4, 12, 5, 13]), mixed(a, b, [2, 10, 3, 11, 6, 14, 7, 15])

        # Four columns of eight rows at a time, rows 0-3 in the lower and 4-7 in the upper half of a vector:
        # nothing crosses the halves, so that AVX2 needs one instruction for each step.
        for top in (0, 8):
            for left in range(0, LANES, 4):
                pairs = [(quarter(top + j, left), quarter(top + j + 4, left)) for j in range(4)]
                rows = [mixed(upper, lower, list(range(8))) for upper, lower in pairs]
                low, high = halves(rows[0], rows[2]), halves(rows[1], rows[3])
                columns = [*halves(low[0], high[0]), *halves(low[1], high[1])]
                for i, column in enumerate(columns):
                    spot = address_of(builder, target, _i64((left + i) * LANES + top))
                    builder.store(column, builder.bitcast(spot, eight), align=4)
        return context.get_dummy_value()

    return types.void(source, types.int64, target), emit
