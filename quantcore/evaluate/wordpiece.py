"""Cut text into the tokens of BERT's vocabularies (WordPiece) the way llama.cpp does.

Text becomes words first: without accents and in small letters unless the model says otherwise, a word ending
at spaces, and each sign or Chinese letter being one of its own. Then each word is spelled by the longest
tokens that fit, from the left; one that cannot be is a single unknown token. In GGUF a token that begins a
word has a mark before it, and one that goes on has none. Schuster and Nakajima 2012,
https://research.google/pubs/pub37842.

Written here because the tokenizers library normalizes otherwise: llama.cpp takes the first letter of a
decomposition and drops all marks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from quantcore.evaluate.spm import SPACE

# Of letters that stand alone, beside signs. (The sixth range begins where the first library had it.)
CHINESE = (
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF), (0x2A700, 0x2B73F)),
    *((0x2B740, 0x2B81F), (0x2B920, 0x2CEAF), (0x2F800, 0x2FA1F)),
)
SPACES = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000") | {
    chr(code) for code in range(0x2000, 0x200B)
}
REPLACEMENT = "\ufffd"


@dataclass(frozen=True)
class Word:
    """A word as it is looked up; `sizes` are how many bytes of the text each of its letters stands for."""

    text: str
    sizes: tuple[int, ...]


class WordPieces:
    """Turn text into token ids.

    `ids` maps a token's text, with the mark if it begins a word, to its id; `unknown` stands for words that
    cannot be spelled.
    """

    def __init__(self, ids: Mapping[str, int], unknown: int, *, lowercase: bool, strip_accents: bool) -> None:
        self.ids, self.unknown = ids, unknown
        self.longest = max(map(len, ids), default=0)
        self._letter = lru_cache(maxsize=1 << 16)(
            lambda letter: normalized(letter, lowercase=lowercase, strip_accents=strip_accents)
        )
        self._spelled = lru_cache(maxsize=1 << 16)(self._spell)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        return [index for word in self.words(text) for index, _ in self._spelled(word.text)]

    def count(self, text: str) -> list[int]:
        """Return how many bytes of `text` each of its ids stands for; what is dropped counts with what
        follows it, or at the end with the last.
        """
        counts: list[int] = []
        words = list(self.words(text))
        for word in words:
            at = 0
            for _, length in self._spelled(word.text):
                counts.append(sum(word.sizes[at : at + length]))
                at += length
        if counts:
            counts[-1] += len(text.encode("utf-8", "surrogateescape")) - sum(counts)
        return counts

    def words(self, text: str) -> Iterator[Word]:
        """Yield the words of `text` in order."""
        letters: list[str] = []
        sizes: list[int] = []
        skipped = 0
        for original in text:
            size = skipped + len(original.encode("utf-8", "surrogateescape"))
            letter, alone = self._letter(original)
            if letters and (alone or letter == " "):
                yield Word("".join(letters), tuple(sizes))
                letters, sizes = [], []
            if letter in ("", " "):
                skipped = size
                continue
            skipped = 0
            if alone:
                yield Word(letter, (size,))
            else:
                letters.append(letter)
                sizes.append(size)
        if letters:
            yield Word("".join(letters), tuple(sizes))

    def _spell(self, word: str) -> tuple[tuple[int, int], ...]:
        """Return the ids of a word, and how many letters each stands for."""
        marked, at = SPACE + word, 0
        found: list[tuple[int, int]] = []
        while at < len(marked):
            for end in range(min(len(marked), at + self.longest), at, -1):
                index = self.ids.get(marked[at:end])
                if index is not None:
                    found.append((index, end - at - (at == 0)))
                    at = end
                    break
            else:
                return ((self.unknown, len(word)),)
        return tuple(found)


def normalized(letter: str, *, lowercase: bool, strip_accents: bool) -> tuple[str, bool]:
    """Return what a letter is looked up as, and whether it is a word by itself.

    A space is one that ends a word; nothing is left of controls, and of marks where accents are stripped.
    """
    if strip_accents:
        letter = unicodedata.normalize("NFD", letter)[0]
    kind = unicodedata.category(letter)
    if letter in SPACES:
        return " ", False
    dropped = kind.startswith("M") if strip_accents else False
    if dropped or letter == REPLACEMENT or (kind.startswith("C") and kind != "Cn"):
        return "", False
    sign = kind.startswith("P") or (kind.startswith("S") and ord(letter) < 0x7F)
    alone = sign or any(first <= ord(letter) <= last for first, last in CHINESE)
    return letter.lower()[0] if lowercase else letter, alone
