"""The form that makes a token."""

from __future__ import annotations

from typing import Any

from django import forms

from hub.accounts.actions import scopes_of
from hub.accounts.models import Token, User


class TokenForm(forms.Form):
    name = forms.CharField(max_length=80, help_text="What will use it: “my laptop”, “build server”.")
    scope = forms.ChoiceField(label="May", initial=Token.Scope.WRITE)

    def __init__(self, user: User, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["scope"].choices = scopes_of(user)  # type: ignore[attr-defined]
