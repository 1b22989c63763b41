"""Checks the API key of each request, once accounts are on, before its body is read.

A request without a valid key is a 401 in the wire format of its endpoint. The limiter charges it to
the edge limits, like every request that reaches no view.
"""

from __future__ import annotations

from typing import Final

from flask import Flask, Request
from flask.globals import request_ctx

from chatapp.accounts.api_key import PREFIX
from chatapp.accounts.authentication import (
    AccountsUnavailableError,
    Authenticator,
    KeyRefusedError,
)
from chatapp.web.current_request import current_request
from chatapp.web.errors import ApiError, unavailable

# Public: the page with its files, the description of the API, and health; metrics and /admin have
# tokens of their own. Any other blueprint requires a key.
OPEN_BLUEPRINTS: Final = frozenset({"page", "openapi", "health", "metrics", "admin"})
OPEN_ENDPOINTS: Final = frozenset({"static"})
HOW: Final = 'Send it as "Authorization: Bearer sk-chat-…" or "x-api-key: sk-chat-…".'
#: Every 401 has an authentication scheme. Without the ban on retries, Claude Code would retry
#: silently for minutes.
HEADERS: Final = {"WWW-Authenticate": 'Bearer realm="chatapp"', "x-should-retry": "false"}


def install(app: Flask, authenticator: Authenticator) -> None:
    """Check the key of every request, and set its ``principal``."""

    @app.before_request
    def authenticate() -> None:
        request = request_ctx.request  # not the proxy, which looks it up for each attribute
        # A browser sends OPTIONS without a key before the request itself.
        if _is_open(request) or request.method == "OPTIONS":
            return
        try:
            if authenticator.required:
                current_request().principal = authenticator.authenticate(_api_key(request))
        except KeyRefusedError as error:
            raise _unauthorized(str(error)) from error
        except AccountsUnavailableError as error:
            raise unavailable(
                "accounts_unavailable", "API keys cannot be checked at the moment."
            ) from error


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, headers=HEADERS)


def _is_open(received: Request) -> bool:
    """Return whether no key is needed. An unknown address is a 404 with and without a key."""
    return (
        received.endpoint is None
        or received.endpoint in OPEN_ENDPOINTS
        or received.blueprint in OPEN_BLUEPRINTS
    )


def _api_key(received: Request) -> str:
    """Return the API key of the request. Claude Code may send a leftover ANTHROPIC_API_KEY besides;
    it is ignored if there is a key of this server."""
    scheme, _, token = received.headers.get("Authorization", "").partition(" ")
    bearer = token if scheme.lower() == "bearer" else ""
    keys = {bearer.strip(), received.headers.get("x-api-key", "").strip()} - {""}
    if not keys:
        raise _unauthorized(f"The request has no API key. {HOW}")
    ours = {key for key in keys if key.startswith(PREFIX)}
    if len(ours) > 1:
        raise _unauthorized("The request has two API keys of this server. Send one of them.")
    return (ours or keys).pop()
