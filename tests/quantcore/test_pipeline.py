"""Quantizing a file: right bytes, bounded memory, nothing left behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quantcore import pipeline
from quantcore.errors import (
    Cancelled,
    CannotWrite,
    InputError,
    NotEnoughSpace,
    UnreadableFile,
    UnsupportedTensor,
)
from quantcore.formats import get_format
from quantcore.formats.base import Packed
from quantcore.pipeline import quantize, verify
from quantcore.plan import make_plan
from quantcore.sources.gguf import open_gguf
from tests.quantcore.models import llama_metadata, llama_shapes, small_llama, tensor_infos, write_gguf


@pytest.fixture
def source(tmp_path: Path):
    return open_gguf(small_llama(tmp_path / "small.gguf"))


@pytest.mark.parametrize("level", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q2_K", "Q4_K_M", "Q6_K"])
def test_the_file_is_the_planned_one(source, tmp_path, level):
    """Size and SHA-256 are those of the file, and each tensor decodes to what the format gives alone."""
    plan = make_plan(source, level)
    result = quantize(source, plan, tmp_path / "out.gguf", threads=2)

    data = result.path.read_bytes()
    assert len(data) == plan.file_bytes == result.file_bytes
    assert hashlib.sha256(data).hexdigest() == result.sha256
    verify(result.path, plan)
    written = open_gguf(result.path)
    assert written.get("general.file_type") == plan.file_type
    assert written.get("general.quantization_version") == 2
    assert written.get("general.name") == "Small"


def test_slabs_do_not_change_the_bytes(source, tmp_path, monkeypatch):
    """However a tensor is cut, and on however many threads, the file is the same."""
    plan = make_plan(source, "Q4_K_M")
    whole = quantize(source, plan, tmp_path / "a.gguf", threads=1)
    monkeypatch.setattr(pipeline, "SLAB_WEIGHTS", 256)

    sliced = quantize(source, plan, tmp_path / "b.gguf", threads=3)

    assert whole.sha256 == sliced.sha256


def test_quantized_rows_are_near_the_source(source, tmp_path):
    """Reading the finished file back gives the source's weights within the error of 8 bit."""
    result = quantize(source, make_plan(source, "Q8_0"), tmp_path / "out.gguf")
    name = "blk.1.ffn_down.weight"

    packed = open_gguf(result.path).tensor(name)
    values = get_format("Q8_0").dequantize(Packed("Q8_0", packed.info.shape, {"blocks": packed.read()}))

    original = source.tensor(name).read().astype(np.float32)
    assert np.abs(values - original).max() < np.abs(original).max() / 127


def test_cancelling_leaves_nothing(source, tmp_path):
    def stop(progress):
        if progress.share > 0.3:
            raise Cancelled("stopped")

    before = sorted(tmp_path.iterdir())

    with pytest.raises(Cancelled):
        quantize(source, make_plan(source, "Q4_0"), tmp_path / "out.gguf", report=stop)

    assert sorted(tmp_path.iterdir()) == before


def test_progress_ends_at_all_of_it(source, tmp_path):
    seen = []
    quantize(source, make_plan(source, "Q8_0"), tmp_path / "out.gguf", report=seen.append)

    assert seen[-1].done == seen[-1].total
    assert seen[-1].index == seen[-1].count == len(source.tensors)
    assert [p.done for p in seen] == sorted(p.done for p in seen)


def test_nan_weights_name_file_and_tensor(tmp_path):
    """A source with NaN is refused by tensor, and no file appears."""
    infos = tensor_infos(llama_shapes(layers=1))
    path = write_gguf(tmp_path / "nan.gguf", llama_metadata(layers=1), infos)
    source = open_gguf(path)
    spoiled = source.tensors[5]
    data = bytearray(path.read_bytes())
    at = bytes(data).index(spoiled.read().tobytes()[:64])
    data[at : at + 2] = np.float16(np.nan).tobytes()
    path.write_bytes(data)

    with pytest.raises(UnsupportedTensor, match=rf"nan\.gguf: tensor {spoiled.name}: .*NaN"):
        quantize(source, make_plan(source, "Q4_K_M"), tmp_path / "out.gguf")

    assert not (tmp_path / "out.gguf").exists()


def test_a_source_that_goes_away_is_named(source, tmp_path):
    plan = make_plan(source, "Q8_0")
    source.path.rename(tmp_path / "elsewhere.gguf")

    with pytest.raises(UnreadableFile, match=r"small\.gguf: tensor .* cannot be read: No such file"):
        quantize(source, plan, tmp_path / "out.gguf")


