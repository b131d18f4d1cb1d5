"""llama.cpp loads gpt-oss as we convert and quantize it, writes, and finds text as likely as we do."""

from __future__ import annotations

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.evaluate.forward import map_logits
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import Options, make_plan
from tests.quantcore.convert.families import SMALL, config_of, safetensors_bytes, weights_of, write_model

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's engine is not installed")

VOCABULARY = SMALL["vocab_size"]
TOKENS = np.random.default_rng(5).integers(0, 256, size=(1, 48)).astype(np.int32)
PLACES = (20, 27, 34, 41, 47)  # how many tokens were read: more than the window holds
KEPT = Options(overrides=(("exps", "MXFP4"),))
MADE = {
    "as published": ("gpt-oss", "BF16", Options()),
    "MXFP4_MOE": ("gpt-oss", "MXFP4_MOE", Options()),
    "experts kept": ("gpt-oss", "Q4_K_M", KEPT),
    "plain": ("gpt-oss, plain", "BF16", Options()),
    "plain, MXFP4_MOE": ("gpt-oss, plain", "MXFP4_MOE", Options()),
    "plain, Q4_K_M": ("gpt-oss, plain", "Q4_K_M", Options()),
}


def calm(family):
    """Return weights of a model that does not make much of little: no rounding sends tokens elsewhere."""

    def less(name, array):
        if array.dtype == np.uint8:
            return array - 3 if name.endswith("_scales") else array
        return array if "norm" in name else array * np.float32(0.4)

    return {name: less(name, array) for name, array in weights_of(config_of(family)).items()}


@pytest.fixture(scope="module", params=sorted(MADE))
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gptoss")
    family, level, options = MADE[request.param]
    write_model(folder / "model", family)
    (folder / "model" / "model.safetensors").write_bytes(safetensors_bytes(calm(family), "BF16"))
    source = open_huggingface(folder / "model")
    return quantize(source, make_plan(source, level, options), folder / "made.gguf").path


@pytest.fixture(scope="module")
def engine(made):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(made)
    parameters.n_ctx = 64
    parameters.cpuparams.n_threads = 1
    parameters.verbosity = -1
    return xllamacpp.Server(parameters)


def complete(engine, prompt, **options):
    prompt = [int(token) for token in prompt]
    return engine.handle_completions({"prompt": prompt, "temperature": 0, **options})


def test_probabilities_are_llama_cpps(made, engine):
    """It rounds to 8 bits what it multiplies quantized weights with; another model is as far as 1."""

    def log_softmax(_chunk, logits):
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))

    (ours,) = map_logits(open_model(made), TOKENS, log_softmax)
    divergences = []
    for place in PLACES:
        answer = complete(engine, TOKENS[0, :place], n_predict=1, n_probs=VOCABULARY)
        told = answer["choices"][0]["logprobs"]
        if told is None:  # the likeliest byte is the beginning of a letter, and it waits for the rest
            continue
        theirs = np.full(VOCABULARY, np.nan)
        for entry in told["content"][0]["top_logprobs"]:
            theirs[entry["id"]] = entry["logprob"]
        divergences.append((np.exp(ours[place - 1]) * (ours[place - 1] - theirs)).sum())

    assert len(divergences) > 1
    assert np.median(divergences) < 3e-4  # rounding may send a token to another expert


def test_text_is_generated(engine):
    answer = complete(engine, TOKENS[0, :20], n_predict=12, ignore_eos=True)

    assert answer["usage"]["completion_tokens"] == 12
