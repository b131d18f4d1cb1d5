"""Starting Django for the verbs that work on the data itself."""

from __future__ import annotations

import os

from hub.cli._errors import Failed


def set_up() -> None:
    """Load settings and models; a malformed setting is one clear line."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hub.settings")
    import django
    from django.core.exceptions import ImproperlyConfigured

    try:
        django.setup()
    except ImproperlyConfigured as exc:
        raise Failed(str(exc)) from exc
