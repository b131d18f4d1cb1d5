"""Losses and logits by slabs of the vocabulary are those of the whole, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.evaluate import head
from quantcore.evaluate.forward import losses, map_logits
from quantcore.evaluate.perplexity import token_nll
from quantcore.evaluate.steps import Steps
from quantcore.ggufkv import f32
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model

FIRST = 11
TOKENS = np.random.default_rng(3).integers(0, 259, size=(3, 24)).astype(np.int32)


@pytest.fixture
def source(tmp_path):
    write_model(tmp_path, "llama")
    return open_huggingface(tmp_path)


def logits_of(source):
    return map_logits(source, TOKENS, lambda _chunk, logits: logits, first=FIRST, threads=1)


def small_slabs(monkeypatch):
    monkeypatch.setattr(head, "SLAB_WEIGHTS", 48 * 32)  # 48 of 260 tokens


def test_losses_are_those_of_whole_logits(source, monkeypatch):
    expected = [
        token_nll(logits, tokens[FIRST + 1 :])
        for logits, tokens in zip(logits_of(source), TOKENS, strict=True)
    ]
    small_slabs(monkeypatch)

    found = losses(source, TOKENS, first=FIRST, threads=2)

    assert [nll.shape for nll in found] == [(12,)] * 3
    assert np.stack(found) == pytest.approx(np.stack(expected), abs=1e-5)


def test_losses_of_logits_with_a_scale_are_theirs(tmp_path, monkeypatch):
    write_model(tmp_path, "granite")
    source = open_huggingface(tmp_path)
    small_slabs(monkeypatch)
    expected = [token_nll(rows, t[FIRST + 1 :]) for rows, t in zip(logits_of(source), TOKENS, strict=True)]

    found = np.stack(losses(source, TOKENS, first=FIRST))

    assert found == pytest.approx(np.stack(expected), abs=1e-5)
    plain = replace(source, metadata={**source.metadata, "granite.logit_scale": f32(1.0)})
    assert np.abs(found - np.stack(losses(plain, TOKENS, first=FIRST))).max() > 0.1


@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_slabs_and_batches_of_logits_do_not_show(source, monkeypatch, kept):
    whole = logits_of(source)
    small_slabs(monkeypatch)
    monkeypatch.setattr(head, "LOGITS_BYTES", 1)  # every chunk alone
    monkeypatch.setattr(head, "KEPT_BYTES", kept)

    assert np.allclose(np.stack(logits_of(source)), np.stack(whole), atol=1e-5)


def test_progress_of_slabs_ends_with_all_tokens(source, monkeypatch):
    small_slabs(monkeypatch)
    told = []

    losses(source, TOKENS, first=FIRST, threads=1, report=told.append)

    assert [p.done for p in told] == sorted(p.done for p in told)
    assert (told[-1].done, told[-1].total) == (72, 72)
    assert told[-1].item == "part 6 of 6 of the vocabulary, chunks 1-3"


def peak_of(run):
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_large_vocabulary_is_never_in_memory_as_a_whole(tmp_path):
    """Neither its float32 matrix (16 MB) nor the logits of a chunk (33 MB)."""
    config = config_of("llama") | {"vocab_size": 130_000}
    write_model(tmp_path, "llama")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(safetensors_bytes(weights_of(config)))
    source = open_huggingface(tmp_path)
    tokens = np.random.default_rng(3).integers(0, 130_000, size=(2, 64)).astype(np.int32)

    peak = peak_of(lambda: losses(source, tokens, steps=Steps(), threads=1))

    assert peak < 16e6
    assert peak_of(lambda: map_logits(source, tokens, lambda *_: None, steps=Steps(), threads=1)) > 60e6
