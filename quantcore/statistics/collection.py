"""Statistics of all inputs of a model in a folder: an index, and a file for each layer.

`calibration.json` says what was collected, of which model (by a hash of what it computes) and of which texts
(by their SHA-256), and which matrices of each layer share an input. Every `layer-NNNNN.safetensors` repeats
the origin, so that files of two folders cannot be mixed up. One layer is in memory at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from quantcore.atomic import AtomicFile
from quantcore.errors import InputError, UnreadableFile
from quantcore.imatrixfiles import Sums
from quantcore.sources.jsonfiles import parse_object, read_object
from quantcore.sources.safetensors import read_header, read_metadata
from quantcore.statistics import layerfiles
from quantcore.statistics.layerfiles import LayerReader
from quantcore.statistics.tally import Collect, Shared

T = TypeVar("T")

INDEX, VERSION = "calibration.json", 1


@dataclass(frozen=True)
class MeasuredText:
    """A text that was measured: its name and SHA-256, and the `chunks` of `n_ctx` tokens cut of it."""

    name: str
    sha256: str
    n_ctx: int
    chunks: int


@dataclass(frozen=True)
class Origin:
    """What statistics are of: a model by its family and `source_digest`, texts, and what was collected."""

    architecture: str
    model_sha256: str
    texts: tuple[MeasuredText, ...]
    collect: Collect

    def document(self) -> dict[str, Any]:
        """Return it as it stands in files."""
        return {"version": VERSION, **asdict(self), "texts": [asdict(text) for text in self.texts]}


@dataclass(frozen=True)
class Input:
    """The names of matrices that share an input, and its width."""

    names: tuple[str, ...]
    width: int


@dataclass(frozen=True)
class Collection:
    """Statistics in the folder `path`; `layers` lists the inputs of each layer."""

    path: Path
    origin: Origin
    layers: tuple[tuple[Input, ...], ...]

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the index and the file of each layer."""
        return (self.path / INDEX, *(layer_path(self.path, index) for index in range(len(self.layers))))

    def layer(self, index: int, wanted: Collect | None = None) -> tuple[Shared, ...]:
        """Return what was found of the inputs of a layer, or as much of it as is `wanted`.

        Raises `UnreadableFile` for a damaged file, `InputError` where something wanted was not collected.
        """
        collected = self.origin.collect
        if wanted is not None:
            self.require(self.origin.model_sha256, wanted)
            collected = replace(wanted, samples=collected.samples if wanted.samples else 0)
        path = layer_path(self.path, index)
        said = read_metadata(path).get("calibration", "null")
        if parse_object(said.encode(), f"{path}: its origin is") != self.origin.document():
            raise UnreadableFile(f"{path}: is of another model, text or collection than {INDEX} says")
        reader = LayerReader.opened(path, collected)
        return tuple(reader.shared(each.names, each.width) for each in self.layers[index])

    def require(self, model_sha256: str, wanted: Collect) -> None:
        """Raise `InputError` where this is of another model, or lacks some of what is `wanted`."""
        if self.origin.model_sha256 != model_sha256:
            raise InputError(f"{self.path}: was made for another model")
        had = asdict(self.origin.collect)
        lacking = [field for field, asked in asdict(wanted).items() if asked and not had[field]]
        if lacking:
            raise InputError(f"{self.path}: has no {' and no '.join(lacking)}; collect it anew")

    def merge_into(self, inputs: tuple[Shared, ...], index: int, wanted: Collect) -> None:
        """Add what is `wanted` of what was found of a layer's inputs to the same `inputs` of another."""
        found = {shared.names: shared.tallies for shared in self.layer(index, wanted)}
        for shared in inputs:
            theirs = found.get(shared.names, ())
            if [it.width for it in theirs] != [it.width for it in shared.tallies]:
                raise InputError(f"{self.path}: {shared.stem} is not what the model has; collect it anew")
            for tally, more in zip(shared.tallies, theirs, strict=True):
                tally.merge(more)

    def sums(self) -> Sums:
        """Return the importance matrix; raises `InputError` where it was not collected."""
        texts = self.origin.texts
        sums = Sums(texts[-1].n_ctx, datasets=[it.name for it in texts], hashes=[it.sha256 for it in texts])
        for index in range(len(self.layers)):
            for shared in self.layer(index, Collect(importance=True)):
                squares = np.stack([tally.squares for tally in shared.tallies if tally.squares is not None])
                counts = np.array([tally.rows for tally in shared.tallies], dtype=np.float64)
                for name in shared.names:
                    sums.add(name, squares, counts)
        return sums


