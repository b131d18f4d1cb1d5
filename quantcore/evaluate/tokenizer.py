"""The tokenizer that a GGUF file carries in its metadata, giving the token ids that llama.cpp gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quantcore.errors import InputError
from quantcore.evaluate.specials import greedy, user_defined
from quantcore.evaluate.vocabularies import MODELS, CountBytes, Encode, listed, n_bytes, token_id
from quantcore.sources.base import Source
from quantcore.tokentypes import TokenType

WHITESPACE = " \t\n\v\f\r"  # what a greedy token takes


@dataclass(frozen=True)
class TextTokenizer:
    """Turn text into ids.

    `encode_piece` handles text without user-defined tokens, and `count_bytes` tells what its ids stand for;
    `user_defined` are those, longest first; the `greedy` of them take the spaces behind them. `space_first`
    puts a space before text that follows nothing or such a token. `bos` is the id that opens a prompt, `eos`
    the one that closes it, None if the model wants none.
    """

    n_vocab: int
    encode_piece: Encode
    count_bytes: CountBytes
    user_defined: tuple[tuple[str, int], ...] = ()
    greedy: frozenset[int] = frozenset()
    space_first: bool = False
    bos: int | None = None
    eos: int | None = None

    def encode(self, text: str) -> npt.NDArray[np.int32]:
        """Return the ids of `text`, int32 `(n,)`, opened by `bos` and closed by `eos` if there are such.

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
                counts.append(n_bytes(piece[0]))
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
        if self.eos is not None:
            ids.append(self.eos)
            counts.append(0)
        return np.asarray(ids, dtype=np.int32), np.asarray(counts, dtype=np.int32)

    def _pieces(self, text: str) -> Iterator[str | tuple[str, int]]:
        """Cut `text` at user-defined tokens, one token after another as llama.cpp does."""
        pieces: list[str | tuple[str, int]] = [text] if text else []
        for token, index in self.user_defined:
            if token and token in text:
                takes = index in self.greedy
                pieces = [part for piece in pieces for part in _split(piece, token, index, takes)]
        return iter(pieces)


def _split(
    piece: str | tuple[str, int], token: str, index: int, takes_spaces: bool
) -> list[str | tuple[str, int]]:
    if isinstance(piece, tuple):
        return [piece]
    parts: list[str | tuple[str, int]] = []
    for place, text in enumerate(piece.split(token)):
        rest = text.lstrip(WHITESPACE) if place and takes_spaces else text
        if place:
            parts.append((token + text[: len(text) - len(rest)], index))
        if rest:
            parts.append(rest)
    return parts


def load_tokenizer(source: Source) -> TextTokenizer:
    """Return the tokenizer in the metadata of `source`; raises `InputError` when there is none we know."""
    kind, tokens = source.get("tokenizer.ggml.model"), listed(source, "tokens", str)
    if not tokens:
        raise InputError(f"{source.path}: has no tokenizer (tokenizer.ggml.tokens)")
    types = listed(source, "token_type", int) or [TokenType.NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise InputError(f"{source.path}: has {len(tokens)} tokens and {len(types)} token types")
    make = MODELS.get(kind) if isinstance(kind, str) else None
    if make is None:
        known = ", ".join(sorted(MODELS))
        raise InputError(f"{source.path}: tokenizer {kind!r} is not known; there are {known}")
    model = make(source, tokens)
    bos = eos = None
    if model.adds_bos == "always" or source.get("tokenizer.ggml.add_bos_token", model.adds_bos):
        bos = token_id(source, "bos_token_id", model.bos, len(tokens))
    if model.separator is not None:
        eos = token_id(source, "seperator_token_id", model.separator, len(tokens))
    user = user_defined(source, tokens, types)
    return TextTokenizer(
        len(tokens), model.encode, model.count, tuple(user), greedy(source, user), model.space_first, bos, eos
    )
