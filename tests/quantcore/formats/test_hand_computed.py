"""One block per family worked out by hand, and agreement with the `gguf` package where it has a say."""

import struct

import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from quantcore.errors import UnsupportedTensor
from quantcore.formats import get_format
from quantcore.methods.kquant_descent import scale_of_scales

LEGACY = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
UNLIKE = ["IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"]


def blocks(name, values):
    return get_format(name).quantize(np.asarray(values, np.float32)).parts["blocks"].tobytes()


def half(value):
    return struct.pack("<e", value)


def test_q8_0_sends_the_peak_to_127():
    values = [127.0, -127.0, 1.0, -1.5, 2.5, *[0.0] * 27]

    assert blocks("Q8_0", values) == half(1.0) + bytes([127, 129, 1, 254, 3, *[0] * 27])


def test_q4_0_sends_the_peak_to_code_0_and_pairs_halves_in_a_byte():
    """d = 8 / -8 = -1; the codes are 8 - x."""
    values = [8.0, 1.0, *[0.0] * 14, -7.0, *[0.0] * 15]

    assert blocks("Q4_0", values) == half(-1.0) + bytes([0xF0, 0x87, *[0x88] * 14])


def test_q4_1_spans_minimum_to_maximum():
    values = [2.0, 17.0, *[2.0] * 14, 3.0, *[2.0] * 15]

    assert blocks("Q4_1", values) == half(1.0) + half(2.0) + bytes([0x10, 0x0F, *[0] * 14])


def test_q5_1_keeps_the_fifth_bits_apart():
    """Code 31 of element 1 leaves 15 in its nibble and bit 1 in the word of fifth bits."""
    values = [2.0, 33.0, *[2.0] * 14, 3.0, *[2.0] * 15]

    expected = half(1.0) + half(2.0) + bytes([0b10, 0, 0, 0]) + bytes([0x10, 0x0F, *[0] * 14])
    assert blocks("Q5_1", values) == expected


def test_q6_k_stores_a_ramp_exactly():
    """Whole numbers, peak -32: s = -128 and d = -1/128 make a step of 1, and the codes are x + 32."""
    group = np.array([-32, *range(-7, 8)], np.float32)
    codes = (32 + group).astype(np.uint8)

    packed = get_format("Q6_K").quantize(np.tile(group, 16))

    low, high = packed.parts["blocks"][0, :128], packed.parts["blocks"][0, 128:192]
    assert packed.parts["blocks"][0, 192:].tobytes() == bytes([128] * 16) + half(-1 / 128)
    assert np.array_equal(low, np.tile((codes & 15) * 17, 8))
    assert np.array_equal(high, np.tile((codes >> 4) * 85, 4))


def test_q4_k_stores_a_lattice_exactly():
    """Every group holds -63 ... 882 in steps of 63: scale 63 and minimum 63, both code 63 of 1."""
    group = np.tile(np.arange(16, dtype=np.float32) * 63 - 63, 2)

    packed = get_format("Q4_K").quantize(np.tile(group, 8))

    expected = half(1.0) + half(1.0) + bytes([255] * 12) + bytes([code * 17 for code in range(16)] * 8)
    assert packed.parts["blocks"].tobytes() == expected


def test_a_negative_scale_of_a_group_gets_code_0():
    """Rounding error can make one; its code must not wrap around into the neighbouring fields."""
    scales = np.array([[1.0, 2.0], [-0.3, 1.0], [0.5, -1e-3], [1.0, 2.0]], np.float32)

    codes = scale_of_scales(scales, np.ones_like(scales), 63, xp=np).codes

    assert np.array_equal(codes, [[63, 63], [0, 32], [32, 0], [63, 63]])


@pytest.mark.parametrize("name", [*LEGACY, "TQ1_0", "TQ2_0", "MXFP4"])
def test_quantize_agrees_with_the_gguf_package(name):
    x = np.random.default_rng(6).normal(size=(8, 512)).astype(np.float32)

    theirs = quantize(x, GGMLQuantizationType[name]).view(np.uint8)

    assert np.array_equal(get_format(name).quantize(x).parts["blocks"], theirs)


@pytest.mark.parametrize("name", [*LEGACY, *UNLIKE, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_dequantize_agrees_with_the_gguf_package(name):
    x = np.random.default_rng(7).normal(size=(8, 512)).astype(np.float32)
    packed = get_format(name).quantize(x)

    theirs = dequantize(packed.parts["blocks"], GGMLQuantizationType[name])

    assert np.array_equal(get_format(name).dequantize(packed), theirs)


@pytest.mark.parametrize(("name", "value"), [
    ("F16", 7e4), ("BF16", 3.4e38), ("Q4_0", 1e6), ("Q4_K", 1e8),
    ("IQ4_NL", 1e8), ("IQ4_XS", 1e20), ("TQ1_0", 7e4), ("TQ2_0", 7e4), ("Q2_0", 7e4), ("Q1_0", 7e5),
])  # fmt: skip
def test_numbers_beyond_a_types_range_are_refused(name, value):
    with pytest.raises(UnsupportedTensor, match="F32"):
        get_format(name).quantize(np.full(256, value, np.float32) * np.linspace(-1, 1, 256, dtype=np.float32))
