"""JSON by strangers: an object, or an error that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantcore.errors import UnreadableFile


def parse_object(raw: bytes, what: str) -> dict[str, Any]:
    """Return the JSON object that `raw` holds; `what` opens the message when it holds none."""
    try:
        document = json.loads(raw)
    except ValueError as exc:
        raise UnreadableFile(f"{what} not JSON: {exc}") from exc
    except RecursionError as exc:
        raise UnreadableFile(f"{what} not JSON that can be read: it nests too deeply") from exc
    if not isinstance(document, dict):
        raise UnreadableFile(f"{what} not a JSON object")
    return document


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file; a missing file is `{}` if `optional`, else `UnreadableFile`."""
    if optional and not path.is_file():
        return {}
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise UnreadableFile(f"{path}: cannot be read: {exc.strerror}") from exc
    return parse_object(raw, f"{path}:")
