"""The losses of full-precision sources, token by token, kept to compare each quant with its own source.

They are a cache: what is missing or unreadable is measured again.
"""

from __future__ import annotations

import io
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


def _path(revision: Revision, protocol_key: str) -> Path:
    return Path(settings.CACHE_DIR) / "baselines" / f"{revision.commit}-{protocol_key}.npy"
