"""How far a model's predictions are from its base's: KL divergence, through llama-perplexity's base files.

A base file holds, for every scored position, all log probabilities in 16 bits. Layout, little-endian:
`_logits_`, u32 n_ctx, i32 n_vocab, i32 n_chunk, i32 tokens[n_chunk * n_ctx], then for each scored position
f32 scale, f32 lowest, u16 codes[n_vocab rounded up to even]; log p = scale * code + lowest, clipped at 16
below the highest. Protocol and file: llama.cpp, tools/perplexity.
"""

from __future__ import annotations

import math
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.atomic import AtomicFile
from quantcore.errors import InputError, UnreadableFile
from quantcore.evaluate.activations import Activations
from quantcore.evaluate.forward import Tokens, map_logits
from quantcore.evaluate.ops import Floats
from quantcore.evaluate.perplexity import (
    Chunks,
    Comparison,
    Perplexity,
    compare,
    cut,
    summarize,
    token_nll,
)
from quantcore.evaluate.spread import Doubles, Spread, spread, standard_error
from quantcore.evaluate.steps import steps_of
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source

MAGIC = b"_logits_"
HEAD = struct.Struct("<8sIii")
ROWS = 32  # positions at a time: a large vocabulary takes much room for each
RANGE = 16.0  # log probabilities further below the highest are not told apart
LOWEST = 100.0  # below zero: with that range, where no log probability of any vocabulary can be
FEWEST = 100  # scored tokens under which llama-perplexity gives no statistics

