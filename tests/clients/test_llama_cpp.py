"""llama.cpp itself loads every level, generates from it, and finds it as likely as we do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from quantcore.convert import open_model
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.perplexity import token_nll
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from quantcore.recipes import recipes

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's engine is not installed")

DEMO = Path(__file__).parents[2] / "hub" / "demo"
VOCABULARY = 4096
FIRST, LAST, STEP = 128, 256, 4


@pytest.fixture(scope="module")
def source():
    return open_model(DEMO / "tiny-novels-7m")


@pytest.fixture(scope="module")
def tokens(source) -> np.ndarray:
    return load_tokenizer(source).encode((DEMO / "evaluation.txt").read_text()[:4000])[:LAST]


@pytest.fixture(scope="module", params=recipes())
def made(request, source, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("levels") / f"{request.param}.gguf"
    return quantize(source, make_plan(source, request.param), path).path


@pytest.fixture(scope="module")
def engine(made):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(made)
    parameters.n_ctx = 512
    parameters.cpuparams.n_threads = 2
    parameters.verbosity = -1
    return xllamacpp.Server(parameters)


def complete(engine, prompt: Sequence[int], **options: object) -> dict:
    return engine.handle_completions({"prompt": list(map(int, prompt)), "temperature": 0, **options})


def engine_nll(engine, tokens: np.ndarray) -> np.ndarray:
    """Return llama.cpp's -log probability of every STEP-th token, given all before it."""
    found = []
    for place in range(FIRST, LAST, STEP):
        answer = complete(engine, tokens[:place], n_predict=1, n_probs=VOCABULARY, cache_prompt=True)
        every = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found.append(-next(entry["logprob"] for entry in every if entry["id"] == tokens[place]))
    return np.array(found)


def our_nll(path: Path, tokens: np.ndarray) -> np.ndarray:
    chunk = tokens[None, :].astype(np.int32)  # (1, tokens)
    (nll,) = map_logits(
        open_model(path), chunk, lambda _, logits: token_nll(logits, tokens[FIRST:]), first=FIRST - 1
    )
    return nll[::STEP]


def test_perplexity_is_llama_cpps(made, engine, tokens):
    """On the same tokens of the same file, llama.cpp and our forward pass agree within 0.5 %."""
    ours, theirs = our_nll(made, tokens), engine_nll(engine, tokens)

    assert np.exp(ours.mean() - theirs.mean()) == pytest.approx(1, abs=0.005)
    assert np.abs(ours - theirs).max() < 0.2


def test_text_is_generated(engine, tokens):
    """The engine writes words of the demo's vocabulary, not noise."""
    answer = complete(engine, tokens[:64], n_predict=24, ignore_eos=True)

    text = answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == 24
    assert sum(letter.isalpha() or letter.isspace() for letter in text) > 0.8 * len(text)
