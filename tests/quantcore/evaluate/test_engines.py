"""Engines are found by scanning; each says what it loads and what it lacks here."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from quantcore.cli import main
from quantcore.errors import InputError, MissingEngine
from quantcore.evaluate.children import CannotTime, llamacpp, measure
from quantcore.evaluate.engines import base, registry
from quantcore.evaluate.engines.base import Asked, Found
from quantcore.evaluate.engines.kinds import kind_of
from quantcore.evaluate.memory import Memory
from quantcore.evaluate.speed import bench
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan
from tests.quantcore.convert.families import write_model

PLAIN = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64, "vocab_size": 10}


def folder(tmp_path, config=None, *files):
    (tmp_path / "config.json").write_text(json.dumps(PLAIN if config is None else config))
    for name in files:
        (tmp_path / name).touch()
    return tmp_path


def with_installed(monkeypatch, *packages):
    monkeypatch.setattr(base, "find_spec", lambda name: name in packages or None)


def with_cards(monkeypatch, *cards):
    monkeypatch.setattr(base, "hardware", lambda: SimpleNamespace(gpus=cards))


@pytest.mark.parametrize(
    ("config", "files", "kind"),
    [
        ({}, (), "huggingface"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, (), "gptq"),
        ({"quantization_config": {"load_in_4bit": True}}, (), "huggingface"),
        ({"quantization_config": None}, (), "huggingface"),
        ({}, ("model.onnx",), "onnx"),
    ],
)
def test_a_directory_says_what_kind_it_is(tmp_path, config, files, kind):
    assert kind_of(folder(tmp_path, config, *files)) == kind


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"is a directory without config\.json"):
        kind_of(tmp_path)


@pytest.mark.parametrize(
    ("engine", "kind", "packages", "cards", "why"),
    [
        ("llama.cpp", "gguf", (), (), r"llama\.cpp is not installed \(pip install xllamacpp\)"),
        ("llama.cpp", "gguf", ("xllamacpp",), (), "^$"),
        ("Transformers", "huggingface", ("transformers",), (), "needs torch, which is not installed"),
        ("Transformers", "huggingface", ("torch", "transformers"), (), "^$"),
        (
            "Transformers",
            "gptq",
            ("torch", "transformers", "accelerate"),
            (),
            "needs gptqmodel for gptq weights: not inst",
        ),
        ("ExLlamaV2", "exl2", (), (), "ExLlamaV2 is not installed"),
        ("ExLlamaV2", "exl2", ("exllamav2",), (), "needs a CUDA card, and there is none here"),
        ("ExLlamaV2", "exl2", ("exllamav2",), ("NVIDIA H100",), "cannot be driven from here yet"),
        ("ONNX Runtime", "onnx", ("onnxruntime",), (), "cannot be driven from here yet"),
    ],
)
def test_an_engine_says_what_it_lacks(monkeypatch, engine, kind, packages, cards, why):
    with_installed(monkeypatch, *packages)
    with_cards(monkeypatch, *cards)

    assert re.search(why, registry()[engine].lacking(kind))


def test_where_no_engine_can_run_it_the_answer_says_of_each_why(monkeypatch, tmp_path):
    with_installed(monkeypatch)

    with pytest.raises(MissingEngine, match=r"not measured here: .*torch.*; vLLM is not installed"):
        bench(folder(tmp_path))


def test_a_kind_that_no_engine_loads_is_refused(tmp_path):
    with pytest.raises(InputError, match="no engine that is known here loads quip models"):
        bench(folder(tmp_path, {"quantization_config": {"quant_method": "quip"}}))


def test_a_named_engine_must_load_the_model(tmp_path):
    with pytest.raises(InputError, match=r"llama\.cpp does not load huggingface models"):
        bench(folder(tmp_path), engine="llama.cpp")


def test_what_other_engines_lack_stands_beside_the_figures(monkeypatch, tmp_path, capsys):
    """Also tests that the chosen one had no way to run."""
    engine = registry()["Transformers"]
    found = Found("1.0", "CPU", 2, base.sampled([
        {"test": "pp512", "depth": 0, "why": "its cache cannot go back"},
        {"test": "tg128", "depth": 0, "samples": [4.0, 6.0]},
    ]), Memory(100, None, None))  # fmt: skip
    monkeypatch.setattr(type(engine), "measure", lambda *_: found)
    with_installed(monkeypatch, "torch", "transformers")

    assert main(["bench", str(folder(tmp_path)), "--engine", "transformers", "--pp", "512"]) == 0

    told = capsys.readouterr()
    assert "5.00 +/- 1.41" in told.out
    assert "model 100 B, KV not measured, compute not measured" in told.out
    assert "note: pp512: its cache cannot go back" in told.err
    speed = bench(tmp_path)
    assert [(missed.engine, missed.test) for missed in speed.not_measured] == [
        ("Transformers", "pp512"),
        ("vLLM", ""),
    ]


class Recorder:
    """An engine that answers with how often it was asked."""

    def __init__(self):
        self.asked = []

    def fill(self, prefix):
        self.asked.append(("fill", len(prefix)))

    def prefill(self, prefix, prompt):
        if prefix:
            raise CannotTime("no way back")
        self.asked.append(("pp", len(prefix), len(prompt)))
        return float(len(self.asked))

    def decode(self, prefix, first, count):
        self.asked.append(("tg", len(prefix), count))
        return float(len(self.asked))


def test_the_first_run_of_a_test_warms_up_and_a_depth_is_filled_once():
    recorder, told = Recorder(), []
    job = {"pp": 8, "tg": 3, "depths": [0, 5], "runs": 2, "seed": 1, "vocab": 10}

    results = measure(recorder, job, told.append)

    assert recorder.asked == [("pp", 0, 8)] * 3 + [("tg", 0, 3)] * 3 + [("fill", 5)] + [("tg", 5, 3)] * 3
    assert results == [
        {"test": "pp8", "depth": 0, "samples": [2.0, 3.0]},
        {"test": "tg3", "depth": 0, "samples": [5.0, 6.0]},
        {"test": "pp8", "depth": 5, "why": "no way back"},
        {"test": "tg3", "depth": 5, "samples": [9.0, 10.0]},
    ]
    assert [message["done"] for message in told] == [1, 2, 3, 4, 5, 6, 6, 10, 11, 12]
    assert {message["total"] for message in told} == {12}


class Windowed(llamacpp.Server):
    """A server whose cache goes back to nothing else than a prefix that was just filled."""

    def __init__(self, *, keeps=True):
        self.keeps, self.held, self.fills = keeps, [], 0

    def complete(self, prompt, count, *, cached=False):
        known = len(self.held) if cached and self.keeps and self.held == prompt[: len(self.held)] else 0
        self.fills += not cached
        self.held = prompt
        return {"timings": {"prompt_n": len(prompt) - known, "prompt_per_second": 100.0 * known}}


def test_where_a_cache_cannot_go_back_the_prefix_is_filled_anew():
    server = Windowed()

    assert [server.prefill([1] * 40, [2] * 9), server.prefill([1] * 40, [3] * 9)] == [4000.0, 4000.0]
    assert server.fills == 2


def test_what_no_cache_keeps_is_not_timed():
    with pytest.raises(CannotTime, match="does not keep 40 tokens"):
        Windowed(keeps=False).prefill([1] * 40, [2] * 9)


def test_prompts_deep_in_a_window_are_timed(tmp_path):
    """Gemma's cache forgets what lies behind its window; llama.cpp goes back by checkpoints."""
    pytest.importorskip("xllamacpp")
    write_model(tmp_path, "gemma3")
    source = open_model(tmp_path)
    path = quantize(source, make_plan(source, "F16"), tmp_path / "model.gguf", threads=1).path

    asked = Asked(pp=40, tg=4, depths=(0, 600), runs=2, threads=1)
    found = registry()["llama.cpp"].measure(path, asked, lambda _message: None)

    assert [(s.test, s.depth, len(s.samples)) for s in found.sampled] == [
        ("pp40", 0, 2), ("tg4", 0, 2), ("pp40", 600, 2), ("tg4", 600, 2),
    ]  # fmt: skip
    assert [buffer.kind for buffer in found.memory.buffers].count("kv") == 2


def test_room_is_asked_for_the_deepest_test():
    assert Asked(pp=512, tg=128, depths=(0, 4096)).n_ctx == 4096 + 512 + 8


def test_transformers_measures_a_model_directory(pytestconfig):
    """Weights and cache are what arithmetic says: 6 layers of 4 key and 4 value heads of 32 halves."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    demo = pytestconfig.rootpath / "hub/demo/tiny-novels-7m"

    speed = bench(demo, pp=16, tg=4, depths=(0, 40), runs=2, threads=1)

    assert [(r.test, r.runs) for r in speed.results] == [
        ("pp16", 2), ("tg4", 2), ("pp16 @ d40", 2), ("tg4 @ d40", 2),
    ]  # fmt: skip
    assert all(result.mean > 0 for result in speed.results)
    assert (speed.engine, speed.backend) == ("Transformers", "CPU, float16")
    assert speed.memory.kv == (40 + 16) * 6 * (4 + 4) * 32 * 2
    assert speed.memory.model == pytest.approx(13.64e6, rel=1e-3)
    assert speed.memory.compute is None
