"""The importance matrices of models, measured once for all levels that want them.

They are a cache: what is missing or unreadable is measured again.
"""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from hub import engine
from hub.catalog.models import Revision
from hub.files import borrow, share

OWN = "importance.gguf"


def load(revision: Revision, folder: Path) -> engine.Importance | None:
    """Return the kept matrix of a revision, in a job's own `folder`; None where there is none to be read."""
    if not borrow(_kept(revision), folder / OWN):
        return None
    try:
        return engine.open_importance(revision, folder / OWN)
    except engine.EngineError:
        return None


def measure(revision: Revision, source: engine.Source, folder: Path, tell: engine.Tell) -> engine.Importance:
    """Measure the matrix of a revision in a job's own `folder`, and keep it."""
    engine.calibrate(source, folder / OWN, tell)
    share(folder / OWN, _kept(revision))
    return engine.open_importance(revision, folder / OWN)


def _kept(revision: Revision) -> Path:
    key = engine.cache_key(engine.calibration_protocol())
    return Path(settings.CACHE_DIR) / "imatrices" / f"{revision.commit}-{key}.gguf"
