"""llama.cpp itself loads every level, generates from it, and finds it as likely as we do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.imatrix import open_imatrix
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import Options, make_plan
from quantcore.recipes import recipes

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's engine is not installed")

DEMO = Path(__file__).parents[2] / "hub" / "demo"
VOCABULARY = 4096
FIRST, LAST, STEP = 128, 256, 16
PLACES = range(FIRST, LAST, STEP)


@pytest.fixture(scope="module")
def source():
    return open_model(DEMO / "tiny-novels-7m")


@pytest.fixture(scope="module")
def tokens(source) -> np.ndarray:
    return load_tokenizer(source).encode((DEMO / "evaluation.txt").read_text()[:4000])[:LAST]


IMATRIX = Path(__file__).parents[1] / "golden" / "novels.imatrix.gguf"


@pytest.fixture(scope="module", params=recipes())
def made(request, source, tmp_path_factory) -> Path:
    """A file of each level, those made with an importance matrix that need one."""
    path = tmp_path_factory.mktemp("levels") / f"{request.param}.gguf"
    imatrix = open_imatrix(IMATRIX) if recipes()[request.param].needs_imatrix else None
    plan = make_plan(source, request.param, Options(imatrix=imatrix))
    return quantize(source, plan, path, imatrix=imatrix).path


@pytest.fixture(scope="module")
def engine(made):
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(made)
    parameters.n_ctx = 512
    parameters.cpuparams.n_threads = 1
    parameters.verbosity = -1
    return xllamacpp.Server(parameters)


def complete(engine, prompt: Sequence[int], **options: object) -> dict:
    return engine.handle_completions({"prompt": list(map(int, prompt)), "temperature": 0, **options})


def engine_log_probabilities(engine, tokens: np.ndarray) -> np.ndarray:
    """Return llama.cpp's log probabilities of the whole vocabulary after every STEP-th prefix."""
    found = np.full((len(PLACES), VOCABULARY), np.nan)
    for row, place in enumerate(PLACES):
        answer = complete(engine, tokens[:place], n_predict=1, n_probs=VOCABULARY, cache_prompt=True)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[row, entry["id"]] = entry["logprob"]
    return found  # (places, vocabulary)


def our_log_probabilities(path: Path, tokens: np.ndarray) -> np.ndarray:
    def log_softmax(_chunk: int, logits: np.ndarray) -> np.ndarray:
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=-1, keepdims=True)
        return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))

    chunk = tokens[None, :].astype(np.int32)  # (1, tokens)
    (every,) = map_logits(open_model(path), chunk, log_softmax, first=FIRST - 1)
    return every[::STEP]  # (places, vocabulary)


def test_probabilities_are_llama_cpps(made, engine, tokens):
    """After the same text, llama.cpp and our forward pass see the same distribution of the next token.

    llama.cpp rounds activations to 8 bits before it multiplies quantized weights, so the two differ a little;
    a wrong scale, a swapped head or a missing norm gives a divergence hundreds of times larger.
    """
    ours, theirs = our_log_probabilities(made, tokens), engine_log_probabilities(engine, tokens)

    divergence = (np.exp(ours) * (ours - theirs)).sum(axis=-1)

    assert divergence.mean() < 0.002
    assert divergence.max() < 0.01


def test_text_is_generated(engine, tokens):
    """The engine writes words of the demo's vocabulary, not noise."""
    answer = complete(engine, tokens[:64], n_predict=24, ignore_eos=True)

    text = answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] == 24
    assert sum(letter.isalpha() or letter.isspace() for letter in text) > 0.8 * len(text)
