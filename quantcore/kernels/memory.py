"""Memory as compiled kernels reach it: loading and storing lanes, room on the stack, pointers."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from quantcore.kernels.lanes import LANES, VECTOR, BytePointer, DoublePointer, F, FloatPointer, HalfPointer, I

_i8, _i16, _i32, _i64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_f32, _f64 = ir.FloatType(), ir.DoubleType()

_LANE_OF = {types.float32: F, types.int32: I, types.uint8: I, types.uint16: I}


def address_of(builder: Any, pointer: Any, index: Any) -> Any:
    """Return where `pointer[index]` lies, as LLVM's."""
    return builder.gep(pointer, [index])


@intrinsic
def load(typingctx: Any, pointer: Any, index: Any) -> Any:
    """Return the sixteen values from `pointer[index]` on: `F` of float32, `I` of int32, uint16 or uint8."""
    del typingctx
    element = pointer.dtype
    kind = _LANE_OF[element]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        memory = ir.VectorType(context.get_value_type(element), LANES)
        address = builder.bitcast(address_of(builder, args[0], args[1]), memory.as_pointer())
        value = builder.load(address, align=element.bitwidth // 8)
        return builder.zext(value, VECTOR["I"]) if element.bitwidth < 32 else value

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
        address = builder.bitcast(address_of(builder, args[0], args[1]), memory.as_pointer())
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
        gathered = ir.Constant(VECTOR[kind.kind], ir.Undefined)
        for lane in range(LANES):
            place = builder.sext(builder.extract_element(places, _i32(lane)), _i64)
            value = builder.load(address_of(builder, base, place))
            if element == types.uint8:
                value = builder.zext(value, _i32)
            gathered = builder.insert_element(gathered, value, _i32(lane))
        return gathered

    return kind(pointer, index), emit


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
        return address_of(builder, args[0], args[1])

    return pointer(pointer, types.int64), emit


def _pointer_cast(name: str, result: Any, element: Any) -> Any:
    def typed(typingctx: Any, pointer: Any) -> Any:
        del typingctx

        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.bitcast(args[0], element.as_pointer())

        return result(pointer), emit

    typed.__name__ = name
    return intrinsic(typed)


# Pointers to the same memory as uint8, uint16, float32 and float64.
as_bytes = _pointer_cast("as_bytes", BytePointer, _i8)
as_halves = _pointer_cast("as_halves", HalfPointer, _i16)
as_floats = _pointer_cast("as_floats", FloatPointer, _f32)
as_doubles = _pointer_cast("as_doubles", DoublePointer, _f64)
