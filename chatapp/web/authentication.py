"""Checks the API key of each request, once accounts are on, before its body is read.

A request without a valid key is a 401 in the wire format of its endpoint. The limiter charges it to
the edge limits, like every request that reaches no view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Final

from flask import Flask, Request
from flask.globals import request_ctx

from chatapp.accounts.api_key import PREFIX
from chatapp.accounts.authentication import (
    AccountsUnavailableError,
    Authenticator,
    KeyRefusedError,
    PersonRefusedError,
)
from chatapp.accounts.people import InvalidNameError
from chatapp.accounts.store import NewPeopleError
from chatapp.web.current_request import CurrentRequest, current_request
from chatapp.web.errors import ApiError, ErrorReport, unavailable
from ratelimit_ext import wait_text

# Public: the page with its files, the description of the API, and health; metrics and /admin have
# tokens of their own, and who signs in has no key yet. Any other blueprint requires a key.
OPEN_BLUEPRINTS: Final = frozenset(
    {"page", "openapi", "health", "metrics", "admin", "management", "sign_in"}
)
OPEN_ENDPOINTS: Final = frozenset({"static", None})  # None: an unknown address, a 404 for all
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
        is_open = request.endpoint in OPEN_ENDPOINTS or request.blueprint in OPEN_BLUEPRINTS
        if is_open or request.method == "OPTIONS":
            return
        try:
            if authenticator.required:
                current = current_request()
                key = current.principal = authenticator.authenticate(_api_key(request))
                if key.people is not None:
                    act_for(current, partial(key.people.named_by, request.headers.get))
        except KeyRefusedError as error:
            raise _unauthorized(str(error)) from error
        except AccountsUnavailableError as error:
            raise _unavailable() from error


def _unavailable() -> ApiError:
    return unavailable("accounts_unavailable", "API keys cannot be checked at the moment.")


def act_for_named(body: Mapping[str, object]) -> None:
    """Count the request for the person whom its body names, if its key may name one there."""
    current = current_request()
    if current.principal is not None and current.principal.people is not None:
        act_for(current, partial(current.principal.people.named_in, body))


def act_for(current: CurrentRequest, named: Callable[[], str | None]) -> None:
    """Count the request for the person whom its key has named; None: for the key's owner.

    ApiError: 400 for an invalid name, 403 for one who is deactivated, 429 for a new one too many,
    503 if unknown; the errors of the key's edge limits before a query.
    """
    key, services = current.principal, current.services
    try:
        name = named()
    except InvalidNameError as error:
        raise ApiError(400, "invalid_user", str(error)) from error
    if name is None or key is None:
        return
    try:
        current.principal = services.authenticator.act_for(
            key, name, before_wait=services.limiter.current.admit_edge
        )
    except PersonRefusedError as error:
        raise ApiError(403, "user_deactivated", str(error)) from error
    except NewPeopleError as error:
        wait_s = max(1, math.ceil((error.at - datetime.now(UTC)).total_seconds()))
        message = (
            f"{name} is new, and this API key may create no more users this hour. "
            f"Existing users are still served; try again in {wait_text(wait_s * 1000)}."
        )
        report = ErrorReport(429, "too_many_new_users", message, retry_after_s=wait_s)
        raise ApiError(429, report.code, message, headers=report.headers) from error
    except AccountsUnavailableError as error:
        raise _unavailable() from error


def refuse_revoked(_: object) -> None:
    """Raise 401 for a key that was revoked a moment ago, which is blocked until this worker has
    looked it up again. A key that an operator has blocked stays blocked."""
    current = current_request()
    if current.principal is None:
        return
    try:
        current.services.authenticator.authenticate(_api_key(request_ctx.request), again=True)
    except KeyRefusedError as error:
        raise _unauthorized(str(error)) from error
    except AccountsUnavailableError:
        return


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, "invalid_api_key", message, headers=HEADERS)


def _api_key(received: Request) -> str:
    """Return the API key of the request. Claude Code may send a leftover ANTHROPIC_API_KEY besides;
    it is ignored if there is a key of this server."""
    scheme, _, token = received.environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    bearer = token if scheme.lower() == "bearer" else ""
    keys: set[str] = {bearer.strip(), received.environ.get("HTTP_X_API_KEY", "").strip()} - {""}
    if not keys:
        raise _unauthorized(f"The request has no API key. {HOW}")
    ours = {key for key in keys if key.startswith(PREFIX)}
    if len(ours) > 1:
        raise _unauthorized("The request has two API keys of this server. Send one of them.")
    return (ours or keys).pop()
