"""Talking to a hub's API from a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import requests

from hub.cli._errors import Failed

SECONDS = 30
# A hub that is being started again is back within a minute.
AWAY_SECONDS = 60.0
PAUSE_SECONDS = 2.0
# What a server in front of the hub answers while the hub is away.
AWAY_STATUS = frozenset({502, 503, 504})

UNSIGNED = "This needs a token: set QUANTHUB_TOKEN or give --token. They are made under your name on the hub."


class Client:
    """Calls one hub; every failure is one sentence."""

    def __init__(self, server: str, token: str) -> None:
        if urlsplit(server).scheme not in {"http", "https"}:
            raise Failed(f"--server {server}: give an address that begins with http:// or https://")
        self.server = server.rstrip("/")
        self.session = requests.Session()
        self.has_token = bool(token)
        # As `auth`, not as a header: a ~/.netrc would replace the header.
        self.session.auth = _Bearer(token)

    def get(self, path: str, tell: Callable[[str], None] = lambda _text: None) -> dict[str, Any]:
        """Read a document. A hub that is away for about a minute is waited for; `tell` hears of it once."""
        last = time.monotonic() + AWAY_SECONDS
        told = False
        while True:
            try:
                return self._call("GET", path)
            except Unreachable as exc:
                if time.monotonic() > last:
                    raise
                if not told:
                    tell(f"{exc} Trying again for a minute ...")
                told = True
            time.sleep(PAUSE_SECONDS)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a document; never twice."""
        return self._call("POST", path, body)

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        url = f"{self.server}/api/v1/{path}"
        try:
            answer = self.session.request(method, url, json=body, timeout=SECONDS)
        except requests.RequestException as exc:
            raise Unreachable(
                f"{self.server} cannot be reached ({_cause(exc)}). Is the hub running?"
            ) from exc
        if answer.status_code in AWAY_STATUS:
            raise Unreachable(f"{self._problem(answer)}. Is the hub running?")
        if answer.ok:
            return self._document(answer)
        if answer.status_code == HTTPStatus.UNAUTHORIZED and not self.has_token:
            raise Failed(UNSIGNED)
        raise Failed(self._problem(answer))

    def _document(self, answer: requests.Response) -> dict[str, Any]:
        try:
            document: dict[str, Any] = answer.json()
        except ValueError as exc:
            raise Failed(f"{self.server} does not answer like a hub") from exc
        return document

    def _problem(self, answer: requests.Response) -> str:
        try:
            return str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            return f"{self.server} answered {answer.status_code} {answer.reason}"


class _Bearer(requests.auth.AuthBase):
    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token}"
        return request


class Unreachable(Failed):
    """No answer came; one may come later."""


def _cause(exc: requests.RequestException) -> str:
    """Return the innermost reason in words, of the chain that HTTP libraries wrap around it."""
    found: BaseException = exc
    while inner := (found.__cause__ or found.__context__):
        found = inner
    return getattr(found, "strerror", None) or type(found).__name__
