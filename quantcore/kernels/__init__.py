"""Accelerated kernels: beside the numpy arithmetic of a format, never required, and held to the same bytes.

    lanes       sixteen numbers at a time, the vocabulary of compiled kernels (numba);
                with memory, where they come from, shuffles, which exchange them, and tiles of products
    cpu/        one module per family: the searches, compiled; and the steps of a forward pass, which are
                held to numpy's numbers instead, but for rounding
    library     compiles them once, keeps the machine code on disk, loads it without numba
    cuda/       the same searches as raw CUDA kernels

`Kernels` is what a format asks for its accelerated form.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable


class Kernel(Protocol):
    """Quantize rows of whole blocks; see `quantcore.kernels.lanes.KERNEL`."""

    def __call__(self, values: Any, importance: Any | None, tables: Any | None, out: Any | None) -> None:
        """Fill `out`, uint8 `(n_rows, row_bytes)`, from finite float32 `values` `(n_rows, row_length)`.

        All contiguous; `importance` is float32 `(row_length,)`. Raises `UnsupportedTensor` for values that
        the type cannot hold.
        """


@runtime_checkable
class Addressed(Kernel, Protocol):
    """A kernel that also takes addresses: numpy needs longer to tell one than such a call takes."""

    def at(
        self,
        values: int,
        n_rows: int,
        row_length: int,
        importance: int | None,
        tables: int | None,
        out: int | None,
    ) -> None:
        """The same for arrays that lie in memory where these numbers say."""


class Kernels(Protocol):
    """The accelerated kernels of one backend."""

    @property
    def name(self) -> str:
        """`jit` or `cuda`."""

    def find(self, format_name: str, *, weighted: bool) -> Kernel | None:
        """Return the kernel of a format, or None where numpy has to do."""

    def reader(self, type_name: str) -> Addressed | None:
        """Return what makes float32 of rows as files store them, or None where there is nothing quicker.

        It has the form of a kernel: `values` are the stored rows, `out` takes as many float32 (nothing where
        they are float32 already). Raises `UnsupportedTensor` for NaN and infinite values. Who has readers
        wants rows a tile at a time, few enough to stay in a processor's cache.
        """


@runtime_checkable
class Streamed(Protocol):
    """Kernels with memory of their own: rows go there, become blocks, and come back."""

    def convert_rows(self, fmt: Any, rows: Any, info: Any, importance: Any | None = None) -> Any:
        """Return storage `rows` of the tensor `info` as blocks of `fmt`, uint8 `(rows, row_bytes)`.

        `importance` is float32 `(row_length,)`. May be called by several threads.
        """
