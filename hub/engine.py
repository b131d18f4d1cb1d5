"""The hub's one door to quantcore: its types, errors and progress in the hub's own words.

Nothing else in the hub imports quantcore, so what the engine may be asked is written here, whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from django.conf import settings

import quantcore

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from hub.catalog.models import Revision

    # What the hub passes along, reading only what these say of themselves.
    Source = quantcore.Source
    Plan = quantcore.Plan
    Importance = quantcore.ImportanceMatrix
    Losses = npt.NDArray[np.float64]

Kind = Literal["refused", "retry", "fault"]
Tell = Callable[[dict[str, Any]], None]
# What the hub stores of metadata: long lists are vocabularies and of no use on a page.
LONGEST_LIST = 16
N_CTX, N_PROMPT, N_GENERATED = 512, 512, 128
N_DEPTH = 4096  # tokens in the cache before the second measurement of speed
PACKAGES = ("quanthub", "numpy", "gguf", "tokenizers")
CALIBRATION = "calibration.txt"
# Before the semicolon what is the same for all levels: it is then said once.
NO_IMPORTANCE = "The level is noise without an importance matrix, which cannot be measured of this model here"


class EngineError(Exception):
    """The engine could not do it. `kind` says who can mend it."""

    kind: Kind = "fault"


class Refused(EngineError):
    """What was given cannot be used; the user can mend it."""

    kind = "refused"


class WorthRetry(EngineError):
    """The machine lacked something; the same may succeed later."""

    kind = "retry"


class NoEngine(EngineError):
    """An optional engine is not installed."""

    kind = "refused"


@dataclass(frozen=True)
class LevelInfo:
    """A level as the pages show it. `bits` is what its base type costs per weight, scales included.

    `usual` marks the one to offer first, `special` those for models that were trained with such weights,
    `legacy` those that better ones superseded. `weighed` ones are made with an importance matrix where one
    can be measured, and some are noise without (`needs_importance`).
    """

    name: str
    title: str
    summary: str
    family: str
    bits: float
    usual: bool = False
    special: bool = False
    legacy: bool = False
    weighed: bool = False
    needs_importance: bool = False


@dataclass(frozen=True)
class Inspection:
    """What a model's headers say."""

    source_format: Literal["gguf", "huggingface"]
    architecture: str
    name: str
    parameters: int
    n_ctx_train: int
    file_bytes: int
    bpw: float
    tensor_type: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Made:
    """A quantized file that lies whole on the disk."""

    path: Path
    file_bytes: int
    sha256: str
    seconds: float


@dataclass(frozen=True)
class Figure:
    """A mean with its deviation, and what else is known of the values it is of, such as percentiles."""

    value: float
    deviation: float | None
    statistics: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Quality:
    """A perplexity, the bits for each byte, the loss of each scored token, and how it was measured."""

    perplexity: Figure
    bits_per_byte: Figure
    losses: Losses
    method: dict[str, Any]


@dataclass(frozen=True)
class Closeness:
    """How near a quant's predictions are to its source's.

    Nats for each token, percent of tokens, and in percent the root mean square of what changed in the
    probability of the token that came.
    """

    divergence: Figure
    delta_p: Figure
    same_top: Figure
    method: dict[str, Any]


@dataclass(frozen=True)
class TensorErrors:
    """How far each tensor of a quant is from its source's, and all weights together (`relative`).

    `columns` has a list for each figure, all in the order of the source's tensors; None stands for what
    cannot be told. Shapes have the row length first, as in plans.
    """

    columns: dict[str, list[Any]]
    relative: float | None
    method: dict[str, Any]


@dataclass(frozen=True)
class Speed:
    """Tokens per second, how they were measured, and by what.

    `others` is the share of the processors, 0 to 1, that other programs used meanwhile, if that is known.
    """

    figure: Figure
    method: dict[str, Any]
    engine: dict[str, Any]
    others: float | None = None


SpeedOf = Literal["pp", "tg", "pp_deep", "tg_deep"]


