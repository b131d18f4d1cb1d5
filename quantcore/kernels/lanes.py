"""Sixteen numbers at a time: vector types that compiled kernels calculate with as if they were scalars.

ggml's searches add up strictly one element after another, and equal bytes need the same order; so a kernel
takes sixteen groups side by side, one in each lane, and goes through their elements in order. A value of type
`F` holds sixteen float32, `I` sixteen int32 and `M` sixteen truth values; the usual operators work lane by
lane, also with a scalar on either side, which is rounded to float32 (`F`) or int32 (`I`) first. LLVM maps
them to whatever the processor has (AVX-512, AVX2, SSE, NEON); nothing is contracted or reordered, so the
bytes are the same everywhere.

Memory is reached through plain pointers: `p[i]` is a scalar, `load(p, i)` the sixteen values from `p[i]` on.
There are no bounds checks. This module needs numba and is imported only to compile kernels.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

LANES = 16

_i1, _i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_f32 = ir.FloatType()
_ELEMENT = {"F": _f32, "I": _i32, "M": _i1}
_VECTOR = {kind: ir.VectorType(element, LANES) for kind, element in _ELEMENT.items()}


class Lanes(types.Type):
    """The numba type of sixteen lanes of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"lanes_{kind}")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, _VECTOR[fe_type.kind])


F, I, M = Lanes("F"), Lanes("I"), Lanes("M")  # noqa: E741
FloatPointer = types.CPointer(types.float32)
IntPointer = types.CPointer(types.int32)
BytePointer = types.CPointer(types.uint8)
HalfPointer = types.CPointer(types.uint16)

# kernel(x, n_rows, row_length, importance, tables, out) -> status: the form of every kernel. `x` is finite
# float32 (n_rows, row_length), `importance` float32 (row_length,) or null, `tables` what the format's
# `tables()` gave or null, `out` uint8 (n_rows, row_bytes). The status is FINE, or why nothing can be made.
KERNEL = types.int64(FloatPointer, types.int64, types.int64, FloatPointer, IntPointer, BytePointer)


def part(function: Callable[..., Any]) -> Any:
    """Mark a function as part of kernels: it is compiled into those that call it."""
    return njit(forceinline=True, error_model="numpy")(function)


def shared(function: Callable[..., Any]) -> Any:
    """Mark a function as part of kernels that is large and called, not copied."""
    # Unsaid, the option would be inherited from the first caller.
    return njit(forceinline=False, error_model="numpy")(function)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _i32(0))
    mask = ir.Constant(ir.VectorType(_i32, LANES), [0] * LANES)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), mask)


_SCALARS = (types.float32, types.float64, types.int64, types.int32, types.uint8, types.uint32, types.uint64)


def _widen(context: Any, builder: Any, value: Any, given: Any, wanted: Lanes) -> Any:
    """Return `value` of type `given` as lanes of `wanted`."""
    if isinstance(given, Lanes):
        return value
    scalar = types.float32 if wanted.kind == "F" else types.int32
    return _splat(builder, context.cast(builder, value, given, scalar), _VECTOR[wanted.kind])


def _binary(function: Any, kind: Lanes, result: Lanes, emit: Callable[[Any, Any, Any], Any]) -> None:
    scalars: tuple[Any, ...] = _SCALARS if kind is not M else ()
    if kind is I:
        scalars = tuple(s for s in scalars if isinstance(s, types.Integer))
    pairs = [(kind, kind), *((kind, s) for s in scalars), *((s, kind) for s in scalars)]

    @infer_global(function)
    class Template(ConcreteTemplate):
        cases = [signature(result, *pair) for pair in pairs]

    for pair in pairs:

        @lower_builtin(function, *pair)
        def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            left, right = (
                _widen(context, builder, value, given, kind)
                for value, given in zip(args, sig.args, strict=True)
            )
            return emit(builder, left, right)


