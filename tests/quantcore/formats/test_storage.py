"""Sizes of stored tensors, and their numbers."""

import numpy as np
import pytest

from quantcore.errors import UnknownFormat, UnsupportedTensor
from quantcore.formats import formats, get_format, quantize_rows, to_float
from quantcore.ggmltypes import storage_nbytes
from quantcore.tensors import TensorInfo
from tests.quantcore.kernels import compiled, needs_numba

WAYS = [
    (fmt.name, weighted)
    for fmt in formats().values()
    for weighted in (False, True)
    if fmt.container == "gguf" and (weighted or not fmt.needs_calibration)
]
EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)


def info(type_name, shape):
    return TensorInfo("blk.0.attn_k.weight", shape, type_name, 0)


def same_bits(a, b):
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("name", formats())
def test_a_formats_size_is_its_storage_size(name):
    fmt = get_format(name)

    if fmt.container == "gguf":
        assert storage_nbytes(name, (3, 5, 512)) == fmt.nbytes((3, 5, 512))


@pytest.mark.parametrize(("name", "size"), [("I32", 4), ("I8", 1), ("F64", 8), ("I64", 8)])
def test_types_without_a_format_have_a_size(name, size):
    assert storage_nbytes(name, (7,)) == 7 * size
    assert storage_nbytes(name, ()) == size


def test_unknown_types_and_torn_blocks_are_refused():
    with pytest.raises(UnknownFormat, match="Q9_9"):
        storage_nbytes("Q9_9", (256,))
    with pytest.raises(UnsupportedTensor, match="row of 96"):
        storage_nbytes("Q4_K", (2, 96))


@pytest.mark.parametrize("rows", [EVERY_HALF[:8], EVERY_HALF[128:136], EVERY_HALF], ids=["small", "-", "all"])
def test_every_half_becomes_itself(rows):
    """Subnormal, normal, infinite and NaN: the bits that a cast gives."""
    half = rows.view(np.float16)

    assert same_bits(to_float(info("F16", half.shape), half), half.astype(np.float32))


def test_float32_rounds_to_half_as_a_cast_does():
    """Every half, every midpoint between two of them, and their float32 neighbours, of both signs."""
    half = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middle = (half[1:] + half[:-1]) / 2
    x = np.concatenate(
        [half, middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))]
    )
    x = np.concatenate([x, -x])

    packed = get_format("F16").quantize(x)

    assert np.array_equal(
        packed.parts["blocks"].ravel().view(np.uint16), x.astype(np.float16).view(np.uint16)
    )


def test_every_bfloat_becomes_itself():
    values = to_float(info("BF16", EVERY_HALF.shape), EVERY_HALF)

    assert np.array_equal(values.view(np.uint32), EVERY_HALF.astype(np.uint32) << 16)


def test_quantized_rows_become_numbers():
    x = np.random.default_rng(8).normal(size=(6, 256)).astype(np.float32)
    packed = get_format("Q4_1").quantize(x)

    values = to_float(info("Q4_1", x.shape), packed.parts["blocks"][2:5])

    assert np.array_equal(values, get_format("Q4_1").dequantize(packed)[2:5])


def test_float32_rows_are_not_copied():
    x = np.ones((2, 4), np.float32)

    assert to_float(info("F32", x.shape), x) is x


def test_integers_are_not_weights():
    with pytest.raises(UnknownFormat, match="I32"):
        to_float(info("I32", (2, 4)), np.ones((2, 4), np.int32))


@needs_numba
@pytest.mark.parametrize("kind", ["F64", "F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize(("target", "weighted"), WAYS)
def test_compiled_kernels_make_of_stored_rows_what_numpy_makes(target, kind, weighted):
    """Of every stored type, in more rows than one tile has."""
    rng = np.random.default_rng(33)
    x = rng.normal(size=(300, 256)).astype(np.float32)
    rows = {"F64": x.astype(np.float64), "F32": x, "F16": x.astype(np.float16)}.get(kind)
    if rows is None:
        rows = get_format(kind).quantize(x).parts["blocks"]
        rows = rows.view(np.uint16) if kind == "BF16" else rows
    stored, fmt = TensorInfo("w", x.shape, kind, rows.nbytes), get_format(target)
    importance = rng.gamma(0.5, size=256).astype(np.float32) if weighted else None

    ours = quantize_rows(stored, rows, fmt, importance, kernels=compiled())

    assert np.array_equal(ours, quantize_rows(stored, rows, fmt, importance))
