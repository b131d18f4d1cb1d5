"""Calibration: the sums are llama-imatrix's, the bits the same for any threads, the files of both kinds."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from quantcore.calibrate import importance, promised
from quantcore.cli import main
from quantcore.convert import open_huggingface
from quantcore.errors import InputError, ShortText
from quantcore.ggufkv import f32, string
from quantcore.imatrix import open_imatrix
from quantcore.imatrixfiles import HASHES, Sums
from quantcore.models import open_model
from quantcore.sources.gguf import read_header
from tests.quantcore.convert.families import config_of, weights_of, write_model
from tests.quantcore.evaluate import reference

GOLDEN = Path(__file__).parents[1] / "golden"
DEMO = Path(__file__).parents[2] / "hub" / "demo"
CHUNK = 128


@pytest.fixture(scope="module")
def demo():
    return open_model(DEMO / "tiny-novels-7m")


@pytest.fixture(scope="module")
def text():
    return (DEMO / "calibration.txt").read_text().removesuffix("\n")


@pytest.fixture(scope="module")
def measured(demo, text):
    return importance(demo, text, "calibration.txt", n_ctx=CHUNK, n_chunks=24)


def some(value=1.0, count=256.0, chunk_size=CHUNK):
    sums = Sums(chunk_size, datasets=["a.txt"], hashes=["f" * 64])
    sums.add("blk.0.attn_q.weight", np.full((1, 3), value), np.array([count]))
    sums.add("blk.0.ffn_up_exps.weight", np.arange(6.0).reshape(2, 3) + value, np.array([count, 0.0]))
    return sums


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_sums_are_those_of_llama_imatrix(measured, tmp_path, kind):
    """It rounds keys and values to 16 bits on the way, hence no more digits."""
    measured.save(tmp_path / f"ours.{kind}")
    ours, theirs = open_imatrix(tmp_path / f"ours.{kind}"), open_imatrix(GOLDEN / f"novels.imatrix.{kind}")

    assert ours.entries.keys() == theirs.entries.keys()
    assert (ours.datasets, ours.n_chunks) == (theirs.datasets, theirs.n_chunks)
    for name in theirs.entries:
        (values, counts), (wanted, n) = ours.sums(name, CHUNK), theirs.sums(name, CHUNK)
        assert (counts == n).all()
        assert (np.abs(values - wanted) <= 1e-3 * wanted).all(), name


@pytest.mark.parametrize(
    "family", ["llama", "olmo2", "gemma3", "mixtral", "qwen2moe", "gpt-oss", "phi3", "stablelm12b"]
)
def test_sums_are_those_of_plain_loops_in_float64(tmp_path, monkeypatch, family):
    """Experts apart: each has the inputs of the tokens that were sent to it."""
    write_model(tmp_path, family)
    tokens = np.random.default_rng(3).integers(0, 259, size=(2, 24)).astype(np.int32)
    monkeypatch.setattr("quantcore.calibrate.chunked", lambda *_: tokens)
    seen = {}

    source = open_huggingface(tmp_path)
    sums = importance(source, "", "text")
    for row in tokens:
        reference.logits(config_of(family), weights_of(config_of(family)), row, seen)

    assert {name for name, _ in seen} == sums.values.keys() == promised(source, "", "").entries.keys()
    for (name, number), inputs in seen.items():
        assert sums.counts[name][number] == len(inputs)
        assert np.allclose(sums.values[name][number], (np.stack(inputs) ** 2).sum(axis=0), rtol=1e-3)


@pytest.mark.parametrize(("n_ctx", "chunks"), [(512, 2), (128, 24), (256, 3)])
def test_threads_change_no_bit(demo, text, n_ctx, chunks):
    """Also where there are more of them than pieces of work."""
    alone, many = (importance(demo, text, "it", n_ctx=n_ctx, n_chunks=chunks, threads=n) for n in (1, 5))

    for name, values in many.values.items():
        assert (values == alone.values[name]).all(), name


def test_files_name_their_text_by_its_hash(measured, tmp_path):
    measured.save(tmp_path / "it.gguf")

    assert read_header(tmp_path / "it.gguf").metadata[HASHES].value == measured.hashes
    assert len(measured.hashes[0]) == 64


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_two_measurements_merged_are_one_of_both(kind, tmp_path):
    some(2.0).save(tmp_path / f"before.{kind}")
    sums = some(5.0)

    sums.merge(open_imatrix(tmp_path / f"before.{kind}"))

    assert np.allclose(sums.values["blk.0.attn_q.weight"], 7.0)
    assert sums.counts["blk.0.attn_q.weight"] == [512.0]
    assert (sums.n_chunks, sums.datasets) == (4, ["a.txt", "a.txt"])


@pytest.mark.parametrize("kinds", [("gguf", "dat"), ("dat", "gguf")])
def test_files_are_merged_in_any_order_and_named_in_the_order_given(kinds, tmp_path):
    """The older kind has one count for a stack."""
    sums = Sums(CHUNK, datasets=["own.txt"], hashes=["0" * 64])
    for name, kind in zip(("first", "second"), kinds, strict=True):
        stack = some()
        stack.datasets = [f"{name}.txt"]
        stack.save(tmp_path / f"{name}.{kind}")
        sums.merge(open_imatrix(tmp_path / f"{name}.{kind}"))

    assert sums.datasets == ["first.txt", "second.txt", "own.txt"]
    assert sums.hashes == ["", "", "0" * 64]
    assert sums.values["blk.0.ffn_up_exps.weight"].shape == (2, 3)


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_names_that_are_no_text_survive(kind, tmp_path):
    name = b"blk.\xff.weight".decode("utf-8", "surrogateescape")
    sums = Sums(CHUNK)
    sums.add(name, np.ones((1, 2)), np.ones(1))

    sums.save(tmp_path / f"it.{kind}")

    assert name in open_imatrix(tmp_path / f"it.{kind}").entries


def test_counts_beyond_what_files_can_say_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight: more than 2147483648 inputs"):
        some(count=2.0**32).save(tmp_path / "it.dat")

    assert not list(tmp_path.iterdir())


def test_experts_that_no_token_reached_stay_known_as_such(tmp_path):
    some().save(tmp_path / "it.gguf")

    found = open_imatrix(tmp_path / "it.gguf").get("blk.0.ffn_up_exps.weight", (2, 4, 3))

    assert np.allclose(found, [[1 / 256, 2 / 256, 3 / 256], [1, 1, 1]])


def test_a_matrix_of_another_model_is_not_merged(tmp_path):
    some().save(tmp_path / "it.gguf")
    sums = Sums(CHUNK)
    sums.add("blk.0.attn_q.weight", np.ones((1, 4)), np.ones(1))

    with pytest.raises(InputError, match=r"it\.gguf: blk\.0\.attn_q\.weight: .*made for another model"):
        sums.merge(open_imatrix(tmp_path / "it.gguf"))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_sums_that_are_no_numbers_are_not_written(value, tmp_path):
    with pytest.raises(InputError, match=r"blk\.0\.attn_q\.weight: its inputs are no finite numbers"):
        some(value).save(tmp_path / "it.gguf")

    assert not list(tmp_path.iterdir())


def test_nothing_is_promised_of_a_model_whose_text_cannot_be_cut(demo):
    strange = replace(demo, metadata={**demo.metadata, "tokenizer.ggml.pre": string("strange")})

    with pytest.raises(InputError, match=r"tokenizer\.ggml\.pre is 'strange'"):
        promised(strange, "", "")
    scaled = {"llama.rope.scaling.type": string("dynamic"), "llama.rope.scaling.factor": f32(4.0)}
    with pytest.raises(InputError, match="dynamic"):
        promised(replace(demo, metadata={**demo.metadata, **scaled}), "", "")


def test_a_short_text_is_refused(demo):
    with pytest.raises(ShortText, match="needs at least 256"):
        importance(demo, "It was.", "text", n_ctx=CHUNK)


def test_the_command_makes_what_quantize_takes(tmp_path, capsys):
    model, text, out = DEMO / "tiny-novels-7m", DEMO / "calibration.txt", tmp_path / "m.gguf"
    arguments = ["imatrix", str(model), str(text), str(out), "--ctx", "128", "--chunks", "2", "--json"]

    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    assert main([*arguments[:4], "--ctx", "128", "--chunks", "2", "--merge", str(out)]) == 0
    quant = str(tmp_path / "q.gguf")
    assert main(["quantize", str(model), quant, "--to", "IQ2_XXS", "--imatrix", str(out)]) == 0

    assert {key: document[key] for key in ("entries", "n_ctx", "chunks", "tokens")} == {
        "entries": 42, "n_ctx": 128, "chunks": 2, "tokens": 256,
    }  # fmt: skip
    assert open_imatrix(out).n_chunks == 4
    assert "42 entries of 2 chunks of 128 tokens" in capsys.readouterr().out
    assert open_model(Path(quant)).get("quantize.imatrix.chunks_count") == 4


def test_a_text_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["imatrix", str(DEMO / "tiny-novels-7m"), "missing.txt", str(tmp_path / "o.gguf")]) == 1

    assert "missing.txt: cannot be read: No such file" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own(tmp_path):
    """A model and a text of one's own to lose."""
    write_model(tmp_path / "model", "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 40)
    return tmp_path


def told(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("target", ["text.txt", "model/model.safetensors", "model/config.json"])
def test_what_is_read_is_not_overwritten(own, capsys, target):
    before = (own / target).read_bytes()

    verbs = (
        ["imatrix", own / "model", own / "text.txt", own / target, "--ctx", "32"],
        ["perplexity", own / "model", own / "text.txt", "--ctx", "32", "--save-base", own / target],
    )
    for verb in verbs:
        assert "give another name" in told(capsys, *verb)
        assert (own / target).read_bytes() == before


def test_what_cannot_end_well_is_told_before_the_long_work(own, capsys, monkeypatch):
    def never(*_arguments, **_options):
        raise AssertionError

    monkeypatch.setattr("quantcore.cli.imatrix.importance", never)
    sums = Sums(32)
    sums.add("blk.0.attn_q.weight", np.ones((1, 4)), np.ones(1))
    sums.save(own / "other.gguf")
    common = ["imatrix", own / "model", own / "text.txt"]

    assert "the folder" in told(capsys, *common, own / "missing" / "o.gguf")
    assert "is a folder; give the name of a file" in told(capsys, *common, own / "model")
    merged = told(capsys, *common, own / "o.gguf", "--merge", own / "other.gguf")
    assert "other.gguf: blk.0.attn_q.weight has 4 values, the model's 32" in merged


def test_the_hash_is_that_of_what_was_read(own, monkeypatch):
    """A pipe can be read once only."""
    reads = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: reads.append(path.name) or read_bytes(path))

    assert (
        main([str(it) for it in ("imatrix", own / "model", own / "text.txt", own / "o.gguf", "--ctx", "32")])
        == 0
    )

    assert reads.count("text.txt") == 1
    digest = hashlib.sha256(read_bytes(own / "text.txt")).hexdigest()
    assert read_header(own / "o.gguf").metadata[HASHES].value == [digest]
