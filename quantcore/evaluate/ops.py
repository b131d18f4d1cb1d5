"""The steps of a layer that are not matrix products with weights: norms, gates and attention, in float32.

They use functions of `xp` only: of numpy, or of a namespace like it whose arrays lie elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quantcore.architectures.base import CLAMPED_LIMIT, CLAMPED_SLOPE, Gate, NormKind

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SMALLEST_SHARE = np.float32(2.0**-14)  # that llama.cpp divides by
QUERY_BLOCK = 64  # rows of attention at a time: later keys than a block's last row are not even computed


def rms_norm(x: Floats, weight: Floats, eps: float, *, xp: Any = np) -> Floats:
    """Return x / sqrt(mean(x^2) + eps) * weight along the last axis."""
    mean = xp.einsum("...i,...i->...", x, x)[..., None] / np.float32(x.shape[-1])  # (..., 1)
    normed: Floats = x * (np.float32(1) / xp.sqrt(mean + np.float32(eps))) * weight
    return normed


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, eps: float, *, xp: Any = np) -> Floats:
    """Return (x - mean(x)) / sqrt(var(x) + eps) * weight + bias along the last axis."""
    centred = x - x.mean(axis=-1, keepdims=True)  # (..., inputs)
    normed = rms_norm(centred, weight, eps, xp=xp)
    if bias is not None:
        normed += bias
    return normed


def after_norm(
    kind: NormKind, weights: Mapping[str, Floats], name: str, x: Floats, eps: float, *, xp: Any = np
) -> Floats:
    """Return `x` after the norm of that name among `weights`, or itself where there is none."""
    weight = weights.get(f"{name}.weight")
    if weight is None:
        return x
    if kind == "layer":
        return layer_norm(x, weight, weights.get(f"{name}.bias"), eps, xp=xp)
    return rms_norm(x, weight, eps, xp=xp)


def silu(x: Floats, *, xp: Any = np) -> None:
    """Replace x by x / (1 + exp(-x))."""
    with np.errstate(over="ignore"):  # exp of a very negative gate is infinite, and the quotient 0 is right
        denominator = xp.exp(-x)
    denominator += np.float32(1)
    x /= denominator


def gelu(x: Floats, *, xp: Any = np) -> None:
    """Replace x by x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))).

    llama.cpp on a CPU looks this up by x in 16 bits, and its logits differ from ours by as much.
    """
    inner = x * x
    inner *= np.float32(0.044715)
    inner += np.float32(1)
    inner *= x
    inner *= np.float32(math.sqrt(2 / math.pi))
    xp.tanh(inner, out=inner)
    inner += np.float32(1)
    inner *= np.float32(0.5)
    x *= inner


GATES: Mapping[str, Callable[..., None]] = {"silu": silu, "gelu": gelu}


def gated(gate: Floats, up: Floats, kind: Gate = "silu", *, xp: Any = np) -> Floats:
    """Return silu(gate) * up, or with another function than silu, in place of `gate`.

    The clamped gate overwrites `up` too.
    """
    if kind == "clamped":
        clamped(gate, up, xp=xp)
    else:
        GATES[kind](gate, xp=xp)
    gate *= up
    return gate


def clamped(gate: Floats, up: Floats, *, xp: Any = np) -> None:
    """Replace `gate` and `up` by the two factors of the clamped gate, for which see `Gate`."""
    limit = np.float32(CLAMPED_LIMIT)
    xp.minimum(gate, limit, out=gate)
    xp.clip(up, -limit, limit, out=up)
    up += np.float32(1)
    gate *= sigmoid(gate * np.float32(CLAMPED_SLOPE), xp=xp)


def soft_cap(x: Floats, cap: float | None, *, xp: Any = np) -> None:
    """Replace x by cap * tanh(x / cap), unless there is no cap."""
    if cap is not None:
        x *= np.float32(1 / cap)
        xp.tanh(x, out=x)
        x *= np.float32(cap)


def sigmoid(x: Floats, *, xp: Any = np) -> Floats:
    """Return 1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        found: Floats = np.float32(1) / (np.float32(1) + xp.exp(-x))
    return found


