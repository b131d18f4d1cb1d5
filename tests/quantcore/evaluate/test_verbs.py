"""The verbs convert and perplexity keep their contract."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from quantcore.cli import main
from tests.quantcore.convert.families import write_model

TEXT = "the quick brown fox jumps over the lazy dog, and then the other. " * 12


@pytest.fixture
def model(tmp_path):
    write_model(tmp_path / "model", "qwen2", "BF16")
    (tmp_path / "text").write_text(TEXT)
    return tmp_path


def run(capfd, *arguments):
    status = main([str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return status, out, err


@pytest.mark.parametrize(("outtype", "level"), [("auto", "BF16"), ("f16", "F16"), ("f32", "F32")])
def test_convert_makes_the_type_asked_for(model, capfd, outtype, level):
    status, out, _ = run(
        capfd, "convert", model / "model", model / "out.gguf", "--outtype", outtype, "--json"
    )

    document = json.loads(out)
    assert (status, document["level"]) == (0, level)
    assert document["file_bytes"] == (model / "out.gguf").stat().st_size


def test_a_context_that_a_base_decides_is_said_to_have_no_say(model, capfd):
    text, base = model / "text", model / "base"
    run(capfd, "perplexity", model / "model", text, "--ctx", 32, "--save-base", base)

    *_, same = run(capfd, "perplexity", model / "model", text, "--ctx", 32, "--kl-base", base)
    status, out, other = run(capfd, "perplexity", model / "model", text, "--ctx", 64, "--kl-base", base)

    assert (status, "of 32 tokens" in out) == (0, True)
    assert "has no say" not in same
    assert "the chunks of the base have 32 tokens; --ctx 64 has no say in it" in other


def test_perplexity_prints_the_fields_of_the_contract(model, capfd):
    text, base = model / "text", model / "base"

    _, saved, _ = run(capfd, "perplexity", model / "model", text, "--ctx", 32, "--save-base", base, "--json")
    _, compared, _ = run(capfd, "perplexity", model / "model", text, "--kl-base", base, "--json")

    fields = {"ppl", "ppl_stderr", "n_ctx", "chunks", "tokens", "seconds", "tokens_per_second"}
    fields |= {"bits_per_byte", "bits_per_byte_stderr", "scored_bytes", "bos", "activations"}
    fields |= {"dataset_sha256", "build", "hardware"}
    assert set(json.loads(saved)) == fields
    assert json.loads(saved)["dataset_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    found = json.loads(compared)
    assert set(found) >= fields | {"kld", "same_top", "rms_dp"}
    assert set(found["kld"]) >= {"mean", "stderr", "median", "p99", "p999", "max"}
    percentiles = {"min", "p001", "p01", "p05", "p10", "median", "p90", "p95", "p99", "p999", "max"}
    assert set(found["kld"]) >= percentiles
    assert set(found["delta_p"]) >= percentiles | {"mean", "stderr", "p25", "p75"}
    assert set(found) >= {"same_top_stderr", "rms_dp_stderr", "ppl_base", "ppl_base_stderr"}
    assert set(found) >= {"ppl_correlation", "ppl_log_ratio", "ppl_log_ratio_stderr", "ppl_ratio"}


def test_people_read_sentences(model, capfd):
    status, out, _ = run(capfd, "perplexity", model / "model", model / "text", "--ctx", 32, "--chunks", 3)

    assert status == 0
    assert out.startswith("perplexity ")
    assert "(3 chunks of 32 tokens" in out
    assert "\nbits per byte " in out


def test_a_short_text_is_named(model, capfd):
    (model / "short").write_text("the the the")

    status, _, err = run(capfd, "perplexity", model / "model", model / "short", "--ctx", 32)

    assert status == 1
    assert err.startswith(f"quantcore perplexity: {model / 'short'}: the text has 3 tokens; a context of 32")


def test_chunks_beyond_the_trained_context_are_measured_with_a_note(model, capfd):
    config = json.loads((model / "model/config.json").read_text())
    (model / "model/config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    text, base = model / "text", model / "base"

    within = run(capfd, "perplexity", model / "model", text, "--ctx", 32)
    beyond = run(capfd, "perplexity", model / "model", text, "--ctx", 33, "--save-base", base)
    compared = run(capfd, "perplexity", model / "model", text, "--kl-base", base)

    noted = "note: the model was trained on at most 32 tokens in a row; figures for 33 say little about it\n"
    assert [(status, err) for status, _, err in (within, beyond, compared)] == [
        (0, ""),
        (0, noted),
        (0, noted),
    ]


def test_convert_sends_who_has_a_gguf_file_to_quantize(model, capfd):
    (model / "model.gguf").write_bytes(b"GGUF")

    status, _, err = run(capfd, "convert", model / "model.gguf", model / "out.gguf")

    assert status == 1
    assert "model.gguf: is a file; convert takes a Hugging Face model directory" in err
    assert "`quantcore quantize` takes GGUF files" in err


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder that lets nobody create files")
def test_a_base_that_cannot_be_written_is_named(model, capfd):
    text = model / "text"

    status, _, err = run(capfd, "perplexity", model / "model", text, "--ctx", 32, "--save-base", "/proc/base")

    assert (status, err.count("\n")) == (1, 1)
    assert err.startswith("quantcore perplexity: /proc/base: cannot be written: ")
    assert ".partial" not in err


def test_a_failure_is_one_line_that_names_the_file(model, capfd):
    (model / "latin").write_bytes(b"caf\xe9" * 999)

    status, out, err = run(capfd, "perplexity", model / "model", model / "latin")

    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert "latin: is not UTF-8 text: byte 3 is 0xe9" in err
