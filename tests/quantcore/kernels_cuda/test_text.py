"""What the text of CUDA kernels tells without a card: it compiles, fuses nothing, and races nowhere."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from quantcore.errors import MissingEngine
from quantcore.formats import formats, get_format
from quantcore.kernels.cuda import CudaKernels, entries, source
from tests.quantcore.kernels_cuda.card import Card, CompileException, Module, compiled, needs_compiler

FILES = sorted({entry.file for entry in entries().values()})
NVCC = shutil.which("nvcc")
every_file = pytest.mark.parametrize("file", FILES)


def run(*command, **options):
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.skipif(NVCC is None, reason="no nvcc to compile CUDA kernels for a card")
@every_file
def test_kernels_compile_for_a_card_and_fuse_nothing(file, tmp_path):
    ptx = tmp_path / "kernels.ptx"
    command = [
        NVCC,
        "-arch=sm_90",
        "-std=c++17",
        "--fmad=false",
        "-Werror",
        "all-warnings",
        "-ptx",
        "-o",
        ptx,
    ]

    done = run(*command, "-x", "cu", "-", input=source(file))

    assert not done.returncode, done.stderr
    text = ptx.read_text()
    assert {entry.function for entry in entries().values() if entry.file == file} <= set(
        re.findall(r"\.entry (\w+)\(", text)
    )
    assert not re.findall(r"\bfma\.|\.ftz|\.approx", text)


def test_a_toolkit_that_cannot_compile_is_named_as_the_reason():
    class Refusing(Module):
        def __init__(self, **_):
            pass

        def compile(self):
            raise CompileException("catastrophic error: no such architecture\nmore")

    card = Card()
    card.RawModule = Refusing

    with pytest.raises(MissingEngine, match=r"iq4\.cu could not be compiled: .*no such architecture$"):
        CudaKernels(card).find("IQ4_NL", weighted=False)


@needs_compiler
@every_file
def test_threads_meet_before_they_share(file, tmp_path):
    """A sanitizer watches three threads; it fails also where the bytes depend on their number."""
    every = entries().items()
    mine = {entry.function: name for (name, _), entry in every if entry.file == file and name in formats()}
    code = f'{source(file)}\n#include "{Path(__file__).with_name("threads.hpp")}"'
    program = compiled(code, "-fsanitize=thread", "-rdynamic")

    for function, name in mine.items():
        tables = get_format(name).tables(xp=np)
        (np.zeros(0, np.int32) if tables is None else tables).tofile(tmp_path / name)
        done = run(program, tmp_path / name, function, timeout=300)

        assert not done.returncode, done.stdout + done.stderr
