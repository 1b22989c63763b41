"""Who calls, once accounts are on: the API key of each request, before anything else is looked at.

A request without a good one ends here, 401, in the shape of the endpoint that was called; the
limiter charges it to the edge, like every request that reaches no view.
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

# What anybody may ask for: the page with its files, and whether the process is well. A blueprint
# that is not named here asks for a key from its first day.
OPEN_BLUEPRINTS: Final = frozenset({"page", "health"})
OPEN_ENDPOINTS: Final = frozenset({"static"})
HOW: Final = 'send it as "Authorization: Bearer sk-chat-…" or as "x-api-key: sk-chat-…"'
RETRY_AFTER_S: Final = 2


class UnauthenticatedError(ApiError):
    """401: no key, or none that gives access."""

    def __init__(self, sentence: str) -> None:
        super().__init__(401, "invalid_api_key", sentence)

    def get_headers(self, *asked: object) -> list[tuple[str, str]]:
        """With the scheme that is asked for, as every 401 has it, and that a retry is useless:
        Claude Code would retry silently for minutes."""
        return [
            *super().get_headers(),
            ("WWW-Authenticate", 'Bearer realm="chatapp"'),
            ("x-should-retry", "false"),
        ]


class AccountsUnreachableError(ApiError):
    """503: whose key it is cannot be told at the moment."""

    def __init__(self) -> None:
        super().__init__(
            503,
            "accounts_unavailable",
            f"API keys cannot be checked at the moment; try again in {RETRY_AFTER_S} s.",
        )

    def get_headers(self, *asked: object) -> list[tuple[str, str]]:
        """With a time to come back."""
        return [*super().get_headers(), ("Retry-After", str(RETRY_AFTER_S))]


def install(app: Flask, authenticator: Authenticator) -> None:
    """Ask every request for its key; ``g.principal`` and ``g.key_id`` are its owner's then."""

    @app.before_request
    def authenticate() -> None:
        # A browser asks OPTIONS without a key, before it sends one.
        if _is_open(request) or request.method == "OPTIONS":
            return
        try:
            if authenticator.required:
                g.principal = authenticator.authenticate(_presented(request))
                g.key_id = g.principal.key_id
        except KeyRefusedError as refusal:
            raise UnauthenticatedError(str(refusal)) from refusal
        except AccountsUnavailableError as error:
            raise AccountsUnreachableError from error


def _is_open(asked: Request) -> bool:
    """Whether no key is needed. What is at no address is 404 for everybody."""
    return (
        asked.endpoint is None
        or asked.endpoint in OPEN_ENDPOINTS
        or asked.blueprint in OPEN_BLUEPRINTS
    )


def _presented(asked: Request) -> str:
    """The API key of the request. Beside a key of another server, which Claude Code sends where an
    ANTHROPIC_API_KEY is left over, it is the one of this server."""
    shown = {*_bearers(asked.headers.getlist("Authorization"))}
    shown |= {value.strip() for value in asked.headers.getlist("x-api-key")}
    shown.discard("")
    if not shown:
        raise UnauthenticatedError(f"There is no API key in this request; {HOW}.")
    ours = {key for key in shown if key.startswith(PREFIX)}
    if len(ours) > 1:
        raise UnauthenticatedError(
            "There are two API keys of this server in this request; send one of them."
        )
    return (ours or shown).pop()


def _bearers(values: Sequence[str]) -> list[str]:
    parted = [value.partition(" ") for value in values]
    return [token.strip() for scheme, _, token in parted if scheme.lower() == "bearer"]
