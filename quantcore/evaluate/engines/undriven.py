"""Engines that run what the hub knows of, and that nothing here drives yet.

Whoever asks for a figure is told which of them could give one, and what it lacks on this machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantcore.evaluate.engines.base import Engine, register
from quantcore.evaluate.engines.kinds import HUGGINGFACE, ONNX


@dataclass(frozen=True)
class Undriven(Engine):
    """An engine that a person can run beside us."""

    def lacking(self, kind: str) -> str:
        return super().lacking(kind) or f"{self.name} is installed, but cannot be driven from here yet"


_VLLM = (HUGGINGFACE, "awq", "bitsandbytes", "compressed-tensors", "gptq")

register(Undriven("ExLlamaV2", "exllamav2", "pip install exllamav2", {"exl2": (), "gptq": ()}, cuda=True))
register(Undriven("ONNX Runtime", "onnxruntime", "pip install onnxruntime", {ONNX: ()}))
register(Undriven("vLLM", "vllm", "pip install vllm", dict.fromkeys(_VLLM, ()), cuda=True))
