"""The kinds of vocabularies in GGUF's metadata: what each makes of a piece of text, as llama.cpp does.

A kind is a function in `MODELS`, by its name in `tokenizer.ggml.model`.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from quantcore.errors import InputError
from quantcore.evaluate.spm import SPACE, ScoreMerger
from quantcore.evaluate.wordpiece import WordPieces
from quantcore.pretokenizers import PreTokenizer, pre_tokenizer
from quantcore.sources.base import Source

Encode = Callable[[str], list[int]]
# How many bytes of a piece of text each of its ids stands for.
CountBytes = Callable[[str, Sequence[int]], list[int]]

# What llama.cpp takes for the first token of a SentencePiece vocabulary that does not say.
LLAMA_BOS = 1
# Of BERT's, in which words that cannot be spelled are one token, and texts have a first and a last.
BERT_UNKNOWN, BERT_FIRST, BERT_LAST = 100, 101, 102
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True)
class Model:
    """What a kind of vocabulary does with text, and what llama.cpp takes where a file does not say: whether
    a first token is put before it, and which; the token that closes a text, if the kind has one.
    """

    encode: Encode
    count: CountBytes
    adds_bos: bool | Literal["always"]
    bos: int | None = None
    space_first: bool = False
    separator: int | None = None


def _gpt2(source: Source, tokens: list[str]) -> Model:
    pre = _pre_tokenizer(source)
    return Model(_byte_level(source, tokens, pre), _letters_of(tokens), pre.adds_bos)


def _llama(source: Source, tokens: list[str]) -> Model:
    space_first = bool(source.get("tokenizer.ggml.add_space_prefix", True))
    return Model(_sentencepiece(source, tokens), _bytes_of_spans(tokens), True, LLAMA_BOS, space_first)


def _gemma4(source: Source, tokens: list[str]) -> Model:
    return Model(_spaced_bpe(source, tokens), _bytes_of_spans(tokens), "always")


def _bert(source: Source, tokens: list[str]) -> Model:
    lowercase = bool(source.get("tokenizer.ggml.normalizer.lowercase", True))
    words = WordPieces(
        {text: index for index, text in enumerate(tokens)},
        token_id(source, "unknown_token_id", BERT_UNKNOWN, len(tokens)),
        lowercase=lowercase,
        strip_accents=bool(source.get("tokenizer.ggml.normalizer.strip_accents", lowercase)),
    )
    return Model(words.encode, lambda text, _ids: words.count(text), "always", BERT_FIRST, False, BERT_LAST)


# By tokenizer.ggml.model.
MODELS: Mapping[str, Callable[[Source, list[str]], Model]] = {
    "bert": _bert,
    "gemma4": _gemma4,
    "gpt2": _gpt2,
    "llama": _llama,
}


def listed(source: Source, key: str, kind: type) -> list[Any]:
    """Return `tokenizer.ggml.<key>`, a list whose items are all of `kind`; empty where there is none."""
    values = source.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise InputError(f"{source.path}: tokenizer.ggml.{key} is not a list of {kind.__name__}")
    return values


def token_id(source: Source, key: str, default: int | None, size: int) -> int:
    index = source.get(f"tokenizer.ggml.{key}", default)
    if not isinstance(index, int) or not 0 <= index < size:
        said = "missing" if index is None else reprlib.repr(index)
        raise InputError(f"{source.path}: tokenizer.ggml.{key} is {said}, not one of {size} tokens")
    return index


def _pre_tokenizer(source: Source) -> PreTokenizer:
    name = source.get("tokenizer.ggml.pre", "default")
    try:
        return pre_tokenizer(str(name))
    except InputError as exc:
        raise InputError(f"{source.path}: {exc}") from exc


def _merges(source: Source) -> list[tuple[str, str]]:
    """Return what is merged with what, best first, where both are text."""
    found = (merge.partition(" ") for merge in listed(source, "merges", str))
    return [(left, right) for left, _, right in found if _is_utf8(left + right)]


def _byte_level(source: Source, tokens: list[str], pre: PreTokenizer) -> Encode:
    """Return the merging of bytes, each of which is a letter here."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    # Only of letters that are one byte themselves can llama.cpp spell what is no token.
    tokenizer, said = _merging(
        source, tokens, letters, lambda text: filter(str.isascii, text), ignore_merges=pre.ignore_merges
    )
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    spell = _fast(tokenizer)
    return lambda text: said(spell(text))


