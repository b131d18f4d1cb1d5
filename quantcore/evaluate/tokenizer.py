"""The tokenizer that a GGUF file carries in its metadata, giving the token ids that llama.cpp gives."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from quantcore.errors import InputError
from quantcore.evaluate.spm import SPACE, ScoreMerger
from quantcore.pretokenizers import PreTokenizer, pre_tokenizer
from quantcore.sources.base import Source
from quantcore.tokentypes import TokenType

Encode = Callable[[str], list[int]]
# How many bytes of a piece of text each of its ids stands for.
CountBytes = Callable[[str, Sequence[int]], list[int]]

# What llama.cpp takes for the first token of a SentencePiece vocabulary that does not say.
LLAMA_BOS = 1
# Control tokens of gpt-oss that llama.cpp takes for user-defined ones, whatever a file says.
SHOWN = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})


@dataclass(frozen=True)
class TextTokenizer:
    """Turn text into ids.

    `encode_piece` handles text without user-defined tokens, and `count_bytes` tells what its ids stand for;
    `user_defined` are those, longest first. `space_first` puts a space before text that follows nothing or
    such a token. `bos` is the id that opens a prompt, None if the model wants none.
    """

    n_vocab: int
    encode_piece: Encode
    count_bytes: CountBytes
    user_defined: tuple[tuple[str, int], ...] = ()
    space_first: bool = False
    bos: int | None = None

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of `text`, int32 `(n,)`, opened by `bos` if there is one.

        Control tokens in the text are read as plain text, as llama.cpp does when it measures perplexity.
        """
        return self.encode_counted(text)[0]

    def encode_counted(self, text: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the ids of `text` and how many of its UTF-8 bytes each stands for, both int32 `(n,)`.

        The counts add up to the bytes of the text: what was put before it, the first token and a space,
        stands for none. Bytes that the vocabulary cannot say at all are in no count.
        """
        ids: list[int] = [] if self.bos is None else [self.bos]
        counts = [0] * len(ids)
        fresh = True
        for piece in self._pieces(text):
            if isinstance(piece, tuple):
                ids.append(piece[1])
                counts.append(_n_bytes(piece[0]))
                fresh = True
                continue
            spaced = " " + piece if fresh and self.space_first else piece
            found = self.encode_piece(spaced)
            counted = self.count_bytes(spaced, found)
            if spaced is not piece and counted:
                counted[0] -= 1  # the space is not the text's
            ids += found
            counts += counted
            fresh = False
        return np.asarray(ids, dtype=np.int32), np.asarray(counts, dtype=np.int32)

    def _pieces(self, text: str) -> Iterator[str | tuple[str, int]]:
        """Cut `text` at user-defined tokens, one token after another as llama.cpp does."""
        pieces: list[str | tuple[str, int]] = [text] if text else []
        for token, index in self.user_defined:
            if token and token in text:
                pieces = [part for piece in pieces for part in _split(piece, token, index)]
        return iter(pieces)


def _split(piece: str | tuple[str, int], token: str, index: int) -> list[str | tuple[str, int]]:
    if isinstance(piece, tuple):
        return [piece]
    parts: list[str | tuple[str, int]] = []
    for place, text in enumerate(piece.split(token)):
        if place:
            parts.append((token, index))
        if text:
            parts.append(text)
    return parts


def _n_bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogateescape"))


def load_tokenizer(source: Source) -> TextTokenizer:
    """Return the tokenizer in the metadata of `source`; raises `InputError` when there is none we know."""
    kind, tokens = source.get("tokenizer.ggml.model"), _list(source, "tokens", str)
    if not tokens:
        raise InputError(f"{source.path}: has no tokenizer (tokenizer.ggml.tokens)")
    types = _list(source, "token_type", int) or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise InputError(f"{source.path}: has {len(tokens)} tokens and {len(types)} token types")
    user = [
        (token, i)
        for i, (token, its) in enumerate(zip(tokens, types, strict=True))
        if its == TokenType.USER_DEFINED or token in SHOWN
    ]
    user.sort(key=lambda pair: -len(pair[0].encode("utf-8", "surrogateescape")))
    if kind == "gpt2":
        pre = _pre_tokenizer(source)
        encode, space_first, adds_bos = _byte_level(source, tokens, pre), False, pre.adds_bos
        count = _letters_of(tokens)
    elif kind == "llama":
        encode, adds_bos = _sentencepiece(source, tokens), True
        count = _bytes_of_spans(tokens)
        space_first = bool(source.get("tokenizer.ggml.add_space_prefix", True))
    else:
        raise InputError(f"{source.path}: tokenizer {kind!r} is not known; there are gpt2 and llama")
    bos = None
    if source.get("tokenizer.ggml.add_bos_token", adds_bos):
        bos = _token_id(source, "bos_token_id", LLAMA_BOS if kind == "llama" else None, len(tokens))
    return TextTokenizer(len(tokens), encode, count, tuple(user), space_first, bos)


def _list(source: Source, key: str, kind: type) -> list[Any]:
    """Return `tokenizer.ggml.<key>`, a list whose items are all of `kind`; empty where there is none."""
    values = source.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise InputError(f"{source.path}: tokenizer.ggml.{key} is not a list of {kind.__name__}")
    return values


def _token_id(source: Source, key: str, default: int | None, size: int) -> int:
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


def _byte_level(source: Source, tokens: list[str], pre: PreTokenizer) -> Encode:
    # Words come as UTF-8, so that a token that is none can never be seen in the result either.
    vocab = {text: index for index, text in enumerate(tokens) if _is_utf8(text)}
    merges: list[tuple[str, str]] = []
    for merge in _list(source, "merges", str):
        left, _, right = merge.partition(" ")
        # The same is true of a merge into or out of a token that does not exist.
        if left in vocab and right in vocab and left + right in vocab:
            merges.append((left, right))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=pre.ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    # Where each token begins in the text, which `encode` also finds out, is half of its time.
    return lambda text: list(tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)


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
    scores = _list(source, "scores", float)
    if len(scores) != len(tokens):
        raise InputError(
            f"{source.path}: tokenizer llama needs a score for each token (tokenizer.ggml.scores)"
        )
    ids = {text: index for index, text in enumerate(tokens)}
    byte_ids = {
        int(text[3:5], 16): index for text, index in ids.items() if re.fullmatch("<0x[0-9A-Fa-f]{2}>", text)
    }
    merger = ScoreMerger(ids, scores, byte_ids, _token_id(source, "unknown_token_id", 0, len(tokens)))
    return lambda text: merger.encode(text.replace(" ", SPACE))


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
                counts.append(_n_bytes(text[at : at + len(token)]))
                at += len(token)
                continue
            counts.append(int(inside < _n_bytes(text[at])))
            inside += 1
            if inside == _n_bytes(marked[at]):
                at, inside = at + 1, 0
        return counts

    return count
