"""Rows to the card and back: from every stored type, by several threads, refusing what must be refused."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from quantcore.errors import UnsupportedTensor
from quantcore.formats import get_format, to_float
from quantcore.kernels.cuda.stream import LANES
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.sources.gguf import open_gguf
from quantcore.tensors import TensorInfo
from tests.quantcore.kernels_cuda.card import MACHINES
from tests.quantcore.models import small_llama

ROWS, ROW = 40, 512
on_each_machine = pytest.mark.parametrize("machine", MACHINES)


def stored(kind, rng):
    """Return rows as files store them, and their description."""
    x = rng.normal(size=(ROWS, ROW)).astype(np.float32)
    fmt = get_format("F32" if kind == "F64" else kind)
    rows = fmt.quantize(x).parts["blocks"]
    plain = {"F32": np.float32, "F64": np.float32, "F16": np.float16, "BF16": np.uint16}
    rows = rows.view(plain[kind]) if kind in plain else rows
    return rows.astype(np.float64) if kind == "F64" else rows, TensorInfo("w", x.shape, kind, rows.nbytes)


@on_each_machine
@pytest.mark.parametrize("kind", ["F32", "F64", "F16", "BF16", "Q8_0", "Q4_K"])
@pytest.mark.parametrize("target", ["Q4_K", "IQ4_NL", "F16"])
def test_stored_rows_become_the_blocks_that_numpy_makes(machine, kind, target):
    rng = np.random.default_rng(30)
    rows, info = stored(kind, rng)
    importance = rng.gamma(0.5, size=ROW).astype(np.float32)
    fmt = get_format(target)

    ours = machine().convert_rows(fmt, rows, info, importance)

    assert type(ours) is np.ndarray
    assert (ours == fmt.quantize(to_float(info, rows), importance).parts["blocks"]).all()


@on_each_machine
def test_threads_do_not_disturb_each_other(machine):
    kernels, fmt = machine(), get_format("Q6_K")
    rows, info = stored("F16", np.random.default_rng(31))
    pieces = [rows[start : start + 1 + start % 7] for start in range(ROWS)] * 3

    with ThreadPoolExecutor(2 * LANES) as pool:
        ours = list(pool.map(lambda piece: kernels.convert_rows(fmt, piece, info), pieces))

    whole = fmt.quantize(to_float(info, rows)).parts["blocks"]
    for start, blocks in enumerate(ours):
        first = start % ROWS
        assert (blocks == whole[first : first + len(blocks)]).all()


@on_each_machine
@pytest.mark.parametrize("level", ["Q4_K_M", "IQ3_S", "Q8_0", "BF16"])
def test_a_file_is_the_one_that_numpy_makes(machine, level, tmp_path):
    source = open_gguf(small_llama(tmp_path / "m.gguf"))
    plan = make_plan(source, level)

    ours = quantize(source, plan, tmp_path / "card.gguf", kernels=machine(), threads=3)

    assert ours.sha256 == quantize(source, plan, tmp_path / "numpy.gguf").sha256


@on_each_machine
def test_no_rows_become_no_blocks(machine):
    rows, info = stored("F16", np.random.default_rng(32))

    assert machine().convert_rows(get_format("Q8_0"), rows[:0], info).shape == (0, ROW // 32 * 34)


@on_each_machine
@pytest.mark.parametrize(("value", "reason"), [(np.nan, "NaN"), (-np.inf, "infinite"), (1e20, "too large")])
def test_what_no_block_can_hold_is_refused_and_leaves_the_lanes_free(machine, value, reason):
    kernels, fmt = machine(), get_format("Q4_K")
    rows, info = stored("F32", np.random.default_rng(33))
    bad = rows.copy()
    bad[-1, 7] = value

    for _ in range(LANES + 1):
        with pytest.raises(UnsupportedTensor, match=reason):
            kernels.convert_rows(fmt, bad, info)

    assert (kernels.convert_rows(fmt, rows, info) == fmt.quantize(rows).parts["blocks"]).all()


@on_each_machine
def test_rows_that_are_not_whole_blocks_are_refused_by_name(machine):
    rows = np.zeros((2, 96), np.float32)

    with pytest.raises(UnsupportedTensor, match="w: row of 96 is not a multiple of 256"):
        machine().convert_rows(get_format("Q4_K"), rows, TensorInfo("w", rows.shape, "F32", rows.nbytes))
