"""Checks the API key of each request, once accounts are on, before anything else.

A request without a valid key is a 401 in the wire format of its endpoint. The limiter charges it to
the edge limits, like every request that reaches no view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from flask import Flask, Request, g, request

from chatapp.accounts.api_key import PREFIX
from chatapp.accounts.authentication import (
    AccountsUnavailableError,
    Authenticator,
    KeyRefusedError,
)
from chatapp.web.errors import ApiError

# Public: the page with its files, and health. Any other blueprint requires a key.
OPEN_BLUEPRINTS: Final = frozenset({"page", "health"})
OPEN_ENDPOINTS: Final = frozenset({"static"})
HOW: Final = 'send it as "Authorization: Bearer sk-chat-…" or as "x-api-key: sk-chat-…"'
RETRY_AFTER_S: Final = 2


class UnauthenticatedError(ApiError):
    """401: the key is missing or gives no access."""

    def __init__(self, sentence: str) -> None:
        super().__init__(401, "invalid_api_key", sentence)

    def get_headers(self, *args: object) -> list[tuple[str, str]]:
        """With the authentication scheme, which every 401 has, and with a ban on retries: Claude
        Code would retry silently for minutes."""
        return [
            *super().get_headers(),
            ("WWW-Authenticate", 'Bearer realm="chatapp"'),
            ("x-should-retry", "false"),
        ]


class AccountsUnreachableError(ApiError):
    """503: keys cannot be checked at the moment."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "accounts_unavailable",
            f"API keys cannot be checked at the moment; try again in {RETRY_AFTER_S} s.",
        )

    def get_headers(self, *args: object) -> list[tuple[str, str]]:
        """With a Retry-After."""
        return [*super().get_headers(), ("Retry-After", str(RETRY_AFTER_S))]


def install(app: Flask, authenticator: Authenticator) -> None:
    """Check the key of every request, and set ``g.principal`` and ``g.key_id``."""

    @app.before_request
    def authenticate() -> None:
        # A browser sends OPTIONS without a key before the request itself.
        if _is_open(request) or request.method == "OPTIONS":
            return
        try:
            if authenticator.required:
                g.principal = authenticator.authenticate(_api_key(request))
                g.key_id = g.principal.key_id
        except KeyRefusedError as error:
            raise UnauthenticatedError(str(error)) from error
        except AccountsUnavailableError as error:
            raise AccountsUnreachableError from error


def _is_open(received: Request) -> bool:
    """Whether no key is needed. An unknown address is a 404 with and without a key."""
    return (
        received.endpoint is None
        or received.endpoint in OPEN_ENDPOINTS
        or received.blueprint in OPEN_BLUEPRINTS
    )


def _api_key(received: Request) -> str:
    """The API key of the request. Claude Code may send a leftover ANTHROPIC_API_KEY besides; it is
    ignored if there is a key of this server."""
    keys = {*_bearers(received.headers.getlist("Authorization"))}
    keys |= {value.strip() for value in received.headers.getlist("x-api-key")}
    keys.discard("")
    if not keys:
        raise UnauthenticatedError(f"There is no API key in this request; {HOW}.")
    ours = {key for key in keys if key.startswith(PREFIX)}
    if len(ours) > 1:
        raise UnauthenticatedError(
            "There are two API keys of this server in this request; send one of them."
        )
    return (ours or keys).pop()


def _bearers(values: Sequence[str]) -> list[str]:
    parted = [value.partition(" ") for value in values]
    return [token.strip() for scheme, _, token in parted if scheme.lower() == "bearer"]