def test_a_full_disk_is_told_before_any_work(source, tmp_path, monkeypatch):
    """When the planned file does not fit, the message has both numbers and nothing is written."""
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("quantcore.atomic.shutil.disk_usage", lambda _path: usage)

    with pytest.raises(NotEnoughSpace, match=r"out\.gguf: needs [\d.]+ MB, .* has 0\.0 MB free"):
        quantize(source, make_plan(source, "Q8_0"), tmp_path / "out.gguf")

    assert not (tmp_path / "out.gguf").exists()


def test_a_file_size_limit_while_writing_leaves_nothing(source, tmp_path):
    """A limit that only the system knows of is the same clear error (a real one, in a process of its own)."""
    code = (
        "import resource, signal, sys; from quantcore.cli import main;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "quantize", source.path, tmp_path / "out.gguf", "--to", "Q8_0"]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "out.gguf: needs" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs Linux' files without a name")
def test_a_killed_process_leaves_nothing(source, tmp_path):
    """kill -9 in the middle of writing leaves neither the file nor a part of it."""
    code = (
        "import os, sys; from pathlib import Path; from quantcore.models import open_model;"
        "from quantcore.plan import make_plan; from quantcore.pipeline import quantize;"
        "s = open_model(Path(sys.argv[1]));"
        "die = lambda p: p.index > 5 and os.kill(os.getpid(), 9);"
        "quantize(s, make_plan(s, 'Q8_0'), Path(sys.argv[2]), report=die)"
    )

    done = subprocess.run([sys.executable, "-c", code, source.path, tmp_path / "out.gguf"], check=False)

    assert done.returncode == -9
    assert [path.name for path in tmp_path.iterdir()] == ["small.gguf"]


def test_verify_names_what_differs(source, tmp_path):
    result = quantize(source, make_plan(source, "Q8_0"), tmp_path / "out.gguf")

    with pytest.raises(UnreadableFile, match=r"planned were|is not what was planned"):
        verify(result.path, make_plan(source, "Q4_0"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux' /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Quantizing 400 MB, most of it in one tensor, takes little more than the program itself."""
    shapes = {
        "token_embd.weight": (300_000, 512),
        "output_norm.weight": (512,),
        "output.weight": (100_000, 512),
    }
    infos = tensor_infos(shapes)
    path = tmp_path / "big.gguf"
    write_gguf(path, llama_metadata(layers=0), infos)
    # VmHWM is this program's own peak; getrusage would count the memory of the test that started it.
    code = (
        "import re, sys; from pathlib import Path; from quantcore.cli import main;"
        "status = main(sys.argv[1:]);"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "quantize", path, tmp_path / "out.gguf", "--to", "Q4_K_M"]

    done = subprocess.run([*command, "--threads", "2"], capture_output=True, text=True, check=True)

    assert int(done.stdout.splitlines()[-1]) * 1024 < 420e6


def test_what_is_no_ordinary_file_is_not_replaced(source, tmp_path):
    """`/dev/null` would be a model for everybody afterwards."""
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InputError, match="pipe: is no ordinary file"):
        quantize(source, make_plan(source, "Q8_0"), tmp_path / "pipe")

    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that lets nobody create files")
def test_what_cannot_be_written_is_told_by_its_own_name(source):
    """Neither an error number nor the hidden name that a file has while it grows."""
    with pytest.raises(CannotWrite, match=r"^/proc/out\.gguf: cannot be written: [A-Z][a-z ]+$"):
        quantize(source, make_plan(source, "Q8_0"), Path("/proc/out.gguf"))


def test_no_file_of_the_source_is_replaced(source):
    with pytest.raises(InputError, match=r"small\.gguf: is a file of the source"):
        quantize(source, make_plan(source, "Q8_0"), source.path)


def test_a_multitude_of_threads_is_cut_to_what_the_cores_can_use(source, tmp_path, monkeypatch):
    """Each thread has slabs in flight, so that their number bounds the memory."""
    asked = []
    real = pipeline.ThreadPoolExecutor
    monkeypatch.setattr(pipeline, "ThreadPoolExecutor", lambda count: asked.append(count) or real(count))

    quantize(source, make_plan(source, "Q8_0"), tmp_path / "out.gguf", threads=100_000)

    assert asked[0] <= 4 * (os.cpu_count() or 1)
