"""Hugging Face Transformers on PyTorch: model directories, plain or with weights that its kernels read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantcore.cores import usable_cores
from quantcore.errors import UnreadableFile
from quantcore.evaluate.child import Child, Heard, converse
from quantcore.evaluate.engines.base import Asked, Engine, Found, installed, register, sampled
from quantcore.evaluate.engines.kinds import HUGGINGFACE, config_of
from quantcore.evaluate.memory import Memory

INSTALL = "pip install 'quanthub[transformers]'"
CHILD = Child("Transformers", "quantcore.evaluate.children.transformers", INSTALL)

# What Transformers imports to load weights of each method.
KINDS = {
    HUGGINGFACE: (),
    "aqlm": ("accelerate", "aqlm"),
    "awq": ("accelerate", "gptqmodel"),
    "bitsandbytes": ("accelerate", "bitsandbytes"),
    "compressed-tensors": ("accelerate", "compressed_tensors"),
    "gptq": ("accelerate", "gptqmodel"),
    "hqq": ("accelerate", "hqq"),
}


@dataclass(frozen=True)
class Transformers(Engine):
    """Its models as `from_pretrained` loads them, weights in the type they are stored in."""

    def lacking(self, kind: str) -> str:
        if not installed("torch"):
            return f"{self.name} needs torch, which is not installed ({self.install})"
        return super().lacking(kind)

    def trained(self, path: Path) -> int:
        found = _text_config(path).get("max_position_embeddings")
        return found if isinstance(found, int) else 0

    def measure(self, path: Path, asked: Asked, heard: Heard) -> Found:
        vocab = _text_config(path).get("vocab_size")
        if not isinstance(vocab, int) or vocab < 1:
            raise UnreadableFile(f"{path / 'config.json'}: vocab_size is {vocab!r}, not a number of tokens")
        threads = asked.threads or usable_cores()
        job = {"kind": "bench", "pp": asked.pp, "tg": asked.tg, "depths": asked.depths, "runs": asked.runs}
        job |= {"seed": asked.seed, "threads": threads, "vocab": vocab}
        result = converse(CHILD, path, job, heard, asked.limit).result
        return Found(
            engine_version=result["engine_version"],
            backend=result["backend"],
            threads=threads,
            sampled=sampled(result["samples"]),
            memory=Memory(**result["memory"]),
            flags=result.get("flags", {}),
        )


def _text_config(path: Path) -> dict[str, object]:
    """Return the configuration of the language model; models that also see keep it one level down."""
    config = config_of(path)
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config


register(Transformers("Transformers", "transformers", INSTALL, KINDS))
