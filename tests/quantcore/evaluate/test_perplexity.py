"""Perplexity and divergence follow llama-perplexity's protocol."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.errors import Cancelled, InputError, ShortText, UnreadableFile, UselessPredictions
from quantcore.evaluate.divergence import divergence, encode_log_probs, open_base, save_base
from quantcore.evaluate.perplexity import chunked, compare, perplexity, token_nll
from quantcore.ggufkv import boolean
from quantcore.models import open_model
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model

DEMO = "hub/demo/tiny-novels-7m"
TEXT = "the quick brown fox jumps over the lazy dog, and then the other. " * 12


@pytest.fixture
def tiny(tmp_path):
    write_model(tmp_path / "tiny", "llama")
    return open_huggingface(tmp_path / "tiny")


def test_the_demo_has_the_perplexity_llama_perplexity_gives(pytestconfig):
    text = (pytestconfig.rootpath / "hub/demo/evaluation.txt").read_text()

    found = perplexity(open_model(pytestconfig.rootpath / DEMO), text, n_chunks=4)

    assert found.ppl == pytest.approx(64.7179, rel=1e-4)
    assert (found.chunks, found.n_ctx, found.tokens, len(found.nll)) == (4, 512, 2048, 4 * 255)
    assert found.ppl_stderr == pytest.approx(found.ppl * found.nll.std() / math.sqrt(4 * 255 - 1))


def test_threads_do_not_change_the_figure(tiny):
    one, two = (perplexity(tiny, TEXT, n_ctx=32, threads=threads) for threads in (1, 2))

    assert one.ppl == pytest.approx(two.ppl, rel=1e-6)


def test_a_short_text_is_refused_with_numbers(tiny):
    with pytest.raises(ShortText, match="has 3 tokens; a context of 32 needs at least 64"):
        perplexity(tiny, "the the the", n_ctx=32)
    with pytest.raises(InputError, match="context of 2 tokens is too short"):
        perplexity(tiny, TEXT, n_ctx=2)
    with pytest.raises(InputError, match="0 chunks cannot be measured"):
        perplexity(tiny, TEXT, n_ctx=32, n_chunks=0)


def test_the_remainder_of_a_text_is_dropped(tiny):
    chunks = chunked(tiny, TEXT, 100)

    assert chunks.shape == (chunks.size // 100, 100)
    assert np.array_equal(chunked(tiny, TEXT, 100, 2), chunks[:2])


def test_each_chunk_opens_with_the_first_token_where_the_model_wants_one(tiny):
    wanting = {**tiny.metadata, "tokenizer.ggml.add_bos_token": boolean(True)}

    chunks = chunked(replace(tiny, metadata=wanting), TEXT, 32)

    assert (chunks[:, 0] == tiny.get("tokenizer.ggml.bos_token_id")).all()
    assert np.array_equal(chunks.ravel()[1:32], chunked(tiny, TEXT, 32).ravel()[:31])


def test_losses_are_minus_the_log_of_the_probability():
    logits = np.log(np.array([[1, 2, 5], [3, 3, 2]], dtype=np.float32))

    nll = token_nll(logits, np.array([2, 0], dtype=np.int32))

    assert nll == pytest.approx([-math.log(5 / 8), -math.log(3 / 8)])


def test_a_paired_comparison_knows_the_difference_better_than_the_figures():
    random = np.random.default_rng(1)
    base = random.gamma(2.0, 1.5, 2000)
    worse = base + 0.02 + random.normal(0, 0.05, 2000)

    found = compare(base, worse)

    spread = (worse - base).std() / math.sqrt(1999)
    assert found.log_ratio == pytest.approx((worse - base).mean())
    assert found.log_ratio_stderr == pytest.approx(spread, rel=1e-6)
    assert found.difference_stderr < 0.1 * math.exp(base.mean()) * base.std() / math.sqrt(1999)
    assert compare(base, base).difference_stderr == pytest.approx(0, abs=1e-6)


def test_losses_of_different_texts_are_not_compared():
    with pytest.raises(InputError, match="losses of 3 and 4 tokens"):
        compare(np.zeros(3), np.zeros(4))


def test_log_probabilities_survive_16_bits():
    logits = np.random.default_rng(2).normal(0, 4, (7, 33)).astype(np.float32)
    logits[0] = 2.0

    records = encode_log_probs(logits.copy())

    heads = np.ascontiguousarray(records[:, :4]).view("<f4")
    restored = records[:, 4:37] * heads[:, :1] + heads[:, 1:]
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    expected = np.maximum(expected, expected.max(axis=1, keepdims=True) - 16)
    assert records.shape == (7, 4 + 34)
    assert np.abs(restored - expected).max() < 16 / 65535


def test_a_model_does_not_diverge_from_itself(tiny, tmp_path):
    saved = save_base(tiny, TEXT, tmp_path / "base", n_ctx=32)

    found, far = divergence(tiny, TEXT, tmp_path / "base")

    assert found.ppl == pytest.approx(saved.ppl, rel=1e-6)
    assert far.kld.mean == pytest.approx(0, abs=1e-5)
    assert far.same_top == 1.0
    assert far.rms_dp < 1e-4
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["base"]


def test_a_changed_model_diverges_by_the_definition(tiny, tmp_path):
    save_base(tiny, TEXT, tmp_path / "base", n_ctx=32)
    weights = weights_of(config_of("llama"))
    weights["lm_head.weight"] = weights["lm_head.weight"] * np.float32(0.9)
    (tmp_path / "tiny/model.safetensors").write_bytes(safetensors_bytes(weights))

    _, far = divergence(open_huggingface(tmp_path / "tiny"), TEXT, tmp_path / "base", n_chunks=8)

    assert 0 < far.kld.median < far.kld.p99 <= far.kld.p999 <= far.kld.max
    assert far.kld.mean > 5 * far.kld.stderr > 0
    assert far.same_top == 1.0


def test_a_base_of_the_beginning_compares_that_and_scores_all(tiny, tmp_path):
    whole = save_base(tiny, TEXT, tmp_path / "base", n_ctx=32, n_chunks=12, n_kept=9)
    _, alone = divergence(tiny, TEXT, tmp_path / "base")

    found, far = divergence(tiny, TEXT, tmp_path / "base", n_scored=12)

    assert len(open_base(tmp_path / "base").tokens) == 9
    assert (tmp_path / "base").stat().st_size == open_base(tmp_path / "base").offset(9)
    assert (found.chunks, far.chunks, alone.chunks) == (12, 9, 9)
    assert found.ppl == pytest.approx(whole.ppl, rel=1e-6)
    assert far.kld.mean == pytest.approx(alone.kld.mean, abs=1e-9)


def test_a_base_of_another_text_is_refused(tiny, tmp_path):
    save_base(tiny, TEXT, tmp_path / "base", n_ctx=32)

    with pytest.raises(InputError, match="another text or with another tokenizer"):
        divergence(tiny, "x" + TEXT, tmp_path / "base")


def test_a_cut_or_foreign_base_is_refused(tiny, tmp_path):
    save_base(tiny, TEXT, tmp_path / "base", n_ctx=32)
    (tmp_path / "cut").write_bytes((tmp_path / "base").read_bytes()[:-1])
    (tmp_path / "foreign").write_bytes(b"GGUF" * 20)

    with pytest.raises(UnreadableFile, match="cut: truncated"):
        open_base(tmp_path / "cut")
    with pytest.raises(UnreadableFile, match="foreign: not a base"):
        open_base(tmp_path / "foreign")


@pytest.mark.parametrize("head", [np.nan, np.inf, 1e30, -1e30])
def test_a_base_of_numbers_that_are_no_log_probabilities_is_refused(tiny, tmp_path, head):
    save_base(tiny, TEXT, tmp_path / "base", n_ctx=32)
    data = bytearray((tmp_path / "base").read_bytes())
    place = open_base(tmp_path / "base").offset(1) + 4
    data[place : place + 4] = np.float32(head).tobytes()
    (tmp_path / "base").write_bytes(data)

    with pytest.raises(UnreadableFile, match="base: damaged: chunk 2 holds numbers that are no log prob"):
        divergence(tiny, TEXT, tmp_path / "base")


def test_useless_predictions_are_an_error(tiny, tmp_path):
    """Neither NaN nor a number beyond all numbers is a perplexity."""
    broken = {name: np.full_like(value, np.nan) for name, value in weights_of(config_of("llama")).items()}
    (tmp_path / "tiny/model.safetensors").write_bytes(safetensors_bytes(broken))

    with pytest.raises(UselessPredictions, match="predictions are useless: its mean loss is nan"):
        perplexity(open_huggingface(tmp_path / "tiny"), TEXT, n_ctx=32)


def test_too_few_tokens_for_statistics_are_told_before_any_work(tiny, tmp_path):
    save_base(tiny, TEXT, tmp_path / "base", n_ctx=32)
    told = []

    with pytest.raises(InputError, match="only 15 tokens are scored; divergence needs 100"):
        divergence(tiny, TEXT, tmp_path / "base", n_chunks=1, report=told.append)
    assert not told


def test_a_failed_base_leaves_nothing(tiny, tmp_path):
    def stop(_progress):
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        save_base(tiny, TEXT, tmp_path / "base", n_ctx=32, report=stop)
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist"):
        save_base(tiny, TEXT, tmp_path / "nowhere" / "base", n_ctx=32)

    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
