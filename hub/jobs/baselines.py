"""What full-precision sources predicted, kept to compare each quant with its own source.

The losses, token by token, and the probabilities of all tokens in a base file. They are a cache: what is
missing or unreadable is measured again, and the oldest base files make room for new ones.
"""

from __future__ import annotations

import io
from contextlib import suppress
from pathlib import Path

import numpy as np
from django.conf import settings

from hub import engine
from hub.catalog.models import Revision
from hub.files import write_whole


def load(revision: Revision, protocol_key: str) -> engine.Losses | None:
    """Return kept losses, or None where there are none that can be read."""
    try:
        losses: engine.Losses = np.load(_path(revision, protocol_key), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return losses


def save(revision: Revision, protocol_key: str, losses: engine.Losses) -> None:
    """Keep losses for later comparisons."""
    buffer = io.BytesIO()
    np.save(buffer, losses, allow_pickle=False)
    write_whole(_path(revision, protocol_key), buffer.getvalue())


def base(revision: Revision, protocol_key: str) -> Path:
    """Return where the base file of a revision is, or will be."""
    return _path(revision, protocol_key).with_suffix(".kld")


def use(path: Path) -> Path | None:
    """Return the base file at `path` if it is there and whole, and note that it is in use."""
    if not engine.is_base(path):
        return None
    with suppress(OSError):
        path.touch()
    return path


def make_room() -> None:
    """Remove the base files that were not used for longest, until there is room for one more."""
    folder = Path(settings.CACHE_DIR) / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(folder.glob("*.kld"), key=lambda path: path.stat().st_mtime)
    total = sum(path.stat().st_size for path in files)
    for path in files:
        if total + settings.BASE_BYTES <= settings.BASES_BYTES:
            return
        with suppress(FileNotFoundError):
            total -= path.stat().st_size
            path.unlink()


def _path(revision: Revision, protocol_key: str) -> Path:
    return Path(settings.CACHE_DIR) / "baselines" / f"{revision.commit}-{protocol_key}.npy"
