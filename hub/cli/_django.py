"""Starting Django for the verbs that work on the data itself."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hub.cli._errors import Failed

# As in the settings, which cannot be asked: to load them is to make the folder.
DEFAULT_DATA = Path(__file__).resolve().parents[2] / "data"


def set_up(*, new_hub: bool = True) -> None:
    """Load settings and models; a malformed setting is one clear line.

    `new_hub` says whether the verb may make a data folder where there is none.
    """
    if not new_hub:
        _require_hub(Path(os.environ.get("QUANTHUB_DATA") or DEFAULT_DATA).expanduser())
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")
    import django
    from django.core.exceptions import ImproperlyConfigured

    try:
        django.setup()
    except ImproperlyConfigured as exc:
        raise Failed(str(exc)) from exc
    from django.conf import settings

    _require_writable(settings.DATA_DIR)


def _require_hub(folder: Path) -> None:
    try:
        is_there = folder.is_dir()
    except OSError as exc:
        raise Failed(_unusable(folder, exc)) from exc
    if not is_there:
        raise Failed(
            f"there is no hub in {folder}. Start one with `quanthub up`, or set QUANTHUB_DATA to its folder."
        )


def _require_writable(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as exc:
        raise Failed(_unusable(folder, exc)) from exc


def _unusable(folder: Path, exc: OSError) -> str:
    return f"QUANTHUB_DATA: the folder {folder} cannot be used ({exc.strerror})"