def layer_path(folder: Path, index: int) -> Path:
    """Return the file of a layer."""
    return folder / f"layer-{index:05d}.safetensors"


def save_layer(folder: Path, index: int, origin: Origin, inputs: tuple[Shared, ...]) -> int:
    """Write the file of one layer; return its size in bytes."""
    shares = {shared.stem: shared.names for shared in inputs}
    metadata = {"calibration": json.dumps(origin.document()), "shares": json.dumps(shares)}
    return layerfiles.save_layer(layer_path(folder, index), metadata, inputs)


def save_index(folder: Path, origin: Origin, layers: Iterable[Iterable[Input]]) -> None:
    """Write the index: the last file, since it tells that all others are there."""
    document = {**origin.document(), "layers": [[asdict(each) for each in layer] for layer in layers]}
    raw = json.dumps(document, indent=1).encode()
    file = AtomicFile(folder / INDEX, len(raw))
    file.open()
    try:
        file.write(raw)
        file.commit()
    finally:
        file.discard()


def open_collection(path: Path) -> Collection:
    """Open the statistics in a folder; raises `UnreadableFile` naming the file and what is wrong with it.

    Of each layer only the header is looked at; its numbers are when they are read.
    """
    document = read_object(path / INDEX)
    try:
        found = Collection(path, _origin(document), tuple(map(_inputs, document["layers"])))
    except (KeyError, TypeError, ValueError, AttributeError, InputError) as exc:
        raise UnreadableFile(f"{path / INDEX}: not the index of a calibration: {exc!r}") from exc
    for index in range(len(found.layers)):
        read_header(layer_path(path, index))
    return found


def _origin(document: dict[str, Any]) -> Origin:
    if document["version"] != VERSION:
        raise ValueError(f"version {document['version']}, not {VERSION}")
    texts = tuple(
        MeasuredText(
            _of(str, text["name"]), _of(str, text["sha256"]), _count(text["n_ctx"]), _count(text["chunks"])
        )
        for text in document["texts"]
    )
    if not texts or not document["layers"]:
        raise ValueError("no texts or no layers")
    asked = document["collect"]
    collect = Collect(
        importance=_of(bool, asked["importance"]),
        hessians=_of(bool, asked["hessians"]),
        activations=_of(bool, asked["activations"]),
        samples=_of(int, asked["samples"]),
    )
    return Origin(_of(str, document["architecture"]), _of(str, document["model_sha256"]), texts, collect)


def _inputs(layer: list[dict[str, Any]]) -> tuple[Input, ...]:
    inputs = tuple(
        Input(tuple(_of(str, name) for name in each["names"]), _count(each["width"])) for each in layer
    )
    names = [name for each in inputs for name in each.names]
    if not names or not all(each.names for each in inputs) or len(set(names)) < len(names):
        raise ValueError("a layer has no inputs, an input no names, or a name two inputs")
    return inputs


def _count(value: Any) -> int:
    """Return a whole number of one or more."""
    if _of(int, value) < 1:
        raise ValueError(f"{value} is less than 1")
    return int(value)


def _of(kind: type[T], value: Any) -> T:
    """Return a value of JSON that is of a kind."""
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value
