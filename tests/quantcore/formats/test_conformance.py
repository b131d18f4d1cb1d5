"""What every block format promises, whichever it is."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from quantcore.errors import NeedsCalibration, UnknownFormat, UnsupportedTensor
from quantcore.formats import Packed, formats
from quantcore.formats.base import BlockFormat
from tests.quantcore.formats.narrow import NARROW

BLOCK_FORMATS = [fmt for fmt in formats().values() if isinstance(fmt, BlockFormat)]
MAKEABLE = [fmt for fmt in BLOCK_FORMATS if fmt.can_quantize]
ROW = 512
# Types for models trained with two or three levels: other weights fare as badly as their scales are simple.
TRAINED = [fmt for fmt in MAKEABLE if fmt.name in {"TQ1_0", "TQ2_0", "Q1_0", "Q2_0"}]
# How well a constant comes back where scales have eight bits: to a power of two, and to a sixteenth.
COARSE_SCALES = {"MXFP4": 0.25, "NVFP4": 0.0625}
# Types whose groups are points of a grid, which need not have one of eight equal levels.
GRIDS = [fmt for fmt in MAKEABLE if fmt.name.startswith(("IQ1", "IQ2", "IQ3"))]
CALIBRATED = [fmt for fmt in MAKEABLE if fmt.needs_calibration]


def ways(made):
    """Parametrize over formats, each without importance where that is possible, and with it."""
    cases = [
        (fmt, weighted) for fmt in made for weighted in (False, True) if weighted or fmt not in CALIBRATED
    ]
    names = [f"{fmt.name}-{'importance' if weighted else 'plain'}" for fmt, weighted in cases]
    return pytest.mark.parametrize(("fmt", "weighted"), cases, ids=names)


every = pytest.mark.parametrize("fmt", MAKEABLE, ids=lambda fmt: fmt.name)
with_and_without_importance = ways(MAKEABLE)


def weights(rows=9, scale=0.02):
    return (np.random.default_rng(3).normal(size=(rows, ROW)) * scale).astype(np.float32)


def importance(weighted):
    return np.random.default_rng(4).gamma(1.0, size=ROW).astype(np.float32) if weighted else None


def quantize(fmt, x):
    """Quantize without importance where that is possible."""
    return fmt.quantize(x, importance(fmt.needs_calibration))


def round_trip(fmt, x, calibration=None):
    return fmt.dequantize(fmt.quantize(x, calibration))


@ways([fmt for fmt in MAKEABLE if fmt not in TRAINED])
def test_round_trip_error_shrinks_with_the_bits(fmt, weighted):
    """Root mean square error, relative to the weights', stays below three half steps of so many bits."""
    x = weights()

    error = round_trip(fmt, x, importance(weighted)) - x

    floor = 2.0**-7 if fmt.block == 1 else 0.0  # a plain float's bits are not all mantissa
    assert np.sqrt(np.mean(error**2)) <= (3 * 2.0**-fmt.bits + floor) * np.sqrt(np.mean(x**2))


@every
def test_nbytes_is_what_quantize_returns(fmt):
    x = weights().reshape(3, 3, ROW)

    packed = quantize(fmt, x)

    assert packed.nbytes == fmt.nbytes(x.shape) == packed.parts["blocks"].nbytes
    assert packed.parts["blocks"].dtype == np.uint8
    assert packed.parts["blocks"].shape == (9, packed.nbytes // 9)


@with_and_without_importance
def test_zeros_stay_zeros(fmt, weighted):
    assert not round_trip(fmt, np.zeros((2, ROW), np.float32), importance(weighted)).any()


@ways([fmt for fmt in MAKEABLE if fmt not in GRIDS])
@pytest.mark.parametrize("value", [1.0, -0.75, 0.05])
def test_constants_come_back(fmt, value, weighted):
    x = np.full((2, ROW), value, np.float32)

    assert np.allclose(round_trip(fmt, x, importance(weighted)), x, rtol=COARSE_SCALES.get(fmt.name, 0.02))


@pytest.mark.parametrize("fmt", TRAINED, ids=lambda fmt: fmt.name)
def test_weights_on_the_levels_come_back(fmt):
    rng = np.random.default_rng(9)
    scales = np.repeat(2.0 ** rng.integers(-9, 3, (6, ROW // fmt.block)), fmt.block, axis=1)
    signs = rng.choice([-1, 1] if fmt.name == "Q1_0" else [-1, 0, 1], (6, ROW))
    x = (signs * scales).astype(np.float32)

    assert np.array_equal(round_trip(fmt, x), x)


@every
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(fmt, value):
    x = weights()
    x[4, 100] = value

    with pytest.raises(UnsupportedTensor, match="NaN or infinite"):
        quantize(fmt, x)


@pytest.mark.parametrize("fmt", [fmt for fmt in BLOCK_FORMATS if fmt.block > 1], ids=lambda fmt: fmt.name)
def test_rows_of_odd_length_are_refused_with_the_tensors_name(fmt):
    with pytest.raises(UnsupportedTensor, match=rf"blk\.0\.attn_k: row of {fmt.block + 1} .* {fmt.name}"):
        fmt.check_shape((4, fmt.block + 1), "blk.0.attn_k")
    with pytest.raises(UnsupportedTensor):
        fmt.nbytes((4, fmt.block + 1))


@with_and_without_importance
def test_kernels_keep_to_the_narrow_namespace(fmt, weighted):
    x, calibration = weights(), importance(weighted)

    packed = fmt.quantize(x, calibration, xp=NARROW)

    assert np.array_equal(packed.parts["blocks"], fmt.quantize(x, calibration).parts["blocks"])
    assert np.array_equal(fmt.dequantize(packed, xp=NARROW), fmt.dequantize(packed))


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

    ours = quantize(fmt, half).parts["blocks"]

    assert np.array_equal(ours, quantize(fmt, half.astype(np.float32)).parts["blocks"])


@every
def test_the_input_is_left_alone(fmt):
    x = weights()
    before = x.copy()

    quantize(fmt, x)

    assert np.array_equal(x, before)


@every
def test_an_empty_tensor_is_no_bytes(fmt):
    packed = quantize(fmt, np.zeros((0, ROW), np.float32))

    assert packed.nbytes == 0
    assert fmt.dequantize(packed).shape == (0, ROW)


def test_read_only_formats_say_so():
    with pytest.raises(UnknownFormat, match="Q8_0 can be read but not made"):
        replace(formats()["Q8_0"], can_quantize=False).quantize(weights())


@pytest.mark.parametrize("fmt", CALIBRATED, ids=lambda fmt: fmt.name)
def test_formats_that_need_importance_refuse_without_by_name(fmt):
    with pytest.raises(NeedsCalibration, match=fmt.name):
        fmt.quantize(weights())


@pytest.mark.parametrize("fmt", BLOCK_FORMATS, ids=lambda fmt: fmt.name)
def test_any_bytes_decode_to_float32(fmt):
    """A damaged file yields odd numbers, never a crash."""
    junk = np.random.default_rng(5).integers(0, 256, (3, fmt.nbytes((1, ROW))), dtype=np.uint8)

    values = fmt.dequantize(Packed(fmt.name, (3, ROW), {"blocks": junk}))

    assert values.dtype == np.float32
    assert values.shape == (3, ROW)
