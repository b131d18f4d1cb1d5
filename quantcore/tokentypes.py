"""What kinds of tokens a vocabulary has."""

from __future__ import annotations

from enum import IntEnum


class TokenType(IntEnum):
    """Token types of GGUF, which are SentencePiece's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