def choose(logits: Floats, used: int, add_up: bool) -> tuple[npt.NDArray[np.intp], Floats]:
    """Return the `used` likeliest experts of each row and their shares, each `(rows, used)`.

    Shares are of a softmax over `logits` `(rows, experts)`, which is overwritten; `add_up` makes those of the
    chosen add up to one.
    """
    logits -= logits.max(axis=-1, keepdims=True)  # (rows, 1)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=-1, keepdims=True)
    chosen = np.argsort(-logits, axis=-1, kind="stable")[:, :used]  # (rows, used)
    shares = np.take_along_axis(logits, chosen, axis=-1)
    if add_up:
        shares /= np.maximum(shares.sum(axis=-1, keepdims=True), SMALLEST_SHARE)
    return chosen, shares


def attend(
    q: Floats,
    k: Floats,
    v: Floats,
    start: int,
    window: int | None = None,
    scale: float | None = None,
    cap: float | None = None,
    sinks: Floats | None = None,
    *,
    xp: Any = np,
) -> Floats:
    """Return causal attention `(chunks, queries, heads, head_size)`.

    `q` `(chunks, queries, heads, head_size)` are positions from `start` on; `k`, `v`
    `(chunks, keys, kv_heads, head_size)` are positions from 0 on. Heads share keys in groups. With a
    `window`, a position sees itself and the `window - 1` before it. Scores are multiplied by `scale`, which
    is 1 / sqrt(head_size) if it is left out, and softly bounded by `cap` if there is one. `sinks` `(heads,)`
    are scores of a key beside all others, whose value is 0.
    """
    chunks, queries, heads, size = q.shape
    kv_heads = k.shape[2]
    q = q * np.float32(1 / math.sqrt(size) if scale is None else scale)
    grouped = q.reshape(chunks, queries, kv_heads, heads // kv_heads, size).transpose(0, 2, 3, 1, 4)
    keys = k.transpose(0, 2, 3, 1)[:, :, None]  # (chunks, kv_heads, 1, size, keys)
    values = v.transpose(0, 2, 1, 3)[:, :, None]  # (chunks, kv_heads, 1, keys, size)
    sink = None if sinks is None else sinks.reshape(kv_heads, -1, 1, 1)  # (kv_heads, group, 1, 1)
    out: Floats = xp.empty((chunks, queries, kv_heads, heads // kv_heads, size), dtype=np.float32)
    for chunk in range(chunks):
        for first in range(0, queries, QUERY_BLOCK):
            last = min(first + QUERY_BLOCK, queries)
            low = 0 if window is None else max(0, start + first + 1 - window)
            seen = slice(low, start + last)
            scores = xp.matmul(grouped[chunk, :, :, first:last], keys[chunk, ..., seen])
            # (kv_heads, group, rows, seen)
            soft_cap(scores, cap, xp=xp)
            _mask(scores, start + first, low, window, xp)
            peak = scores.max(axis=-1, keepdims=True)  # (kv_heads, group, rows, 1)
            peak = peak if sink is None else xp.maximum(peak, sink)
            scores -= peak
            xp.exp(scores, out=scores)
            total = scores.sum(axis=-1, keepdims=True)  # (kv_heads, group, rows, 1)
            if sink is not None:
                total += xp.exp(sink - peak)
            mixed = xp.matmul(scores, values[chunk, ..., seen, :])
            mixed /= total  # (kv_heads, group, rows, size)
            out[chunk, first:last] = mixed.transpose(2, 0, 1, 3)  # (rows, kv_heads, group, size)
    return out.reshape(chunks, queries, heads * size)


def _mask(scores: Floats, first: int, low: int, window: int | None, xp: Any) -> None:
    """Hide later positions, and those before the window, from scores whose rows begin at position `first`."""
    rows, keys = scores.shape[-2:]
    # Adding minus infinity is several times faster than storing it through an index, and without a window
    # only the last square of keys has positions later than some row.
    skip = keys - rows if window is None else 0
    ahead = xp.arange(low + skip, low + keys)[None, :] - xp.arange(first, first + rows)[:, None]
    hidden = ahead > 0 if window is None else (ahead > 0) | (ahead <= -window)  # (rows, keys - skip)
    scores[..., skip:] += xp.where(hidden, np.float32(-np.inf), np.float32(0))


def partition(logits: Floats, *, xp: Any = np) -> tuple[Doubles, Doubles]:
    """Return the largest of each row and its sum of e**(x - largest), `(rows,)`; `logits` is overwritten."""
    largest = logits.max(axis=-1, keepdims=True)  # (rows, 1)
    logits -= largest
    xp.exp(logits, out=logits)
    return largest[:, 0].astype(np.float64), logits.sum(axis=-1, dtype=np.float64)
