"""How well a model predicts a text, and how far a quant is from its source."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings

import quantcore
from hub.engine.environment import versions
from hub.engine.exchanged import N_CTX, Closeness, Figure, Quality, Tell, TensorErrors, reporter, translated
from hub.engine.importance import importance_method

if TYPE_CHECKING:
    from hub.engine.exchanged import Importance, Losses, Source


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
            report=reporter(tell),
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
        "report": reporter(tell),
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


def tensor_errors(source: Source, quant: Source, importance: Importance | None, tell: Tell) -> TensorErrors:
    """Measure the error of each tensor of a quant, weighted too where there is an importance matrix."""
    with translated():
        found = quantcore.tensor_errors(
            source, quant, imatrix=importance, threads=settings.JOB_THREADS, report=reporter(tell)
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
