"""What does the arithmetic of quantizing: numpy, compiled kernels, or a CUDA card. The bytes are the same.

numpy   always there
jit     kernels compiled for this processor, several times faster; needs numba to be compiled
cuda    a CUDA card, through cupy
auto    the compiled kernels if they are built, otherwise numpy
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quantcore.errors import MissingEngine
from quantcore.kernels import Kernels, library

BACKENDS = ("auto", "numpy", "jit", "cuda")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Backend:
    """A backend by name, with its accelerated kernels; numpy has none. `hint` says what would be quicker."""

    name: str
    kernels: Kernels | None = None
    hint: str = ""


NUMPY = Backend("numpy")
UNCOMPILED = Backend("numpy", hint="made by numpy; `quantcore kernels --build` makes it several times faster")


def choose(name: str, say: Say = lambda _text: None) -> Backend:
    """Return the backend called `name`; `say` is told of what takes long.

    Raises `MissingEngine` for one whose packages or device are missing. `jit` compiles its kernels first
    where that was not done yet; `auto` never does.
    """
    if name == "jit":
        return Backend("jit", compile_kernels(say))
    if name == "cuda":
        from quantcore.kernels.cuda import CudaKernels

        return Backend("cuda", CudaKernels())
    if name == "auto":
        return _best_there_is()
    if name not in BACKENDS:
        raise MissingEngine(f"no backend is called {name!r}; there are {', '.join(BACKENDS)}")
    return NUMPY


def _best_there_is() -> Backend:
    try:
        kernels = library.load()
    except MissingEngine as exc:  # compiled kernels are never required
        return Backend("numpy", hint=f"made by numpy: {exc}")
    if kernels is not None:
        return Backend("jit", kernels)
    return UNCOMPILED if kernels_missing() else NUMPY


def kernels_missing() -> bool:
    """Return whether kernels could be compiled here and were not yet."""
    return library.can_build() and not library.is_built()


def wait_for_kernels() -> None:
    """Return once nobody on this machine compiles kernels for this cache."""
    library.wait()


def compile_kernels(say: Say = lambda _text: None) -> library.Library:
    """Return the compiled kernels; compile them first, and hold them to numpy's bytes, where there are none.

    Raises `MissingEngine` without numba.
    """
    from quantcore.proving import unfit

    return library.build(say, unfit)
