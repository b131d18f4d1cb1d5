"""llama.cpp sees in a converted model of each family what our forward pass sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.evaluate import ops
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.ops import gelu
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from tests.quantcore.convert.families import FAMILIES, config_of, safetensors_bytes, weights_of, write_model

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's engine is not installed")

TOKENS = np.random.default_rng(5).integers(0, 256, size=(1, 48)).astype(np.int32)
PLACES = (1, 7, 24, 47)  # how many tokens were read
# A whole letter, or two: of a byte that only begins one, llama.cpp tells nothing before it has the rest. The
# probabilities that it tells are without this bias.
LETTER, LETTERS_OF_GEMMA = 64, 272


@pytest.fixture(params=sorted(FAMILIES))
def family(request) -> str:
    return request.param


@pytest.fixture
def converted(family, tmp_path) -> Path:
    write_model(tmp_path / "model", family)
    source = open_huggingface(tmp_path / "model")
    packed = quantize(source, make_plan(source, "F32"), tmp_path / "model.gguf").path
    if family != "gpt-oss":
        return packed
    # llama.cpp rounds what it multiplies packed experts with to 8 bits.
    source = open_model(packed)
    return quantize(source, make_plan(source, "F32"), tmp_path / "unpacked.gguf").path


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


# llama.cpp looks up the gate of Gemma by 16-bit floats in a table of them.
ROUNDED = ("gemma2", "gemma3")


def test_log_probabilities_are_llama_cpps(family, converted):
    """With keys and values in 32 bits and attention by plain sums, the two agree to all digits of float32."""
    check(family, converted, 2e-3 if family in ROUNDED else 1e-4)


@pytest.mark.parametrize("family", ROUNDED)
def test_all_that_differs_for_gemma_is_the_rounding_of_the_gate(family, converted, monkeypatch):
    """Where a gate lies between two of those floats, the two may still take another each."""

    def rounded(x: np.ndarray, *, xp: Any) -> None:
        near = x.astype(np.float16).astype(np.float32)
        gelu(near, xp=xp)
        x[...] = np.select([x <= -10, x >= 10], [0, x], near.astype(np.float16).astype(np.float32))

    monkeypatch.setitem(ops.GATES, "gelu", rounded)

    check(family, converted, 5e-4)


@pytest.mark.parametrize("family", ROUNDED)
@pytest.mark.parametrize("level", ["Q8_0", "Q4_0"])
def test_a_quantized_gemma_is_seen_alike(family, converted, level, tmp_path):
    """llama.cpp rounds what it multiplies such weights with to 8 bits."""
    source = open_model(converted)
    quantized = quantize(source, make_plan(source, level), tmp_path / f"{level}.gguf").path

    check(family, quantized, 0.3)


@pytest.mark.parametrize("family", ["phi3", "stablelm12b"])
@pytest.mark.parametrize("level", ["Q4_K_M", "Q3_K_S"])
def test_fused_matrices_and_stacked_norms_are_loaded_and_seen_alike(family, level, tmp_path):
    """The weights are small: of such a model, rounding to 8 bits changes little."""
    config = config_of(family) | {"hidden_size": 256, "intermediate_size": 512}
    weights = {name: rows * (1 if "norm" in name else 0.2) for name, rows in weights_of(config).items()}
    write_model(tmp_path / "model", family)
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "model.safetensors").write_bytes(safetensors_bytes(weights))
    source = open_huggingface(tmp_path / "model")
    quantized = quantize(source, make_plan(source, level), tmp_path / f"{level}.gguf").path

    check(family, quantized, 0.15)


def check(family: str, model: Path, tolerance: float) -> None:
    """Hold our log probabilities after some tokens, and after more, to those of llama.cpp's engine."""
    (ours,) = map_logits(open_model(model), TOKENS, lambda _chunk, logits: log_softmax(logits))
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = 64
    parameters.cpuparams.n_threads = 1
    parameters.verbosity = -1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    engine = xllamacpp.Server(parameters)

    vocabulary = config_of(family)["vocab_size"]
    likeliest = LETTERS_OF_GEMMA if family in ROUNDED else LETTER
    for place in PLACES:
        prompt = [int(token) for token in TOKENS[0, :place]]
        asked = {"prompt": prompt, "temperature": 0, "n_predict": 1, "n_probs": vocabulary}
        answer = engine.handle_completions(asked | {"logit_bias": [[likeliest, 1e6]]})
        theirs = np.full(vocabulary, np.nan)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            theirs[entry["id"]] = entry["logprob"]
        assert np.abs(ours[place - 1] - theirs).max() < tolerance
