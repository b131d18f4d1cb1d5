"""Importance matrices as sums, from several measurements if need be, and the files they are written to.

Both kinds of file hold what llama-imatrix writes for the same sums, and the newer one the hashes of texts.
Their layouts are in `quantcore.imatrix`.

1. llama.cpp, `tools/imatrix` (release 0.5.0-dev).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantcore.atomic import AtomicFile
from quantcore.containers.gguf import GGUFSink
from quantcore.errors import InputError
from quantcore.ggufkv import Value, ValueType, array, string, u32
from quantcore.imatrix import COUNTS, KEYS, SUMS, ImportanceMatrix
from quantcore.tensors import TensorInfo

Doubles = npt.NDArray[np.float64]

HASHES = "imatrix.datasets.sha256"
LEGACY = ".dat"
MOST = 2**31  # inputs, counted in 32 bits


def require_same_model(other: ImportanceMatrix, expected: ImportanceMatrix) -> None:
    """Raise `InputError` where a file has entries of other sizes than `expected`, or none of them."""
    for name, entry in other.entries.items():
        wanted = expected.entries.get(name)
        if wanted is not None and wanted.n_values != entry.n_values:
            raise InputError(
                f"{other.path}: {name} has {entry.n_values} values, the model's {wanted.n_values}; it was "
                "made for another model"
            )
    if not other.entries.keys() & expected.entries.keys():
        raise InputError(f"{other.path}: has no entry of this model's; it was made for another one")


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


@dataclass
class Sums:
    """Sums of the squared inputs of each column of weights, by the weights' names.

    `values` are float64 `(n_matrices, row_length)`, `counts` float64 `(n_matrices,)`: how many inputs were
    summed, for a stack of experts of each. `chunk_size` tokens make a chunk; `datasets` name the texts, and
    `hashes` are their SHA-256 where these are known, else empty.
    """

    chunk_size: int
    values: dict[str, Doubles] = field(default_factory=dict)
    counts: dict[str, Doubles] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)

    @property
    def n_chunks(self) -> int:
        """Return how many chunks were measured: what the weights that were used most have seen."""
        most = max((float(counts.max()) for counts in self.counts.values()), default=0.0)
        return int(most) // self.chunk_size

    def add(self, name: str, values: npt.NDArray[np.floating], counts: npt.NDArray[np.floating]) -> None:
        """Add sums `(n_matrices, row_length)` of `counts` `(n_matrices,)` inputs to those of a weight.

        Raises `InputError` naming the weight where it was of another size before.
        """
        if name not in self.values:
            self.values[name] = np.zeros(values.shape)
            self.counts[name] = np.zeros(len(counts))
        if self.values[name].shape != values.shape:
            before = "x".join(map(str, self.values[name].shape))
            raise InputError(f"{name}: sums of {'x'.join(map(str, values.shape))} columns, {before} before")
        self.values[name] += values
        self.counts[name] += counts

    def add_expert(self, name: str, expert: int, experts: int, values: Doubles, count: float) -> None:
        """Add sums `(row_length,)` of `count` inputs to those of one of `experts` matrices of a weight."""
        if name not in self.values:
            self.values[name] = np.zeros((experts, len(values)))
            self.counts[name] = np.zeros(experts)
        self.values[name][expert] += values
        self.counts[name][expert] += count

    def merge(self, other: ImportanceMatrix) -> None:
        """Add what a file holds; raises `InputError` where it was made for another model."""
        for name in other.entries:
            values, counts = other.sums(name, self.chunk_size)
            known = self.values.get(name)
            if known is not None and known.size == values.size:  # one count may stand for a whole stack
                if len(counts) == 1:
                    values, counts = values.reshape(known.shape), counts.repeat(len(known))
                elif len(known) == 1:
                    self.values[name] = known.reshape(values.shape)
                    self.counts[name] = self.counts[name].repeat(len(counts))
            try:
                self.add(name, values, counts)
            except InputError as exc:
                raise InputError(f"{other.path}: {exc}; it was made for another model") from None
        # Its own stay last, as llama-imatrix has it: the first one is what files made with it name.
        self.datasets[-1:-1] = other.datasets
        self.hashes[-1:-1] = ["" for _ in other.datasets]

    def save(self, path: Path) -> None:
        """Write the file, of the older kind if its name ends in `.dat`; it appears whole or not at all.

        Raises `InputError` naming a weight whose sums are no numbers.
        """
        for name, values in self.values.items():
            if not (np.abs(values) <= np.finfo(np.float32).max).all():  # NaN is not, either
                raise InputError(f"{name}: its inputs are no finite numbers; the model must be damaged")
            if not self.counts[name].max() < MOST:
                raise InputError(f"{name}: more than {MOST} inputs were summed, which no file can say")
        if path.suffix == LEGACY:
            self._save_legacy(path)
        else:
            self._save_gguf(path)

    def _save_gguf(self, path: Path) -> None:
        metadata: dict[str, Value] = {
            "general.type": string("imatrix"),
            KEYS[0]: array(ValueType.STRING, self.datasets),
            KEYS[1]: u32(self.n_chunks),
            KEYS[2]: u32(self.chunk_size),
        }
        if any(self.hashes):
            metadata[HASHES] = array(ValueType.STRING, self.hashes)
        infos, data = [], []
        for name in sorted(self.values, key=_raw):
            for end, numbers in ((SUMS, self.values[name]), (COUNTS, self.counts[name][:, None])):
                infos.append(TensorInfo(name + end, numbers.shape, "F32", 4 * numbers.size))
                data.append(numbers)
        with GGUFSink(path, metadata, infos) as sink:
            for info, numbers in zip(infos, data, strict=True):
                sink.write(info.name, numbers.astype("<f4").tobytes())
            sink.commit()

    def _save_legacy(self, path: Path) -> None:
        """A column of no input counts 1 there, and a weight of no input is left out."""
        kept = [name for name in sorted(self.values, key=_raw) if self.counts[name].any()]
        parts = [struct.pack("<i", len(kept))]
        for name in kept:
            values, counts = self.values[name], self.counts[name][:, None]  # (n_matrices, 1)
            calls = -(-int(counts.max()) // self.chunk_size)
            means = np.divide(values, counts, out=np.ones_like(values), where=counts > 0)
            raw = _raw(name)
            parts.append(struct.pack("<i", len(raw)) + raw + struct.pack("<ii", calls, values.size))
            parts.append((means * calls).astype("<f4").tobytes())
        text = _raw(self.datasets[-1] if self.datasets else "")
        parts.append(struct.pack("<ii", self.n_chunks, len(text)) + text)
        file = AtomicFile(path, sum(map(len, parts)))
        file.open()
        try:
            for part in parts:
                file.write(part)
            file.commit()
        finally:
            file.discard()
