"""What the frame of every page needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from django import template
from django.conf import settings
from django.templatetags.static import static
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

register = template.Library()
FOLDER = Path(settings.BASE_DIR) / "static" / "css"


@cache
def _sheets() -> tuple[str, ...]:
    """Return variables and base first, then each block: a new block is a new file and no edit elsewhere."""
    blocks = sorted(f"css/blocks/{path.name}" for path in (FOLDER / "blocks").glob("*.css"))
    return ("css/variables.css", "css/base.css", *blocks)


@register.simple_tag
def stylesheets() -> SafeString:
    return format_html_join(
        "\n", '<link rel="stylesheet" href="{}">', ((static(name),) for name in _sheets())
    )
