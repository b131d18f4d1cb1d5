"""llama.cpp, by its wheel xllamacpp: GGUF files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantcore.cores import usable_cores
from quantcore.errors import InputError
from quantcore.evaluate.child import Answer, Child, Heard, converse
from quantcore.evaluate.engines.base import Asked, Engine, Found, register, sampled
from quantcore.evaluate.engines.kinds import GGUF
from quantcore.evaluate.memory import memory_in
from quantcore.sources.gguf import open_gguf

CHILD = Child("llama.cpp", "quantcore.evaluate.children.llamacpp", "pip install xllamacpp")


@dataclass(frozen=True)
class LlamaCpp(Engine):
    """Its server, without the network; memory is what its log says."""

    def trained(self, path: Path) -> int:
        return open_gguf(path).count("context_length", 0)

    def measure(self, path: Path, asked: Asked, heard: Heard) -> Found:
        job = {"kind": "bench", "pp": asked.pp, "tg": asked.tg, "depths": asked.depths, "runs": asked.runs}
        job |= {"seed": asked.seed, "threads": asked.threads, "n_ctx": asked.n_ctx, "stretch": True}
        answer = run_job(path, job, heard, asked.limit)
        result = answer.result
        return Found(
            engine_version=result["engine_version"],
            backend=result["backend"],
            threads=result["threads"],
            sampled=sampled(result["samples"]),
            memory=memory_in(answer.log),
            flags=result.get("flags", {}),
        )


def run_job(path: Path, job: dict[str, Any], heard: Heard, limit: float | None = None) -> Answer:
    """Do `job` with the GGUF file `path`; raises what `converse` raises."""
    # The file is opened here first: our messages about broken files are better than the engine's.
    source = open_gguf(path)
    vocab = len(source.get("tokenizer.ggml.tokens") or ())
    if not vocab:
        raise InputError(f"{path}: has no tokenizer, so llama.cpp cannot run it")
    threads = job.get("threads") or usable_cores()
    trained = source.count("context_length", 0) or job["n_ctx"]
    answer = converse(
        CHILD, path, {**job, "vocab": vocab, "trained": trained, "threads": threads}, heard, limit
    )
    return Answer(answer.result | {"threads": threads}, answer.log)


register(LlamaCpp("llama.cpp", "xllamacpp", "pip install xllamacpp", {GGUF: ()}))
