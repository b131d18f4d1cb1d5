"""What full-precision sources predicted, kept to compare each quant with its own source.

The losses, token by token, and the probabilities of all tokens in a base file. They are a cache: what is
missing or unreadable is measured again, and the oldest base files make room for new ones.
"""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from django.conf import settings

from hub import engine
from hub.catalog.models import Revision
from hub.files import borrow, share, write_whole

OWN = "source.kld"


@dataclass(frozen=True)
class Baseline:
    """What the source predicted: its losses, and the base file, None where there was no room for one."""

    losses: engine.Losses
    base: Path | None


def load(revision: Revision, folder: Path) -> Baseline | None:
    """Return what is kept of a source, its base file in a job's own `folder`; None where there is nothing."""
    try:
        losses: engine.Losses = np.load(_losses(revision), allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    own = folder / OWN
    found = borrow(_base(revision), own) and engine.is_base(own)
    return Baseline(losses, own if found else None)


def keep(revision: Revision, baseline: Baseline) -> None:
    """Keep what a source predicted for later comparisons."""
    buffer = io.BytesIO()
    np.save(buffer, baseline.losses, allow_pickle=False)
    write_whole(_losses(revision), buffer.getvalue())
    if baseline.base is not None:
        make_room()
        share(baseline.base, _base(revision))


def make_room() -> None:
    """Remove the base files that were not used for longest, until there is room for one more."""
    found = []
    for path in (Path(settings.CACHE_DIR) / "baselines").glob("*.kld"):
        with suppress(FileNotFoundError):  # another worker makes room, too
            found.append((path.stat().st_mtime, path.stat().st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total + settings.BASE_BYTES <= settings.BASES_BYTES:
            return
        path.unlink(missing_ok=True)
        total -= size


def _losses(revision: Revision) -> Path:
    return _folder() / f"{revision.commit}-{_key()}.npy"


def _base(revision: Revision) -> Path:
    # How many chunks a base has follows from the room that it may take.
    return _folder() / f"{revision.commit}-{_key()}-{settings.BASE_BYTES}.kld"


def _folder() -> Path:
    return Path(settings.CACHE_DIR) / "baselines"


def _key() -> str:
    return engine.cache_key(engine.quality_protocol(settings.EVAL_TEXT.read_bytes()))
