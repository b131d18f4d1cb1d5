"""How much each tensor of a model suffers from each type, as measured on a text.

For each tensor two things are measured: what one type, the probe, does alone to the predictions of the whole
model (KL divergence, nats per token), and the weighted squared error of every type it may have. Rounding
errors are small, so that the divergence they make grows with their square: that of another type is the
probe's times the ratio of their errors, and those of several tensors add up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from quantcore.atomic import AtomicFile
from quantcore.cores import usable_threads
from quantcore.errors import InputError, UnreadableFile, UnsupportedTensor, UselessPredictions
from quantcore.evaluate.changed import Rounding
from quantcore.evaluate.effects import effects
from quantcore.evaluate.losses import errors, rounded
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.perplexity import chunked
from quantcore.formats import formats
from quantcore.imatrix import ImportanceMatrix
from quantcore.kernels import Kernels
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source
from quantcore.tensorrules import FALLBACK, needs_imatrix, why_kept
from quantcore.tensors import TensorInfo

VERSION = 1
N_CHUNKS = 2
# About the error of the sizes that people ask for; larger ones are told from it by their ratio.
PROBE, LAST_PROBE = "IQ3_S", "Q8_0"


@dataclass(frozen=True)
class Sensitivity:
    """One tensor: the `divergence` that `probe` makes alone, and the relative squared `errors` by type."""

    name: str
    shape: tuple[int, ...]
    probe: str
    divergence: float
    errors: Mapping[str, float]

    def cost(self, kind: str) -> float:
        """Return the KL divergence in nats per token to expect of this tensor as `kind`."""
        at_probe = self.errors[self.probe]
        return max(0.0, self.divergence) * self.errors[kind] / at_probe if at_probe else 0.0


@dataclass(frozen=True)
class Sensitivities:
    """All tensors of a model that can be quantized, and what they were measured on.

    `dataset` names the text, `sha256` is its digest, `imatrix` the importance matrix's name or empty.
    """

    tensors: tuple[Sensitivity, ...]
    dataset: str
    sha256: str
    n_ctx: int
    chunks: int
    imatrix: str = ""

    def by_name(self) -> dict[str, Sensitivity]:
        return {tensor.name: tensor for tensor in self.tensors}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document; shapes turn to GGUF order, row length first."""
        document = {"quantcore.sensitivity": VERSION, **asdict(self)}
        document["tensors"] = [
            {**asdict(tensor), "shape": list(reversed(tensor.shape))} for tensor in self.tensors
        ]
        return document

    def save(self, path: Path) -> None:
        """Write the JSON document at `path`, whole or not at all."""
        data = json.dumps(self.to_json(), indent=1).encode() + b"\n"
        file = AtomicFile(path, len(data))
        file.open()
        try:
            file.write(data)
            file.commit()
        finally:
            file.discard()


def measure(
    source: Source,
    text: str,
    dataset: str,
    digest: str,
    *,
    imatrix: ImportanceMatrix | None = None,
    n_ctx: int = 512,
    n_chunks: int = N_CHUNKS,
    kernels: Kernels | None = None,
    threads: int | None = None,
    report: Report = ignore,
) -> Sensitivities:
    """Measure a model on a text, called `dataset`, whose SHA-256 is `digest`.

    Raises what reading the model and cutting the text raise (see `perplexity.chunked`), `UnsupportedTensor`
    naming a tensor with values that no type can hold, and `UselessPredictions` for a damaged model.
    """
    tokens = chunked(source, text, n_ctx, n_chunks)
    studies = _studies(source, imatrix, kernels, threads)
    roundings = {study.info.name: study.rounding(imatrix, kernels) for study in studies}
    found = effects(source, tokens, roundings, threads=threads, report=report)
    if not all(map(isfinite, found.values())):
        raise UselessPredictions(
            f"{source.path}: the model's predictions are no numbers; its weights or hyperparameters must be "
            "damaged"
        )
    return Sensitivities(
        tuple(
            Sensitivity(info.name, info.shape, study.probe, found[info.name], study.errors)
            for study in studies
            if (info := study.info).name in found
        ),
        dataset=dataset,
        sha256=digest,
        n_ctx=n_ctx,
        chunks=len(tokens),
        imatrix=imatrix.given if imatrix else "",
    )


