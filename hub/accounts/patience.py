"""How often a wrong password may be tried. Counted in this process, as one process serves all pages."""

from __future__ import annotations

import hashlib
from typing import Any

from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.http import HttpRequest

MOST = 10
MINUTES = 15


class Limited:
    """A sign-in form that stops listening after too many wrong passwords for one name from one place."""

    request: HttpRequest | None
    data: Any

    def clean(self) -> Any:
        key = self._key()
        # Counted before the password is looked at, so that attempts made at once count too.
        cache.add(key, 0, MINUTES * 60)
        if cache.incr(key) > MOST:
            raise ValidationError(
                f"There were {MOST} wrong passwords. Wait {MINUTES} minutes, then try again; "
                "an administrator can give you a new password."
            )
        cleaned = super().clean()  # type: ignore[misc]  # the form that this is mixed into
        cache.delete(key)
        return cleaned

    def _key(self) -> str:
        place = self.request.META.get("REMOTE_ADDR", "") if self.request else ""
        name = str(self.data.get("username", ""))
        return "sign-in:" + hashlib.sha256(f"{place} {name}".encode()).hexdigest()
