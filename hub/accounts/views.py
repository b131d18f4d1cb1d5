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
from hub.pages import MemberRequest, leave_for, members_only, page

# Where the session keeps a new token's secret until the next page has shown it.
JUST_MADE = "just-made"


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
    """List tokens and make one. The secret is in the one page that follows and nowhere else."""
    form = TokenForm(request.user, request.POST if request.method == "POST" else None)
    if form.is_bound and form.is_valid() and _made(request, form):
        # Not this answer but the next shows it, so that loading the page again makes no second token.
        return leave_for(request, "accounts:tokens")
    secret = request.session.pop(JUST_MADE, "") if request.method == "GET" else ""
    context = {"form": form, "secret": secret, "tokens": request.user.tokens.order_by("-created")}
    return page(request, "accounts/tokens.html", context, status=422 if form.is_bound else 200)


def _made(request: MemberRequest, form: TokenForm) -> bool:
    """Make the token and keep its secret for one page; else say in the form why not."""
    try:
        _, request.session[JUST_MADE] = actions.issue_token(request.user, **form.cleaned_data)
    except actions.Refused as exc:
        form.add_error("name", str(exc))
        return False
    return True


@members_only
@require_POST
def revoke(request: MemberRequest, pk: int) -> HttpResponse:
    if actions.revoke_token(request.user, pk):
        messages.success(request, "The token is revoked.")
    return redirect("accounts:tokens")