@dataclass(frozen=True)
class Speeds:
    """The speeds that could be measured, and a sentence for each that could not."""

    of: Mapping[SpeedOf, Speed]
    missed: tuple[str, ...] = ()

    @property
    def others(self) -> float:
        """Return the share of the processors that other programs used meanwhile, as far as it is known."""
        return max((speed.others or 0.0) for speed in self.of.values())


@contextmanager
def translated() -> Iterator[None]:
    """Turn quantcore's errors into the hub's; any other exception passes and is our fault."""
    try:
        yield
    except quantcore.errors.MissingEngine as exc:
        raise NoEngine(str(exc)) from exc
    except quantcore.errors.InputError as exc:
        raise Refused(str(exc)) from exc
    except quantcore.errors.QuantcoreError as exc:
        raise (WorthRetry if exc.retryable else EngineError)(str(exc)) from exc


def is_quantized(tensor_type: str) -> bool:
    """Return whether a type of tensors is one that quantizing made."""
    return quantcore.is_quantized(tensor_type)


def is_weighed(level: str) -> bool:
    """Return whether a level is made with an importance matrix, where one can be measured."""
    return any(known.weighed for known in levels() if known.name == level)


@lru_cache(maxsize=1)
def levels() -> tuple[LevelInfo, ...]:
    """Return every level that can be asked for, from the largest file to the smallest."""
    known = quantcore.all_formats()
    return tuple(
        LevelInfo(
            *(r.name, r.title, r.summary, known[r.base].family, known[r.base].bits),
            *(r.usual, r.special, r.legacy, r.weighed, r.needs_imatrix),
        )
        for r in quantcore.all_recipes().values()
    )


def fingerprint(level: str, options: Mapping[str, Any] | None = None) -> str:
    """Return what makes two requests for a revision the same one: the level and all options of its recipe.

    The engine's version is left out on purpose: pages and addresses know one quant of a level, so a new
    release must not make a second one beside it. Which release made the bytes is in `made_with`.
    """
    recipe = {"level": level, "options": dict(options or {})}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()


def open_source(path: Path) -> Source:
    """Open a Hugging Face directory or a GGUF file; reads headers only."""
    with translated():
        return quantcore.open_model(path)


def inspect(path: Path) -> Inspection:
    """Return what a model's headers say, refusing what cannot be quantized."""
    source = open_source(path)
    sizes = Counter[str]()
    for info in source.infos:
        sizes[info.type] += info.nbytes
    parameters = sum(info.n_elements for info in source.infos)
    return Inspection(
        source_format=source.format,
        architecture=source.architecture,
        name=str(source.get("general.name", "")),
        parameters=parameters,
        n_ctx_train=_context(source),
        file_bytes=sum(file.stat().st_size for file in source.files),
        bpw=8 * sizes.total() / parameters if parameters else 0.0,
        tensor_type=sizes.most_common(1)[0][0] if sizes else "",
        metadata={key: _shown(source.get(key)) for key in source.metadata},
    )


def _context(source: Source) -> int:
    with translated():
        return source.count("context_length", 0)


