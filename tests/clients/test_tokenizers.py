"""llama.cpp makes the same ids of a text as we do, by vocabularies of the kinds that no model here has."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest

from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.models import open_model
from tests.quantcore.evaluate.test_tokenizer import TEXT
from tests.quantcore.evaluate.vocabularies import KINDS
from tests.quantcore.models import llama_metadata, llama_shapes, tensor_infos, write_gguf

xllamacpp = pytest.importorskip("xllamacpp", reason="llama.cpp's engine is not installed")

TEXTS = (
    TEXT,
    " a <|user|> \n\t <|user|>b</s>  c<|user|>",
    "a<PRE>b<|end|>c<|return|> <|call|><|im_end|> <turn|><|file_sep|>[PAD] <|fim_middle|>",
    "abc he hey ac tea",
    "\n\n\nab\n\n \nthe the\n\n",
    "İstanbul ÅNGSTRÖM \u0301 a\u0301e\u0323 \U0001f600x [MASK] 5 € \u200bz\ufffdz \ue000 한국 it's $",
    "",
)


@pytest.fixture(params=KINDS)
def model(request, tmp_path):
    metadata = KINDS[request.param]
    shapes = llama_shapes(layers=1, vocabulary=len(metadata["tokenizer.ggml.tokens"].value))
    return write_gguf(tmp_path / "model.gguf", llama_metadata(layers=1) | metadata, tensor_infos(shapes))


def engine_ids(model, texts) -> Iterator[list[int]]:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.n_ctx = 64
    parameters.cpuparams.n_threads = 1
    parameters.verbosity = -1
    engine = xllamacpp.Server(parameters)
    for text in texts:
        asked = json.dumps({"content": text, "add_special": True, "parse_special": False}).encode()
        request = urllib.request.Request(f"{engine.listening_address}/tokenize", asked)
        with urllib.request.urlopen(request) as answer:
            yield json.load(answer)["tokens"]


def test_ids_are_llama_cpps(model):
    ours = load_tokenizer(open_model(model))

    for text, theirs in zip(TEXTS, engine_ids(model, TEXTS), strict=True):
        assert ours.encode(text).tolist() == theirs, text
