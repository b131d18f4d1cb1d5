"""Sixteen numbers at a time: vector types that compiled kernels calculate with as if they were scalars.

ggml's searches add up strictly one element after another, and equal bytes need the same order; so a kernel
takes sixteen groups side by side, one in each lane, and goes through their elements in order. A value of type
`F` holds sixteen float32, `I` sixteen int32 and `M` sixteen truth values; the usual operators work lane by
lane, also with a scalar on either side, which is rounded to float32 (`F`) or int32 (`I`) first. LLVM maps
them to whatever the processor has (AVX-512, AVX2, SSE, NEON); nothing is contracted or reordered, so the
bytes are the same everywhere.

Memory is reached through plain pointers (`quantcore.kernels.memory`): `p[i]` is a scalar, `load(p, i)` the
sixteen values from `p[i]` on. There are no bounds checks. This module needs numba and is imported only to
compile kernels.
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

_i1, _i32 = ir.IntType(1), ir.IntType(32)
_f32 = ir.FloatType()
_ELEMENT = {"F": _f32, "I": _i32, "M": _i1}
VECTOR = {kind: ir.VectorType(element, LANES) for kind, element in _ELEMENT.items()}


class Lanes(types.Type):
    """The numba type of sixteen lanes of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"lanes_{kind}")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, VECTOR[fe_type.kind])


F, I, M = Lanes("F"), Lanes("I"), Lanes("M")  # noqa: E741
FloatPointer = types.CPointer(types.float32)
IntPointer = types.CPointer(types.int32)
BytePointer = types.CPointer(types.uint8)
HalfPointer = types.CPointer(types.uint16)
DoublePointer = types.CPointer(types.float64)

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
    return _splat(builder, context.cast(builder, value, given, scalar), VECTOR[wanted.kind])


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


def call_llvm(builder: Any, name: str, result: Any, args: list[Any]) -> Any:
    """Return what an intrinsic of LLVM makes of `args`, a value of type `result`."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _float_function(name: str) -> Any:
    def typed(typingctx: Any, x: Any) -> Any:
        del typingctx
        if x is not F:
            return None

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return call_llvm(builder, f"llvm.{name}.v{LANES}f32", VECTOR["F"], list(args))

        return F(F), emit

    typed.__name__ = name
    return intrinsic(typed)


# Of every lane: magnitude, square root, and the nearest integer (ties to even, or downwards).
absolute = _float_function("fabs")
root = _float_function("sqrt")
nearest = _float_function("rint")
below = _float_function("floor")


def _copysign(typingctx: Any, x: Any, y: Any) -> Any:
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_llvm(builder, f"llvm.copysign.v{LANES}f32", VECTOR["F"], list(args))

    return (F(F, F), emit) if x is F and y is F else None


with_sign = intrinsic(_copysign)  # with_sign(x, y): the magnitude of x with the sign of y


def _fused(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    del typingctx

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return call_llvm(builder, f"llvm.fma.v{LANES}f32", VECTOR["F"], list(args))

    return (F(F, F, F), emit) if (a, b, c) == (F, F, F) else None


fused = intrinsic(_fused)  # fused(a, b, c): a * b + c, rounded once


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
    return call_llvm(builder, f"llvm.fptosi.sat.v{LANES}i32.v{LANES}f32", VECTOR["I"], [x])


to_int = _cast("to_int", F, I, _to_int)  # towards zero; NaN gives 0, what is too large the largest int32
# The same for numbers that int32 can hold only, at a fraction of the cost.
cut = _cast("cut", F, I, lambda builder, x: builder.fptosi(x, VECTOR["I"]))
to_float = _cast("to_float", I, F, lambda builder, x: builder.sitofp(x, VECTOR["F"]))
as_bits = _cast("as_bits", F, I, lambda builder, x: builder.bitcast(x, VECTOR["I"]))
from_bits = _cast("from_bits", I, F, lambda builder, x: builder.bitcast(x, VECTOR["F"]))
ones = _cast("ones", M, I, lambda builder, x: builder.zext(x, VECTOR["I"]))  # 1 where true, else 0


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
        return ir.Constant(VECTOR["I"], list(range(LANES)))

    return I(), emit


def _reduction(name: str, operation: str, kind: Lanes, scalar: Any) -> Any:
    def typed(typingctx: Any, x: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            suffix = f"v{LANES}{'f32' if kind is F else 'i32'}"
            return call_llvm(
                builder, f"llvm.vector.reduce.{operation}.{suffix}", _ELEMENT[kind.kind], list(args)
            )

        return (scalar(kind), emit) if x is kind else None

    typed.__name__ = name
    return intrinsic(typed)


# Of all lanes: the largest float32 (none of them NaN), and the smallest int32.
largest = _reduction("largest", "fmax", F, types.float32)
smallest_int = _reduction("smallest_int", "smin", I, types.int32)


@intrinsic
def lane(typingctx: Any, value: Any, number: Any) -> Any:
    """Return one lane as a scalar (float32, int32 or boolean)."""
    del typingctx
    scalar = {"F": types.float32, "I": types.int32, "M": types.boolean}[value.kind]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.extract_element(args[0], builder.trunc(args[1], _i32))

    return scalar(value, types.int64), emit


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
