"""Tokenizers of Hugging Face directories as GGUF metadata."""

from __future__ import annotations

import json
import re
import struct

import pytest

from quantcore.errors import InputError, UnreadableFile
from quantcore.pretokenizers import CONTRACTIONS, PRE_TOKENIZERS, pre_tokenizer, recognize
from quantcore.vocabulary import tokenizer_metadata
from tests.quantcore.convert.families import byte_tokenizer, write_tokenizer

PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("\u2581a", -1.0, 1), ("b", -2.5, 4)]


def sentencepiece_model(pieces):
    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    def piece(text, score, kind):
        return field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])

    return b"".join(field(1, piece(*entry)) for entry in pieces) + field(2, b"\x08\x01")


def plain(metadata):
    return {key.removeprefix("tokenizer.ggml."): value.value for key, value in metadata.items()}


def test_ids_without_a_token_are_padding(tmp_path):
    write_tokenizer(tmp_path)

    found = plain(tokenizer_metadata(tmp_path, 262))

    assert found["tokens"][257:] == ["the", "Ġthe", "<s>", "[PAD260]", "[PAD261]"]
    assert found["token_type"][257:] == [1, 1, 3, 5, 5]
    assert found["merges"] == ["t h", "th e", "Ġ the"]
    assert found["bos_token_id"] == 259


def test_added_tokens_are_control_when_special_or_looking_so(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer["added_tokens"] += [
        {"id": 260, "content": "<|end|>", "special": False},
        {"id": 261, "content": "[tool]", "special": False},
    ]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))

    assert plain(tokenizer_metadata(tmp_path, None))["token_type"][259:] == [3, 3, 4]


def test_a_sentencepiece_model_keeps_pieces_scores_and_types(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(PIECES))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": True}))

    found = plain(tokenizer_metadata(tmp_path, 6))

    assert (found["model"], found["pre"], found["add_bos_token"]) == ("llama", "default", True)
    assert found["tokens"] == ["<unk>", "<s>", "<0x0A>", "\u2581a", "b", "[PAD5]"]
    assert found["scores"] == [0.0, 0.0, 0.0, -1.0, -2.5, -10000.0]
    assert found["token_type"] == [2, 3, 6, 1, 1, 5]


def test_added_tokens_of_phi_3_are_what_tokenizer_json_says_last(tmp_path):
    """And nothing is said of a space before text."""
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(PIECES))
    stated = {"5": {"content": "<|x|>", "special": True}, "6": {"content": "\u2581y", "special": False}}
    config = {"added_tokens_decoder": stated, "add_prefix_space": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|z|>": 7}))
    added = [{"id": 1, "content": "<s>", "special": False}, {"id": 5, "content": "<|x|>", "special": False}]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))

    found = plain(tokenizer_metadata(tmp_path, 9, added_as_stated=True))

    assert found["tokens"][5:] == ["<|x|>", "\u2581y", "<|z|>", "[PAD8]"]
    assert found["token_type"] == [2, 4, 6, 1, 1, 4, 4, 4, 5]
    assert found["scores"][5:] == [-1000.0, -1000.0, -1000.0, -10000.0]
    assert "add_space_prefix" not in found


def test_a_saved_sentencepiece_vocabulary_is_scored_by_its_merges(tmp_path):
    vocab = {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "ab": 4, "bb": 5}
    model = {
        "type": "BPE",
        "byte_fallback": True,
        "unk_token": "<unk>",
        "vocab": vocab,
        "merges": ["b b", "a b"],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model}))

    found = plain(tokenizer_metadata(tmp_path, None))

    assert found["model"] == "llama"
    assert found["scores"][5] > found["scores"][4] > found["scores"][2]
    assert found["token_type"][:2] == [2, 6]


@pytest.mark.parametrize("content", [b"\x0f", b"\x0a\xff", b"", b"not a model at all"])
def test_a_broken_sentencepiece_model_is_named(tmp_path, content):
    (tmp_path / "tokenizer.model").write_bytes(content)

    with pytest.raises(UnreadableFile, match=r"tokenizer\.model: not a SentencePiece model"):
        tokenizer_metadata(tmp_path, 6)


