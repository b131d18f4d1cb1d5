"""Files that readers find whole or not at all, and what messages may say of where they are."""

from __future__ import annotations

import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from django.conf import settings


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under another name first, so that nobody ever reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def share(own: Path, kept: Path) -> None:
    """Let a whole file be found at `kept` too, replacing what is there at once; not where it cannot be.

    The two are one file with two names: whoever removes one does not take it from who reads the other.
    """
    partial = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}")
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        os.link(own, partial)
        partial.replace(kept)
    partial.unlink(missing_ok=True)


def borrow(kept: Path, own: Path) -> bool:
    """Give a kept file a name of one's own; return whether there was one. It counts as used now."""
    own.unlink(missing_ok=True)
    try:
        os.link(kept, own)
        own.touch()
    except OSError:
        return False
    return True


def without_paths(text: str) -> str:
    """Leave files their names in a message: where the hub keeps them is nobody's business."""
    return re.sub(rf"{re.escape(str(settings.DATA_DIR))}/(?:[^\s/:;,]+/)*", "", text)
