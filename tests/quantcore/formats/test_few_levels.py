"""Blocks worked out by hand of the types with few or uneven levels, and the cases where rounding decides."""

import math
import struct

import numpy as np
import pytest

from quantcore.errors import UnsupportedTensor
from quantcore.formats import get_format
from quantcore.methods.uneven import LEVELS, nearest_codes
from tests.quantcore.kernels import HAVE_NUMBA, compiled


def blocks(name, values, kernels=None):
    return (
        get_format(name).quantize(np.asarray(values, np.float32), kernels=kernels).parts["blocks"].tobytes()
    )


def half(value):
    return struct.pack("<e", value)


@pytest.fixture(
    params=["numpy", pytest.param("jit", marks=pytest.mark.skipif(not HAVE_NUMBA, reason="no numba"))]
)
def kernels(request):
    return compiled() if request.param == "jit" else None


def test_iq4_nl_stores_its_levels_exactly(kernels):
    """Level -127 has the largest magnitude and lands on itself in the try at -127: scale 0.5."""
    values = [level / 2 for level in LEVELS] * 2

    assert blocks("IQ4_NL", values, kernels) == half(0.5) + bytes([code * 17 for code in range(16)])


def test_iq4_xs_scales_by_the_group(kernels):
    """Scales 32, then 16 in steps of -1/32 * 32 = -1: multiples -32 and -16, stored with 32 added."""
    levels = np.array(LEVELS * 2, np.float32)
    values = np.concatenate([levels * 32, *[levels * 16] * 7])

    packed = blocks("IQ4_XS", values, kernels)

    upper = sum(1 << 2 * group for group in range(1, 8))
    codes = bytes([code * 17 for code in range(16)] * 8)
    assert packed == half(-1.0) + struct.pack("<H", upper) + bytes(4) + codes


def test_the_middle_between_two_levels_goes_up():
    middles = np.add(LEVELS[1:], LEVELS[:-1]).astype(np.float32) / 2
    below = np.nextafter(middles, np.float32(-200))

    codes = nearest_codes(np.stack([middles, below]), np.ones(15, np.float32), xp=np)

    assert np.array_equal(codes, [np.arange(1, 16), np.arange(15)])


def test_tq2_0_packs_quarters_and_sends_halves_away_from_zero(kernels):
    """d = 4; -2 and 2 lie half way and become -4 and 4: codes 0 and 2, and 1 for what is below a half."""
    values = np.zeros(256)
    values[[0, 32, 64, 96, 128, 255]] = [4, 2, -2, 1.9, -4, 2]

    packed = blocks("TQ2_0", values, kernels)

    ones = 0b01010101
    expected = [ones] * 64
    expected[0] = 0b01_00_10_10
    expected[32] = 0b01_01_01_00
    expected[63] = 0b10_01_01_01
    assert packed == bytes(expected) + half(4.0)


def test_tq1_0_packs_five_digits_of_base_three(kernels):
    """Zeros are the number 11111 of base 3, 121; the last four bytes hold four digits and end in 0: 120."""
    values = np.zeros(256)
    values[[0, 160, 243]] = [1, -1, 1]  # the first digits of bytes 0 and 32, and of byte 3 of the last four

    packed = blocks("TQ1_0", values, kernels)

    expected = [math.ceil(121 * 256 / 243)] * 48 + [math.ceil(120 * 256 / 243)] * 4
    expected[0] = math.ceil((121 + 81) * 256 / 243)
    expected[32] = math.ceil((121 - 81) * 256 / 243)
    expected[51] = math.ceil((120 + 81) * 256 / 243)
    assert packed == bytes(expected) + half(1.0)


def test_q2_0_packs_four_in_a_row(kernels):
    values = [3.0, -3.0, 0.0, 1.5, *[0.0] * 59, -1.5]

    expected = [0b10_01_00_10, *[0b01010101] * 14, 0b00_01_01_01]
    assert blocks("Q2_0", values, kernels) == half(3.0) + bytes(expected)


def test_q1_0_keeps_signs_and_the_mean_magnitude(kernels):
    """Zero counts as positive, whichever sign it has."""
    values = [-2.0, 2.0, 0.0, -0.0, -4.0, *[2.0] * 123]

    mean = (2 + 2 + 4 + 2 * 123) / 128
    assert blocks("Q1_0", values, kernels) == half(mean) + bytes([0b11101110, *[255] * 15])


def test_mxfp4_rounds_down_half_way(kernels):
    """Peak 6 has the exponent 2: e = 127. 0.25, 1.25 and 5 lie half way between levels."""
    values = np.zeros(32)
    values[:6] = [6, -0.25, 0.26, 1.25, -5, -6]
    values[16:18] = [0.5, -0.75]

    packed = blocks("MXFP4", values, kernels)

    assert packed == bytes([127, 0x17, 0x90, 0x01, 0x02, 0x0E, 0x0F, *[0] * 10])


def test_nvfp4_has_a_scale_for_each_sixteen(kernels):
    """Peak 6 makes the scale 1, 0b0111_000; peak 12 makes 2, 0b1000_000; 1e-5 has no scale and is lost."""
    values = np.zeros(64)
    values[0], values[8], values[16], values[32] = 6, -6, 12, 1e-5

    packed = blocks("NVFP4", values, kernels)

    expected = bytearray(32)
    expected[0], expected[8] = 0xF7, 0x07
    assert packed == bytes([0x38, 0x40, 0, 0]) + bytes(expected)


def test_the_logarithm_of_mxfp4_is_that_of_float32(kernels):
    """Just below a power of two the logarithm rounds up, the more so the larger it is."""
    powers = np.repeat(2.0 ** np.arange(-120, 128), 60)
    peaks = (powers * (1 - np.tile(np.arange(60), 248) * 2.0**-24)).astype(np.float32)
    values = np.zeros((peaks.size, 32), np.float32)
    values[:, 7] = peaks

    packed = get_format("MXFP4").quantize(values, kernels=kernels).parts["blocks"]

    exact = np.log2(peaks.astype(np.float64)).astype(np.float32)
    assert np.array_equal(packed[:, 0], np.floor(exact) + 125)
    assert (np.floor(exact) > np.floor(np.log2(peaks.astype(np.float64)))).any()


def test_mxfp4_refuses_the_scale_that_is_no_number(kernels):
    with pytest.raises(UnsupportedTensor, match="no scale of 8 bits"):
        blocks("MXFP4", [1.5e-38] * 32, kernels)


def test_far_beyond_the_highest_scale_float32_decides(kernels):
    """The scale ends at 448; far enough beyond that all differences are equal, and the lowest level is it."""
    values = np.zeros(64)
    values[0], values[16], values[32] = 1e5, -1e12, 1e7

    packed = blocks("NVFP4", values, kernels)

    assert packed[:4] == bytes([0x7E, 0x7E, 0x7E, 0])
    assert [packed[4], packed[12], packed[20]] == [0x07, 0x00, 0x07]