def _shown(value: Any) -> Any:
    if isinstance(value, list | tuple):
        if len(value) > LONGEST_LIST:
            return f"({len(value):,} items)"
        return [_shown(item) for item in value]
    if isinstance(value, str):
        # Letters that a database's JSON cannot hold.
        return value.replace("\0", "\ufffd").encode(errors="replace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, bool | int | float) or value is None:
        return value
    return _shown(value.item()) if hasattr(value, "item") else str(value)


def make_plan(source: Source, level: str, importance: Importance | None = None, lacking: str = "") -> Plan:
    """Decide each tensor's type and the exact size of the file.

    `lacking` says why there is no importance matrix, for whoever asks for a level that is noise without.
    """
    try:
        with translated():
            return quantcore.make_plan(source, level, quantcore.Options(imatrix=importance))
    except Refused as exc:
        if lacking and isinstance(exc.__cause__, quantcore.errors.NeedsCalibration):
            raise Refused(f"{NO_IMPORTANCE}; {lacking}") from exc
        raise


def calibration_protocol() -> dict[str, Any]:
    """Return what two importance matrices of a model must share to be the same."""
    return {
        "dataset": CALIBRATION,
        "dataset_sha256": hashlib.sha256(settings.CALIBRATION_TEXT.read_bytes()).hexdigest(),
        "n_ctx": N_CTX,
        "chunks_wanted": settings.CALIBRATION_CHUNKS,
    }


def promised_importance(revision: Revision, source: Source) -> Importance:
    """Return what `calibrate` will make, without its values; raises `Refused` where it cannot be measured."""
    with translated():
        return quantcore.promised_importance(source, importance_name(revision), CALIBRATION)


def importance_name(revision: Revision) -> str:
    """Return what files made with a revision's importance matrix call it."""
    return f"{revision.model.name}.imatrix.gguf"


def calibrate(source: Source, destination: Path, tell: Tell) -> None:
    """Measure the importance matrix of a model on the hub's text and write it, whole or not at all."""
    raw = settings.CALIBRATION_TEXT.read_bytes()
    with translated():
        sums = quantcore.importance(
            source,
            raw.decode().removesuffix("\n"),
            CALIBRATION,
            digest=hashlib.sha256(raw).hexdigest(),
            n_ctx=N_CTX,
            n_chunks=settings.CALIBRATION_CHUNKS,
            threads=settings.JOB_THREADS,
            report=_reporter(tell),
        )
        sums.save(destination)


def open_importance(revision: Revision, path: Path) -> Importance:
    """Open a measured importance matrix of a revision."""
    with translated():
        return dataclasses.replace(quantcore.open_imatrix(path), given=importance_name(revision))


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as the JSON document that jobs and quants keep."""
    return plan.to_json()


def quantize(
    source: Source, plan: Plan, destination: Path, tell: Tell, importance: Importance | None = None
) -> Made:
    """Write the planned file; it appears under its name whole or not at all."""
    with translated():
        backend = quantcore.choose_backend(settings.BACKEND)
        made = quantcore.quantize(
            source,
            plan,
            destination,
            threads=settings.JOB_THREADS,
            report=_reporter(tell),
            kernels=backend.kernels,
            imatrix=importance,
        )
    return Made(made.path, made.file_bytes, made.sha256, made.seconds)


def kernels_missing() -> bool:
    """Return whether compiled kernels would make quants sooner here and are not there yet."""
    return settings.BACKEND == "auto" and quantcore.kernels_missing()


def wait_for_kernels() -> None:
    """Wait while kernels are compiled on this machine: that takes the processors that would be timed."""
    quantcore.wait_for_kernels()


def verify(path: Path, plan: Plan) -> None:
    """Read the written file back and hold it to the plan."""
    try:
        with translated():
            quantcore.verify(path, plan)
    except Refused as exc:
        # Nothing that a user gave: we wrote this file ourselves.
        raise EngineError(f"The finished file is not what was planned: {exc}") from exc


def baseline(source: Source, text: Path, destination: Path, tell: Tell) -> Quality:
    """Measure the perplexity of a source, and keep at `destination` what KL divergence is measured against.

    By llama-perplexity's protocol. As many chunks are kept as `settings.BASE_BYTES` has room for.
    """
    raw = text.read_bytes()
    with translated():
        room = settings.BASE_BYTES // quantcore.base_chunk_nbytes(quantcore.n_vocab(source), N_CTX)
        found = quantcore.save_base(
            source, raw.decode(), destination, n_kept=max(1, room), **_measuring(tell)
        )
    return _quality(found, raw)


def is_base(path: Path) -> bool:
    """Return whether there is a whole file that `quality` can compare with."""
    try:
        quantcore.open_base(path)
    except quantcore.errors.InputError:
        return False
    return True


def quality(source: Source, text: Path, base: Path, tell: Tell) -> tuple[Quality, Closeness]:
    """Measure the perplexity of a quant, and how far its predictions are from those of its source."""
    raw = text.read_bytes()
    with translated():
        found, far = quantcore.divergence(
            source, raw.decode(), base, n_scored=settings.EVAL_CHUNKS, threads=settings.JOB_THREADS,
            report=_reporter(tell),
        )  # fmt: skip
    whole = _quality(found, raw)
    return whole, Closeness(
        divergence=Figure(far.kld.mean, far.kld.stderr, _spread(far.kld)),
        delta_p=Figure(100 * far.rms_dp, 100 * far.rms_dp_stderr, _spread(far.delta_p, 100)),
        same_top=Figure(100 * far.same_top, 100 * far.same_top_stderr),
        method={
            **{key: value for key, value in whole.method.items() if not key.startswith("scored_")},
            "chunks": far.chunks,
            "tokens": far.chunks * N_CTX,
            "scored_tokens": far.chunks * (len(found.nll) // found.chunks),
            "base": "log probabilities in 16 bits, as llama-perplexity keeps them",
        },
    )


def _spread(spread: Any, factor: float = 1.0) -> dict[str, float]:
    """Return the statistics of a `Figure`, the largest first."""
    named = dataclasses.asdict(spread)
    names = [name for name in reversed(named) if name not in {"mean", "stderr"}]
    # A mean that is not the figure's own is worth keeping.
    names = ["mean", "stderr", *names] if factor != 1.0 else names
    rounded = {name: _rounded(factor * named[name]) for name in names}
    return {name: value for name, value in rounded.items() if value is not None}


def perplexity(source: Source, text: Path, tell: Tell) -> Quality:
    """Measure perplexity on a text by llama-perplexity's protocol."""
    raw = text.read_bytes()
    with translated():
        found = quantcore.perplexity(source, raw.decode(), **_measuring(tell))
    return _quality(found, raw)


def _measuring(tell: Tell) -> dict[str, Any]:
    return {
        "n_ctx": N_CTX,
        "n_chunks": settings.EVAL_CHUNKS,
        "threads": settings.JOB_THREADS,
        "report": _reporter(tell),
    }


def _quality(found: Any, text: bytes) -> Quality:
    protocol = quality_protocol(text)
    method = protocol | {
        "protocol_key": protocol_key(protocol),
        "chunks": found.chunks,
        "tokens": found.tokens,
        "scored_tokens": len(found.nll),
        "scored_bytes": found.scored_bytes,
        "dataset_bytes": len(text),
        "first_token": "the text's own" if found.bos is None else f"token {found.bos}",
        "arithmetic": "float32, weights dequantized",
        "threads": settings.JOB_THREADS,
    }
    bits = Figure(found.bits_per_byte, found.bits_per_byte_stderr)
    return Quality(Figure(found.ppl, found.ppl_stderr), bits, found.nll, method)


def quality_protocol(text: bytes) -> dict[str, Any]:
    """Return what two perplexities must share to be compared."""
    return {
        "protocol": "llama-perplexity",
        "dataset": "Emma (evaluation.txt)",
        "dataset_sha256": hashlib.sha256(text).hexdigest(),
        "n_ctx": N_CTX,
        "chunks_wanted": settings.EVAL_CHUNKS,
    }


def protocol_key(protocol: Mapping[str, Any]) -> str:
    """Return a short name for a protocol: equal names, comparable figures."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def cache_key(protocol: Mapping[str, Any]) -> str:
    """Return a short name for what an engine of this version finds by a protocol."""
    return protocol_key({**protocol, "engine": versions()})


def increase(baseline: Losses, losses: Losses) -> Figure:
    """Return how much perplexity rises over the baseline, with the error of paired differences."""
    found = quantcore.compare(baseline, losses)
    return Figure(found.difference, found.difference_stderr)


def importance_method(importance: Importance) -> dict[str, Any]:
    """Return how an importance matrix of this hub was measured."""
    return calibration_protocol() | {"chunks": importance.n_chunks}


def tensor_errors(source: Source, quant: Source, importance: Importance | None, tell: Tell) -> TensorErrors:
    """Measure the error of each tensor of a quant, weighted too where there is an importance matrix."""
    with translated():
        found = quantcore.tensor_errors(
            source, quant, imatrix=importance, threads=settings.JOB_THREADS, report=_reporter(tell)
        )
    columns: dict[str, list[Any]] = {
        "name": [error.name for error in found.tensors],
        "shape": [list(reversed(error.shape)) for error in found.tensors],
        "source_type": [error.source_type for error in found.tensors],
        "type": [error.type for error in found.tensors],
    }
    for figure in ("bpw", "relative", "weighted", "rmse", "cosine", "max_abs"):
        columns[figure] = [_rounded(getattr(error, figure)) for error in found.tensors]
    method: dict[str, Any] = {
        "protocol": "quantcore errors",
        "relative_error": "||quant - source|| / ||source||",
        "tensors": len(found.tensors),
        "threads": settings.JOB_THREADS,
    }
    if importance is not None:
        measured = importance_method(importance)
        method["weighted_by"] = measured | {"tokens": N_CTX * importance.n_chunks}
    return TensorErrors(columns, _rounded(found.relative), method)


def _rounded(value: float | None) -> float | None:
    """Return seven digits, which tell all levels apart; a database's JSON holds no NaN."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.7g}")


def speeds(path: Path, tell: Tell, *, deep: bool = True) -> Speeds:
    """Measure prompt and generation speed in an engine that people use, and `deep` in the context again.

    Raises `NoEngine` where none can run the model here, `WorthRetry` where one took too much time or memory.
    """
    with translated():
        found = quantcore.bench(
            path,
            pp=N_PROMPT,
            tg=N_GENERATED,
            depths=(0, N_DEPTH) if deep else (0,),
            threads=settings.JOB_THREADS,
            limit=settings.ENGINE_SECONDS,
            report=_reporter(tell),
        )
    shared = {
        "protocol": "llama-bench",
        "backend": found.backend,
        "threads": found.threads,
        "memory": dataclasses.asdict(found.memory),
        "prompt_tokens": N_PROMPT,
        "generated_tokens": N_GENERATED,
        "flags": dict(found.flags),
    }
    if found.others is not None:
        shared["cpu_used_by_others"] = round(found.others, 2)
    # It says all by itself, such as `xllamacpp 2026.10 (llama.cpp b4711)`.
    name, _, stated = found.engine_version.partition(" ")
    engine = {**measured_with(), name: stated}

    def speed(result: quantcore.SpeedTest) -> Speed:
        method = {"test": result.test, "depth": result.depth, "runs": result.runs, **shared}
        return Speed(Figure(result.mean, result.stdev), method, engine, found.others)

    return Speeds(
        {_speed_of(result): speed(result) for result in found.results},
        tuple(_missed(missed) for missed in found.not_measured),
    )


def _speed_of(result: quantcore.SpeedTest) -> SpeedOf:
    if result.test.startswith("pp"):
        return "pp_deep" if result.depth else "pp"
    return "tg_deep" if result.depth else "tg"


def _missed(missed: quantcore.NotMeasured) -> str:
    what = f"Speed at {missed.test}" if missed.test else f"Speed in {missed.engine}"
    return f"{what} was not measured here: {missed.why}"


def hardware() -> dict[str, Any]:
    """Describe the machine that measures."""
    return dataclasses.asdict(quantcore.hardware())


def measured_with() -> dict[str, str]:
    """Return what measures, down to the build of the engine's own source."""
    return versions() | {"python": platform.python_version(), "build": quantcore.build()}


def versions() -> dict[str, str]:
    """Return the versions of what makes every byte and every figure; engines that only time add their own."""
    return {name: found for name in PACKAGES if (found := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _reporter(tell: Tell) -> Callable[[Any], None]:
    return lambda progress: tell(dataclasses.asdict(progress))
