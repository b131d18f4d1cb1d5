"""Texts that models are measured on."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from quantcore.errors import UnreadableFile


@dataclass(frozen=True)
class Text:
    """A text as it is measured on, and the SHA-256 of its file."""

    path: Path
    content: str
    sha256: str


def read_text(path: Path) -> Text:
    """Return the text of a file, without its last line break, as llama-perplexity takes it."""
    try:
        raw = path.read_bytes()
        content = raw.decode("utf-8").removesuffix("\n")
    except OSError as exc:
        raise UnreadableFile(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UnreadableFile(
            f"{path}: is not UTF-8 text: byte {exc.start} is {exc.object[exc.start]:#x}"
        ) from exc
    return Text(path, content, hashlib.sha256(raw).hexdigest())
