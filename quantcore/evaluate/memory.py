"""What an engine says it allocated: llama.cpp's own lines about its buffers, read from its log.

A size that the log does not tell is None, not measured; it is never taken for nothing. Sizes are printed in
MiB with two decimals, so bytes are right to 5,243.

1. llama.cpp, src/llama-{model,kv-cache,memory-recurrent,context}.cpp: lines of `<name> <what> buffer size`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["model", "kv", "state", "output", "compute"]

# One name for each that the log tells of. Recurrent layers keep a state in the place of a KV cache.
_KINDS: dict[str, Kind] = {
    "model": "model",
    "KV": "kv",
    "RS": "state",
    "output": "output",
    "compute": "compute",
}
_BUFFER = re.compile(
    r"(\S+)\s+(?:DSV4 \w+ )?(model|KV|RS|state|output|compute) buffer size\s*=\s*([\d.]+) MiB"
)
_CACHE_TYPES = re.compile(r"\bK \((\w+)\):.*\bV \((\w+)\):")
_FLASH = re.compile(r"Flash Attention (enabled|not supported)|flash_attn\s*=\s*(enabled|disabled)")
# A context may lay out its graph more than once; each time is a new buffer in the place of the old one.
_RESERVING = "sched_reserve: reserving"


@dataclass(frozen=True)
class Buffer:
    """A piece of memory in bytes: where it lies, such as `CPU_Mapped` or `CUDA0`, and what it holds."""

    device: str
    kind: Kind
    nbytes: int


@dataclass(frozen=True)
class Memory:
    """What the engine allocated, in bytes over all devices, and the settings it depends on.

    `kv` is the cache of `n_ctx` tokens in types `type_k` and `type_v`, `state` that of recurrent layers,
    `compute` the scratch space of a graph of `n_ubatch` tokens. None is what the engine did not say.
    """

    model: int | None
    kv: int | None
    compute: int | None
    state: int | None = None
    output: int | None = None
    n_ctx: int | None = None
    n_batch: int | None = None
    n_ubatch: int | None = None
    n_outputs: int | None = None
    type_k: str | None = None
    type_v: str | None = None
    flash_attention: bool | None = None
    buffers: tuple[Buffer, ...] = ()


def memory_in(log: str) -> Memory:
    """Return the memory that llama.cpp's log of one loaded model tells of."""
    buffers = tuple(_buffers(log))
    types = _CACHE_TYPES.search(log)
    return Memory(
        **{kind: _total(buffers, kind) for kind in ("model", "kv", "compute", "state", "output")},
        n_ctx=_count("n_ctx", log),
        n_batch=_count("n_batch", log),
        n_ubatch=_count("n_ubatch", log),
        n_outputs=_count("n_outputs_max", log),
        type_k=types and types[1],
        type_v=types and types[2],
        flash_attention=_flash_attention(log),
        buffers=buffers,
    )


def _buffers(log: str) -> list[Buffer]:
    graph = max(log.rfind(_RESERVING), 0)
    found = [(_KINDS.get(match[2], "state"), match) for match in _BUFFER.finditer(log)]
    return [
        Buffer(match[1], kind, round(float(match[3]) * (1 << 20)))
        for kind, match in found
        if kind != "compute" or match.start() >= graph
    ]


def _total(buffers: tuple[Buffer, ...], kind: Kind) -> int | None:
    sizes = [buffer.nbytes for buffer in buffers if buffer.kind == kind]
    return sum(sizes) if sizes else None


def _count(name: str, log: str) -> int | None:
    found = re.search(rf"llama_context: {name}\s*=\s*(\d+)", log)
    return int(found[1]) if found else None


def _flash_attention(log: str) -> bool | None:
    """Return whether it was used; the last word counts, as `auto` is decided after it is printed."""
    words = [match[1] or match[2] for match in _FLASH.finditer(log)]
    return words[-1] == "enabled" if words else None
