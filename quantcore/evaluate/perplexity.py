"""Perplexity by llama-perplexity's protocol, and the paired comparison of two models on the same text."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantcore.errors import InputError, ShortText, UselessPredictions
from quantcore.evaluate.activations import Activations
from quantcore.evaluate.forward import Tokens, losses
from quantcore.evaluate.ops import Floats, partition
from quantcore.evaluate.spread import Doubles, standard_error
from quantcore.evaluate.steps import steps_of
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.progress import Report, ignore
from quantcore.sources.base import Source

LARGEST_LOSS = 300.0  # e**300 is the perplexity of no model; e**710 is beyond float64


@dataclass(frozen=True)
class Perplexity:
    """A measured perplexity.

    `tokens` went through the model in `chunks` of `n_ctx`; the second half of each chunk was scored. `nll`
    has the negative log likelihood of each scored token, float64 `(scored,)`, in the order of the text.

    `bits_per_byte` is their sum in bits over the `scored_bytes`: the UTF-8 bytes of the text that the scored
    tokens stand for. Unlike perplexity it compares models with different tokenizers. `bos` is the token that
    opened each chunk, None where the text's own did.
    """

    ppl: float
    ppl_stderr: float
    n_ctx: int
    chunks: int
    tokens: int
    seconds: float
    tokens_per_second: float
    bits_per_byte: float
    bits_per_byte_stderr: float
    scored_bytes: int
    bos: int | None
    nll: Doubles = field(repr=False, compare=False)


@dataclass(frozen=True)
class Chunks:
    """A text in chunks: `tokens`, and how many bytes of the text each stands for; int32 `(chunks, n_ctx)`.

    `bos` is the token that replaced the first of each chunk, which has kept its count.
    """

    tokens: Tokens
    nbytes: Tokens
    bos: int | None

    @property
    def scored_bytes(self) -> Tokens:
        """Return the bytes of the scored tokens, int32 `(scored,)`, in the order of the text."""
        first = self.tokens.shape[1] // 2
        return self.nbytes[:, first + 1 :].ravel()  # (chunks * scored of each,)


@dataclass(frozen=True)
class Comparison:
    """How much higher the perplexity of a model is than its base's on the same tokens, with standard errors.

    Errors are those of the difference: the two models' losses rise and fall together, so it is known much
    better than either perplexity.
    """

    ratio: float
    ratio_stderr: float
    log_ratio: float
    log_ratio_stderr: float
    difference: float
    difference_stderr: float
    correlation: float


def chunked(source: Source, text: str, n_ctx: int, n_chunks: int | None = None) -> Tokens:
    """Return the tokens of `text` as `cut` cuts them, int32 `(chunks, n_ctx)`."""
    return cut(source, text, n_ctx, n_chunks).tokens


def cut(source: Source, text: str, n_ctx: int, n_chunks: int | None = None) -> Chunks:
    """Return `text` in chunks as llama-perplexity cuts it.

    The remainder is dropped; where the model wants a first token, it replaces the first of each chunk. Raises
    `ShortText` for a text of fewer than two chunks.
    """
    if n_ctx < 4:
        raise InputError(f"a context of {n_ctx} tokens is too short to score anything; use 512")
    tokenizer = load_tokenizer(source)
    tokens, nbytes = tokenizer.encode_counted(text)
    if len(tokens) < 2 * n_ctx:
        raise ShortText(
            f"the text has {len(tokens)} tokens; a context of {n_ctx} needs at least {2 * n_ctx}: "
            "give a longer text or a shorter context"
        )
    count = len(tokens) // n_ctx
    if n_chunks is not None:
        if n_chunks < 1:
            raise InputError(f"{n_chunks} chunks cannot be measured; ask for at least 1")
        count = min(count, n_chunks)
    chunks, counts = (
        each[: count * n_ctx].reshape(count, n_ctx).copy()  # (chunks, n_ctx)
        for each in (tokens, nbytes)
    )
    if tokenizer.bos is not None:
        chunks[:, 0] = tokenizer.bos
    return Chunks(chunks, counts, tokenizer.bos)


def token_nll(logits: Floats, tokens: Tokens) -> Doubles:
    """Return -log softmax(logits)[token] for each row; `logits` `(n, vocab)` is overwritten."""
    chosen = logits[np.arange(len(tokens)), tokens].astype(np.float64)
    largest, total = partition(logits)
    nll: Doubles = np.log(total) + largest - chosen  # (n,)
    return nll


def perplexity(
    source: Source,
    text: str,
    *,
    n_ctx: int = 512,
    n_chunks: int | None = None,
    threads: int | None = None,
    report: Report = ignore,
    activations: Activations = "float32",
    device: str = "cpu",
) -> Perplexity:
    """Measure the perplexity of `source` on `text`; `activations` as in `quantcore.evaluate.activations`.

    `device` is "cpu" or "cuda"; raises `MissingEngine` for the latter without cupy or a card.

    Chunks of `n_ctx` tokens are independent; the tokens after the first half of each are scored.
    ppl = exp(mean nll), stderr = ppl sqrt((mean nll^2 - (mean nll)^2) / (n - 1)). Protocol: llama.cpp,
    tools/perplexity.
    """
    started, steps = time.monotonic(), steps_of(device)
    chunks = cut(source, text, n_ctx, n_chunks)
    how: dict[str, Any] = {"threads": threads, "report": report, "activations": activations, "steps": steps}
    nll = np.concatenate(losses(source, chunks.tokens, first=n_ctx // 2, **how))
    return summarize(nll, chunks, time.monotonic() - started)


def summarize(nll: Doubles, chunks: Chunks, seconds: float) -> Perplexity:
    """Return the figures for the scored tokens `nll` of `chunks`.

    Raises `UselessPredictions` for a model whose predictions are no numbers.
    """
    if not nll.mean() < LARGEST_LOSS:
        raise UselessPredictions(
            f"the model's predictions are useless: its mean loss is {nll.mean():.4g}; its weights or "
            "hyperparameters must be damaged"
        )
    ppl, tokens = math.exp(nll.mean()), chunks.tokens
    bits, bits_stderr = bits_per_byte(nll, chunks.scored_bytes)
    return Perplexity(
        ppl=ppl,
        ppl_stderr=ppl * standard_error(nll),
        n_ctx=tokens.shape[1],
        chunks=len(tokens),
        tokens=tokens.size,
        seconds=seconds,
        tokens_per_second=tokens.size / seconds if seconds else 0.0,
        bits_per_byte=bits,
        bits_per_byte_stderr=bits_stderr,
        scored_bytes=int(chunks.scored_bytes.sum()),
        bos=chunks.bos,
        nll=nll,
    )


def bits_per_byte(nll: Doubles, nbytes: Tokens) -> tuple[float, float]:
    """Return the bits that tokens of `nbytes` bytes cost for each byte, and the standard error.

    bits = sum(nll) / (ln 2 sum(nbytes)). It is a ratio of two means over tokens, so its error is that of the
    mean of nll / ln 2 - bits * nbytes, over the mean of nbytes; tokens count as independent, as in that of
    perplexity. Both are NaN for tokens that stand for no byte.
    """
    total = int(nbytes.sum())
    if not total:
        return math.nan, math.nan
    in_bits = nll / math.log(2)
    bits = float(in_bits.sum()) / total
    return bits, standard_error(in_bits - bits * nbytes) * len(nbytes) / total


def compare(base_nll: Doubles, nll: Doubles) -> Comparison:
    """Return how much worse `nll` is than `base_nll`, token by token of the same text.

    With u, v the standard errors of the two mean losses and c their covariance: the error of the log ratio is
    sqrt(u^2 + v^2 - 2c), that of the difference sqrt((p u)^2 + (b v)^2 - 2 p b c) for perplexities p and b.
    """
    if base_nll.shape != nll.shape or len(nll) < 2:
        raise InputError(f"losses of {len(base_nll)} and {len(nll)} tokens cannot be paired")
    p, b = math.exp(nll.mean()), math.exp(base_nll.mean())
    u, v = standard_error(nll), standard_error(base_nll)
    covariance = float(np.mean(nll * base_nll) - nll.mean() * base_nll.mean()) / (len(nll) - 1)
    log_ratio = float(nll.mean() - base_nll.mean())
    log_error = math.sqrt(max(0.0, u * u + v * v - 2 * covariance))
    return Comparison(
        ratio=math.exp(log_ratio),
        ratio_stderr=math.exp(log_ratio) * log_error,
        log_ratio=log_ratio,
        log_ratio_stderr=log_error,
        difference=p - b,
        difference_stderr=math.sqrt(max(0.0, (p * u) ** 2 + (b * v) ** 2 - 2 * p * b * covariance)),
        correlation=covariance / (u * v) if u and v else 1.0,
    )