Codes = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Base:
    """An open base file: what was measured, and where."""

    path: Path
    tokens: Tokens
    vocab: int

    @property
    def scored(self) -> int:
        """Return how many positions of a chunk are scored."""
        n_ctx = int(self.tokens.shape[1])
        return n_ctx - 1 - n_ctx // 2

    @property
    def width(self) -> int:
        """Return the length of a position's record in 16-bit units."""
        return 4 + 2 * ((self.vocab + 1) // 2)

    def offset(self, chunk: int) -> int:
        return HEAD.size + 4 * int(self.tokens.size) + chunk * self.scored * self.width * 2

    def read(self, chunk: int, rows: slice = slice(None)) -> Floats:
        """Return the log probabilities of `rows` of the scored positions of `chunk`, float32 `(n, vocab)`.

        Raises `UnreadableFile` for a file that is cut short or damaged.
        """
        start, stop, _ = rows.indices(self.scored)
        count, offset = (stop - start) * self.width, self.offset(chunk) + 2 * start * self.width
        records = np.fromfile(self.path, dtype="<u2", count=count, offset=offset)
        if len(records) < count:
            raise UnreadableFile(f"{self.path}: ends inside chunk {chunk + 1} of {len(self.tokens)}")
        records = records.reshape(-1, self.width)  # (n, width)
        heads = np.ascontiguousarray(records[:, :4]).view("<f4")  # (n, 2): scale, lowest
        if not (np.abs(heads) <= LOWEST).all():
            raise UnreadableFile(
                f"{self.path}: damaged: chunk {chunk + 1} holds numbers that are no log probabilities"
            )
        log_probs: Floats = records[:, 4 : 4 + self.vocab].astype(np.float32)  # (n, vocab)
        log_probs *= heads[:, :1]
        log_probs += heads[:, 1:]
        return log_probs


def open_base(path: Path) -> Base:
    """Open a base file; raises `UnreadableFile` when it is none or is cut short."""
    try:
        with path.open("rb") as file:
            magic, n_ctx, vocab, chunks = HEAD.unpack(file.read(HEAD.size))
            size = os.fstat(file.fileno()).st_size
            if magic != MAGIC or min(n_ctx, vocab, chunks) < 1 or size < HEAD.size + 4 * n_ctx * chunks:
                raise UnreadableFile(f"{path}: not a base of log probabilities")
            tokens = np.fromfile(file, dtype="<i4", count=n_ctx * chunks).reshape(chunks, n_ctx)
    except struct.error as exc:
        raise UnreadableFile(f"{path}: not a base of log probabilities") from exc
    except OSError as exc:
        raise UnreadableFile(f"{path}: cannot be read: {exc.strerror}") from exc
    base = Base(path, tokens.astype(np.int32), vocab)
    if size < base.offset(chunks):
        raise UnreadableFile(
            f"{path}: truncated: has {size} bytes, {chunks} chunks need {base.offset(chunks)}"
        )
    return base


def encode_log_probs(logits: Floats) -> Codes:
    """Return the records of `logits` `(scored, vocab)`, uint16 `(scored, width)`."""
    rows, vocab = logits.shape
    highest = logits.max(axis=-1, keepdims=True)  # (scored, 1)
    lowest = np.maximum(logits.min(axis=-1, keepdims=True), highest - np.float32(RANGE))  # (scored, 1)
    total = np.exp(logits - highest).sum(axis=-1, keepdims=True, dtype=np.float64)  # (scored, 1)
    scale = (highest - lowest) / np.float32(65535)
    records = np.zeros((rows, 4 + 2 * ((vocab + 1) // 2)), dtype="<u2")
    heads = np.concatenate([scale, lowest - highest - np.log(total).astype(np.float32)], axis=1)
    records[:, :4] = heads.astype("<f4").view("<u2")  # (scored, 4)
    steps = np.maximum(logits - lowest, 0) / np.where(scale > 0, scale, np.float32(1))
    records[:, 4 : 4 + vocab] = np.rint(steps)
    return records


@dataclass(frozen=True)
class Divergence:
    """How a model's predictions differ from its base's on the same tokens, of `chunks` that were compared.

    `kld` is the divergence of each position in nats; `delta_p` how much more probability the model gives the
    token that came, from -1 to 1, and `rms_dp` its root mean square; `same_top` the share of positions with
    the same likeliest token. `base_ppl` is the base's perplexity as its file has it.
    """

    kld: Spread
    delta_p: Spread
    rms_dp: float
    rms_dp_stderr: float
    same_top: float
    same_top_stderr: float
    base_ppl: float
    base_ppl_stderr: float
    comparison: Comparison
    chunks: int


@dataclass(frozen=True)
class _Scores:
    """One chunk's figures per scored token, each `(scored,)`; of chunks beyond the base only `nll`."""

    nll: Doubles


@dataclass(frozen=True)
class _Compared(_Scores):
    base_nll: Doubles
    kld: Doubles
    same_top: npt.NDArray[np.bool_]


def save_base(
    source: Source,
    text: str,
    path: Path,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    n_kept: int | None = None,
    threads: int | None = None,
    report: Report = ignore,
    activations: Activations = "float32",
    device: str = "cpu",
) -> Perplexity:
    """Measure perplexity and write the base file at `path`, which appears only when it is whole.

    It holds the first `n_kept` chunks, or all: a position takes two bytes for each token of the vocabulary.
    """
    started, steps = time.monotonic(), steps_of(device)
    how: dict[str, Any] = {"threads": threads, "report": report, "activations": activations, "steps": steps}
    chunks = cut(source, text, n_ctx, n_chunks)
    tokens = chunks.tokens
    first = n_ctx // 2
    base = Base(path, tokens[:n_kept], n_vocab(source))
    file = AtomicFile(path, base.offset(len(base.tokens)))

    def score(chunk: int, logits: Floats) -> Doubles:
        if chunk < len(base.tokens):
            for rows in _blocks(len(logits)):
                place = base.offset(chunk) + 2 * rows.start * base.width
                file.write(encode_log_probs(logits[rows]).data, place)
        return token_nll(logits, tokens[chunk, first + 1 :])

    file.open()
    try:
        head = HEAD.pack(MAGIC, n_ctx, base.vocab, len(base.tokens))
        file.write(head + base.tokens.astype("<i4").tobytes())
        nll = map_logits(source, tokens, score, first=first, **how)
        file.commit()
    finally:
        file.discard()
    return summarize(np.concatenate(nll), chunks, time.monotonic() - started)


def divergence(
    source: Source,
    text: str,
    base_path: Path,
    *,
    n_chunks: int | None = None,
    n_scored: int | None = None,
    threads: int | None = None,
    report: Report = ignore,
    activations: Activations = "float32",
    device: str = "cpu",
) -> tuple[Perplexity, Divergence]:
    """Measure `source` against the base file of another model on the same text, in all or `n_chunks` chunks.

    Where the base is of the beginning of the text only, the perplexity is that of `n_scored` chunks.

    Raises `InputError` when the base was made from another text or with another vocabulary.
    """
    started, steps = time.monotonic(), steps_of(device)
    base = open_base(base_path)
    compared = min(len(base.tokens), n_chunks or len(base.tokens))
    chunks = _same_tokens(source, text, base, compared, max(compared, n_scored or 0))
    if base.scored * compared < FEWEST:
        raise InputError(f"only {base.scored * compared} tokens are scored; divergence needs {FEWEST}")
    tokens = chunks.tokens
    score = _scorer(base, tokens, compared)
    first = tokens.shape[1] // 2
    how: dict[str, Any] = {"threads": threads, "report": report, "activations": activations, "steps": steps}
    scores = map_logits(source, tokens, score, first=first, **how)
    nll = np.concatenate([chunk.nll for chunk in scores])
    figures = summarize(nll, chunks, time.monotonic() - started)
    return figures, _summary([chunk for chunk in scores if isinstance(chunk, _Compared)])


def n_vocab(source: Source) -> int:
    """Return how many tokens a model gives a probability: its embedding's number of rows."""
    embeddings = source.tensor("token_embd.weight")
    return embeddings.info.shape[0] if embeddings else 0


def base_chunk_nbytes(vocab: int, n_ctx: int) -> int:
    """Return the bytes that a chunk takes in a base file."""
    base = Base(Path(), np.zeros((1, n_ctx), np.int32), vocab)
    return base.offset(1) - base.offset(0)


def _same_tokens(source: Source, text: str, base: Base, compared: int, scored: int) -> Chunks:
    """Return the chunks of `text`, the first `compared` of which must be those of the base."""
    chunks = cut(source, text, base.tokens.shape[1], scored)
    # Each chunk's first token may be the opening one in one of the two and the text's in the other.
    same = chunks.tokens[:compared]
    if same.shape != base.tokens[:compared].shape or (same[:, 1:] != base.tokens[:compared, 1:]).any():
        raise InputError(f"{base.path}: was made from another text or with another tokenizer")
    if n_vocab(source) != base.vocab:
        raise InputError(f"{base.path}: is of a vocabulary of {base.vocab} tokens, the model has another")
    return chunks


def _scorer(base: Base, tokens: Tokens, compared: int) -> Callable[[int, Floats], _Scores]:
    first = tokens.shape[1] // 2

    def score(chunk: int, logits: Floats) -> _Scores:
        actual = tokens[chunk, first + 1 :]
        if chunk >= compared:
            return _Scores(token_nll(logits, actual))
        parts = [
            _compare(logits[rows], base.read(chunk, rows), actual[rows]) for rows in _blocks(len(logits))
        ]
        nll, base_nll, kld, same = (np.concatenate(found) for found in zip(*parts, strict=True))
        return _Compared(nll, base_nll, kld, same)

    return score


def _blocks(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS):
        yield slice(start, min(start + ROWS, count))


def _compare(
    logits: Floats, expected: Floats, actual: npt.NDArray[np.int32]
) -> tuple[Doubles, Doubles, Doubles, npt.NDArray[np.bool_]]:
    """Return what `_Compared` holds, for some rows; `logits` `(n, vocab)` is overwritten."""
    rows = np.arange(len(actual))
    same = logits.argmax(axis=-1) == expected.argmax(axis=-1)  # (n,)
    logits -= logits.max(axis=-1, keepdims=True)  # (n, 1)
    logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(np.float32)
    nll = -logits[rows, actual].astype(np.float64)
    base_nll = -expected[rows, actual].astype(np.float64)
    weight = np.where(expected > -RANGE, np.exp(expected), np.float32(0))  # (n, vocab)
    expected -= logits
    weight *= expected
    return nll, base_nll, weight.sum(axis=-1, dtype=np.float64), same


def _summary(scores: list[_Compared]) -> Divergence:
    nll = np.concatenate([chunk.nll for chunk in scores])
    kld = np.concatenate([chunk.kld for chunk in scores])
    base_nll = np.concatenate([chunk.base_nll for chunk in scores])
    same = float(np.concatenate([chunk.same_top for chunk in scores]).mean())
    delta_p = np.exp(-nll) - np.exp(-base_nll)
    rms = math.sqrt(float(np.mean(delta_p**2)))
    base_ppl = math.exp(base_nll.mean())
    return Divergence(
        kld=spread(kld),
        delta_p=spread(delta_p),
        rms_dp=rms,
        # Of a root: that of what is under it, over twice the root.
        rms_dp_stderr=standard_error(delta_p**2) / (2 * rms) if rms else 0.0,
        same_top=same,
        same_top_stderr=math.sqrt(same * (1 - same) / (len(kld) - 1)),
        base_ppl=base_ppl,
        base_ppl_stderr=base_ppl * standard_error(base_nll),
        comparison=compare(base_nll, nll),
        chunks=len(scores),
    )
