"""Which build of quantcore this is: a release may be followed by many states of its source."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent
KINDS = frozenset({".py", ".cu", ".cuh"})
DIGITS = 12


@lru_cache(maxsize=1)
def build() -> str:
    """Return the first digits of the SHA-256 of the source, the same for the same source wherever it lies."""
    digest = hashlib.sha256()
    for path in sorted(path for path in FOLDER.rglob("*") if path.suffix in KINDS):
        name, source = path.relative_to(FOLDER).as_posix().encode(), path.read_bytes()
        digest.update(b"%d %s %d " % (len(name), name, len(source)) + source)
    return digest.hexdigest()[:DIGITS]
