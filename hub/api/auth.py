"""Who is calling: bearer tokens."""

from __future__ import annotations

from datetime import timedelta

from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from ninja.errors import HttpError
from ninja.security import HttpBearer

from hub.accounts.models import Token

# "Last used" is for people: a write on every call would cost more than it tells.
USE_IS_NOTED_EVERY = timedelta(minutes=5)


class WriteToken(HttpBearer):
    """Let in whoever carries a token that may write; `request.auth` is the token."""

    def __call__(self, request: HttpRequest) -> Token:
        if not request.headers.get("Authorization"):
            raise HttpError(401, "This needs a token: send the header `Authorization: Bearer TOKEN`.")
        token: Token | None = super().__call__(request)
        if token is None:
            raise HttpError(401, "The token is not valid. Make a new one on the page Tokens.")
        return token

    def authenticate(self, _request: HttpRequest, token: str) -> Token | None:
        found = Token.objects.for_secret(token)
        if found is None:
            return None
        if found.scope == Token.Scope.READ:
            raise HttpError(403, "The token may only read. Make one that may write.")
        _note_use(found)
        return found


def _note_use(token: Token) -> None:
    now = timezone.now()
    stale = Q(last_used__isnull=True) | Q(last_used__lt=now - USE_IS_NOTED_EVERY)
    Token.objects.filter(stale, pk=token.pk).update(last_used=now)