def _plain(name: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, a, b: getattr(builder, name)(a, b)


def _compare(name: str, sign: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, a, b: getattr(builder, name)(sign, a, b)


for _operator, _name in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _binary(_operator, F, F, _plain(_name))
    if _operator is not operator.truediv:
        _binary(_operator, I, I, _plain(_name[1:]))
for _operator, _name in (
    (operator.and_, "and_"),
    (operator.or_, "or_"),
    (operator.xor, "xor"),
    (operator.lshift, "shl"),
    (operator.rshift, "ashr"),
):
    _binary(_operator, I, I, _plain(_name))
    if _name.endswith("_") or _name == "xor":
        _binary(_operator, M, M, _plain(_name))
for _operator, _sign in (
    (operator.lt, "<"),
    (operator.le, "<="),
    (operator.gt, ">"),
    (operator.ge, ">="),
    (operator.eq, "=="),
    (operator.ne, "!="),
):
    # NaN compares as in C: unequal to all, and neither above nor below.
    _binary(_operator, F, M, _compare("fcmp_unordered" if _sign == "!=" else "fcmp_ordered", _sign))
    _binary(_operator, I, M, _compare("icmp_signed", _sign))


def _unary(function: Any, kind: Lanes, emit: Callable[[Any, Any], Any]) -> None:
    @infer_global(function)
    class Template(ConcreteTemplate):
        cases = [signature(kind, kind)]

    @lower_builtin(function, kind)
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit(builder, args[0])


_unary(operator.neg, F, lambda builder, a: builder.fneg(a))
_unary(operator.neg, I, lambda builder, a: builder.neg(a))
_unary(operator.invert, M, lambda builder, a: builder.not_(a))


def _llvm(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _float_function(name: str) -> Any:
    def typed(typingctx: Any, x: Any) -> Any:
        del typingctx
        if x is not F:
            return None

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _llvm(builder, f"llvm.{name}.v{LANES}f32", _VECTOR["F"], list(args))

        return F(F), emit

    typed.__name__ = name
    return intrinsic(typed)


# Of every lane: magnitude, square root, and the nearest integer (ties to even, towards zero, downwards).
absolute = _float_function("fabs")
root = _float_function("sqrt")
nearest = _float_function("rint")
truncated = _float_function("trunc")
below = _float_function("floor")


def _copysign(typingctx: Any, x: Any, y: Any) -> Any:
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _llvm(builder, f"llvm.copysign.v{LANES}f32", _VECTOR["F"], list(args))

    return (F(F, F), emit) if x is F and y is F else None


with_sign = intrinsic(_copysign)  # with_sign(x, y): the magnitude of x with the sign of y


@intrinsic
def splat(typingctx: Any, value: Any) -> Any:
    """Return `F` with the scalar `value` (rounded to float32) in all lanes."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _widen(context, builder, args[0], sig.args[0], F)

    return F(value), emit


@intrinsic
def splat_int(typingctx: Any, value: Any) -> Any:
    """Return `I` with the integer `value` in all lanes."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _widen(context, builder, args[0], sig.args[0], I)

    return I(value), emit


@intrinsic
def where(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """Return `a` in the lanes where `mask` is true and `b` in the others; one of them may be a scalar."""
    del typingctx
    kind = a if isinstance(a, Lanes) else b
    if mask is not M or not isinstance(kind, Lanes):
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask, a, b = args
        a = _widen(context, builder, a, sig.args[1], kind)
        return builder.select(mask, a, _widen(context, builder, b, sig.args[2], kind))

    return kind(mask, a, b), emit


def _cast(name: str, source: Lanes, result: Lanes, emit_one: Callable[[Any, Any], Any]) -> Any:
    def typed(typingctx: Any, x: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit_one(builder, args[0])

        return (result(source), emit) if x is source else None

    typed.__name__ = name
    return intrinsic(typed)


def _to_int(builder: Any, x: Any) -> Any:
    return _llvm(builder, f"llvm.fptosi.sat.v{LANES}i32.v{LANES}f32", _VECTOR["I"], [x])


to_int = _cast("to_int", F, I, _to_int)  # towards zero; NaN gives 0, what is too large the largest int32
# The same for numbers that int32 can hold only, at a fraction of the cost.
cut = _cast("cut", F, I, lambda builder, x: builder.fptosi(x, _VECTOR["I"]))
to_float = _cast("to_float", I, F, lambda builder, x: builder.sitofp(x, _VECTOR["F"]))
as_bits = _cast("as_bits", F, I, lambda builder, x: builder.bitcast(x, _VECTOR["I"]))
from_bits = _cast("from_bits", I, F, lambda builder, x: builder.bitcast(x, _VECTOR["F"]))
ones = _cast("ones", M, I, lambda builder, x: builder.zext(x, _VECTOR["I"]))  # 1 where true, else 0


def _test(name: str, emit_one: Callable[[Any, Any], Any]) -> Any:
    def typed(typingctx: Any, x: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit_one(builder, builder.bitcast(args[0], ir.IntType(LANES)))

        return (types.boolean(M), emit) if x is M else None

    typed.__name__ = name
    return intrinsic(typed)


any_of = _test("any_of", lambda builder, bits: builder.icmp_unsigned("!=", bits, bits.type(0)))
all_of = _test("all_of", lambda builder, bits: builder.icmp_unsigned("==", bits, bits.type(-1)))


@intrinsic
def bits_of(typingctx: Any, mask: Any) -> Any:
    """Return the truth values of sixteen lanes as a scalar int32, lane `i` at bit `i`."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], ir.IntType(LANES)), _i32)

    return (types.int32(M), emit) if mask is M else None


@intrinsic
def lane_numbers(typingctx: Any) -> Any:
    """Return `I` with 0 to 15."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return ir.Constant(_VECTOR["I"], list(range(LANES)))

    return I(), emit


def _reduction(name: str, operation: str, kind: Lanes, scalar: Any) -> Any:
    def typed(typingctx: Any, x: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            suffix = f"v{LANES}{'f32' if kind is F else 'i32'}"
            return _llvm(builder, f"llvm.vector.reduce.{operation}.{suffix}", _ELEMENT[kind.kind], list(args))

        return (scalar(kind), emit) if x is kind else None

    typed.__name__ = name
    return intrinsic(typed)


# Of all lanes: the largest float32 (none of them NaN), and the smallest int32.
largest = _reduction("largest", "fmax", F, types.float32)
smallest_int = _reduction("smallest_int", "smin", I, types.int32)


_LANE_OF = {types.float32: F, types.int32: I, types.uint8: I, types.uint16: I}


def _address(builder: Any, pointer: Any, index: Any) -> Any:
    return builder.gep(pointer, [index])


@intrinsic
def load(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Return the sixteen values from `pointer[index]` on: `F` of float32, `I` of int32, uint16 or uint8."""
    del typingctx
    element = pointer.dtype
    kind = _LANE_OF[element]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = ir.VectorType(context.get_value_type(element), LANES)
        address = builder.bitcast(_address(builder, args[0], args[1]), memory.as_pointer())
        value = builder.load(address, align=element.bitwidth // 8)
        return builder.zext(value, _VECTOR["I"]) if element.bitwidth < 32 else value

    return kind(pointer, types.intp), emit


@intrinsic
def store(typingctx: Any, pointer: Any, index: Any, value: Any) -> Any:
    """Put sixteen values at `pointer[index]` and on; into uint8 and uint16 go the lowest bits of each."""
    del typingctx
    element = pointer.dtype
    if value is not _LANE_OF[element]:
        return None

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = ir.VectorType(context.get_value_type(element), LANES)
        address = builder.bitcast(_address(builder, args[0], args[1]), memory.as_pointer())
        given = builder.trunc(args[2], memory) if element.bitwidth < 32 else args[2]
        builder.store(given, address, align=element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pointer, types.intp, value), emit


@intrinsic
def gather(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Return `pointer[index]` for sixteen indices `index` (`I`): `F` of float32, `I` of int32 or uint8."""
    del typingctx
    element = pointer.dtype
    if index is not I:
        return None
    kind = _LANE_OF[element]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        # One load per lane: on the processors measured no slower than a gather instruction.
        base, places = args
        gathered = ir.Constant(_VECTOR[kind.kind], ir.Undefined)
        for lane in range(LANES):
            place = builder.sext(builder.extract_element(places, _i32(lane)), _i64)
            value = builder.load(_address(builder, base, place))
            if element == types.uint8:
                value = builder.zext(value, _i32)
            gathered = builder.insert_element(gathered, value, _i32(lane))
        return gathered

    return kind(pointer, index), emit


@intrinsic
def lane(typingctx: Any, value: Any, number: Any) -> Any:
    """Return one lane as a scalar (float32, int32 or boolean)."""
    del typingctx
    scalar = {"F": types.float32, "I": types.int32, "M": types.boolean}[value.kind]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], _i32))

    return scalar(value, types.int64), emit


def _room(name: str, element: Any) -> Any:
    def typed(typingctx: Any, count: Any) -> Any:
        del typingctx
        if not isinstance(count, types.IntegerLiteral):
            return None

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            size = ir.Constant(_i64, count.literal_value)
            with builder.goto_entry_block():
                room = builder.alloca(context.get_value_type(element), size=size)
            room.align = 64
            return room

        return types.CPointer(element)(count), emit

    typed.__name__ = name
    return intrinsic(prefer_literal=True)(typed)


# Room on the stack for a literal number of values, not set to anything, gone when the kernel returns.
floats = _room("floats", types.float32)
ints = _room("ints", types.int32)
byte_room = _room("byte_room", types.uint8)


@intrinsic
def move(typingctx: Any, pointer: Any, distance: Any) -> Any:
    """Return the pointer `distance` elements further on."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _address(builder, args[0], args[1])

    return pointer(pointer, types.int64), emit


def _pointer_cast(name: str, result: Any, element: Any) -> Any:
    def typed(typingctx: Any, pointer: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], element.as_pointer())

        return result(pointer), emit

    typed.__name__ = name
    return intrinsic(typed)


# Pointers to the same memory as uint8, uint16 and float32.
as_bytes = _pointer_cast("as_bytes", BytePointer, _i8)
as_halves = _pointer_cast("as_halves", HalfPointer, _i16)
as_floats = _pointer_cast("as_floats", FloatPointer, _f32)


def _extreme(name: str, sign: str, magnitude: bool) -> Any:
    def typed(typingctx: Any, source: Any, stride: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source, stride = args
            vector = _VECTOR["F"]

            def better(a: Any, b: Any) -> Any:
                return builder.select(builder.fcmp_ordered(sign, a, b), a, b)

            def row(j: int, half: int) -> Any:
                place = builder.add(builder.mul(stride, _i64(j)), _i64(half * LANES))
                address = builder.bitcast(_address(builder, source, place), vector.as_pointer())
                value = builder.load(address, align=4)
                return _llvm(builder, f"llvm.fabs.v{LANES}f32", vector, [value]) if magnitude else value

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
            return builder.load(builder.bitcast(_address(builder, source, at), four), align=4)

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
                    spot = _address(builder, target, _i64((left + i) * LANES + top))
                    builder.store(column, builder.bitcast(spot, eight), align=4)
        return context.get_dummy_value()

    return types.void(source, types.int64, target), emit


@intrinsic
def float_bits(typingctx: Any, value: Any) -> Any:
    """Return the bit pattern of a scalar float32 as int32."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _i32)

    return types.int32(types.float32), emit


@intrinsic
def bits_float(typingctx: Any, value: Any) -> Any:
    """Return the scalar float32 of the bit pattern `value` (int32)."""
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _f32)

    return types.float32(types.int32), emit