def _merging(
    source: Source,
    tokens: list[str],
    letters: Iterable[str],
    spelled: Callable[[str], Iterable[str]],
    **options: bool,
) -> tuple[Tokenizer, Callable[[list[int]], list[int]]]:
    """Return a merger of pairs, and what makes tokens of its ids.

    What is merged need not be a token, nor need `letters`: they take part under ids of their own, and become
    those tokens of `spelled` that there are when merging is done.
    """
    # Text comes as UTF-8, so that a token that is none can never be seen in the result.
    vocab = {text: index for index, text in enumerate(tokens) if _is_utf8(text)}
    merges = _merges(source)
    parts = {text for left, right in merges for text in (left, right, left + right)}.union(letters)
    passing = {text: len(tokens) + place for place, text in enumerate(sorted(parts - vocab.keys()))}
    said = {index: tuple(vocab[it] for it in spelled(text) if it in vocab) for text, index in passing.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocab | passing, merges=merges, **options))
    if not said:
        return tokenizer, lambda ids: ids
    return tokenizer, lambda ids: [each for index in ids for each in said.get(index, (index,))]


def _fast(tokenizer: Tokenizer) -> Encode:
    # Where each token begins in the text, which `encode` also finds out, is half of its time.
    return lambda text: list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


def _spaced_bpe(source: Source, tokens: list[str]) -> Encode:
    """Return the merging of letters, not of bytes, with a mark for each space.

    Words end at line feeds alone. Several of these are the token for so many if there is one. What is no
    token when all merging is done becomes the tokens of its bytes, those that there are.
    """
    feeds = {text: index for index, text in enumerate(tokens) if text.startswith("\n")}
    tokenizer, said = _merging(source, tokens, (), _byte_tokens, byte_fallback=True)
    merge = _fast(tokenizer)
    spell = _in_bytes(lambda text: said(merge(text)), tokenizer.get_vocab(), tokens)

    def line(text: str) -> list[int]:
        return [feeds[text]] if text.startswith("\n") and text in feeds else spell(text)

    lines = re.compile("[^\n]+|\n+")
    return lambda text: [index for part in lines.findall(text.replace(" ", SPACE)) for index in line(part)]


def _in_bytes(spell: Encode, merged: Iterable[str], tokens: Sequence[str]) -> Encode:
    """Return `spell`, given no letter that is neither in `merged` nor has tokens for all of its bytes.

    It would drop them before it merges, and merge what stood on both sides. They become those of their bytes
    that there are.
    """
    ids = {text: index for index, text in enumerate(tokens) if _BYTE.fullmatch(text)}
    if len(ids) >= 256:
        return spell
    known = {text for text in merged if len(text) == 1}

    def stays(letter: str) -> bool:
        return letter in known or all(byte in ids for byte in _byte_tokens(letter))

    def spelled(text: str) -> list[int]:
        found: list[int] = []
        for whole, letters in groupby(text, stays):
            run = "".join(letters)
            found += spell(run) if whole else [ids[byte] for byte in _byte_tokens(run) if byte in ids]
        return found

    return spelled


def _byte_tokens(text: str) -> list[str]:
    return [f"<0x{byte:02X}>" for byte in text.encode()]


def _letters_of(tokens: Sequence[str]) -> CountBytes:
    """Count for byte-level tokens: each letter of such a token stands for one byte."""
    lengths = [len(token) for token in tokens]
    return lambda _text, ids: [lengths[index] for index in ids]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _sentencepiece(source: Source, tokens: list[str]) -> Encode:
    scores = listed(source, "scores", float)
    if len(scores) != len(tokens):
        raise InputError(
            f"{source.path}: tokenizer llama needs a score for each token (tokenizer.ggml.scores)"
        )
    ids = {text: index for index, text in enumerate(tokens)}
    byte_ids = {int(text[3:5], 16): index for text, index in ids.items() if _BYTE.fullmatch(text)}
    merger = ScoreMerger(ids, scores, byte_ids, token_id(source, "unknown_token_id", 0, len(tokens)))
    return lambda text: merger.encode(text.replace(" ", SPACE))


def n_bytes(text: str) -> int:
    """Return the length of `text` in UTF-8."""
    return len(text.encode("utf-8", "surrogateescape"))


def _bytes_of_spans(tokens: Sequence[str]) -> CountBytes:
    """Count for SentencePiece tokens, which have a mark for each space, or are single bytes of a letter.

    The text is walked along: a mark in it that is no space has its own three bytes. Where a vocabulary lacks
    even the mark, three byte tokens stand for one space; the first of them gets it.
    """

    def count(text: str, ids: Sequence[int]) -> list[int]:
        marked = text.replace(" ", SPACE)  # letter by letter as long as the text
        counts: list[int] = []
        at = inside = 0  # the letter that comes next, and how many tokens have spelled some of it
        for index in ids:
            token = tokens[index]
            if token and not inside and marked.startswith(token, at):
                counts.append(n_bytes(text[at : at + len(token)]))
                at += len(token)
                continue
            counts.append(int(inside < n_bytes(text[at])))
            inside += 1
            if inside == n_bytes(marked[at]):
                at, inside = at + 1, 0
        return counts

    return count
