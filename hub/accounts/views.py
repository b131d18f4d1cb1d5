"""Signing in and out, the password, and tokens for tools."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.auth import views as auth
from django.forms import BaseForm
from django.http import HttpResponse
from django.shortcuts import redirect
from django.urls import reverse_lazy
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from hub.accounts import actions
from hub.accounts.forms import SignInForm, TokenForm
from hub.pages import MemberRequest, members_only, page


class InvalidIs422:
    """A form that was refused says so in its status too."""

    def form_invalid(self, form: BaseForm) -> HttpResponse:
        response: HttpResponse = super().form_invalid(form)  # type: ignore[misc]  # a mixin's parent is not known
        response.status_code = 422
        return response


class SignIn(InvalidIs422, auth.LoginView):
    template_name = "accounts/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True


class SignOut(auth.LogoutView):
    pass


class ChangePassword(InvalidIs422, auth.PasswordChangeView):
    template_name = "accounts/password.html"
    success_url = reverse_lazy("accounts:tokens")

    def form_valid(self, form: Any) -> HttpResponse:
        messages.success(self.request, "Your password is changed.")
        return super().form_valid(form)


@never_cache
@members_only
@require_http_methods(["GET", "HEAD", "POST"])
def tokens(request: MemberRequest) -> HttpResponse:
    """List tokens and make one. The secret is in this one answer and nowhere else."""
    form = TokenForm(request.user, request.POST if request.method == "POST" else None)
    secret, status = "", 200
    if form.is_bound and form.is_valid():
        _, secret = actions.issue_token(request.user, **form.cleaned_data)
        form = TokenForm(request.user)
    elif form.is_bound:
        status = 422
    context = {"form": form, "secret": secret, "tokens": request.user.tokens.order_by("-created")}
    return page(request, "accounts/tokens.html", context, status=status)


@members_only
@require_POST
def revoke(request: MemberRequest, pk: int) -> HttpResponse:
    if actions.revoke_token(request.user, pk):
        messages.success(request, "The token is revoked.")
    return redirect("accounts:tokens")
