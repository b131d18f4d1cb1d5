"""Writes to people and their tokens."""

from __future__ import annotations

import secrets

from hub.accounts.models import NAME_LENGTH, Token, User


class Refused(Exception):
    """Not allowed; the message is a sentence for the person who asked."""


def issue_token(user: User, name: str, scope: str) -> tuple[Token, str]:
    """Make a token for a person; return it with the secret, which nobody can read again.

    The name tells one's tokens apart when one of them is to be revoked, so it must be there and be new.
    """
    name = name.strip()
    if not name:
        raise Refused("Give the token a name that says what will use it.")
    if len(name) > NAME_LENGTH:
        raise Refused(f"The name of a token has at most {NAME_LENGTH} characters.")
    if user.tokens.filter(name__iexact=name).exists():
        raise Refused(f"There is a token called {name!r} already. Choose another name, or revoke that one.")
    if scope not in dict(scopes_of(user)):
        raise Refused("Only an administrator may have a token that administers.")
    return Token.issue(user=user, name=name, scope=scope)


def revoke_token(user: User, pk: int) -> bool:
    """Delete one of a person's own tokens; whoever carries it is a stranger from now on."""
    return bool(user.tokens.filter(pk=pk).delete()[0])


def scopes_of(user: User) -> list[tuple[str, str]]:
    """Return what a person's tokens may be allowed to do."""
    return [(s.value, s.label) for s in Token.Scope if user.is_staff or s != Token.Scope.ADMIN]


def first_admin(password: str = "") -> str:
    """Make the first administrator where there is none; return the password, else nothing."""
    if User.objects.filter(is_superuser=True).exists():
        return ""
    password = password or _new_password()
    User.objects.create_superuser("admin", password=password)
    return password


def reset_password(user: User) -> str:
    """Give a person a new password and return it; whoever is signed in with the old one is signed out."""
    password = _new_password()
    user.set_password(password)
    user.save(update_fields=["password"])
    return password


def _new_password() -> str:
    return secrets.token_urlsafe(12)
