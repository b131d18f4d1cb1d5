"""What the pages of every app share: one address, one view, one template, and parts of it for htmx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec
from urllib.parse import urlencode

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render, resolve_url
from django.utils.cache import patch_vary_headers
from django_htmx.http import HttpResponseClientRedirect
from django_htmx.middleware import HtmxDetails

from hub.accounts.models import User

P = ParamSpec("P")

# Everything comes from ourselves. Nothing inline, so a hostile model name that slips through cannot run.
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class PageRequest(HttpRequest):
    """A request as the middleware leaves it."""

    htmx: HtmxDetails


class MemberRequest(PageRequest):
    """A request of somebody who has signed in."""

    user: User


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware: add the policy to each response that brings none of its own."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", POLICY)
        return response

    return middleware


def refuse_zeros(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    """Middleware: answer 400 to an address with a zero in it; no name has one, and PostgreSQL fails on it."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        if "\0" in request.path_info or "%00" in request.META.get("QUERY_STRING", ""):
            raise BadRequest("an address with a zero in it")
        return get_response(request)

    return middleware


def page(
    request: PageRequest,
    template: str,
    context: Mapping[str, Any],
    *,
    parts: Mapping[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    """Render a page, or only the part that htmx wants: `parts` names a template by the id of its target."""
    part = (parts or {}).get(request.htmx.target or "") if wants_part(request) else None
    response = render(request, part or template, {**context, "is_part": part is not None}, status=status)
    # Without this the back button may show a lone part that the browser has kept for the same address.
    patch_vary_headers(response, ["HX-Request", "HX-Target"])
    return response


def wants_part(request: PageRequest) -> bool:
    """Say whether htmx asks, and not for a whole page because the visitor went back in history."""
    return bool(request.htmx) and not request.htmx.history_restore_request


def leave_for(request: PageRequest, to: Any) -> HttpResponse:
    """Send the browser to another page; a plain redirect would be swapped into the part that asked."""
    address = resolve_url(to)
    return HttpResponseClientRedirect(address) if request.htmx else redirect(address)


def members_only(
    view: Callable[Concatenate[MemberRequest, P], HttpResponseBase],
) -> Callable[Concatenate[PageRequest, P], HttpResponseBase]:
    """Ask a stranger to sign in first and bring him back; works for whole pages and for dialogs."""

    @wraps(view)
    def guarded(request: PageRequest, /, *args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        if request.user.is_authenticated:
            return view(request, *args, **kwargs)  # type: ignore[arg-type]  # the check above proves it
        back = request.get_full_path() if request.method == "GET" else request.META.get("HTTP_REFERER", "/")
        return leave_for(request, f"{resolve_url('accounts:sign-in')}?{urlencode({'next': back})}")

    return guarded
