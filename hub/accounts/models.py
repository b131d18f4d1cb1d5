"""People and the tokens their tools carry."""

from __future__ import annotations

import hashlib
import secrets
import string
from typing import Any

from django.contrib.auth.models import AbstractUser
from django.db import models

TOKEN_LETTERS = string.ascii_letters + string.digits
# llama.cpp sends a token only if it is "hf_" and letters and digits, 37 characters or more in all.
TOKEN_LENGTH = 40
NAME_LENGTH = 80


class User(AbstractUser):
    """A person who signs in. Our own class from the first migration on, so that it can grow."""


def token_digest(secret: str) -> str:
    """Return what is stored of a token; as tokens are long and random, a plain hash is safe."""
    return hashlib.sha256(secret.encode()).hexdigest()


class TokenQuerySet(models.QuerySet["Token"]):
    def for_secret(self, secret: str) -> Token | None:
        return self.select_related("user").filter(digest=token_digest(secret), user__is_active=True).first()


class Token(models.Model):
    """A secret that lets a tool act for a person. Only its digest is kept."""

    class Scope(models.TextChoices):
        READ = "read", "Read"
        WRITE = "write", "Read and write"
        ADMIN = "admin", "Administer"

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=NAME_LENGTH)
    scope = models.CharField(max_length=8, choices=Scope.choices, default=Scope.WRITE)
    digest = models.CharField(max_length=64, unique=True)
    prefix = models.CharField(max_length=8, help_text="The first characters, to tell tokens apart.")
    created = models.DateTimeField(auto_now_add=True)
    last_used = models.DateTimeField(null=True, blank=True)

    objects = TokenQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @classmethod
    def issue(cls, **fields: Any) -> tuple[Token, str]:
        """Create a token; return it with its secret, which is shown once and never again."""
        secret = "hf_" + "".join(secrets.choice(TOKEN_LETTERS) for _ in range(TOKEN_LENGTH - 3))
        return cls.objects.create(digest=token_digest(secret), prefix=secret[:7], **fields), secret
