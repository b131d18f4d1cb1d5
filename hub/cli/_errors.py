"""What a verb raises when it cannot do what was asked."""

from __future__ import annotations

from typing import Any


class Failed(Exception):
    """The message is one sentence for whoever sits there; `document` is what `--json` prints even so."""

    def __init__(self, message: str, document: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.document = document
