"""The tokenizer of a Hugging Face directory as GGUF metadata (`tokenizer.*`).

Three kinds are known: byte-level BPE in tokenizer.json ("gpt2" in GGUF), SentencePiece BPE in tokenizer.model
("llama"), and the same SentencePiece vocabulary that was saved as tokenizer.json alone.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf

from quantcore.errors import InputError, UnreadableFile
from quantcore.ggufkv import Value, ValueType, array, boolean, string
from quantcore.pretokenizers import recognize
from quantcore.protobuf import Message, fields, float32, raw, varint
from quantcore.sources.jsonfiles import read_object
from quantcore.tokentypes import TokenType
from quantcore.writerkeys import captured


@dataclass
class Vocabulary:
    """Tokens by id, with type and score; ids that no token has stay `[PADn]`."""

    texts: list[str]
    types: list[int]
    scores: list[float]

    @classmethod
    def empty(cls, size: int) -> Vocabulary:
        unused = [int(TokenType.UNUSED)] * size
        return cls([f"[PAD{i}]" for i in range(size)], unused, [-10000.0] * size)

    def put(self, index: int, text: str, kind: TokenType, score: float = -1000.0) -> None:
        if index < 0:  # it would be taken from the end
            raise ValueError(f"token {text!r} has the id {index}")
        self.texts[index], self.types[index], self.scores[index] = text, int(kind), score


def tokenizer_metadata(
    directory: Path, vocab_size: int | None, added_as_stated: bool = False
) -> dict[str, Value]:
    """Return `tokenizer.*` for a model directory; `vocab_size` is the number of embeddings, when known.

    Added tokens of a SentencePiece model are of the kind they look like, unless they are taken as they stand.

    Raises `UnreadableFile` when there is no tokenizer or it is malformed, `InputError` when its kind is
    unknown.
    """
    config = read_object(directory / "tokenizer_config.json", optional=True)
    try:
        if (directory / "tokenizer.model").is_file():
            return _sentencepiece(directory, config, vocab_size, added_as_stated)
        if not (directory / "tokenizer.json").is_file():
            raise UnreadableFile(
                f"{directory / 'tokenizer.json'}: missing, and there is no tokenizer.model either"
            )
        tokenizer = read_object(directory / "tokenizer.json")
        model = _bpe(directory / "tokenizer.json", tokenizer)
        build = _saved_sentencepiece if model.get("byte_fallback") else _byte_level
        return build(directory, tokenizer, config, vocab_size)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
        raise UnreadableFile(f"{directory}: malformed tokenizer files: {type(exc).__name__}: {exc}") from exc


def without_space_prefix(metadata: Mapping[str, Value]) -> dict[str, Value]:
    """Return the metadata of a tokenizer; if it is SentencePiece's, text has no space put before it.

    They say so last, as llama.cpp's converter has them.
    """
    if metadata["tokenizer.ggml.model"].value != "llama":
        return dict(metadata)
    key = "tokenizer.ggml.add_space_prefix"
    return {other: value for other, value in metadata.items() if other != key} | {key: boolean(False)}


def _bpe(path: Path, tokenizer: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `model` of a parsed tokenizer.json, having refused what is no byte-pair encoding."""
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise UnreadableFile(f"{path}: has no object 'model'")
    if "type" not in model:
        raise UnreadableFile(f"{path}: model.type is missing; only 'BPE' is known")
    if model["type"] != "BPE":
        raise InputError(f"{path}: model.type: only BPE is known, not {reprlib.repr(model['type'])}")
    if not isinstance(model.get("vocab"), dict):
        raise UnreadableFile(f"{path}: model.vocab is no object of tokens and their numbers")
    return model


