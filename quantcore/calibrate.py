"""Calibration: what a text makes of the inputs of every matrix, collected in one pass.

The importance matrix has the sums of squares that llama-imatrix collects: of the inputs of each matrix of
each layer, over all positions of chunks that do not see each other. No logits are made.

1. llama.cpp, `tools/imatrix` (release 0.5.0-dev).
"""

from __future__ import annotations

import hashlib
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantcore.evaluate.forward import MATRICES, check, watch
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.perplexity import chunked
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.evaluate.weights import Weights
from quantcore.imatrix import Entry, ImportanceMatrix
from quantcore.imatrixfiles import Sums
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source


class _Squares:
    """A watcher that adds up squares."""

    def __init__(self, sums: Sums) -> None:
        self._sums = sums

    def measure(self, _names: tuple[str, ...], x: Floats) -> tuple[npt.NDArray[np.float64], int]:
        """Return the sums of squares of the columns of `x`, float64 `(inputs,)`, and the number of rows."""
        return np.einsum("ij,ij->j", x, x).astype(np.float64), len(x)

    def add(self, names: tuple[str, ...], measured: tuple[npt.NDArray[np.float64], int]) -> None:
        squares, rows = measured
        for name in names:
            self._sums.add(name, squares[None], np.array([rows], dtype=np.float64))

    def add_expert(
        self, names: tuple[str, ...], expert: int, experts: int, measured: tuple[npt.NDArray[np.float64], int]
    ) -> None:
        squares, rows = measured
        for name in names:
            self._sums.add_expert(name, expert, experts, squares, rows)


def importance(
    source: Source,
    text: str,
    dataset: str,
    *,
    digest: str = "",
    n_ctx: int = 512,
    n_chunks: int | None = None,
    threads: int | None = None,
    report: Report = ignore,
) -> Sums:
    """Return the importance matrix of a model on a text, which files will call `dataset`.

    They also hold `digest`, its SHA-256: that of the text as it is given, unless another is known.
    Chunks of `n_ctx` tokens are cut as llama-imatrix does. Raises `ShortText` for a text of fewer than two
    chunks, and what reading the model raises.
    """
    chunks = chunked(source, text, n_ctx, n_chunks)
    sums = Sums(n_ctx, datasets=[dataset], hashes=[digest or hashlib.sha256(text.encode()).hexdigest()])
    watch(source, chunks, _Squares(sums), threads=threads, report=report)
    return sums


def promised(source: Source, given: str, dataset: str) -> ImportanceMatrix:
    """Return what `importance` will find, but for its values: enough to know a file's types and size.

    Files made with it will call it `given`. Raises `InputError` for a model that cannot be run, or whose text
    cannot be turned into tokens.
    """
    weights = Weights(source)
    check(weights)
    load_tokenizer(source)
    names = {f"blk.{n}.{part}.weight" for n in range(weights.shape.layers) for part in MATRICES}
    entries = {
        info.name: Entry(0, info.row_length * prod(info.shape[:-2]), (1.0,))
        for info in source.infos
        if info.name in names
    }
    return ImportanceMatrix(Path(given), given, entries, (dataset,), n_chunks=1)
