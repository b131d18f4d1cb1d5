"""Bits per byte: each scored token counts the bytes of the text that it stands for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from quantcore.convert import open_huggingface
from quantcore.evaluate.perplexity import bits_per_byte, cut, perplexity
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.ggufkv import ValueType, array, boolean, string, u32
from quantcore.models import open_model
from quantcore.sources.base import Source
from tests.quantcore.convert.families import config_of, safetensors_bytes, weights_of, write_model

TEXT = (
    "The theatre; naïve ÉTÉ \ufb01sh 我想在 🚀😶\u200d🌫\ufe0f  two  spaces\t\ttabs\r\n\n"
    "\u2581mark \u2581\u2581 <0x41> <s> </s> a\u00a0b\u3000c " * 4
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = ["\u2581", "t", "h", "e", "th", "the", "\u2581the", "\u2581\u2581", "s", "a", "o"]


@pytest.fixture
def tiny(tmp_path):
    write_model(tmp_path / "tiny", "llama")
    return open_huggingface(tmp_path / "tiny")


def sentencepiece(pieces=PIECES, **extra):
    """A vocabulary of the bytes and some pieces, the longer the better."""
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *pieces]
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [2, 3, 3, *[6] * 256, *[1] * len(pieces)]),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, [float(len(token)) for token in tokens]),
        "tokenizer.ggml.bos_token_id": u32(1),
    }
    return Source("model.gguf", "gguf", metadata | extra, ())


def counted(source, text):
    """Return the bytes of the text that each token stands for, by walking along the text."""
    ids, counts = load_tokenizer(source).encode_counted(text)
    ends = np.cumsum(counts)
    tokens = source.get("tokenizer.ggml.tokens")
    raw = text.encode()
    return [
        (tokens[index], raw[end - count : end]) for index, count, end in zip(ids, counts, ends, strict=True)
    ]


def test_sentencepiece_marks_are_spaces_and_byte_tokens_single_bytes():
    assert counted(sentencepiece(), "the  thé")[1:] == [
        ("\u2581the", b"the"),  # the space before the text is not the text's
        ("\u2581\u2581", b"  "),
        ("th", b"th"),
        ("<0xC3>", b"\xc3"),
        ("<0xA9>", b"\xa9"),
    ]
    assert counted(sentencepiece(), "the")[0] == ("<s>", b"")


def test_a_mark_in_the_text_has_its_own_three_bytes():
    off = {"tokenizer.ggml.add_space_prefix": boolean(False)}

    assert counted(sentencepiece(**off), "\u2581the the")[1:] == [
        ("\u2581the", b"\xe2\x96\x81the"),
        ("\u2581the", b" the"),
    ]


def test_a_space_that_is_spelled_in_bytes_is_one_byte():
    """Of a vocabulary without the mark; three tokens stand for the mark's bytes."""
    found = counted(sentencepiece(["t"], **{"tokenizer.ggml.add_space_prefix": boolean(False)}), "t t")

    assert [piece for _, piece in found[1:]] == [b"t", b" ", b"", b"", b"t"]


def test_byte_level_letters_are_bytes_and_added_tokens_their_text(tiny):
    tokens = [*tiny.get("tokenizer.ggml.tokens")[:-1], "é §"]
    types = array(ValueType.INT32, [*[1] * 259, 4])
    source = replace(
        tiny,
        metadata={
            **tiny.metadata,
            "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
            "tokenizer.ggml.token_type": types,
        },
    )

    assert counted(source, " theé §ü") == [
        ("Ġthe", b" the"),
        ("é §", "é §".encode()),
        ("Ã", b"\xc3"),
        ("¼", b"\xbc"),
    ]


@pytest.mark.parametrize("text", [TEXT, "", " ", "x", "\u2581"])
def test_the_counts_of_any_tokenizer_add_up_to_the_bytes_of_the_text(tiny, pytestconfig, text):
    demo = open_model(pytestconfig.rootpath / "hub/demo/tiny-novels-7m")
    types = demo.get("tokenizer.ggml.token_type")
    added = array(ValueType.INT32, [4, *types[1:]])  # <s> is one token of its own
    sources = [
        *(tiny, demo, replace(demo, metadata={**demo.metadata, "tokenizer.ggml.token_type": added})),
        *(sentencepiece(), sentencepiece(["t"]), sentencepiece([*PIECES, "e\u2581"])),
        sentencepiece(**{"tokenizer.ggml.token_type": array(ValueType.INT32, [2, 4, *[1] * 268])}),
    ]

    for source in sources:
        assert load_tokenizer(source).encode_counted(text)[1].sum() == len(text.encode())


def test_the_whole_chunks_of_two_tokenizers_are_the_same_bytes(tiny):
    """A text that both cut without a remainder: 2048 bytes, and as many tokens of one of them."""
    text = ("the theory of sauces, " * 99)[:2048]
    bare = replace(tiny, metadata={**tiny.metadata, "tokenizer.ggml.merges": array(ValueType.STRING, [])})
    fewer = len(load_tokenizer(tiny).encode(text))

    by_bytes, by_pieces = cut(bare, text, 256), cut(tiny, text, fewer // 2)

    assert by_bytes.tokens.shape == (8, 256)
    assert by_pieces.tokens.size == fewer < 2048
    assert by_bytes.nbytes.sum() == by_pieces.nbytes.sum() == 2048
    assert (by_bytes.nbytes == 1).all()
    assert by_pieces.scored_bytes.shape == (2 * (fewer // 2 - 1 - fewer // 4),)


def test_a_model_that_knows_nothing_needs_log2_of_its_vocabulary_for_each_token(tiny, tmp_path):
    """Its output matrix is zero: all tokens are equally likely."""
    weights = weights_of(config_of("llama"))
    weights["lm_head.weight"] = np.zeros_like(weights["lm_head.weight"])
    (tmp_path / "tiny/model.safetensors").write_bytes(safetensors_bytes(weights))
    text = "the other day, the thing " * 40
    source = open_huggingface(tmp_path / "tiny")

    found = perplexity(source, text, n_ctx=32)

    tokens, nbytes = load_tokenizer(source).encode_counted(text)
    scored = np.concatenate([nbytes[start + 17 : start + 32] for start in range(0, len(tokens) - 31, 32)])
    assert found.scored_bytes == scored.sum() > len(scored)
    assert found.bits_per_byte == pytest.approx(len(scored) * math.log2(260) / scored.sum(), rel=1e-6)


def test_the_error_is_that_of_a_ratio_of_means():
    """Against many texts drawn anew: losses and bytes of tokens go together, which makes it smaller."""
    random = np.random.default_rng(4)

    def draw():
        nbytes = random.integers(1, 9, 500)
        return random.gamma(2.0, 0.4 * nbytes), nbytes.astype(np.int32)

    figures = np.array([bits_per_byte(*draw()) for _ in range(2000)])

    assert figures[:, 0].mean() == pytest.approx(0.8 / math.log(2), rel=0.01)
    assert figures[:, 1].mean() == pytest.approx(figures[:, 0].std(), rel=0.05)


def test_equal_tokens_leave_the_error_of_perplexity():
    nll = np.random.default_rng(5).gamma(2.0, 1.0, 300)

    bits, stderr = bits_per_byte(nll, np.full(300, 4, np.int32))

    assert bits == pytest.approx(nll.mean() / math.log(2) / 4)
    assert stderr == pytest.approx(nll.std() / math.sqrt(299) / math.log(2) / 4)


def test_no_bytes_are_no_figure():
    assert np.isnan(bits_per_byte(np.ones(3), np.zeros(3, np.int32))).all()