@pytest.mark.parametrize("content", ["[]", "{", '{"model": {"type": "BPE", "vocab": 3}}'])
def test_a_broken_tokenizer_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)

    with pytest.raises(UnreadableFile, match=str(tmp_path)):
        tokenizer_metadata(tmp_path, 6)


def test_other_kinds_of_tokenizer_are_refused_by_name(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))

    with pytest.raises(InputError, match=r"tokenizer\.json: model\.type: only BPE is known, not 'Unigram'"):
        tokenizer_metadata(tmp_path, 6)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "has no object 'model'"),
        ({"model": []}, "has no object 'model'"),
        ({"model": {}}, r"model\.type is missing; only 'BPE' is known"),
        ({"model": {"type": "BPE"}}, r"model\.vocab is no object"),
    ],
)
def test_a_field_that_a_tokenizer_lacks_is_named(tmp_path, document, said):
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))

    with pytest.raises(UnreadableFile, match=rf"tokenizer\.json: {said}"):
        tokenizer_metadata(tmp_path, 6)


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(*steps):
    return {"type": "Sequence", "pretokenizers": [*steps, {"type": "ByteLevel", "use_regex": False}]}


QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+")
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize(
    ("step", "ignore_merges", "name"),
    [
        ({"type": "ByteLevel", "use_regex": True}, False, "gpt-2"),
        (sequence(split(QWEN2)), False, "qwen2"),
        (sequence(split(LLAMA3)), True, "llama-bpe"),
        (sequence(split(LLAMA3)), False, "smaug-bpe"),
        (sequence(*map(split, DEEPSEEK_CODER), DIGITS), False, "deepseek-coder"),
        ({"type": "Sequence", "pretokenizers": [DIGITS, {"type": "ByteLevel"}]}, False, "smollm"),
    ],
)
def test_a_pre_tokenizer_is_known_by_what_it_does(step, ignore_merges, name):
    tokenizer = {"pre_tokenizer": step, "model": {"ignore_merges": ignore_merges}}

    assert recognize(tokenizer).names[0] == name


def test_an_unknown_pre_tokenizer_is_refused_rather_than_guessed():
    with pytest.raises(InputError, match=r"no pre-tokenizer of llama\.cpp cuts words by"):
        recognize({"pre_tokenizer": sequence(split("[a-z]+"))})
    with pytest.raises(InputError, match="'bert-bge', which is not known"):
        pre_tokenizer("bert-bge")


def test_the_file_of_an_unknown_pre_tokenizer_is_named(tmp_path):
    write_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": split("[a-z]+")}))

    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: no pre-tokenizer of llama\.cpp"):
        tokenizer_metadata(tmp_path, None)


def test_no_two_entries_share_a_name():
    names = [name for entry in PRE_TOKENIZERS for name in entry.names]

    assert len(names) == len(set(names))


def test_a_piece_that_is_a_number_is_refused(tmp_path):
    """Taken for a length, it would be that many zero bytes."""
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x06\x08\xff\xff\xff\xff\x0f")

    with pytest.raises(UnreadableFile, match="expected a field of bytes"):
        tokenizer_metadata(tmp_path, 6)


def test_a_negative_id_is_refused(tmp_path):
    write_tokenizer(tmp_path)
    added = {"added_tokens_decoder": {"-1": {"content": "q", "special": True}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))

    with pytest.raises(UnreadableFile, match="token 'q' has the id -1"):
        tokenizer_metadata(tmp_path, 262)


@pytest.mark.parametrize("merges", [None, "t h", []])
def test_bpe_without_merges_is_refused(tmp_path, merges):
    """llama.cpp would refuse the file that came of it."""
    tokenizer = byte_tokenizer()
    tokenizer["model"]["merges"] = merges
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))

    with pytest.raises(UnreadableFile, match=r"tokenizer\.json: has no list of merges"):
        tokenizer_metadata(tmp_path, 262)
