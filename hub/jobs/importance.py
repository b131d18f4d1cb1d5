"""The importance matrices of models, measured once for all levels that want them.

They are a cache: what is missing or unreadable is measured again.
"""

from __future__ import annotations

from pathlib import Path

from django.conf import settings

from hub import engine
from hub.catalog.models import Revision


def load(revision: Revision) -> engine.Importance | None:
    """Return the kept matrix of a revision, or None where there is none that can be read."""
    try:
        return engine.open_importance(revision, _path(revision))
    except engine.EngineError:
        return None


def measure(revision: Revision, source: engine.Source, tell: engine.Tell) -> engine.Importance:
    """Measure the matrix of a revision and keep it."""
    path = _path(revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine.calibrate(source, path, tell)
    return engine.open_importance(revision, path)


def _path(revision: Revision) -> Path:
    key = engine.protocol_key(engine.calibration_protocol())
    return Path(settings.CACHE_DIR) / "imatrices" / f"{revision.commit}-{key}.gguf"
