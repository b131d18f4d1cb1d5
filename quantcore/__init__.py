"""Quantize, convert and measure language models: numbers and files, no web.

    source = open_model(Path("model/"))                  # GGUF file or Hugging Face directory; headers only
    plan = make_plan(source, "Q4_K_M")                   # the type and exact bytes of every tensor
    result = quantize(source, plan, Path("out.gguf"))
    perplexity(open_model(result.path), text)

This is the face: `hub` and other programs use these names and nothing behind them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantcore import errors
    from quantcore.backends import choose as choose_backend
    from quantcore.backends import kernels_missing, wait_for_kernels
    from quantcore.calibrate import importance
    from quantcore.calibrate import promised as promised_importance
    from quantcore.evaluate.divergence import (
        base_chunk_nbytes,
        divergence,
        n_vocab,
        open_base,
        save_base,
    )
    from quantcore.evaluate.hardware import hardware
    from quantcore.evaluate.perplexity import Perplexity, compare, perplexity
    from quantcore.evaluate.speed import NotMeasured, Speed, SpeedTest, bench
    from quantcore.evaluate.tensorerrors import tensor_errors
    from quantcore.formats import formats as all_formats
    from quantcore.ggmltypes import is_quantized
    from quantcore.identity import build
    from quantcore.imatrix import ImportanceMatrix, open_imatrix
    from quantcore.models import open_model
    from quantcore.pipeline import Result, quantize, verify
    from quantcore.plan import Options, Plan, make_plan
    from quantcore.progress import Progress
    from quantcore.recipes import recipes as all_recipes
    from quantcore.sources.base import Source

__all__ = [
    "ImportanceMatrix",
    "NotMeasured",
    "Options",
    "Perplexity",
    "Plan",
    "Progress",
    "Result",
    "Source",
    "Speed",
    "SpeedTest",
    "all_formats",
    "all_recipes",
    "base_chunk_nbytes",
    "bench",
    "build",
    "choose_backend",
    "compare",
    "divergence",
    "errors",
    "hardware",
    "importance",
    "is_quantized",
    "kernels_missing",
    "make_plan",
    "n_vocab",
    "open_base",
    "open_imatrix",
    "open_model",
    "perplexity",
    "promised_importance",
    "quantize",
    "save_base",
    "tensor_errors",
    "verify",
    "wait_for_kernels",
]

# Where each name lives. It is imported when it is first used: a page that lists levels need not wait for a
# tokenizer, and a terminal answers `--help` at once.
_HOMES = {
    "ImportanceMatrix": "imatrix:ImportanceMatrix",
    "NotMeasured": "evaluate.speed:NotMeasured",
    "Options": "plan:Options",
    "Perplexity": "evaluate.perplexity:Perplexity",
    "Plan": "plan:Plan",
    "Progress": "progress:Progress",
    "Result": "pipeline:Result",
    "Source": "sources.base:Source",
    "Speed": "evaluate.speed:Speed",
    "SpeedTest": "evaluate.speed:SpeedTest",
    "all_formats": "formats:formats",
    "all_recipes": "recipes:recipes",
    "base_chunk_nbytes": "evaluate.divergence:base_chunk_nbytes",
    "bench": "evaluate.speed:bench",
    "build": "identity:build",
    "choose_backend": "backends:choose",
    "compare": "evaluate.perplexity:compare",
    "divergence": "evaluate.divergence:divergence",
    "hardware": "evaluate.hardware:hardware",
    "importance": "calibrate:importance",
    "is_quantized": "ggmltypes:is_quantized",
    "kernels_missing": "backends:kernels_missing",
    "make_plan": "plan:make_plan",
    "n_vocab": "evaluate.divergence:n_vocab",
    "open_base": "evaluate.divergence:open_base",
    "open_imatrix": "imatrix:open_imatrix",
    "open_model": "models:open_model",
    "perplexity": "evaluate.perplexity:perplexity",
    "quantize": "pipeline:quantize",
    "promised_importance": "calibrate:promised",
    "save_base": "evaluate.divergence:save_base",
    "tensor_errors": "evaluate.tensorerrors:tensor_errors",
    "verify": "pipeline:verify",
    "wait_for_kernels": "backends:wait_for_kernels",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("quantcore.errors")
    home, _, attribute = _HOMES.get(name, "").partition(":")
    if not home:
        raise AttributeError(f"module 'quantcore' has no attribute {name!r}")
    return getattr(import_module(f"quantcore.{home}"), attribute)
