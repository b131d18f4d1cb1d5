"""What every block format promises, whichever it is."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantcore.errors import UnknownFormat, UnsupportedTensor
from quantcore.formats import Packed, formats
from quantcore.formats.base import BlockFormat
from tests.quantcore.formats.narrow import NARROW

BLOCK_FORMATS = [fmt for fmt in formats().values() if isinstance(fmt, BlockFormat)]
MAKEABLE = [fmt for fmt in BLOCK_FORMATS if fmt.can_quantize]
READ_ONLY = [fmt for fmt in BLOCK_FORMATS if not fmt.can_quantize]
ROW = 512

every = pytest.mark.parametrize("fmt", MAKEABLE, ids=lambda fmt: fmt.name)
with_and_without_importance = pytest.mark.parametrize("weighted", [False, True], ids=["plain", "importance"])


def weights(rows=9, scale=0.02):
    return (np.random.default_rng(3).normal(size=(rows, ROW)) * scale).astype(np.float32)


def importance(weighted):
    return np.random.default_rng(4).gamma(1.0, size=ROW).astype(np.float32) if weighted else None


def round_trip(fmt, x, calibration=None):
    return fmt.dequantize(fmt.quantize(x, calibration))


@every
@with_and_without_importance
def test_round_trip_error_shrinks_with_the_bits(fmt, weighted):
    """Root mean square error, relative to the weights', stays below three half steps of so many bits."""
    x = weights()

    error = round_trip(fmt, x, importance(weighted)) - x

    floor = 2.0**-7 if fmt.block == 1 else 0.0  # a plain float's bits are not all mantissa
    assert np.sqrt(np.mean(error**2)) <= (3 * 2.0**-fmt.bits + floor) * np.sqrt(np.mean(x**2))


@every
def test_nbytes_is_what_quantize_returns(fmt):
    x = weights().reshape(3, 3, ROW)

    packed = fmt.quantize(x)

    assert packed.nbytes == fmt.nbytes(x.shape) == packed.parts["blocks"].nbytes
    assert packed.parts["blocks"].dtype == np.uint8
    assert packed.parts["blocks"].shape == (9, packed.nbytes // 9)


@every
@with_and_without_importance
def test_zeros_stay_zeros(fmt, weighted):
    assert not round_trip(fmt, np.zeros((2, ROW), np.float32), importance(weighted)).any()


@every
@with_and_without_importance
@pytest.mark.parametrize("value", [1.0, -0.75, 0.05])
def test_constants_come_back(fmt, value, weighted):
    x = np.full((2, ROW), value, np.float32)

    assert np.allclose(round_trip(fmt, x, importance(weighted)), x, rtol=0.02)


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(fmt, value):
    x = weights()
    x[4, 100] = value

    with pytest.raises(UnsupportedTensor, match=fmt.name):
        fmt.quantize(x)


@pytest.mark.parametrize("fmt", [fmt for fmt in BLOCK_FORMATS if fmt.block > 1], ids=lambda fmt: fmt.name)
def test_rows_of_odd_length_are_refused_with_the_tensors_name(fmt):
    with pytest.raises(UnsupportedTensor, match=rf"blk\.0\.attn_k: row of {fmt.block + 1} .* {fmt.name}"):
        fmt.check_shape((4, fmt.block + 1), "blk.0.attn_k")
    with pytest.raises(UnsupportedTensor):
        fmt.nbytes((4, fmt.block + 1))


@every
@with_and_without_importance
def test_kernels_keep_to_the_narrow_namespace(fmt, weighted):
    x, calibration = weights(), importance(weighted)

    packed = fmt.quantize(x, calibration, xp=NARROW)

    assert np.array_equal(packed.parts["blocks"], fmt.quantize(x, calibration).parts["blocks"])
    assert np.array_equal(fmt.dequantize(packed, xp=NARROW), fmt.dequantize(packed))


@every
@with_and_without_importance
def test_tiles_and_threads_change_no_byte(fmt, weighted):
    x, calibration = weights(rows=40), importance(weighted)
    small = type(fmt)(**{**vars(fmt), "tile_weights": 2 * ROW})

    with ThreadPoolExecutor(3) as pool:
        packed = small.quantize(x, calibration, pool=pool)
        values = small.dequantize(packed, pool=pool)

    whole = fmt.quantize(x, calibration)
    assert np.array_equal(packed.parts["blocks"], whole.parts["blocks"])
    assert np.array_equal(values, fmt.dequantize(whole))


@every
def test_half_precision_input_gives_the_bytes_of_the_same_numbers_in_full(fmt):
    half = weights().astype(np.float16)

    ours = fmt.quantize(half).parts["blocks"]

    assert np.array_equal(ours, fmt.quantize(half.astype(np.float32)).parts["blocks"])


@every
def test_the_input_is_left_alone(fmt):
    x = weights()
    before = x.copy()

    fmt.quantize(x)

    assert np.array_equal(x, before)


@every
def test_an_empty_tensor_is_no_bytes(fmt):
    packed = fmt.quantize(np.zeros((0, ROW), np.float32))

    assert packed.nbytes == 0
    assert fmt.dequantize(packed).shape == (0, ROW)


@pytest.mark.parametrize("fmt", READ_ONLY, ids=lambda fmt: fmt.name)
def test_read_only_formats_say_so(fmt):
    with pytest.raises(UnknownFormat, match=f"{fmt.name} can be read but not made"):
        fmt.quantize(weights())


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)
def test_any_bytes_decode_to_float32(fmt):
    """A damaged file yields odd numbers, never a crash."""
    junk = np.random.default_rng(5).integers(0, 256, (3, fmt.nbytes((1, ROW))), dtype=np.uint8)

    values = fmt.dequantize(Packed(fmt.name, (3, ROW), {"blocks": junk}))

    assert values.dtype == np.float32
    assert values.shape == (3, ROW)
