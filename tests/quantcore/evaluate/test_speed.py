"""Speed comes from llama.cpp itself, in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

from quantcore.cli import main
from quantcore.errors import Cancelled, InputError, UnreadableFile
from quantcore.evaluate.forward import map_logits
from quantcore.evaluate.hardware import hardware
from quantcore.evaluate.others import Others
from quantcore.evaluate.speed import bench, generate
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.models import open_model
from quantcore.pipeline import quantize
from quantcore.plan import make_plan


@pytest.fixture(scope="module")
def demo(tmp_path_factory, pytestconfig):
    pytest.importorskip("xllamacpp")
    source = open_model(pytestconfig.rootpath / "hub/demo/tiny-novels-7m")
    path = tmp_path_factory.mktemp("speed") / "demo.gguf"
    return quantize(source, make_plan(source, "F16"), path).path


def test_bench_prints_one_document_and_nothing_else(demo, capfd):
    assert main(["bench", str(demo), "--pp", "16", "--tg", "4", "--runs", "2", "--json"]) == 0

    document = json.loads(capfd.readouterr().out)
    assert [(r["test"], r["runs"]) for r in document["results"]] == [("pp16", 2), ("tg4", 2)]
    assert all(r["mean"] > 0 for r in document["results"])
    assert document["engine"] == "llama.cpp"
    assert document["backend"]
    assert document["engine_version"].startswith("xllamacpp ")
    assert document["not_measured"] == []
    flags = {"n_ctx": 24, "n_batch": 2048, "n_ubatch": 512, "n_gpu_layers": "all that fit"}
    assert document["flags"] == flags | {"flash_attn": "auto", "rope_stretched": False, "seed": 1}


def test_each_test_is_run_at_each_depth(demo, capsys):
    arguments = ["--pp", "16", "--tg", "4", "--runs", "1", "--depth", "0", "64", "--threads", "1", "--json"]
    assert main(["bench", str(demo), *arguments]) == 0

    told = [(r["test"], r["depth"]) for r in json.loads(capsys.readouterr().out)["results"]]
    assert told == [("pp16", 0), ("tg4", 0), ("pp16 @ d64", 64), ("tg4 @ d64", 64)]


def test_a_depth_beyond_the_context_is_lowered_to_what_it_has_and_said(demo, capsys):
    """The demo was trained on 512 tokens in a row: behind 4096 there is nothing to measure."""
    arguments = ["--pp", "64", "--tg", "4", "--runs", "1", "--threads", "1", "--depth", "0", "4096"]
    assert main(["bench", str(demo), *arguments]) == 0

    told = capsys.readouterr()
    assert "tg4 @ d448" in told.out
    assert "4096" not in told.out
    room = "the model's context of 512 tokens has no room for 64 more; measured at 448 instead"
    assert told.err == f"note: depth 4096: {room}\n"


def test_where_no_depth_fits_the_tests_are_run_behind_nothing(demo):
    speed = bench(demo, pp=512, tg=1, depths=(0, 4096), runs=1, threads=1)

    assert [(result.test, result.depth) for result in speed.results] == [("pp512", 0), ("tg1", 0)]
    assert [missed.why.split("; ")[1] for missed in speed.not_measured] == ["measured at 0 instead"]


def test_memory_is_what_arithmetic_says(demo):
    """Six layers of 4 key and 4 value heads of 32 halves; caches grow by 256 tokens, batches do not."""
    memory = bench(demo, pp=16, tg=4, depths=(300,), runs=1, threads=1).memory

    assert (memory.n_ctx, memory.type_k, memory.type_v, memory.n_ubatch) == (512, "f16", "f16", 300 + 16 + 8)
    assert memory.kv == 512 * 6 * (4 + 4) * 32 * 2
    assert memory.model == pytest.approx(sum(info.nbytes for info in open_model(demo).infos), rel=1e-3)
    assert memory.compute > 0
    assert memory.flash_attention is True
    assert {buffer.kind for buffer in memory.buffers} == {"model", "kv", "compute", "output"}


def burn(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_share_of_others_leaves_out_this_process_and_its_children(monkeypatch):
    """Against a machine that is otherwise idle, by the numbers that the system gives."""
    ticks = os.sysconf("SC_CLK_TCK")
    began, cores = time.monotonic(), os.cpu_count()
    own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    at_start = sum(usage.ru_utime + usage.ru_stime for usage in own)

    def told(path):
        """This process, its children, and half of all processors for others."""
        own = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        mine = sum(usage.ru_utime + usage.ru_stime for usage in own) - at_start
        busy = int(ticks * (mine + 0.5 * cores * (time.monotonic() - began)))
        return f"cpu  {busy} 0 0 99 7 0 0 0 0 0\ncpu0 0"

    monkeypatch.setattr("quantcore.evaluate.others.Path.read_text", told)
    others = Others()
    burn(0.3)
    subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)

    assert others.share() == pytest.approx(0.5, abs=0.1)


def test_where_the_system_does_not_tell_nothing_is_known(monkeypatch):
    def missing(_path):
        raise FileNotFoundError

    monkeypatch.setattr("quantcore.evaluate.others.Path.read_text", missing)

    assert Others().share() is None


@pytest.mark.parametrize(("pp", "notes"), [(512, 0), (520, 1)])
def test_a_prompt_beyond_the_trained_context_is_timed_with_a_note(demo, capfd, pp, notes):
    assert main(["bench", str(demo), "--pp", str(pp), "--tg", "1", "--runs", "1"]) == 0

    noted = (
        f"note: the model was trained on at most 512 tokens in a row; figures for {pp} say little about it\n"
    )
    assert capfd.readouterr().err == noted * notes


def test_a_prompt_as_long_as_the_trained_context_can_be_timed(demo):
    assert [result.test for result in bench(demo, pp=512, tg=1, runs=1).results] == ["pp512", "tg1"]


def test_llama_cpp_writes_what_the_forward_pass_finds_likeliest(demo):
    source = open_model(demo)
    prompt = "It was a dark and stormy night, and the"

    text = generate(demo, prompt, 6)

    ids = load_tokenizer(source).encode(prompt).tolist()
    for _ in range(6):
        tokens = np.asarray([[*ids, 0]], dtype=np.int32)
        ids.append(int(map_logits(source, tokens, lambda _chunk, logits: logits[-1].argmax())[0]))
    words = [source.get("tokenizer.ggml.tokens")[index] for index in ids[-6:]]
    assert text == "".join(words).replace("Ġ", " ").replace("Ċ", "\n")


def test_cancelling_ends_the_child(demo):
    def stop(_progress):
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        bench(demo, pp=16, tg=4, runs=1, report=stop)


def test_bad_requests_are_refused_before_anything_starts(demo, tmp_path):
    with pytest.raises(InputError, match="is a directory"):
        bench(tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        bench(demo, runs=0)
    with pytest.raises(InputError, match="at least 0"):
        bench(demo, depths=())
    with pytest.raises(UnreadableFile, match=r"gone\.gguf"):
        bench(tmp_path / "gone.gguf")


def test_hardware_names_the_machine():
    found = hardware()

    assert found.cpu
    assert found.cores >= 1
    assert found.ram > 1 << 28
