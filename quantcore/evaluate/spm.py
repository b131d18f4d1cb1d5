"""Cut text into SentencePiece tokens the way llama.cpp does: merge the best-scoring neighbours first.

Written here because merging by score, leftmost first among equals, is not merging by a list of pairs: files
whose tokens all have one score exist, and the tokenizers library could only guess at them.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

SPACE = "\u2581"  # stands for a space inside tokens
WORDS = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+")


class ScoreMerger:
    """Turn text, with spaces already escaped, into token ids.

    `ids` maps a token's text to its id, `scores` is indexed by id, `byte_ids` maps a byte to its token's id;
    `unknown` stands for bytes that have none.
    """

    def __init__(
        self, ids: Mapping[str, int], scores: Sequence[float], byte_ids: Mapping[int, int], unknown: int
    ) -> None:
        self.ids, self.scores, self.byte_ids, self.unknown = ids, scores, byte_ids, unknown
        # No merge can cross from a letter to a space if no token does: then words are independent, and the
        # common ones are remembered.
        self.by_words = not any(SPACE in text.lstrip(SPACE) for text in ids)
        self._word = lru_cache(maxsize=1 << 16)(self._merge)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`."""
        if not self.by_words:
            return list(self._merge(text))
        return [index for word in WORDS.findall(text) for index in self._word(word)]

    def _merge(self, word: str) -> tuple[int, ...]:
        symbols: list[str | None] = list(word)
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        heap: list[tuple[float, int, int, str]] = []

        def consider(left: int, right: int) -> None:
            first, second = symbols[left], symbols[right]
            if left < 0 or right < 0 or first is None or second is None:
                return
            index = self.ids.get(first + second)
            if index is not None:
                heapq.heappush(heap, (-self.scores[index], left, right, first + second))

        for right in range(1, len(symbols)):
            consider(right - 1, right)
        while heap:
            _, left, right, merged = heapq.heappop(heap)
            first, second = symbols[left], symbols[right]
            if first is None or second is None or len(first) + len(second) != len(merged):
                continue  # one of the two has been merged with another in the meantime
            symbols[left], symbols[right] = merged, None
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            consider(before[left], left)
            consider(left, after[left])
        return tuple(index for symbol in symbols if symbol is not None for index in self._ids_of(symbol))

    def _ids_of(self, symbol: str) -> list[int]:
        index = self.ids.get(symbol)
        if index is not None:
            return [index]
        return [self.byte_ids.get(byte, self.unknown) for byte in symbol.encode("utf-8", "surrogateescape")]
