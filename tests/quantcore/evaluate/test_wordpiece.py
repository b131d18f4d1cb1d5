"""Words and their pieces, and which tokens are found in text before them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from quantcore.errors import InputError
from quantcore.evaluate.tokenizer import load_tokenizer
from quantcore.evaluate.wordpiece import WordPieces
from quantcore.ggufkv import ValueType, array, string, u32
from tests.quantcore.evaluate.vocabularies import KINDS, MARK, source_of


def pieces(source, text):
    tokens = source.get("tokenizer.ggml.tokens")
    return [tokens[index] for index in load_tokenizer(source).encode(text)]


def words(text, *, lowercase=True, strip_accents=True):
    made = WordPieces({}, 0, lowercase=lowercase, strip_accents=strip_accents)
    return [word.text for word in made.words(text)]


def test_words_end_at_spaces_and_signs_and_chinese_letters_stand_alone():
    assert words("It's 5\u00a0$ x\u6211y 3.1\u20ac\u3000\n") == [
        *("it", "'", "s", "5", "$", "x", "\u6211", "y", "3", ".", "1\u20ac")
    ]


def test_capitals_accents_and_marks_go_unless_the_model_keeps_them():
    assert words("\xc9T\u0301e\u0130") == ["etei"]
    assert words("\xc9T\u0301e", lowercase=False) == ["ETe"]
    assert words("\xc9T\u0301e", strip_accents=False) == ["\xe9t\u0301e"]


def test_controls_are_nothing():
    assert words("a\u200bb\ufffdc\x00d\ue000") == ["abcd"]


def test_the_longest_piece_that_fits_is_taken_and_a_word_that_cannot_be_spelled_is_unknown():
    assert pieces(source_of("bert"), "HTMLParser istanbul thea the\u05d0") == [
        *("[CLS]", f"{MARK}htmlparser", f"{MARK}istanbul", f"{MARK}the", "a", "[UNK]", "[SEP]")
    ]


@pytest.mark.parametrize("text", ["It's  na\xefve.", " a\u200bb\u0301 \n", "the \u05d0"])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"bytes missing"}))
def test_counts_add_up_to_the_bytes_of_the_text(kind, text):
    assert load_tokenizer(source_of(kind)).encode_counted(text)[1].sum() == len(text.encode())


def test_a_count_holds_what_was_dropped_before_it():
    ids, counts = load_tokenizer(source_of("bert")).encode_counted("  the\u200b \xc9a ")

    assert len(ids) == len(counts) == 5  # with the first and the last
    assert counts.tolist() == [0, 5, 6, 2, 0]


def test_line_feeds_are_the_token_for_so_many():
    source = source_of("gemma4")

    assert pieces(source, "a" + "\n" * 4 + "b\n") == ["<bos>", "a", "\n" * 4, "b", "\n"]


def test_what_is_merged_need_not_be_a_token():
    source = source_of("gemma4")

    assert "h" not in source.get("tokenizer.ggml.tokens")
    assert pieces(source, "the h") == ["<bos>", "the", MARK, "<0x68>"]


def test_letters_that_cannot_be_said_keep_others_apart():
    source = source_of("gemma4")
    tokens = [text for text in source.get("tokenizer.ggml.tokens") if text not in ("<0x77>", "<0xC9>")]
    kept = {
        "tokenizer.ggml.tokens": array(ValueType.STRING, tokens),
        "tokenizer.ggml.token_type": array(ValueType.INT32, [1] * len(tokens)),
    }
    lacking = replace(source, metadata=dict(source.metadata) | kept)

    assert pieces(lacking, "awb") == ["<bos>", "a", "b"]
    assert pieces(lacking, "a\u0240b") == ["<bos>", "a", "<0x80>", "b"]
    assert pieces(source, "awb") == ["<bos>", "a", "<0x77>", "b"]


def test_bytes_without_a_token_keep_others_apart_and_are_merged_like_them():
    source = source_of("bytes missing")

    assert pieces(source, "abc") == ["a", "c"]
    assert pieces(source, "ac he") == ["ac", "he"]
    assert pieces(source, "hey") == ["e", "y"]


def test_tokens_that_end_a_text_are_text_in_it_whatever_a_file_calls_them():
    assert "</s>" not in pieces(source_of("phi3"), "a</s>b<|user|>")
    assert "<|user|>" in pieces(source_of("phi3"), "a</s>b<|user|>")


def vocabulary(tokens, **more):
    source = source_of("gemma4")
    stated = {
        "tokenizer.ggml.tokens": array(ValueType.STRING, [*source.get("tokenizer.ggml.tokens"), *tokens]),
        "tokenizer.ggml.token_type": array(
            ValueType.INT32, [*source.get("tokenizer.ggml.token_type"), *[4] * len(tokens)]
        ),
    }
    return replace(source, metadata=dict(source.metadata) | stated | more)


def test_a_token_that_frames_code_is_text_unless_the_file_names_another():
    assert "<PRE>" not in pieces(vocabulary(["<PRE>"]), "a<PRE>b")
    assert "<PRE>" in pieces(vocabulary(["<PRE>"], **{"tokenizer.ggml.fim_pre_token_id": u32(1)}), "a<PRE>b")


def test_an_end_that_is_none_where_others_are_is_a_token():
    assert "<|end|>" not in pieces(vocabulary(["<|end|>"]), "a<|end|>b")
    assert "<|end|>" in pieces(vocabulary(["<|end|>", "<|return|>", "<|call|>"]), "a<|end|>b")


def test_tokens_of_phi_3_take_the_spaces_behind_them():
    source = source_of("phi3")

    other = replace(source, metadata=source.metadata | {"general.name": string("Other")})

    assert pieces(source, "<|user|> \n\ta")[2:] == [f"{MARK}a"]
    assert pieces(other, "<|user|> \n\ta")[2] != f"{MARK}a"


def test_a_separator_that_is_no_token_is_refused():
    source = source_of("bert")
    odd = replace(source, metadata=source.metadata | {"tokenizer.ggml.seperator_token_id": u32(9999)})

    with pytest.raises(
        InputError, match=r"model\.gguf: tokenizer\.ggml\.seperator_token_id is 9999, not one of"
    ):
        load_tokenizer(odd)