@dataclass(frozen=True)
class _Study:
    """A tensor of the model at `path`: its former name, the probe of its effect, and its errors by type."""

    path: Path
    info: TensorInfo
    former: str
    probe: str
    errors: Mapping[str, float]

    def rounding(self, imatrix: ImportanceMatrix | None, kernels: Kernels | None) -> Rounding:
        """Return what rounds values of the tensor to the probe. Importance is read when it is needed."""

        def rounding(values: Floats) -> Floats:
            importance = imatrix.get(self.former, self.info.shape) if imatrix else None
            with _named(self.path, self.info):
                return rounded(values, self.probe, importance, kernels)

        return rounding


def _studies(
    source: Source, imatrix: ImportanceMatrix | None, kernels: Kernels | None, threads: int | None
) -> list[_Study]:
    studies = []
    with ThreadPoolExecutor(usable_threads(threads)) as pool:
        for tensor in source.tensors:
            info = tensor.info
            if why_kept(info.name, info.shape, source.architecture):
                continue
            former = source.former_names.get(info.name, info.name)
            importance = imatrix.get(former, info.shape) if imatrix else None
            kinds = candidates(info, weighted=importance is not None)
            with _named(source.path, info):
                lost = errors(tensor, kinds, importance, kernels=kernels, pool=pool)
            studies.append(_Study(source.path, info, former, _probe(lost), lost))
    return studies


@contextmanager
def _named(path: Path, info: TensorInfo) -> Iterator[None]:
    """Give an error about a tensor's values the tensor's name."""
    try:
        yield
    except UnsupportedTensor as exc:
        raise UnsupportedTensor(f"{path}: tensor {info.name}: {exc}") from exc


def candidates(info: TensorInfo, *, weighted: bool) -> list[str]:
    """Return the types that a tensor may have: its own, and those of whole blocks to a row, given importance
    where they need it.
    """
    return [
        name
        for name, fmt in formats().items()
        if name == info.type
        or (
            fmt.container == "gguf"
            and fmt.can_quantize
            and info.row_length % fmt.block == 0
            and (weighted or not (fmt.needs_calibration or needs_imatrix("blk", name, "")))
        )
    ]


def _probe(errors: Mapping[str, float]) -> str:
    """Return the probe for a tensor of these errors: `PROBE`, what llama.cpp would take in its place, or the
    coarsest type there is. One that loses nothing, as a tensor's own type, tells nothing of the others.
    """
    coarsest = max(errors, key=lambda kind: errors[kind])
    usual = (PROBE, FALLBACK[PROBE], LAST_PROBE)
    return next((kind for kind in usual if errors.get(kind)), coarsest)


def load(path: Path, source: Source) -> Sensitivities:
    """Return what `save` wrote; raises `UnreadableFile` for another file, `InputError` for another model."""
    try:
        document = json.loads(path.read_bytes())
        if document["quantcore.sensitivity"] != VERSION:
            raise UnreadableFile(f"{path}: is of version {document['quantcore.sensitivity']!r}")
        del document["quantcore.sensitivity"]
        tensors = tuple(_from_json(tensor) for tensor in document.pop("tensors"))
        found = Sensitivities(tensors, **document)
    except OSError as exc:
        raise UnreadableFile(f"{path}: {exc.strerror}") from exc
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as exc:
        raise UnreadableFile(f"{path}: holds no sensitivities: {exc}") from exc
    for tensor in found.tensors:
        there = source.tensor(tensor.name)
        if there is None or there.info.shape != tensor.shape:
            raise InputError(f"{path}: was measured on another model: {tensor.name} is not in {source.path}")
    return found


def _from_json(tensor: Mapping[str, Any]) -> Sensitivity:
    """Return one tensor of the document; raises `ValueError` for numbers that cannot have been measured."""
    made = Sensitivity(**{**tensor, "shape": tuple(reversed(tensor["shape"]))})
    numbers = (made.divergence, *made.errors.values())
    if not all(isinstance(number, int | float) and isfinite(number) for number in numbers):
        raise ValueError(f"{made.name} has a number that is none")
    if min(made.errors.values(), default=0) < 0:
        raise ValueError(f"{made.name} has an error below zero")
    if made.probe not in made.errors:
        raise ValueError(f"{made.name} lacks the error of its probe {made.probe}")
    if unknown := set(made.errors) - set(formats()):
        raise ValueError(f"{made.name} has errors of unknown types: {', '.join(sorted(unknown))}")
    return made
