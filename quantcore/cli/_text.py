"""Texts that models are measured on."""

from __future__ import annotations

from pathlib import Path

from quantcore.errors import UnreadableFile


def read_text(path: Path) -> str:
    """Return the text of a file, without its last line break, as llama-perplexity takes it."""
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except OSError as exc:
        raise UnreadableFile(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise UnreadableFile(
            f"{path}: is not UTF-8 text: byte {exc.start} is {exc.object[exc.start]:#x}"
        ) from exc
