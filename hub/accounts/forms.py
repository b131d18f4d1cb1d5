"""Signing in, and making a token."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.forms import AuthenticationForm

from hub.accounts import patience
from hub.accounts.actions import scopes_of
from hub.accounts.models import NAME_LENGTH, Token, User


class SignInForm(patience.Limited, AuthenticationForm):
    """The form of the hub's own page."""


class AdminSignInForm(patience.Limited, AdminAuthenticationForm):
    """The form of the administration, which counts the same attempts."""


class TokenForm(forms.Form):
    name = forms.CharField(max_length=NAME_LENGTH, help_text="What will use it: “my laptop”, “build server”.")
    scope = forms.ChoiceField(label="May", initial=Token.Scope.WRITE)

    def __init__(self, user: User, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["scope"].choices = scopes_of(user)  # type: ignore[attr-defined]
