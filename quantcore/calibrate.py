"""Calibration: what a text makes of the inputs of every matrix, collected in one pass.

The importance matrix has the sums of squares that llama-imatrix collects: of the inputs of each matrix of
each layer, over all positions of chunks that do not see each other. No logits are made.

Hessians and samples of a large model fill disks where sums of squares fill a page: they go into a folder, a
layer at a time.

1. llama.cpp, `tools/imatrix` (release 0.5.0-dev).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantcore.atomic import AtomicFolder
from quantcore.errors import InputError, NotEnoughSpace
from quantcore.evaluate.forward import check, watch
from quantcore.evaluate.layer import MATRICES
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.perplexity import chunked
from quantcore.evaluate.steps import steps_of
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.evaluate.weights import Weights
from quantcore.imatrix import Entry, ImportanceMatrix
from quantcore.imatrixfiles import Sums
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source
from quantcore.sources.digest import source_digest
from quantcore.states import States
from quantcore.statistics.collection import (
    Collection,
    Input,
    MeasuredText,
    Origin,
    save_index,
    save_layer,
)
from quantcore.statistics.tally import Collect
from quantcore.walk import Stage, walk


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
    device: str = "cpu",
) -> Sums:
    """Return the importance matrix of a model on a text, which files will call `dataset`.

    They also hold `digest`, its SHA-256: that of the text as it is given, unless another is known.
    Chunks of `n_ctx` tokens are cut as llama-imatrix does. Raises `ShortText` for a text of fewer than two
    chunks, and what reading the model raises; `MissingEngine` for the `device` "cuda" without cupy or a card.
    """
    steps = steps_of(device)
    chunks = chunked(source, text, n_ctx, n_chunks)
    sums = Sums(n_ctx, datasets=[dataset], hashes=[digest or hashlib.sha256(text.encode()).hexdigest()])
    watch(source, chunks, _Squares(sums), threads=threads, report=report, steps=steps)
    return sums


def collect(
    source: Source,
    text: str,
    dataset: str,
    folder: Path,
    wanted: Collect,
    *,
    digest: str = "",
    n_ctx: int = 512,
    n_chunks: int | None = None,
    merge: Sequence[Collection] = (),
    threads: int | None = None,
    report: Report = ignore,
) -> Collection:
    """Collect what is `wanted` of the inputs of every matrix into `folder`, which appears when it is whole.

    The text and its chunks are as for `importance`, whose sums are the same. What was collected before of the
    same model, `merge`, is added. Raises `InputError` where the folder exists or a collection does not fit,
    `NotEnoughSpace` as soon as the first layer shows that the rest will not fit on the disk.
    """
    made = AtomicFolder(folder)
    made.require_free()
    weights = Weights(source)
    check(weights)
    chunks = chunked(source, text, n_ctx, n_chunks)
    model = source_digest(source, threads)
    for other in merge:
        other.require(model, wanted)
        if len(other.layers) != weights.shape.layers:
            raise InputError(
                f"{other.path}: has {len(other.layers)} layers of {weights.shape.layers}; collect it anew"
            )
    sha256 = digest or hashlib.sha256(text.encode()).hexdigest()
    texts = [text for other in merge for text in other.origin.texts]
    texts.append(MeasuredText(dataset, sha256, n_ctx, len(chunks)))
    # A sample of two streams is as large as the smaller one.
    samples = min([wanted.samples, *(other.origin.collect.samples for other in merge)])
    origin = Origin(source.architecture, model, tuple(texts), replace(wanted, samples=samples))
    states = States((*chunks.shape, weights.shape.embedding), folder=folder.parent)
    with made as whole:
        writer = _LayerWriter(whole.hidden, origin, merge, weights.shape.layers)
        seed = int(sha256[:16], 16)
        walk(source, chunks, wanted, writer.visit, seed=seed, threads=threads, report=report, states=states)
        save_index(whole.hidden, origin, writer.layers)
        whole.commit()
    return Collection(folder, origin, tuple(writer.layers))


class _LayerWriter:
    """Writes each layer of a walk into a folder, with what others found of it."""

    def __init__(self, folder: Path, origin: Origin, merge: Sequence[Collection], count: int) -> None:
        self._folder, self._origin, self._merge, self._count = folder, origin, merge, count
        self.layers: list[tuple[Input, ...]] = []

    def visit(self, stage: Stage) -> None:
        for other in self._merge:
            other.merge_into(stage.inputs, stage.layer, self._origin.collect)
        nbytes = save_layer(self._folder, stage.layer, self._origin, stage.inputs)
        self.layers.append(tuple(Input(shared.names, shared.tallies[0].width) for shared in stage.inputs))
        if stage.layer == 0:
            self._require_space(nbytes * (self._count - 1))

    def _require_space(self, nbytes: int) -> None:
        """Say before hours of work that there is no room for what is to come of it."""
        free = _free(self._folder)
        if free < nbytes:
            raise NotEnoughSpace(
                f"{self._folder.parent}: the statistics of the other layers need {nbytes / 1e6:,.1f} MB, "
                f"there are {free / 1e6:,.1f} MB free"
            )


def _free(folder: Path) -> int:
    """Return the bytes that the disk of a folder has left."""
    return shutil.disk_usage(folder).free


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
