"""Token ids are llama.cpp's."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers

from quantcore.errors import InputError
from quantcore.evaluate.spm import ScoreMerger
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.ggufkv import ValueType, array, boolean, string, u32
from quantcore.models import open_model
from quantcore.pretokenizers import pre_tokenizer
from quantcore.sources.base import Source

TEXT = (
    "It's 3 o'clock; WE'LL see:  12345 tabs\tand\n\n lines \r\n  end.  (x==1) 3.14... \"Quoted\" -- "
    "naïve ÉTÉ coöp \u017ftop HTMLParser snake_case £5½ Ⅷ 我想在apple工作1314151天\uff5e нещо на Български "
    "🚀 😶\u200d🌫\ufe0f កាន់ 한국어 a\u00a0b\u2003c\u3000d <s> </s> [PAD] "
    "~~~ ```x''' \n \n\n\t\t don't DON'T \u2019tis I'd'Ve"
) * 3

# SHA-256 of the first 800 ids that llama.cpp gives for TEXT with the demo's vocabulary, by its pre-tokenizer.
LLAMA_CPP = {
    "gpt-2": "9e7607882a03b48b",
    "llama-bpe": "6dbd49b12d574955",
    "smaug-bpe": "5044966b8dd87f5b",
    "qwen2": "5044966b8dd87f5b",
    "smollm": "0d55342ed23d2bc1",
    "tekken": "6dbd49b12d574955",
    "gpt-4o": "5044966b8dd87f5b",
    "default": "f8e66f5f1366d9df",
    "falcon": "f8e66f5f1366d9df",
    "qwen35": "5044966b8dd87f5b",
    "deepseek-llm": "eb9ef0ad9972308b",
    "deepseek-coder": "eb9ef0ad9972308b",
    "deepseek-v3": "0d55342ed23d2bc1",
}


@pytest.fixture(scope="module")
def demo(pytestconfig):
    return open_model(pytestconfig.rootpath / "hub/demo/tiny-novels-7m")


def changed(source, **values):
    return replace(
        source, metadata={**source.metadata, **{f"tokenizer.ggml.{k}": v for k, v in values.items()}}
    )


@pytest.mark.parametrize("pre", sorted(LLAMA_CPP))
def test_ids_are_those_of_llama_cpp(demo, pre):
    ids = load_tokenizer(changed(demo, pre=string(pre))).encode(TEXT)

    assert hashlib.sha256(ids[:800].astype("<i4").tobytes()).hexdigest().startswith(LLAMA_CPP[pre])


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("qwen2", "cafe\u0301s", ["cafe", "\u0301s"]),
        ("qwen35", "cafe\u0301s", ["cafe\u0301s"]),
        ("default", "a `b 123456", ["a", " `", "b", " ", "123", "456"]),
        ("falcon", "a `b 123456", ["a", " ", "`", "b", " ", "123", "456"]),
        ("deepseek-coder", "ab12 \u05d0", ["ab", "1", "2", " \u05d0"]),
        ("deepseek-llm", "ab12 \u05d0", ["ab", "12", " \u05d0"]),
        ("deepseek-llm", "\u0531\u057f\u10e1a", ["\u0531", "\u057f", "\u10e1", "a"]),
        ("deepseek-llm", "a  \u3000!\u2003\u4e00", ["a", "  ", "\u3000!", "\u2003", "\u4e00"]),
        ("deepseek-coder", "a\u2003\u4e00", ["a", "\u2003", "\u4e00"]),
        ("smollm", "x 12345", ["x", " ", "1", "2", "3", "4", "5"]),
        ("deepseek-v3", "x 12345", ["x", " ", "123", "45"]),
    ],
)
def test_pre_tokenizers_differ_where_they_should(pre, text, pieces):
    cut = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre_tokenizer(pre).patterns]
    )

    assert [piece for piece, _ in cut.pre_tokenize_str(text)] == pieces


def test_ids_are_those_of_the_published_tokenizer(demo, pytestconfig):
    text = (pytestconfig.rootpath / "hub/demo/evaluation.txt").read_text()[:50_000]
    published = Tokenizer.from_file(str(pytestconfig.rootpath / "hub/demo/tiny-novels-7m/tokenizer.json"))

    assert load_tokenizer(demo).encode(text).tolist() == published.encode(text).ids


def test_a_first_token_is_added_when_asked_for(demo):
    plain = load_tokenizer(demo).encode("War").tolist()

    assert load_tokenizer(changed(demo, add_bos_token=boolean(True))).encode("War").tolist() == [0, *plain]


def test_a_word_that_is_a_token_needs_no_merges_where_the_model_says_so(demo):
    tokens = [*demo.get("tokenizer.ggml.tokens"), "\u0120qzx"]
    extended = changed(
        demo, tokens=array(ValueType.STRING, tokens), token_type=array(ValueType.INT32, [1] * 4097)
    )

    assert 4096 in load_tokenizer(changed(extended, pre=string("llama-bpe"))).encode("a qzx b").tolist()
    assert 4096 not in load_tokenizer(changed(extended, pre=string("smaug-bpe"))).encode("a qzx b").tolist()


def test_control_tokens_in_text_are_text_and_user_defined_ones_are_tokens(demo):
    tokens, types = demo.get("tokenizer.ggml.tokens"), demo.get("tokenizer.ggml.token_type")
    user = changed(demo, token_type=array(ValueType.INT32, [4, *types[1:]]))

    assert tokens[0] == "<s>"
    assert 0 not in load_tokenizer(demo).encode("a<s>b").tolist()
    assert load_tokenizer(user).encode("a<s>b").tolist()[1] == 0


def test_an_unknown_or_missing_tokenizer_is_refused(demo):
    with pytest.raises(InputError, match="'t5' is not known; there are bert, gemma4, gpt2, llama"):
        load_tokenizer(changed(demo, model=string("t5")))
    with pytest.raises(InputError, match=r"has no tokenizer"):
        load_tokenizer(changed(demo, tokens=array(ValueType.STRING, [])))


SCORES = {"<unk>": 0.0, "<s>": 0.0, "<0xC3>": 0.0, "<0xA9>": 0.0, "\u2581": -9.0, "a": -9.0, "b": -9.0}
SCORES |= {"\u2581a": -3.0, "ab": -2.0, "bb": -2.0, "\u2581ab": -4.0}


def sentencepiece(scores=SCORES, **extra):
    metadata = {
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, scores),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, scores.values()),
        "tokenizer.ggml.bos_token_id": u32(1),
    }
    return load_tokenizer(Source("model.gguf", "gguf", metadata | extra, ()))


def pieces(tokenizer, text, scores=SCORES):
    return [list(scores)[index] for index in tokenizer.encode(text)]


def test_the_best_score_merges_first_and_the_leftmost_among_equals():
    assert pieces(sentencepiece(), "ab") == ["<s>", "\u2581ab"]
    assert pieces(sentencepiece(), "abb") == ["<s>", "\u2581ab", "b"]
    assert pieces(sentencepiece(), "bbb") == ["<s>", "\u2581", "bb", "b"]


def test_a_letter_without_a_token_becomes_its_bytes():
    assert pieces(sentencepiece(), "é") == ["<s>", "\u2581", "<0xC3>", "<0xA9>"]


def test_the_space_before_a_text_can_be_switched_off():
    off = sentencepiece(**{"tokenizer.ggml.add_space_prefix": boolean(False)})

    assert pieces(off, "ab") == ["<s>", "ab"]


def test_merges_across_words_happen_where_a_token_spans_them():
    across = {**SCORES, "b\u2581": -1.0, "b\u2581a": -0.5}
    ids = {text: index for index, text in enumerate(across)}

    merger = ScoreMerger(ids, list(across.values()), {}, 0)

    assert not merger.by_words
    assert merger.encode("ab\u2581a") == [ids["a"], ids["b\u2581a"]]


def test_a_token_that_is_no_text_changes_nothing(demo):
    """Byte-level words are always UTF-8, so that such a token is never looked for."""
    tokens = [*demo.get("tokenizer.ggml.tokens")[:-1], "bad\udcff"]
    odd = load_tokenizer(changed(demo, tokens=array(ValueType.STRING, tokens)))

    assert (
        odd.encode("It's a dark night.").tolist()
        == load_tokenizer(demo).encode("It's a dark night.").tolist()
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tokens": string("abc")}, "tokens is not a list of str"),
        ({"tokens": array(ValueType.UINT32, [1, 2])}, "tokens is not a list of str"),
        ({"token_type": array(ValueType.INT32, [1, 2])}, "4096 tokens and 2 token types"),
        ({"merges": array(ValueType.INT32, [1, 2])}, "merges is not a list of str"),
        ({"pre": string("nonsense")}, "tokenizer.ggml.pre is 'nonsense'"),
        (
            {"add_bos_token": boolean(True), "bos_token_id": u32(4096)},
            "bos_token_id is 4096, not one of 4096",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(demo, values, said):
    with pytest.raises(InputError, match=f"tiny-novels-7m: .*{said}"):
        load_tokenizer(changed(demo, **values))
