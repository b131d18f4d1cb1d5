"""A stand-in for cupy and a card: numpy's arrays, and the very text of the kernels compiled as C++.

Kernels are rows of phases whose work items loop over the threads, so one thread computes what many do. What
this leaves untested is what only a card has; the tests marked `gpu` are for that.
"""

import ctypes
import os
import shutil
import subprocess
from functools import cache
from hashlib import sha256
from pathlib import Path
from threading import Lock
from types import SimpleNamespace

import numpy as np
import pytest

from quantcore.arrays import to_host
from quantcore.errors import MissingEngine
from quantcore.kernels.cuda import CudaKernels
from quantcore.kernels.library import cache_root

COMPILER = shutil.which("g++") or shutil.which("clang++")
SHIM = Path(__file__).with_name("host.hpp")
needs_compiler = pytest.mark.skipif(
    COMPILER is None, reason="no C++ compiler to run CUDA kernels without a card"
)
FLAGS = ("-std=c++20", "-O2", "-ffp-contract=off", "-w")


def compiled(code, *flags):
    """Compile CUDA text as C++, unless that was done, and return the path of what came out."""
    text = f'#include "{SHIM}"\n{code}'
    key = sha256("".join((SHIM.read_text(), text, *flags)).encode()).hexdigest()[:16]
    path = cache_root() / "cuda-on-host" / key
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        command = [COMPILER, *FLAGS, *flags, "-x", "c++", "-o", part, "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr
        part.rename(path)
    return path


def as_c(argument):
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous
        return ctypes.c_void_p(argument.ctypes.data)
    return {"int32": ctypes.c_int, "int64": ctypes.c_longlong, "uint64": ctypes.c_void_p}[
        argument.dtype.name
    ](int(argument))


class Module:
    """What cupy.RawModule is here."""

    def __init__(self, code, options, backend):
        assert "--fmad=false" in options
        assert backend == "nvrtc"
        self._library = ctypes.CDLL(str(compiled(code, "-shared", "-fPIC")))
        self._lock = Lock()
        self._block = ctypes.c_int.in_dll(self._library, "blockIdx")

    def compile(self):
        pass

    def get_function(self, name):
        function = getattr(self._library, name)

        def launch(grid, block, arguments):
            assert len(grid) == len(block) == 1
            with self._lock:  # what threads of a CUDA block share is there once only
                for number in range(grid[0]):
                    self._block.value = number
                    function(*map(as_c, arguments))

        return launch


class CompileException(Exception):
    """What cupy raises for text that its compiler refuses."""


class Array(np.ndarray):
    """What cupy.ndarray is here: it says itself how its bytes come and go."""

    def set(self, host):
        self[...] = host

    def get(self, out=None, *, blocking=True):
        if out is None:
            return np.array(self)
        assert not blocking
        out[...] = self
        return out


class Pinned(bytearray):
    size = bytearray.__len__


class Stream:
    """What cupy.cuda.Stream is here; nothing is ever under way."""

    def __init__(self, *, non_blocking):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def synchronize(self):
        pass


class Card:
    """What the module cupy is here."""

    RawModule = Module
    cuda = SimpleNamespace(
        Stream=Stream,
        alloc_pinned_memory=Pinned,
        compiler=SimpleNamespace(CompileException=CompileException),
    )

    def empty(self, shape, dtype):
        return np.full(shape, 85, dtype).view(Array)

    def zeros(self, shape, dtype):
        return np.zeros(shape, dtype).view(Array)

    def __getattr__(self, name):
        return getattr(np, name)


@cache
def emulated():
    """Return the kernels of the stand-in."""
    return CudaKernels(Card())


@cache
def on_card():
    """Return the kernels of a real card; skip where there is none."""
    try:
        return CudaKernels()
    except MissingEngine as exc:
        pytest.skip(str(exc))


MACHINES = [
    pytest.param(emulated, id="host", marks=needs_compiler),
    pytest.param(on_card, id="card", marks=pytest.mark.gpu),
]


def quantize(fmt, x, weights, kernels=None):
    """Return blocks as numpy, made by kernels on their machine or by numpy without."""
    if kernels is None:
        return fmt.quantize(x, weights).parts["blocks"]
    xp = kernels.xp
    weights = None if weights is None else xp.asarray(weights)
    return to_host(fmt.quantize(xp.asarray(x), weights, xp=xp, kernels=kernels).parts["blocks"])