def looks_special(text: str) -> bool:
    """Say whether a token is a control token though its file forgot to say so, by llama.cpp's list."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<\uff5c") and text.endswith("\uff5c>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def _added_tokens(tokenizer: Mapping[str, Any], config: Mapping[str, Any]) -> dict[int, tuple[str, bool]]:
    """Return text and specialness of added tokens by id; tokenizer_config.json overrules tokenizer.json."""
    added = {int(t["id"]): (t["content"], bool(t.get("special"))) for t in tokenizer.get("added_tokens", [])}
    for index, token in (config.get("added_tokens_decoder") or {}).items():
        added[int(index)] = (token["content"], bool(token.get("special")))
    return added


def _put_added(vocabulary: Vocabulary, added: Mapping[int, tuple[str, bool]]) -> None:
    for index, (text, special) in added.items():
        if index >= len(vocabulary.texts):
            continue  # beyond the embeddings: the model cannot take it
        if special or looks_special(text):
            vocabulary.put(index, text, TokenType.CONTROL)
        else:
            vocabulary.put(index, text.replace("▁", " "), TokenType.USER_DEFINED)


def _byte_level(
    directory: Path, tokenizer: dict[str, Any], config: dict[str, Any], vocab_size: int | None
) -> dict[str, Value]:
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    merges = tokenizer["model"].get("merges")
    if not isinstance(merges, list) or not merges:
        raise UnreadableFile(f"{directory / 'tokenizer.json'}: has no list of merges, which BPE needs")
    added = _added_tokens(tokenizer, config)
    needed = max([*ids.values(), *(t["id"] for t in tokenizer.get("added_tokens", []))], default=-1) + 1
    size = vocab_size or needed
    if needed > size:
        raise UnreadableFile(f"{directory / 'tokenizer.json'}: has {needed} tokens, config.json says {size}")
    vocabulary = Vocabulary.empty(size)
    for text, index in ids.items():
        vocabulary.put(index, text, TokenType.NORMAL)
    _put_added(vocabulary, added)
    try:
        pre = recognize(tokenizer)
    except InputError as exc:
        raise InputError(f"{directory / 'tokenizer.json'}: {exc}") from exc
    return {
        "tokenizer.ggml.model": string("gpt2"),
        "tokenizer.ggml.pre": string(pre.names[0]),
        "tokenizer.ggml.tokens": array(ValueType.STRING, vocabulary.texts),
        "tokenizer.ggml.token_type": array(ValueType.INT32, vocabulary.types),
        **_special_tokens(directory, load_merges=True, size=None),
    }


def _special_tokens(directory: Path, *, load_merges: bool, size: int | None) -> dict[str, Value]:
    """Return merges, special token ids, what is added to a prompt and the chat template."""
    special = gguf.SpecialVocab(directory, load_merges=load_merges, n_vocab=size)
    return captured(lambda writer: special.add_to_gguf(writer, quiet=True))


def _llama_metadata(directory: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Value]:
    prefix = config.get("add_prefix_space")
    return {
        **({} if prefix is None else {"tokenizer.ggml.add_space_prefix": boolean(bool(prefix))}),
        "tokenizer.ggml.model": string("llama"),
        "tokenizer.ggml.pre": string("default"),
        "tokenizer.ggml.tokens": array(ValueType.STRING, vocabulary.texts),
        "tokenizer.ggml.scores": array(ValueType.FLOAT32, vocabulary.scores),
        "tokenizer.ggml.token_type": array(ValueType.INT32, vocabulary.types),
        **_special_tokens(directory, load_merges=False, size=len(vocabulary.texts)),
    }


def _pieces(path: Path) -> Iterator[tuple[str, float, TokenType]]:
    """Yield text, score and type of each piece of a SentencePiece model.

    ModelProto.pieces is field 1; in a piece: text 1, score 2, type 3 (NORMAL when absent).
    https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
    """
    for number, payload in fields(path.read_bytes()):
        if number == 1 and isinstance(payload, bytes):
            piece: Message = dict(fields(payload))
            kind = TokenType(varint(piece.get(3, 1)))
            # Pieces the trainer was told to keep whole are ordinary ones to llama.cpp's converter.
            kind = TokenType.NORMAL if kind is TokenType.USER_DEFINED else kind
            yield raw(piece[1]).decode("utf-8"), float32(piece.get(2)), kind


def _sentencepiece(
    directory: Path, config: dict[str, Any], vocab_size: int | None, added_as_stated: bool
) -> dict[str, Value]:
    path = directory / "tokenizer.model"
    try:
        pieces = list(_pieces(path))
    except (ValueError, KeyError, TypeError, IndexError) as exc:
        raise UnreadableFile(f"{path}: not a SentencePiece model: {exc}") from exc
    if not pieces:
        raise UnreadableFile(f"{path}: not a SentencePiece model: it has no pieces")
    vocabulary = Vocabulary.empty(vocab_size or len(pieces))
    for index, (text, score, kind) in enumerate(pieces[: len(vocabulary.texts)]):
        vocabulary.put(index, text, kind, score)
    for text, index in read_object(directory / "added_tokens.json", optional=True).items():
        if index < len(vocabulary.texts):
            vocabulary.put(index, text, TokenType.USER_DEFINED)
    if added_as_stated:
        _put_as_stated(directory, vocabulary, _added_tokens({}, config))
        return _llama_metadata(directory, {}, vocabulary)
    _put_added(vocabulary, _added_tokens({}, config))
    return _llama_metadata(directory, config, vocabulary)


def _put_as_stated(directory: Path, vocabulary: Vocabulary, added: Mapping[int, tuple[str, bool]]) -> None:
    """Put added tokens as llama.cpp's converter does for Phi-3: tokenizer.json has the last word."""
    last = _added_tokens(read_object(directory / "tokenizer.json", optional=True), {})
    for index, (text, special) in (*added.items(), *last.items()):
        if index < len(vocabulary.texts):
            vocabulary.put(index, text, TokenType.CONTROL if special else TokenType.USER_DEFINED)


def _saved_sentencepiece(
    directory: Path, tokenizer: dict[str, Any], config: dict[str, Any], vocab_size: int | None
) -> dict[str, Value]:
    """Return the metadata of a SentencePiece vocabulary that was saved as tokenizer.json.

    Scores are lost in that file; the order of merges gives scores that lead to the same tokens. (llama.cpp's
    converter writes the same score for all, and the engine then merges from the left.)
    """
    model = tokenizer["model"]
    ids: dict[str, int] = model["vocab"]
    vocabulary = Vocabulary.empty(vocab_size or len(ids))
    rank: dict[str, int] = {}
    for place, merge in enumerate(model["merges"]):
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        rank.setdefault(left + right, place)
    for text, index in ids.items():
        if index < len(vocabulary.texts):
            is_byte = re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", text) is not None
            vocabulary.put(
                index, text, TokenType.BYTE if is_byte else TokenType.NORMAL, -float(rank.get(text, 1e6))
            )
    _put_added(vocabulary, _added_tokens(tokenizer, config))
    unknown = ids.get(model.get("unk_token") or "")
    if unknown is not None:
        vocabulary.put(unknown, model["unk_token"], TokenType.UNKNOWN, 0.0)
    return _llama_metadata(directory, config, vocabulary)
